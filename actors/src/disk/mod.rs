//! The disk of a node: sealed blocks written behind what the node does, kept within a bound, and read back when it has started
//! again or an order to encode names one of them. All hosts of the node share it. What is to be done is decided in [`index`];
//! how a block is a file in [`form`]; a thread of its own does it ([`worker`]), through [`folder`].
//!
//! # What it promises
//!
//! Nothing is served that is not, byte for byte, what was written: a block that is read is summed up before it is sealed, and
//! a file that is not as it should be is removed, named in the log and counted; the block is computed as if it had not been
//! there. Nothing waits for a write. Blocks that wait to be written are not kept in memory for it: one that is let go of before
//! its turn is not written.

mod files;
pub mod folder;
pub mod form;
pub mod index;
mod worker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use stellate_kernels::KvShape;
use stellate_model::block::BlockId;
use stellate_runtime::clock::Clock;

use self::folder::{BlockFolder, SystemFolder};
use self::index::{DiskFigures, DiskIndex};
pub(crate) use self::worker::Load;
use self::worker::Worker;
use crate::budget::BudgetedBlock;
use crate::context_host::held::HeldBlocks;

/// The part of a host's memory, one in so many, that blocks from the disk leave free when the node starts: for contexts that are
/// made before the supervisor has had those freed that nobody needs. What does not come back then is read when it is asked for.
const LEFT_FREE: usize = 8;

/// How long after a step of attention or of encoding the disk holds back: longer than the pause between two steps.
const BUSY: Duration = Duration::from_millis(50);

/// The file that one process holds as long as it uses the folder.
const LOCK: &str = "lock";

/// What the disk of a node is opened with.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The folder of the files. Made if it is not there.
    pub folder: PathBuf,
    /// Bytes that all files together may take.
    pub bound_bytes: u64,
    /// The fingerprint of the model: blocks of others stay until they make room.
    pub model: [u8; 32],
    /// The shape of its keys and values.
    pub shape: KvShape,
    /// Tells when to try again, and when blocks were used.
    pub clock: Arc<dyn Clock>,
}

/// The disk of a node cannot be used. Nothing of it was changed but leftovers of writes, which may be gone.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The folder, or a file in it.
    #[error(
        "cannot keep blocks in {}: {source}; see to that folder, name another (kv.disk_dir), or keep none on disk \
         (kv.disk_bytes = \"0\")",
        folder.display()
    )]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("another process keeps its blocks in {}; give each node a folder of its own (kv.disk_dir)", folder.display())]
    Taken {
        /// The folder.
        folder: PathBuf,
    },
}

/// The disk of a node. Clones are the same. When the last one is dropped its thread ends after the step under way.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Held as long as the folder is used.
    lock: Mutex<Option<File>>,
}

/// What the thread shares with those who use it.
#[derive(Debug)]
struct Shared {
    options: Kind,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: Condvar,
    /// When a host computed last, in milliseconds of the clock; 0 before it did.
    busy_ms: AtomicU64,
}

/// What the blocks of this node are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    model: [u8; 32],
    shape: KvShape,
}

#[derive(Debug, Default)]
struct State {
    index: DiskIndex,
    /// Blocks that wait to be written, as long as somebody holds them.
    sealed: BTreeMap<BlockId, Weak<BudgetedBlock>>,
    /// Blocks of this model that were there at the start, the latest used first, with their bytes in memory.
    at_start: Vec<(BlockId, u64)>,
    /// Blocks that somebody waits for.
    urgent: VecDeque<Load>,
    /// Blocks that come back by themselves.
    later: VecDeque<Load>,
    /// Those of them that somebody has begun to wait for.
    wanted: BTreeSet<BlockId>,
    hosts: Vec<Weak<HeldBlocks>>,
    is_stopping: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is read or written from now on, and who waits for a block is told that it does not come.
    fn stop(&self) {
        let mut state = self.state();
        state.is_stopping = true;
        let loads = (std::mem::take(&mut state.urgent), std::mem::take(&mut state.later));
        drop(state);
        self.changed.notify_all();
        // Behind the lock: they tell their hosts.
        drop(loads);
    }

