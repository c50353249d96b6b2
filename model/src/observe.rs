//! What a run of tokens tells of its way through the layers: which operation is done, and how much work it was. Who
//! listens, and what time it took, is known elsewhere; without a listener it costs a comparison per operation.

use std::fmt::Debug;

/// What a run of tokens is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Encoding a context (phase 1), on whatever host: under `exact` also the attention that context hosts are asked for.
    Encode,
    /// Questions and answers (phase 2), on the query host.
    Answer,
    /// Questions and answers, on a context host that is asked for attention.
    Serve,
}

/// An operation between two readings of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Looking up embeddings, and the angles of the positions.
    Embed,
    /// A norm, with the sum before it where they are one pass.
    Norm,
    /// Products with the weights of queries, keys and values, and their biases.
    Qkv,
    /// Norms of heads and rotary embedding.
    Rope,
    /// Packing keys and values.
    KvWrite,
    /// Attention over keys that this host has.
    Attention,
    /// Sending queries to other hosts.
    Post,
    /// Waiting for the attention of other hosts.
    Wait,
    /// Merging partial attention.
    Merge,
    /// Product with the output weight of attention.
    Output,
    /// Products with the weights of gate and up, and SwiGLU.
    GateUp,
    /// Product with the down weight.
    Down,
    /// A sum that no norm follows.
    Residual,
    /// Product with the vocabulary's weight.
    Logits,
}

impl Operation {
    /// Whether its time goes into products with weights or into attention.
    pub fn is_product_or_attention(self) -> bool {
        matches!(self, Self::Qkv | Self::Attention | Self::Output | Self::GateUp | Self::Down | Self::Logits)
    }

    /// How it is called in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embed => "embedding",
            Self::Norm => "residual, norm",
            Self::Qkv => "product: q, k, v",
            Self::Rope => "rope",
            Self::KvWrite => "kv write",
            Self::Attention => "attention",
            Self::Post => "posting queries",
            Self::Wait => "waiting for hosts",
            Self::Merge => "merge",
            Self::Output => "product: output",
            Self::GateUp => "product: gate, up, swiglu",
            Self::Down => "product: down",
            Self::Residual => "residual",
            Self::Logits => "product: logits",
        }
    }
}

/// How much an operation had to do; zero where nobody counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes of weights, or of keys and values, that were read.
    pub bytes: u64,
}

/// Listens to the runs of one engine, one after the other.
pub trait Observer: Send + Debug {
    /// A run begins. Runs that fail are never done.
    fn begin(&mut self, phase: Phase);
    /// An operation is done: it began when the one before it was done, or the run. `layer` is `None` outside of layers.
    fn done(&mut self, layer: Option<usize>, operation: Operation, work: Work);
}
