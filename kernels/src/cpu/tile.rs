//! Products of factors that lie in memory row by row, as attention's do: cut into strips of a few rows and panels of
//! columns for `micro`. Which tiles are multiplied, and in what order, is decided in `attention`; weights have their own
//! way in `strips`.
#![expect(
    clippy::needless_range_loop,
    reason = "indices over registers, unrolled by the compiler, read as the mathematics"
)]

use super::lanes::Lanes;
pub(super) use super::micro::MICRO_ROWS;
use super::micro::{self, Floats, Left, Meet, Pairs};
use super::shared::Block;

/// How far ahead memory is asked for when a stream is read once: what a core reads in the latency of main
/// memory, and some more.
const PREFETCH_BYTES: usize = 4096;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Strips that ask for what follows the right factor, a cache line per step each: together a whole panel of 64
/// columns, whose lines are four cache lines long.
const ASKING_STRIPS: usize = 4;

/// The factors, in the number formats in which they meet. Row `r` of the left one starts at `r * a_stride`, line
/// `k` of the right one at `k * b_stride`, both counted in what the slice holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Factors<'a> {
    /// Both in f32: a line is one depth.
    F32 { a: &'a [f32], b: &'a [f32] },
    /// Both in bf16 pairs along the depth.
    Pairs { a: &'a [u32], b: &'a [u32] },
}

/// `c = [factor * c +] a · b`. Every element is summed over `depth` in order, whatever else is computed beside it.
pub(super) struct Multiply<'a> {
    pub(super) depth: usize,
    pub(super) factors: Factors<'a>,
    pub(super) a_stride: usize,
    pub(super) b_stride: usize,
    /// As many rows as `a`; columns are a multiple of 8.
    pub(super) c: Block<'a>,
    pub(super) start: Start<'a>,
}

/// What the sums start from.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "the products of attention, which scale, are in `strip`")]
pub(super) enum Start<'a> {
    /// Nothing.
    Zero,
    /// What `c` holds.
    Sum,
    /// What `c` holds, each row times its factor.
    Scaled(&'a [f32]),
}

/// Runs `job` in registers of `L`, `PANEL` of them side by side.
#[inline(always)]
pub(super) fn multiply<L: Lanes, const PANEL: usize>(job: Multiply<'_>) {
    let Multiply { depth, factors, a_stride, b_stride, c, start } = job;
    let (rows, columns) = (c.rows(), c.columns());
    // The checks that every raw access below rests on.
    let within = |count: usize, stride: usize, width: usize, len: usize| {
        let last = count.saturating_sub(1).checked_mul(stride);
        count == 0 || last.and_then(|last| last.checked_add(width)).is_some_and(|end| end <= len)
    };
    let pairs = depth.div_ceil(2);
    let fits = match factors {
        Factors::F32 { a, b } => {
            within(rows, a_stride, depth, a.len()) && within(depth, b_stride, columns, b.len())
        }
        Factors::Pairs { a, b } => {
            within(rows, a_stride, pairs, a.len()) && within(pairs, b_stride, columns, b.len())
        }
    };
    assert!(columns.is_multiple_of(8), "columns are a multiple of 8");
    assert!(fits, "a is [rows, depth] and b [depth, columns]");
    if let Start::Scaled(factors) = start {
        assert!(factors.len() >= rows, "a factor per row");
    }
    #[cfg(target_arch = "x86_64")]
    if let (true, Factors::Pairs { a, b }) =
        (L::TILES && columns.is_multiple_of(super::amx::COLUMNS), factors)
    {
        if let Start::Scaled(factors) = start {
            rescale::<L>(&c, factors);
        }
        let accumulate = !matches!(start, Start::Zero);
        let (a, b) = ((a.as_ptr(), a_stride), (b.as_ptr(), b_stride));
        // SAFETY: tiles are on only in the kernels of `Isa::Amx`, which was found available; shapes were asserted.
        return unsafe { super::amx::multiply(depth, a, b, &c, accumulate) };
    }
    let job = Checked { depth, a_stride, b_stride, c: &c, start };
    // SAFETY: the assertions above are what it asks for.
    unsafe {
        match factors {
            Factors::F32 { a, b } => job.run::<L, Floats, PANEL>(a.as_ptr(), b.as_ptr()),
            Factors::Pairs { a, b } => job.run::<L, Pairs, PANEL>(a.as_ptr().cast(), b.as_ptr().cast()),
        }
    }
}

/// Multiplies each row of `c`, whose columns are a multiple of the registers' width, by its factor.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn rescale<L: Lanes>(c: &Block<'_>, factors: &[f32]) {
    for row in 0..c.rows() {
        for column in (0..c.columns()).step_by(L::WIDTH) {
            let at = c.at(row, column);
            // SAFETY: inside the block, which is owned.
            unsafe { L::load(at).mul(L::splat(factors[row])).store(at) };
        }
    }
}

/// A [`Multiply`] whose bounds were checked, but for its factors.
struct Checked<'a> {
    depth: usize,
    a_stride: usize,
    b_stride: usize,
    c: &'a Block<'a>,
    start: Start<'a>,
}

