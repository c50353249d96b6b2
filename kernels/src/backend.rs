//! The seam between a decoder and the hardware: the operations, and the values that describe one call.
//! Implementations live in `reference` and `cpu`; nothing here computes but the rotary angles.

use std::fmt::Debug;
use std::ops::Range;

use crate::{KvBlock, KvView, Matrix, Partial};

/// Keys of one attention segment: the unit that is evaluated alone and folded in order, by every thread
/// count alike. Long enough that folding costs nothing, short enough that one long context feeds many threads.
pub const KEYS_PER_SEGMENT: usize = 1024;

/// The queries of one attention call.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// `[tokens, heads, head_dim]`, not yet scaled.
    pub data: &'a [f32],
    /// Query tokens.
    pub tokens: usize,
    /// Query heads, a multiple of the number of key/value heads.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// What the scores are multiplied by, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

/// Which keys of a span a query token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// Every key.
    All,
    /// Query token `i` sees key `j` iff `j <= offset + i`. The offset may be negative or lie beyond the keys.
    Causal {
        /// The last key that query token 0 sees.
        offset: i64,
    },
}

impl Visible {
    /// How many of the first `keys` keys query token `token` sees.
    #[inline]
    pub fn count(self, token: usize, keys: usize) -> usize {
        match self {
            Visible::All => keys,
            Visible::Causal { offset } => {
                let past_last = offset.saturating_add(token as i64).saturating_add(1);
                past_last.clamp(0, keys as i64) as usize
            }
        }
    }
}

/// A run of keys and values, and which of them the queries see.
#[derive(Debug, Clone, Copy)]
pub struct KvSpan<'a> {
    /// The keys and values.
    pub keys: KvView<'a>,
    /// Which of them are seen.
    pub visible: Visible,
}

/// Cosine and sine of explicit positions, computed once per chunk and shared by all layers.
///
/// Angles are computed in f32 as transformers does. Both tables are multiplied by the attention scaling of
/// YaRN (arXiv 2309.00071).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RopeAngles {
    /// `[tokens, half]`
    pub cos: Vec<f32>,
    /// `[tokens, half]`
    pub sin: Vec<f32>,
    /// Half of the head dimension: the number of rotated pairs.
    pub half: usize,
}

impl RopeAngles {
    /// The angles of `positions` for the pairs' inverse frequencies `inv_freq` `[head_dim / 2]`.
    pub fn new(inv_freq: &[f32], attention_scaling: f32, positions: impl Iterator<Item = u32>) -> Self {
        let mut angles = Self::default();
        angles.set(inv_freq, attention_scaling, positions);
        angles
    }

    /// Becomes [`RopeAngles::new`] of the same, and keeps the allocations.
    pub fn set(&mut self, inv_freq: &[f32], attention_scaling: f32, positions: impl Iterator<Item = u32>) {
        self.half = inv_freq.len();
        self.cos.clear();
        self.sin.clear();
        for position in positions {
            for freq in inv_freq {
                let (s, c) = (position as f32 * freq).sin_cos();
                self.cos.push(c * attention_scaling);
                self.sin.push(s * attention_scaling);
            }
        }
    }

    /// The number of positions.
    pub fn tokens(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }

    /// Keeps only the positions `tokens`, by their index.
    pub fn keep(&mut self, tokens: Range<usize>) {
        let values = tokens.start * self.half..tokens.end * self.half;
        for table in [&mut self.cos, &mut self.sin] {
            table.truncate(values.end);
            table.drain(..values.start);
        }
    }
}

/// One of several products with the same input.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[rows, cols]`
    pub weight: &'a Matrix,
    /// `[m, rows]`
    pub out: &'a mut [f32],
}

/// The operations a decoder needs. Those that put several others into one pass over their data say which: their meaning
/// is what they do unless an implementation knows better, and the bits are the same.
///
/// Slices are row-major. Wrong shapes are a programmer's error and panic. See the crate's documentation for
/// what is promised about determinism.
pub trait Backend: Send + Sync + Debug {
    /// What runs, for logs: `cpu avx512, 2 threads`.
    fn name(&self) -> &str;

    /// Makes the calling thread this backend's own: called once, by the thread that will make all other calls.
    fn attach(&self) {}

    /// The same device and threads for work whose inputs come out the same, bit for bit, wherever blocks lie: the encoding of
    /// a context. There activations may be rounded to the number format of the weights, keys and values that they meet,
    /// where that is faster; the operations of `self` never round them unless the user names instructions that do.
    fn encoding(&self) -> &dyn Backend;

