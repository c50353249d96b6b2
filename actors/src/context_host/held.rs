//! What a context host holds: its blocks, the room that it has promised, and what is on its way to it. Shared by the device
//! thread, which computes blocks and attends to them, and by those who ask what is there, so that none of them waits for a
//! block that is being encoded. Nothing here computes or waits; the bytes are counted in [`crate::budget`]. What comes back from
//! the node's disk is in [`recall`].
//!
//! # Order
//!
//! A release takes effect at once: what it names is gone for whatever is asked later, and what was on its way is not held
//! when it comes. A block that is read when it is released counts its bytes until its last reader lets go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stellate_model::block::BlockId;
use stellate_runtime::clock::Clock;

mod recall;

use super::arrival::Entry;
pub use super::arrival::{Arrival, Ended, NotSealed, Way};
use super::strip::Strip;
use super::{HostError, Reserved};
use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::disk::Disk;
use crate::link::HostId;

/// How long a promise of room is kept that nobody comes back to: longer than a query node takes for an `exact` block. Who
/// comes later gets room that is free then.
pub const PROMISE: Duration = Duration::from_secs(15 * 60);

/// The blocks of a context host, and what is to become one.
#[derive(Debug)]
pub struct HeldBlocks {
    host: HostId,
    budget: Arc<KvBudget>,
    clock: Arc<dyn Clock>,
    disk: Option<Disk>,
    /// Blocks that were computed for it.
    computed: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The device thread has ended: nothing is held from then on.
    is_closed: bool,
    /// Sealed, and only read from then on; some of them elsewhere at the same time.
    held: HashMap<BlockId, Arc<BudgetedBlock>>,
    /// Room for blocks of which nobody sends bytes now.
    promised: HashMap<BlockId, Promised>,
    arrivals: HashMap<BlockId, Vec<Entry>>,
    next: u64,
}

/// Room, and until when it is kept.
#[derive(Debug)]
struct Promised {
    strip: Strip,
    until: Duration,
}

impl Promised {
    fn fits(&self, bytes: usize, tokens: usize) -> bool {
        self.strip.bytes() == bytes && self.strip.capacity_tokens() >= tokens
    }
}

/// What there is for a block whose bytes come from elsewhere.
#[derive(Debug)]
pub enum Opening {
    /// It is held already.
    Held,
    /// There is room.
    Room {
        /// Where the block is to lie; empty.
        strip: Strip,
        /// Notes it as on its way.
        arrival: Arrival,
        /// Whether the room was promised before.
        was_promised: bool,
    },
}

impl HeldBlocks {
    /// A host that holds nothing yet, and whose blocks lie in `budget`. Promises end by `clock`.
    pub fn new(host: HostId, budget: Arc<KvBudget>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::backed(host, budget, clock, None)
    }

    /// The same, with the disk of its node, if that has one.
    pub fn backed(
        host: HostId,
        budget: Arc<KvBudget>,
        clock: Arc<dyn Clock>,
        disk: Option<Disk>,
    ) -> Arc<Self> {
        Arc::new(Self { host, budget, clock, disk, computed: AtomicU64::new(0), state: Mutex::default() })
    }

    /// The store that its blocks lie in.
    pub fn budget(&self) -> &Arc<KvBudget> {
        &self.budget
    }

    /// Blocks that were computed for it since it has started, copies of anchors among them.
    pub fn computed(&self) -> u64 {
        self.computed.load(Ordering::Relaxed)
    }

    /// A block, if it is held. It stays as it is until the last reader is done.
    pub fn get(&self, id: &BlockId) -> Option<Arc<BudgetedBlock>> {
        self.state().held.get(id).cloned()
    }

    /// Puts the blocks `ids` behind what `into` holds, in order; or names the first that is not held.
    ///
    /// # Errors
    /// The block that is not held; some of those before it are in `into`.
    pub fn gather(&self, ids: &[BlockId], into: &mut Vec<Arc<BudgetedBlock>>) -> Result<(), BlockId> {
        let state = self.state();
        for id in ids {
            into.push(Arc::clone(state.held.get(id).ok_or(*id)?));
        }
        Ok(())
    }

    /// The blocks that are held, with their bytes, by address.
    pub fn list(&self) -> Vec<(BlockId, u64)> {
        let mut list: Vec<_> =
            self.state().held.iter().map(|(&id, block)| (id, block.bytes() as u64)).collect();
        list.sort_unstable();
        list
    }

    /// The copies under way, with the bytes that have come, by address.
    pub fn inbound(&self) -> Vec<(BlockId, u64)> {
        let state = self.state();
        let copies = state.arrivals.iter().filter_map(|(&id, entries)| {
            let copies = entries.iter().filter(|entry| matches!(entry.way, Way::Copy | Way::Put));
            Some((id, copies.map(Entry::arrived_bytes).max()?))
        });
        let mut inbound: Vec<_> = copies.collect();
        inbound.sort_unstable();
        inbound
    }

