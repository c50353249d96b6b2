//! The bytes of a weight file: mapped from disk, or compiled into the program.

use std::ops::Range;

use stellate_kernels::MappedFile;

/// A weight file.
#[derive(Debug)]
pub(super) enum WeightFile {
    /// On disk; its pages come and go.
    Mapped(MappedFile),
    /// Part of the program.
    Embedded(&'static [u8]),
}

impl WeightFile {
    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file.bytes(),
            Self::Embedded(bytes) => bytes,
        }
    }

    /// Lets go of the memory of `range`, which was read.
    pub(super) fn release(&self, range: Range<usize>) {
        if let Self::Mapped(file) = self {
            file.release(range);
        }
    }
}
