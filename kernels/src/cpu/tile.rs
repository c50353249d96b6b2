//! The one matrix product under everything: a few rows times a panel of columns held in registers. Which tiles
//! are multiplied, and in what order, is decided in `product` and `attention`.
#![expect(
    clippy::needless_range_loop,
    reason = "indices over registers, unrolled by the compiler, read as the mathematics"
)]

use super::lanes::Lanes;

/// Rows whose sums are held in registers at once: with panels of 64 columns, 24 of AVX-512's 32 registers.
pub(super) const MICRO_ROWS: usize = 6;

/// How far ahead memory is asked for: what a core reads in the latency of main memory, and some more.
const PREFETCH_BYTES: usize = 4096;

/// The right factor `[depth, columns]`, as the packed layouts store it.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Row `k` starts at `k * stride`.
    F32 { data: &'a [f32], stride: usize },
    /// Words of bf16 pairs: rows `2k` (low) and `2k + 1` (high) start at `k * stride`.
    Pairs { data: &'a [u32], stride: usize },
}

/// `c = [c +] a · b`. Every element is summed over `depth` in order, whatever else is computed beside it.
pub(super) struct Multiply<'a> {
    pub(super) rows: usize,
    /// A multiple of 8.
    pub(super) columns: usize,
    pub(super) depth: usize,
    /// Row `r` of `a` starts at `r * a_stride`.
    pub(super) a: &'a [f32],
    pub(super) a_stride: usize,
    pub(super) b: Right<'a>,
    /// Row `r` of `c` starts at `r * c_stride`.
    pub(super) c: &'a mut [f32],
    pub(super) c_stride: usize,
    /// Whether to add to what `c` holds.
    pub(super) accumulate: bool,
}

/// Runs `job` in registers of `L`, `PANEL` of them side by side.
#[inline(always)]
pub(super) fn multiply<L: Lanes, const PANEL: usize>(job: Multiply<'_>) {
    let Multiply { rows, columns, depth, a, a_stride, b, c, c_stride, accumulate } = job;
    // The checks that every raw access below rests on.
    let within = |count: usize, stride: usize, width: usize, len: usize| {
        count == 0
            || (count - 1)
                .checked_mul(stride)
                .and_then(|last| last.checked_add(width))
                .is_some_and(|end| end <= len)
    };
    assert!(columns.is_multiple_of(8), "columns are a multiple of 8");
    assert!(within(rows, a_stride, depth, a.len()), "a is [rows, depth]");
    assert!(within(rows, c_stride, columns, c.len()), "c is [rows, columns]");
    let b_fits = match b {
        Right::F32 { data, stride } => within(depth, stride, columns, data.len()),
        Right::Pairs { data, stride } => within(depth.div_ceil(2), stride, columns, data.len()),
    };
    assert!(b_fits, "b is [depth, columns]");
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(MICRO_ROWS);
        let (a, c) = (a[row * a_stride..].as_ptr(), c[row * c_stride..].as_mut_ptr());
        let strip = Strip { columns, depth, a, a_stride, b, c, c_stride, accumulate };
        // SAFETY: the assertions above hold for all rows, so they hold for `count` rows from `row` on.
        unsafe {
            match count {
                1 => strip.run::<L, PANEL, 1>(),
                2 => strip.run::<L, PANEL, 2>(),
                3 => strip.run::<L, PANEL, 3>(),
                4 => strip.run::<L, PANEL, 4>(),
                5 => strip.run::<L, PANEL, 5>(),
                _ => strip.run::<L, PANEL, MICRO_ROWS>(),
            }
        }
        row += count;
    }
}

/// A few rows of a [`Multiply`], whose bounds were checked.
struct Strip<'a> {
    columns: usize,
    depth: usize,
    a: *const f32,
    a_stride: usize,
    b: Right<'a>,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
}

