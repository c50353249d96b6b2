//! [`Quants`] on NEON, which every aarch64 has.

use std::arch::aarch64::*;
use std::arch::asm;

use super::fields::Quants;
use crate::cpu::neon::{Neon, Words};

/// Calls intrinsics of NEON.
macro_rules! on {
    ($call:expr) => {
        // SAFETY: every aarch64 has NEON; pointers are vouched for by the caller of the method.
        unsafe { $call }
    };
}

/// `words << bits`, or to the right where `bits` is negative; 0 where all bits leave.
#[inline(always)]
fn shifted(words: Words, bits: i32) -> Words {
    on!({
        let bits = vdupq_n_s32(bits);
        Words(vshlq_u32(words.0, bits), vshlq_u32(words.1, bits))
    })
}

/// Four half-precision floats, widened. By the instruction's name: the intrinsic is younger than the Rust that is asked for.
#[inline(always)]
fn widened(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: an instruction of every aarch64, from register to register.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    wide
}

impl Quants for Neon {
    const FUSED: bool = true;

    #[inline(always)]
    fn shifted_right(self, bits: u32) -> Self {
        shifted(self.words(), -(bits as i32)).lanes()
    }
    #[inline(always)]
    fn rotated_right(self, bits: u32) -> Self {
        let words = self.words();
        shifted(words, -(bits as i32)).or(shifted(words, 32 - bits as i32)).lanes()
    }
    #[inline(always)]
    fn masked_or(self, mask: Self, base: Self) -> Self {
        self.words().and(mask.words()).or(base.words()).lanes()
    }
    #[inline(always)]
    fn rounded_pairs(low: Self, high: Self) -> Self {
        let half = Words::splat(0x8000);
        high.words().plus(half).over(low.words().plus(half)).lanes()
    }
    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> Self {
        on!(Self(widened(vld1_u16(from)), widened(vld1_u16(from.add(4)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::lanes::{Lanes, Plain};

    fn of<L: Lanes>(lanes: L) -> [u32; 8] {
        let mut values = [0.0f32; 8];
        // SAFETY: there is room for eight values, as many as the two types here have.
        unsafe { lanes.store(values.as_mut_ptr()) };
        values.map(f32::to_bits)
    }

    #[test]
    fn words_are_shifted_turned_and_joined_as_in_plain_rust() {
        let words = [0, 1, 0x8000_0001, 0xffff_ffff, 0x1234_5678, 0x9abc_def0, 0x3f80_7fff, 0x7f7f_8000];
        let plain = Plain(words.map(f32::from_bits));
        // SAFETY: eight values are there.
        let lanes = unsafe { Neon::load(plain.0.as_ptr()) };
        for bits in 1..32 {
            assert_eq!(of(lanes.shifted_right(bits)), words.map(|word| word >> bits));
            assert_eq!(of(lanes.rotated_right(bits)), words.map(|word| word.rotate_right(bits)));
            let (mask, base) = (0xff << bits, 0x4b00_0000);
            let joined = lanes.masked_or(Neon::bits(mask), Neon::bits(base));
            assert_eq!(of(joined), words.map(|word| word & mask | base));
        }
        assert_eq!(of(lanes.low_nibble()), of(plain.low_nibble()));
        assert_eq!(
            of(Neon::rounded_pairs(lanes, lanes.rotated_right(7))),
            of(Plain::rounded_pairs(plain, plain.rotated_right(7)))
        );
    }

    #[test]
    fn every_half_is_widened_as_in_plain_rust() {
        for first in (0..=u16::MAX).step_by(8) {
            let halves: [u16; 8] = std::array::from_fn(|lane| first + lane as u16);
            // SAFETY: eight halves are there.
            let (lanes, plain) =
                unsafe { (Neon::load_halves(halves.as_ptr()), Plain::load_halves(halves.as_ptr())) };
            assert_eq!(of(lanes), of(plain), "from {first:#06x} on");
        }
    }
}
