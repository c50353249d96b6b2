//! The lanes of AVX2 with FMA and of AVX-512F. Nothing here checks that the machine has them: see [`Lanes`].

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// Calls an intrinsic of the instruction set that the surrounding type stands for.
macro_rules! on {
    ($call:expr) => {
        // SAFETY: lanes of an instruction set are used only in kernels compiled for it, which run only where it
        // was detected (see `Lanes`); pointers are vouched for by the caller of the method.
        unsafe { $call }
    };
}

/// Eight lanes of AVX2 with FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    type Eight = Self;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        on!(Self(_mm256_set1_ps(value)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        on!(Self(_mm256_loadu_ps(from)))
    }
    #[inline(always)]
    unsafe fn load_low(from: *const u32) -> Self {
        on!(Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(from.cast())))))
    }
    #[inline(always)]
    unsafe fn load_high(from: *const u32) -> Self {
        on!({
            let high = _mm256_set1_epi32(0xffff_0000u32 as i32);
            Self(_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(from.cast()), high)))
        })
    }
    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        on!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
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

/// Sixteen lanes of AVX-512F.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

impl Lanes for Avx512 {
    const WIDTH: usize = 16;
    type Eight = Avx2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        on!(Self(_mm512_set1_ps(value)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        on!(Self(_mm512_loadu_ps(from)))
    }
    #[inline(always)]
    unsafe fn load_low(from: *const u32) -> Self {
        on!(Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(from.cast())))))
    }
    #[inline(always)]
    unsafe fn load_high(from: *const u32) -> Self {
        on!({
            let high = _mm512_set1_epi32(0xffff_0000u32 as i32);
            Self(_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(from.cast()), high)))
        })
    }
    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        on!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
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
