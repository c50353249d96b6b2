//! A disk in memory that can be full, fail, and lose power: what was not synced is then there in part, in any order, and
//! torn at sectors.

use std::io;
use std::sync::{Arc, Mutex};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use redb::StorageBackend;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What reading returns.
    seen: Vec<u8>,
    /// What is left when power fails at once.
    synced: Vec<u8>,
    unsynced: Vec<Change>,
    /// Changes and syncs until power fails.
    power: Option<u64>,
    /// Writing beyond this many bytes fails as on a full disk.
    capacity: Option<u64>,
    syncs: u64,
}

#[derive(Debug)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

impl Disk {
    pub(super) fn with_image(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { seen: image.clone(), synced: image, ..State::default() })))
    }

    /// Power fails after this many more changes and syncs; none: it does not.
    pub(super) fn set_power(&self, power: Option<u64>) {
        self.0.lock().expect("lock").power = power;
    }

    pub(super) fn set_capacity(&self, capacity: Option<u64>) {
        self.0.lock().expect("lock").capacity = capacity;
    }

    pub(super) fn syncs(&self) -> u64 {
        self.0.lock().expect("lock").syncs
    }

    pub(super) fn image(&self) -> Vec<u8> {
        self.0.lock().expect("lock").seen.clone()
    }

    /// What is on the disk after power has failed: all that was synced, and of the rest whatever happened to be written.
    pub(super) fn crash(&self, seed: u64) -> Vec<u8> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let state = self.0.lock().expect("lock");
        let mut image = state.synced.clone();
        let share = [0.0, 0.5, 0.9, 1.0][rng.random_range(0..4)];
        for change in &state.unsynced {
            match change {
                Change::Length(length) if rng.random_bool(share) => image.resize(*length, 0),
                Change::Length(_) => {}
                Change::Bytes(offset, bytes) => {
                    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                        if rng.random_bool(share) {
                            put(&mut image, offset + index * SECTOR, sector);
                        }
                    }
                }
            }
        }
        image
    }
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
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().expect("lock").seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().expect("lock");
        let offset = usize::try_from(offset).expect("fits");
        let bytes = state.seen.get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.lock().expect("lock");
        state.spend()?;
        let length = usize::try_from(len).expect("fits");
        state.seen.resize(length, 0);
        state.unsynced.push(Change::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock().expect("lock");
        state.spend()?;
        state.syncs += 1;
        let State { synced, unsynced, .. } = &mut *state;
        for change in unsynced.drain(..) {
            match change {
                Change::Length(length) => synced.resize(length, 0),
                Change::Bytes(offset, bytes) => put(synced, offset, &bytes),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().expect("lock");
        state.spend()?;
        if state.capacity.is_some_and(|capacity| offset + data.len() as u64 > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let offset = usize::try_from(offset).expect("fits");
        put(&mut state.seen, offset, data);
        state.unsynced.push(Change::Bytes(offset, data.to_vec()));
        Ok(())
    }
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(bytes);
}
