//! Attention: how queries and keys are cut into items, and one segment of keys for a few query rows.
//!
//! A row is one query token and head. The rows of all query heads that share a key/value head go together, so
//! that a tile of keys serves them all. Source: FlashAttention (arXiv 2205.14135) for the tiles, its decoding
//! variant for the segments.

use std::sync::Mutex;

use super::isa::Kernels;
use super::product::WIDEN_FROM_ROWS;
use super::shared::SharedRows;
use super::tile::{MICRO_ROWS, Multiply, Right};
use crate::kv::Tile;
use crate::partial::merge_row;
use crate::pool::Pool;
use crate::{KEYS_PER_SEGMENT, KEYS_PER_TILE, KvFormat, KvSpan, KvView, Partial, Queries};

/// Rows of one item: with 128 values per head they and their outputs take 96 KiB, beside which a tile of keys
/// and values stays in the second-level cache.
const ROWS_PER_ITEM: usize = 16 * MICRO_ROWS;

/// Segments in flight per thread when few rows meet many keys. Bounds the memory for their partials; long
/// enough that the pause between waves costs little.
const SEGMENTS_PER_THREAD: usize = 16;

/// Folds the attention of `q` over `spans` into `out`; the shapes were checked.
pub(super) fn attend(
    kernels: Kernels,
    pool: &Pool,
    q: &Queries<'_>,
    spans: &[KvSpan<'_>],
    out: &mut Partial,
) {
    let Some(kv_heads) = spans.first().map(|span| span.keys.kv_heads()) else { return };
    if q.tokens == 0 || q.heads == 0 {
        return;
    }
    let call = Call { kernels, q, spans, kv_heads, group: q.heads / kv_heads };
    let segments: usize = spans.iter().map(|span| segments_of(call.seen(span))).sum();
    let flops = 4 * q.data.len() * spans.iter().map(|span| call.seen(span)).sum::<usize>();
    if call.rows() <= ROWS_PER_ITEM && segments > 1 {
        call.by_segments(pool, flops, out);
    } else {
        call.by_rows(pool, flops, out);
    }
}

/// One call's arguments.
#[derive(Clone, Copy)]
struct Call<'a> {
    kernels: Kernels,
    q: &'a Queries<'a>,
    spans: &'a [KvSpan<'a>],
    kv_heads: usize,
    /// Query heads per key/value head.
    group: usize,
}

impl<'a> Call<'a> {
    /// Rows per key/value head.
    fn rows(&self) -> usize {
        self.q.tokens * self.group
    }

    /// Keys of `span` that the last token sees; no token sees more.
    fn seen(&self, span: &KvSpan<'_>) -> usize {
        span.visible.count(self.q.tokens - 1, span.keys.keys())
    }

    /// The index in `[tokens, heads]` of row `row` of key/value head `kv_head`.
    fn place(&self, kv_head: usize, row: usize) -> usize {
        row / self.group * self.q.heads + kv_head * self.group + row % self.group
    }

    /// Many rows: items are (row tile, key/value head), each over all keys.
    fn by_rows(&self, pool: &Pool, flops: usize, out: &mut Partial) {
        let head_dim = self.q.head_dim;
        let tiles = self.rows().div_ceil(ROWS_PER_ITEM);
        let (values, lse) = (SharedRows::new(&mut out.out), SharedRows::new(&mut out.lse));
        pool.run(tiles * self.kv_heads, flops, |item| {
            // The last rows see the most keys: they go first, so that no thread is left with a long item.
            let (tile, kv_head) = (tiles - 1 - item / self.kv_heads, item % self.kv_heads);
            let first = tile * ROWS_PER_ITEM;
            let mut rows = RowTile::gather(self, kv_head, first..(first + ROWS_PER_ITEM).min(self.rows()));
            for span in self.spans {
                rows.look_at(span);
                for segment in 0..segments_of(rows.seen()) {
                    rows.attend_segment(self.kernels, &span.keys, kv_head, segment);
                    for row in 0..rows.len() {
                        let place = self.place(kv_head, first + row);
                        // SAFETY: items are distinct pairs of key/value head and row tile, so their places
                        // are apart; both borrows end before the item's next ones.
                        let (values, lse) =
                            unsafe { (values.row(place * head_dim, head_dim), lse.row(place, 1)) };
                        merge_row(values, &mut lse[0], rows.out(row), rows.lse[row]);
                    }
                }
            }
        });
    }

