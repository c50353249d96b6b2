//! Products with packed weights: how the work is cut into items for the threads.

use std::cell::RefCell;
use std::ops::Range;

use super::isa::Kernels;
use super::quantised;
use super::shared::{Block, SharedRows};
use super::tile::{Factors, MICRO_ROWS, Multiply, Start};
use crate::matrix::{ROWS_PER_PANEL, Storage};
use crate::pool::Pool;
use crate::{Matrix, WeightFormat};

/// Lines of a panel that all rows of an item pass before the next lines' turn: 32 KiB, which stay in the
/// first-level cache.
const LINES_PER_PASS: usize = 128;

/// Bytes of input rows of one item: most of a second-level cache of 2 MiB, in which they wait for the next panel.
const INPUT_BYTES_PER_ITEM: usize = 3 << 19;

/// What large items are a multiple of: strips of six rows, and tiles of sixteen.
const ROWS_OF_LARGE_ITEMS: usize = 48;

/// Input rows of one item: at most so many, that every thread gets work.
const MOST_ROWS_PER_ITEM: usize = 64 * MICRO_ROWS;

/// From this many input rows on, bf16 lines are widened once for all rows rather than once per six. Both ways
/// compute the same bits.
pub(super) const WIDEN_FROM_ROWS: usize = 13;

/// Inputs rounded at once, and what rounding one is taken to cost when deciding whether threads are worth waking.
const ROUNDED_PER_ITEM: usize = 16 * 1024;
const FLOPS_PER_ROUNDED: usize = 4;

