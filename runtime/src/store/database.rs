//! The file: taking the folder's lock, creating, opening, checking, and opening anew after the disk has failed. What is in
//! the tables is for `read` and `write`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase, StorageBackend};

use super::backend::{Open, guarded};
use super::error::{OpenError, StoreError, is_full, is_read_only};
use super::options::StoreOptions;
use super::tables::{ENTRIES, HEADS, NUMBERS, RECORDS, SCHEMA, SCHEMA_KEY, VERSION_KEY};

const FILE: &str = "store.redb";
/// A store under construction: it gets its name when it is whole, so a crash never leaves half a store under [`FILE`].
const UNFINISHED: &str = "store.redb.new";
const LOCK: &str = "store.lock";

/// The durable store of one node. Every method blocks, see [`crate::store`]. To share it between threads, put it in an `Arc`.
#[derive(Debug)]
pub struct Store {
    pub(super) options: StoreOptions,
    source: Source,
    /// None after the disk has failed and until it could be opened again.
    database: RwLock<Option<Open>>,
    /// Held while the store lives; the system lets go of it even if the process is killed.
    _lock: Option<File>,
}

/// Where the database's bytes are.
enum Source {
    Folder(PathBuf),
    /// For tests of what a disk does when it fails.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests alone bring their own disks"))]
    Backend(Box<dyn Fn() -> Box<dyn StorageBackend> + Send + Sync>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(folder) => write!(out, "{}", folder.display()),
            Self::Backend(_) => out.write_str("backend"),
        }
    }
}

impl Store {
    /// Opens the store in `folder`, both created if there are none, and takes the folder for this process. After a crash it
    /// is first brought back to its last acknowledged write.
    ///
    /// # Errors
    /// [`OpenError`]: in use, read-only, full, newer, damaged.
    pub fn open(folder: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let lock = take(folder)?;
        let store = Self {
            options,
            source: Source::Folder(folder.to_owned()),
            database: RwLock::new(None),
            _lock: Some(lock),
        };
        if !folder.join(FILE).try_exists().map_err(|error| io_error(folder, &error))? {
            store.create(folder)?;
        }
        store.start(folder)
    }

    /// A store on a disk of the caller's making, which is asked for anew after each failure.
    #[cfg(test)]
    pub(super) fn open_on<B: StorageBackend>(
        disk: impl Fn() -> B + Send + Sync + 'static,
        options: StoreOptions,
    ) -> Result<Self, OpenError> {
        let source = Source::Backend(Box::new(move || Box::new(disk())));
        let store = Self { options, source, database: RwLock::new(None), _lock: None };
        let folder = Path::new("memory");
        let open = store.load().map_err(|error| open_error(folder, error))?;
        guarded(|| initialise(open.database()))
            .unwrap_or_else(|what| Err(StoreError::Corrupt { what }))
            .map_err(|error| store_error(folder, error))?;
        drop(open);
        store.start(folder)
    }

    fn start(self, folder: &Path) -> Result<Self, OpenError> {
        let mut open = self.load().map_err(|error| open_error(folder, error))?;
        let checked = check(folder, open.database_mut(), self.options.verify_on_open);
        if matches!(checked, Err(OpenError::Corrupt { .. } | OpenError::Newer { .. })) {
            // Whoever looks at it next should find it as it is.
            open.freeze();
        }
        checked?;
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(open);
        Ok(self)
    }

    fn create(&self, folder: &Path) -> Result<(), OpenError> {
        let unfinished = folder.join(UNFINISHED);
        let failed = |error: io::Error| io_error(folder, &error);
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut create = OpenOptions::new();
        create.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut create, 0o600);
        let file = create.open(&unfinished).map_err(failed)?;
        let open = FileBackend::new(file).and_then(|disk| Open::on(Box::new(disk), &self.builder()));
        let open = open.map_err(|error| open_error(folder, error))?;
        initialise(open.database()).map_err(|error| store_error(folder, error))?;
        drop(open);
        fs::rename(&unfinished, folder.join(FILE)).map_err(failed)?;
        sync_folder(folder).map_err(failed)
    }

    fn builder(&self) -> redb::Builder {
        let mut builder = Database::builder();
        builder.set_cache_size(self.options.cache_bytes);
        builder
    }

    fn load(&self) -> Result<Open, DatabaseError> {
        let disk = match &self.source {
            Source::Folder(folder) => {
                let file = OpenOptions::new().read(true).write(true).open(folder.join(FILE))?;
                if file.metadata()?.len() == 0 {
                    // The database would take it for a new one.
                    return Err(redb::StorageError::Corrupted("its file is empty".to_owned()).into());
                }
                Box::new(FileBackend::new(file)?)
            }
            Source::Backend(disk) => disk(),
        };
        Open::on(disk, &self.builder())
    }

    /// Runs `act` on the database. A database that has failed once refuses everything, so after a failure it is opened anew,
    /// which takes it back to its last commit.
    pub(super) fn with<T>(
        &self,
        act: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.revive()?;
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = database.as_ref().map(Open::database) else {
            return Err(StoreError::Io { problem: "the store failed a moment ago".to_owned() });
        };
        let done = guarded(|| act(open));
        drop(database);
        if matches!(done, Err(_) | Ok(Err(StoreError::DiskFull | StoreError::Io { .. }))) {
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done.unwrap_or_else(|what| Err(StoreError::Corrupt { what }))
    }

    fn revive(&self) -> Result<(), StoreError> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Some(self.load().map_err(|error| match error {
                DatabaseError::Storage(error) => StoreError::from(error),
                error => StoreError::Io { problem: error.to_string() },
            })?);
        }
        Ok(())
    }
}

