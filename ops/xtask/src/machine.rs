//! What a node's machine does to it: a wall clock that is off, a disk that is slow or full. A small library that is loaded into
//! the node (`shim/shim.c`) does the first two, and the third where no small file system may be mounted.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

const SOURCE: &str = include_str!("../shim/shim.c");

/// Room of a node's own small disk. What a schedule writes takes a part of it.
const VOLUME: &str = "48m";

/// What is written at once to fill a disk.
const FILL_BYTES: usize = 256 << 10;

/// What machines of this run can do to their nodes. Clones are the same.
#[derive(Clone, Debug)]
pub struct Workshop(Arc<Tools>);

#[derive(Debug)]
struct Tools {
    folder: TempDir,
    shim: Result<PathBuf, String>,
    may_mount: bool,
}

impl Workshop {
    /// Compiles the shim, and tries whether a file system may be mounted.
    ///
    /// # Errors
    /// No temporary folder can be made. What else cannot be had is told by [`lacks`](Self::lacks).
    pub fn open() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("stellate-machines-").tempdir()?;
        let shim = build(folder.path()).map_err(|error| format!("{error:#}"));
        let tried = folder.path().join("try");
        fs::create_dir(&tried)?;
        let may_mount = Volume::mount(&tried).is_ok();
        Ok(Self(Arc::new(Tools { folder, shim, may_mount })))
    }

    /// What cannot be done to nodes here, and why.
    pub fn lacks(&self) -> Vec<String> {
        let shim = self.0.shim.as_ref().err();
        let shim = shim.map(|why| format!("skewed clocks and slow disks: no shim could be built ({why})"));
        let mount = (!self.0.may_mount).then(|| {
            "disks of their own: mounting is not permitted; writes are refused by the shim".to_owned()
        });
        shim.into_iter().chain(mount).collect()
    }

    /// Whether clocks and syncs can be changed.
    pub fn has_shim(&self) -> bool {
        self.0.shim.is_ok()
    }

    /// Whether disks can be full.
    pub fn has_disks(&self) -> bool {
        self.0.may_mount || self.has_shim()
    }

    /// The machine of a node.
    ///
    /// # Errors
    /// Its files cannot be made.
    pub fn machine(&self) -> anyhow::Result<Machine> {
        let folder = tempfile::Builder::new().prefix("node-").tempdir_in(self.0.folder.path())?;
        let wishes = folder.path().join("wishes");
        fs::write(&wishes, [0; Wishes::BYTES])?;
        let mount = folder.path().join("disk");
        fs::create_dir(&mount)?;
        let volume = if self.0.may_mount { Some(Volume::mount(&mount)?) } else { None };
        Ok(Machine { volume, wishes: Wishes::default(), folder, tools: self.0.clone() })
    }
}

fn build(folder: &Path) -> anyhow::Result<PathBuf> {
    ensure!(cfg!(all(target_os = "linux", target_pointer_width = "64")), "it is for 64-bit Linux");
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    fs::write(&source, SOURCE)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    let built = compiler.output().context("`cc` cannot be run")?;
    ensure!(built.status.success(), "`cc` failed: {}", String::from_utf8_lossy(&built.stderr).trim());
    Ok(library)
}

/// What a shim does, as it reads it.
#[derive(Clone, Copy, Debug, Default)]
struct Wishes {
    clock_ms: i64,
    sync_us: i64,
    is_full: i64,
}

impl Wishes {
    const BYTES: usize = 24;

    fn to_bytes(self) -> Vec<u8> {
        [self.clock_ms, self.sync_us, self.is_full].map(i64::to_ne_bytes).concat()
    }
}

/// The machine of one node, as far as it can be harmed. It must outlive the node's process.
#[derive(Debug)]
pub struct Machine {
    // Unmounted before its folder goes.
    volume: Option<Volume>,
    wishes: Wishes,
    folder: TempDir,
    tools: Arc<Tools>,
}