    /// Few rows, many keys: items are (segment, key/value head), folded in order after every wave.
    fn by_segments(&self, pool: &Pool, flops: usize, out: &mut Partial) {
        let head_dim = self.q.head_dim;
        let slots = (SEGMENTS_PER_THREAD * pool.threads()).next_multiple_of(self.kv_heads);
        let slots: Vec<Mutex<RowTile>> = (0..slots)
            .map(|slot| Mutex::new(RowTile::gather(self, slot % self.kv_heads, 0..self.rows())))
            .collect();
        let open = |slot: usize| slots[slot].lock().expect("no holder panics");
        for span in self.spans {
            let items = segments_of(self.seen(span)) * self.kv_heads;
            let span_flops = flops / self.spans.len();
            for wave in (0..items).step_by(slots.len()) {
                let count = (items - wave).min(slots.len());
                pool.run(count, span_flops, |slot| {
                    let (segment, kv_head) = ((wave + slot) / self.kv_heads, (wave + slot) % self.kv_heads);
                    let mut rows = open(slot);
                    rows.look_at(span);
                    rows.attend_segment(self.kernels, &span.keys, kv_head, segment);
                });
                for slot in 0..count {
                    let rows = open(slot);
                    for row in 0..rows.len() {
                        let place = self.place((wave + slot) % self.kv_heads, row);
                        let values = &mut out.out[place * head_dim..(place + 1) * head_dim];
                        merge_row(values, &mut out.lse[place], rows.out(row), rows.lse[row]);
                    }
                }
            }
        }
    }
}

fn segments_of(keys: usize) -> usize {
    keys.div_ceil(KEYS_PER_SEGMENT)
}

/// Query rows of one key/value head, and their attention over one segment.
struct RowTile {
    head_dim: usize,
    /// `head_dim` as keys and values are stored: with zeros at the end, where it is no multiple of 8.
    width: usize,
    /// `[rows, width]`, scaled.
    queries: Vec<f32>,
    /// Query token of each row.
    tokens: Vec<usize>,
    /// Keys of the current span that each row sees.
    visible: Vec<usize>,
    /// Outputs of the last segment, `[rows, width]`.
    out: Vec<f32>,
    /// Log-sum-exp of the last segment.
    lse: Vec<f32>,
    /// The greatest score so far.
    peak: Vec<f32>,
    /// The sum of weights so far, relative to the peak.
    total: Vec<f32>,
    /// A tile of keys and one of values in f32, when bf16 is widened for many rows.
    widened: Vec<f32>,
}

impl RowTile {
    fn gather(call: &Call<'_>, kv_head: usize, range: std::ops::Range<usize>) -> Self {
        let (head_dim, width) = (call.q.head_dim, call.spans[0].keys.stored_dim());
        let mut queries = vec![0.0; range.len() * width];
        for (row, query) in range.clone().zip(queries.chunks_exact_mut(width)) {
            let data = &call.q.data[call.place(kv_head, row) * head_dim..][..head_dim];
            for (value, data) in query.iter_mut().zip(data) {
                *value = data * call.q.scale;
            }
        }
        let rows = range.len();
        Self {
            head_dim,
            width,
            queries,
            tokens: range.map(|row| row / call.group).collect(),
            visible: vec![0; rows],
            out: vec![0.0; rows * width],
            lse: vec![0.0; rows],
            peak: vec![0.0; rows],
            total: vec![0.0; rows],
            widened: Vec::new(),
        }
    }

    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn out(&self, row: usize) -> &[f32] {
        &self.out[row * self.width..][..self.head_dim]
    }

    /// Notes what each row sees of `span`.
    fn look_at(&mut self, span: &KvSpan<'_>) {
        for (visible, token) in self.visible.iter_mut().zip(&self.tokens) {
            *visible = span.visible.count(*token, span.keys.keys());
        }
    }

