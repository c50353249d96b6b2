//! What this machine can do at best: multiply-adds in f32, dot products of bf16 pairs, and plain reads of memory.
//! Short samples, taken between those of the kernels, so that both meet the same neighbours on the machine.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use memmap2::{Advice, MmapMut};

/// What bounds a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// f32 multiply-adds, GFLOP/s.
    F32,
    /// Products of bf16 pairs on vectors, GFLOP/s; where the machine has no instruction for them, f32 multiply-adds.
    Bf16,
    /// Products of bf16 pairs on AMX tiles, GFLOP/s; without AMX, as [`Bound::Bf16`].
    Tiles,
    /// Bytes read from memory, GB/s.
    Memory,
}

impl Bound {
    pub(crate) const ALL: [Bound; 4] = [Bound::F32, Bound::Bf16, Bound::Tiles, Bound::Memory];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Bound::F32 => "f32",
            Bound::Bf16 => "bf16",
            Bound::Tiles => "bf16 tiles",
            Bound::Memory => "memory read",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Bound::F32 | Bound::Bf16 | Bound::Tiles => "GFLOP/s",
            Bound::Memory => "GB/s",
        }
    }
}

/// Larger than the caches, as far as virtual machines tell: what the kernels' weights are spread over, too.
pub(crate) const MEMORY_BYTES: usize = 512 << 20;

/// Bytes that one thread reads in one sample.
const PIECE_BYTES: usize = 32 << 20;

/// Turns of an arithmetic loop in one sample: about a millisecond.
const TURNS: usize = 100_000;

/// The best rates so far.
pub(crate) struct Peaks {
    threads: usize,
    memory: MmapMut,
    next_piece: usize,
    best: [f64; 4],
}

impl Peaks {
    pub(crate) fn new(threads: usize) -> Self {
        let mut memory = MmapMut::map_anon(MEMORY_BYTES).expect("memory to read");
        #[cfg(target_os = "linux")]
        let _ = memory.advise(Advice::HugePage);
        memory.fill(1);
        Self { threads, memory, next_piece: 0, best: [0.0; 4] }
    }

    /// The best rate of all samples, in units of 1e9 per second.
    pub(crate) fn best(&self, bound: Bound) -> f64 {
        self.best[bound as usize]
    }

    /// Takes one sample, of memory one with each loop: the rate, or the best of those.
    pub(crate) fn sample(&mut self, bound: Bound) -> f64 {
        let rate = match bound {
            Bound::F32 => self.arithmetic(loops::f32_multiply_adds),
            Bound::Bf16 => self.arithmetic(loops::bf16_dots),
            Bound::Tiles => self.arithmetic(loops::tile_products),
            Bound::Memory => self.read(),
        };
        self.best[bound as usize] = self.best(bound).max(rate);
        rate
    }

    fn arithmetic(&self, one: fn(usize) -> usize) -> f64 {
        let (seconds, flops) = together(self.threads, |_| one(TURNS));
        flops as f64 / seconds / 1e9
    }

    fn read(&mut self) -> f64 {
        let pieces = MEMORY_BYTES / PIECE_BYTES;
        let mut best = 0f64;
        for read in loops::READS {
            let first = self.next_piece;
            let (seconds, bytes) = together(self.threads, |thread| {
                let start = (first + thread) % pieces * PIECE_BYTES;
                read(&self.memory[start..start + PIECE_BYTES]);
                PIECE_BYTES
            });
            self.next_piece = (first + self.threads) % pieces;
            best = best.max(bytes as f64 / seconds / 1e9);
        }
        best
    }
}

/// Runs `work` on `threads` threads at once: the seconds from the first's start to the last's end, and the sum
/// of what they return.
fn together(threads: usize, work: impl Fn(usize) -> usize + Sync) -> (f64, usize) {
    let barrier = Barrier::new(threads);
    let timed = |thread| {
        barrier.wait();
        let start = Instant::now();
        let done = work(thread);
        (start, Instant::now(), done)
    };
    let runs: Vec<(Instant, Instant, usize)> = std::thread::scope(|scope| {
        let timed = &timed;
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || timed(thread))).collect();
        let mine = timed(0);
        let others = others.into_iter().map(|other| other.join().expect("a loop does not panic"));
        std::iter::once(mine).chain(others).collect()
    });
    let start = runs.iter().map(|run| run.0).min().expect("a thread");
    let end = runs.iter().map(|run| run.1).max().expect("a thread");
    ((end - start).as_secs_f64(), runs.iter().map(|run| run.2).sum())
}

#[cfg(target_arch = "x86_64")]
mod loops {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::black_box;

    /// Independent sums: more than the latency times the units.
    const SUMS: usize = 12;

