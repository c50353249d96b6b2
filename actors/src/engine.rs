//! What a host computes with: a model, shared by the process, and a backend of its own, with the scratch space of one
//! run of tokens. An engine belongs to one OS thread.

use std::sync::Arc;

use stellate_kernels::{Backend, KvSpan, Partial};
use stellate_model::decoder::{Decoder, Pass};

use crate::link::Fold;

/// A model on a device.
#[derive(Debug)]
pub struct Engine {
    /// The model.
    pub decoder: Arc<Decoder>,
    /// The device that this host pins.
    pub backend: Box<dyn Backend>,
    /// Tokens that go through the layers together at most; bounds the activations.
    pub chunk_tokens: usize,
    /// Activations of the run under way.
    pub pass: Pass,
    /// Attention of the run under way.
    pub attended: Partial,
}

impl Engine {
    /// An engine that runs `decoder` on `backend` in steps of at most `chunk_tokens`.
    pub fn new(decoder: Arc<Decoder>, backend: Box<dyn Backend>, chunk_tokens: usize) -> Self {
        let attended = Partial::empty(decoder.partial_shape(0));
        Self { decoder, backend, chunk_tokens: chunk_tokens.max(1), pass: Pass::default(), attended }
    }

    /// The device for a run whose attention is folded so: activations may be rounded only where no sum before them depends
    /// on where blocks lie.
    pub fn backend_for(&self, fold: Fold) -> &dyn Backend {
        if fold.is_placement_free() { self.backend.encoding() } else { &*self.backend }
    }

    /// The attention of `queries`, `[tokens, heads, head_dim]`, over `spans`, one for each block, folded as asked.
    pub fn attend(&self, queries: &[f32], spans: &[KvSpan<'_>], fold: Fold) -> Vec<Partial> {
        let (queries, backend) = (self.decoder.queries(queries), self.backend_for(fold));
        let empty = || Partial::empty(self.decoder.partial_shape(queries.tokens));
        let alone = |span: &KvSpan<'_>| {
            let mut partial = empty();
            backend.attend(queries, &[*span], &mut partial);
            partial
        };
        let mut folded = empty();
        match fold {
            Fold::ByHost => backend.attend(queries, spans, &mut folded),
            Fold::ByBlock => spans.iter().for_each(|span| folded.merge(&alone(span))),
            Fold::Apart => return spans.iter().map(alone).collect(),
        }
        vec![folded]
    }
}
