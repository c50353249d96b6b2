//! The attention of query rows over one tile of keys on AMX: scores and weighted values in tiles, the softmax on
//! vectors beside them. Keys, values and queries are words of bf16 pairs, in the layouts that the instruction reads.
//!
//! A strip is 16 rows. While the vector units soften one strip, the tiles compute the scores of the next and the
//! values of the one before: each keeps the other waiting little, since neither is long enough to fill the other's
//! place alone.

use std::arch::asm;

use super::amx::Shapes;
use super::lanes::Lanes;
use super::softmax::{AttendTile, MAX_WIDTH, Scales, soften_pairs};
use super::strip::Asking;
use crate::KEYS_PER_TILE;

/// Rows of a tile, and its words per row.
const SIDE: usize = 16;

/// What the values per head have to be a multiple of: in each half, columns of two tiles.
pub(super) const WIDTHS: usize = 2 * SIDE * HALVES;

/// Values that one instruction sums over: a word of a tile is two.
const DEPTH: usize = 2 * SIDE;

/// Strips whose scores are alive at once: those of the one to come, at hand, and before.
const SLOTS: usize = 3;

/// The parts of a strip's turn: so many pairs of tiles of scores.
const HALVES: usize = KEYS_PER_TILE / SIDE / 2;

/// One instruction on named tiles, with an address and a stride in bytes where it has one.
macro_rules! tile {
    (zero $tile:literal) => {
        asm!(concat!("tilezero ", $tile), options(nostack, nomem, preserves_flags))
    };
    (load $tile:literal, $from:expr, $bytes:expr) => {
        asm!(
            concat!("tileloadd ", $tile, ", [{} + {}]"),
            in(reg) $from,
            in(reg) $bytes,
            options(nostack, readonly, preserves_flags)
        )
    };
    (store $tile:literal, $to:expr, $bytes:expr) => {
        asm!(
            concat!("tilestored [{} + {}], ", $tile),
            in(reg) $to,
            in(reg) $bytes,
            options(nostack, preserves_flags)
        )
    };
    (dot $sum:literal, $left:literal, $right:literal) => {
        asm!(
            concat!("tdpbf16ps ", $sum, ", ", $left, ", ", $right),
            options(nostack, nomem, preserves_flags)
        )
    };
}

/// As `softmax::attend`, for operands in pairs. Buffers of rows hold whole strips, and the width is a multiple of
/// [`WIDTHS`]; values from the last row's last key on are numbers.
#[inline(always)]
pub(super) fn attend<L: Lanes>(job: AttendTile<'_>, q: &[u32], k: &[u32], v: &[u32]) {
    let AttendTile { scales, width, seen, out, peak, total, scores, ahead, .. } = job;
    let rows = seen.len();
    let (first, strips) = (seen.partition_point(|seen| *seen == 0) / SIDE, rows.div_ceil(SIDE));
    if first * SIDE >= rows {
        return;
    }
    // The checks that every raw access below rests on.
    let padded = strips * SIDE;
    assert!(width.is_multiple_of(WIDTHS), "the width is a multiple of {WIDTHS}");
    assert!(
        q.len() >= padded * width / 2 && out.len() >= padded * width,
        "queries and outputs of whole strips"
    );
    assert!(k.len() >= width / 2 * KEYS_PER_TILE && v.len() >= KEYS_PER_TILE / 2 * width, "a tile of keys");
    assert!(scores.len() >= padded * KEYS_PER_TILE, "scores of whole strips");
    let steps = (strips - first) * (HALVES * width / DEPTH + 2 * width / WIDTHS * HALVES);
    let mut tiles = Tiles {
        width,
        q: q.as_ptr(),
        k: k.as_ptr(),
        v: v.as_ptr(),
        out: out.as_mut_ptr(),
        scores: scores.as_mut_ptr(),
        asking: Asking::new(ahead.0, ahead.1, steps, 1),
    };
    // SAFETY: AMX kernels run only where it was found available; strips are below `strips`, halves below HALVES, and
    // the assertions hold. Tiles are configured before they are used, and released at the end.
    unsafe {
        let shapes = Shapes::new(SIDE);
        asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly, preserves_flags));
        for half in 0..HALVES {
            tiles.begin_scores::<L>(first, half);
            tiles.end_scores(first, half);
        }
        for strip in first..strips {
            for half in 0..HALVES {
                if strip + 1 < strips {
                    tiles.begin_scores::<L>(strip + 1, half);
                }
                let from = strip * SIDE + half * SIDE / HALVES;
                for row in from..(from + SIDE / HALVES).min(rows) {
                    tiles.soften::<L>(row, scales, seen[row], &mut peak[row], &mut total[row]);
                }
                if strip + 1 < strips {
                    tiles.end_scores(strip + 1, half);
                }
                if strip > first {
                    tiles.add_values::<L>(strip - 1, half);
                }
            }
        }
        for half in 0..HALVES {
            tiles.add_values::<L>(strips - 1, half);
        }
        asm!("tilerelease", options(nostack, nomem, preserves_flags));
    }
}

/// The operands by their addresses.
struct Tiles {
    width: usize,
    q: *const u32,
    k: *const u32,
    v: *const u32,
    out: *mut f32,
    scores: *mut f32,
    asking: Asking,
}