thread_local! {
    /// The calling thread's inputs in bf16 pairs.
    static ROUNDED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// A thread's sums of a panel that is not whole, and its widened lines.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// `out [m, rows] = x [m, cols] · weightᵀ`.
pub(super) fn matmul(kernels: Kernels, pool: &Pool, x: &[f32], m: usize, weight: &Matrix, out: &mut [f32]) {
    match &weight.storage {
        Storage::Packed(_) if rounds(kernels, weight) => {
            with_rounded(kernels, pool, x, m, weight.cols(), |inputs| {
                packed(kernels, pool, inputs, m, [weight, weight], out);
            });
        }
        Storage::Packed(_) => packed(kernels, pool, Inputs::F32(x), m, [weight, weight], out),
        Storage::Blocks(_) => quantised::matmul(kernels, pool, x, m, weight, out),
    }
}

/// Input rows in the number format that the product takes.
#[derive(Clone, Copy)]
pub(super) enum Inputs<'a> {
    /// `[m, cols]`
    F32(&'a [f32]),
    /// `[m, cols / 2]` words
    Pairs(&'a [u32]),
}

/// Whether inputs that meet `weight` are rounded to bf16.
pub(super) fn rounds(kernels: Kernels, weight: &Matrix) -> bool {
    weight.format() == WeightFormat::Bf16 && kernels.dots()
}

/// `out = silu(x · gateᵀ) * (x · upᵀ)`, panel by panel, for weights of one shape. Tells whether it could: else nothing was
/// done.
pub(super) fn gated(
    kernels: Kernels,
    pool: &Pool,
    x: &[f32],
    m: usize,
    [gate, up]: [&Matrix; 2],
    out: &mut [f32],
) -> bool {
    if !matches!(gate.storage, Storage::Packed(_)) || gate.format() != up.format() {
        return false;
    }
    if rounds(kernels, gate) {
        with_rounded(kernels, pool, x, m, gate.cols(), |inputs| {
            packed(kernels, pool, inputs, m, [gate, up], out);
        });
    } else {
        packed(kernels, pool, Inputs::F32(x), m, [gate, up], out);
    }
    true
}

/// Input rows `x` `[m, cols]` rounded to pairs, for as long as `multiply` runs.
pub(super) fn with_rounded(
    kernels: Kernels,
    pool: &Pool,
    x: &[f32],
    m: usize,
    cols: usize,
    multiply: impl FnOnce(Inputs<'_>),
) {
    let words = cols.div_ceil(2);
    ROUNDED.with_borrow_mut(|pairs| {
        if pairs.len() < m * words {
            pairs.resize(m * words, 0);
        }
        let pairs = &mut pairs[..m * words];
        if words > 0 {
            pool.run_rows(pairs, words, ROUNDED_PER_ITEM / 2, 2 * FLOPS_PER_ROUNDED, |at, pairs| {
                for (row, pairs) in (at / words..).zip(pairs.chunks_exact_mut(words)) {
                    kernels.round(&x[row * cols..(row + 1) * cols], pairs);
                }
            });
        }
        multiply(Inputs::Pairs(pairs));
    });
}

/// The product with one packed weight, given twice; or, with two, what [`gated`] promises.
pub(super) fn packed(
    kernels: Kernels,
    pool: &Pool,
    inputs: Inputs<'_>,
    m: usize,
    [weight, up]: [&Matrix; 2],
    out: &mut [f32],
) {
    let is_gated = !std::ptr::eq(weight, up);
    let (rows, cols) = (weight.rows(), weight.cols());
    if m == 0 || rows == 0 {
        return;
    }
    let row_bytes = match inputs {
        Inputs::F32(_) => cols * size_of::<f32>(),
        Inputs::Pairs(_) => cols.div_ceil(2) * size_of::<u32>(),
    };
    let most = (INPUT_BYTES_PER_ITEM / row_bytes.max(1)).clamp(MICRO_ROWS, MOST_ROWS_PER_ITEM);
    // Parts of equal size, in whole strips.
    let even = m.div_ceil(m.div_ceil(most));
    let strips = if even > ROWS_OF_LARGE_ITEMS { ROWS_OF_LARGE_ITEMS } else { MICRO_ROWS };
    let per_part = even.next_multiple_of(strips);
    let (panels, parts) = (rows.div_ceil(ROWS_PER_PANEL), m.div_ceil(per_part));
    let out = SharedRows::new(out);
    pool.run(panels * parts, 2 * m * rows * cols * (1 + usize::from(is_gated)), |item| {
        // Neighbouring items share their input rows, and their panels are one stream of memory.
        let (part, panel) = (item / panels, item % panels);
        let first = part * per_part;
        let count = (m - first).min(per_part);
        let column = panel * ROWS_PER_PANEL;
        let width = (rows - column).min(ROWS_PER_PANEL);
        let place = |row: usize| (first + row) * rows + column;
        SCRATCH.with_borrow_mut(|(sums, widened)| {
            if width == ROWS_PER_PANEL {
                // SAFETY: items are distinct pairs of panel and part, so their columns or rows are apart; this borrow
                // ends before the item's next ones.
                let target = unsafe { out.block(place(0), count, width, rows) };
                multiply_panel(kernels, inputs, first, weight, panel, target, widened);
            } else {
                panel_sums(kernels, inputs, first..first + count, weight, panel, sums, widened);
                for (row, sums) in sums.chunks_exact(ROWS_PER_PANEL).take(count).enumerate() {
                    // SAFETY: as above.
                    unsafe { out.row(place(row), width) }.copy_from_slice(&sums[..width]);
                }
            }
            if is_gated {
                panel_sums(kernels, inputs, first..first + count, up, panel, sums, widened);
                for (row, sums) in sums.chunks_exact(ROWS_PER_PANEL).take(count).enumerate() {
                    // SAFETY: as above.
                    kernels.swiglu(unsafe { out.row(place(row), width) }, &sums[..width]);
                }
            }
        });
    });
}

/// [`multiply_panel`] for the input rows `rows` into the first of `sums`, `[rows, 64]`, which grows as needed.
fn panel_sums(
    kernels: Kernels,
    inputs: Inputs<'_>,
    rows: Range<usize>,
    weight: &Matrix,
    panel: usize,
    sums: &mut Vec<f32>,
    widened: &mut Vec<f32>,
) {
    sums.resize((rows.len() * ROWS_PER_PANEL).max(sums.len()), 0.0);
    let padded = Block::new(sums, rows.len(), ROWS_PER_PANEL, ROWS_PER_PANEL);
    multiply_panel(kernels, inputs, rows.start, weight, panel, padded, widened);
}

/// `sums [count, 64] = inputs [first.., cols] · panelᵀ`, columns in order.
fn multiply_panel(
    kernels: Kernels,
    inputs: Inputs<'_>,
    first: usize,
    weight: &Matrix,
    panel: usize,
    mut sums: Block<'_>,
    widened: &mut Vec<f32>,
) {
    let (cols, words) = (weight.cols(), weight.panel_words(panel));
    let per_line = if weight.format() == WeightFormat::F32 { 1 } else { 2 };
    let widens = matches!(inputs, Inputs::F32(_)) && per_line == 2 && sums.rows() >= WIDEN_FROM_ROWS;
    widened.resize(if widens { 2 * LINES_PER_PASS * ROWS_PER_PANEL } else { 0 }, 0.0);
    // A single strip passes the whole panel at once: the sums never leave the registers.
    let lines = if sums.rows() > MICRO_ROWS { LINES_PER_PASS } else { cols.div_ceil(per_line) };
    for (pass, words) in words.chunks(lines.max(1) * ROWS_PER_PANEL).enumerate() {
        let start = pass * lines * per_line;
        let depth = (cols - start).min(lines * per_line);
        let (factors, a_stride) = match inputs {
            Inputs::Pairs(a) => {
                let stride = cols.div_ceil(2);
                (Factors::Pairs { a: &a[first * stride + start / 2..], b: words }, stride)
            }
            Inputs::F32(a) => {
                let a = &a[first * cols + start..];
                let factors = if per_line == 1 {
                    Factors::F32 { a, b: bytemuck::cast_slice(words) }
                } else if widens {
                    kernels.widen(words, ROWS_PER_PANEL, &mut widened[..2 * words.len()]);
                    Factors::F32 { a, b: widened }
                } else {
                    Factors::Widened { a, b: words }
                };
                (factors, cols)
            }
        };
        let start = if pass == 0 { Start::Zero } else { Start::Sum };
        kernels.multiply(Multiply {
            depth,
            factors,
            a_stride,
            b_stride: ROWS_PER_PANEL,
            c: sums.reborrow(),
            start,
        });
    }
}