    /// Keys that the last row sees; no row sees more.
    fn seen(&self) -> usize {
        self.visible.last().copied().unwrap_or(0)
    }

    /// Leaves in `out` and `lse` the attention over one segment of the current span.
    fn attend_segment(&mut self, kernels: Kernels, keys: &KvView<'_>, kv_head: usize, segment: usize) {
        self.out.fill(0.0);
        self.peak.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
        let end = self.seen().min((segment + 1) * KEYS_PER_SEGMENT);
        for first_key in (segment * KEYS_PER_SEGMENT..end).step_by(KEYS_PER_TILE) {
            self.attend_tile(kernels, keys, kv_head, first_key);
        }
        for row in 0..self.len() {
            let out = &mut self.out[row * self.width..(row + 1) * self.width];
            self.lse[row] = if self.total[row] > 0.0 {
                kernels.scale(out, 1.0 / self.total[row]);
                self.peak[row] + self.total[row].ln()
            } else {
                f32::NEG_INFINITY
            };
        }
    }

    /// Adds one tile of keys to every row that sees some of them.
    fn attend_tile(&mut self, kernels: Kernels, keys: &KvView<'_>, kv_head: usize, first_key: usize) {
        let width = self.width;
        let rows = self.len();
        let tile = keys.tile(kv_head, first_key / KEYS_PER_TILE);
        let widens = keys.format() == KvFormat::Bf16 && rows >= WIDEN_FROM_ROWS;
        self.widened.resize(if widens { 2 * KEYS_PER_TILE * width } else { 0 }, 0.0);
        let (k, v) = operands(kernels, tile, width, &mut self.widened);
        let mut scores = [[0.0; KEYS_PER_TILE]; MICRO_ROWS];
        for first in (0..rows).step_by(MICRO_ROWS) {
            let count = (rows - first).min(MICRO_ROWS);
            let counts = |row: usize| self.visible[first + row].saturating_sub(first_key).min(KEYS_PER_TILE);
            // Rows are in the order of their tokens, so the last one sees the most.
            let depth = counts(count - 1);
            if depth == 0 {
                continue;
            }
            kernels.multiply(Multiply {
                rows: count,
                columns: KEYS_PER_TILE,
                depth: width,
                a: &self.queries[first * width..],
                a_stride: width,
                b: k,
                c: scores.as_flattened_mut(),
                c_stride: KEYS_PER_TILE,
                accumulate: false,
            });
            let out = &mut self.out[first * width..(first + count) * width];
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                scores[row][counts(row)..].fill(f32::NEG_INFINITY);
                let (peak, total) = (&mut self.peak[first + row], &mut self.total[first + row]);
                let factor = kernels.soften(&mut scores[row], peak, total);
                if factor != 1.0 {
                    kernels.scale(out, factor);
                }
            }
            // Keys past `depth` weigh nothing and may hold anything: they are left out.
            kernels.multiply(Multiply {
                rows: count,
                columns: width,
                depth,
                a: scores.as_flattened(),
                a_stride: KEYS_PER_TILE,
                b: v,
                c: out,
                c_stride: width,
                accumulate: true,
            });
        }
    }
}

/// The tile as right factors of the two products; bf16 is widened into `widened` unless that is empty.
fn operands<'a>(
    kernels: Kernels,
    tile: Tile<'a>,
    width: usize,
    widened: &'a mut [f32],
) -> (Right<'a>, Right<'a>) {
    match tile {
        Tile::F32 { k, v } => {
            (Right::F32 { data: k, stride: KEYS_PER_TILE }, Right::F32 { data: v, stride: width })
        }
        Tile::Bf16 { k, v } if widened.is_empty() => {
            (Right::Pairs { data: k, stride: KEYS_PER_TILE }, Right::Pairs { data: v, stride: width })
        }
        Tile::Bf16 { k, v } => {
            let (wide_k, wide_v) = widened.split_at_mut(KEYS_PER_TILE * width);
            kernels.widen(k, KEYS_PER_TILE, wide_k);
            kernels.widen(v, width, wide_v);
            (Right::F32 { data: wide_k, stride: KEYS_PER_TILE }, Right::F32 { data: wide_v, stride: width })
        }
    }
}