impl Tiles {
    /// Where the scores, then the weights of a strip lie.
    #[inline(always)]
    fn scores_of(&self, strip: usize) -> *mut f32 {
        self.scores.wrapping_add(strip % SLOTS * SIDE * KEYS_PER_TILE)
    }

    /// Computes two tiles of scores of `strip`, which stay in tiles 0 and 1.
    ///
    /// # Safety
    /// The tiles are configured; the operands hold what [`attend`] asserts, and `strip` is one of theirs.
    #[inline(always)]
    unsafe fn begin_scores<L: Lanes>(&mut self, strip: usize, half: usize) {
        let (q_words, k_bytes) = (self.width / 2, KEYS_PER_TILE * size_of::<u32>());
        let mut q = self.q.wrapping_add(strip * SIDE * q_words);
        let mut k = self.k.wrapping_add(half * 2 * SIDE);
        // SAFETY: the caller's promise: a step is 16 words of a strip's rows, and 16 lines of keys.
        unsafe {
            tile!(zero "tmm0");
            tile!(zero "tmm1");
            for _ in 0..self.width / DEPTH {
                self.asking.turn::<L>();
                tile!(load "tmm4", q, q_words * size_of::<u32>());
                tile!(load "tmm5", k, k_bytes);
                tile!(load "tmm6", k.wrapping_add(SIDE), k_bytes);
                tile!(dot "tmm0", "tmm4", "tmm5");
                tile!(dot "tmm1", "tmm4", "tmm6");
                q = q.wrapping_add(SIDE);
                k = k.wrapping_add(SIDE * KEYS_PER_TILE);
            }
        }
    }

    /// Stores what [`Tiles::begin_scores`] computed.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn end_scores(&mut self, strip: usize, half: usize) {
        let (to, bytes) =
            (self.scores_of(strip).wrapping_add(half * 2 * SIDE), KEYS_PER_TILE * size_of::<f32>());
        // SAFETY: the caller's promise.
        unsafe {
            tile!(store "tmm0", to, bytes);
            tile!(store "tmm1", to.wrapping_add(SIDE), bytes);
        }
    }

    /// Turns the scores of one row into weights, and scales its sums where its peak has grown.
    ///
    /// # Safety
    /// As for [`Tiles::begin_scores`]; the scores of the row's strip were stored.
    #[inline(always)]
    unsafe fn soften<L: Lanes>(
        &mut self,
        row: usize,
        scales: Option<Scales<'_>>,
        seen: usize,
        peak: &mut f32,
        total: &mut [f32; MAX_WIDTH],
    ) {
        let scores = self.scores_of(row / SIDE).wrapping_add(row % SIDE * KEYS_PER_TILE);
        // SAFETY: a row of the scores, and later one of the outputs; nothing else refers to them meanwhile.
        unsafe {
            let scores = &mut *scores.cast::<[f32; KEYS_PER_TILE]>();
            let factor = match scales {
                None => soften_pairs::<L, false>(scores, None, seen, (peak, total)),
                Some(_) => soften_pairs::<L, true>(scores, scales, seen, (peak, total)),
            };
            if factor != 1.0 {
                let factor = L::splat(factor);
                for at in (0..self.width).step_by(L::WIDTH) {
                    let to = self.out.wrapping_add(row * self.width + at);
                    L::load(to).mul(factor).store(to);
                }
            }
        }
    }

    /// Adds a strip's weighted values to its sums, one half of their columns.
    ///
    /// # Safety
    /// As for [`Tiles::begin_scores`]; the strip's weights are whole.
    #[inline(always)]
    unsafe fn add_values<L: Lanes>(&mut self, strip: usize, half: usize) {
        let (weights, weights_bytes) = (self.scores_of(strip), KEYS_PER_TILE * size_of::<f32>());
        let width_bytes = self.width * size_of::<f32>();
        // SAFETY: the caller's promise: columns are below the width, and there are two steps of 16 lines.
        unsafe {
            tile!(load "tmm4", weights, weights_bytes);
            tile!(load "tmm7", weights.wrapping_add(SIDE), weights_bytes);
            for pair in 0..self.width / WIDTHS {
                self.asking.turn::<L>();
                let column = (half * (self.width / WIDTHS) + pair) * 2 * SIDE;
                let out = self.out.wrapping_add(strip * SIDE * self.width + column);
                let v = self.v.wrapping_add(column);
                let later = v.wrapping_add(SIDE * self.width);
                tile!(load "tmm2", out, width_bytes);
                tile!(load "tmm3", out.wrapping_add(SIDE), width_bytes);
                tile!(load "tmm5", v, width_bytes);
                tile!(dot "tmm2", "tmm4", "tmm5");
                tile!(load "tmm6", v.wrapping_add(SIDE), width_bytes);
                tile!(dot "tmm3", "tmm4", "tmm6");
                self.asking.turn::<L>();
                tile!(load "tmm5", later, width_bytes);
                tile!(dot "tmm2", "tmm7", "tmm5");
                tile!(load "tmm6", later.wrapping_add(SIDE), width_bytes);
                tile!(dot "tmm3", "tmm7", "tmm6");
                tile!(store "tmm2", out, width_bytes);
                tile!(store "tmm3", out.wrapping_add(SIDE), width_bytes);
            }
        }
    }
}