impl Checked<'_> {
    /// # Safety
    /// The factors hold what [`Multiply`] says for the rows and columns of `c`, and there is a factor per row.
    #[inline(always)]
    unsafe fn run<L: Lanes, M: Meet, const PANEL: usize>(&self, a: *const f32, b: *const f32) {
        let rows = self.c.rows();
        let streams = rows < ASKING_STRIPS * MICRO_ROWS;
        for row in (0..rows).step_by(MICRO_ROWS) {
            let ask = match row / MICRO_ROWS {
                0 if streams => Ask::Stream,
                strip if !streams && strip < ASKING_STRIPS => Ask::Share(strip),
                _ => Ask::Nothing,
            };
            let left = Left { start: a.wrapping_add(row * self.a_stride), row: self.a_stride };
            let strip = Strip { job: self, row, left, b, ask };
            // SAFETY: the caller's promise for all rows holds for the strip's.
            unsafe {
                match rows - row {
                    1 => strip.run::<L, M, PANEL, 1>(),
                    2 => strip.run::<L, M, PANEL, 2>(),
                    3 => strip.run::<L, M, PANEL, 3>(),
                    4 => strip.run::<L, M, PANEL, 4>(),
                    5 => strip.run::<L, M, PANEL, 5>(),
                    _ => strip.run::<L, M, PANEL, MICRO_ROWS>(),
                }
            }
        }
    }
}

/// What a strip asks the memory for while it computes.
#[derive(Debug, Clone, Copy)]
enum Ask {
    /// Its own lines, [`PREFETCH_BYTES`] ahead: it is the first to read them.
    Stream,
    /// This share of the cache lines that follow the right factor.
    Share(usize),
    /// Nothing.
    Nothing,
}

/// A few rows of a [`Multiply`].
struct Strip<'a> {
    job: &'a Checked<'a>,
    row: usize,
    left: Left,
    b: *const f32,
    ask: Ask,
}

impl Strip<'_> {
    /// All columns of `ROWS` rows.
    ///
    /// # Safety
    /// The factors and `c` hold what [`Multiply`] says for the rows `row..row + ROWS`.
    #[inline(always)]
    unsafe fn run<L: Lanes, M: Meet, const PANEL: usize, const ROWS: usize>(&self) {
        let (mut column, columns) = (0, self.job.c.columns());
        // SAFETY: every panel ends at or before `columns`; the rest is the caller's promise.
        unsafe {
            while column + PANEL * L::WIDTH <= columns {
                self.panel::<L, M, PANEL, ROWS>(column);
                column += PANEL * L::WIDTH;
            }
            while column + L::WIDTH <= columns {
                self.panel::<L, M, 1, ROWS>(column);
                column += L::WIDTH;
            }
            while column + L::Eight::WIDTH <= columns {
                self.panel::<L::Eight, M, 1, ROWS>(column);
                column += L::Eight::WIDTH;
            }
        }
    }

    /// `WIDTH * PANEL` columns from `column` on, summed in registers.
    ///
    /// # Safety
    /// As for [`Strip::run`], and the panel ends at or before `columns`.
    #[inline(always)]
    unsafe fn panel<L: Lanes, M: Meet, const PANEL: usize, const ROWS: usize>(&self, column: usize) {
        let Checked { depth, b_stride, c, .. } = *self.job;
        // SAFETY: rows are below ROWS, depths below `depth`, columns inside the panel: all inside the promised
        // shapes.
        unsafe {
            let mut sums = self.started::<L, PANEL, ROWS>(column);
            let ask = self.asking::<M>(column);
            let b = (self.b.wrapping_add(column), b_stride);
            micro::multiply::<L, M, Asking, PANEL, ROWS>(self.left, b, depth, ask, &mut sums);
            for row in 0..ROWS {
                for v in 0..PANEL {
                    sums[row][v].store(c.at(self.row + row, column + v * L::WIDTH));
                }
            }
        }
    }

    /// # Safety
    /// As for [`Strip::panel`].
    #[inline(always)]
    unsafe fn started<L: Lanes, const PANEL: usize, const ROWS: usize>(
        &self,
        column: usize,
    ) -> [[L; PANEL]; ROWS] {
        let mut sums = [[L::splat(0.0); PANEL]; ROWS];
        if matches!(self.job.start, Start::Zero) {
            return sums;
        }
        for row in 0..ROWS {
            for v in 0..PANEL {
                // SAFETY: inside `c`, by the caller's promise.
                sums[row][v] = unsafe { L::load(self.job.c.at(self.row + row, column + v * L::WIDTH)) };
            }
        }
        if let Start::Scaled(factors) = self.job.start {
            for row in 0..ROWS {
                let factor = L::splat(factors[self.row + row]);
                for v in 0..PANEL {
                    sums[row][v] = sums[row][v].mul(factor);
                }
            }
        }
        sums
    }

    /// What a panel from `column` on asks the memory for.
    #[inline(always)]
    fn asking<M: Meet>(&self, column: usize) -> Asking {
        let lines = self.job.depth.div_ceil(M::PER_LINE);
        let start = self.b.wrapping_add(column);
        match self.ask {
            Ask::Stream => Asking {
                address: start.wrapping_byte_add(PREFETCH_BYTES),
                step: self.job.b_stride * size_of::<f32>(),
                streams: true,
            },
            Ask::Share(share) => {
                let following = start.wrapping_add(lines * self.job.b_stride);
                let address = following.wrapping_byte_add(share * lines * LINE_BYTES);
                Asking { address, step: LINE_BYTES, streams: false }
            }
            Ask::Nothing => Asking { address: start, step: 0, streams: false },
        }
    }
}

/// Requests to the memory, one step per line of the right factor.
struct Asking {
    address: *const f32,
    /// Bytes from one step to the next.
    step: usize,
    /// Whether each step asks for a whole line, or for one cache line.
    streams: bool,
}

impl micro::Ask for Asking {
    #[inline(always)]
    fn next<L: Lanes, const PANEL: usize>(&mut self) {
        if self.streams {
            for v in 0..PANEL {
                L::prefetch(self.address.wrapping_add(v * L::WIDTH));
            }
        } else {
            L::prefetch(self.address);
        }
        self.address = self.address.wrapping_byte_add(self.step);
    }
}
