//! Products of bf16 pairs on AMX tiles. The packed layouts of weights, keys and values are the instruction's own:
//! a right tile is 16 lines of 16 words of a panel as they lie in memory. What is multiplied is decided elsewhere.
//!
//! Rust has no stable intrinsics for tiles, so the instructions are written out. Tiles hold no state between calls.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
use std::sync::OnceLock;

use super::shared::Block;

/// Rows of a tile, and its words per row.
const SIDE: usize = 16;

/// Sums held in tiles at once: a panel of 64 columns.
const PANEL_TILES: usize = 4;

/// How far ahead memory is asked for when one strip reads a stream once.
const PREFETCH_BYTES: usize = 8192;

/// Bytes of a cache line, and of a tile's row.
const LINE_BYTES: usize = 64;

/// Linux' request for the state component of tile data (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`).
#[cfg(target_os = "linux")]
const REQUEST: (i64, i64, i64) = (158, 0x1023, 18);

/// Whether this machine has AMX for bf16 and lets this process use it.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| is_present() && is_permitted())
}

/// Whether the processor says that it has AMX for bf16, permitted or not.
pub(super) fn is_present() -> bool {
    // CPUID leaf 7: bits 22 (AMX-BF16) and 24 (AMX-TILE) of EDX.
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    leaf.edx >> 22 & 1 == 1 && leaf.edx >> 24 & 1 == 1
}

#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    let (call, request, component) = REQUEST;
    let status: i64;
    // SAFETY: the system call takes two numbers, touches no memory, and changes no register but those named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") call => status,
            in("rdi") request,
            in("rsi") component,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    status == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The shapes of the eight tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
pub(super) struct Shapes([u8; 64]);

impl Shapes {
    /// Sums (tiles 0 to 3) and left factors (tile 4) of `rows` rows, right factors (5 to 7) of 16; all 64 bytes wide.
    pub(super) const fn new(rows: usize) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = (SIDE * size_of::<u32>()) as u8;
            bytes[48 + tile] = if tile < 5 { rows as u8 } else { SIDE as u8 };
            tile += 1;
        }
        Self(bytes)
    }
}

/// `c = [c +] a · b` over `depth` values in pairs: rows of `a` are `a_stride` words apart, lines of `b` `b_stride`.
///
/// # Safety
/// [`is_available`] said yes. By the strides `a` holds `[rows, depth / 2]` and `b` `[depth / 2, columns]` words, both
/// rounded up, for the rows and columns of `c`, which are multiples of 16 in number.
pub(super) unsafe fn multiply(
    depth: usize,
    (a, a_stride): (*const u32, usize),
    (b, b_stride): (*const u32, usize),
    c: &Block<'_>,
    accumulate: bool,
) {
    let (rows, columns) = (c.rows(), c.columns());
    let strips = rows.div_ceil(SIDE);
    let mut configured = 0;
    // SAFETY: strips and panels stay inside the promised shapes; the tiles are configured before they are used, and
    // released at the end.
    unsafe {
        for row in (0..rows).step_by(SIDE) {
            let count = (rows - row).min(SIDE);
            if count != configured {
                let shapes = Shapes::new(count);
                asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly, preserves_flags));
                configured = count;
            }
            for column in (0..columns).step_by(PANEL_TILES * SIDE) {
                let tiles = ((columns - column) / SIDE).min(PANEL_TILES);
                let strip = Strip {
                    index: row / SIDE,
                    of: strips,
                    rows: count,
                    depth,
                    a: a.wrapping_add(row * a_stride),
                    a_stride,
                    b: b.wrapping_add(column),
                    b_stride,
                    c: c.at(row, column),
                    c_stride: c.stride(),
                };
                match tiles {
                    1 => strip.run::<1>(accumulate),
                    2 => strip.run::<2>(accumulate),
                    3 => strip.run::<3>(accumulate),
                    _ => strip.run::<PANEL_TILES>(accumulate),
                }
            }
        }
        asm!("tilerelease", options(nostack, nomem, preserves_flags));
    }
}

/// At most 16 rows and four tiles of columns.
struct Strip {
    /// Which of how many strips with the same right factor.
    index: usize,
    of: usize,
    rows: usize,
    depth: usize,
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
}

/// One instruction on the tile of sums that `$index` names, in each of its four forms.
macro_rules! on_sum {
    ($index:expr, $before:literal, $after:literal, $($operand:tt)*) => {
        match $index {
            0 => asm!(concat!($before, "tmm0", $after), $($operand)*, options(nostack, preserves_flags)),
            1 => asm!(concat!($before, "tmm1", $after), $($operand)*, options(nostack, preserves_flags)),
            2 => asm!(concat!($before, "tmm2", $after), $($operand)*, options(nostack, preserves_flags)),
            _ => asm!(concat!($before, "tmm3", $after), $($operand)*, options(nostack, preserves_flags)),
        }
    };
}

