//! The lanes of AVX2 with FMA and of AVX-512F. Nothing here checks that the machine has them: see [`Lanes`].

use std::arch::x86_64::*;

use super::lanes::{EXP2, EXP2_ROUGHLY, Lanes, store_rounded};

/// Calls an intrinsic of the instruction set that the surrounding type stands for.
macro_rules! on {
    ($call:expr) => {
        // SAFETY: lanes of an instruction set are used only in kernels compiled for it, which run only where it
        // was detected (see `Lanes`); pointers are vouched for by the caller of the method.
        unsafe { $call }
    };
}

/// Eight lanes of AVX2 with FMA; with `DOTS` also of AVX512_BF16 in its short form.
#[derive(Clone, Copy)]
pub(super) struct Avx2<const DOTS: bool>(pub(super) __m256);

impl<const DOTS: bool> Lanes for Avx2<DOTS> {
    const WIDTH: usize = 8;
    type Eight = Self;
    const DOTS: bool = DOTS;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        on!(Self(_mm256_set1_ps(value)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        on!(Self(_mm256_loadu_ps(from)))
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        on!(Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))))
    }
    #[inline(always)]
    fn prefetch_far<T>(address: *const T) {
        on!(_mm_prefetch::<_MM_HINT_T1>(address.cast()))
    }
    #[inline(always)]
    fn pair(low: Self, high: Self) -> Self {
        on!({
            let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(low.0));
            Self(_mm256_castsi256_ps(_mm256_or_si256(low, _mm256_castps_si256(high.high_halves().0))))
        })
    }
    #[inline(always)]
    fn only_low_halves(self) -> Self {
        on!(Self(_mm256_castsi256_ps(_mm256_and_si256(
            _mm256_castps_si256(self.0),
            _mm256_set1_epi32(0xffff)
        ))))
    }
    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        on!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
    }
    #[inline(always)]
    fn prefetch_second<T>(address: *const T) {
        on!(_mm_prefetch::<_MM_HINT_T1>(address.cast()))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        on!(_mm256_storeu_ps(to, self.0))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        on!(Self(_mm256_add_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        on!(Self(_mm256_sub_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        on!(Self(_mm256_mul_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        on!(Self(_mm256_div_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        on!(Self(_mm256_max_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        on!(Self(_mm256_min_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        on!(Self(_mm256_fmadd_ps(self.0, factor.0, term.0)))
    }
    #[inline(always)]
    fn dot_pairs(self, a: Self, b: Self) -> Self {
        if DOTS {
            // Words of pairs in every type: transmuting keeps the bits.
            on!(Self(_mm256_dpbf16_ps(
                self.0,
                std::mem::transmute::<__m256, __m256bh>(a.0),
                std::mem::transmute::<__m256, __m256bh>(b.0)
            )))
        } else {
            a.low_halves().mul_add(b.low_halves(), a.high_halves().mul_add(b.high_halves(), self))
        }
    }
    #[inline(always)]
    fn low_halves(self) -> Self {
        on!(Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(self.0)))))
    }
    #[inline(always)]
    fn high_halves(self) -> Self {
        on!({
            let high = _mm256_set1_epi32(0xffff_0000u32 as i32);
            Self(_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(self.0), high)))
        })
    }
    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        on!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, limit.0)) != 0)
    }
    #[inline(always)]
    unsafe fn store_bf16(first: Self, second: Self, to: *mut u32) {
        if DOTS {
            on!({
                let packed = _mm256_cvtne2ps_pbh(second.0, first.0);
                _mm256_storeu_si256(to.cast(), std::mem::transmute::<__m256bh, __m256i>(packed));
            })
        } else {
            // SAFETY: the caller's promise.
            unsafe { store_rounded(first, second, to) }
        }
    }
    #[inline(always)]
    fn exp2_of_whole(self) -> Self {
        on!({
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        })
    }
    #[inline(always)]
    fn where_at_least(self, probe: Self, limit: Self) -> Self {
        on!(Self(_mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_GE_OQ>(probe.0, limit.0))))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        on!({
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        on!({
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }
}

/// Sixteen lanes of AVX-512F; with `DOTS` also of AVX512_BF16, and with `TILES` beside AMX.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const DOTS: bool, const TILES: bool>(pub(super) __m512);

impl<const DOTS: bool, const TILES: bool> Lanes for Avx512<DOTS, TILES> {
    const WIDTH: usize = 16;
    type Eight = Avx2<DOTS>;
    const DOTS: bool = DOTS;
    const TILES: bool = TILES;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        on!(Self(_mm512_set1_ps(value)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        on!(Self(_mm512_loadu_ps(from)))
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        on!(Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))))
    }
    #[inline(always)]
    fn prefetch_far<T>(address: *const T) {
        on!(_mm_prefetch::<_MM_HINT_T1>(address.cast()))
    }
    #[inline(always)]
    fn pair(low: Self, high: Self) -> Self {
        on!({
            let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low.0));
            Self(_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(high.high_halves().0))))
        })
    }
    #[inline(always)]
    fn only_low_halves(self) -> Self {
        on!(Self(_mm512_castsi512_ps(_mm512_and_si512(
            _mm512_castps_si512(self.0),
            _mm512_set1_epi32(0xffff)
        ))))
    }
    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        on!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
    }
    #[inline(always)]
    fn prefetch_second<T>(address: *const T) {
        on!(_mm_prefetch::<_MM_HINT_T1>(address.cast()))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        on!(_mm512_storeu_ps(to, self.0))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        on!(Self(_mm512_add_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        on!(Self(_mm512_sub_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        on!(Self(_mm512_mul_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        on!(Self(_mm512_div_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        on!(Self(_mm512_max_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        on!(Self(_mm512_min_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        on!(Self(_mm512_fmadd_ps(self.0, factor.0, term.0)))
    }
    #[inline(always)]
    fn dot_pairs(self, a: Self, b: Self) -> Self {
        if DOTS {
            // Words of pairs in every type: transmuting keeps the bits.
            on!(Self(_mm512_dpbf16_ps(
                self.0,
                std::mem::transmute::<__m512, __m512bh>(a.0),
                std::mem::transmute::<__m512, __m512bh>(b.0)
            )))
        } else {
            a.low_halves().mul_add(b.low_halves(), a.high_halves().mul_add(b.high_halves(), self))
        }
    }
    #[inline(always)]
    fn low_halves(self) -> Self {
        on!(Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self.0)))))
    }
    #[inline(always)]
    fn high_halves(self) -> Self {
        on!({
            let high = _mm512_set1_epi32(0xffff_0000u32 as i32);
            Self(_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(self.0), high)))
        })
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        on!(Self(exp2_512(self.0, &EXP2)))
    }
    #[inline(always)]
    fn exp2_roughly(self) -> Self {
        on!(Self(exp2_512(self.0, &EXP2_ROUGHLY)))
    }
    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        on!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, limit.0) != 0)
    }
    #[inline(always)]
    unsafe fn store_bf16(first: Self, second: Self, to: *mut u32) {
        if DOTS {
            on!({
                let packed = _mm512_cvtne2ps_pbh(second.0, first.0);
                _mm512_storeu_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(packed));
            })
        } else {
            // SAFETY: the caller's promise.
            unsafe { store_rounded(first, second, to) }
        }
    }
    #[inline(always)]
    fn exp2_of_whole(self) -> Self {
        on!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
        })
    }
    #[inline(always)]
    fn where_at_least(self, probe: Self, limit: Self) -> Self {
        on!(Self(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(probe.0, limit.0), self.0)))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        on!(_mm512_reduce_add_ps(self.0))
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        on!(_mm512_reduce_max_ps(self.0))
    }
}

/// `2^x`: `2^(n + r)` with n whole and r in `±1/2`. The scaling gives exactly 0 far below.
///
/// # Safety
/// The machine has AVX-512F.
#[inline(always)]
unsafe fn exp2_512(x: __m512, polynomial: &[f32]) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let n = _mm512_roundscale_ps::<0>(x);
        let r = _mm512_sub_ps(x, n);
        let mut p = _mm512_set1_ps(polynomial[0]);
        for factor in &polynomial[1..] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*factor));
        }
        _mm512_scalef_ps(p, n)
    }
}
