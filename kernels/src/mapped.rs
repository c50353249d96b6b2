//! A read-only file in memory, for checkpoints larger than what should stay resident while loading.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

/// A multiple of every page size that Linux uses (4, 16 and 64 KiB).
const RELEASE_GRANULE_BYTES: usize = 64 * 1024;

/// A file mapped read-only.
///
/// The file must not be truncated while it is mapped: reading past its new end stops the process. Checkpoints
/// are published by renaming a finished file into place, which leaves an old mapping intact.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// Fails where the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private to this value and read-only. That nobody rewrites the file while it
        // is mapped is required by the type's documentation, as every memory-mapping loader requires it.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the operating system that the whole pages inside `range` will not be read again soon, so that
    /// they stop counting as resident. Reading them again is correct: it fetches them from the file.
    pub fn release(&self, range: Range<usize>) {
        let start = range.start.next_multiple_of(RELEASE_GRANULE_BYTES);
        let end = range.end.min(self.map.len()) / RELEASE_GRANULE_BYTES * RELEASE_GRANULE_BYTES;
        if start >= end {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: DONTNEED may only discard data of private or anonymous memory. This is a read-only
            // mapping of a file, whose pages are read from the file again.
            let advised = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
            };
            // Advice that is refused changes nothing but the memory that stays resident.
            let _ = advised;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_range_reads_the_same_bytes_again() {
        let path = std::env::temp_dir().join(format!("stellate-mapped-{}", std::process::id()));
        let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert_eq!(file.bytes(), content);
        file.release(10..290_000);
        file.release(0..usize::MAX);
        file.release(5..6);
        assert_eq!(file.bytes(), content);
        std::fs::remove_file(&path).unwrap();
    }
}
