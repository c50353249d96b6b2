//! How the fields of each quantised format become numbers: exactly those that ggml defines, each weight widened to
//! f32 with the one rounding that its definition has. Where the fields lie is said in `crate::quantised`.
//!
//! A field masked out of a word and or-ed with the exponent of a power of two is that power plus the field, without
//! a conversion. With a fused multiply-add the power and the format's own offset leave with the scale: `scale * f -
//! scale * (power + offset)` is exact before its single rounding wherever `scale * (power + offset)` is exact, which
//! decides at which bits fields may lie. Scales have 11 significant bits (f16), in q6_k 18 (times 7 bits):
//!
//! * q8_0 at bit 4: `2^19 + 128` has 13 bits, at bit 12: `2^11 + 128` has 5;
//! * q6_k at bit 13: `2^10 + 32` has 6.
//!
//! Weights of q4_k are `scale * q - min` with factors of 17 bits, so `scale * q` is exact and rounding comes once,
//! fused or not.

use super::fields::Quants;
use crate::quantised::*;

/// Takes the weights of one column for a register of rows. A trait rather than a closure, because closures are not
/// reliably inlined into the kernels, and outside of them instructions of the set are not.
pub(super) trait Visit<L> {
    /// # Safety
    /// What the implementation says of the column, which is counted in the region.
    unsafe fn visit(&mut self, column: usize, weights: L);
}

/// One of the formats; see `crate::quantised` for regions, lines and words.
pub(super) trait Format {
    /// Columns of a region.
    const COLUMNS: usize;
    /// Bytes of a region.
    const BYTES: usize;
    /// Columns that have their factors in common.
    const RUN: usize;
    /// Columns that are unpacked together.
    const GROUP: usize;

    /// The factors of a run, for a register of rows.
    type Factors<L: Quants>: Copy;

    /// The factors of run `run` for rows from `row` on.
    ///
    /// # Safety
    /// A region can be read from `region`; it has the run and `row + L::WIDTH` rows.
    unsafe fn factors<L: Quants>(region: *const u8, run: usize, row: usize) -> Self::Factors<L>;

    /// Shows `to` each column of group `group` in order, and its weights for rows from `row` on.
    ///
    /// # Safety
    /// As for [`Format::factors`], which gave `factors` for the group's run; `to` may be shown the group's columns.
    unsafe fn group<L: Quants>(
        region: *const u8,
        group: usize,
        row: usize,
        factors: &Self::Factors<L>,
        to: &mut impl Visit<L>,
    );
}

/// How far ahead memory is asked for: what a core reads in the latency of main memory, and some more.
const PREFETCH_BYTES: usize = 4096;

/// The words at `at` bytes into a region, for `L::WIDTH` rows.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn words<L: Quants>(region: *const u8, at: usize, row: usize) -> L {
    let from = region.wrapping_add(at + row * size_of::<u32>());
    L::prefetch(from.wrapping_add(PREFETCH_BYTES));
    // SAFETY: the caller's promise.
    unsafe { L::load(from.cast()) }
}

/// # Safety
/// A line of halves at `at` bytes into the region can be read.
#[inline(always)]
unsafe fn halves<L: Quants>(region: *const u8, at: usize, row: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe { L::load_halves(region.add(at + row * size_of::<u16>()).cast()) }
}

/// A scale, and what the fields' power of two and offset come to when scaled, negative.
#[derive(Clone, Copy)]
pub(super) struct Scale<L> {
    scale: L,
    less: L,
}

impl<L: Quants> Scale<L> {
    #[inline(always)]
    fn new(scale: L, offset: f32) -> Self {
        Self { scale, less: scale.mul(L::splat(-offset)) }
    }

    /// `scale * (field - offset)`, rounded once.
    #[inline(always)]
    fn apply(&self, field: L, offset: f32) -> L {
        if L::FUSED {
            field.mul_add(self.scale, self.less)
        } else {
            field.sub(L::splat(offset)).mul(self.scale)
        }
    }
}

/// `BITS` bits from bit `at` on, and `2^(23 - at)`.
#[inline(always)]
fn field<L: Quants, const BITS: u32>(word: L, at: u32) -> L {
    word.masked_or(L::bits(((1 << BITS) - 1) << at), L::bits((150 - at) << 23))
}

pub(super) struct Q8_0;

/// The powers of two that fields at bits 4 and 12 come with, and q8_0's 128.
const AT_4: f32 = 524_288.0 + 128.0;
const AT_12: f32 = 2_048.0 + 128.0;

impl Format for Q8_0 {
    const COLUMNS: usize = 32;
    const BYTES: usize = 64 * 34;
    const RUN: usize = 32;
    const GROUP: usize = 4;

    /// For fields at bit 4 and at bit 12.
    type Factors<L: Quants> = [Scale<L>; 2];

    #[inline(always)]
    unsafe fn factors<L: Quants>(region: *const u8, _run: usize, row: usize) -> Self::Factors<L> {
        // SAFETY: the caller's promise.
        let scale = unsafe { halves::<L>(region, 0, row) };
        [Scale::new(scale, AT_4), Scale::new(scale, AT_12)]
    }