    /// Notes that a block is on its way. A release from now on takes it back.
    pub fn expect(self: &Arc<Self>, id: BlockId, way: Way) -> Arrival {
        self.note(&mut self.state(), id, way)
    }

    /// Promises room for `tokens` tokens of a block. Promised again, the room is the same. Tells whether the block is held
    /// already.
    ///
    /// # Errors
    /// There is no room, or the host has stopped. Nothing has changed.
    pub fn promise(&self, id: BlockId, tokens: usize) -> Result<bool, HostError> {
        let mut state = self.open()?;
        if state.held.contains_key(&id) {
            return Ok(true);
        }
        // What comes from the disk takes room only when it is its turn.
        let is_copied =
            |entries: &Vec<Entry>| entries.iter().any(|entry| matches!(entry.way, Way::Copy | Way::Put));
        if state.arrivals.get(&id).is_some_and(is_copied) {
            return Ok(false);
        }
        let (bytes, until) = (self.budget.shape().bytes_for(tokens), self.clock.now() + PROMISE);
        match state.promised.get_mut(&id).filter(|promised| promised.fits(bytes, tokens)) {
            Some(promised) => promised.until = until,
            None => {
                let strip = Strip::new(self.budget.allocate(tokens)?);
                state.promised.insert(id, Promised { strip, until });
            }
        }
        Ok(false)
    }

    /// Room for a block that is computed in this process, unless it is held or comes from the disk; waits for one that is on its
    /// way.
    ///
    /// # Errors
    /// There is no room, or the host has stopped.
    pub async fn reserve(self: &Arc<Self>, id: BlockId, tokens: usize) -> Result<Reserved, HostError> {
        // Once: one that cannot be read, or for which there is no room, is computed.
        drop(self.recall(&[id]));
        loop {
            let arrivals = {
                let state = self.open()?;
                if state.held.contains_key(&id) {
                    return Ok(Reserved::Held);
                }
                match state.arrivals_of(&id) {
                    arrivals if arrivals.is_empty() => {
                        return Ok(Reserved::Room(self.budget.allocate(tokens)?));
                    }
                    arrivals => arrivals,
                }
            };
            ended(arrivals).await;
        }
    }

    /// Room for a block that another node sends: what was promised, else what is free. Waits for one that is on its way.
    ///
    /// # Errors
    /// There is no room, or the host has stopped.
    pub async fn receive(self: &Arc<Self>, id: BlockId, tokens: usize) -> Result<Opening, HostError> {
        loop {
            let arrivals = {
                let mut state = self.open()?;
                if state.held.contains_key(&id) {
                    return Ok(Opening::Held);
                }
                match state.arrivals_of(&id) {
                    arrivals if arrivals.is_empty() => {
                        let bytes = self.budget.shape().bytes_for(tokens);
                        let promised = state.promised.remove(&id);
                        let promised = promised.filter(|promised| promised.fits(bytes, tokens));
                        let was_promised = promised.is_some();
                        let mut strip = match promised {
                            Some(promised) => promised.strip,
                            None => Strip::new(self.budget.allocate(tokens)?),
                        };
                        strip.restart();
                        let arrival = self.note(&mut state, id, Way::Put);
                        return Ok(Opening::Room { strip, arrival, was_promised });
                    }
                    arrivals => arrivals,
                }
            };
            ended(arrivals).await;
        }
    }

    /// Takes the room that was promised to a block.
    pub fn take_promised(&self, id: &BlockId) -> Option<Strip> {
        self.state().promised.remove(id).map(|promised| promised.strip)
    }

    /// Takes promises back that nobody came back to: whoever they were made to may be gone.
    pub fn expire_promises(&self) {
        let now = self.clock.now();
        let expired: Vec<_> = self.state().promised.extract_if(|_, promised| promised.until <= now).collect();
        for (block, Promised { strip, .. }) in expired {
            let bytes = strip.bytes();
            tracing::warn!(host = %self.host, %block, bytes, "nobody came for the room that was promised to a block");
        }
    }

    /// Holds a block that was computed in this process.
    ///
    /// # Errors
    /// The host has stopped.
    pub fn insert(&self, id: BlockId, block: BudgetedBlock) -> Result<(), HostError> {
        let held = hold(&mut *self.open()?, id, block);
        self.held_now(id, Way::Encode, held);
        Ok(())
    }

    /// Lets go of blocks, of room that was promised to them, and of what is on its way. What is given back are the copies
    /// under way, whose memory is gone when they have ended. What is yet to come from the disk ends now.
    pub fn release(&self, ids: &[BlockId]) -> Vec<Ended> {
        let (mut dropped, mut copies, mut from_disk) = (Vec::new(), Vec::new(), false);
        let mut state = self.state();
        for id in ids {
            dropped.push((state.held.remove(id), state.promised.remove(id)));
            for entry in state.arrivals.get(id).into_iter().flatten() {
                entry.revoked.cancel();
                from_disk |= matches!(entry.way, Way::Disk(_));
                if entry.way.brings_bytes() {
                    copies.push(entry.ended());
                }
            }
        }
        drop(state);
        drop(dropped);
        if let Some(disk) = self.disk.as_ref().filter(|_| from_disk) {
            disk.drop_revoked();
        }
        copies
    }

