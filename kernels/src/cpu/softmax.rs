//! The attention of a few rows over one tile of keys: scores, online softmax, weighted values. Generic over
//! [`Lanes`]; compiled for each instruction set in `isa`. Which tiles and rows, and in what order, is decided in
//! `attention`.

use super::lanes::Lanes;
use super::shared::Block;
use super::tile::{Factors, MICRO_ROWS, Multiply, Start, multiply};
use crate::KEYS_PER_TILE;

/// Lanes of the widest register.
pub(super) const MAX_WIDTH: usize = 16;

/// Registers that hold a row of scores, where they are narrowest.
const MOST_REGISTERS: usize = KEYS_PER_TILE / 8;

/// Query rows and one tile of keys and values, in the number formats in which they meet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operands<'a> {
    /// All in f32: queries `[rows, width]`, keys `[width, 64]`, values `[64, width]`.
    F32 { q: &'a [f32], k: &'a [f32], v: &'a [f32] },
    /// Keys and values in pairs, widened in registers.
    Widened { q: &'a [f32], k: &'a [u32], v: &'a [u32] },
    /// Queries in pairs too, and the weights rounded to them.
    Pairs { q: &'a [u32], k: &'a [u32], v: &'a [u32] },
}

/// One tile for some rows. Rows see ever more keys.
pub(super) struct AttendTile<'a> {
    pub(super) operands: Operands<'a>,
    /// Values per head as stored.
    pub(super) width: usize,
    /// Keys of this tile that each row sees, at most 64, in ascending order.
    pub(super) seen: &'a [usize],
    /// Sums of weighted values, `[rows, width]`.
    pub(super) out: &'a mut [f32],
    /// The greatest score of each row so far.
    pub(super) peak: &'a mut [f32],
    /// Sums of weights of each row so far, relative to its peak, spread over lanes.
    pub(super) total: &'a mut [[f32; MAX_WIDTH]],
    /// Scratch `[rows, 64]`.
    pub(super) scores: &'a mut [f32],
    /// Scratch `[rows]`.
    pub(super) factors: &'a mut [f32],
}

/// Adds the tile to every row that sees some of it, and returns the first of those.
#[inline(always)]
pub(super) fn attend<L: Lanes, const PANEL: usize>(job: AttendTile<'_>) {
    let AttendTile { operands, width, seen, out, peak, total, scores, factors } = job;
    let rows = seen.len();
    // Whole strips, so that those of both products are the same.
    let first = seen.partition_point(|seen| *seen == 0) / MICRO_ROWS * MICRO_ROWS;
    if first >= rows {
        return;
    }
    let (queries, q_stride) = match operands {
        Operands::F32 { q, k, .. } => (Factors::F32 { a: &q[first * width..], b: k }, width),
        Operands::Widened { q, k, .. } => (Factors::Widened { a: &q[first * width..], b: k }, width),
        Operands::Pairs { q, k, .. } => (Factors::Pairs { a: &q[first * width / 2..], b: k }, width / 2),
    };
    multiply::<L, PANEL>(Multiply {
        depth: width,
        factors: queries,
        a_stride: q_stride,
        b_stride: KEYS_PER_TILE,
        c: Block::new(&mut scores[first * KEYS_PER_TILE..], rows - first, KEYS_PER_TILE, KEYS_PER_TILE),
        start: Start::Zero,
    });
    let pairs = matches!(operands, Operands::Pairs { .. });
    let mut rescale = false;
    let lines = scores.as_chunks_mut::<KEYS_PER_TILE>().0;
    for row in first..rows {
        let factor = if pairs {
            soften::<L, true>(&mut lines[row], seen[row], &mut peak[row], &mut total[row])
        } else {
            soften::<L, false>(&mut lines[row], seen[row], &mut peak[row], &mut total[row])
        };
        factors[row] = factor;
        rescale |= factor != 1.0;
    }
    // Keys past what a strip's last row sees weigh nothing and may hold anything: they are left out.
    let all_see_all = seen[first] == KEYS_PER_TILE;
    let step = if all_see_all { rows } else { MICRO_ROWS };
    for strip in (first..rows).step_by(step) {
        let end = (strip + step).min(rows);
        let weights = &scores[strip * KEYS_PER_TILE..end * KEYS_PER_TILE];
        let values = match operands {
            Operands::F32 { v, .. } => Factors::F32 { a: weights, b: v },
            Operands::Widened { v, .. } => Factors::Widened { a: weights, b: v },
            Operands::Pairs { v, .. } => Factors::Pairs { a: bytemuck::cast_slice(weights), b: v },
        };
        multiply::<L, PANEL>(Multiply {
            depth: seen[end - 1],
            factors: values,
            a_stride: KEYS_PER_TILE,
            b_stride: width,
            c: Block::new(&mut out[strip * width..], end - strip, width, width),
            start: if rescale { Start::Scaled(&factors[strip..end]) } else { Start::Sum },
        });
    }
}

/// One step of the online softmax (arXiv 1805.02867): turns the first `seen` scores of a tile into weights relative
/// to the row's new `peak`, the others into 0, adds them to `total`, and returns what earlier sums are to be
/// multiplied by. With `PAIRS` the weights are left as bf16, in the first half of the row.
#[inline(always)]
fn soften<L: Lanes, const PAIRS: bool>(
    scores: &mut [f32; KEYS_PER_TILE],
    seen: usize,
    peak: &mut f32,
    total: &mut [f32; MAX_WIDTH],
) -> f32 {
    if seen < KEYS_PER_TILE {
        scores[seen..].fill(f32::NEG_INFINITY);
    }
    let (start, count) = (scores.as_mut_ptr(), KEYS_PER_TILE / L::WIDTH);
    let mut lanes = [L::splat(0.0); MOST_REGISTERS];
    let mut greatest = L::splat(f32::NEG_INFINITY);
    for (v, lanes) in lanes.iter_mut().enumerate().take(count) {
        // SAFETY: KEYS_PER_TILE is a multiple of every width, so all registers lie inside the scores.
        *lanes = unsafe { L::load(start.add(v * L::WIDTH)) };
        greatest = greatest.max(*lanes);
    }
    let mut factor = 1.0;
    if greatest.any_above(L::splat(*peak)) {
        let new_peak = greatest.greatest();
        factor = (*peak - new_peak).exp();
        *peak = new_peak;
    } else if *peak == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 1.0;
    }
    // SAFETY: a register is at most MAX_WIDTH lanes.
    let mut sum = unsafe { L::load(total.as_ptr()) }.mul(L::splat(factor));
    for lanes in lanes.iter_mut().take(count) {
        let distance = lanes.sub(L::splat(*peak));
        *lanes = if PAIRS { distance.exp_roughly() } else { distance.exp() };
        sum = sum.add(*lanes);
    }
    // SAFETY: as above; the bf16 of two registers take the words of one.
    unsafe {
        sum.store(total.as_mut_ptr());
        for v in 0..count {
            if !PAIRS {
                lanes[v].store(start.add(v * L::WIDTH));
            } else if v % 2 == 0 {
                L::store_bf16(lanes[v], lanes[v + 1], start.add(v / 2 * L::WIDTH).cast());
            }
        }
    }
    factor
}