impl Strip {
    /// # Safety
    /// As for [`multiply`]; the tiles are configured for `rows`.
    #[inline(always)]
    unsafe fn run<const TILES: usize>(&self, accumulate: bool) {
        let c_bytes = self.c_stride * size_of::<f32>();
        // SAFETY: the caller's promise; the tail is copied to where whole tiles can be read.
        unsafe {
            for tile in 0..TILES {
                if accumulate {
                    let c = self.c.wrapping_add(tile * SIDE);
                    on_sum!(tile, "tileloadd ", ", [{} + {}]", in(reg) c, in(reg) c_bytes);
                } else {
                    match tile {
                        0 => asm!("tilezero tmm0", options(nostack, nomem, preserves_flags)),
                        1 => asm!("tilezero tmm1", options(nostack, nomem, preserves_flags)),
                        2 => asm!("tilezero tmm2", options(nostack, nomem, preserves_flags)),
                        _ => asm!("tilezero tmm3", options(nostack, nomem, preserves_flags)),
                    }
                }
            }
            let whole = self.depth / (2 * SIDE);
            let (mut ahead, per_step) = self.ahead::<TILES>(whole);
            for step in 0..whole {
                for _ in 0..per_step {
                    if self.of == 1 {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    } else {
                        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                    }
                    ahead = ahead.wrapping_byte_add(LINE_BYTES);
                }
                let b = self.b.wrapping_add(step * SIDE * self.b_stride);
                add::<TILES>((self.a.wrapping_add(step * SIDE), self.a_stride), (b, self.b_stride));
            }
            if !self.depth.is_multiple_of(2 * SIDE) {
                self.add_tail::<TILES>(whole * SIDE);
            }
            for tile in 0..TILES {
                let c = self.c.wrapping_add(tile * SIDE);
                on_sum!(tile, "tilestored [{} + {}], ", "", in(reg) c, in(reg) c_bytes);
            }
        }
    }

    /// Where to ask the memory from, and how many cache lines per step: a single strip for its own lines further on,
    /// several for what follows the right factor, a share each.
    #[inline(always)]
    fn ahead<const TILES: usize>(&self, steps: usize) -> (*const u32, usize) {
        if self.of == 1 {
            return (self.b.wrapping_byte_add(PREFETCH_BYTES), TILES * SIDE);
        }
        let per_step = (TILES * SIDE).div_ceil(self.of);
        let following = self.b.wrapping_add(steps * SIDE * self.b_stride);
        (following.wrapping_byte_add(self.index * steps * per_step * LINE_BYTES), per_step)
    }

    /// Adds the lines from `first` on, fewer than a tile's: what lies beyond them may be anything.
    ///
    /// # Safety
    /// As for [`Strip::run`].
    unsafe fn add_tail<const TILES: usize>(&self, first: usize) {
        let mut a = [[0u32; SIDE]; SIDE];
        let mut b = [[0u32; PANEL_TILES * SIDE]; SIDE];
        let lines = self.depth.div_ceil(2) - first;
        // SAFETY: rows, lines and columns inside the promised shapes; the copies are whole tiles.
        unsafe {
            for (row, copy) in a.iter_mut().enumerate().take(self.rows) {
                let from = self.a.wrapping_add(row * self.a_stride + first);
                copy[..lines].copy_from_slice(std::slice::from_raw_parts(from, lines));
            }
            for (line, copy) in b.iter_mut().enumerate().take(lines) {
                let from = self.b.wrapping_add((first + line) * self.b_stride);
                copy[..TILES * SIDE].copy_from_slice(std::slice::from_raw_parts(from, TILES * SIDE));
            }
            if self.depth % 2 == 1 {
                b[lines - 1].iter_mut().for_each(|word| *word &= 0xffff);
            }
            add::<TILES>((a.as_ptr().cast(), SIDE), (b.as_ptr().cast(), PANEL_TILES * SIDE));
        }
    }
}

/// Adds the products of one left tile with `TILES` right ones, side by side.
///
/// # Safety
/// The tiles are configured, and can be read by their strides (in words).
#[inline(always)]
unsafe fn add<const TILES: usize>((a, a_stride): (*const u32, usize), (b, b_stride): (*const u32, usize)) {
    let (a_bytes, b_bytes) = (a_stride * size_of::<u32>(), b_stride * size_of::<u32>());
    // SAFETY: the caller's promise. The compiler uses no tiles of its own.
    unsafe {
        asm!("tileloadd tmm4, [{} + {}]", in(reg) a, in(reg) a_bytes, options(nostack, readonly, preserves_flags));
        macro_rules! column {
            ($index:literal, $sum:literal, $right:literal) => {
                if TILES > $index {
                    asm!(
                        concat!("tileloadd ", $right, ", [{} + {}]"),
                        concat!("tdpbf16ps ", $sum, ", tmm4, ", $right),
                        in(reg) b.wrapping_add($index * SIDE),
                        in(reg) b_bytes,
                        options(nostack, readonly, preserves_flags),
                    );
                }
            };
        }
        column!(0, "tmm0", "tmm5");
        column!(1, "tmm1", "tmm6");
        column!(2, "tmm2", "tmm7");
        column!(3, "tmm3", "tmm5");
    }
}
