//! What a host computes with: a model, shared by the process, and a backend of its own, with the scratch space of one
//! run of tokens. An engine belongs to one OS thread.

use std::sync::Arc;

use stellate_kernels::{Backend, Partial};
use stellate_model::decoder::{Decoder, Pass};

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
}
