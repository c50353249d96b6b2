//! Attention: how queries and keys are cut into items, and one segment of keys for a few query rows.
//!
//! A row is one query token and head. The rows of all query heads that share a key/value head go together, so
//! that a tile of keys serves them all. Source: FlashAttention (arXiv 2205.14135) for the tiles, its decoding
//! variant for the segments.

use std::cell::RefCell;

use super::isa::Kernels;
use super::product::WIDEN_FROM_ROWS;
use super::shared::SharedRows;
use super::softmax::{AttendTile, MAX_WIDTH, Operands};
use super::tile::MICRO_ROWS;
use crate::kv::Tile;
use crate::partial::merge_row;
use crate::pool::Pool;
use crate::{KEYS_PER_SEGMENT, KEYS_PER_TILE, KvFormat, KvSpan, KvView, Partial, Queries};

/// Rows of one item: with 128 values per head they and their outputs take 96 KiB, beside which a tile of keys
/// and values stays in the second-level cache.
const ROWS_PER_ITEM: usize = 16 * MICRO_ROWS;

/// Values of the partials that wait to be folded when few rows meet many keys: 8 MiB.
const WAITING_VALUES: usize = 2 << 20;

/// What folding one row of a partial is taken to cost, beside its values, when deciding whether threads are worth
/// waking.
const FLOPS_PER_FOLD: usize = 256;

thread_local! {
    /// Rows of the item at hand: kept, so that no item allocates.
    static ROWS: RefCell<RowTile> = RefCell::default();
    /// Partials of the calling thread's wave of segments, `[items, rows, head_dim]`, and their log-sum-exps.
    static WAITING: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
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

    /// Few rows, many keys: items are (key/value head, segment), so that neighbours are one stream of memory, folded
    /// in order after every wave.
    fn by_segments(&self, pool: &Pool, flops: usize, out: &mut Partial) {
        let (rows, head_dim) = (self.rows(), self.q.head_dim);
        let most = (WAITING_VALUES / (rows * head_dim)).max(pool.threads());
        WAITING.with_borrow_mut(|(waiting, waiting_lse)| {
            for span in self.spans {
                let segments = segments_of(self.seen(span));
                let items = segments * self.kv_heads;
                for wave in (0..items).step_by(most) {
                    let count = (items - wave).min(most);
                    grow(waiting, count * rows * head_dim);
                    grow(waiting_lse, count * rows);
                    let (values, lse) = (SharedRows::new(waiting), SharedRows::new(waiting_lse));
                    pool.run(count, flops / self.spans.len(), |item| {
                        let (kv_head, segment) = ((wave + item) / segments, (wave + item) % segments);
                        let (at, len) = (item * rows, rows);
                        // SAFETY: items have places of their own, borrowed once.
                        let (values, lse) =
                            unsafe { (values.row(at * head_dim, len * head_dim), lse.row(at, len)) };
                        self.segment(span, kv_head, segment, values, lse);
                    });
                    self.fold(pool, segments, wave..wave + count, [waiting, waiting_lse], out);
                }
            }
        });
    }

    /// Leaves in `values` `[rows, head_dim]` and `lse` `[rows]` the attention over one segment.
    fn segment(
        &self,
        span: &KvSpan<'_>,
        kv_head: usize,
        segment: usize,
        values: &mut [f32],
        lse: &mut [f32],
    ) {
        ROWS.with_borrow_mut(|rows| {
            rows.gather(self, kv_head, 0..self.rows());
            rows.look_at(span);
            rows.attend_segment(self.kernels, &span.keys, kv_head, segment);
            for (row, values) in values.chunks_exact_mut(self.q.head_dim).enumerate() {
                values.copy_from_slice(rows.out(row));
            }
            lse.copy_from_slice(&rows.lse);
        });
    }

    /// Folds the partials of a wave of items into `out`, every head's segments in order.
    fn fold(
        &self,
        pool: &Pool,
        segments: usize,
        wave: std::ops::Range<usize>,
        [values, lse]: [&[f32]; 2],
        out: &mut Partial,
    ) {
        let (rows, head_dim) = (self.rows(), self.q.head_dim);
        let first_head = wave.start / segments;
        let heads = wave.end.div_ceil(segments) - first_head;
        let flops = wave.len() * rows * (FLOPS_PER_FOLD + 2 * head_dim);
        let (out_values, out_lse) = (SharedRows::new(&mut out.out), SharedRows::new(&mut out.lse));
        pool.run(heads, flops, |head| {
            let kv_head = first_head + head;
            let items = (kv_head * segments).max(wave.start)..((kv_head + 1) * segments).min(wave.end);
            for item in items {
                for row in 0..rows {
                    let (from, place) = ((item - wave.start) * rows + row, self.place(kv_head, row));
                    // SAFETY: items are distinct heads, whose places are apart; both borrows end before the next.
                    let (to, to_lse) =
                        unsafe { (out_values.row(place * head_dim, head_dim), out_lse.row(place, 1)) };
                    merge_row(to, &mut to_lse[0], &values[from * head_dim..][..head_dim], lse[from]);
                }
            }
        });
    }
}

