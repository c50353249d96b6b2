//! The loops of `peaks` on NEON, which every aarch64 has.

use std::arch::aarch64::*;

use super::black_box;

/// Independent sums: more than the latency times the units.
const SUMS: usize = 24;

/// Runs the loop and returns its floating-point operations.
pub(super) fn f32_multiply_adds(turns: usize) -> usize {
    // SAFETY: every aarch64 has the instructions.
    unsafe { multiply_adds(turns) }
}

pub(super) use f32_multiply_adds as bf16_dots;
pub(super) use f32_multiply_adds as tile_products;

#[target_feature(enable = "neon")]
fn multiply_adds(turns: usize) -> usize {
    let (a, b) = (vdupq_n_f32(black_box(0.999_999)), vdupq_n_f32(black_box(1e-6)));
    let mut sums = [vdupq_n_f32(1.0); SUMS];
    for _ in 0..turns {
        for sum in &mut sums {
            // The instruction adds to its sum in place.
            *sum = vfmaq_f32(*sum, a, b);
        }
    }
    black_box(sums.map(|sum| vaddvq_f32(sum)));
    turns * SUMS * 8
}

/// Plain loops that read every byte once.
pub(super) const READS: [fn(&[u8]); 1] = [super::portable::read];
