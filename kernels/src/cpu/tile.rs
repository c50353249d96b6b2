//! The one matrix product under everything: a few rows times a panel of columns held in registers. Which tiles
//! are multiplied, and in what order, is decided in `product` and `attention`.
#![expect(
    clippy::needless_range_loop,
    reason = "indices over registers, unrolled by the compiler, read as the mathematics"
)]

use super::lanes::Lanes;
use super::shared::Block;

/// Rows whose sums are held in registers at once: with panels of 64 columns, 24 of AVX-512's 32 registers.
pub(super) const MICRO_ROWS: usize = 6;

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
    /// The right one in bf16 pairs, widened in registers: a line is two depths, the earlier in the low halves.
    Widened { a: &'a [f32], b: &'a [u32] },
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
        Factors::Widened { a, b } => {
            within(rows, a_stride, depth, a.len()) && within(pairs, b_stride, columns, b.len())
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
    let streams = rows < ASKING_STRIPS * MICRO_ROWS;
    for row in (0..rows).step_by(MICRO_ROWS) {
        let ask = match row / MICRO_ROWS {
            0 if streams => Ask::Stream,
            strip if !streams && strip < ASKING_STRIPS => Ask::Share(strip),
            _ => Ask::Nothing,
        };
        let strip = Strip { row, depth, factors, a_stride, b_stride, c: &c, start, ask };
        // SAFETY: the assertions above hold for all rows, so they hold for the strip's.
        unsafe {
            match rows - row {
                1 => strip.run::<L, PANEL, 1>(),
                2 => strip.run::<L, PANEL, 2>(),
                3 => strip.run::<L, PANEL, 3>(),
                4 => strip.run::<L, PANEL, 4>(),
                5 => strip.run::<L, PANEL, 5>(),
                _ => strip.run::<L, PANEL, MICRO_ROWS>(),
            }
        }
    }
}

/// Multiplies each row of `c`, whose columns are a multiple of the registers' width, by its factor.
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

/// A few rows of a [`Multiply`], whose bounds were checked.
struct Strip<'a> {
    row: usize,
    depth: usize,
    factors: Factors<'a>,
    a_stride: usize,
    b_stride: usize,
    c: &'a Block<'a>,
    start: Start<'a>,
    ask: Ask,
}