    /// Folds into `out` the attention of `q` over each span in order. `out` has the shape of `q`; where it is
    /// empty, blank ([`Partial::reset`]) or not, it becomes the attention over all spans. Query head `h` reads key/value head
    /// `h / (heads / kv_heads)` (grouped-query attention, arXiv 2305.13245).
    fn attend(&self, q: Queries<'_>, spans: &[KvSpan<'_>], out: &mut Partial);

    /// `out = x · weightᵀ` for `x` `[m, cols]` and `out` `[m, rows]`.
    fn matmul(&self, x: &[f32], weight: &Matrix, out: &mut [f32]);

    /// [`matmul`](Self::matmul) of the same `x` with each weight: what has to be done to `x` is done once.
    fn matmuls(&self, x: &[f32], products: &mut [Product<'_>]) {
        for Product { weight, out } in products {
            self.matmul(x, weight, out);
        }
    }

    /// `out = silu(x · gateᵀ) * (x · upᵀ)` for weights of one shape (arXiv 2002.05202): two products and
    /// [`swiglu`](Self::swiglu), with the second product in `scratch`, which grows as needed and holds anything after.
    fn gated(&self, x: &[f32], gate: &Matrix, up: &Matrix, out: &mut [f32], scratch: &mut Vec<f32>) {
        gated_apart(self, x, gate, up, out, scratch);
    }

    /// Rows `ids` of `table` `[vocabulary, cols]` in f32, one after another: `out` `[ids, cols]`.
    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut [f32]) {
        check_embed(table, ids, out);
        for (row, &id) in out.chunks_exact_mut(table.cols().max(1)).zip(ids) {
            table.row(id as usize, row);
        }
    }

    /// `x += y`, then `out` is the [`rms_norm`](Self::rms_norm) of `x`: the same bits as one after the other.
    fn add_rms_norm(&self, x: &mut [f32], y: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.add(x, y);
        self.rms_norm(x, weight, eps, out);
    }

    /// [`Partial::merge`] of `other` into `partial`: the same bits.
    fn merge(&self, partial: &mut Partial, other: &Partial) {
        partial.merge(other);
    }

    /// [`KvBlock::write`] of keys and values `[tokens, kv_heads, head_dim]`: the same bits.
    fn write(&self, block: &mut KvBlock, layer: usize, at: usize, k: &[f32], v: &[f32]) {
        block.write(layer, at, k, v);
    }

    /// Adds `bias` `[n]` to every row of `x` `[m, n]`.
    fn add_bias(&self, x: &mut [f32], bias: &[f32]);

    /// `x += y`.
    fn add(&self, x: &mut [f32], y: &[f32]);

    /// `out = weight * x / sqrt(mean(x²) + eps)` for every row of `x` `[m, n]` (arXiv 1910.07467).
    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]);

    /// `gate = silu(gate) * up` (arXiv 2002.05202).
    fn swiglu(&self, gate: &mut [f32], up: &[f32]);

    /// Rotates every head of `x` `[tokens, heads, head_dim]` in the rotate-half convention: value `i` is paired
    /// with value `i + half` (arXiv 2104.09864).
    fn rope(&self, x: &mut [f32], heads: usize, angles: &RopeAngles);
}

/// [`Backend::gated`] as its two parts.
pub(crate) fn gated_apart<B: Backend + ?Sized>(
    backend: &B,
    x: &[f32],
    gate: &Matrix,
    up: &Matrix,
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    scratch.resize(out.len(), 0.0);
    backend.matmuls(x, &mut [Product { weight: gate, out }, Product { weight: up, out: scratch }]);
    backend.swiglu(out, scratch);
}

/// Panics unless `q`, `spans` and `out` fit together; returns nothing, for both implementations to share.
pub(crate) fn check_attend(q: &Queries<'_>, spans: &[KvSpan<'_>], out: &Partial) {
    let shape = out.shape();
    let wanted = crate::PartialShape { tokens: q.tokens, heads: q.heads, head_dim: q.head_dim };
    assert_eq!(shape, wanted, "the partial must have the shape of the queries");
    assert_eq!(q.data.len(), shape.rows() * q.head_dim, "queries are [tokens, heads, head_dim]");
    assert_eq!(out.out.len(), q.data.len(), "the partial's vectors must keep the length of its shape");
    assert_eq!(out.lse.len(), shape.rows(), "the partial's vectors must keep the length of its shape");
    for span in spans {
        assert_eq!(span.keys.head_dim(), q.head_dim, "queries and keys have one head dimension");
        assert_eq!(q.heads % span.keys.kv_heads(), 0, "query heads are a multiple of key/value heads");
        assert_eq!(span.keys.kv_heads(), spans[0].keys.kv_heads(), "spans are of one model");
    }
}

/// The number of rows `m` of a product; panics unless the lengths fit.
pub(crate) fn check_matmul(x: &[f32], weight: &Matrix, out: &[f32]) -> usize {
    let m = x.len().checked_div(weight.cols()).unwrap_or(0);
    assert_eq!(x.len(), m * weight.cols(), "the input is [m, cols]");
    assert_eq!(out.len(), m * weight.rows(), "the output is [m, rows]");
    m
}

/// Panics unless `out` holds a row of `table` for every id.
pub(crate) fn check_embed(table: &Matrix, ids: &[u32], out: &[f32]) {
    assert_eq!(out.len(), ids.len() * table.cols(), "the output is [ids, cols]");
}

/// Panics unless `x` is whole rows of `n`.
pub(crate) fn check_rows(x: &[f32], n: usize) {
    assert!(n > 0 && x.len().is_multiple_of(n), "{} values are not whole rows of {n}", x.len());
}

/// Panics unless `x` is `[tokens, heads, 2 * half]` for the tokens of `angles`.
pub(crate) fn check_rope(x: &[f32], heads: usize, angles: &RopeAngles) {
    assert_eq!(angles.cos.len(), angles.sin.len(), "as many cosines as sines");
    assert_eq!(x.len(), angles.tokens() * heads * 2 * angles.half, "x is [tokens, heads, 2 * half]");
}