    #[inline(always)]
    unsafe fn group<L: Quants>(
        region: *const u8,
        group: usize,
        row: usize,
        factors: &Self::Factors<L>,
        to: &mut impl Visit<L>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let word = words::<L>(region, Q8_0_WORDS + group * WORD_LINE_BYTES, row);
            to.visit(4 * group, factors[0].apply(field::<L, 8>(word, 4), AT_4));
            to.visit(4 * group + 1, factors[1].apply(field::<L, 8>(word, 12), AT_12));
            let word = word.rotated_right(16);
            to.visit(4 * group + 2, factors[0].apply(field::<L, 8>(word, 4), AT_4));
            to.visit(4 * group + 3, factors[1].apply(field::<L, 8>(word, 12), AT_12));
        }
    }
}

pub(super) struct Q4K;

impl Format for Q4K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 64 * 144;
    const RUN: usize = 32;
    const GROUP: usize = 8;

    /// Scale and negative minimum.
    type Factors<L: Quants> = [L; 2];

    #[inline(always)]
    unsafe fn factors<L: Quants>(region: *const u8, run: usize, row: usize) -> Self::Factors<L> {
        // SAFETY: the caller's promise.
        let (scales, mins, both, d, dmin) = unsafe {
            (
                words::<L>(region, Q4K_FACTORS, row),
                words::<L>(region, Q4K_FACTORS + WORD_LINE_BYTES, row),
                words::<L>(region, Q4K_FACTORS + 2 * WORD_LINE_BYTES, row),
                halves::<L>(region, Q4K_D, row),
                halves::<L>(region, Q4K_DMIN, row),
            )
        };
        let at = run as u32 % 4 * 8;
        let (scale, min) = if run < 4 {
            (scales.shifted_right(at).number(63), mins.shifted_right(at).number(63))
        } else {
            // The low four bits in the third word, the high two above the others' six.
            let (scales, mins) = (scales.shifted_right(at + 2), mins.shifted_right(at + 2));
            (joined(both.shifted_right(at), scales), joined(both.shifted_right(at + 4), mins))
        };
        [d.mul(scale), L::splat(0.0).sub(dmin.mul(min))]
    }

    #[inline(always)]
    unsafe fn group<L: Quants>(
        region: *const u8,
        group: usize,
        row: usize,
        [scale, less]: &Self::Factors<L>,
        to: &mut impl Visit<L>,
    ) {
        let (at, column) = (group * WORD_LINE_BYTES, 8 * group);
        // SAFETY: the caller's promise. Loads from the second byte on save shifts; the last reads three bytes beyond
        // its line, where the region goes on with its factors at the latest.
        unsafe {
            for byte in 0..4 {
                let word = match byte {
                    0 => words::<L>(region, at, row),
                    _ => L::load(region.add(at + row * size_of::<u32>() + byte).cast()),
                };
                to.visit(column + 2 * byte, word.low_nibble().mul_add(*scale, *less));
                let word = word.shifted_right(4);
                to.visit(column + 2 * byte + 1, word.low_nibble().mul_add(*scale, *less));
            }
        }
    }
}

/// The number whose low four bits are those of `low`, and the next two those of `high`.
#[inline(always)]
fn joined<L: Quants>(low: L, high: L) -> L {
    low.masked_or(L::bits(15), high.masked_or(L::bits(0x30), L::bits(0))).number(63)
}

pub(super) struct Q6K;

/// The power of two that fields at bit 13 come with, and q6_k's 32.
const AT_13: f32 = 1_024.0 + 32.0;

impl Format for Q6K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 64 * 210;
    const RUN: usize = 16;
    const GROUP: usize = 16;

    type Factors<L: Quants> = Scale<L>;

    #[inline(always)]
    unsafe fn factors<L: Quants>(region: *const u8, run: usize, row: usize) -> Self::Factors<L> {
        // SAFETY: the caller's promise.
        let scale = unsafe {
            let bytes = L::load_bytes(region.add(Q6K_SCALES + run * 64 + row).cast());
            halves::<L>(region, 0, row).mul(bytes)
        };
        Scale::new(scale, AT_13)
    }

    #[inline(always)]
    unsafe fn group<L: Quants>(
        region: *const u8,
        group: usize,
        row: usize,
        factors: &Self::Factors<L>,
        to: &mut impl Visit<L>,
    ) {
        let (at, column) = (Q6K_WORDS + 3 * group * WORD_LINE_BYTES, 16 * group);
        // SAFETY: the caller's promise.
        unsafe {
            let a = words::<L>(region, at, row);
            let b = words::<L>(region, at + WORD_LINE_BYTES, row);
            let c = words::<L>(region, at + 2 * WORD_LINE_BYTES, row);
            for i in 0..5 {
                let word = a.rotated_right(2 + 6 * i as u32);
                to.visit(column + i, factors.apply(field::<L, 6>(word, 13), AT_13));
            }
            for i in 0..5 {
                let word = b.rotated_right(4 + 6 * i as u32);
                to.visit(column + 5 + i, factors.apply(field::<L, 6>(word, 13), AT_13));
            }
            for i in 0..5 {
                let word = c.rotated_right(6 + 6 * i as u32);
                to.visit(column + 10 + i, factors.apply(field::<L, 6>(word, 13), AT_13));
            }
            let last = c.masked_or(L::bits(3 << 17), L::bits(0));
            let last = b.masked_or(L::bits(3 << 15), last);
            let last = a.masked_or(L::bits(3 << 13), last);
            to.visit(column + 15, factors.apply(field::<L, 6>(last, 13), AT_13));
        }
    }
}
