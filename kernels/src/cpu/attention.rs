//! Attention: how queries and keys are cut into items where rows are many, and one segment of keys for a few query rows. How
//! the segments of many keys are shared out where rows are few is in `segments`.
//!
//! A row is one query token and head. The rows of all query heads that share a key/value head go together, so
//! that a tile of keys serves them all. Source: FlashAttention (arXiv 2205.14135) for the tiles, its decoding
//! variant for the segments.

mod segments;

use std::cell::RefCell;

use super::isa::Kernels;
use super::shared::SharedRows;
use super::softmax::{AttendTile, MAX_WIDTH, Operands, Scales};
use super::strip::STRIP_ROWS;
use crate::kv::Tile;
use crate::partial::merge_row;
use crate::pool::Pool;
use crate::{KEYS_PER_SEGMENT, KEYS_PER_TILE, KvFormat, KvSpan, KvView, Partial, Queries};

/// Rows of one item: with 128 values per head they and their outputs take 96 KiB, beside which a tile of keys
/// and values stays in the second-level cache.
const ROWS_PER_ITEM: usize = 16 * STRIP_ROWS;

/// What buffers of rows are a multiple of: the rows of an AMX tile.
const PADDED_ROWS: usize = 16;

/// From this many rows on, a tile of bf16 or of bytes is widened once for all rows rather than once per strip. Both ways
/// compute the same bits.
const WIDEN_FROM_ROWS: usize = 2 * STRIP_ROWS + 1;

/// How far ahead of the keys at hand memory is asked for. A core reads some 4 KiB in the latency of main memory;
/// further ahead, the requests outlast the softmax between two tiles.
const AHEAD_BYTES: usize = 16 << 10;

thread_local! {
    /// Rows of the item at hand: kept, so that no item allocates.
    static ROWS: RefCell<RowTile> = RefCell::default();
}

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
        segments::attend(&call, pool, flops, out);
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
            ROWS.with_borrow_mut(|rows| {
                rows.gather(self, kv_head, first..(first + ROWS_PER_ITEM).min(self.rows()));
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
        });
    }
}

fn segments_of(keys: usize) -> usize {
    keys.div_ceil(KEYS_PER_SEGMENT)
}

/// Query rows of one key/value head, and their attention over one segment.
#[derive(Default)]
struct RowTile {
    head_dim: usize,
    /// `head_dim` as keys and values are stored: with zeros at the end, where it is no multiple of 8.
    width: usize,
    /// `[rows, width]`, scaled.
    queries: Vec<f32>,
    /// The same in bf16 pairs, where those are multiplied in bf16.
    pairs: Vec<u32>,
    /// Query token of each row.
    tokens: Vec<usize>,
    /// Keys of the current span that each row sees.
    visible: Vec<usize>,
    /// Keys of the current tile that each row sees.
    seen: Vec<usize>,
    /// Outputs of the last segment, `[rows, width]`.
    out: Vec<f32>,
    /// Log-sum-exp of the last segment.
    lse: Vec<f32>,
    /// About the greatest score so far.
    peak: Vec<f32>,
    /// The sum of weights so far, relative to the peak.
    total: Vec<[f32; MAX_WIDTH]>,
    /// Scores of a tile, `[rows, 64]`.
    scores: Vec<f32>,
    /// What a tile makes of earlier sums, `[rows]`.
    factors: Vec<f32>,
    /// A tile of keys and one of values in f32, when they are widened for many rows.
    widened: Vec<f32>,
    /// The same in bf16 pairs, where bytes are met in them, and where hidden values are.
    paired: Vec<u32>,
}

