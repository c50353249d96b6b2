//! Files that hold secrets: written whole or not at all, for their owner alone, and refused when others could have read
//! or changed them. What is in them is the business of the callers.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Largest identity file that is read: certificates and keys take a few hundred bytes, a full revocation list 2 MiB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// An identity file or folder could not be used. Files on disk are as they were before the call.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },

    /// There is no such file.
    #[error("{} does not exist; create the identity first (`stellate cluster init`, or join with a token)", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },

    /// Others than the owner may read or change it.
    #[error(
        "{} has permissions {mode:03o}, so others could have read or changed it; if nobody did, run `chmod {expected:03o} {}`",
        path.display(), path.display()
    )]
    Exposed {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they must be.
        expected: u32,
    },

    /// It exists already and would be overwritten.
    #[error("{} exists already and is not overwritten; name another folder, or move the old identity away", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },

    /// It holds something else than it should.
    #[error("{} is damaged or of another kind ({problem}); restore it from a backup, or remove the node and join again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl IdentityFileError {
    pub(super) fn corrupt(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::Corrupt { path: path.to_owned(), problem: problem.to_string() }
    }

    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// Makes `folder` for its owner alone, or checks that it is so.
pub(super) fn private_folder(folder: &Path) -> Result<(), IdentityFileError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|error| IdentityFileError::io("create the folder", folder, error))?;
    let metadata = fs::metadata(folder).map_err(|error| IdentityFileError::io("look at", folder, error))?;
    check_owner_alone(folder, &metadata, 0o700)
}

/// Checks that `folder` is its owner's alone, and does not make it.
pub(super) fn check_private_folder(folder: &Path) -> Result<(), IdentityFileError> {
    let metadata = fs::metadata(folder).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => IdentityFileError::Missing { path: folder.to_owned() },
        _ => IdentityFileError::io("look at", folder, error),
    })?;
    check_owner_alone(folder, &metadata, 0o700)
}

/// Writes `bytes` as `path` for its owner alone: into a new file beside it, flushed to the disk, then renamed, so that a
/// crash leaves the old file or the new one.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityFileError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = folder.join(name);
    let written = write_new(&temporary, bytes)
        .map_err(|error| IdentityFileError::io("write", &temporary, error))
        .and_then(|()| {
            fs::rename(&temporary, path).map_err(|error| IdentityFileError::io("write", path, error))
        });
    if written.is_err() {
        // Nothing is lost if this fails as well: the name holds this process's number and is tried for nothing else.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    // The new name is durable once the folder is.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| IdentityFileError::io("flush the folder of", path, error))
}

/// As [`write_private`], where `path` must not exist yet.
pub(super) fn write_private_new(path: &Path, bytes: &[u8]) -> Result<(), IdentityFileError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(IdentityFileError::Exists { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => write_private(path, bytes),
        Err(error) => Err(IdentityFileError::io("look at", path, error)),
    }
}

/// Reads a file that must be its owner's alone.
pub(super) fn read_private(path: &Path) -> Result<Vec<u8>, IdentityFileError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => IdentityFileError::Missing { path: path.to_owned() },
        _ => IdentityFileError::io("open", path, error),
    })?;
    // Of the open file and not of the name, which may come to mean another file in between.
    let metadata = file.metadata().map_err(|error| IdentityFileError::io("look at", path, error))?;
    check_owner_alone(path, &metadata, 0o600)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(IdentityFileError::corrupt(path, format!("no file of at most {MAX_FILE_BYTES} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| IdentityFileError::io("read", path, error))?;
    Ok(bytes)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    // What an earlier process of the same number left behind when it crashed.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(unix)]
fn check_owner_alone(path: &Path, metadata: &fs::Metadata, expected: u32) -> Result<(), IdentityFileError> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityFileError::Exposed { path: path.to_owned(), mode, expected });
    }
    Ok(())
}

/// Other systems keep permissions elsewhere; a folder of the user's own is private there by default.
#[cfg(not(unix))]
fn check_owner_alone(_: &Path, _: &fs::Metadata, _: u32) -> Result<(), IdentityFileError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn secrets_are_written_for_their_owner_alone_and_refused_when_exposed() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("identity");
        private_folder(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let file = folder.join("key");
        write_private_new(&file, b"secret").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_private(&file).unwrap(), b"secret");
        assert!(matches!(write_private_new(&file, b"other"), Err(IdentityFileError::Exists { .. })));
        write_private(&file, b"renewed").unwrap();
        assert_eq!(read_private(&file).unwrap(), b"renewed");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");

        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let message = read_private(&file).unwrap_err().to_string();
        assert!(message.contains("640") && message.contains("chmod 600"), "{message}");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(private_folder(&folder), Err(IdentityFileError::Exposed { expected: 0o700, .. })));
    }

    #[test]
    fn a_missing_file_says_how_to_get_an_identity() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("ca");
        assert!(matches!(check_private_folder(&folder), Err(IdentityFileError::Missing { .. })));
        assert!(!folder.exists(), "reading makes nothing");
        let error = read_private(&root.path().join("key")).unwrap_err();
        assert!(
            matches!(&error, IdentityFileError::Missing { .. }) && error.to_string().contains("cluster init")
        );
    }
}