    /// Whether the host works.
    pub fn is_open(&self) -> bool {
        !self.state().is_closed
    }

    /// Lets go of everything, for good: the host has stopped.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        for entry in state.arrivals.values().flatten() {
            entry.revoked.cancel();
        }
        let dropped = (std::mem::take(&mut state.held), std::mem::take(&mut state.promised));
        drop(state);
        drop(dropped);
    }

    /// See [`Arrival::seal`].
    pub(super) fn seal(
        &self,
        id: BlockId,
        way: Way,
        revoked: &CancelToken,
        block: BudgetedBlock,
    ) -> Result<(), NotSealed> {
        let mut state = self.state();
        if state.is_closed {
            return Err(NotSealed::Closed);
        }
        if revoked.is_cancelled() {
            return Err(NotSealed::Released);
        }
        let held = hold(&mut state, id, block);
        drop(state);
        self.held_now(id, way, held);
        Ok(())
    }

    /// A block was to be held: what it is that is not needed any more goes, and the disk is told of what is new. Behind the lock:
    /// giving memory back takes time.
    fn held_now(&self, id: BlockId, way: Way, held: Held) {
        let Held { fresh, .. } = held;
        let Some(block) = fresh else { return };
        if matches!(way, Way::Encode | Way::Put) {
            self.computed.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(disk) = &self.disk {
            disk.offer(id, &block);
        }
    }

    /// See [`Arrival::promise`].
    pub(super) fn promise_again(&self, id: BlockId, revoked: &CancelToken, strip: Strip) {
        let promised = Promised { strip, until: self.clock.now() + PROMISE };
        let mut state = self.state();
        let is_wanted = !state.is_closed && !revoked.is_cancelled() && !state.held.contains_key(&id);
        let dropped = if is_wanted { state.promised.insert(id, promised) } else { Some(promised) };
        drop(state);
        drop(dropped);
    }

    /// The copies of a block that were noted before `number`.
    pub(super) fn copies_before(&self, id: &BlockId, number: u64) -> Vec<Ended> {
        let state = self.state();
        let entries = state.arrivals.get(id).into_iter().flatten();
        let copies = entries.filter(|entry| entry.number < number && entry.way.brings_bytes());
        copies.map(Entry::ended).collect()
    }

    /// How many arrivals of a block are under way.
    pub(super) fn arrivals_of(&self, id: &BlockId) -> usize {
        self.state().arrivals.get(id).map_or(0, Vec::len)
    }

    /// An arrival has come, or does not come any more.
    pub(super) fn forget_arrival(&self, id: &BlockId, number: u64) {
        let mut state = self.state();
        if let Some(entries) = state.arrivals.get_mut(id) {
            entries.retain(|entry| entry.number != number);
            if entries.is_empty() {
                state.arrivals.remove(id);
            }
        }
    }

    fn note(self: &Arc<Self>, state: &mut State, id: BlockId, way: Way) -> Arrival {
        let number = state.next;
        state.next += 1;
        let (entry, arrival) = Entry::new(self, id, number, way);
        state.arrivals.entry(id).or_default().push(entry);
        arrival
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, HostError> {
        let state = self.state();
        let cause = || "it has stopped".to_owned();
        if state.is_closed {
            Err(HostError::Unreachable { host: self.host, cause: cause() })
        } else {
            Ok(state)
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The arrivals of a block.
    fn arrivals_of(&self, id: &BlockId) -> Vec<Ended> {
        self.arrivals.get(id).into_iter().flatten().map(Entry::ended).collect()
    }
}

/// What came of holding a block.
struct Held {
    /// The block, if it was not held before.
    fresh: Option<Arc<BudgetedBlock>>,
    #[expect(dead_code, reason = "held for their Drop")]
    spare: (Option<BudgetedBlock>, Option<Promised>),
}

/// Holds a block, unless it is held. What is given back is to be dropped behind the lock.
#[must_use]
fn hold(state: &mut State, id: BlockId, block: BudgetedBlock) -> Held {
    let promised = state.promised.remove(&id);
    match state.held.entry(id) {
        std::collections::hash_map::Entry::Occupied(_) => {
            Held { fresh: None, spare: (Some(block), promised) }
        }
        std::collections::hash_map::Entry::Vacant(entry) => {
            let block = Arc::new(block);
            entry.insert(Arc::clone(&block));
            Held { fresh: Some(block), spare: (None, promised) }
        }
    }
}

async fn ended(arrivals: Vec<Ended>) {
    for arrival in arrivals {
        arrival.wait().await;
    }
}

#[cfg(test)]
mod tests;
