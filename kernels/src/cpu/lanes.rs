//! One vector of f32 lanes, whatever the instruction set, and the exponential on it. Kernels are generic over
//! [`Lanes`] and inlined into functions that `isa` compiles for each set.

/// A register of f32 lanes.
///
/// Implementations for an instruction set are named only where `isa` compiles kernels for that set, which are
/// called only after the set was detected. That is why most methods can be safe.
pub(super) trait Lanes: Copy {
    /// f32 values of one register: a multiple of 8.
    const WIDTH: usize;
    /// The same instruction set in registers of 8, for what is left of a row.
    type Eight: Lanes;
    /// Whether [`Lanes::dot_pairs`] is one instruction, so that rounding to bf16 pays.
    const DOTS: bool = false;
    /// Whether products of bf16 pairs run on AMX tiles instead.
    const TILES: bool = false;

    fn splat(value: f32) -> Self;

    /// `WIDTH` values, or words of bf16 pairs taken as their bits.
    ///
    /// # Safety
    /// `WIDTH` values can be read from `from`, at any alignment.
    unsafe fn load(from: *const f32) -> Self;

    /// `WIDTH` whole numbers of 8 bits, widened.
    ///
    /// # Safety
    /// `WIDTH` bytes can be read from `from`.
    unsafe fn load_bytes(from: *const i8) -> Self;

    /// Asks for the cache line at `address`, which may lie anywhere: nothing is read.
    fn prefetch<T>(address: *const T);

    /// As [`Lanes::prefetch`], but into the second-level cache only.
    #[inline(always)]
    fn prefetch_second<T>(address: *const T) {
        Self::prefetch(address);
    }

    /// As [`Lanes::prefetch`], into the second-level cache: for what is used much later.
    fn prefetch_far<T>(address: *const T);

    /// # Safety
    /// `WIDTH` values can be written to `to`, at any alignment.
    unsafe fn store(self, to: *mut f32);

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// `self * factor + term`, fused where the instruction set can.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `self + a.high * b.high + a.low * b.low` for words of bf16 pairs. Native instructions take subnormal
    /// numbers for zero.
    #[inline(always)]
    fn dot_pairs(self, a: Self, b: Self) -> Self {
        a.low_halves().mul_add(b.low_halves(), a.high_halves().mul_add(b.high_halves(), self))
    }
    /// The low bf16 halves of words, widened.
    fn low_halves(self) -> Self;
    /// The high bf16 halves of words, widened.
    fn high_halves(self) -> Self;
    /// Words of bf16 pairs of lanes that bf16 holds exactly.
    fn pair(low: Self, high: Self) -> Self;
    /// Words with 0 in place of their high halves.
    fn only_low_halves(self) -> Self;
    /// Rounds the lanes of `first`, then those of `second`, to bf16.
    ///
    /// # Safety
    /// `WIDTH` words can be written to `to`, at any alignment.
    #[inline(always)]
    unsafe fn store_bf16(first: Self, second: Self, to: *mut u32) {
        // SAFETY: the caller's promise.
        unsafe { store_rounded(first, second, to) }
    }
    /// `e^self` to about 1e-7 relative, exactly 0 far below.
    #[inline(always)]
    fn exp(self) -> Self {
        exp(self)
    }
    /// `2^self` for values up to about 0, to about 2e-7 relative; exactly 0 far below.
    #[inline(always)]
    fn exp2(self) -> Self {
        exp2(self, &EXP2)
    }
    /// As [`Lanes::exp2`] to about 3e-6: enough for what is rounded to bf16.
    #[inline(always)]
    fn exp2_roughly(self) -> Self {
        exp2(self, &EXP2_ROUGHLY)
    }
    /// Whether any lane is greater than `limit`'s.
    fn any_above(self, limit: Self) -> bool;
    /// `2^self` for whole numbers in `-126..=127`.
    fn exp2_of_whole(self) -> Self;
    /// `self` where `probe >= limit`, else 0.
    fn where_at_least(self, probe: Self, limit: Self) -> Self;
    /// The sum of all lanes, always in the same order.
    fn sum(self) -> f32;
    /// The greatest lane.
    fn greatest(self) -> f32;
}

/// [`Lanes::store_bf16`] without an instruction for it.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn store_rounded<L: Lanes>(first: L, second: L, to: *mut u32) {
    let mut values = [0f32; 32];
    // SAFETY: no register is wider than 16 values; the caller vouches for WIDTH words, two values each.
    unsafe {
        first.store(values.as_mut_ptr());
        second.store(values.as_mut_ptr().add(L::WIDTH));
        for (word, pair) in values[..2 * L::WIDTH].chunks_exact(2).enumerate() {
            let [low, high] =
                [pair[0], pair[1]].map(|value| u32::from(half::bf16::from_f32(value).to_bits()));
            to.add(word).write_unaligned(low | high << 16);
        }
    }
}