#[cfg(test)]
mod tests {
    use super::super::isa::{Isa, Kernels};
    use super::*;

    /// What one row's softmax state becomes: its weights, by way of values that are the identity, and its peak,
    /// total and factor.
    fn softened(
        isa: Isa,
        scores: &[f32; KEYS_PER_TILE],
        seen: usize,
        peak: f32,
    ) -> ([f32; KEYS_PER_TILE], f32, f32) {
        let (mut q, mut k, mut v) = ([0.0; 64], vec![0.0; 64 * 64], vec![0.0; 64 * 64]);
        q[0] = 1.0;
        k[..64].copy_from_slice(scores);
        (0..64).for_each(|key| v[key * 65] = 1.0);
        let (mut out, mut peak, mut total) = ([0.0; 64], [peak], [[0.0; MAX_WIDTH]]);
        Kernels::new(isa).unwrap().attend(AttendTile {
            operands: Operands::F32 { q: &q, k: &k, v: &v },
            width: 64,
            seen: &[seen],
            out: &mut out,
            peak: &mut peak,
            total: &mut total,
            scores: &mut [0.0; 64],
            factors: &mut [0.0],
        });
        (out, peak[0], total[0].iter().sum())
    }

    #[test]
    fn softmax_weights_are_accurate_over_the_whole_range() {
        for isa in Isa::available() {
            for offset in [0.0, -9000.0, 9000.0] {
                // 0, -1.375, … -86.625: exact beside every offset.
                let scores: [f32; KEYS_PER_TILE] = std::array::from_fn(|i| offset - i as f32 * 1.375);
                let (weights, peak, _) = softened(isa, &scores, KEYS_PER_TILE, f32::NEG_INFINITY);
                assert_eq!(peak, offset);
                for (score, weight) in scores.iter().zip(weights) {
                    let wanted = (f64::from(*score) - f64::from(offset)).exp();
                    let error = (f64::from(weight) - wanted).abs() / wanted;
                    assert!(error < 2.5e-7, "{isa}: {weight} at {score}, relative error {error}");
                }
            }
        }
    }

    #[test]
    fn hidden_scores_weigh_exactly_nothing() {
        for isa in Isa::available() {
            let scores = [7.0; KEYS_PER_TILE];
            let nothing = softened(isa, &scores, 0, f32::NEG_INFINITY);
            assert_eq!(nothing, ([0.0; KEYS_PER_TILE], f32::NEG_INFINITY, 0.0), "nothing changes");
            let (weights, peak, total) = softened(isa, &scores, 1, f32::NEG_INFINITY);
            assert_eq!((weights[0], weights.iter().sum::<f32>(), peak, total), (1.0, 1.0, 7.0, 1.0));
            let (weights, peak, total) = softened(isa, &scores, 1, 1000.0);
            assert_eq!((weights, peak, total), ([0.0; KEYS_PER_TILE], 1000.0, 0.0), "far below the peak");
        }
    }
}