impl Strip<'_> {
    /// All columns of `ROWS` rows.
    ///
    /// # Safety
    /// `a` holds `[ROWS, depth]`, `b` `[depth, columns]` and `c` `[ROWS, columns]` values by their strides.
    #[inline(always)]
    unsafe fn run<L: Lanes, const PANEL: usize, const ROWS: usize>(&self) {
        let mut column = 0;
        // SAFETY: every panel ends at or before `columns`; the rest is the caller's promise.
        unsafe {
            while column + PANEL * L::WIDTH <= self.columns {
                self.panel::<L, PANEL, ROWS>(column);
                column += PANEL * L::WIDTH;
            }
            while column + L::WIDTH <= self.columns {
                self.panel::<L, 1, ROWS>(column);
                column += L::WIDTH;
            }
            while column + L::Eight::WIDTH <= self.columns {
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
        let mut sums = [[L::splat(0.0); PANEL]; ROWS];
        // SAFETY: rows are below ROWS, depths below `depth`, columns inside the panel: all inside the promised
        // shapes. A pair's high half is read only where its depth is below `depth`.
        unsafe {
            if self.accumulate {
                for row in 0..ROWS {
                    for v in 0..PANEL {
                        sums[row][v] = L::load(self.c.add(row * self.c_stride + column + v * L::WIDTH));
                    }
                }
            }
            match self.b {
                Right::F32 { data, stride } => {
                    let mut b = data.as_ptr().add(column);
                    for k in 0..self.depth {
                        prefetch::<L, f32, PANEL, ROWS>(b);
                        let line = load_line::<L, PANEL>(|v| L::load(b.add(v * L::WIDTH)));
                        self.step(k, &line, &mut sums);
                        b = b.wrapping_add(stride);
                    }
                }
                Right::Pairs { data, stride } => {
                    let mut b = data.as_ptr().add(column);
                    for k in (0..self.depth / 2 * 2).step_by(2) {
                        prefetch::<L, u32, PANEL, ROWS>(b);
                        let low = load_line::<L, PANEL>(|v| L::load_low(b.add(v * L::WIDTH)));
                        self.step(k, &low, &mut sums);
                        let high = load_line::<L, PANEL>(|v| L::load_high(b.add(v * L::WIDTH)));
                        self.step(k + 1, &high, &mut sums);
                        b = b.wrapping_add(stride);
                    }
                    if self.depth % 2 == 1 {
                        let low = load_line::<L, PANEL>(|v| L::load_low(b.add(v * L::WIDTH)));
                        self.step(self.depth - 1, &low, &mut sums);
                    }
                }
            }
            for row in 0..ROWS {
                for v in 0..PANEL {
                    sums[row][v].store(self.c.add(row * self.c_stride + column + v * L::WIDTH));
                }
            }
        }
    }

    /// Adds depth `k`'s outer product.
    ///
    /// # Safety
    /// As for [`Strip::run`], and `k < depth`.
    #[inline(always)]
    unsafe fn step<L: Lanes, const PANEL: usize, const ROWS: usize>(
        &self,
        k: usize,
        line: &[L; PANEL],
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        for row in 0..ROWS {
            // SAFETY: `a` holds `depth` values in each of ROWS rows.
            let factor = L::splat(unsafe { *self.a.add(row * self.a_stride + k) });
            for v in 0..PANEL {
                sums[row][v] = factor.mul_add(line[v], sums[row][v]);
            }
        }
    }
}

/// Fetches what follows a panel's line, [`PREFETCH_BYTES`] ahead, when few rows read a long stream once. With
/// more rows the lines come from the caches, and the stream is read at the pace of the arithmetic.
#[inline(always)]
fn prefetch<L: Lanes, T, const PANEL: usize, const ROWS: usize>(line: *const T) {
    if ROWS < MICRO_ROWS {
        for v in 0..PANEL {
            L::prefetch(line.wrapping_byte_add(PREFETCH_BYTES + v * size_of::<f32>() * L::WIDTH));
        }
    }
}

#[inline(always)]
fn load_line<L: Lanes, const PANEL: usize>(load: impl Fn(usize) -> L) -> [L; PANEL] {
    let mut line = [L::splat(0.0); PANEL];
    for (v, lanes) in line.iter_mut().enumerate() {
        *lanes = load(v);
    }
    line
}