impl Machine {
    /// Where the node keeps its data.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("disk").join("data")
    }

    /// What loads the shim into a process.
    pub fn environment(&self) -> Vec<(String, String)> {
        let Ok(shim) = &self.tools.shim else { return Vec::new() };
        let wishes = self.folder.path().join("wishes");
        vec![
            ("LD_PRELOAD".to_owned(), shim.display().to_string()),
            ("FAULT_SHIM".to_owned(), wishes.display().to_string()),
        ]
    }

    /// The wall clock shows so many milliseconds more than it should.
    ///
    /// # Errors
    /// The wish cannot be written.
    pub fn skew_clock(&mut self, ms: i64) -> io::Result<()> {
        self.wishes.clock_ms = ms;
        self.wish()
    }

    /// Every sync takes so many milliseconds more.
    ///
    /// # Errors
    /// As [`skew_clock`](Self::skew_clock).
    pub fn slow_syncs(&mut self, ms: i64) -> io::Result<()> {
        self.wishes.sync_us = 1000 * ms;
        self.wish()
    }

    /// Leaves no room on the disk, or gives it back.
    ///
    /// # Errors
    /// As [`skew_clock`](Self::skew_clock), or the disk cannot be filled for another reason than that it is full.
    pub fn fill_disk(&mut self, is_full: bool) -> io::Result<()> {
        if let Some(volume) = &self.volume {
            return if is_full { volume.fill() } else { volume.empty() };
        }
        self.wishes.is_full = i64::from(is_full);
        self.wish()
    }

    /// All is as it should be.
    ///
    /// # Errors
    /// As the others.
    pub fn mend(&mut self) -> io::Result<()> {
        self.wishes = Wishes::default();
        self.wish()?;
        self.fill_disk(false)
    }

    fn wish(&self) -> io::Result<()> {
        // In place: the file is mapped by whoever reads it.
        let mut file = File::options().write(true).open(self.folder.path().join("wishes"))?;
        file.write_all(&self.wishes.to_bytes())
    }
}

/// A small file system in memory. Dropped, it is unmounted.
#[derive(Debug)]
struct Volume(PathBuf);

impl Volume {
    fn mount(at: &Path) -> anyhow::Result<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={VOLUME}"), "stellate-faults"]).arg(at);
        let mounted = mount.stdin(Stdio::null()).output().context("`mount` cannot be run")?;
        ensure!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr).trim());
        Ok(Self(at.to_owned()))
    }

    fn fill(&self) -> io::Result<()> {
        let mut file = File::create(self.0.join("ballast"))?;
        // Ever smaller pieces, until not even a page is left.
        let mut bytes = FILL_BYTES;
        while bytes > 0 {
            match file.write_all(&vec![0; bytes]) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => bytes /= 4,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn empty(&self) -> io::Result<()> {
        match fs::remove_file(self.0.join("ballast")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // At once, even if a process that is about to end still has a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::print_stdout, reason = "what is skipped is told")]

    use super::*;

    /// Seconds since 1970, as a process of the machine sees them.
    fn date(machine: &Machine) -> i64 {
        let mut date = Command::new("date");
        let output = date.arg("+%s").envs(machine.environment()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    #[test]
    fn a_machine_skews_clocks_and_fills_disks_and_mends_them() {
        let workshop = Workshop::open().unwrap();
        let mut machine = workshop.machine().unwrap();
        fs::create_dir(machine.data()).unwrap();
        if workshop.has_shim() {
            let before = date(&machine);
            machine.skew_clock(-3_600_500).unwrap();
            let skewed = date(&machine) - before;
            assert!((-3601..=-3500).contains(&skewed), "{skewed} s");
        } else {
            println!("SKIPPED: {:?}", workshop.lacks());
        }
        if workshop.0.may_mount {
            let write = |name| fs::write(machine.data().join(name), [1; 100_000]);
            machine.volume.as_ref().unwrap().fill().unwrap();
            assert_eq!(write("one").unwrap_err().kind(), io::ErrorKind::StorageFull);
            machine.volume.as_ref().unwrap().empty().unwrap();
            write("two").unwrap();
        } else {
            println!("SKIPPED: {:?}", workshop.lacks());
        }
        machine.mend().unwrap();
    }
}
