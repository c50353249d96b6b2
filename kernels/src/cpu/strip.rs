//! The products of attention: a few query rows times one tile of keys, or their weights times one tile of values,
//! summed in registers. Which rows and tiles meet is decided in `attention`; the softmax between is in `softmax`.
#![expect(
    clippy::needless_range_loop,
    reason = "indices over registers, unrolled by the compiler, read as the mathematics"
)]

use super::lanes::Lanes;
use super::shared::Block;
use super::softmax::MAX_WIDTH;

/// Rows whose sums are held in registers at once: with panels of 64 columns, 24 of AVX-512's 32 registers.
pub(super) const STRIP_ROWS: usize = 6;

/// Registers side by side, and rows of them, where a lone strip streams lines of 128 values from memory: whole lines, in the
/// order in which processors fetch ahead by themselves.
const WIDE_PANEL: usize = 8;
const WIDE_ROWS: usize = 3;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Lines of the right factor between two shares of requests to the memory.
pub(super) const LINES_PER_TURN: usize = 4;

/// The number formats in which a left and a right factor meet, line by line of the right one.
pub(super) trait Meeting {
    type Left: Copy;
    type Right: Copy;
    /// Depths of one line of the right factor.
    const DEPTHS: usize;
    /// Elements of a row of the left factor that meet one line.
    const LEFTS: usize;
    /// Of so many cache lines the memory is asked for one: more requests hold up a fast loop, and fewer leave a slow one
    /// waiting.
    const ASKED_OF: usize = 1;

    /// Adds the outer product of one line with the rows' factors, which start at `a`.
    ///
    /// # Safety
    /// `a` can be read at `ROWS` multiples of `stride`, `LEFTS` elements each, and `PANEL` registers' columns at `line`.
    unsafe fn step<L: Lanes, const PANEL: usize, const ROWS: usize>(
        a: *const Self::Left,
        stride: usize,
        line: *const Self::Right,
        sums: &mut [[L; PANEL]; ROWS],
    );

    /// As [`Meeting::step`] with the first depth of the line alone; only where a line has two.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn half_step<L: Lanes, const PANEL: usize, const ROWS: usize>(
        _a: *const Self::Left,
        _stride: usize,
        _line: *const Self::Right,
        _sums: &mut [[L; PANEL]; ROWS],
    ) {
    }
}

/// Both in f32.
pub(super) struct Floats;

impl Meeting for Floats {
    type Left = f32;
    type Right = f32;
    const DEPTHS: usize = 1;
    const LEFTS: usize = 1;
    const ASKED_OF: usize = 4;

    #[inline(always)]
    unsafe fn step<L: Lanes, const PANEL: usize, const ROWS: usize>(
        a: *const f32,
        stride: usize,
        line: *const f32,
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        // SAFETY: the caller's promise.
        unsafe { outer(a, stride, &load_line(line), sums) }
    }
}

/// f32 and words of bf16 pairs along the depth, widened in registers.
pub(super) struct Widened;

impl Meeting for Widened {
    type Left = f32;
    type Right = u32;
    const DEPTHS: usize = 2;
    const LEFTS: usize = 2;

    #[inline(always)]
    unsafe fn step<L: Lanes, const PANEL: usize, const ROWS: usize>(
        a: *const f32,
        stride: usize,
        line: *const u32,
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        // SAFETY: the caller's promise, for two elements of each row.
        unsafe {
            let words: [L; PANEL] = load_line(line.cast());
            outer(a, stride, &words.map(L::low_halves), sums);
            outer(a.add(1), stride, &words.map(L::high_halves), sums);
        }
    }

    #[inline(always)]
    unsafe fn half_step<L: Lanes, const PANEL: usize, const ROWS: usize>(
        a: *const f32,
        stride: usize,
        line: *const u32,
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let words: [L; PANEL] = load_line(line.cast());
            outer(a, stride, &words.map(L::low_halves), sums);
        }
    }
}

/// f32 and whole numbers of 8 bits, widened in registers.
pub(super) struct Bytes;

