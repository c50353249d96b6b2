//! The kernels on one row: the online softmax, widening of bf16, RMS norm and SwiGLU. Generic over [`Lanes`];
//! compiled for each instruction set in `isa`.

use super::lanes::{Lanes, exp};
use crate::KEYS_PER_TILE;

/// Lanes of the widest register.
const MAX_WIDTH: usize = 16;

/// One step of the online softmax (arXiv 1805.02867): turns the scores of a tile into weights relative to the
/// row's new `peak`, adds them to `total`, and returns what earlier sums are to be multiplied by.
#[inline(always)]
pub(super) fn soften<L: Lanes>(scores: &mut [f32; KEYS_PER_TILE], peak: &mut f32, total: &mut f32) -> f32 {
    let start = scores.as_mut_ptr();
    let mut greatest = L::splat(f32::NEG_INFINITY);
    for at in (0..KEYS_PER_TILE).step_by(L::WIDTH) {
        // SAFETY: KEYS_PER_TILE is a multiple of every width, so `at + WIDTH` stays inside the scores.
        greatest = greatest.max(unsafe { L::load(start.add(at)) });
    }
    let new_peak = peak.max(greatest.greatest());
    if new_peak == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 1.0;
    }
    let mut sum = L::splat(0.0);
    for at in (0..KEYS_PER_TILE).step_by(L::WIDTH) {
        // SAFETY: as above.
        unsafe {
            let weight = exp(L::load(start.add(at)).sub(L::splat(new_peak)));
            weight.store(start.add(at));
            sum = sum.add(weight);
        }
    }
    let factor = if new_peak == *peak { 1.0 } else { (*peak - new_peak).exp() };
    *peak = new_peak;
    *total = *total * factor + sum.sum();
    factor
}

/// `x *= factor`.
#[inline(always)]
pub(super) fn scale<L: Lanes>(x: &mut [f32], factor: f32) {
    map::<L>(x, |lanes| lanes.mul(L::splat(factor)));
}

/// Widens lines of `width` words of bf16 pairs to two lines of `width` f32 values each: `out` is
/// `[2 * lines, width]`. `width` is a multiple of 8.
#[inline(always)]
pub(super) fn widen<L: Lanes>(pairs: &[u32], width: usize, out: &mut [f32]) {
    assert!(width > 0 && width.is_multiple_of(8), "lines are a multiple of 8 words");
    assert!(pairs.len().is_multiple_of(width) && out.len() == 2 * pairs.len(), "two values per word");
    for (pairs, out) in pairs.chunks_exact(width).zip(out.chunks_exact_mut(2 * width)) {
        let (from, to) = (pairs.as_ptr(), out.as_mut_ptr());
        for at in (0..width).step_by(8) {
            // SAFETY: `at + 8 <= width`; a line has `width` words, and `out` two lines of `width` values.
            unsafe {
                L::Eight::load_low(from.add(at)).store(to.add(at));
                L::Eight::load_high(from.add(at)).store(to.add(width + at));
            }
        }
    }
}

/// `out = weight * x / sqrt(mean(x²) + eps)` for one row.
#[inline(always)]
pub(super) fn rms_norm<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len();
    assert!(weight.len() == n && out.len() == n, "one weight and one output per value");
    let whole = n / L::WIDTH * L::WIDTH;
    // Four independent sums hide the latency of the additions.
    let mut sums = [L::splat(0.0); 4];
    for at in (0..whole).step_by(L::WIDTH) {
        // SAFETY: `at + WIDTH <= whole <= n`.
        let lanes = unsafe { L::load(x.as_ptr().add(at)) };
        let sum = &mut sums[at / L::WIDTH % 4];
        *sum = lanes.mul_add(lanes, *sum);
    }
    let mut squares = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
    for value in &x[whole..] {
        squares += value * value;
    }
    let scale = 1.0 / (squares / n as f32 + eps).sqrt();
    for i in 0..n {
        out[i] = weight[i] * (x[i] * scale);
    }
}

/// `gate = silu(gate) * up`.
#[inline(always)]
pub(super) fn swiglu<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up have equal lengths");
    let whole = gate.len() / L::WIDTH * L::WIDTH;
    for at in (0..whole).step_by(L::WIDTH) {
        // SAFETY: `at + WIDTH <= whole`, and both slices hold that many values.
        unsafe {
            let to = gate.as_mut_ptr().add(at);
            silu(L::load(to)).mul(L::load(up.as_ptr().add(at))).store(to);
        }
    }
    // The rest goes through the same instructions, so that no value depends on its place in the slice.
    map::<L>(&mut gate[whole..], |lanes| silu(lanes));
    for (gate, up) in gate[whole..].iter_mut().zip(&up[whole..]) {
        *gate *= up;
    }
}

#[inline(always)]
fn silu<L: Lanes>(x: L) -> L {
    x.div(L::splat(1.0).add(exp(L::splat(0.0).sub(x))))
}

/// Applies `operation` to every value, the last ones in a padded register.
#[inline(always)]
fn map<L: Lanes>(x: &mut [f32], operation: impl Fn(L) -> L) {
    let whole = x.len() / L::WIDTH * L::WIDTH;
    for at in (0..whole).step_by(L::WIDTH) {
        // SAFETY: `at + WIDTH <= whole <= x.len()`.
        unsafe {
            let to = x.as_mut_ptr().add(at);
            operation(L::load(to)).store(to);
        }
    }
    let rest = &mut x[whole..];
    let mut padded = [0.0; MAX_WIDTH];
    padded[..rest.len()].copy_from_slice(rest);
    // SAFETY: no register is wider than MAX_WIDTH values.
    unsafe { operation(L::load(padded.as_ptr())).store(padded.as_mut_ptr()) }
    rest.copy_from_slice(&padded[..rest.len()]);
}

#[cfg(test)]
mod tests {
    use super::super::isa::{Isa, Kernels};
    use super::*;

    #[test]
    fn softmax_weights_are_accurate_over_the_whole_range() {
        for isa in Isa::available() {
            let kernels = Kernels::new(isa).unwrap();
            for offset in [0.0, -9000.0, 9000.0] {
                // 0, -1.375, … -86.625: exact beside every offset.
                let scores: [f32; KEYS_PER_TILE] = std::array::from_fn(|i| offset - i as f32 * 1.375);
                let (mut weights, mut peak, mut total) = (scores, f32::NEG_INFINITY, 0.0);
                assert_eq!(kernels.soften(&mut weights, &mut peak, &mut total), 0.0);
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
            let kernels = Kernels::new(isa).unwrap();
            let (mut scores, mut peak, mut total) =
                ([f32::NEG_INFINITY; KEYS_PER_TILE], f32::NEG_INFINITY, 0.0);
            assert_eq!(kernels.soften(&mut scores, &mut peak, &mut total), 1.0, "nothing changes");
            assert_eq!((scores, peak, total), ([0.0; KEYS_PER_TILE], f32::NEG_INFINITY, 0.0));
            scores = [f32::NEG_INFINITY; KEYS_PER_TILE];
            scores[5] = 3.0;
            kernels.soften(&mut scores, &mut peak, &mut total);
            assert_eq!((scores.iter().sum::<f32>(), scores[5], peak, total), (1.0, 1.0, 3.0, 1.0));
        }
    }
}