/// Creates the folder if there is none and takes its lock.
fn take(folder: &Path) -> Result<File, OpenError> {
    let failed = |error: io::Error| io_error(folder, &error);
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(failed)?;

    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut lock = options.open(folder.join(LOCK)).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: a holder that cannot be read is one that is not named.
            let _ = lock.read_to_string(&mut holder);
            return Err(OpenError::InUse { folder: folder.to_owned(), holder: holder.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // On a full disk the holder stays unnamed; the lock is what counts.
    let _ =
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| write!(lock, "{}", std::process::id()));
    Ok(lock)
}

/// Whether the database is whole, as far as is asked for, and of a schema that this program knows.
fn check(folder: &Path, database: &mut Database, verify: bool) -> Result<(), OpenError> {
    let damaged = |problem| OpenError::Corrupt { folder: folder.to_owned(), problem };
    if verify
        && !guarded(|| database.check_integrity())
            .map_err(damaged)?
            .map_err(|error| open_error(folder, error))?
    {
        tracing::warn!(folder = %folder.display(), "the store's record of free pages was wrong and has been put right");
    }
    match guarded(|| schema(database)).map_err(damaged)?.map_err(|error| store_error(folder, error))? {
        Some(SCHEMA) => Ok(()),
        Some(found) if found > SCHEMA => {
            Err(OpenError::Newer { folder: folder.to_owned(), found, known: SCHEMA })
        }
        found => Err(damaged(format!("its schema version is {found:?}"))),
    }
}

fn initialise(database: &Database) -> Result<(), StoreError> {
    if schema(database)?.is_some() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    {
        let mut numbers = transaction.open_table(NUMBERS)?;
        numbers.insert(SCHEMA_KEY, SCHEMA)?;
        numbers.insert(VERSION_KEY, 0)?;
        transaction.open_table(RECORDS)?;
        transaction.open_table(HEADS)?;
        transaction.open_table(ENTRIES)?;
    }
    Ok(transaction.commit()?)
}

/// The schema of a database; none of an empty one.
fn schema(database: &Database) -> Result<Option<u64>, StoreError> {
    match database.begin_read()?.open_table(NUMBERS) {
        Ok(numbers) => Ok(numbers.get(SCHEMA_KEY)?.map(|schema| schema.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes names in `folder` durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    // Other systems than Unix have no such thing as opening a folder.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

fn io_error(folder: &Path, error: &io::Error) -> OpenError {
    let folder = folder.to_owned();
    match error {
        error if is_full(error) => OpenError::DiskFull { folder },
        error if is_read_only(error) => OpenError::ReadOnly { folder, problem: error.to_string() },
        // The database says so of a file that is none of its own.
        error if error.kind() == io::ErrorKind::InvalidData => {
            OpenError::Corrupt { folder, problem: error.to_string() }
        }
        error => OpenError::Io { folder, problem: error.to_string() },
    }
}

fn open_error(folder: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { folder: folder.to_owned(), holder: None },
        DatabaseError::Storage(redb::StorageError::Io(error)) => io_error(folder, &error),
        DatabaseError::Storage(redb::StorageError::Corrupted(problem)) => {
            OpenError::Corrupt { folder: folder.to_owned(), problem }
        }
        error => OpenError::Io { folder: folder.to_owned(), problem: error.to_string() },
    }
}

fn store_error(folder: &Path, error: StoreError) -> OpenError {
    let folder = folder.to_owned();
    match error {
        StoreError::DiskFull => OpenError::DiskFull { folder },
        StoreError::Corrupt { what } => OpenError::Corrupt { folder, problem: what },
        StoreError::Io { problem } => OpenError::Io { folder, problem },
    }
}
