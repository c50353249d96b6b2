//! The thread of the disk: blocks that somebody waits for first, then those that come back by themselves, then what the index
//! wants written or removed. Between two pieces it lets hosts compute, unless somebody waits for the block.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use stellate_model::block::BlockId;

use super::files::{self, Damage};
use super::folder::BlockFolder;
use super::form::{Head, name};
use super::index::{Ended, PAUSE, Step};
use super::{Kind, Shared, State};
use crate::budget::BudgetedBlock;
use crate::checksum::Checksum;
use crate::context_host::held::{Arrival, HeldBlocks};

/// The pause before a piece while hosts compute: with a piece of 1 MiB at most some 200 MB a second, a small part of what the
/// memory gives.
const HOLD_BACK: Duration = Duration::from_millis(5);

/// How often it is written down which blocks are in use. After a restart those are the first to come back.
const STAMP_EVERY: Duration = Duration::from_secs(600);

/// A block on its way from the disk to a host.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) id: BlockId,
    pub(crate) held: Arc<HeldBlocks>,
    pub(crate) arrival: Arrival,
}

/// What the thread does next.
enum Job {
    Load(Load),
    Write(BlockId, Option<Arc<BudgetedBlock>>),
    Remove(BlockId),
    Clear(BlockId),
    /// Writes down which blocks are in use.
    Stamp,
    /// Finds out which blocks are in use before one makes room.
    Look,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    folder: Box<dyn BlockFolder>,
    stamps: Duration,
    is_refused: bool,
    /// Whether it was looked which blocks are in use since there is no room.
    has_looked: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // However it ends: nobody waits for a block that nobody reads.
        self.shared.stop();
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, folder: Box<dyn BlockFolder>) -> Self {
        let stamps = shared.clock.now() + STAMP_EVERY;
        Self { shared, folder, stamps, is_refused: false, has_looked: false }
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        while let Some(job) = self.next() {
            match job {
                Job::Load(load) => self.load(load),
                Job::Write(id, block) => {
                    let ended = block.map_or(Ended::Moot, |block| self.write(&id, &block));
                    self.end(|state, now| {
                        state.index.written(id, ended, now);
                        if !state.index.is_waiting(&id) {
                            state.sealed.remove(&id);
                        }
                    });
                }
                Job::Remove(id) => {
                    let ended = self.folder.remove(&name(&id));
                    let ended =
                        self.judge(ended, "a block that is not needed cannot be removed from the disk");
                    self.end(|state, now| state.index.removed(id, ended, now));
                }
                Job::Clear(id) => {
                    let ended = files::clear(&mut *self.folder, &id);
                    let ended = self.judge(ended, "what a write has left cannot be removed from the disk");
                    self.end(|state, now| state.index.cleared(id, ended, now));
                }
                Job::Stamp => self.stamp(),
                Job::Look => {
                    let held = self.held();
                    let mut state = self.shared.state();
                    held.iter().for_each(|id| state.index.touch(id));
                }
            }
        }
    }

    /// Waits for something to do; nothing is the end.
    fn next(&mut self) -> Option<Job> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        loop {
            let now = shared.clock.now();
            if state.is_stopping {
                return None;
            }
            if let Some(load) = state.urgent.pop_front() {
                return Some(Job::Load(load));
            }
            // The bound before what nobody waits for: it may be lower than it was when the files were written.
            if !state.index.is_above_bound(now)
                && let Some(load) = state.later.pop_front()
            {
                return Some(Job::Load(load));
            }
            if now >= self.stamps {
                self.stamps = now + STAMP_EVERY;
                return Some(Job::Stamp);
            }
            let has_looked = self.has_looked;
            self.has_looked = state.index.is_short_of_room();
            if self.has_looked && !has_looked {
                return Some(Job::Look);
            }
            match state.index.next(now) {
                Some(Step::Write(id)) => {
                    let block = state.sealed.get(&id).and_then(Weak::upgrade);
                    return Some(Job::Write(id, block));
                }
                Some(Step::Remove(id)) => return Some(Job::Remove(id)),
                Some(Step::Clear(id)) => return Some(Job::Clear(id)),
                None => {}
            }
            let at = state.index.resumes().unwrap_or(self.stamps).min(self.stamps);
            // Not for longer than a pause: tests drive the clock by hand.
            let wait = at.saturating_sub(now).clamp(Duration::from_millis(1), PAUSE);
            let waited = shared.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Tells the index how a step ended, and those who wait for that.
    fn end(&self, tell: impl FnOnce(&mut State, Duration)) {
        let now = self.shared.clock.now();
        tell(&mut self.shared.state(), now);
        self.shared.changed.notify_all();
    }

    /// Whether a step was done. A disk that refuses is told of once, until it does not any more.
    fn judge(&mut self, done: std::io::Result<()>, what: &str) -> Ended {
        match done {
            Ok(()) => {
                if std::mem::take(&mut self.is_refused) {
                    tracing::info!("blocks are kept on the disk again");
                }
                Ended::Done
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_refused, true) {
                    tracing::warn!(%error, pause_s = PAUSE.as_secs(), "{what}; it is tried again after pauses, and serving goes on without");
                }
                Ended::Failed
            }
        }
    }

    fn write(&mut self, id: &BlockId, block: &BudgetedBlock) -> Ended {
        let Kind { model, shape } = self.shared.options;
        let (tokens, bytes) = (block.len() as u64, block.bytes() as u64);
        let head = Head { id: *id, model, shape, tokens, bytes, checksum: Checksum::of(block.raw()) };
        let shared = Arc::clone(&self.shared);
        let mut pause = || {
            if shared.is_busy() && shared.state().urgent.is_empty() {
                std::thread::sleep(HOLD_BACK);
            }
        };
        let written = files::write(&mut *self.folder, &head, block.raw(), &mut pause);
        self.judge(written, "a block was not written to the disk")
    }

    /// Brings a block back. Whatever comes of it, the arrival ends.
    fn load(&mut self, load: Load) {
        let Load { id, held, arrival } = load;
        self.bring(&id, &held, arrival);
        self.shared.state().wanted.remove(&id);
        self.shared.changed.notify_all();
    }

    /// A file that is not as it should be is not to be had any more before the arrival ends: who waits for it computes the block.
    fn bring(&mut self, id: &BlockId, held: &Arc<HeldBlocks>, arrival: Arrival) {
        let bytes = self.shared.state().index.file_bytes(id);
        let Some(bytes) = bytes.filter(|_| !arrival.revoked().is_cancelled() && held.get(id).is_none())
        else {
            return;
        };
        let head = match files::read_head(&mut *self.folder, id, bytes) {
            Ok(head) => head,
            Err(damage) => return self.give_up(id, &damage),
        };
        let (shape, tokens) = (held.budget().shape(), usize::try_from(head.tokens).unwrap_or(usize::MAX));
        // Of another model, whose blocks have other addresses: nobody asks for it.
        let is_own = head.shape == shape && tokens <= 1 << 28 && shape.bytes_for(tokens) as u64 == head.bytes;
        if !is_own {
            return;
        }
        let (mut strip, was_promised) = match held.room_from_disk(*id, tokens) {
            Ok(room) => room,
            Err(error) => return tracing::debug!(block = %id, %error, "a block stays on the disk"),
        };
        let (shared, revoked) = (Arc::clone(&self.shared), arrival.revoked().clone());
        let count = arrival.count();
        let mut read = 0;
        let mut go_on = || {
            let is_awaited = {
                let state = shared.state();
                !state.urgent.is_empty() || state.wanted.contains(id)
            };
            if shared.is_busy() && !is_awaited {
                std::thread::sleep(HOLD_BACK);
            }
            count.store(read, Ordering::Relaxed);
            read += files::PIECE_BYTES as u64;
            !revoked.is_cancelled() && !shared.state().is_stopping
        };
        let outcome = files::read(&mut *self.folder, &head, &mut strip, &mut go_on);
        if let Ok(true) = outcome {
            // Before it shows, so that whoever sees the block sees it counted.
            self.shared.state().index.hit(id);
            // Released meanwhile, or with the host: it stays on the disk.
            let _ = arrival.seal(strip.into_block(tokens));
            // When it was used is no more than a hint.
            let _ = self.folder.stamp(&name(id), self.shared.clock.wall());
            return;
        }
        if let Err(damage) = outcome {
            self.give_up(id, &damage);
        }
        if was_promised {
            strip.restart();
            arrival.promise(strip);
        }
    }

    fn give_up(&self, id: &BlockId, damage: &Damage) {
        if damage.may_pass() {
            tracing::warn!(file = name(id), %damage, "a block on the disk cannot be read now; it stays there, and is computed");
            return;
        }
        tracing::warn!(
            file = name(id), %damage,
            "a block on the disk is damaged; it is removed, and encoded again when it is needed"
        );
        self.shared.state().index.damaged(id);
    }

    /// The blocks that hosts hold, each once.
    fn held(&self) -> BTreeSet<BlockId> {
        let hosts: Vec<_> = self.shared.state().hosts.iter().filter_map(Weak::upgrade).collect();
        hosts.iter().flat_map(|held| held.list()).map(|(id, _)| id).collect()
    }

    fn stamp(&mut self) {
        let (held, used) = (self.held(), self.shared.clock.wall());
        for id in held {
            let is_kept = {
                let mut state = self.shared.state();
                state.index.touch(&id);
                state.index.file_bytes(&id).is_some()
            };
            if is_kept {
                // When it was used is no more than a hint.
                let _ = self.folder.stamp(&name(&id), used);
            }
        }
    }
}
