//! The attention of a few rows over one tile of keys: scores, online softmax, weighted values. Generic over
//! [`Lanes`]; compiled for each instruction set in `isa`. Which tiles and rows, and in what order, is decided in
//! `attention`; the products are in `strip`, those on AMX tiles in `amx_attention`.

use super::lanes::Lanes;
use super::shared::Block;
use super::strip::{
    Asking, Bytes, Floats, LINES_PER_TURN, Meeting, Pairs, Product, STRIP_ROWS, Start, Widened,
};
use crate::KEYS_PER_TILE;

/// Lanes of the widest register.
pub(super) const MAX_WIDTH: usize = 16;

/// Registers that hold a row of scores, where they are narrowest.
const MOST_REGISTERS: usize = KEYS_PER_TILE / 8;

/// What hidden scores are taken for: weighs exactly nothing beside any score, and is finite, so that no difference is
/// NaN.
pub(super) const HIDDEN: f32 = -1e30;

/// How far scores may lie above a row's peak before the peak follows them: their weights are then at most `e^8`, which
/// costs no precision, and sums need hardly ever be scaled (FlashAttention-4 does the same).
const SLACK: f32 = 8.0;

/// Query rows and one tile of keys and values, in the number formats in which they meet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operands<'a> {
    /// All in f32: queries `[rows, width]`, keys `[width, 64]`, values `[64, width]`.
    F32 { q: &'a [f32], k: &'a [f32], v: &'a [f32] },
    /// Keys and values in pairs, widened in registers.
    Widened { q: &'a [f32], k: &'a [u32], v: &'a [u32] },
    /// Keys and values in whole numbers of 8 bits, widened in registers; they come with scales.
    Bytes { q: &'a [f32], k: &'a [i8], v: &'a [i8] },
    /// Queries in pairs too, and the weights rounded to them.
    Pairs { q: &'a [u32], k: &'a [u32], v: &'a [u32] },
}

/// What the numbers of each key and of each value of a tile are to be multiplied by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales<'a> {
    pub(super) k: &'a [f32; KEYS_PER_TILE],
    pub(super) v: &'a [f32; KEYS_PER_TILE],
}

/// One tile for some rows. Rows see ever more keys. Buffers of rows may be longer than the rows are many; on AMX they
/// hold a multiple of 16.
pub(super) struct AttendTile<'a> {
    pub(super) operands: Operands<'a>,
    pub(super) scales: Option<Scales<'a>>,
    /// Values per head as stored.
    pub(super) width: usize,
    /// Keys of this tile that each row sees, at most 64, in ascending order.
    pub(super) seen: &'a [usize],
    /// Sums of weighted values, `[rows, width]`.
    pub(super) out: &'a mut [f32],
    /// What each row's weights are relative to: about its greatest score so far. `-inf` before the first tile, when
    /// `out` and `total` are 0.
    pub(super) peak: &'a mut [f32],
    /// Sums of weights of each row so far, relative to its peak, spread over lanes.
    pub(super) total: &'a mut [[f32; MAX_WIDTH]],
    /// Scratch `[rows, 64]`.
    pub(super) scores: &'a mut [f32],
    /// Scratch `[rows]`.
    pub(super) factors: &'a mut [f32],
    /// What to ask the memory for meanwhile: an address that may lie anywhere, and bytes.
    pub(super) ahead: (*const u8, usize),
}

impl AttendTile<'_> {
    /// Whether `L`, which has an instruction for pairs, is better at it than the same registers without.
    pub(super) fn is_for<L: Lanes>(&self) -> bool {
        L::DOTS && matches!(self.operands, Operands::Pairs { .. }) && (!L::TILES || self.suits_tiles())
    }

    #[cfg(target_arch = "x86_64")]
    fn suits_tiles(&self) -> bool {
        self.width.is_multiple_of(super::amx_attention::WIDTHS)
    }
    #[cfg(not(target_arch = "x86_64"))]
    fn suits_tiles(&self) -> bool {
        false
    }
}

/// Adds the tile to every row that sees some of it.
#[inline(always)]
pub(super) fn attend<L: Lanes, const PANEL: usize>(job: AttendTile<'_>) {
    match job.operands {
        Operands::F32 { q, k, v } if !L::DOTS => attend_vectors::<L, Floats, PANEL>(job, q, k, v),
        Operands::Widened { q, k, v } if !L::DOTS => attend_vectors::<L, Widened, PANEL>(job, q, k, v),
        Operands::Bytes { q, k, v } if !L::DOTS => attend_vectors::<L, Bytes, PANEL>(job, q, k, v),
        #[cfg(target_arch = "x86_64")]
        Operands::Pairs { q, k, v } if L::TILES => super::amx_attention::attend::<L>(job, q, k, v),
        Operands::Pairs { q, k, v } if L::DOTS && !L::TILES => {
            attend_vectors::<L, Pairs, PANEL>(job, q, k, v)
        }
        _ => unreachable!("another table's"),
    }
}

