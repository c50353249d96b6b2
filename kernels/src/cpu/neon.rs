//! The lanes of NEON, two registers of four each: with as many lanes as AVX2 has, the kernels' shapes serve both. Every
//! aarch64 has the instructions, so nothing has to be detected.

use std::arch::aarch64::*;
use std::arch::asm;

use super::lanes::Lanes;

/// Calls intrinsics of NEON.
macro_rules! on {
    ($call:expr) => {
        // SAFETY: every aarch64 has NEON; pointers are vouched for by the caller of the method.
        unsafe { $call }
    };
}

/// Applies an intrinsic to the lower registers of its operands, then to the upper ones.
macro_rules! both {
    ($intrinsic:ident($($operand:expr),+)) => {
        on!(Self($intrinsic($($operand.0),+), $intrinsic($($operand.1),+)))
    };
}

/// Asks for a cache line by the named kind of request.
macro_rules! ask {
    ($kind:literal, $address:expr) => {
        // SAFETY: a request reads nothing that the program sees, and faults nowhere.
        unsafe {
            asm!(
                concat!("prfm ", $kind, ", [{address}]"),
                address = in(reg) $address.addr(),
                options(nomem, nostack, preserves_flags)
            )
        }
    };
}

/// Eight lanes: the lower four, then the upper four.
#[derive(Clone, Copy)]
pub(super) struct Neon(pub(super) float32x4_t, pub(super) float32x4_t);

impl Neon {
    /// The lanes as words: their bits.
    #[inline(always)]
    pub(super) fn words(self) -> Words {
        on!(Words(vreinterpretq_u32_f32(self.0), vreinterpretq_u32_f32(self.1)))
    }
}

/// The bits of eight lanes.
#[derive(Clone, Copy)]
pub(super) struct Words(pub(super) uint32x4_t, pub(super) uint32x4_t);

impl Words {
    #[inline(always)]
    pub(super) fn splat(word: u32) -> Self {
        on!(Self(vdupq_n_u32(word), vdupq_n_u32(word)))
    }
    #[inline(always)]
    pub(super) fn and(self, other: Self) -> Self {
        both!(vandq_u32(self, other))
    }
    #[inline(always)]
    pub(super) fn or(self, other: Self) -> Self {
        both!(vorrq_u32(self, other))
    }
    #[inline(always)]
    pub(super) fn plus(self, other: Self) -> Self {
        both!(vaddq_u32(self, other))
    }
    /// The high halves of `self`, with the high halves of `low` in place of its low ones.
    #[inline(always)]
    pub(super) fn over(self, low: Self) -> Self {
        on!(Self(vsriq_n_u32::<16>(self.0, low.0), vsriq_n_u32::<16>(self.1, low.1)))
    }
    #[inline(always)]
    pub(super) fn lanes(self) -> Neon {
        on!(Neon(vreinterpretq_f32_u32(self.0), vreinterpretq_f32_u32(self.1)))
    }
}

