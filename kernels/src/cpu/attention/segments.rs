//! Attention of few rows over many keys: the segments of all spans are one list of items, computed in waves, after each of
//! which every row's partials are folded in order. What a segment of keys makes of the rows is decided in `attention`.

use std::cell::RefCell;
use std::ops::Range;

use super::{Call, ROWS, RowTile, segments_of};
use crate::Partial;
use crate::cpu::shared::SharedRows;
use crate::partial::merge_row;
use crate::pool::Pool;

/// Runs of items per thread: each is one stream of memory where spans are long, and a thread that is held up leaves its
/// last ones to the others.
const RUNS_PER_THREAD: usize = 8;

/// Values of the partials that wait to be folded: 8 MiB.
const WAITING_VALUES: usize = 2 << 20;

/// What folding one row of a partial is taken to cost, beside its values, when deciding whether threads are worth
/// waking.
const FLOPS_PER_FOLD: usize = 256;

thread_local! {
    /// The calling thread's, kept so that no call allocates.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    /// See [`Items`].
    starts: Vec<usize>,
    /// Partials of a wave, `[items, rows, head_dim]`.
    values: Vec<f32>,
    /// Their log-sum-exps, `[items, rows]`.
    lse: Vec<f32>,
}

/// Folds the attention of a call into `out`; `flops` is what it takes.
pub(super) fn attend(call: &Call<'_>, pool: &Pool, flops: usize, out: &mut Partial) {
    let (rows, head_dim) = (call.rows(), call.q.head_dim);
    let most = (WAITING_VALUES / (rows * head_dim)).max(pool.threads());
    SCRATCH.with_borrow_mut(|Scratch { starts, values, lse }| {
        let items = Items::new(call, starts);
        for first in (0..items.len()).step_by(most) {
            let wave = first..items.len().min(first + most);
            grow(values, wave.len() * rows * head_dim);
            grow(lse, wave.len() * rows);
            let to = [SharedRows::new(values), SharedRows::new(lse)];
            let run_len = wave.len().div_ceil(RUNS_PER_THREAD * pool.threads());
            pool.run(wave.len().div_ceil(run_len), flops / items.len() * wave.len(), |run| {
                let start = wave.start + run * run_len;
                let run = start..wave.end.min(start + run_len);
                ROWS.with_borrow_mut(|tile| items.compute(tile, run, wave.start, &to));
            });
            items.fold(pool, &wave, [values, lse], out);
        }
    });
}

/// The segments that the rows of a call see, of all key/value heads, in one order: span by span, there head by head, so that
/// neighbours are one stream of memory, and of each head in the order of the keys.
#[derive(Clone, Copy)]
struct Items<'a> {
    call: &'a Call<'a>,
    /// The first item of each span, and behind them the number of items.
    starts: &'a [usize],
}

impl<'a> Items<'a> {
    /// Keeps the starts of spans in `starts`, in place of what is there.
    fn new(call: &'a Call<'a>, starts: &'a mut Vec<usize>) -> Self {
        let mut next = 0;
        starts.clear();
        starts.push(next);
        starts.extend(call.spans.iter().map(|span| {
            next += segments_of(call.seen(span)) * call.kv_heads;
            next
        }));
        Self { call, starts }
    }

    fn len(&self) -> usize {
        self.starts[self.call.spans.len()]
    }

    /// The span that `item` is of.
    fn span_of(&self, item: usize) -> usize {
        // Spans of which nothing is seen start where the next one does, which is the one that counts.
        self.starts.partition_point(|start| *start <= item) - 1
    }

    /// Segments of a span that are seen.
    fn segments(&self, span: usize) -> usize {
        (self.starts[span + 1] - self.starts[span]) / self.call.kv_heads
    }

    /// Computes a run of items: leaves their attention in the values and log-sum-exps of `to`, which begin with item `first`.
    fn compute(&self, tile: &mut RowTile, run: Range<usize>, first: usize, to: &[SharedRows<'_>; 2]) {
        let (call, rows, head_dim) = (self.call, self.call.rows(), self.call.q.head_dim);
        let (mut gathered, mut looked_at) = (None, None);
        for item in run {
            let index = self.span_of(item);
            let (span, within, segments) =
                (&call.spans[index], item - self.starts[index], self.segments(index));
            let (kv_head, segment) = (within / segments, within % segments);
            if gathered != Some(kv_head) {
                tile.gather(call, kv_head, 0..rows);
                gathered = Some(kv_head);
            }
            if looked_at != Some(index) {
                tile.look_at(span);
                looked_at = Some(index);
            }
            tile.attend_segment(call.kernels, &span.keys, kv_head, segment);
            let at = (item - first) * rows;
            // SAFETY: items have places of their own, borrowed once.
            let (values, lse) = unsafe { (to[0].row(at * head_dim, rows * head_dim), to[1].row(at, rows)) };
            for (row, values) in values.chunks_exact_mut(head_dim).enumerate() {
                values.copy_from_slice(tile.out(row));
            }
            lse.copy_from_slice(&tile.lse[..rows]);
        }
    }

    /// Folds the partials of a wave of items into `out`, those of each row in order.
    fn fold(&self, pool: &Pool, wave: &Range<usize>, [values, lse]: [&[f32]; 2], out: &mut Partial) {
        let (call, rows, head_dim) = (self.call, self.call.rows(), self.call.q.head_dim);
        let flops = wave.len() * rows * (FLOPS_PER_FOLD + 2 * head_dim);
        let (out_values, out_lse) = (SharedRows::new(&mut out.out), SharedRows::new(&mut out.lse));
        pool.run(call.kv_heads, flops, |kv_head| {
            for span in self.span_of(wave.start)..=self.span_of(wave.end - 1) {
                let segments = self.segments(span);
                let start = self.starts[span] + kv_head * segments;
                for item in start.max(wave.start)..(start + segments).min(wave.end) {
                    for row in 0..rows {
                        let (from, place) = ((item - wave.start) * rows + row, call.place(kv_head, row));
                        // SAFETY: heads have places of their own; both borrows end before the next.
                        let (to, to_lse) =
                            unsafe { (out_values.row(place * head_dim, head_dim), out_lse.row(place, 1)) };
                        merge_row(to, &mut to_lse[0], &values[from * head_dim..][..head_dim], lse[from]);
                    }
                }
            }
        });
    }
}

/// Makes room for `len` values and keeps what is there: whoever uses them writes them first.
fn grow(values: &mut Vec<f32>, len: usize) {
    if values.len() < len {
        values.resize(len, 0.0);
    }
}