/// The left factor of the second product: the weights, which `soften` leaves in the place of the scores.
trait Weighing: Meeting {
    const PAIRS: bool;
    fn weights(scores: &[f32]) -> &[Self::Left];
}

macro_rules! weighing {
    ($meeting:ty, $pairs:literal) => {
        impl Weighing for $meeting {
            const PAIRS: bool = $pairs;
            #[inline(always)]
            fn weights(scores: &[f32]) -> &[Self::Left] {
                bytemuck::cast_slice(scores)
            }
        }
    };
}
weighing!(Floats, false);
weighing!(Widened, false);
weighing!(Bytes, false);
weighing!(Pairs, true);

#[inline(always)]
fn attend_vectors<L: Lanes, M: Weighing, const PANEL: usize>(
    job: AttendTile<'_>,
    q: &[M::Left],
    k: &[M::Right],
    v: &[M::Right],
) {
    let AttendTile { scales, width, seen, out, peak, total, scores, factors, ahead, .. } = job;
    let rows = seen.len();
    let first = seen.partition_point(|seen| *seen == 0);
    if first >= rows {
        return;
    }
    let stride = width * M::LEFTS / M::DEPTHS;
    let panels = 1 + width.div_ceil(PANEL * L::WIDTH);
    let lines = (rows - first).div_ceil(STRIP_ROWS) * panels * KEYS_PER_TILE.min(width) / M::DEPTHS;
    // What comes with scales is not met as it lies in memory, where a processor would see what is read.
    let every = if scales.is_some() { 1 } else { M::ASKED_OF };
    let mut asking = Asking::new(ahead.0, ahead.1, lines / LINES_PER_TURN, every);
    let product = Product::<M> {
        depth: width,
        a: &q[first * stride..],
        a_stride: stride,
        b: k,
        b_stride: KEYS_PER_TILE,
        c: Block::new(&mut scores[first * KEYS_PER_TILE..], rows - first, KEYS_PER_TILE, KEYS_PER_TILE),
        start: Start::Zero,
    };
    product.run::<L, PANEL>(&mut asking);
    let mut rescale = false;
    let lines = scores.as_chunks_mut::<KEYS_PER_TILE>().0;
    for row in first..rows {
        let state = (&mut peak[row], &mut total[row]);
        let factor = match scales {
            None if M::PAIRS => soften_pairs::<L, false>(&mut lines[row], None, seen[row], state),
            Some(_) if M::PAIRS => soften_pairs::<L, true>(&mut lines[row], scales, seen[row], state),
            None => soften::<L, false>(&mut lines[row], None, seen[row], state),
            Some(_) => soften::<L, true>(&mut lines[row], scales, seen[row], state),
        };
        factors[row] = factor;
        rescale |= factor != 1.0;
    }
    // Keys past what a strip's last row sees weigh nothing and may hold anything: they are left out.
    let step = if seen[first] == KEYS_PER_TILE { rows } else { STRIP_ROWS };
    for strip in (first..rows).step_by(step) {
        let end = (strip + step).min(rows);
        let product = Product::<M> {
            depth: seen[end - 1],
            a: M::weights(&scores[strip * KEYS_PER_TILE..end * KEYS_PER_TILE]),
            a_stride: KEYS_PER_TILE,
            b: v,
            b_stride: width,
            c: Block::new(&mut out[strip * width..], end - strip, width, width),
            start: if rescale { Start::Scaled(&factors[strip..end]) } else { Start::Sum },
        };
        product.run::<L, PANEL>(&mut asking);
    }
}

/// A row's peak and total.
type State<'a> = (&'a mut f32, &'a mut [f32; MAX_WIDTH]);

/// One step of the online softmax (arXiv 1805.02867): turns the first `seen` scores of a tile into weights relative
/// to the row's new peak, the others into 0, adds them to the total, and returns what earlier sums are to be
/// multiplied by. With `SCALED` scores are multiplied by the keys' scales before, weights by the values' after.
#[inline(always)]
fn soften<L: Lanes, const SCALED: bool>(
    scores: &mut [f32; KEYS_PER_TILE],
    scales: Option<Scales<'_>>,
    seen: usize,
    state: State<'_>,
) -> f32 {
    let count = KEYS_PER_TILE / L::WIDTH;
    let Some((mut lanes, factor, [peak, _], total)) = looked_at::<L, SCALED>(scores, scales, seen, state)
    else {
        return 1.0;
    };
    // SAFETY: a register is at most MAX_WIDTH lanes, and KEYS_PER_TILE a multiple of every width.
    unsafe {
        let mut sum = L::load(total.as_ptr()).mul(L::splat(factor));
        let (peak, log2_e) = (L::splat(peak), L::splat(std::f32::consts::LOG2_E));
        for (v, lanes) in lanes.iter_mut().enumerate().take(count) {
            let mut weight = lanes.sub(peak).mul(log2_e).exp2();
            sum = sum.add(weight);
            if let (true, Some(scales)) = (SCALED, scales) {
                weight = weight.mul(L::load(scales.v.as_ptr().add(v * L::WIDTH)));
            }
            weight.store(scores.as_mut_ptr().add(v * L::WIDTH));
        }
        sum.store(total.as_mut_ptr());
    }
    factor
}

