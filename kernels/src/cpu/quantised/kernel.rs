//! The two kernels on quantised panels: widening some columns, for `strips` to multiply with, and the product with few
//! rows straight from the packed words. Both widen to the same numbers and sum over the columns in the same order
//! with the same operation as `strips` does, so that it does not matter which of them runs.
#![expect(
    clippy::needless_range_loop,
    reason = "indices over registers, unrolled by the compiler, read as the mathematics"
)]

use std::ops::Range;

use super::fields::Quants;
use super::formats::{Format, Q4K, Q6K, Q8_0, Visit};
use crate::WeightFormat;
use crate::cpu::shared::Block;
use crate::matrix::ROWS_PER_PANEL;

/// The most input rows of a [`FewRows`].
pub(in crate::cpu) const MOST_FEW_ROWS: usize = 4;

/// What columns of an [`Unpack`] are a multiple of.
pub(in crate::cpu) const COLUMNS_UNIT: usize = 32;

/// Widens `columns` of a panel of a quantised format to lines of 64 values each.
pub(in crate::cpu) struct Unpack<'a> {
    pub(in crate::cpu) format: WeightFormat,
    /// The regions of the whole panel.
    pub(in crate::cpu) panel: &'a [u8],
    /// From and to multiples of [`COLUMNS_UNIT`].
    pub(in crate::cpu) columns: Range<usize>,
    pub(in crate::cpu) lines: Lines<'a>,
}

/// Where to, and in what number format.
pub(in crate::cpu) enum Lines<'a> {
    /// `[columns][64]`
    F32(&'a mut [f32]),
    /// `[columns / 2][64]` words of pairs, rounded to bf16.
    Pairs(&'a mut [u32]),
}

/// `c [rows, 64] = x · panelᵀ` for at most [`MOST_FEW_ROWS`] rows.
pub(in crate::cpu) struct FewRows<'a> {
    pub(in crate::cpu) format: WeightFormat,
    /// The regions of the whole panel.
    pub(in crate::cpu) panel: &'a [u8],
    /// `[rows, cols]`
    pub(in crate::cpu) x: &'a [f32],
    pub(in crate::cpu) cols: usize,
    pub(in crate::cpu) c: Block<'a>,
}

/// Runs `job` in registers of `L`.
#[inline(always)]
pub(in crate::cpu) fn unpack<L: Quants>(job: Unpack<'_>) {
    match job.format {
        WeightFormat::Q8_0 => unpack_format::<L, Q8_0>(job),
        WeightFormat::Q4K => unpack_format::<L, Q4K>(job),
        WeightFormat::Q6K => unpack_format::<L, Q6K>(job),
        WeightFormat::F32 | WeightFormat::Bf16 => unreachable!("{} is not quantised", job.format),
    }
}

/// Whether there is a [`few_rows`] in registers of `L`. Where activations are rounded, and where registers are only
/// what the compiler makes of plain Rust, [`unpack`] serves all numbers of rows.
pub(in crate::cpu) const fn has_few_rows<L: Quants>() -> bool {
    L::FUSED && !L::DOTS
}

/// Runs `job` in registers of `L`, `PANEL` of them side by side.
#[inline(always)]
pub(in crate::cpu) fn few_rows<L: Quants, const PANEL: usize>(job: FewRows<'_>) {
    if !has_few_rows::<L>() {
        unreachable!("few rows go the way of all");
    }
    match job.format {
        WeightFormat::Q8_0 => few_rows_format::<L, Q8_0, PANEL>(job),
        WeightFormat::Q4K => few_rows_format::<L, Q4K, PANEL>(job),
        WeightFormat::Q6K => few_rows_format::<L, Q6K, PANEL>(job),
        WeightFormat::F32 | WeightFormat::Bf16 => unreachable!("{} is not quantised", job.format),
    }
}

#[inline(always)]
fn unpack_format<L: Quants, F: Format>(job: Unpack<'_>) {
    let Unpack { panel, columns, lines, .. } = job;
    let (first, count) = (columns.start, columns.len());
    assert!(first.is_multiple_of(COLUMNS_UNIT) && count.is_multiple_of(COLUMNS_UNIT), "whole runs");
    assert!(columns.end.div_ceil(F::COLUMNS) * F::BYTES <= panel.len(), "columns of the panel");
    let (to, values, per_line) = match lines {
        Lines::F32(_) if L::DOTS => unreachable!("inputs are rounded here"),
        Lines::Pairs(_) if !L::DOTS => unreachable!("inputs are not rounded here"),
        Lines::F32(lines) => (lines.as_mut_ptr(), lines.len(), 1),
        Lines::Pairs(words) => (words.as_mut_ptr().cast::<f32>(), words.len(), 2),
    };
    assert_eq!(values, count / per_line * ROWS_PER_PANEL, "a line per column, or per two");
    for first in columns.clone().step_by(F::RUN) {
        let (region, within) = (first / F::COLUMNS, first % F::COLUMNS);
        let line = (first - columns.start) / per_line;
        for row in (0..ROWS_PER_PANEL).step_by(L::WIDTH) {
            // SAFETY: the regions of all columns are there, and so are the lines, by the assertions.
            unsafe {
                let region = panel.as_ptr().add(region * F::BYTES);
                let to = to.add(line * ROWS_PER_PANEL + row);
                let factors = F::factors::<L>(region, within / F::RUN, row);
                let mut to = Store { to, first: within, earlier: L::splat(0.0) };
                for group in within / F::GROUP..(within + F::RUN) / F::GROUP {
                    F::group::<L>(region, group, row, &factors, &mut to);
                }
            }
        }
    }
}

