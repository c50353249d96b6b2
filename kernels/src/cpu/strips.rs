//! Products of inputs packed into strips with panels of 64 weight rows. Which strips meet which panels, and in what
//! pieces, is decided in `product`; the innermost loop is `micro`'s.
#![expect(
    clippy::needless_range_loop,
    reason = "indices over registers, unrolled by the compiler, read as the mathematics"
)]

use super::lanes::Lanes;
use super::micro::{self, Ask, Floats, Left, MICRO_ROWS, Meet, Pairs, Widened};
use super::shared::Block;
use crate::matrix::ROWS_PER_PANEL;

/// How far ahead a lone strip asks for its panel: about what a core reads in the latency of main memory.
const STREAM_BYTES: usize = 3072;

/// Rows of a strip where AMX tiles are multiplied.
pub(super) const TILE_ROWS: usize = 16;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// The lines of a panel, in the number formats in which they meet the strips.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lines<'a> {
    /// f32, meeting f32: a line is one depth.
    Floats(&'a [f32]),
    /// bf16 pairs, widened in registers, meeting f32: a line is two depths, the earlier in the low halves.
    Widened(&'a [u32]),
    /// bf16 pairs meeting bf16 pairs.
    Pairs(&'a [u32]),
}

/// `c [rows, 64] = [c +] a · b`: a piece of the depth of all strips with the same piece of a panel. Every element is
/// summed over `depth` in order, whatever else is computed beside it.
pub(super) struct Strips<'a> {
    pub(super) depth: usize,
    /// `[rows][a_row]` values or words, in whole strips: of six rows, or of [`TILE_ROWS`] where pairs run on AMX.
    pub(super) a: &'a [f32],
    /// Values or words from one row to the next.
    pub(super) a_row: usize,
    pub(super) b: Lines<'a>,
    pub(super) c: Block<'a>,
    /// Whether to add to what `c` holds.
    pub(super) accumulate: bool,
    /// What is read next, of which every strip asks for a share. A lone strip reads panels as one stream, and asks
    /// for what comes a little later in it.
    pub(super) ahead: &'a [u32],
}

#[cfg(target_arch = "x86_64")]
impl Strips<'_> {
    /// Whether `L`, which has an instruction for pairs, is better at it than the same registers without.
    pub(super) fn is_for<L: Lanes>(&self) -> bool {
        L::DOTS && matches!(self.b, Lines::Pairs(_))
    }
}

/// Runs `job` in registers of `L`, `PANEL` of them side by side.
#[inline(always)]
pub(super) fn run<L: Lanes, const PANEL: usize>(job: Strips<'_>) {
    let Strips { depth, a, a_row, b, ref c, .. } = job;
    let (rows, pairs) = (c.rows(), depth.div_ceil(2));
    // The checks that every raw access below rests on.
    let (lines, steps, len) = match b {
        Lines::Floats(b) => (depth, depth, b.len()),
        Lines::Widened(b) => (pairs, depth, b.len()),
        Lines::Pairs(b) => (pairs, pairs, b.len()),
    };
    let last = rows.saturating_sub(1).checked_mul(a_row);
    let end = last.and_then(|last| last.checked_add(steps));
    assert!(rows == 0 || end.is_some_and(|end| end <= a.len()), "a is [rows, depth]");
    assert!(lines.checked_mul(ROWS_PER_PANEL).is_some_and(|words| words <= len), "b is [depth, 64]");
    assert_eq!(c.columns(), ROWS_PER_PANEL, "products are with whole panels");
    #[cfg(target_arch = "x86_64")]
    if let (true, Lines::Pairs(b)) = (L::TILES, b) {
        let a = (a.as_ptr().cast(), a_row);
        // SAFETY: tiles are on only in the kernels of `Isa::Amx`, which was found available; shapes were asserted.
        return unsafe { super::amx::multiply(depth, a, (b.as_ptr(), ROWS_PER_PANEL), c, job.accumulate) };
    }
    // SAFETY: the assertions are what it asks for.
    unsafe {
        match b {
            Lines::Floats(b) if !L::DOTS => each::<L, Floats, PANEL>(&job, b.as_ptr()),
            Lines::Widened(b) if !L::DOTS => each::<L, Widened, PANEL>(&job, b.as_ptr().cast()),
            Lines::Pairs(b) if L::DOTS && !L::TILES => each::<L, Pairs, PANEL>(&job, b.as_ptr().cast()),
            other => unreachable!("another table's: {other:?}"),
        }
    }
}