impl Meeting for Bytes {
    type Left = f32;
    type Right = i8;
    const DEPTHS: usize = 1;
    const LEFTS: usize = 1;

    #[inline(always)]
    unsafe fn step<L: Lanes, const PANEL: usize, const ROWS: usize>(
        a: *const f32,
        stride: usize,
        line: *const i8,
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        let mut wide = [L::splat(0.0); PANEL];
        // SAFETY: the caller's promise.
        unsafe {
            for (v, lanes) in wide.iter_mut().enumerate() {
                *lanes = L::load_bytes(line.add(v * L::WIDTH));
            }
            outer(a, stride, &wide, sums);
        }
    }
}

/// Both in words of bf16 pairs along the depth.
pub(super) struct Pairs;

impl Meeting for Pairs {
    type Left = u32;
    type Right = u32;
    const DEPTHS: usize = 2;
    const LEFTS: usize = 1;
    const ASKED_OF: usize = 4;

    #[inline(always)]
    unsafe fn step<L: Lanes, const PANEL: usize, const ROWS: usize>(
        a: *const u32,
        stride: usize,
        line: *const u32,
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        // SAFETY: the caller's promise.
        unsafe { dots(a, stride, &load_line(line.cast()), sums, |factor| factor) }
    }

    #[inline(always)]
    unsafe fn half_step<L: Lanes, const PANEL: usize, const ROWS: usize>(
        a: *const u32,
        stride: usize,
        line: *const u32,
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        // SAFETY: the caller's promise. The high halves of both are taken away: what lies there may be no number.
        unsafe {
            let words: [L; PANEL] = load_line(line.cast());
            dots(a, stride, &words.map(L::only_low_halves), sums, L::only_low_halves);
        }
    }
}

/// Registers side by side.
///
/// # Safety
/// `PANEL` registers can be read from `from`.
#[inline(always)]
pub(super) unsafe fn load_line<L: Lanes, const PANEL: usize>(from: *const f32) -> [L; PANEL] {
    let mut line = [L::splat(0.0); PANEL];
    for (v, lanes) in line.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *lanes = unsafe { L::load(from.add(v * L::WIDTH)) };
    }
    line
}

/// Adds the outer product of a line with one factor of each row.
///
/// # Safety
/// `a` can be read at `ROWS` multiples of `stride`.
#[inline(always)]
pub(super) unsafe fn outer<L: Lanes, const PANEL: usize, const ROWS: usize>(
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

/// As [`outer`], for bf16 pairs; `take` is the part of a row's pair that counts.
///
/// # Safety
/// As for [`outer`].
#[inline(always)]
pub(super) unsafe fn dots<L: Lanes, const PANEL: usize, const ROWS: usize>(
    a: *const u32,
    stride: usize,
    line: &[L; PANEL],
    sums: &mut [[L; PANEL]; ROWS],
    take: impl Fn(L) -> L,
) {
    for row in 0..ROWS {
        // SAFETY: the caller's promise.
        let factor = take(L::splat(f32::from_bits(unsafe { *a.add(row * stride) })));
        for v in 0..PANEL {
            sums[row][v] = sums[row][v].dot_pairs(factor, line[v]);
        }
    }
}

/// Requests to the memory for what follows in the stream of keys and values, a share with every few lines that are met.
pub(super) struct Asking {
    next: *const u8,
    end: *const u8,
    /// Requests of a turn.
    count: usize,
    /// Bytes from one to the next.
    step: usize,
}

impl Asking {
    /// Will ask for `bytes` from `start` on, an address that may lie anywhere, evenly over `turns` turns: for every cache
    /// line, or for the `every`th alone, where processors go on by themselves.
    pub(super) fn new(start: *const u8, bytes: usize, turns: usize, every: usize) -> Self {
        let step = every * LINE_BYTES;
        Self {
            next: start,
            end: start.wrapping_add(bytes),
            count: bytes.div_ceil(step).div_ceil(turns.max(1)),
            step,
        }
    }

    /// Asks for the share of one turn.
    #[inline(always)]
    pub(super) fn turn<L: Lanes>(&mut self) {
        if self.next < self.end {
            for _ in 0..self.count {
                L::prefetch_far(self.next);
                self.next = self.next.wrapping_add(self.step);
            }
        }
    }
}

/// What the sums start from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a> {
    /// Nothing.
    Zero,
    /// What `c` holds.
    Sum,
    /// What `c` holds, each row times its factor.
    Scaled(&'a [f32]),
}

/// `c = [factor * c +] a · b`. Every element is summed over `depth` in order, whatever else is computed beside it.
pub(super) struct Product<'a, M: Meeting> {
    pub(super) depth: usize,
    /// Row `r` starts at `r * a_stride`.
    pub(super) a: &'a [M::Left],
    pub(super) a_stride: usize,
    /// Line `k` starts at `k * b_stride`.
    pub(super) b: &'a [M::Right],
    pub(super) b_stride: usize,
    /// As many rows as `a`; columns are a multiple of 8.
    pub(super) c: Block<'a>,
    pub(super) start: Start<'a>,
}

