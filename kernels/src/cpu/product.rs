//! Products with packed weights: how the work is cut into items for the threads.

use std::cell::RefCell;

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
        Storage::Packed(_) if weight.format() == WeightFormat::Bf16 && kernels.dots() => {
            rounded(kernels, pool, x, m, weight, out);
        }
        Storage::Packed(_) => packed(kernels, pool, Inputs::F32(x), m, weight, out),
        Storage::Blocks(_) => quantised::matmul(kernels, pool, x, m, weight, out),
    }
}

/// Input rows in the number format that the product takes.
#[derive(Clone, Copy)]
enum Inputs<'a> {
    /// `[m, cols]`
    F32(&'a [f32]),
    /// `[m, cols / 2]` words
    Pairs(&'a [u32]),
}

/// Rounds the inputs to bf16, once for all panels.
fn rounded(kernels: Kernels, pool: &Pool, x: &[f32], m: usize, weight: &Matrix, out: &mut [f32]) {
    let cols = weight.cols();
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
        packed(kernels, pool, Inputs::Pairs(pairs), m, weight, out);
    });
}

fn packed(kernels: Kernels, pool: &Pool, inputs: Inputs<'_>, m: usize, weight: &Matrix, out: &mut [f32]) {
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
    pool.run(panels * parts, 2 * m * rows * cols, |item| {
        // Neighbouring items share their input rows, and their panels are one stream of memory.
        let (part, panel) = (item / panels, item % panels);
        let first = part * per_part;
        let count = (m - first).min(per_part);
        let column = panel * ROWS_PER_PANEL;
        let width = (rows - column).min(ROWS_PER_PANEL);
        // SAFETY: items are distinct pairs of panel and part, so their columns or rows are apart; this borrow
        // ends before the item's next one.
        let target = unsafe { out.block(first * rows + column, count, width, rows) };
        SCRATCH.with_borrow_mut(|(sums, widened)| {
            if width == ROWS_PER_PANEL {
                return multiply_panel(kernels, inputs, first, weight, panel, target, widened);
            }
            sums.resize((count * ROWS_PER_PANEL).max(sums.len()), 0.0);
            let padded = Block::new(sums, count, ROWS_PER_PANEL, ROWS_PER_PANEL);
            multiply_panel(kernels, inputs, first, weight, panel, padded, widened);
            for row in 0..count {
                // SAFETY: a part of the item's block, which is not used any more.
                let target = unsafe { out.row((first + row) * rows + column, width) };
                target.copy_from_slice(&sums[row * ROWS_PER_PANEL..][..width]);
            }
        });
    });
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
