//! The file as the database sees it, with two things that the database leaves to its file: a longer file is synced before
//! anything is written that counts on the length, and a file that was found damaged is not written any more.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{Database, DatabaseError, StorageBackend};

/// An open database and the switch that stops its writes.
#[derive(Debug)]
pub(super) struct Open {
    /// Always there but while it is dropped.
    database: Option<Database>,
    frozen: Arc<AtomicBool>,
}

impl Open {
    /// Opens the database on `disk`; an empty disk becomes an empty database.
    pub(super) fn on(disk: Box<dyn StorageBackend>, builder: &redb::Builder) -> Result<Self, DatabaseError> {
        let frozen = Arc::new(AtomicBool::new(false));
        let disk = Guarded { disk, frozen: Arc::clone(&frozen) };
        let damaged = |problem| DatabaseError::Storage(redb::StorageError::Corrupted(problem));
        let opened = guarded(|| builder.create_with_backend(disk)).map_err(damaged);
        Ok(Self { database: Some(opened.flatten()?), frozen })
    }

    pub(super) fn database(&self) -> &Database {
        self.database.as_ref().unwrap_or_else(|| unreachable!("only dropping takes it"))
    }

    pub(super) fn database_mut(&mut self) -> &mut Database {
        self.database.as_mut().unwrap_or_else(|| unreachable!("only dropping takes it"))
    }

    /// Nothing is written from here on, not even upon closing.
    pub(super) fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let database = self.database.take();
        // Closing writes a last commit, and asserts things about pages as all its writing does.
        if let Err(problem) = guarded(|| drop(database)) {
            tracing::warn!(
                problem,
                "the store could not be closed properly; it is repaired when it is opened"
            );
        }
    }
}

/// The database asserts much about its pages, and a damaged page can break what it asserts: that is a finding about the
/// file and no reason for the process to die. Nothing is used again that a panic may have left half done, but the database
/// itself, whose writes count only once they are committed.
pub(super) fn guarded<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("its pages make no sense").to_owned()
    })
}

#[derive(Debug)]
struct Guarded {
    disk: Box<dyn StorageBackend>,
    frozen: Arc<AtomicBool>,
}

impl Guarded {
    fn check(&self) -> io::Result<()> {
        if self.frozen.load(Ordering::Relaxed) {
            return Err(io::Error::other("the store is damaged and is not written any more"));
        }
        Ok(())
    }
}

impl StorageBackend for Guarded {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        let grows = len > self.disk.len()?;
        self.disk.set_len(len)?;
        // The header names the file's length, and a header that names more than there is cannot be opened (redb 4.1). A file
        // system may write a header's page before the length, so the length is synced first. A file grows by doubling.
        if grows { self.disk.sync_data() } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.disk.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.disk.close()
    }
}