/// As [`soften`], with weights to a precision that suits bf16; they are left so, in the first half of the row.
#[inline(always)]
pub(super) fn soften_pairs<L: Lanes, const SCALED: bool>(
    scores: &mut [f32; KEYS_PER_TILE],
    scales: Option<Scales<'_>>,
    seen: usize,
    state: State<'_>,
) -> f32 {
    let count = KEYS_PER_TILE / L::WIDTH;
    let Some((mut lanes, factor, [_, peak2], total)) = looked_at::<L, SCALED>(scores, scales, seen, state)
    else {
        return 1.0;
    };
    // SAFETY: as in `soften`; the bf16 of two registers take the words of one.
    unsafe {
        let mut sum = L::load(total.as_ptr()).mul(L::splat(factor));
        let (less, log2_e) = (L::splat(-peak2), L::splat(std::f32::consts::LOG2_E));
        for (v, lanes) in lanes.iter_mut().enumerate().take(count) {
            *lanes = lanes.mul_add(log2_e, less).exp2_roughly();
            sum = sum.add(*lanes);
            if let (true, Some(scales)) = (SCALED, scales) {
                *lanes = lanes.mul(L::load(scales.v.as_ptr().add(v * L::WIDTH)));
            }
        }
        sum.store(total.as_mut_ptr());
        for v in (0..count).step_by(2) {
            L::store_bf16(lanes[v], lanes[v + 1], scores.as_mut_ptr().add(v / 2 * L::WIDTH).cast());
        }
    }
    factor
}

/// The scores in registers, the factor, the new peak (also in units of `ln 2`), and the total.
type Looked<'a, L> = ([L; MOST_REGISTERS], f32, [f32; 2], &'a mut [f32; MAX_WIDTH]);

/// The first half of [`soften`]: scales and hides scores, and finds the new peak. `None` where nothing is seen: then
/// all weights are 0 already.
#[inline(always)]
fn looked_at<'a, L: Lanes, const SCALED: bool>(
    scores: &mut [f32; KEYS_PER_TILE],
    scales: Option<Scales<'_>>,
    seen: usize,
    (peak, total): State<'a>,
) -> Option<Looked<'a, L>> {
    if seen < KEYS_PER_TILE {
        if seen == 0 {
            scores.fill(0.0);
            return None;
        }
        scores[seen..].fill(0.0);
    }
    let (start, count) = (scores.as_mut_ptr(), KEYS_PER_TILE / L::WIDTH);
    let mut lanes = [L::splat(0.0); MOST_REGISTERS];
    // SAFETY: KEYS_PER_TILE is a multiple of every width, so all registers lie inside the scores and scales.
    unsafe {
        for (v, lanes) in lanes.iter_mut().enumerate().take(count) {
            *lanes = L::load(start.add(v * L::WIDTH));
            if let (true, Some(scales)) = (SCALED, scales) {
                *lanes = lanes.mul(L::load(scales.k.as_ptr().add(v * L::WIDTH)));
            }
        }
        if seen < KEYS_PER_TILE {
            for (v, lanes) in lanes.iter().enumerate().take(count) {
                lanes.store(start.add(v * L::WIDTH));
            }
            scores[seen..].fill(HIDDEN);
            for (v, lanes) in lanes.iter_mut().enumerate().take(count) {
                *lanes = L::load(scores.as_ptr().add(v * L::WIDTH));
            }
        }
    }
    let mut greatest = lanes[0];
    for lanes in &lanes[1..count] {
        greatest = greatest.max(*lanes);
    }
    let mut factor = 1.0;
    let mut peak2 = *peak * std::f32::consts::LOG2_E;
    if greatest.any_above(L::splat(*peak + SLACK)) {
        let before = peak2;
        *peak = greatest.greatest();
        peak2 = *peak * std::f32::consts::LOG2_E;
        // Before the first tile there are no sums to scale.
        factor = if before == f32::NEG_INFINITY { 1.0 } else { (before - peak2).exp2() };
    }
    Some((lanes, factor, [*peak, peak2], total))
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
            scales: None,
            width: 64,
            seen: &[seen],
            out: &mut out,
            peak: &mut peak,
            total: &mut total,
            scores: &mut [0.0; 64],
            factors: &mut [0.0],
            ahead: (std::ptr::null(), 0),
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
                    // The exponent is rounded, so that small weights are off by more units of theirs.
                    let error = (f64::from(weight) - wanted).abs() / wanted;
                    let bound = 2.5e-7 * (1.0 + f64::from(offset - score) / 4.0);
                    assert!(error < bound, "{isa}: {weight} at {score}, relative error {error}");
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
