//! A slice that several threads write at once, each its own rows.

use std::marker::PhantomData;

/// Rows of one slice, handed to several threads. Keeping them apart is the users' promise, once per call.
pub(super) struct SharedRows<'a> {
    start: *mut f32,
    len: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from an exclusive borrow of plain values that lasts as long as this does, and
// `SharedRows::row` demands that no two borrows overlap.
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
}
