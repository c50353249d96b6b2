//! Memory that several threads write at once, each its own rows or its own block of rows and columns.

use std::marker::PhantomData;

/// Rows of one slice, handed to several threads. Keeping them apart is the users' promise, once per call.
pub(super) struct SharedRows<'a> {
    start: *mut f32,
    len: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from an exclusive borrow of plain values that lasts as long as this does, and the
// methods demand that no two borrows overlap.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    pub(super) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The values `at..at + len`.
    ///
    /// # Safety
    /// No other borrow that overlaps this range is alive, on any thread.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "row {at}+{len} of {}", self.len);
        // SAFETY: inside the borrowed slice by the assertion; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// The block `[rows, columns]` whose rows start at `at`, `stride` apart.
    ///
    /// # Safety
    /// No other borrow that overlaps these values is alive, on any thread.
    pub(super) unsafe fn block(&self, at: usize, rows: usize, columns: usize, stride: usize) -> Block<'_> {
        let end = rows.saturating_sub(1).checked_mul(stride).and_then(|last| last.checked_add(at + columns));
        assert!(rows == 0 || end.is_some_and(|end| end <= self.len), "[{rows}, {columns}] of {}", self.len);
        // One row past the end is never touched, so where there are no rows the start does not matter.
        Block { start: self.start.wrapping_add(at), rows, columns, stride, slice: PhantomData }
    }
}

/// Values `[rows, columns]` of a larger slice, owned while this lives.
pub(super) struct Block<'a> {
    start: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
    slice: PhantomData<&'a mut [f32]>,
}

impl<'a> Block<'a> {
    /// The first `columns` values of each of `rows` rows that start `stride` apart.
    pub(super) fn new(slice: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        let end = rows.saturating_sub(1).checked_mul(stride).and_then(|last| last.checked_add(columns));
        assert!(
            rows == 0 || end.is_some_and(|end| end <= slice.len()),
            "[{rows}, {columns}] of {}",
            slice.len()
        );
        Self { start: slice.as_mut_ptr(), rows, columns, stride, slice: PhantomData }
    }

    /// The same values again, borrowed from this block.
    pub(super) fn reborrow(&mut self) -> Block<'_> {
        Block {
            start: self.start,
            rows: self.rows,
            columns: self.columns,
            stride: self.stride,
            slice: PhantomData,
        }
    }

    /// Copies as many columns as both have.
    pub(super) fn copy_from(&mut self, from: &Block<'_>) {
        assert_eq!(self.rows, from.rows, "blocks of equally many rows");
        let width = self.columns.min(from.columns);
        for row in 0..self.rows {
            // SAFETY: inside both blocks, which are owned, so apart.
            unsafe { std::ptr::copy_nonoverlapping(from.at(row, 0), self.at(row, 0), width) };
        }
    }

    #[inline(always)]
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    #[inline(always)]
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Values from one row's start to the next's.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Where value `column` of row `row` lies: inside the slice for rows and columns below the block's.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, column: usize) -> *mut f32 {
        self.start.wrapping_add(row * self.stride + column)
    }
}
