//! Products with quantised weights: how the work is cut into items for the threads, and which kernel each takes.
//! Weights are streamed once and widened in registers for a few input rows; for more, some columns of a panel at a
//! time are widened into a thread's scratch, where all rows of the item meet them in `strips`.
//!
//! Activations stay in f32, unless the instruction set rounds them to bf16 wherever it can: then the widened weights
//! are rounded too, and products are those of bf16 pairs.

mod fields;
mod formats;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};
pub(super) use kernel::MOST_FEW_ROWS;
use kernel::{COLUMNS_UNIT, Lines};
pub(super) use kernel::{FewRows, Unpack, few_rows, has_few_rows, unpack};

use super::isa::Kernels;
use super::shared::{Block, SharedRows};
use super::strips::{self, Strips};
use crate::Matrix;
use crate::matrix::ROWS_PER_PANEL;
use crate::pool::Pool;

/// Lines of a panel that are widened at once: 32 KiB, which stay in the first-level cache.
const LINES_PER_SLICE: usize = 128;
const _: () = assert!(LINES_PER_SLICE.is_multiple_of(COLUMNS_UNIT));

/// Input rows of one item at most. Widening a panel then costs a few hundredths of multiplying with it, and the sums
/// of an item's panels stay in a second-level cache beside a slice of its inputs.
const MOST_ROWS_PER_ITEM: usize = 528;

/// What large items are a multiple of: strips of six rows, and tiles of sixteen.
const ROWS_OF_LARGE_ITEMS: usize = 48;

/// Panels of an item at most: what makes the inputs' slices worth fetching.
const MOST_PANELS_PER_ITEM: usize = 4;

/// Items per thread at least, so that threads end together.
const ITEMS_PER_THREAD: usize = 8;

/// Inputs rounded at once, and what rounding one is taken to cost when deciding whether threads are worth waking.
const ROUNDED_PER_ITEM: usize = 16 * 1024;
const FLOPS_PER_ROUNDED: usize = 4;

/// A cache line of scratch, so that vectors never straddle two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct CacheLine([u32; 16]);

