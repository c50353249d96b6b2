//! [`Quants`] on AVX2 with FMA and F16C, and on AVX-512F. Nothing here checks that the machine has them: see
//! [`Lanes`](crate::cpu::lanes::Lanes).

use std::arch::x86_64::*;

use super::fields::Quants;
use crate::cpu::x86::{Avx2, Avx512};

/// Calls an intrinsic of the instruction set that the surrounding type stands for.
macro_rules! on {
    ($call:expr) => {
        // SAFETY: lanes of an instruction set are used only in kernels compiled for it, which run only where it
        // was detected (see `Lanes`); pointers are vouched for by the caller of the method.
        unsafe { $call }
    };
}

/// `(a & c) | b` as `vpternlogd` counts its operands.
const MASKED_OR: i32 = 0xec;

impl<const DOTS: bool> Quants for Avx2<DOTS> {
    const FUSED: bool = true;

    #[inline(always)]
    fn shifted_right(self, bits: u32) -> Self {
        on!({
            let count = _mm_cvtsi32_si128(bits as i32);
            Self(_mm256_castsi256_ps(_mm256_srl_epi32(_mm256_castps_si256(self.0), count)))
        })
    }
    #[inline(always)]
    fn rotated_right(self, bits: u32) -> Self {
        on!({
            let words = _mm256_castps_si256(self.0);
            let right = _mm256_srl_epi32(words, _mm_cvtsi32_si128(bits as i32));
            let left = _mm256_sll_epi32(words, _mm_cvtsi32_si128(32 - bits as i32));
            Self(_mm256_castsi256_ps(_mm256_or_si256(right, left)))
        })
    }
    #[inline(always)]
    fn masked_or(self, mask: Self, base: Self) -> Self {
        on!(Self(_mm256_or_ps(_mm256_and_ps(self.0, mask.0), base.0)))
    }
    #[inline(always)]
    fn rounded_pairs(low: Self, high: Self) -> Self {
        on!({
            let half = _mm256_set1_epi32(0x8000);
            let low = _mm256_srli_epi32::<16>(_mm256_add_epi32(_mm256_castps_si256(low.0), half));
            let high = _mm256_add_epi32(_mm256_castps_si256(high.0), half);
            Self(_mm256_castsi256_ps(_mm256_blend_epi16::<0xaa>(low, high)))
        })
    }
    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> Self {
        on!(Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))))
    }
}

impl<const DOTS: bool, const TILES: bool> Quants for Avx512<DOTS, TILES> {
    const FUSED: bool = true;

    #[inline(always)]
    fn shifted_right(self, bits: u32) -> Self {
        on!({
            let count = _mm_cvtsi32_si128(bits as i32);
            Self(_mm512_castsi512_ps(_mm512_srl_epi32(_mm512_castps_si512(self.0), count)))
        })
    }
    #[inline(always)]
    fn rotated_right(self, bits: u32) -> Self {
        on!({
            let count = _mm512_set1_epi32(bits as i32);
            Self(_mm512_castsi512_ps(_mm512_rorv_epi32(_mm512_castps_si512(self.0), count)))
        })
    }
    #[inline(always)]
    fn masked_or(self, mask: Self, base: Self) -> Self {
        on!({
            let (word, mask) = (_mm512_castps_si512(self.0), _mm512_castps_si512(mask.0));
            let base = _mm512_castps_si512(base.0);
            Self(_mm512_castsi512_ps(_mm512_ternarylogic_epi32::<MASKED_OR>(word, base, mask)))
        })
    }
    #[inline(always)]
    fn low_nibble(self) -> Self {
        // A table of sixteen numbers: the instruction looks at the low four bits of an index only.
        on!({
            let numbers =
                _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
            Self(_mm512_permutexvar_ps(_mm512_castps_si512(self.0), numbers))
        })
    }
    #[inline(always)]
    fn rounded_pairs(low: Self, high: Self) -> Self {
        on!({
            let half = _mm512_set1_epi32(0x8000);
            let low = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(low.0), half));
            let high = _mm512_add_epi32(_mm512_castps_si512(high.0), half);
            let mask = _mm512_set1_epi32(0xffff_0000u32 as i32);
            Self(_mm512_castsi512_ps(_mm512_ternarylogic_epi32::<MASKED_OR>(high, low, mask)))
        })
    }
    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> Self {
        on!(Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))))
    }
}