/// Writes weights to lines, or in registers that round inputs words of pairs.
struct Store<L> {
    /// Where those of column `first` go.
    to: *mut f32,
    first: usize,
    earlier: L,
}

impl<L: Quants> Visit<L> for Store<L> {
    #[inline(always)]
    unsafe fn visit(&mut self, column: usize, weights: L) {
        // SAFETY: whoever made this vouches for the lines of all columns that it is shown.
        unsafe {
            if !L::DOTS {
                weights.store(self.to.add((column - self.first) * ROWS_PER_PANEL));
            } else if column.is_multiple_of(2) {
                self.earlier = weights;
            } else {
                let to = self.to.add((column - self.first) / 2 * ROWS_PER_PANEL);
                L::rounded_pairs(self.earlier, weights).store(to);
            }
        }
    }
}

#[inline(always)]
fn few_rows_format<L: Quants, F: Format, const PANEL: usize>(job: FewRows<'_>) {
    let FewRows { panel, x, cols, c, .. } = job;
    assert!(cols.is_multiple_of(F::COLUMNS), "whole regions");
    assert_eq!(panel.len(), cols / F::COLUMNS * F::BYTES, "a region for each");
    assert!(c.columns() == ROWS_PER_PANEL && x.len() >= c.rows() * cols, "c is [rows, 64], x [rows, cols]");
    // SAFETY: shapes were asserted.
    unsafe {
        match c.rows() {
            1 => rows::<L, F, PANEL, 1>(panel.as_ptr(), x.as_ptr(), cols, &c),
            2 => rows::<L, F, PANEL, 2>(panel.as_ptr(), x.as_ptr(), cols, &c),
            3 => rows::<L, F, PANEL, 3>(panel.as_ptr(), x.as_ptr(), cols, &c),
            4 => rows::<L, F, PANEL, 4>(panel.as_ptr(), x.as_ptr(), cols, &c),
            more => panic!("{more} rows are not few"),
        }
    }
}

/// # Safety
/// `panel` holds the regions of `cols` columns, `x` `[ROWS, cols]`, and `c` is `[ROWS, 64]`.
#[inline(always)]
unsafe fn rows<L: Quants, F: Format, const PANEL: usize, const ROWS: usize>(
    panel: *const u8,
    x: *const f32,
    cols: usize,
    c: &Block<'_>,
) {
    for first in (0..cols).step_by(F::COLUMNS) {
        // SAFETY: the caller's promise.
        let (region, x) = unsafe { (panel.add(first / F::COLUMNS * F::BYTES), x.add(first)) };
        for row in (0..ROWS_PER_PANEL).step_by(PANEL * L::WIDTH) {
            let mut sums = [[L::splat(0.0); PANEL]; ROWS];
            // SAFETY: the caller's promise; runs, groups and columns stay inside the region.
            unsafe {
                if first > 0 {
                    for r in 0..ROWS {
                        for v in 0..PANEL {
                            sums[r][v] = L::load(c.at(r, row + v * L::WIDTH));
                        }
                    }
                }
                for run in 0..F::COLUMNS / F::RUN {
                    let mut factors = [F::factors::<L>(region, run, row); PANEL];
                    for v in 1..PANEL {
                        factors[v] = F::factors::<L>(region, run, row + v * L::WIDTH);
                    }
                    for group in run * F::RUN / F::GROUP..(run + 1) * F::RUN / F::GROUP {
                        for v in 0..PANEL {
                            let mut to = Sum { x, cols, sums: &mut sums, v };
                            F::group::<L>(region, group, row + v * L::WIDTH, &factors[v], &mut to);
                        }
                    }
                }
                for r in 0..ROWS {
                    for v in 0..PANEL {
                        sums[r][v].store(c.at(r, row + v * L::WIDTH));
                    }
                }
            }
        }
    }
}

/// Multiplies the weights of register `v` with each row's input, and adds to its sums.
struct Sum<'a, L, const PANEL: usize, const ROWS: usize> {
    /// Inputs of the region's columns; rows are `cols` apart.
    x: *const f32,
    cols: usize,
    sums: &'a mut [[L; PANEL]; ROWS],
    v: usize,
}

impl<L: Quants, const PANEL: usize, const ROWS: usize> Visit<L> for Sum<'_, L, PANEL, ROWS> {
    #[inline(always)]
    unsafe fn visit(&mut self, column: usize, weights: L) {
        for r in 0..ROWS {
            // SAFETY: whoever made this vouches for the inputs of all columns that it is shown.
            let factor = L::splat(unsafe { *self.x.add(r * self.cols + column) });
            self.sums[r][self.v] = factor.mul_add(weights, self.sums[r][self.v]);
        }
    }
}