impl Lanes for Neon {
    const WIDTH: usize = 8;
    type Eight = Self;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        on!(Self(vdupq_n_f32(value), vdupq_n_f32(value)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        on!(Self(vld1q_f32(from), vld1q_f32(from.add(4))))
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        on!({
            let halves = vmovl_s8(vld1_s8(from));
            let (low, high) = (vmovl_s16(vget_low_s16(halves)), vmovl_high_s16(halves));
            Self(vcvtq_f32_s32(low), vcvtq_f32_s32(high))
        })
    }
    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        ask!("pldl1keep", address)
    }
    #[inline(always)]
    fn prefetch_second<T>(address: *const T) {
        ask!("pldl2keep", address)
    }
    #[inline(always)]
    fn prefetch_far<T>(address: *const T) {
        ask!("pldl2keep", address)
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        on!({
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
        })
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        both!(vaddq_f32(self, other))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        both!(vsubq_f32(self, other))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        both!(vmulq_f32(self, other))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        both!(vdivq_f32(self, other))
    }
    // Of a number and no number the number, so that bounds bound what is no number too, as they do elsewhere.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        both!(vmaxnmq_f32(self, other))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        both!(vminnmq_f32(self, other))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        both!(vfmaq_f32(term, self, factor))
    }
    #[inline(always)]
    fn low_halves(self) -> Self {
        let words = self.words();
        on!(Words(vshlq_n_u32::<16>(words.0), vshlq_n_u32::<16>(words.1)).lanes())
    }
    #[inline(always)]
    fn high_halves(self) -> Self {
        self.words().and(Words::splat(0xffff_0000)).lanes()
    }
    #[inline(always)]
    fn pair(low: Self, high: Self) -> Self {
        high.words().over(low.words()).lanes()
    }
    #[inline(always)]
    fn only_low_halves(self) -> Self {
        self.words().and(Words::splat(0xffff)).lanes()
    }
    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        on!(vmaxvq_u32(vorrq_u32(vcgtq_f32(self.0, limit.0), vcgtq_f32(self.1, limit.1))) != 0)
    }
    #[inline(always)]
    fn exp2_of_whole(self) -> Self {
        on!({
            let whole = Words(
                vreinterpretq_u32_s32(vcvtq_s32_f32(self.0)),
                vreinterpretq_u32_s32(vcvtq_s32_f32(self.1)),
            );
            let exponent = whole.plus(Words::splat(127));
            Words(vshlq_n_u32::<23>(exponent.0), vshlq_n_u32::<23>(exponent.1)).lanes()
        })
    }
    #[inline(always)]
    fn where_at_least(self, probe: Self, limit: Self) -> Self {
        let mask = on!(Words(vcgeq_f32(probe.0, limit.0), vcgeq_f32(probe.1, limit.1)));
        self.words().and(mask).lanes()
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        on!({
            let four = vaddq_f32(self.0, self.1);
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        })
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        on!(vmaxnmvq_f32(vmaxnmq_f32(self.0, self.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::lanes::Plain;

    /// Numbers of all sizes and signs, among them subnormal ones, infinities and what is no number.
    const VALUES: [f32; 24] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.333_333_34,
        -2.718_281_7,
        127.5,
        -128.0,
        8_388_609.0,
        -16_777_215.0,
        1e-40,
        -1e-45,
        1.175_494_4e-38,
        3e38,
        -3.4e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        6.5e-5,
        -7.25,
        1e20,
        -1e-20,
        88.0,
        -87.4,
    ];

    /// Eight neighbours in both, for each place to start from.
    fn each_eight(mut test: impl FnMut(Neon, Plain)) {
        for start in 0..VALUES.len() {
            let values: [f32; 8] = std::array::from_fn(|lane| VALUES[(start + lane) % VALUES.len()]);
            // SAFETY: eight values are there.
            test(unsafe { Neon::load(values.as_ptr()) }, Plain(values));
        }
    }

    /// Bits, but one pattern for all that is no number: which of two a sum keeps is not the same everywhere.
    fn bits(value: f32) -> u32 {
        if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
    }

    fn of<L: Lanes>(lanes: L) -> [u32; 8] {
        let mut values = [0.0; 8];
        // SAFETY: there is room for eight values, as many as the two types here have.
        unsafe { lanes.store(values.as_mut_ptr()) };
        values.map(bits)
    }

    #[test]
    fn arithmetic_gives_the_bits_of_plain_rust() {
        each_eight(|a, plain_a| {
            each_eight(|b, plain_b| {
                assert_eq!(of(a.add(b)), of(plain_a.add(plain_b)));
                assert_eq!(of(a.sub(b)), of(plain_a.sub(plain_b)));
                assert_eq!(of(a.mul(b)), of(plain_a.mul(plain_b)));
                assert_eq!(of(a.div(b)), of(plain_a.div(plain_b)));
                assert_eq!(of(a.where_at_least(a, b)), of(plain_a.where_at_least(plain_a, plain_b)));
                assert_eq!(a.any_above(b), plain_a.any_above(plain_b));
                let fused: [f32; 8] =
                    std::array::from_fn(|i| plain_a.0[i].mul_add(plain_b.0[i], plain_a.0[i]));
                assert_eq!(of(a.mul_add(b, a)), fused.map(bits));
            });
            assert_eq!(bits(a.sum()), bits(plain_a.sum()));
            assert_eq!(bits(a.greatest()), bits(plain_a.greatest()));
        });
    }

    #[test]
    fn of_a_number_and_no_number_bounds_take_the_number() {
        each_eight(|a, plain_a| {
            each_eight(|b, plain_b| {
                let zip = |choose: fn(f32, f32) -> f32| {
                    let chosen: [f32; 8] = std::array::from_fn(|i| choose(plain_a.0[i], plain_b.0[i]));
                    // Either zero may stand for both.
                    chosen.map(|value| bits(value + 0.0))
                };
                assert_eq!(of(a.max(b).add(Neon::splat(0.0))), zip(f32::max));
                assert_eq!(of(a.min(b).add(Neon::splat(0.0))), zip(f32::min));
            });
        });
    }

    #[test]
    fn halves_pairs_and_bytes_are_those_of_plain_rust() {
        each_eight(|a, plain_a| {
            assert_eq!(of(a.low_halves()), of(plain_a.low_halves()));
            assert_eq!(of(a.high_halves()), of(plain_a.high_halves()));
            assert_eq!(of(a.only_low_halves()), of(plain_a.only_low_halves()));
            let (pair, plain) = (Neon::pair(a, a.add(a)), Plain::pair(plain_a, plain_a.add(plain_a)));
            assert_eq!(of(pair.high_halves()), of(plain.high_halves()));
            assert_eq!(of(pair.low_halves()), of(plain.low_halves()));
        });
        for first in (i8::MIN..=120).step_by(8) {
            let bytes: [i8; 8] = std::array::from_fn(|lane| first + lane as i8);
            // SAFETY: eight bytes are there.
            let (lanes, plain) =
                unsafe { (Neon::load_bytes(bytes.as_ptr()), Plain::load_bytes(bytes.as_ptr())) };
            assert_eq!(of(lanes), of(plain));
        }
    }

    #[test]
    fn powers_of_two_are_exact_and_exponentials_vanish_far_below() {
        for first in (-126..=120).step_by(8) {
            let whole: [f32; 8] = std::array::from_fn(|lane| (first + lane as i32) as f32);
            // SAFETY: eight values are there.
            let power = unsafe { Neon::load(whole.as_ptr()) }.exp2_of_whole();
            assert_eq!(of(power), whole.map(|n| (f64::from(n).exp2() as f32).to_bits()));
        }
        for far in [-127.0, -1e30, f32::NEG_INFINITY] {
            assert_eq!(of(Neon::splat(far).exp()), [0; 8]);
            assert_eq!(of(Neon::splat(far).exp2()), [0; 8]);
            assert_eq!(of(Neon::splat(far).exp2_roughly()), [0; 8]);
        }
    }
}