impl Strip<'_> {
    /// All columns of `ROWS` rows.
    ///
    /// # Safety
    /// The factors and `c` hold what [`Multiply`] says for the rows `row..row + ROWS`.
    #[inline(always)]
    unsafe fn run<L: Lanes, const PANEL: usize, const ROWS: usize>(&self) {
        let (mut column, columns) = (0, self.c.columns());
        // SAFETY: every panel ends at or before `columns`; the rest is the caller's promise.
        unsafe {
            while column + PANEL * L::WIDTH <= columns {
                self.panel::<L, PANEL, ROWS>(column);
                column += PANEL * L::WIDTH;
            }
            while column + L::WIDTH <= columns {
                self.panel::<L, 1, ROWS>(column);
                column += L::WIDTH;
            }
            while column + L::Eight::WIDTH <= columns {
                self.panel::<L::Eight, 1, ROWS>(column);
                column += L::Eight::WIDTH;
            }
        }
    }

    /// `WIDTH * PANEL` columns from `column` on, summed in registers.
    ///
    /// # Safety
    /// As for [`Strip::run`], and the panel ends at or before `columns`.
    #[inline(always)]
    unsafe fn panel<L: Lanes, const PANEL: usize, const ROWS: usize>(&self, column: usize) {
        // SAFETY: rows are below ROWS, depths below `depth`, columns inside the panel: all inside the promised
        // shapes. A pair's high half is used only where its depth is below `depth`.
        unsafe {
            let mut sums = self.started::<L, PANEL, ROWS>(column);
            let stride = self.a_stride;
            let mut ask = self.asking(column);
            match self.factors {
                Factors::F32 { a, b } => {
                    let (a, mut b) = (a.as_ptr().add(self.row * stride), b.as_ptr().add(column));
                    for k in 0..self.depth {
                        ask.next::<L, PANEL>();
                        let line = load_line::<L, PANEL>(b);
                        step(a.add(k), stride, &line, &mut sums);
                        b = b.wrapping_add(self.b_stride);
                    }
                }
                Factors::Widened { a, b } => {
                    let (a, mut b) = (a.as_ptr().add(self.row * stride), b.as_ptr().add(column).cast());
                    for k in (0..self.depth).step_by(2) {
                        ask.next::<L, PANEL>();
                        let line = load_line::<L, PANEL>(b);
                        step(a.add(k), stride, &low_halves(&line), &mut sums);
                        if k + 1 < self.depth {
                            step(a.add(k + 1), stride, &high_halves(&line), &mut sums);
                        }
                        b = b.wrapping_add(self.b_stride);
                    }
                }
                Factors::Pairs { a, b } => {
                    let a = a.as_ptr().add(self.row * stride).cast::<f32>();
                    let mut b = b.as_ptr().add(column).cast();
                    for k in 0..self.depth / 2 {
                        ask.next::<L, PANEL>();
                        let line = load_line::<L, PANEL>(b);
                        step_pairs::<L, PANEL, ROWS, false>(a.add(k), stride, &line, &mut sums);
                        b = b.wrapping_add(self.b_stride);
                    }
                    if self.depth % 2 == 1 {
                        let line = low_halves(&load_line::<L, PANEL>(b));
                        step_pairs::<L, PANEL, ROWS, true>(a.add(self.depth / 2), stride, &line, &mut sums);
                    }
                }
            }
            for row in 0..ROWS {
                for v in 0..PANEL {
                    sums[row][v].store(self.c.at(self.row + row, column + v * L::WIDTH));
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
        if matches!(self.start, Start::Zero) {
            return sums;
        }
        for row in 0..ROWS {
            for v in 0..PANEL {
                // SAFETY: inside `c`, by the caller's promise.
                sums[row][v] = unsafe { L::load(self.c.at(self.row + row, column + v * L::WIDTH)) };
            }
        }
        if let Start::Scaled(factors) = self.start {
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
    fn asking(&self, column: usize) -> Asking {
        let (start, lines) = match self.factors {
            Factors::F32 { b, .. } => (b.as_ptr(), self.depth),
            Factors::Widened { b, .. } | Factors::Pairs { b, .. } => {
                (b.as_ptr().cast(), self.depth.div_ceil(2))
            }
        };
        let start = start.wrapping_add(column);
        match self.ask {
            Ask::Stream => Asking {
                address: start.wrapping_byte_add(PREFETCH_BYTES),
                step: self.b_stride * size_of::<f32>(),
                streams: true,
            },
            Ask::Share(share) => {
                let following = start.wrapping_add(lines * self.b_stride);
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

impl Asking {
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

/// Adds the outer product of one line with the rows' factors, which start at `a`.
///
/// # Safety
/// `a` can be read at ROWS multiples of `stride`.
#[inline(always)]
unsafe fn step<L: Lanes, const PANEL: usize, const ROWS: usize>(
    a: *const f32,
    stride: usize,
    line: &[L; PANEL],
    sums: &mut [[L; PANEL]; ROWS],
) {
    for row in 0..ROWS {
        // SAFETY: the caller's promise.
        let factor = L::splat(unsafe { *a.add(row * stride) });
        for v in 0..PANEL {
            sums[row][v] = factor.mul_add(line[v], sums[row][v]);
        }
    }
}

/// As [`step`] with pairs; with `LOW` only the low halves count, and `line` holds them widened already.
///
/// # Safety
/// As for [`step`].
#[inline(always)]
unsafe fn step_pairs<L: Lanes, const PANEL: usize, const ROWS: usize, const LOW: bool>(
    a: *const f32,
    stride: usize,
    line: &[L; PANEL],
    sums: &mut [[L; PANEL]; ROWS],
) {
    for row in 0..ROWS {
        // SAFETY: the caller's promise.
        let factor = L::splat(unsafe { *a.add(row * stride) });
        let factor = if LOW { factor.low_halves() } else { factor };
        for v in 0..PANEL {
            sums[row][v] = sums[row][v].dot_pairs(factor, line[v]);
        }
    }
}

#[inline(always)]
fn low_halves<L: Lanes, const PANEL: usize>(line: &[L; PANEL]) -> [L; PANEL] {
    let mut low = *line;
    for lanes in &mut low {
        *lanes = lanes.low_halves();
    }
    low
}

#[inline(always)]
fn high_halves<L: Lanes, const PANEL: usize>(line: &[L; PANEL]) -> [L; PANEL] {
    let mut high = *line;
    for lanes in &mut high {
        *lanes = lanes.high_halves();
    }
    high
}

/// # Safety
/// `PANEL * WIDTH` values can be read from `from`.
#[inline(always)]
unsafe fn load_line<L: Lanes, const PANEL: usize>(from: *const f32) -> [L; PANEL] {
    let mut line = [L::splat(0.0); PANEL];
    for (v, lanes) in line.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *lanes = unsafe { L::load(from.add(v * L::WIDTH)) };
    }
    line
}
