//! The decoder of all families, layer by layer: what the paths of a context token and of a query token call between
//! their exchanges of attention. Attention itself is left to the caller, who knows where keys and values lie.

use std::ops::Range;

use stellate_kernels::{Backend, KvFormat, KvShape, Partial, PartialShape, Queries, RopeAngles};

use crate::checkpoint::Loaded;
use crate::config::ModelConfig;
use crate::fingerprint::Fingerprint;
use crate::weights::{LayerWeights, Weights};

/// A token that the model's vocabulary does not have. Nothing was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "token id {id} (token {at} of the input) is not in the vocabulary of {vocab_size}; was it made by this model's tokenizer?"
)]
pub struct UnknownToken {
    /// The id.
    pub id: u32,
    /// Its index in the input.
    pub at: usize,
    /// Ids are below this.
    pub vocab_size: usize,
}

/// A model ready to run: configuration, weights and the frequencies of its rotary embedding. Shared by all hosts of
/// a process; the arithmetic is done by the [`Backend`] that each call is given.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    weights: Weights,
    fingerprint: Fingerprint,
    inverse_frequencies: Vec<f32>,
    rope_scaling: f32,
}

/// Activations of one run of tokens on its way through the layers. Reused from run to run, so that no layer
/// allocates once the longest run has been seen.
#[derive(Debug, Default)]
pub struct Pass {
    tokens: usize,
    angles: Option<RopeAngles>,
    hidden: Vec<f32>,
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    projected: Vec<f32>,
}

impl Pass {
    /// Tokens of this run.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rotated queries of the projected layer, `[tokens, heads, head_dim]`.
    pub fn query(&self) -> &[f32] {
        &self.query
    }

    /// Rotated keys of the projected layer, `[tokens, kv_heads, head_dim]`.
    pub fn key(&self) -> &[f32] {
        &self.key
    }

    /// Values of the projected layer, `[tokens, kv_heads, head_dim]`.
    pub fn value(&self) -> &[f32] {
        &self.value
    }
}

impl Decoder {
    /// A decoder of `config` over loaded weights.
    pub fn new(config: ModelConfig, loaded: Loaded) -> Self {
        let (inverse_frequencies, rope_scaling) = config.rope.inverse_frequencies(config.head_dim);
        Self {
            config,
            weights: loaded.weights,
            fingerprint: loaded.fingerprint,
            inverse_frequencies,
            rope_scaling,
        }
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A hash of weights and running format.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Bytes of the weights in their running format.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// The shape of this model's keys and values in `format`.
    pub fn kv_shape(&self, format: KvFormat) -> KvShape {
        KvShape {
            layers: self.config.layers,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            format,
        }
    }

    /// The shape of one layer's attention over `tokens` query tokens.
    pub fn partial_shape(&self, tokens: usize) -> PartialShape {
        PartialShape { tokens, heads: self.config.heads, head_dim: self.config.head_dim }
    }

    /// `data`, `[tokens, heads, head_dim]`, as queries at this model's scale.
    pub fn queries<'a>(&self, data: &'a [f32]) -> Queries<'a> {
        let (heads, head_dim) = (self.config.heads, self.config.head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        Queries { data, tokens: data.len() / (heads * head_dim), heads, head_dim, scale }
    }