impl<M: Meeting> Product<'_, M> {
    /// Computes it in registers of `L`, `PANEL` of them side by side.
    #[inline(always)]
    pub(super) fn run<L: Lanes, const PANEL: usize>(&self, asking: &mut Asking) {
        let (rows, columns) = (self.c.rows(), self.c.columns());
        // The checks that every raw access below rests on.
        let within = |count: usize, stride: usize, width: usize, len: usize| {
            let last = count.saturating_sub(1).checked_mul(stride);
            count == 0 || last.and_then(|last| last.checked_add(width)).is_some_and(|end| end <= len)
        };
        let lines = self.depth.div_ceil(M::DEPTHS);
        // The last line of an odd depth meets half of what a line may meet.
        let lefts = self.depth.div_ceil(M::DEPTHS / M::LEFTS);
        assert!(columns.is_multiple_of(8), "columns are a multiple of 8");
        assert!(within(rows, self.a_stride, lefts, self.a.len()), "a is [rows, depth]");
        assert!(within(lines, self.b_stride, columns, self.b.len()), "b is [depth, columns]");
        if let Start::Scaled(factors) = self.start {
            assert!(factors.len() >= rows, "a factor per row");
        }
        let mut row = 0;
        if L::DOTS && L::WIDTH == MAX_WIDTH && rows <= STRIP_ROWS && columns == WIDE_PANEL * L::WIDTH {
            while row < rows {
                // Four rows are two and two.
                let count = if rows - row == WIDE_ROWS + 1 { 2 } else { rows - row };
                // SAFETY: the assertions above hold for all rows, so they hold for these; the panel is all columns.
                unsafe {
                    match count {
                        1 => self.panel::<L, WIDE_PANEL, 1>(row, 0, asking),
                        2 => self.panel::<L, WIDE_PANEL, 2>(row, 0, asking),
                        _ => self.panel::<L, WIDE_PANEL, WIDE_ROWS>(row, 0, asking),
                    }
                }
                row += count.min(WIDE_ROWS);
            }
            return;
        }
        while row < rows {
            let left = rows - row;
            // A short rest is shared with the strip before it: two of four rows go faster than six and two.
            let count = if left > STRIP_ROWS && left < STRIP_ROWS + 3 { left.div_ceil(2) } else { left };
            // SAFETY: the assertions above hold for all rows, so they hold for the strip's.
            unsafe {
                match count {
                    1 => self.strip::<L, PANEL, 1>(row, asking),
                    2 => self.strip::<L, PANEL, 2>(row, asking),
                    3 => self.strip::<L, PANEL, 3>(row, asking),
                    4 => self.strip::<L, PANEL, 4>(row, asking),
                    5 => self.strip::<L, PANEL, 5>(row, asking),
                    _ => self.strip::<L, PANEL, STRIP_ROWS>(row, asking),
                }
            }
            row += count.min(STRIP_ROWS);
        }
    }

    /// All columns of `ROWS` rows.
    ///
    /// # Safety
    /// The factors and `c` hold what [`Product`] says for the rows `row..row + ROWS`.
    #[inline(always)]
    unsafe fn strip<L: Lanes, const PANEL: usize, const ROWS: usize>(&self, row: usize, asking: &mut Asking) {
        let (mut column, columns) = (0, self.c.columns());
        // SAFETY: every panel ends at or before `columns`; the rest is the caller's promise.
        unsafe {
            while column + PANEL * L::WIDTH <= columns {
                self.panel::<L, PANEL, ROWS>(row, column, asking);
                column += PANEL * L::WIDTH;
            }
            while PANEL > 1 && column + L::WIDTH <= columns {
                self.panel::<L, 1, ROWS>(row, column, asking);
                column += L::WIDTH;
            }
            while L::WIDTH > L::Eight::WIDTH && column + L::Eight::WIDTH <= columns {
                self.panel::<L::Eight, 1, ROWS>(row, column, asking);
                column += L::Eight::WIDTH;
            }
        }
    }

    /// `WIDTH * PANEL` columns from `column` on, summed in registers.
    ///
    /// # Safety
    /// As for [`Product::strip`], and the panel ends at or before `columns`.
    #[inline(always)]
    unsafe fn panel<L: Lanes, const PANEL: usize, const ROWS: usize>(
        &self,
        row: usize,
        column: usize,
        asking: &mut Asking,
    ) {
        // SAFETY: rows are below ROWS, depths below `depth`, columns inside the panel: all inside the promised
        // shapes. A pair's high half is used only where its depth is below `depth`.
        unsafe {
            let mut sums = self.started::<L, PANEL, ROWS>(row, column);
            let stride = self.a_stride;
            let mut a = self.a.as_ptr().add(row * stride);
            let mut b = self.b.as_ptr().wrapping_add(column);
            let lines = self.depth / M::DEPTHS;
            for _ in 0..lines / LINES_PER_TURN {
                asking.turn::<L>();
                for line in 0..LINES_PER_TURN {
                    M::step::<L, PANEL, ROWS>(a.wrapping_add(line * M::LEFTS), stride, b, &mut sums);
                    b = b.wrapping_add(self.b_stride);
                }
                a = a.wrapping_add(LINES_PER_TURN * M::LEFTS);
            }
            for _ in 0..lines % LINES_PER_TURN {
                M::step::<L, PANEL, ROWS>(a, stride, b, &mut sums);
                b = b.wrapping_add(self.b_stride);
                a = a.wrapping_add(M::LEFTS);
            }
            if !self.depth.is_multiple_of(M::DEPTHS) {
                M::half_step::<L, PANEL, ROWS>(a, stride, b, &mut sums);
            }
            for r in 0..ROWS {
                for v in 0..PANEL {
                    sums[r][v].store(self.c.at(row + r, column + v * L::WIDTH));
                }
            }
        }
    }

    /// # Safety
    /// As for [`Product::panel`].
    #[inline(always)]
    unsafe fn started<L: Lanes, const PANEL: usize, const ROWS: usize>(
        &self,
        row: usize,
        column: usize,
    ) -> [[L; PANEL]; ROWS] {
        let mut sums = [[L::splat(0.0); PANEL]; ROWS];
        if matches!(self.start, Start::Zero) {
            return sums;
        }
        for r in 0..ROWS {
            for v in 0..PANEL {
                // SAFETY: inside `c`, by the caller's promise.
                sums[r][v] = unsafe { L::load(self.c.at(row + r, column + v * L::WIDTH)) };
            }
        }
        if let Start::Scaled(factors) = self.start {
            for r in 0..ROWS {
                let factor = L::splat(factors[row + r]);
                for v in 0..PANEL {
                    sums[r][v] = sums[r][v].mul(factor);
                }
            }
        }
        sums
    }
}
