//! What unpacking quantised words needs of a vector register, beyond [`Lanes`]. Registers hold words of 32 bits as
//! their bits, one for each of `WIDTH` rows. Which fields lie where is the business of `formats`.

use half::f16;

use crate::cpu::lanes::{Lanes, Plain};

/// The bits of `2^23`: or-ed with a whole number below, they are `2^23` more than that number.
const TWO_TO_23: u32 = 0x4b00_0000;

/// Lanes that hold packed fields.
pub(in crate::cpu) trait Quants: Lanes {
    /// Whether [`Lanes::mul_add`] rounds once.
    const FUSED: bool;

    /// The same bits in every lane.
    #[inline(always)]
    fn bits(bits: u32) -> Self {
        Self::splat(f32::from_bits(bits))
    }

    /// `self >> bits`, zeros coming in.
    fn shifted_right(self, bits: u32) -> Self;
    /// `self` rotated to the right.
    fn rotated_right(self, bits: u32) -> Self;
    /// `(self & mask) | base`.
    fn masked_or(self, mask: Self, base: Self) -> Self;
    /// The low four bits as a number.
    #[inline(always)]
    fn low_nibble(self) -> Self {
        self.number(15)
    }
    /// The bits under `mask`, which are below bit 23, as a number.
    #[inline(always)]
    fn number(self, mask: u32) -> Self {
        self.masked_or(Self::bits(mask), Self::bits(TWO_TO_23)).sub(Self::bits(TWO_TO_23))
    }
    /// Words of bf16 pairs: `low` and `high` rounded to the nearest, ties away from zero.
    fn rounded_pairs(low: Self, high: Self) -> Self;

    /// `WIDTH` half-precision floats, widened.
    ///
    /// # Safety
    /// `WIDTH` halves can be read from `from`, at any alignment.
    unsafe fn load_halves(from: *const u16) -> Self;
}

impl Plain {
    #[inline(always)]
    fn map(self, operation: impl Fn(u32) -> u32) -> Self {
        Self(self.0.map(|value| f32::from_bits(operation(value.to_bits()))))
    }
}

impl Quants for Plain {
    const FUSED: bool = false;

    #[inline(always)]
    fn shifted_right(self, bits: u32) -> Self {
        self.map(|word| word >> bits)
    }
    #[inline(always)]
    fn rotated_right(self, bits: u32) -> Self {
        self.map(|word| word.rotate_right(bits))
    }
    #[inline(always)]
    fn masked_or(self, mask: Self, base: Self) -> Self {
        let mut out = self.0;
        for (word, (mask, base)) in out.iter_mut().zip(mask.0.into_iter().zip(base.0)) {
            *word = f32::from_bits(word.to_bits() & mask.to_bits() | base.to_bits());
        }
        Self(out)
    }
    #[inline(always)]
    fn rounded_pairs(low: Self, high: Self) -> Self {
        let mut out = low.0;
        for (low, high) in out.iter_mut().zip(high.0) {
            let [low_bits, high_bits] = [*low, high].map(|value| value.to_bits().wrapping_add(0x8000));
            *low = f32::from_bits(low_bits >> 16 | high_bits & 0xffff_0000);
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> Self {
        // SAFETY: the caller vouches for 8 halves; the read asks for no alignment.
        Self(unsafe { from.cast::<[u16; 8]>().read_unaligned() }.map(|bits| f16::from_bits(bits).to_f32()))
    }
}
