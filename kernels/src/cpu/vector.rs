//! The kernels on one row: widening of bf16 and rounding to it, RMS norm and SwiGLU. Generic over [`Lanes`];
//! compiled for each instruction set in `isa`.

use super::lanes::Lanes;
use super::softmax::MAX_WIDTH;

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
                let words = L::Eight::load(from.add(at).cast());
                words.low_halves().store(to.add(at));
                words.high_halves().store(to.add(width + at));
            }
        }
    }
}

/// Widens whole numbers of 8 bits.
#[inline(always)]
pub(super) fn widen_bytes<L: Lanes>(bytes: &[i8], out: &mut [f32]) {
    assert!(bytes.len() == out.len() && bytes.len().is_multiple_of(L::WIDTH), "whole registers");
    for at in (0..bytes.len()).step_by(L::WIDTH) {
        // SAFETY: `at + WIDTH <= len`, of both.
        unsafe { L::load_bytes(bytes.as_ptr().add(at)).store(out.as_mut_ptr().add(at)) }
    }
}

/// Widens lines of `width` whole numbers of 8 bits to bf16, which holds them exactly, and pairs those of two
/// neighbouring lines: the earlier line is in the low halves. `width` is a multiple of 8.
#[inline(always)]
pub(super) fn pair_bytes<L: Lanes>(bytes: &[i8], width: usize, out: &mut [u32]) {
    assert!(width > 0 && width.is_multiple_of(8), "lines are a multiple of 8 numbers");
    assert!(bytes.len().is_multiple_of(2 * width) && bytes.len() == 2 * out.len(), "two numbers per word");
    for (lines, out) in bytes.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (from, to) = (lines.as_ptr(), out.as_mut_ptr().cast::<f32>());
        let mut at = 0;
        // SAFETY: `at + WIDTH <= width`; there are two lines of `width` bytes, and `width` words in `out`.
        unsafe {
            while at + L::WIDTH <= width {
                L::pair(L::load_bytes(from.add(at)), L::load_bytes(from.add(width + at))).store(to.add(at));
                at += L::WIDTH;
            }
            while at < width {
                let (low, high) =
                    (L::Eight::load_bytes(from.add(at)), L::Eight::load_bytes(from.add(width + at)));
                L::Eight::pair(low, high).store(to.add(at));
                at += L::Eight::WIDTH;
            }
        }
    }
}

/// Rounds values to words of bf16 pairs, an odd last one paired with 0.
#[inline(always)]
pub(super) fn round<L: Lanes>(x: &[f32], out: &mut [u32]) {
    assert_eq!(out.len(), x.len().div_ceil(2), "a word per pair");
    let whole = x.len() / (2 * L::WIDTH) * 2 * L::WIDTH;
    for at in (0..whole).step_by(2 * L::WIDTH) {
        // SAFETY: `at + 2 * WIDTH <= whole`, and `out` has a word for every two values.
        unsafe {
            let from = x.as_ptr().add(at);
            L::store_bf16(L::load(from), L::load(from.add(L::WIDTH)), out.as_mut_ptr().add(at / 2));
        }
    }
    let (rest, mut padded, mut words) = (&x[whole..], [0.0; 2 * MAX_WIDTH], [0; MAX_WIDTH]);
    padded[..rest.len()].copy_from_slice(rest);
    // SAFETY: no register is wider than MAX_WIDTH values.
    unsafe {
        let from = padded.as_ptr();
        L::store_bf16(L::load(from), L::load(from.add(L::WIDTH)), words.as_mut_ptr());
    }
    let out = &mut out[whole / 2..];
    out.copy_from_slice(&words[..out.len()]);
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
    x.div(L::splat(1.0).add(L::splat(0.0).sub(x).exp()))
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
