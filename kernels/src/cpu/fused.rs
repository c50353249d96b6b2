//! Operations that put several others into one pass over their data, or share one pass over their input: what they
//! compute is in the documentation of [`Backend`](crate::Backend), to the last bit. The parts are elsewhere.

use super::isa::Kernels;
use super::pack::PackTile;
use super::shared::SharedRows;
use super::{FLOPS_PER_VALUE, VALUES_PER_ITEM, add};
use crate::partial::merge_row;
use crate::pool::Pool;
use crate::{KEYS_PER_TILE, KvBlock, Matrix, Partial};

/// What looking up one value of an embedding is taken to cost when deciding whether threads are worth waking: packed rows
/// have each pair of their values on another cache line.
const FLOPS_PER_LOOKED_UP: usize = 32;

/// Tokens whose embeddings are looked up by one item.
const TOKENS_PER_ITEM: usize = 8;

/// Rows of a partial that one item merges, and what merging a row is taken to cost beside its values.
const MERGED_PER_ITEM: usize = 128;
const FLOPS_PER_MERGE: usize = 256;

/// Whether products with both weights take the inputs in one form, and have kernels of one kind.
pub(super) fn are_alike(a: &Matrix, b: &Matrix) -> bool {
    let quantised = |weight: &Matrix| weight.format().block_len() > 1;
    a.cols() == b.cols() && (a.format() == b.format() || quantised(a) && quantised(b))
}

/// See [`Backend::embed`](crate::Backend::embed).
pub(super) fn embed(pool: &Pool, table: &Matrix, ids: &[u32], out: &mut [f32]) {
    let cols = table.cols();
    if cols == 0 {
        return;
    }
    pool.run_rows(out, cols, TOKENS_PER_ITEM * cols, FLOPS_PER_LOOKED_UP, |at, out| {
        for (row, &id) in out.chunks_exact_mut(cols).zip(&ids[at / cols..]) {
            table.row(id as usize, row);
        }
    });
}

/// See [`Backend::add_rms_norm`](crate::Backend::add_rms_norm). All slices have one length, of whole rows.
pub(super) fn add_rms_norm(
    kernels: Kernels,
    pool: &Pool,
    x: &mut [f32],
    y: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let n = weight.len();
    let out = SharedRows::new(out);
    pool.run_rows(x, n, VALUES_PER_ITEM, 2 * FLOPS_PER_VALUE, |at, x| {
        // SAFETY: pieces of `x` are apart, and so are the same places of `out`, borrowed once each.
        let out = unsafe { out.row(at, x.len()) };
        let rows = x.chunks_exact_mut(n).zip(y[at..at + out.len()].chunks_exact(n));
        for ((x, y), out) in rows.zip(out.chunks_exact_mut(n)) {
            add(x, y);
            kernels.rms_norm(x, weight, eps, out);
        }
    });
}

/// See [`Partial::merge`].
pub(super) fn merge(pool: &Pool, partial: &mut Partial, other: &Partial) {
    assert_eq!(partial.shape(), other.shape(), "partials of different queries cannot be merged");
    let head_dim = partial.shape().head_dim;
    let out = SharedRows::new(&mut partial.out);
    let flops = FLOPS_PER_MERGE + FLOPS_PER_VALUE * head_dim;
    pool.run_rows(&mut partial.lse, 1, MERGED_PER_ITEM, flops, |at, lse| {
        for (row, lse) in (at..).zip(lse) {
            // SAFETY: pieces of the log-sum-exps are apart, and so are their rows, borrowed once each.
            let out = unsafe { out.row(row * head_dim, head_dim) };
            merge_row(out, lse, &other.out[row * head_dim..][..head_dim], other.lse[row]);
        }
    });
}

/// See [`Backend::write`](crate::Backend::write): items are tiles.
pub(super) fn write(
    kernels: Kernels,
    pool: &Pool,
    block: &mut KvBlock,
    layer: usize,
    at: usize,
    k: &[f32],
    v: &[f32],
) {
    let tokens = block.check_write(layer, at, k, v);
    if tokens == 0 {
        return;
    }
    let (shape, end) = (block.shape(), at + tokens);
    let (first, tiles) = (at / KEYS_PER_TILE, end.div_ceil(KEYS_PER_TILE) - at / KEYS_PER_TILE);
    // Tiles of a head, and the tiles of all heads, lie at equal distances.
    let start = block.tile_words(layer, 0, first * KEYS_PER_TILE);
    let per_head = block.tile_words(layer, shape.kv_heads - 1, first * KEYS_PER_TILE).start - start.start;
    let per_head = per_head.checked_div(shape.kv_heads - 1).unwrap_or(0);
    let words = SharedRows::new(block.words_mut());
    pool.run(shape.kv_heads * tiles, 2 * FLOPS_PER_VALUE * k.len(), |item| {
        let (kv_head, tile) = (item / tiles, item % tiles);
        let first_key = (first + tile) * KEYS_PER_TILE;
        let tokens = at.max(first_key)..end.min(first_key + KEYS_PER_TILE);
        let from = ((tokens.start - at) * shape.kv_heads + kv_head) * shape.head_dim;
        // SAFETY: items are distinct tiles, borrowed once each.
        let words = unsafe { words.row(start.start + kv_head * per_head + tile * start.len(), start.len()) };
        kernels.pack(PackTile {
            format: shape.format,
            head_dim: shape.head_dim,
            width: shape.stored_dim(),
            k: &k[from..],
            v: &v[from..],
            stride: shape.kv_heads * shape.head_dim,
            tokens: tokens.len(),
            lane: tokens.start - first_key,
            tile: bytemuck::cast_slice_mut(words),
        });
    });
}