    /// Runs the loop and returns its floating-point operations.
    pub(super) fn f32_multiply_adds(turns: usize) -> usize {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the instructions.
            unsafe { multiply_adds_512(turns) }
        } else if is_x86_feature_detected!("fma") {
            // SAFETY: the machine has the instructions (every one with FMA has AVX).
            unsafe { multiply_adds_256(turns) }
        } else {
            super::portable::multiply_adds(turns)
        }
    }

    pub(super) fn bf16_dots(turns: usize) -> usize {
        if is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the machine has the instructions.
            unsafe { dots(turns) }
        } else {
            f32_multiply_adds(turns)
        }
    }

    /// Callers have made a CPU backend for AMX, which asks the operating system for the tiles: without it, as
    /// [`bf16_dots`].
    pub(super) fn tile_products(turns: usize) -> usize {
        // CPUID leaf 7: bits 22 (AMX-BF16) and 24 (AMX-TILE) of EDX.
        let leaf = __cpuid_count(7, 0);
        if leaf.edx >> 22 & leaf.edx >> 24 & 1 == 0 {
            return bf16_dots(turns);
        }
        let turns = turns / 4;
        #[repr(C, align(64))]
        struct Shapes([u8; 64]);
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for tile in 0..8 {
            (shapes.0[16 + 2 * tile], shapes.0[48 + tile]) = (64, 16);
        }
        // SAFETY: the machine has the instructions, and the process the permission; the tiles are configured first and
        // released last, and no memory but the shapes is read.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly));
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                options(nostack, nomem)
            );
            for _ in 0..turns {
                asm!(
                    "tdpbf16ps tmm0, tmm4, tmm5",
                    "tdpbf16ps tmm1, tmm4, tmm5",
                    "tdpbf16ps tmm2, tmm4, tmm5",
                    "tdpbf16ps tmm3, tmm4, tmm5",
                    options(nostack, nomem)
                );
            }
            asm!("tilerelease", options(nostack, nomem));
        }
        turns * 4 * 16 * 16 * 64
    }

    #[target_feature(enable = "avx512f")]
    fn multiply_adds_512(turns: usize) -> usize {
        let (a, b) = (_mm512_set1_ps(black_box(0.999_999)), _mm512_set1_ps(black_box(1e-6)));
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums.map(|sum| _mm512_reduce_add_ps(sum)));
        turns * SUMS * 32
    }

    #[target_feature(enable = "avx,fma")]
    fn multiply_adds_256(turns: usize) -> usize {
        let (a, b) = (_mm256_set1_ps(black_box(0.999_999)), _mm256_set1_ps(black_box(1e-6)));
        let mut sums = [_mm256_set1_ps(1.0); SUMS];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums.map(|sum| _mm256_cvtss_f32(sum)));
        turns * SUMS * 16
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dots(turns: usize) -> usize {
        let bits = _mm512_set1_epi16(black_box(0x3f80));
        // SAFETY: both are 64 bytes in which every pattern is valid.
        let pair: __m512bh = unsafe { std::mem::transmute(bits) };
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pair, pair);
            }
        }
        black_box(sums.map(|sum| _mm512_reduce_add_ps(sum)));
        turns * SUMS * 64
    }

    /// Plain loops that read every byte once; which is the fastest depends on the machine.
    pub(super) const READS: [fn(&[u8]); 6] =
        [one_stream, four_streams, prefetching, prefetching_near, prefetching_two, super::portable::read];

    fn one_stream(bytes: &[u8]) {
        streams::<1, 0>(bytes);
    }

    fn four_streams(bytes: &[u8]) {
        streams::<4, 0>(bytes);
    }

    fn prefetching(bytes: &[u8]) {
        streams::<1, 4096>(bytes);
    }

    fn prefetching_near(bytes: &[u8]) {
        streams::<1, 2048>(bytes);
    }

    fn prefetching_two(bytes: &[u8]) {
        streams::<2, 1024>(bytes);
    }

    fn streams<const COUNT: usize, const AHEAD: usize>(bytes: &[u8]) {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the instructions.
            unsafe { streams_512::<COUNT, AHEAD>(bytes) }
        } else {
            super::portable::read(bytes);
        }
    }

    /// Reads `COUNT` parts side by side, eight registers of each at a time; asks `AHEAD` bytes ahead unless 0.
    #[target_feature(enable = "avx512f")]
    fn streams_512<const COUNT: usize, const AHEAD: usize>(bytes: &[u8]) {
        const STEP: usize = 512;
        let part = bytes.len() / COUNT / STEP * STEP;
        let mut sums = [_mm512_setzero_si512(); 8];
        for at in (0..part).step_by(STEP) {
            for stream in 0..COUNT {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let from = bytes.as_ptr().wrapping_add(stream * part + at + v * 64);
                    if AHEAD > 0 {
                        _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(AHEAD).cast());
                    }
                    // SAFETY: `at + STEP <= part`, and COUNT parts lie inside the slice.
                    *sum = _mm512_xor_si512(*sum, unsafe { _mm512_loadu_si512(from.cast()) });
                }
            }
        }
        black_box(sums.map(|sum| _mm512_reduce_add_epi64(sum)));
    }
}

#[cfg(target_arch = "aarch64")]
#[path = "neon.rs"]
mod loops;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod loops {
    pub(super) use super::portable::{
        multiply_adds as f32_multiply_adds, multiply_adds as bf16_dots, multiply_adds as tile_products,
    };

    pub(super) const READS: [fn(&[u8]); 1] = [super::portable::read];
}

mod portable {
    use super::black_box;

    #[allow(dead_code, reason = "machines with vectors have their own loop")]
    pub(super) fn multiply_adds(turns: usize) -> usize {
        let (a, b) = (black_box(0.999_999f32), black_box(1e-6f32));
        let mut sums = [1.0f32; 64];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = *sum * a + b;
            }
        }
        black_box(sums);
        turns * sums.len() * 2
    }

    pub(super) fn read(bytes: &[u8]) {
        let words: &[u64] = bytemuck::cast_slice(bytes);
        black_box(words.iter().fold(0u64, |sum, word| sum.wrapping_add(*word)));
    }
}
