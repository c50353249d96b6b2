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

    /// Calls `visit` with each column of group `group`, counted in the region, and its weights for rows from `row`
    /// on.
    ///
    /// # Safety
    /// As for [`Format::factors`], which gave `factors` for the group's run.
    unsafe fn group<L: Quants>(
        region: *const u8,
        group: usize,
        row: usize,
        factors: &Self::Factors<L>,
        visit: impl FnMut(usize, L),
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
        mut visit: impl FnMut(usize, L),
    ) {
        let field = |word: L, at: u32| word.masked_or(L::bits(0xff << at), L::bits((150 - at) << 23));
        // SAFETY: the caller's promise.
        let word = unsafe { words::<L>(region, Q8_0_WORDS + group * WORD_LINE_BYTES, row) };
        visit(4 * group, factors[0].apply(field(word, 4), AT_4));
        visit(4 * group + 1, factors[1].apply(field(word, 12), AT_12));
        let word = word.rotated_right(16);
        visit(4 * group + 2, factors[0].apply(field(word, 4), AT_4));
        visit(4 * group + 3, factors[1].apply(field(word, 12), AT_12));
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
        let [scales, mins, both, d, dmin] = unsafe {
            let line = |index: usize| words::<L>(region, Q4K_FACTORS + index * WORD_LINE_BYTES, row);
            [line(0), line(1), line(2), halves::<L>(region, Q4K_D, row), halves::<L>(region, Q4K_DMIN, row)]
        };
        let at = run as u32 % 4 * 8;
        let (scale, min) = if run < 4 {
            (scales.shifted_right(at).number(63), mins.shifted_right(at).number(63))
        } else {
            // The low four bits in the third word, the high two above the others' six.
            let join = |low: L, high: L| {
                let high = high.shifted_right(at + 2).masked_or(L::bits(0x30), L::bits(0));
                low.masked_or(L::bits(15), high).number(63)
            };
            (join(both.shifted_right(at), scales), join(both.shifted_right(at + 4), mins))
        };
        [d.mul(scale), L::splat(0.0).sub(dmin.mul(min))]
    }

    #[inline(always)]
    unsafe fn group<L: Quants>(
        region: *const u8,
        group: usize,
        row: usize,
        [scale, less]: &Self::Factors<L>,
        mut visit: impl FnMut(usize, L),
    ) {
        let mut pair = |byte: usize, word: L| {
            let column = 8 * group + 2 * byte;
            visit(column, word.low_nibble().mul_add(*scale, *less));
            visit(column + 1, word.shifted_right(4).low_nibble().mul_add(*scale, *less));
        };
        let at = group * WORD_LINE_BYTES;
        // SAFETY: the caller's promise. Loads from the second byte on save shifts; the last reads three bytes beyond
        // its line, where the region goes on with its factors at the latest.
        unsafe {
            pair(0, words::<L>(region, at, row));
            pair(1, L::load(region.add(at + row * size_of::<u32>() + 1).cast()));
            pair(2, L::load(region.add(at + row * size_of::<u32>() + 2).cast()));
            pair(3, L::load(region.add(at + row * size_of::<u32>() + 3).cast()));
        }
    }
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
        mut visit: impl FnMut(usize, L),
    ) {
        let value = |word: L| {
            let field = word.masked_or(L::bits(63 << 13), L::bits((150 - 13) << 23));
            factors.apply(field, AT_13)
        };
        // SAFETY: the caller's promise.
        let [a, b, c] = unsafe {
            let line = |index: usize| words::<L>(region, Q6K_WORDS + index * WORD_LINE_BYTES, row);
            [line(3 * group), line(3 * group + 1), line(3 * group + 2)]
        };
        let column = 16 * group;
        for i in 0..5 {
            visit(column + i, value(a.rotated_right((2 + 6 * i as u32) % 32)));
        }
        for i in 0..5 {
            visit(column + 5 + i, value(b.rotated_right((4 + 6 * i as u32) % 32)));
        }
        for i in 0..5 {
            visit(column + 10 + i, value(c.rotated_right((6 + 6 * i as u32) % 32)));
        }
        let last = c.masked_or(L::bits(3 << 17), L::bits(0));
        let last = b.masked_or(L::bits(3 << 15), last);
        let last = a.masked_or(L::bits(3 << 13), last);
        visit(column + 15, value(last));
    }
}