thread_local! {
    /// The calling thread's inputs in bf16 pairs.
    static ROUNDED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// A thread's sums of a panel that is not whole, and its widened lines.
    static SCRATCH: RefCell<(Vec<CacheLine>, Vec<CacheLine>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Input rows in the number format that the product takes.
#[derive(Clone, Copy)]
enum Inputs<'a> {
    /// `[m, cols]`
    F32(&'a [f32]),
    /// `[m, cols / 2]` words
    Pairs(&'a [u32]),
}

/// `out [m, rows] = x [m, cols] · weightᵀ` for a quantised weight.
pub(super) fn matmul(kernels: Kernels, pool: &Pool, x: &[f32], m: usize, weight: &Matrix, out: &mut [f32]) {
    if weight.cols() == 0 {
        return out.fill(0.0);
    }
    if !kernels.dots() {
        return multiply(kernels, pool, Inputs::F32(x), m, weight, out);
    }
    let (cols, words) = (weight.cols(), weight.cols() / 2);
    ROUNDED.with_borrow_mut(|pairs| {
        if pairs.len() < m * words {
            pairs.resize(m * words, 0);
        }
        let pairs = &mut pairs[..m * words];
        pool.run_rows(pairs, words, ROUNDED_PER_ITEM / 2, 2 * FLOPS_PER_ROUNDED, |at, pairs| {
            for (row, pairs) in (at / words..).zip(pairs.chunks_exact_mut(words)) {
                kernels.round(&x[row * cols..(row + 1) * cols], pairs);
            }
        });
        multiply(kernels, pool, Inputs::Pairs(pairs), m, weight, out);
    });
}

/// How many rows and panels an item has, of `m` rows and `panels` panels.
fn item_shape(m: usize, panels: usize, threads: usize) -> (usize, usize) {
    let parts = m.div_ceil(MOST_ROWS_PER_ITEM);
    let even = m.div_ceil(parts);
    let rows = if even > ROWS_OF_LARGE_ITEMS { even.next_multiple_of(ROWS_OF_LARGE_ITEMS) } else { even };
    let most = panels * parts / (threads * ITEMS_PER_THREAD);
    (rows, if m > MOST_FEW_ROWS { most.clamp(1, MOST_PANELS_PER_ITEM) } else { 1 })
}

fn multiply(kernels: Kernels, pool: &Pool, inputs: Inputs<'_>, m: usize, weight: &Matrix, out: &mut [f32]) {
    let (rows, cols) = (weight.rows(), weight.cols());
    if m == 0 || rows == 0 {
        return;
    }
    let panels = rows.div_ceil(ROWS_PER_PANEL);
    let (per_part, per_group) = item_shape(m, panels, pool.threads());
    let (parts, groups) = (m.div_ceil(per_part), panels.div_ceil(per_group));
    let out = SharedRows::new(out);
    pool.run(parts * groups, 2 * m * rows * cols, |item| {
        // Neighbouring items share their input rows.
        let (part, group) = (item / groups, item % groups);
        let first = part * per_part;
        let item = Item { kernels, inputs, weight, first, count: (m - first).min(per_part), out: &out };
        let first_panel = group * per_group;
        item.run(first_panel..panels.min(first_panel + per_group));
    });
}

/// Some input rows, and the output's place for them.
struct Item<'a> {
    kernels: Kernels,
    inputs: Inputs<'a>,
    weight: &'a Matrix,
    first: usize,
    count: usize,
    out: &'a SharedRows<'a>,
}

impl Item<'_> {
    /// Computes the columns of the output that belong to `panels`. No other item has them for these rows.
    fn run(&self, panels: std::ops::Range<usize>) {
        let rows = self.weight.rows();
        SCRATCH.with_borrow_mut(|(sums, lines)| {
            let whole = panels.end * ROWS_PER_PANEL <= rows;
            sums.resize(if whole { sums.len() } else { sums.len().max(self.count * 4) }, CacheLine::zeroed());
            let sums: &mut [f32] = bytemuck::cast_slice_mut(sums);
            if let (Inputs::F32(x), true) = (self.inputs, self.count <= self.kernels.most_few_rows()) {
                for panel in panels.clone() {
                    let x = &x[self.first * self.weight.cols()..];
                    let c = self.target(panel, sums);
                    let (format, cols) = (self.weight.format(), self.weight.cols());
                    self.kernels.few_rows(FewRows {
                        format,
                        panel: self.weight.panel_regions(panel),
                        x,
                        cols,
                        c,
                    });
                }
            } else {
                lines.resize(LINES_PER_SLICE * ROWS_PER_PANEL / 16, CacheLine::zeroed());
                self.by_slices(panels.clone(), sums, bytemuck::cast_slice_mut(lines));
            }
            if !whole {
                self.copy_last(panels.end - 1, sums);
            }
        });
    }

    /// Slice after slice of the columns, and in each panel after panel: the inputs of a slice stay in the cache.
    fn by_slices(&self, panels: std::ops::Range<usize>, sums: &mut [f32], lines: &mut [u32]) {
        let cols = self.weight.cols();
        let per_line = if matches!(self.inputs, Inputs::F32(_)) { 1 } else { 2 };
        for start in (0..cols).step_by(LINES_PER_SLICE * per_line) {
            let depth = (cols - start).min(LINES_PER_SLICE * per_line);
            let lines = &mut lines[..depth / per_line * ROWS_PER_PANEL];
            for panel in panels.clone() {
                let unpack = |lines| Unpack {
                    format: self.weight.format(),
                    panel: self.weight.panel_regions(panel),
                    columns: start..start + depth,
                    lines,
                };
                let (a, a_row, b) = match self.inputs {
                    Inputs::F32(x) => {
                        let lines: &mut [f32] = bytemuck::cast_slice_mut(lines);
                        self.kernels.unpack(unpack(Lines::F32(lines)));
                        (&x[self.first * cols + start..], cols, strips::Lines::Floats(lines))
                    }
                    Inputs::Pairs(x) => {
                        self.kernels.unpack(unpack(Lines::Pairs(lines)));
                        let a = &x[(self.first * cols + start) / 2..];
                        (bytemuck::cast_slice(a), cols / 2, strips::Lines::Pairs(lines))
                    }
                };
                let (c, accumulate) = (self.target(panel, sums), start > 0);
                // The lines were unpacked into a near cache: there is nothing to ask the memory for.
                self.kernels.strips(Strips { depth, a, a_row, b, c, accumulate, ahead: &[] });
            }
        }
    }

    /// Where the sums of a panel go: to the output, or for a panel that is not whole to `sums`.
    fn target<'a>(&'a self, panel: usize, sums: &'a mut [f32]) -> Block<'a> {
        let (rows, column) = (self.weight.rows(), panel * ROWS_PER_PANEL);
        if column + ROWS_PER_PANEL <= rows {
            // SAFETY: items are distinct pairs of rows and panels, so what they borrow is apart; an item's borrow of
            // one panel ends before its next.
            unsafe { self.out.block(self.first * rows + column, self.count, ROWS_PER_PANEL, rows) }
        } else {
            Block::new(sums, self.count, ROWS_PER_PANEL, ROWS_PER_PANEL)
        }
    }

    fn copy_last(&self, panel: usize, sums: &[f32]) {
        let (rows, column) = (self.weight.rows(), panel * ROWS_PER_PANEL);
        for (row, sums) in sums.chunks_exact(ROWS_PER_PANEL).enumerate().take(self.count) {
            // SAFETY: a part of what is this item's alone, as in `target`; the borrow ends before the next.
            let target = unsafe { self.out.row((self.first + row) * rows + column, rows - column) };
            target.copy_from_slice(&sums[..rows - column]);
        }
    }
}