fn segments_of(keys: usize) -> usize {
    keys.div_ceil(KEYS_PER_SEGMENT)
}

/// Makes room for `len` values and keeps what is there: whoever uses them writes them first.
fn grow<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
    if values.len() < len {
        values.resize(len, T::default());
    }
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
    /// The greatest score so far.
    peak: Vec<f32>,
    /// The sum of weights so far, relative to the peak.
    total: Vec<[f32; MAX_WIDTH]>,
    /// Scores of a tile, `[rows, 64]`.
    scores: Vec<f32>,
    /// What a tile makes of earlier sums, `[rows]`.
    factors: Vec<f32>,
    /// A tile of keys and one of values in f32, when bf16 is widened for many rows.
    widened: Vec<f32>,
}

impl RowTile {
    /// Takes the rows of `range`, in place of those before.
    fn gather(&mut self, call: &Call<'_>, kv_head: usize, range: std::ops::Range<usize>) {
        let (rows, head_dim, width) = (range.len(), call.q.head_dim, call.spans[0].keys.stored_dim());
        (self.head_dim, self.width) = (head_dim, width);
        self.queries.resize(rows * width, 0.0);
        for (row, query) in range.clone().zip(self.queries.chunks_exact_mut(width)) {
            let data = &call.q.data[call.place(kv_head, row) * head_dim..][..head_dim];
            for (value, data) in query.iter_mut().zip(data) {
                *value = data * call.q.scale;
            }
            query[head_dim..].fill(0.0);
        }
        let pairs = call.kernels.dots() && call.spans.iter().any(|span| span.keys.format() == KvFormat::Bf16);
        self.pairs.resize(if pairs { rows * width / 2 } else { 0 }, 0);
        if pairs {
            call.kernels.round(&self.queries, &mut self.pairs);
        }
        self.tokens.clear();
        self.tokens.extend(range.map(|row| row / call.group));
        self.visible.resize(rows, 0);
        self.seen.resize(rows, 0);
        self.out.resize(rows * width, 0.0);
        self.scores.resize(rows * KEYS_PER_TILE, 0.0);
        self.total.resize(rows, [0.0; MAX_WIDTH]);
        for values in [&mut self.lse, &mut self.peak, &mut self.factors] {
            values.resize(rows, 0.0);
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
        let (width, rows, q) = (self.width, self.tokens.len(), &self.queries[..]);
        let operands = match keys.tile(kv_head, first_key / KEYS_PER_TILE) {
            Tile::F32 { k, v } => Operands::F32 { q, k, v },
            Tile::Bf16 { k, v } if kernels.dots() => Operands::Pairs { q: &self.pairs, k, v },
            Tile::Bf16 { k, v } if rows < WIDEN_FROM_ROWS => Operands::Widened { q, k, v },
            Tile::Bf16 { k, v } => {
                self.widened.resize(2 * KEYS_PER_TILE * width, 0.0);
                let (wide_k, wide_v) = self.widened.split_at_mut(KEYS_PER_TILE * width);
                kernels.widen(k, KEYS_PER_TILE, wide_k);
                kernels.widen(v, width, wide_v);
                Operands::F32 { q, k: wide_k, v: wide_v }
            }
        };
        kernels.attend(AttendTile {
            operands,
            width,
            seen: &self.seen,
            out: &mut self.out,
            peak: &mut self.peak,
            total: &mut self.total,
            scores: &mut self.scores,
            factors: &mut self.factors,
        });
    }
}

/// The sum of all lanes, always in the same order.
fn sum(lanes: &[f32; MAX_WIDTH]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
