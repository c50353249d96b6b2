//! What can go wrong with a store: opening it, its disk, and writes that it refuses by its rules. Each says what state is left.

use std::path::PathBuf;

use super::types::{MAX_KEY_BYTES, Promise};

/// A store could not be opened. The folder is as it was, but that it may have been created and hold a lock file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another store of this one, has the folder open. It is unharmed.
    #[error(
        "the data folder {} is in use{}; stop that process or give this one a data folder of its own",
        folder.display(), holder.map(|pid| format!(" by process {pid}")).unwrap_or_default()
    )]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// The process that says it has it, if it says so.
        holder: Option<u32>,
    },

    /// The folder or a file in it may not be written.
    #[error("the data folder {} may not be written ({problem}); give this user write permission or choose another folder", folder.display())]
    ReadOnly {
        /// The data folder.
        folder: PathBuf,
        /// What the system said.
        problem: String,
    },

    /// There is no room for the files of an empty store, or for repair after a crash. What was stored is still there.
    #[error("no room on the disk of the data folder {}; free some and start again", folder.display())]
    DiskFull {
        /// The data folder.
        folder: PathBuf,
    },

    /// The store was written by a later version of this program. It is unchanged.
    #[error("the store in {} has schema {found}, this program knows up to {known}; run the newer program that wrote it", folder.display())]
    Newer {
        /// The data folder.
        folder: PathBuf,
        /// The schema in the file.
        found: u64,
        /// The latest that this program knows.
        known: u64,
    },

    /// The file is damaged, or not a store. It has not been deleted.
    #[error("the store in {} is damaged ({problem}); move the file away to start empty, or put a copy of it back", folder.display())]
    Corrupt {
        /// The data folder.
        folder: PathBuf,
        /// What was found.
        problem: String,
    },

    /// The system refused something else.
    #[error("cannot open the store in {}: {problem}", folder.display())]
    Io {
        /// The data folder.
        folder: PathBuf,
        /// What the system said.
        problem: String,
    },
}

/// The disk, or what is on it, failed. All that was acknowledged before is still there, but for what [`Self::Corrupt`] names.
/// The writes of the failed call were not acknowledged: each is there wholly or not at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no room. Reading goes on, and writing when there is room again.
    #[error("no room on the disk of the data folder; free some and try again")]
    DiskFull,

    /// What was read is not what was written.
    #[error("the store is damaged: {what}; put a copy of it back, or delete what is damaged")]
    Corrupt {
        /// Which record, entry or page.
        what: String,
    },

    /// The system refused something else.
    #[error("the disk failed: {problem}")]
    Io {
        /// What the system said.
        problem: String,
    },
}

/// A write that the rules refuse. The store is unchanged by it; other writes of the same call are not affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The record is not at the version that the write expects.
    #[error("the record is at version {}, which is not what was expected; read it again", stored.map_or("none".to_owned(), |version| version.to_string()))]
    Version {
        /// Its version, or none if there is no such record.
        stored: Option<u64>,
    },

    /// The log has been fenced by a later owner.
    #[error(
        "the log belongs to epoch {stored} and no longer to epoch {offered}; another owner has taken it over"
    )]
    Fenced {
        /// The epoch of the log.
        stored: u64,
        /// The epoch of the write.
        offered: u64,
    },

    /// The log's next entry has another index than the write expects.
    #[error("the next entry of the log is {next}, not {expected}; read the log again")]
    Position {
        /// The index that the next entry will have.
        next: u64,
        /// What the write expected.
        expected: u64,
    },

    /// A higher promise has been made.
    #[error("term {} has been promised already", stored.term)]
    Promised {
        /// The highest promise.
        stored: Promise,
    },

    /// The key is empty or too long.
    #[error("a key has 1 to {MAX_KEY_BYTES} bytes, this one {bytes}")]
    Key {
        /// Its length.
        bytes: usize,
    },

    /// The value is too large.
    #[error("a value has at most {limit} bytes, this one {bytes}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// `StoreOptions::max_value_bytes`.
        limit: usize,
    },
}

/// Why a single write is not in the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// By the rules; the store is unchanged.
    #[error(transparent)]
    Refused(#[from] Refusal),

    /// By the disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether the system says that the disk, a quota or the file's size limit is exhausted.
pub(super) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Whether the system says that this user may not write there.
pub(super) fn is_read_only(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}

impl From<redb::StorageError> for StoreError {
    fn from(error: redb::StorageError) -> Self {
        match error {
            redb::StorageError::Io(error) if is_full(&error) => Self::DiskFull,
            redb::StorageError::Corrupted(what) => Self::Corrupt { what },
            error => Self::Io { problem: error.to_string() },
        }
    }
}

impl From<redb::TransactionError> for StoreError {
    fn from(error: redb::TransactionError) -> Self {
        match error {
            redb::TransactionError::Storage(error) => error.into(),
            error => Self::Io { problem: error.to_string() },
        }
    }
}

impl From<redb::TableError> for StoreError {
    fn from(error: redb::TableError) -> Self {
        match error {
            redb::TableError::Storage(error) => error.into(),
            error => Self::Corrupt { what: error.to_string() },
        }
    }
}

impl From<redb::CommitError> for StoreError {
    fn from(error: redb::CommitError) -> Self {
        match error {
            redb::CommitError::Storage(error) => error.into(),
            error => Self::Io { problem: error.to_string() },
        }
    }
}