/// # Safety
/// The factors hold what [`Strips`] says for the rows of `c`, which has 64 columns.
#[inline(always)]
unsafe fn each<L: Lanes, M: Meet, const PANEL: usize>(job: &Strips<'_>, b: *const f32) {
    let rows = job.c.rows();
    let strips = rows.div_ceil(MICRO_ROWS);
    let lines = (job.depth / M::PER_LINE).max(1) * (ROWS_PER_PANEL / (PANEL * L::WIDTH));
    let step = size_of_val(job.ahead).div_ceil(strips.max(1) * lines);
    let mut ahead = Ahead { address: job.ahead.as_ptr(), step };
    for row in (0..rows).step_by(MICRO_ROWS) {
        let a = job.a.as_ptr().wrapping_add(row * job.a_row);
        // SAFETY: the caller's promise for all rows holds for the strip's.
        unsafe {
            if strips == 1 {
                match rows {
                    1 => strip::<L, M, Stream, PANEL, 1>(job, row, a, b, Stream::from),
                    2 => strip::<L, M, Stream, PANEL, 2>(job, row, a, b, Stream::from),
                    3 => strip::<L, M, Stream, PANEL, 3>(job, row, a, b, Stream::from),
                    4 => strip::<L, M, Stream, PANEL, 4>(job, row, a, b, Stream::from),
                    5 => strip::<L, M, Stream, PANEL, 5>(job, row, a, b, Stream::from),
                    _ => strip::<L, M, Stream, PANEL, MICRO_ROWS>(job, row, a, b, Stream::from),
                }
                continue;
            }
            let mut share = |_| ahead.share(lines / (ROWS_PER_PANEL / (PANEL * L::WIDTH)));
            match rows - row {
                1 => strip::<L, M, Ahead, PANEL, 1>(job, row, a, b, &mut share),
                2 => strip::<L, M, Ahead, PANEL, 2>(job, row, a, b, &mut share),
                3 => strip::<L, M, Ahead, PANEL, 3>(job, row, a, b, &mut share),
                4 => strip::<L, M, Ahead, PANEL, 4>(job, row, a, b, &mut share),
                5 => strip::<L, M, Ahead, PANEL, 5>(job, row, a, b, &mut share),
                _ => strip::<L, M, Ahead, PANEL, MICRO_ROWS>(job, row, a, b, &mut share),
            }
        }
    }
}

/// `ROWS` rows from `row` on, a panel of registers after the other.
///
/// # Safety
/// As for [`each`]; `a` is the strip's start.
#[inline(always)]
unsafe fn strip<L: Lanes, M: Meet, A: Ask, const PANEL: usize, const ROWS: usize>(
    job: &Strips<'_>,
    row: usize,
    a: *const f32,
    b: *const f32,
    mut asking: impl FnMut(*const f32) -> A,
) {
    let left = Left { start: a, row: job.a_row };
    for column in (0..ROWS_PER_PANEL).step_by(PANEL * L::WIDTH) {
        let b = b.wrapping_add(column);
        let mut sums = [[L::splat(0.0); PANEL]; ROWS];
        // SAFETY: the caller's promise; registers side by side divide the 64 columns.
        unsafe {
            if job.accumulate {
                for row_of in 0..ROWS {
                    for v in 0..PANEL {
                        sums[row_of][v] = L::load(job.c.at(row + row_of, column + v * L::WIDTH));
                    }
                }
            }
            micro::multiply::<L, M, A, PANEL, ROWS>(
                left,
                (b, ROWS_PER_PANEL),
                job.depth,
                asking(b),
                &mut sums,
            );
            for row_of in 0..ROWS {
                for v in 0..PANEL {
                    sums[row_of][v].store(job.c.at(row + row_of, column + v * L::WIDTH));
                }
            }
        }
    }
}

/// Asks for a stream's own lines, [`STREAM_BYTES`] ahead.
struct Stream(*const f32);

impl Stream {
    #[inline(always)]
    fn from(b: *const f32) -> Self {
        Self(b.wrapping_byte_add(STREAM_BYTES))
    }
}

impl Ask for Stream {
    #[inline(always)]
    fn next<L: Lanes, const PANEL: usize>(&mut self) {
        for at in (0..PANEL * L::WIDTH * size_of::<f32>()).step_by(LINE_BYTES) {
            L::prefetch_second(self.0.wrapping_byte_add(at));
        }
        self.0 = self.0.wrapping_add(ROWS_PER_PANEL);
    }
}

/// Asks for a share of what is read next: of two cache lines each time, often the same.
#[derive(Clone, Copy)]
struct Ahead {
    address: *const u32,
    /// Bytes from one time to the next.
    step: usize,
}

impl Ahead {
    /// The requests of `times` times, which are taken off.
    #[inline(always)]
    fn share(&mut self, times: usize) -> Self {
        let share = *self;
        self.address = self.address.wrapping_byte_add(times * self.step);
        share
    }
}

impl Ask for Ahead {
    #[inline(always)]
    fn next<L: Lanes, const PANEL: usize>(&mut self) {
        L::prefetch_second(self.address);
        L::prefetch_second(self.address.wrapping_byte_add(LINE_BYTES));
        self.address = self.address.wrapping_byte_add(self.step);
    }
}