/// Below this `exp` gives 0: its result would be subnormal.
const EXP_LOW: f32 = -87.3;
/// Above this `exp` saturates at about 1.6e38, so that sums with 1 stay finite.
const EXP_HIGH: f32 = 88.0;

/// `e^x` to about 1e-7 relative: `2^n · e^r` with `r` in `±ln(2)/2` and the polynomial of Cephes' `expf`.
///
/// `ln(2)` is subtracted in two parts of which the first has few bits, so that no fused instruction is needed.
#[inline(always)]
fn exp<L: Lanes>(x: L) -> L {
    // Adding and subtracting 1.5 · 2^23 rounds to the nearest whole number.
    let rounder = L::splat(12_582_912.0);
    let clamped = x.max(L::splat(EXP_LOW)).min(L::splat(EXP_HIGH));
    let n = clamped.mul(L::splat(std::f32::consts::LOG2_E)).add(rounder).sub(rounder);
    let r = n.mul_add(L::splat(-0.693_359_4), clamped);
    let r = n.mul_add(L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.987_569_2e-4);
    p = p.mul_add(r, L::splat(1.398_2e-3));
    p = p.mul_add(r, L::splat(8.333_452e-3));
    p = p.mul_add(r, L::splat(4.166_579_6e-2));
    p = p.mul_add(r, L::splat(1.666_666_5e-1));
    p = p.mul_add(r, L::splat(0.5));
    let e = p.mul_add(r.mul(r), r).add(L::splat(1.0));
    e.mul(n.exp2_of_whole()).where_at_least(x, L::splat(EXP_LOW))
}

/// `2^r` for `r` in `±1/2` to 2e-7 relative, highest power first.
pub(super) const EXP2: [f32; 6] =
    [1.339_086_3e-3, 9.676_032e-3, 5.550_357e-2, 2.402_210_7e-1, 6.931_472e-1, 1.0];

/// The same to 3e-6.
pub(super) const EXP2_ROUGHLY: [f32; 5] =
    [9.570_102e-3, 5.591_786e-2, 2.402_474_4e-1, 6.931_218e-1, 9.999_993e-1];

/// Below this `exp2` gives 0: its result would be subnormal.
const EXP2_LOW: f32 = -126.0;

/// `2^x` for `x` up to about 0: `2^n · 2^r` with `r` in `±1/2`.
#[inline(always)]
fn exp2<L: Lanes>(x: L, polynomial: &[f32]) -> L {
    let rounder = L::splat(12_582_912.0);
    let clamped = x.max(L::splat(EXP2_LOW));
    let n = clamped.add(rounder).sub(rounder);
    let r = clamped.sub(n);
    let mut p = L::splat(polynomial[0]);
    for factor in &polynomial[1..] {
        p = p.mul_add(r, L::splat(*factor));
    }
    p.mul(n.exp2_of_whole()).where_at_least(x, L::splat(EXP2_LOW))
}

/// Eight lanes of plain Rust, for machines without the instruction sets above.
#[derive(Clone, Copy)]
pub(super) struct Plain(pub(super) [f32; 8]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Self, operation: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (a, b) in out.iter_mut().zip(other.0) {
            *a = operation(*a, b);
        }
        Self(out)
    }
}

impl Lanes for Plain {
    const WIDTH: usize = 8;
    type Eight = Self;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for 8 values; the read asks for no alignment.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: the caller vouches for 8 bytes.
        Self(unsafe { from.cast::<[i8; 8]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    fn prefetch<T>(_address: *const T) {}
    #[inline(always)]
    fn prefetch_far<T>(_address: *const T) {}
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for 8 values; the write asks for no alignment.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // Not `f32::mul_add`: without hardware for it that is a call into the maths library per lane.
        self.mul(factor).add(term)
    }
    #[inline(always)]
    fn low_halves(self) -> Self {
        Self(self.0.map(|word| f32::from_bits(word.to_bits() << 16)))
    }
    #[inline(always)]
    fn high_halves(self) -> Self {
        Self(self.0.map(|word| f32::from_bits(word.to_bits() & 0xffff_0000)))
    }
    #[inline(always)]
    fn pair(low: Self, high: Self) -> Self {
        low.zip(high, |low, high| f32::from_bits(low.to_bits() >> 16 | high.to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    fn only_low_halves(self) -> Self {
        Self(self.0.map(|word| f32::from_bits(word.to_bits() & 0xffff)))
    }
    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        self.0.iter().zip(limit.0).any(|(value, limit)| *value > limit)
    }
    #[inline(always)]
    fn exp2_of_whole(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)))
    }
    #[inline(always)]
    fn where_at_least(self, probe: Self, limit: Self) -> Self {
        let mut out = self.0;
        for (value, (probe, limit)) in out.iter_mut().zip(probe.0.into_iter().zip(limit.0)) {
            *value = if probe >= limit { *value } else { 0.0 };
        }
        Self(out)
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}
