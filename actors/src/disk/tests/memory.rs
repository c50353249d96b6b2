//! A folder in memory that can be full, fail, lose power and be damaged. Of what was not synced when power fails some is there,
//! in any order, and torn at sectors.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::disk::folder::{BlockFolder, Found};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// Clones are the same folder.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    writing: Option<usize>,
    /// Changes and syncs until power fails.
    power: Option<u64>,
    capacity: Option<usize>,
    peak: usize,
    reads: Reads,
}

/// How reads go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reads {
    #[default]
    Well,
    /// They wait until that changes.
    Wait,
    /// They fail, and the files are as they should be.
    Fail,
}

#[derive(Clone, Debug, Default)]
struct File {
    seen: Vec<u8>,
    synced: Vec<u8>,
    used: u64,
}

impl State {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.power {
            Some(0) => Err(io::Error::other("power failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn used(&self) -> usize {
        self.names.values().map(|&file| self.files[file].seen.len()).sum()
    }

    fn named(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or(io::ErrorKind::NotFound.into())
    }
}

impl Memory {
    pub(super) fn boxed(&self) -> Box<dyn BlockFolder> {
        Box::new(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("lock")
    }

    /// Power fails after this many more changes and syncs.
    pub(super) fn set_power(&self, power: u64) {
        self.state().power = Some(power);
    }

    /// Whether power has failed.
    pub(super) fn is_dead(&self) -> bool {
        self.state().power == Some(0)
    }

    /// All files together may have this many bytes.
    pub(super) fn set_capacity(&self, capacity: usize) {
        self.state().capacity = Some(capacity);
    }

    /// How reads go from now on.
    pub(super) fn set_reads(&self, reads: Reads) {
        self.state().reads = reads;
    }

    /// The most bytes that all files together have had.
    pub(super) fn peak(&self) -> usize {
        self.state().peak
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// Changes a file behind everybody's back.
    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let file = state.named(name).expect("the file is there");
        change(&mut state.files[file].seen);
    }

    /// A file that somebody else has put there.
    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let file = state.files.len();
        state.files.push(File { seen: bytes, ..File::default() });
        state.names.insert(name.to_owned(), file);
    }

    /// Gives a file another name behind everybody's back.
    pub(super) fn misname(&self, from: &str, to: &str) {
        let mut state = self.state();
        let file = state.names.remove(from).expect("the file is there");
        state.names.insert(to.to_owned(), file);
    }

    /// The folder after power has failed: names and bytes that were synced, and of the rest whatever happened to be written.
    pub(super) fn crash(&self, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let state = self.state();
        let (share, mut left) = ([0.0, 0.5, 0.9, 1.0][rng.random_range(0..4)], State::default());
        for file in &state.files {
            let length = if rng.random_bool(share) { file.seen.len() } else { file.synced.len() };
            let mut bytes = file.synced.clone();
            bytes.resize(length, 0);
            let unsynced = file.seen.chunks(SECTOR).enumerate().skip(file.synced.len() / SECTOR);
            for (sector, written) in unsynced.filter(|_| length == file.seen.len()) {
                if rng.random_bool(share) {
                    bytes[sector * SECTOR..][..written.len()].copy_from_slice(written);
                }
            }
            left.files.push(File { seen: bytes.clone(), synced: bytes, used: file.used });
        }
        let all = state.names.keys().chain(state.synced_names.keys());
        for name in all.collect::<std::collections::BTreeSet<_>>() {
            let names = if rng.random_bool(share) { &state.names } else { &state.synced_names };
            if let Some(&file) = names.get(name) {
                left.names.insert(name.clone(), file);
            }
        }
        left.synced_names = left.names.clone();
        Self(Arc::new(Mutex::new(left)))
    }
}

impl BlockFolder for Memory {
    fn list(&mut self) -> io::Result<Vec<Found>> {
        let state = self.state();
        let found = |(name, &file): (&String, &usize)| {
            let File { seen, used, .. } = &state.files[file];
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(*used);
            Found { name: name.clone(), bytes: seen.len() as u64, used }
        };
        Ok(state.names.iter().map(found).collect())
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        while self.state().reads == Reads::Wait {
            std::thread::yield_now();
        }
        let state = self.state();
        if state.reads == Reads::Fail {
            return Err(io::Error::other("too many files are open"));
        }
        let bytes = &state.files[state.named(name)?].seen;
        let offset = usize::try_from(offset).expect("fits");
        let found = bytes.get(offset..offset + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(found);
        Ok(())
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        let file = state.files.len();
        let used = state.files.len() as u64;
        state.files.push(File { used, ..File::default() });
        state.names.insert(name.to_owned(), file);
        state.writing = Some(file);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        let room = state.capacity.map_or(bytes.len(), |capacity| capacity.saturating_sub(state.used()));
        let file = state.writing.expect("a file was created");
        state.files[file].seen.extend(&bytes[..room.min(bytes.len())]);
        state.peak = state.peak.max(state.used());
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        let file = state.writing.take().expect("a file was created");
        state.files[file].synced = state.files[file].seen.clone();
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        let file = state.named(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        state.synced_names = state.names.clone();
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        state.names.remove(name);
        Ok(())
    }

    fn stamp(&mut self, name: &str, used: SystemTime) -> io::Result<()> {
        let mut state = self.state();
        let file = state.named(name)?;
        state.files[file].used = used.duration_since(SystemTime::UNIX_EPOCH).expect("later").as_secs();
        Ok(())
    }
}
