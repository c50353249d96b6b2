//! The folder that blocks lie in, behind a seam, so that tests can have it fail at every step.

use std::fmt;
use std::fs::{self, File, FileTimes};
use std::io::{self, ErrorKind, Write as _};
use std::path::PathBuf;
use std::time::SystemTime;

/// A file of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was used last, as far as was written down.
    pub used: SystemTime,
}

/// A folder of files. What was written counts as there once it was synced and its name was.
pub trait BlockFolder: fmt::Debug + Send + 'static {
    /// The files in it.
    ///
    /// # Errors
    /// The system's.
    fn list(&mut self) -> io::Result<Vec<Found>>;

    /// Fills `into` with what stands in a file from `offset` on.
    ///
    /// # Errors
    /// The system's; there are fewer bytes.
    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Begins a file anew, which is written next.
    ///
    /// # Errors
    /// The system's.
    fn create(&mut self, name: &str) -> io::Result<()>;

    /// Appends to the file that was created last.
    ///
    /// # Errors
    /// The system's; some of it may have been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Has the bytes of the file that was created last on the disk, and closes it.
    ///
    /// # Errors
    /// The system's; which bytes are on the disk is not known then.
    fn sync(&mut self) -> io::Result<()>;

    /// Gives a file another name.
    ///
    /// # Errors
    /// The system's.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Has the names of the folder on the disk.
    ///
    /// # Errors
    /// The system's; which names are on the disk is not known then.
    fn sync_names(&mut self) -> io::Result<()>;

    /// Removes a file, if there is one.
    ///
    /// # Errors
    /// The system's.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Writes down when a file was used.
    ///
    /// # Errors
    /// The system's.
    fn stamp(&mut self, name: &str, used: SystemTime) -> io::Result<()>;
}

/// A folder of this machine.
#[derive(Debug)]
pub struct SystemFolder {
    path: PathBuf,
    reading: Option<(String, File)>,
    writing: Option<File>,
}

impl SystemFolder {
    /// The folder at `path`, which is there.
    pub fn new(path: PathBuf) -> Self {
        Self { path, reading: None, writing: None }
    }

    fn writing(&mut self) -> io::Result<&mut File> {
        self.writing.as_mut().ok_or_else(|| io::Error::other("no file was created"))
    }
}

impl BlockFolder for SystemFolder {
    fn list(&mut self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let about = entry.metadata()?;
            // Names in another encoding are not of this program.
            if let (true, Ok(name)) = (about.is_file(), entry.file_name().into_string()) {
                found.push(Found { name, bytes: about.len(), used: about.modified()? });
            }
        }
        Ok(found)
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if self.reading.as_ref().is_none_or(|(open, _)| open != name) {
            self.reading = Some((name.to_owned(), File::open(self.path.join(name))?));
        }
        let (_, file) = self.reading.as_mut().expect("just opened");
        io::Seek::seek(file, io::SeekFrom::Start(offset))?;
        io::Read::read_exact(file, into)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        self.writing = Some(File::create(self.path.join(name))?);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writing()?.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.writing()?.sync_all()?;
        self.writing = None;
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.reading = None;
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_names(&mut self) -> io::Result<()> {
        // Only there can a folder be opened and synced.
        if cfg!(unix) { File::open(&self.path)?.sync_all() } else { Ok(()) }
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        // An open file keeps its bytes on the disk.
        (self.reading, self.writing) = (None, None);
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn stamp(&mut self, name: &str, used: SystemTime) -> io::Result<()> {
        let file = File::options().write(true).open(self.path.join(name))?;
        file.set_times(FileTimes::new().set_modified(used))
    }
}