    /// Checks that every id is in the vocabulary.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), UnknownToken> {
        let vocab_size = self.config.vocab_size;
        match ids.iter().position(|&id| id as usize >= vocab_size) {
            Some(at) => Err(UnknownToken { id: ids[at], at, vocab_size }),
            None => Ok(()),
        }
    }

    /// Starts a run: embeds `ids`, which stand at `position` and after. The ids must have passed
    /// [`check_ids`](Self::check_ids).
    pub fn start(&self, pass: &mut Pass, ids: &[u32], position: usize) {
        let width = self.config.hidden_size;
        pass.tokens = ids.len();
        pass.hidden.resize(ids.len() * width, 0.0);
        for (row, &id) in pass.hidden.chunks_exact_mut(width).zip(ids) {
            self.weights.embedding.row(id as usize, row);
        }
        let positions = position..position + ids.len();
        pass.angles = Some(RopeAngles::new(
            &self.inverse_frequencies,
            self.rope_scaling,
            positions.map(|position| position as u32),
        ));
    }

    /// First half of a layer: norm, projections, biases, QK-norm, RoPE. Leaves queries, keys and values in `pass`.
    pub fn project(&self, backend: &dyn Backend, layer: usize, pass: &mut Pass) {
        let (config, weights) = (&self.config, &self.weights.layers[layer]);
        self.norm(backend, &weights.attention_norm, &pass.hidden, &mut pass.normed);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        pass.query.resize(pass.tokens * q_width, 0.0);
        pass.key.resize(pass.tokens * kv_width, 0.0);
        pass.value.resize(pass.tokens * kv_width, 0.0);
        backend.matmul(&pass.normed, &weights.query, &mut pass.query);
        backend.matmul(&pass.normed, &weights.key, &mut pass.key);
        backend.matmul(&pass.normed, &weights.value, &mut pass.value);
        for (x, bias) in [
            (&mut pass.query, &weights.query_bias),
            (&mut pass.key, &weights.key_bias),
            (&mut pass.value, &weights.value_bias),
        ] {
            add_bias(backend, x, bias);
        }
        self.norm_heads(backend, weights, pass);
        let angles = pass.angles.as_ref().expect("a pass is started before it is projected");
        backend.rope(&mut pass.query, config.heads, angles);
        backend.rope(&mut pass.key, config.kv_heads, angles);
    }

    /// Second half of a layer: output projection, residual, norm, gated MLP, residual. `attended` is the merged
    /// attention of the pass's queries.
    pub fn finish(&self, backend: &dyn Backend, layer: usize, pass: &mut Pass, attended: &Partial) {
        let weights = &self.weights.layers[layer];
        pass.projected.resize(pass.hidden.len(), 0.0);
        backend.matmul(&attended.out, &weights.output, &mut pass.projected);
        add_bias(backend, &mut pass.projected, &weights.output_bias);
        backend.add(&mut pass.hidden, &pass.projected);

        self.norm(backend, &weights.mlp_norm, &pass.hidden, &mut pass.normed);
        let inner = pass.tokens * self.config.intermediate_size;
        pass.gate.resize(inner, 0.0);
        pass.up.resize(inner, 0.0);
        backend.matmul(&pass.normed, &weights.gate, &mut pass.gate);
        backend.matmul(&pass.normed, &weights.up, &mut pass.up);
        add_bias(backend, &mut pass.gate, &weights.gate_bias);
        add_bias(backend, &mut pass.up, &weights.up_bias);
        backend.swiglu(&mut pass.gate, &pass.up);
        backend.matmul(&pass.gate, &weights.down, &mut pass.projected);
        add_bias(backend, &mut pass.projected, &weights.down_bias);
        backend.add(&mut pass.hidden, &pass.projected);
    }

    /// Logits of the tokens in `rows` of a pass that went through every layer, `[rows, vocab_size]`.
    pub fn logits(&self, backend: &dyn Backend, pass: &mut Pass, rows: Range<usize>) -> Vec<f32> {
        let width = self.config.hidden_size;
        let mut logits = vec![0.0; rows.len() * self.config.vocab_size];
        let hidden = &pass.hidden[rows.start * width..rows.end * width];
        self.norm(backend, &self.weights.final_norm, hidden, &mut pass.normed);
        let output = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
        backend.matmul(&pass.normed, output, &mut logits);
        logits
    }

    fn norm(&self, backend: &dyn Backend, weight: &[f32], x: &[f32], out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        backend.rms_norm(x, weight, self.config.rms_norm_eps, out);
    }

    /// Qwen3's norm of every head of queries and keys, before RoPE.
    fn norm_heads(&self, backend: &dyn Backend, weights: &LayerWeights, pass: &mut Pass) {
        for (x, norm) in [(&mut pass.query, &weights.query_norm), (&mut pass.key, &weights.key_norm)] {
            if let Some(norm) = norm {
                self.norm(backend, norm, x, &mut pass.projected);
                std::mem::swap(x, &mut pass.projected);
            }
        }
    }
}

fn add_bias(backend: &dyn Backend, x: &mut [f32], bias: &Option<Vec<f32>>) {
    if let Some(bias) = bias {
        backend.add_bias(x, bias);
    }
}
