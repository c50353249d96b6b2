//! The files that a batch writes are its own for the whole run: each is a regular file and locked, so that two batches
//! never write to one. What is in them is decided elsewhere.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use anyhow::Context as _;

use crate::exit::UsageError;

/// Refuses what is there and no regular file: a batch reads again what it wrote, and opening a pipe would wait for ever.
/// `flag` names it on the command line.
pub(super) fn check_regular(path: &Path, flag: &str) -> Result<(), UsageError> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(UsageError(format!(
            "{flag} {} is not a regular file, and a batch must be able to read it again; name a file",
            path.display()
        ))),
        // What is not there is made; what else is wrong is told when it is opened.
        _ => Ok(()),
    }
}

/// Opens `path`, or makes it, for reading and writing, and locks it until the file is closed.
///
/// # Errors
/// `UsageError` if it is no regular file or another batch writes to it; nothing in it has changed.
pub(super) fn claim(path: &Path, flag: &str) -> anyhow::Result<File> {
    check_regular(path, flag)?;
    let named = || path.display().to_string();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(named)?;
    lock(&file, path)?;
    // The batch before may have put a new file in the place of the one that was opened.
    if is_at(&file, path).with_context(named)? { Ok(file) } else { Err(taken(path).into()) }
}

/// Locks a file that is to be `path`, where locks are to be had.
pub(super) fn lock(file: &File, path: &Path) -> anyhow::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(taken(path).into()),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn taken(path: &Path) -> UsageError {
    let path = path.display();
    UsageError(format!("another batch is writing {path}; wait for it or choose another output"))
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let own = file.metadata()?;
    Ok(fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())))
}

#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    // An open file cannot be replaced there.
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;

    #[test]
    fn a_file_is_claimed_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let first = claim(&path, "--output").unwrap();
        let error = claim(&path, "--output").unwrap_err();
        assert_eq!(exit::code_of(&error), exit::USAGE);
        assert!(error.to_string().starts_with("another batch is writing "), "{error}");
        drop(first);
        claim(&path, "--output").unwrap();
    }

    #[test]
    fn what_is_no_regular_file_is_refused_before_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let error = claim(folder.path(), "--logits").unwrap_err();
        assert_eq!(exit::code_of(&error), exit::USAGE);
        assert!(error.to_string().starts_with("--logits "), "{error}");
    }
}
