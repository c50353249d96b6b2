//! The decoder of all families, layer by layer: what the paths of a context token and of a query token call between
//! their exchanges of attention. Attention itself is left to the caller, who knows where keys and values lie.

use std::ops::Range;

use stellate_kernels::{
    Backend, KvFormat, KvShape, KvSpan, Matrix, Partial, PartialShape, Product, Queries, RopeAngles,
};

use crate::checkpoint::Loaded;
use crate::config::ModelConfig;
use crate::fingerprint::Fingerprint;
use crate::observe::{Observer, Operation, Phase, Work};
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
    angles: RopeAngles,
    hidden: Vec<f32>,
    /// The norm of `hidden` that the next product takes.
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    projected: Vec<f32>,
    layer: Option<usize>,
    observer: Option<Box<dyn Observer>>,
}

impl Pass {
    /// Tokens of this run.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tells `observer` of all runs to come.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observer = Some(observer);
    }

    /// Says that a run begins, and at which layer.
    pub fn begin(&mut self, phase: Phase, layer: Option<usize>) {
        self.layer = layer;
        if let Some(observer) = &mut self.observer {
            observer.begin(phase);
        }
    }

    /// Says that an operation of the layer under way is done. The work is counted only if someone listens.
    pub fn done(&mut self, operation: Operation, work: impl FnOnce() -> Work) {
        if let Some(observer) = &mut self.observer {
            observer.done(self.layer, operation, work());
        }
    }

    /// Rotated queries of the projected layer, `[tokens, heads, head_dim]`.
    pub fn query(&self) -> &[f32] {
        &self.query
    }

    /// The same, to be taken away for other memory in their place: the layer does not need them again.
    pub fn query_mut(&mut self) -> &mut Vec<f32> {
        &mut self.query
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

    /// The work of one layer's attention of `tokens` query tokens over `spans`.
    pub fn attention_work(&self, tokens: usize, spans: &[KvSpan<'_>]) -> Work {
        let values = 4 * self.config.heads * self.config.head_dim;
        spans.iter().fold(Work::default(), |sum, span| {
            let keys = span.keys.keys();
            let pairs: usize = (0..tokens).map(|token| span.visible.count(token, keys)).sum();
            let bytes = keys * self.kv_shape(span.keys.format()).bytes_per_token() / self.config.layers;
            Work { flops: sum.flops + (values * pairs) as u64, bytes: sum.bytes + bytes as u64 }
        })
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
    pub fn start(&self, backend: &dyn Backend, pass: &mut Pass, ids: &[u32], position: usize) {
        let width = self.config.hidden_size;
        pass.tokens = ids.len();
        pass.layer = None;
        pass.hidden.resize(ids.len() * width, 0.0);
        backend.embed(&self.weights.embedding, ids, &mut pass.hidden);
        let positions = (position..position + ids.len()).map(|position| position as u32);
        pass.angles.set(&self.inverse_frequencies, self.rope_scaling, positions);
        pass.done(Operation::Embed, Work::default);
        self.norm(backend, &self.weights.layers[0].attention_norm, &pass.hidden, &mut pass.normed);
        pass.done(Operation::Norm, Work::default);
    }

    /// First half of a layer: projections of the normed activations, biases, QK-norm, RoPE. Leaves queries, keys and
    /// values in `pass`.
    pub fn project(&self, backend: &dyn Backend, layer: usize, pass: &mut Pass) {
        self.project_parts(backend, layer, pass, true, true);
    }

    /// As [`project`](Self::project), of keys and values alone: all that is needed of tokens whose output nobody reads.
    pub fn project_keys(&self, backend: &dyn Backend, layer: usize, pass: &mut Pass) {
        self.project_parts(backend, layer, pass, false, true);
    }

    /// After [`project_keys`](Self::project_keys): goes on with the tokens `rows` of the pass alone, and projects their
    /// queries.
    pub fn project_queries_of(
        &self,
        backend: &dyn Backend,
        layer: usize,
        pass: &mut Pass,
        rows: Range<usize>,
    ) {
        let width = self.config.hidden_size;
        for values in [&mut pass.hidden, &mut pass.normed] {
            values.truncate(rows.end * width);
            values.drain(..rows.start * width);
        }
        pass.tokens = rows.len();
        pass.angles.keep(rows);
        self.project_parts(backend, layer, pass, true, false);
    }

    fn project_parts(&self, backend: &dyn Backend, layer: usize, pass: &mut Pass, queries: bool, keys: bool) {
        let (config, weights) = (&self.config, &self.weights.layers[layer]);
        let tokens = pass.tokens;
        pass.layer = Some(layer);
        let Pass { normed, query, key, value, .. } = pass;
        let query = (query, &weights.query, &weights.query_bias, queries);
        let key = (key, &weights.key, &weights.key_bias, keys);
        let value = (value, &weights.value, &weights.value_bias, keys);
        let mut parts = [query, key, value];
        for (out, weight, _, wanted) in &mut parts {
            out.resize(if *wanted { tokens * weight.rows() } else { 0 }, 0.0);
        }
        let [query, key, value] =
            parts.each_mut().map(|(out, weight, ..)| Product { weight, out: out.as_mut_slice() });
        match (queries, keys) {
            (true, true) => backend.matmuls(normed, &mut [query, key, value]),
            (false, _) => backend.matmuls(normed, &mut [key, value]),
            (true, false) => backend.matmuls(normed, &mut [query]),
        }
        for (out, _, bias, wanted) in parts {
            if wanted {
                add_bias(backend, out, bias);
            }
        }
        let used = [&weights.query, &weights.key, &weights.value].into_iter().zip([queries, keys, keys]);
        pass.done(Operation::Qkv, || {
            work(tokens, used.filter(|(_, wanted)| *wanted).map(|(weight, _)| weight))
        });

        for (x, norm, heads, wanted) in [
            (&mut pass.query, &weights.query_norm, config.heads, queries),
            (&mut pass.key, &weights.key_norm, config.kv_heads, keys),
        ] {
            if !wanted {
                continue;
            }
            // Qwen3's norm of every head.
            if let Some(norm) = norm {
                self.norm(backend, norm, x, &mut pass.projected);
                std::mem::swap(x, &mut pass.projected);
            }
            backend.rope(x, heads, &pass.angles);
        }
        pass.done(Operation::Rope, Work::default);
    }

    /// Second half of a layer: output projection, residual, norm, gated MLP, residual, and the norm before the next layer.
    /// `attended` is the merged attention of the pass's queries.
    pub fn finish(&self, backend: &dyn Backend, layer: usize, pass: &mut Pass, attended: &Partial) {
        let (weights, tokens, eps) = (&self.weights.layers[layer], pass.tokens, self.config.rms_norm_eps);
        pass.projected.resize(pass.hidden.len(), 0.0);
        pass.normed.resize(pass.hidden.len(), 0.0);
        backend.matmul(&attended.out, &weights.output, &mut pass.projected);
        add_bias(backend, &mut pass.projected, &weights.output_bias);
        pass.done(Operation::Output, || work(tokens, [&weights.output]));
        backend.add_rms_norm(&mut pass.hidden, &pass.projected, &weights.mlp_norm, eps, &mut pass.normed);
        pass.done(Operation::Norm, Work::default);

        self.gate(backend, weights, pass);
        pass.done(Operation::GateUp, || work(tokens, [&weights.gate, &weights.up]));
        backend.matmul(&pass.gate, &weights.down, &mut pass.projected);
        add_bias(backend, &mut pass.projected, &weights.down_bias);
        pass.done(Operation::Down, || work(tokens, [&weights.down]));
        match self.weights.layers.get(layer + 1) {
            Some(next) => {
                let (hidden, norm) = (&mut pass.hidden, &next.attention_norm);
                backend.add_rms_norm(hidden, &pass.projected, norm, eps, &mut pass.normed);
                pass.done(Operation::Norm, Work::default);
            }
            None => {
                backend.add(&mut pass.hidden, &pass.projected);
                pass.done(Operation::Residual, Work::default);
            }
        }
    }

    /// Leaves `silu(gate) * up` in `pass.gate`.
    fn gate(&self, backend: &dyn Backend, weights: &LayerWeights, pass: &mut Pass) {
        let inner = pass.tokens * self.config.intermediate_size;
        pass.gate.resize(inner, 0.0);
        if weights.gate_bias.is_none() && weights.up_bias.is_none() {
            backend.gated(&pass.normed, &weights.gate, &weights.up, &mut pass.gate, &mut pass.up);
            return;
        }
        pass.up.resize(inner, 0.0);
        let gate = Product { weight: &weights.gate, out: &mut pass.gate };
        let up = Product { weight: &weights.up, out: &mut pass.up };
        backend.matmuls(&pass.normed, &mut [gate, up]);
        add_bias(backend, &mut pass.gate, &weights.gate_bias);
        add_bias(backend, &mut pass.up, &weights.up_bias);
        backend.swiglu(&mut pass.gate, &pass.up);
    }

    /// Logits of the tokens of a pass that went through every layer, `[tokens, vocab_size]`.
    pub fn logits(&self, backend: &dyn Backend, pass: &mut Pass) -> Vec<f32> {
        let tokens = pass.tokens;
        let mut logits = vec![0.0; tokens * self.config.vocab_size];
        pass.layer = None;
        self.norm(backend, &self.weights.final_norm, &pass.hidden, &mut pass.normed);
        pass.done(Operation::Norm, Work::default);
        let output = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
        backend.matmul(&pass.normed, output, &mut logits);
        pass.done(Operation::Logits, || work(tokens, [output]));
        logits
    }

    fn norm(&self, backend: &dyn Backend, weight: &[f32], x: &[f32], out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        backend.rms_norm(x, weight, self.config.rms_norm_eps, out);
    }
}

/// The work of products of `tokens` rows with `weights`.
fn work<'a>(tokens: usize, weights: impl IntoIterator<Item = &'a Matrix>) -> Work {
    weights.into_iter().fold(Work::default(), |sum, weight| Work {
        flops: sum.flops + 2 * (tokens * weight.rows() * weight.cols()) as u64,
        bytes: sum.bytes + weight.bytes() as u64,
    })
}

fn add_bias(backend: &dyn Backend, x: &mut [f32], bias: &Option<Vec<f32>>) {
    if let Some(bias) = bias {
        backend.add_bias(x, bias);
    }
}