    /// Whether a host computes.
    fn is_busy(&self) -> bool {
        let at = Duration::from_millis(self.busy_ms.load(Ordering::Relaxed));
        !at.is_zero() && self.clock.now().saturating_sub(at) < BUSY
    }
}

impl Disk {
    /// Opens the folder, looks at the head of every file in it, and starts the thread. Blocks the caller meanwhile.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(options: DiskOptions) -> Result<Self, DiskError> {
        let path = options.folder.clone();
        let failed = |source| DiskError::Folder { folder: path.clone(), source };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        // Keys and values tell much of the text that they are of.
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).map_err(failed)?;
        let lock = File::create(path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::Taken { folder: path }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let folder = Box::new(SystemFolder::new(path.clone()));
        Self::over(folder, options, Some(lock)).map_err(failed)
    }

    /// The disk over a folder that may be none of this machine; that of the options is not looked at.
    ///
    /// # Errors
    /// The folder's.
    pub fn open_over(folder: Box<dyn BlockFolder>, options: DiskOptions) -> io::Result<Self> {
        Self::over(folder, options, None)
    }

    fn over(mut folder: Box<dyn BlockFolder>, options: DiskOptions, lock: Option<File>) -> io::Result<Self> {
        let DiskOptions { bound_bytes, model, shape, clock, .. } = options;
        let mut index = DiskIndex::new(bound_bytes);
        let scan = files::scan(&mut *folder, &mut index)?;
        let foreign = scan.foreign - usize::from(lock.is_some());
        if foreign > 0 {
            tracing::warn!(
                foreign,
                "files in the folder of blocks are not of this program; they are left alone and not counted"
            );
        }
        let kind = Kind { model, shape };
        let is_own = |head: &&form::Head| Kind { model: head.model, shape: head.shape } == kind;
        let at_start: Vec<_> =
            scan.heads.iter().rev().filter(is_own).map(|head| (head.id, head.bytes)).collect();
        let (figures, own) = (index.figures(), at_start.len());
        tracing::info!(
            blocks = figures.blocks,
            own,
            used_bytes = figures.used_bytes,
            bound_bytes,
            damaged = figures.damaged,
            "the blocks on the disk"
        );
        let state = Mutex::new(State { index, at_start, ..State::default() });
        let (changed, busy_ms) = (Condvar::new(), AtomicU64::new(0));
        let shared = Arc::new(Shared { options: kind, clock, state, changed, busy_ms });
        let worker = Worker::new(Arc::clone(&shared), folder);
        let thread =
            std::thread::Builder::new().name("stellate-disk".to_owned()).spawn(move || worker.run())?;
        Ok(Self(Arc::new(Owner { shared, thread: Mutex::new(Some(thread)), lock: Mutex::new(lock) })))
    }

    /// The disk in figures.
    pub fn figures(&self) -> DiskFigures {
        self.state().index.figures()
    }

    /// Whether a block can be read, as far as is known.
    pub fn has(&self, id: &BlockId) -> bool {
        self.state().index.file_bytes(id).is_some()
    }

    /// These hosts are over it: what they hold is in use.
    pub fn serve(&self, hosts: &[Arc<HeldBlocks>]) {
        self.state().hosts.extend(hosts.iter().map(Arc::downgrade));
    }

    /// Has the blocks that were there at the start back on `hosts`, the latest used first, each on the host with the most room,
    /// in the background. Those that are to come are noted when this returns. For a node whose supervisor has those freed that
    /// nobody needs.
    pub fn bring_back(&self, hosts: &[Arc<HeldBlocks>]) {
        let at_start = std::mem::take(&mut self.state().at_start);
        let room = |held: &Arc<HeldBlocks>| {
            let budget = held.budget();
            (budget.capacity_bytes() - budget.capacity_bytes() / LEFT_FREE)
                .saturating_sub(budget.used_bytes()) as u64
        };
        let mut rooms: Vec<u64> = hosts.iter().map(room).collect();
        let mut loads = Vec::new();
        for (id, bytes) in at_start {
            // Of hosts with as much room the first.
            let most = (0..rooms.len()).max_by_key(|&index| (rooms[index], std::cmp::Reverse(index)));
            let Some(index) = most.filter(|&index| rooms[index] >= bytes) else { continue };
            if let Some(arrival) = hosts[index].expect_from_disk(id, bytes) {
                rooms[index] -= bytes;
                loads.push(Load { id, held: Arc::clone(&hosts[index]), arrival });
            }
        }
        if !loads.is_empty() {
            tracing::info!(blocks = loads.len(), "blocks come back from the disk");
        }
        for load in loads {
            self.take(load, |state| &mut state.later);
        }
    }

    /// Waits until nothing waits to be written, or `longest` is over. Tells whether nothing does.
    pub async fn settle(&self, longest: Duration) -> bool {
        let shared = Arc::clone(&self.0.shared);
        let settling = tokio::task::spawn_blocking(move || {
            let is_busy = |state: &mut State| !state.is_stopping && !state.index.is_settled();
            let state = shared.state();
            let waited = shared.changed.wait_timeout_while(state, longest, is_busy);
            waited.unwrap_or_else(PoisonError::into_inner).0.index.is_settled()
        });
        settling.await.unwrap_or(false)
    }

    /// Ends its thread after the step under way and waits for it. Nothing is written or read from then on, and
    /// another may use the folder.
    pub async fn close(&self) {
        self.0.shared.stop();
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // One that has panicked has ended as well.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.0.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// A host computes: the disk holds back for a moment.
    pub(crate) fn note_work(&self) {
        let now = self.0.shared.clock.now().as_millis() as u64;
        self.0.shared.busy_ms.store(now.max(1), Ordering::Relaxed);
    }

    /// A host holds a block. It is written when it is its turn, if it is still there.
    pub(crate) fn offer(&self, id: BlockId, block: &Arc<BudgetedBlock>) {
        // As large as its tokens need: else it would not be found again as it is.
        if block.shape() != self.0.shared.options.shape
            || block.bytes() != block.shape().bytes_for(block.len())
        {
            return;
        }
        let mut state = self.state();
        if state.index.offer(id, form::file_bytes(block.bytes() as u64)) {
            state.sealed.insert(id, Arc::downgrade(block));
            self.0.shared.changed.notify_all();
        }
    }

    /// The bytes in memory of a block that can be read.
    pub(crate) fn bytes_of(&self, id: &BlockId) -> Option<u64> {
        self.state().index.file_bytes(id).map(|bytes| bytes - form::HEAD_BYTES as u64)
    }

    /// Somebody waits for a block.
    pub(crate) fn load(&self, load: Load) {
        self.take(load, |state| &mut state.urgent);
    }

    /// Has a block on its way, unless the disk is closed: then the load is dropped behind the lock, and its host told so.
    fn take(&self, load: Load, queue: impl FnOnce(&mut State) -> &mut VecDeque<Load>) {
        let mut state = self.state();
        if state.is_stopping {
            drop(state);
            return drop(load);
        }
        queue(&mut state).push_back(load);
        drop(state);
        self.0.shared.changed.notify_all();
    }

    /// What has not begun to come and is not wanted any more does not come: nobody waits for its turn.
    pub(crate) fn drop_revoked(&self) {
        let mut state = self.state();
        let mut dropped = Vec::new();
        let State { urgent, later, wanted, .. } = &mut *state;
        for queue in [urgent, later] {
            for load in std::mem::take(queue) {
                if load.arrival.revoked().is_cancelled() {
                    wanted.remove(&load.id);
                    dropped.push(load);
                } else {
                    queue.push_back(load);
                }
            }
        }
        drop(state);
        // Behind the lock: they tell their hosts.
        drop(dropped);
    }

    /// Somebody waits for a block that is on its way.
    pub(crate) fn hurry(&self, id: &BlockId) {
        let mut state = self.state();
        state.wanted.insert(*id);
        while let Some(at) = state.later.iter().position(|load| load.id == *id) {
            let load = state.later.remove(at).expect("just found");
            state.urgent.push_back(load);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.shared.state()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

#[cfg(test)]
mod tests;
