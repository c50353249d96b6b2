//! The innermost loop of every product on vectors: a few rows times a panel of columns, summed in registers. What is
//! multiplied, and what is loaded and stored around it, is decided in `strips`.
//!
//! Number formats and requests to the memory are types, so that each combination becomes a loop of its own: with a
//! choice inside, the compiler kept some of the sums on the stack.

use super::lanes::Lanes;
use super::strip::{dots, load_line, outer};

/// Rows whose sums are held in registers at once: with panels of 64 columns, 24 of AVX-512's 32 registers.
pub(super) const MICRO_ROWS: usize = 6;

/// How a left factor meets a line of the right one.
pub(super) trait Meet {
    /// Depths of a line.
    const PER_LINE: usize;
    /// Values or words of a row of the left factor that meet one line.
    const LEFT_PER_LINE: usize;

    /// Adds the products with one line. `whole` says whether all depths of the line count, or the first alone.
    ///
    /// # Safety
    /// `left` can be read for all rows, at every step that counts.
    unsafe fn add<L: Lanes, const PANEL: usize, const ROWS: usize>(
        left: Left,
        line: &[L; PANEL],
        whole: bool,
        sums: &mut [[L; PANEL]; ROWS],
    );
}

/// Where the left factor lies: step `k` of row `r` at `start + r * row + k`, in values or words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) start: *const f32,
    pub(super) row: usize,
}

/// Both in f32.
pub(super) struct Floats;

impl Meet for Floats {
    const PER_LINE: usize = 1;
    const LEFT_PER_LINE: usize = 1;

    #[inline(always)]
    unsafe fn add<L: Lanes, const PANEL: usize, const ROWS: usize>(
        left: Left,
        line: &[L; PANEL],
        _whole: bool,
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        // SAFETY: the caller's promise.
        unsafe { outer(left.start, left.row, line, sums) }
    }
}

/// The left one in f32, the right one in bf16 pairs, widened in registers.
pub(super) struct Widened;

impl Meet for Widened {
    const PER_LINE: usize = 2;
    const LEFT_PER_LINE: usize = 2;

    #[inline(always)]
    unsafe fn add<L: Lanes, const PANEL: usize, const ROWS: usize>(
        left: Left,
        line: &[L; PANEL],
        whole: bool,
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        // SAFETY: the caller's promise; the second step is read only where it counts.
        unsafe {
            Floats::add(left, &halves(line, L::low_halves), true, sums);
            if whole {
                let second = Left { start: left.start.add(1), ..left };
                Floats::add(second, &halves(line, L::high_halves), true, sums);
            }
        }
    }
}

/// Both in bf16 pairs along the depth.
pub(super) struct Pairs;

impl Meet for Pairs {
    const PER_LINE: usize = 2;
    const LEFT_PER_LINE: usize = 1;

    #[inline(always)]
    unsafe fn add<L: Lanes, const PANEL: usize, const ROWS: usize>(
        left: Left,
        line: &[L; PANEL],
        whole: bool,
        sums: &mut [[L; PANEL]; ROWS],
    ) {
        // SAFETY: the caller's promise; words are as wide as values. The high halves of both are taken away where they do
        // not count: what lies there may be no number.
        unsafe {
            match whole {
                true => dots(left.start.cast(), left.row, line, sums, |factor| factor),
                false => {
                    let line = halves(line, L::only_low_halves);
                    dots(left.start.cast(), left.row, &line, sums, L::only_low_halves);
                }
            }
        }
    }
}

#[inline(always)]
fn halves<L: Lanes, const PANEL: usize>(line: &[L; PANEL], half: impl Fn(L) -> L) -> [L; PANEL] {
    let mut halves = *line;
    for lanes in &mut halves {
        *lanes = half(*lanes);
    }
    halves
}

/// Requests to the memory, made once per line of the right factor.
pub(super) trait Ask {
    fn next<L: Lanes, const PANEL: usize>(&mut self);
}

/// `sums += left · right`, where line `k` of the right factor starts `k * b_stride` behind `b`.
///
/// # Safety
/// The left factor can be read for `ROWS` rows, and the right one in lines of `PANEL` registers, over `depth`.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes, M: Meet, A: Ask, const PANEL: usize, const ROWS: usize>(
    mut left: Left,
    (mut b, b_stride): (*const f32, usize),
    depth: usize,
    mut ask: A,
    sums: &mut [[L; PANEL]; ROWS],
) {
    // SAFETY: lines and the left factor's steps stay below `depth`, by the caller's promise readable.
    unsafe {
        for _ in 0..depth / M::PER_LINE {
            ask.next::<L, PANEL>();
            M::add(left, &load_line(b), true, sums);
            left.start = left.start.wrapping_add(M::LEFT_PER_LINE);
            b = b.wrapping_add(b_stride);
        }
        if !depth.is_multiple_of(M::PER_LINE) {
            M::add(left, &load_line(b), false, sums);
        }
    }
}
