//! Products with packed and quantised weights: how the work is cut into items for the threads.

use candle_core::quantized::GgmlType;

use super::isa::Kernels;
use super::shared::SharedRows;
use super::tile::{Multiply, Right};
use crate::matrix::{ROWS_PER_PANEL, Storage};
use crate::pool::Pool;
use crate::quantised::{PlainBlock, dot_rows, quantise_input};
use crate::{Matrix, WeightFormat};

/// Columns summed before the next rows' turn: 32 KiB of a panel in f32, which stay in the first-level cache.
/// Even, so that bf16 pairs are never cut.
const COLUMNS_PER_PASS: usize = 128;

/// Input rows of one item: enough to reuse a panel's lines many times, few enough to give every thread work.
const ROWS_PER_ITEM: usize = 192;

/// From this many input rows on, bf16 lines are widened once for all rows rather than once per six. Both ways
/// compute the same bits.
pub(super) const WIDEN_FROM_ROWS: usize = 13;

/// Quantised weight rows of one item: a multiple of four, see [`dot_rows`].
const QUANTISED_ROWS_PER_ITEM: usize = 32;

/// `out [m, rows] = x [m, cols] · weightᵀ`.
pub(super) fn matmul(kernels: Kernels, pool: &Pool, x: &[f32], m: usize, weight: &Matrix, out: &mut [f32]) {
    match &weight.storage {
        Storage::Packed(_) => packed(kernels, pool, x, m, weight, out),
        Storage::Q8_0(blocks) => quantised(pool, x, m, weight, blocks, out),
        Storage::Q4K(blocks) => quantised(pool, x, m, weight, blocks, out),
        Storage::Q6K(blocks) => quantised(pool, x, m, weight, blocks, out),
    }
}

fn packed(kernels: Kernels, pool: &Pool, x: &[f32], m: usize, weight: &Matrix, out: &mut [f32]) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let (panels, parts) = (rows.div_ceil(ROWS_PER_PANEL), m.div_ceil(ROWS_PER_ITEM));
    let out = SharedRows::new(out);
    pool.run(panels * parts, 2 * m * rows * cols, |item| {
        // Neighbouring items share a panel.
        let (panel, part) = (item / parts, item % parts);
        let first = part * ROWS_PER_ITEM;
        let count = (m - first).min(ROWS_PER_ITEM);
        let mut sums = vec![0.0; count * ROWS_PER_PANEL];
        multiply_panel(kernels, &x[first * cols..(first + count) * cols], weight, panel, &mut sums);
        let column = panel * ROWS_PER_PANEL;
        let width = (rows - column).min(ROWS_PER_PANEL);
        for (row, sums) in sums.chunks_exact(ROWS_PER_PANEL).enumerate() {
            // SAFETY: items are distinct pairs of panel and part, so their columns or rows are apart; this
            // borrow ends before the item's next one.
            let target = unsafe { out.row((first + row) * rows + column, width) };
            target.copy_from_slice(&sums[..width]);
        }
    });
}

/// `sums [count, 64] = x [count, cols] · panelᵀ`, columns in order.
fn multiply_panel(kernels: Kernels, x: &[f32], weight: &Matrix, panel: usize, sums: &mut [f32]) {
    let (cols, words) = (weight.cols(), weight.panel_words(panel));
    let count = sums.len() / ROWS_PER_PANEL;
    let is_f32 = weight.format() == WeightFormat::F32;
    let widened_len = if is_f32 || count < WIDEN_FROM_ROWS { 0 } else { COLUMNS_PER_PASS * ROWS_PER_PANEL };
    let mut widened = vec![0.0; widened_len];
    for start in (0..cols).step_by(COLUMNS_PER_PASS) {
        let depth = (cols - start).min(COLUMNS_PER_PASS);
        let b = if is_f32 {
            let lines = start * ROWS_PER_PANEL..(start + depth) * ROWS_PER_PANEL;
            Right::F32 { data: bytemuck::cast_slice(&words[lines]), stride: ROWS_PER_PANEL }
        } else {
            let pairs = &words[start / 2 * ROWS_PER_PANEL..(start + depth).div_ceil(2) * ROWS_PER_PANEL];
            if widened.is_empty() {
                Right::Pairs { data: pairs, stride: ROWS_PER_PANEL }
            } else {
                kernels.widen(pairs, ROWS_PER_PANEL, &mut widened[..2 * pairs.len()]);
                Right::F32 { data: &widened, stride: ROWS_PER_PANEL }
            }
        };
        kernels.multiply(Multiply {
            rows: count,
            columns: ROWS_PER_PANEL,
            depth,
            a: &x[start..],
            a_stride: cols,
            b,
            c: sums,
            c_stride: ROWS_PER_PANEL,
            accumulate: start > 0,
        });
    }
}

/// Rounds the inputs to 8 bits as candle does, then shares out the weight's rows. The dot products are
/// candle's, which chooses its instruction set itself.
fn quantised<B: PlainBlock>(
    pool: &Pool,
    x: &[f32],
    m: usize,
    weight: &Matrix,
    blocks: &[B],
    out: &mut [f32],
) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let inputs = quantise_input::<B>(pool, x, cols);
    let (input_blocks, row_blocks) = (cols / B::VecDotType::BLCK_SIZE, cols / B::BLCK_SIZE);
    let out = SharedRows::new(out);
    pool.run(rows.div_ceil(QUANTISED_ROWS_PER_ITEM), 2 * m * rows * cols, |item| {
        let first = item * QUANTISED_ROWS_PER_ITEM;
        let count = (rows - first).min(QUANTISED_ROWS_PER_ITEM);
        let weights = &blocks[first * row_blocks..(first + count) * row_blocks];
        for i in 0..m {
            // SAFETY: items are distinct ranges of columns; this borrow ends before the item's next one.
            let target = unsafe { out.row(i * rows + first, count) };
            dot_rows(weights, &inputs[i * input_blocks..(i + 1) * input_blocks], cols, target);
        }
    });
}
