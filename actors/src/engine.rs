//! What a host computes with: a model, shared by the process, and a backend of its own, with the scratch space of one
//! run of tokens. An engine belongs to one OS thread.

use std::sync::Arc;

use stellate_kernels::{Backend, KvSpan, Partial};
use stellate_model::decoder::{Decoder, Pass};

use crate::health::Pulse;
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
    /// Shows that the thread gets on.
    pub pulse: Pulse,
    /// Activations of the run under way.
    pub pass: Pass,
    /// Attention over the keys that this host has, of the run under way.
    pub attended: Partial,
    /// Attention over all keys, of the run under way.
    pub merged: Partial,
}

impl Engine {
    /// An engine that runs `decoder` on `backend` in steps of at most `chunk_tokens`.
    pub fn new(decoder: Arc<Decoder>, backend: Box<dyn Backend>, chunk_tokens: usize) -> Self {
        let empty = || Partial::empty(decoder.partial_shape(0));
        let (attended, merged) = (empty(), empty());
        let (chunk_tokens, pulse, pass) = (chunk_tokens.max(1), Pulse::default(), Pass::default());
        Self { decoder, backend, chunk_tokens, pulse, pass, attended, merged }
    }

    /// The attention of `queries`, `[tokens, heads, head_dim]`, over `spans`, one for each block, folded as asked, in place
    /// of what `partials` held.
    pub fn attend(&mut self, queries: &[f32], spans: &[KvSpan<'_>], fold: Fold, partials: &mut Vec<Partial>) {
        let queries = self.decoder.queries(queries);
        // Activations may be rounded only where no sum before them depends on where blocks lie.
        let backend = if fold.is_placement_free() { self.backend.encoding() } else { &*self.backend };
        let shape = self.decoder.partial_shape(queries.tokens);
        let count = if fold == Fold::Apart { spans.len() } else { 1 };
        partials.truncate(count);
        partials.iter_mut().for_each(|partial| partial.reset(shape));
        partials.resize_with(count, || Partial::empty(shape));
        match fold {
            Fold::ByHost => backend.attend(queries, spans, &mut partials[0]),
            Fold::ByBlock => {
                let (first, rest) = spans.split_at(spans.len().min(1));
                backend.attend(queries, first, &mut partials[0]);
                for span in rest {
                    self.attended.reset(shape);
                    backend.attend(queries, std::slice::from_ref(span), &mut self.attended);
                    backend.merge(&mut partials[0], &self.attended);
                }
            }
            Fold::Apart => {
                for (span, partial) in spans.iter().zip(partials) {
                    backend.attend(queries, std::slice::from_ref(span), partial);
                }
            }
        }
    }
}

/// The memory of a list of spans for another list, which is empty and may borrow from elsewhere.
pub fn recycle<'b>(mut spans: Vec<KvSpan<'_>>) -> Vec<KvSpan<'b>> {
    spans.clear();
    // Collecting in place keeps the allocation; were it not kept, the list would only allocate again.
    spans.into_iter().map(|_| unreachable!("the list is empty")).collect()
}
