//! Products with quantised weights: how the work is cut into items for the threads, and which kernel each takes.
//! Weights are streamed once and widened in registers for a few input rows; for more, some columns of a panel at a
//! time are widened into a thread's scratch, where all rows of the item meet them in `strips`.
//!
//! Activations stay in f32, unless the instruction set rounds them to bf16 wherever it can: then the widened weights
//! are rounded too, and products are those of bf16 pairs.

mod fields;
mod formats;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::RefCell;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
pub(super) use kernel::MOST_FEW_ROWS;
use kernel::{COLUMNS_UNIT, Lines};
pub(super) use kernel::{FewRows, Unpack, few_rows, has_few_rows, unpack};

use super::isa::Kernels;
use super::shared::Block;
use super::strips::{self, Strips};
use super::targets::Targets;
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
struct CacheLine([u32; WORDS_PER_LINE]);

const WORDS_PER_LINE: usize = 16;

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

/// The products of `x` `[m, cols]` with quantised weights of one number of columns, in any formats.
pub(super) fn matmuls(kernels: Kernels, pool: &Pool, x: &[f32], m: usize, targets: Targets<'_>) {
    let Some(weight) = targets.first() else { return };
    let (cols, words) = (weight.cols(), weight.cols() / 2);
    if !kernels.dots() {
        return Product { kernels, pool, inputs: Inputs::F32(x), m, cols, targets }.run();
    }
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
        Product { kernels, pool, inputs: Inputs::Pairs(pairs), m, cols, targets }.run();
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

/// Products with quantised weights.
struct Product<'a> {
    kernels: Kernels,
    pool: &'a Pool,
    inputs: Inputs<'a>,
    m: usize,
    cols: usize,
    targets: Targets<'a>,
}

impl Product<'_> {
    fn run(&self) {
        let panels = self.targets.panels();
        if self.m == 0 || panels == 0 {
            return;
        }
        let (per_part, per_group) = item_shape(self.m, panels, self.pool.threads());
        let per_group = per_group.next_multiple_of(self.targets.inseparable());
        let (parts, groups) = (self.m.div_ceil(per_part), panels.div_ceil(per_group));
        self.pool.run(parts * groups, 2 * self.m * self.targets.rows() * self.cols, |item| {
            // Neighbouring items share their input rows.
            let (part, group) = (item / groups, item % groups);
            let rows = part * per_part..self.m.min((part + 1) * per_part);
            self.run_item(group * per_group..panels.min((group + 1) * per_group), rows);
        });
    }

    /// Some panels with some of the input rows.
    fn run_item(&self, panels: Range<usize>, rows: Range<usize>) {
        SCRATCH.with_borrow_mut(|(sums, lines)| {
            let len = rows.len() * ROWS_PER_PANEL;
            let lacking = (panels.len() * len / WORDS_PER_LINE).max(sums.len());
            sums.resize(lacking, CacheLine::zeroed());
            let sums: &mut [f32] = bytemuck::cast_slice_mut(sums);
            match self.inputs {
                Inputs::F32(x) if rows.len() <= self.kernels.most_few_rows() => {
                    for (index, place) in panels.enumerate() {
                        let ((weight, panel), cols) = (self.targets.panel(place), self.cols);
                        let (format, panel) = (weight.format(), weight.panel_regions(panel));
                        let x = &x[rows.start * cols..];
                        self.with_target(place, index, &rows, sums, true, |c| {
                            self.kernels.few_rows(FewRows { format, panel, x, cols, c });
                        });
                    }
                }
                _ => {
                    lines.resize(LINES_PER_SLICE * ROWS_PER_PANEL / WORDS_PER_LINE, CacheLine::zeroed());
                    self.by_slices(panels, &rows, sums, bytemuck::cast_slice_mut(lines));
                }
            }
        });
    }

    /// Slice after slice of the columns, and in each panel after panel: the inputs of a slice stay in the cache.
    fn by_slices(&self, panels: Range<usize>, rows: &Range<usize>, sums: &mut [f32], lines: &mut [u32]) {
        let cols = self.cols;
        let per_line = if matches!(self.inputs, Inputs::F32(_)) { 1 } else { 2 };
        for start in (0..cols).step_by(LINES_PER_SLICE * per_line) {
            let depth = (cols - start).min(LINES_PER_SLICE * per_line);
            let lines = &mut lines[..depth / per_line * ROWS_PER_PANEL];
            for (index, place) in panels.clone().enumerate() {
                let (weight, panel) = self.targets.panel(place);
                let unpack = |lines| Unpack {
                    format: weight.format(),
                    panel: weight.panel_regions(panel),
                    columns: start..start + depth,
                    lines,
                };
                let (a, a_row, b) = match self.inputs {
                    Inputs::F32(x) => {
                        let lines: &mut [f32] = bytemuck::cast_slice_mut(lines);
                        self.kernels.unpack(unpack(Lines::F32(lines)));
                        (&x[rows.start * cols + start..], cols, strips::Lines::Floats(lines))
                    }
                    Inputs::Pairs(x) => {
                        self.kernels.unpack(unpack(Lines::Pairs(lines)));
                        let a = &x[(rows.start * cols + start) / 2..];
                        (bytemuck::cast_slice(a), cols / 2, strips::Lines::Pairs(lines))
                    }
                };
                let (accumulate, last) = (start > 0, start + depth == cols);
                self.with_target(place, index, rows, sums, last, |c| {
                    // The lines were unpacked into a near cache: there is nothing to ask the memory for.
                    self.kernels.strips(Strips { depth, a, a_row, b, c, accumulate, ahead: &[] });
                });
            }
        }
    }

    /// Adds to the products with panel `place`, in their place where they can be, else in `sums`: from there they are taken
    /// to their place after the `last` addition. `index` is the panel's among those of its item.
    fn with_target(
        &self,
        place: usize,
        index: usize,
        rows: &Range<usize>,
        sums: &mut [f32],
        last: bool,
        add: impl FnOnce(Block<'_>),
    ) {
        // SAFETY: items are distinct pairs of rows and panels, so what they borrow is apart; an item's borrow of one
        // panel ends before its next.
        if let Some(target) = unsafe { self.targets.direct(place, rows) } {
            return add(target);
        }
        let len = rows.len() * ROWS_PER_PANEL;
        let sums = &mut sums[..(index + 1) * len];
        add(Block::new(&mut sums[index * len..], rows.len(), ROWS_PER_PANEL, ROWS_PER_PANEL));
        if last {
            // SAFETY: as above.
            unsafe { self.targets.deliver(self.kernels, place, rows, sums) }
        }
    }
}