impl RowTile {
    /// Takes the rows of `range`, in place of those before.
    fn gather(&mut self, call: &Call<'_>, kv_head: usize, range: std::ops::Range<usize>) {
        let (rows, head_dim, width) = (range.len(), call.q.head_dim, call.spans[0].keys.stored_dim());
        let padded = rows.next_multiple_of(PADDED_ROWS);
        (self.head_dim, self.width) = (head_dim, width);
        self.queries.resize(padded * width, 0.0);
        for (row, query) in range.clone().zip(self.queries.chunks_exact_mut(width)) {
            let data = &call.q.data[call.place(kv_head, row) * head_dim..][..head_dim];
            for (value, data) in query.iter_mut().zip(data) {
                *value = data * call.q.scale;
            }
            query[head_dim..].fill(0.0);
        }
        self.queries[rows * width..].fill(0.0);
        let pairs = call.kernels.dots() && call.spans.iter().any(|span| span.keys.format() != KvFormat::F32);
        self.pairs.resize(if pairs { padded * width / 2 } else { 0 }, 0);
        if pairs {
            call.kernels.round(&self.queries, &mut self.pairs);
        }
        self.tokens.clear();
        self.tokens.extend(range.map(|row| row / call.group));
        self.visible.resize(rows, 0);
        self.seen.resize(rows, 0);
        self.out.resize(padded * width, 0.0);
        self.scores.resize(padded * KEYS_PER_TILE, 0.0);
        self.total.resize(padded, [0.0; MAX_WIDTH]);
        for values in [&mut self.lse, &mut self.peak, &mut self.factors] {
            values.resize(padded, 0.0);
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
        self.total.fill([0.0; MAX_WIDTH]);
        let end = self.seen().min((segment + 1) * KEYS_PER_SEGMENT);
        for first_key in (segment * KEYS_PER_SEGMENT..end).step_by(KEYS_PER_TILE) {
            self.attend_tile(kernels, keys, kv_head, first_key);
        }
        for row in 0..self.len() {
            let out = &mut self.out[row * self.width..(row + 1) * self.width];
            let total = sum(&self.total[row]);
            self.lse[row] = if total > 0.0 {
                kernels.scale(out, 1.0 / total);
                self.peak[row] + total.ln()
            } else {
                f32::NEG_INFINITY
            };
        }
    }

    /// Adds one tile of keys to every row that sees some of them.
    fn attend_tile(&mut self, kernels: Kernels, keys: &KvView<'_>, kv_head: usize, first_key: usize) {
        for (seen, visible) in self.seen.iter_mut().zip(&self.visible) {
            *seen = visible.saturating_sub(first_key).min(KEYS_PER_TILE);
        }
        let Self { width, tokens, queries, pairs, seen, widened, paired, .. } = self;
        let (width, rows, q) = (*width, tokens.len(), &queries[..]);
        let last_seen = seen.last().copied().unwrap_or(0);
        let (many, dots, tile_len) = (rows >= WIDEN_FROM_ROWS, kernels.dots(), KEYS_PER_TILE * width);
        let tile = keys.tile(kv_head, first_key / KEYS_PER_TILE);
        let operands = match tile {
            Tile::F32 { k, v } => Operands::F32 { q, k, v },
            Tile::Bf16 { k, v } if dots && last_seen == KEYS_PER_TILE => Operands::Pairs { q: pairs, k, v },
            Tile::Bf16 { k, v } if dots => {
                paired.resize(tile_len, 0);
                let paired_v = &mut paired[..tile_len / 2];
                paired_v.copy_from_slice(v);
                forget_pairs(paired_v, width, last_seen);
                Operands::Pairs { q: pairs, k, v: paired_v }
            }
            Tile::Bf16 { k, v } if many => {
                let [wide_k, wide_v] = halves(widened, tile_len);
                kernels.widen(k, KEYS_PER_TILE, wide_k);
                kernels.widen(v, width, wide_v);
                Operands::F32 { q, k: wide_k, v: wide_v }
            }
            Tile::Bf16 { k, v } => Operands::Widened { q, k, v },
            Tile::Q8 { k, v, .. } if dots => {
                let [paired_k, paired_v] = halves(paired, tile_len / 2);
                kernels.pair_bytes(k, KEYS_PER_TILE, paired_k);
                kernels.pair_bytes(v, width, paired_v);
                forget_pairs(paired_v, width, last_seen);
                Operands::Pairs { q: pairs, k: paired_k, v: paired_v }
            }
            Tile::Q8 { k, v, .. } if many => {
                let [wide_k, wide_v] = halves(widened, tile_len);
                kernels.widen_bytes(k, wide_k);
                kernels.widen_bytes(v, wide_v);
                Operands::F32 { q, k: wide_k, v: wide_v }
            }
            Tile::Q8 { k, v, .. } => Operands::Bytes { q, k, v },
        };
        let mut seen_scales = [0.0; KEYS_PER_TILE];
        let scales = match tile {
            Tile::Q8 { k_scales, v_scales, .. } => {
                seen_scales[..last_seen].copy_from_slice(&v_scales[..last_seen]);
                Some(Scales { k: k_scales, v: &seen_scales })
            }
            Tile::F32 { .. } | Tile::Bf16 { .. } => None,
        };
        kernels.attend(AttendTile {
            operands,
            scales,
            width,
            seen: &self.seen,
            out: &mut self.out,
            peak: &mut self.peak,
            total: &mut self.total,
            scores: &mut self.scores,
            factors: &mut self.factors,
            ahead: (tile.start().wrapping_add(AHEAD_BYTES), keys.tile_bytes()),
        });
    }
}

/// Two tiles of `len` elements each.
fn halves<T: Copy + Default>(scratch: &mut Vec<T>, len: usize) -> [&mut [T]; 2] {
    scratch.resize(2 * len, T::default());
    let (first, second) = scratch.split_at_mut(len);
    [first, second]
}

/// Takes away the values from key `seen` on, which nobody sees and which may be no numbers.
fn forget_pairs(pairs: &mut [u32], width: usize, seen: usize) {
    pairs[seen.div_ceil(2) * width..].fill(0);
    if seen % 2 == 1 {
        pairs[seen / 2 * width..(seen / 2 + 1) * width].iter_mut().for_each(|word| *word &= 0xffff);
    }
}

/// The sum of all lanes, always in the same order.
fn sum(lanes: &[f32; MAX_WIDTH]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
