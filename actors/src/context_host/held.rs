//! What a context host holds: its blocks, the room that it has promised, and what is on its way to it. Shared by the device
//! thread, which computes blocks and attends to them, and by those who ask what is there, so that none of them waits for a
//! block that is being encoded. Nothing here computes or waits; the bytes are counted in [`crate::budget`].
//!
//! # Order
//!
//! A release takes effect at once: what it names is gone for whatever is asked later, and what was on its way is not held
//! when it comes. A block that is read when it is released counts its bytes until its last reader lets go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stellate_model::block::BlockId;
use tokio::sync::watch;

use super::strip::Strip;
use super::{HostError, Reserved};
use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::link::HostId;

/// The blocks of a context host, and what is to become one.
#[derive(Debug)]
pub struct HeldBlocks {
    host: HostId,
    budget: Arc<KvBudget>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The device thread has ended: nothing is held from then on.
    is_closed: bool,
    /// Sealed, and only read from then on; some of them elsewhere at the same time.
    held: HashMap<BlockId, Arc<BudgetedBlock>>,
    /// Room for blocks of which nobody sends bytes now.
    promised: HashMap<BlockId, Strip>,
    arrivals: HashMap<BlockId, Vec<Entry>>,
    next: u64,
}

/// An arrival as it is known here.
#[derive(Debug)]
struct Entry {
    number: u64,
    way: Way,
    revoked: CancelToken,
    arrived: Arc<AtomicU64>,
    ended: watch::Receiver<()>,
}

/// How a block comes to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is computed here, now or when its turn comes.
    Encode,
    /// Its bytes come from elsewhere.
    Copy,
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

/// Why a block is not held that was to be. Its memory is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSealed {
    /// It was released while it was on its way.
    Released,
    /// The host has stopped.
    Closed,
}

/// A block on its way. Dropped, it has come or it does not come any more; drop its memory before.
#[derive(Debug)]
pub struct Arrival {
    blocks: Arc<HeldBlocks>,
    id: BlockId,
    number: u64,
    revoked: CancelToken,
    arrived: Arc<AtomicU64>,
    _ended: watch::Sender<()>,
}

/// Waits until an arrival has come, or does not come any more.
#[derive(Clone, Debug)]
pub struct Ended(watch::Receiver<()>);

impl Ended {
    /// Waits.
    pub async fn wait(mut self) {
        // Nothing is ever sent: it ends when the sender is dropped.
        while self.0.changed().await.is_ok() {}
    }
}

impl HeldBlocks {
    /// A host that holds nothing yet, and whose blocks lie in `budget`.
    pub fn new(host: HostId, budget: Arc<KvBudget>) -> Arc<Self> {
        Arc::new(Self { host, budget, state: Mutex::default() })
    }

    /// The store that its blocks lie in.
    pub fn budget(&self) -> &Arc<KvBudget> {
        &self.budget
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
            let copies = entries.iter().filter(|entry| entry.way == Way::Copy);
            Some((id, copies.map(|entry| entry.arrived.load(Ordering::Relaxed)).max()?))
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
        let bytes = self.budget.shape().bytes_for(tokens);
        let is_promised = |strip: &Strip| strip.bytes() == bytes && strip.capacity_tokens() >= tokens;
        let is_coming =
            state.arrivals.get(&id).is_some_and(|all| all.iter().any(|entry| entry.way == Way::Copy));
        if !is_coming && !state.promised.get(&id).is_some_and(is_promised) {
            state.promised.insert(id, Strip::new(self.budget.allocate(tokens)?));
        }
        Ok(false)
    }

    /// Room for a block that is computed in this process, unless it is held; waits for one that is on its way.
    ///
    /// # Errors
    /// There is no room, or the host has stopped.
    pub async fn reserve(&self, id: BlockId, tokens: usize) -> Result<Reserved, HostError> {
        loop {
            let earlier = {
                let state = self.open()?;
                if state.held.contains_key(&id) {
                    return Ok(Reserved::Held);
                }
                match state.earlier(&id, u64::MAX) {
                    earlier if earlier.is_empty() => {
                        return Ok(Reserved::Room(self.budget.allocate(tokens)?));
                    }
                    earlier => earlier,
                }
            };
            ended(earlier).await;
        }
    }

    /// Room for a block that another node sends: what was promised, else what is free. Waits for one that is on its way.
    ///
    /// # Errors
    /// There is no room, or the host has stopped.
    pub async fn receive(self: &Arc<Self>, id: BlockId, tokens: usize) -> Result<Opening, HostError> {
        loop {
            let earlier = {
                let mut state = self.open()?;
                if state.held.contains_key(&id) {
                    return Ok(Opening::Held);
                }
                match state.earlier(&id, u64::MAX) {
                    earlier if earlier.is_empty() => {
                        let bytes = self.budget.shape().bytes_for(tokens);
                        let fits =
                            |strip: &Strip| strip.bytes() == bytes && strip.capacity_tokens() >= tokens;
                        let was_promised = state.promised.get(&id).is_some_and(fits);
                        let promised = state.promised.remove(&id).filter(fits);
                        let mut strip = match promised {
                            Some(strip) => strip,
                            None => Strip::new(self.budget.allocate(tokens)?),
                        };
                        strip.restart();
                        let arrival = self.note(&mut state, id, Way::Copy);
                        return Ok(Opening::Room { strip, arrival, was_promised });
                    }
                    earlier => earlier,
                }
            };
            ended(earlier).await;
        }
    }

    /// Takes the room that was promised to a block.
    pub fn take_promised(&self, id: &BlockId) -> Option<Strip> {
        self.state().promised.remove(id)
    }

    /// Holds a block that was computed in this process.
    ///
    /// # Errors
    /// The host has stopped.
    pub fn insert(&self, id: BlockId, block: BudgetedBlock) -> Result<(), HostError> {
        // Dropped behind the lock: giving memory back takes time.
        let _spare = hold(&mut *self.open()?, id, block);
        Ok(())
    }

    /// Lets go of blocks, of room that was promised to them, and of what is on its way. What is given back are the copies
    /// under way, whose memory is gone when they have ended.
    pub fn release(&self, ids: &[BlockId]) -> Vec<Ended> {
        let (mut dropped, mut copies) = (Vec::new(), Vec::new());
        let mut state = self.state();
        for id in ids {
            dropped.push((state.held.remove(id), state.promised.remove(id)));
            for entry in state.arrivals.get(id).into_iter().flatten() {
                entry.revoked.cancel();
                if entry.way == Way::Copy {
                    copies.push(Ended(entry.ended.clone()));
                }
            }
        }
        drop(state);
        drop(dropped);
        copies
    }

    /// Whether the host works.
    pub fn is_open(&self) -> bool {
        !self.state().is_closed
    }

    /// Lets go of everything, for good: the host has stopped.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        for entry in state.arrivals.values().flatten() {
            entry.revoked.cancel();
        }
        let dropped = (std::mem::take(&mut state.held), std::mem::take(&mut state.promised));
        drop(state);
        drop(dropped);
    }

    fn note(self: &Arc<Self>, state: &mut State, id: BlockId, way: Way) -> Arrival {
        let number = state.next;
        state.next += 1;
        let (sender, ended) = watch::channel(());
        let (revoked, arrived) = (CancelToken::default(), Arc::new(AtomicU64::new(0)));
        let entry = Entry { number, way, revoked: revoked.clone(), arrived: Arc::clone(&arrived), ended };
        state.arrivals.entry(id).or_default().push(entry);
        Arrival { blocks: Arc::clone(self), id, number, revoked, arrived, _ended: sender }
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
    /// The arrivals of a block that were noted before `number`.
    fn earlier(&self, id: &BlockId, number: u64) -> Vec<Ended> {
        let entries = self.arrivals.get(id).into_iter().flatten();
        entries.filter(|entry| entry.number < number).map(|entry| Ended(entry.ended.clone())).collect()
    }
}

impl Arrival {
    /// Set once the block is not wanted any more.
    pub fn revoked(&self) -> &CancelToken {
        &self.revoked
    }

    /// How many arrivals of the block are under way.
    pub fn of_block(&self) -> usize {
        self.blocks.state().arrivals.get(&self.id).map_or(0, Vec::len)
    }

    /// The copies of the same block that were noted before this arrival. Who is noted waits for these only, so that no two
    /// wait for each other.
    pub fn earlier_copies(&self) -> Vec<Ended> {
        let state = self.blocks.state();
        let entries = state.arrivals.get(&self.id).into_iter().flatten();
        let copies = entries.filter(|entry| entry.number < self.number && entry.way == Way::Copy);
        copies.map(|entry| Ended(entry.ended.clone())).collect()
    }

    /// The count of the bytes that have come, for who receives them.
    pub fn count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.arrived)
    }

    /// Holds the block, unless it was released meanwhile. One that is held already stays.
    ///
    /// # Errors
    /// [`NotSealed`]; the block is given back.
    pub fn seal(self, block: BudgetedBlock) -> Result<(), NotSealed> {
        let mut state = self.blocks.state();
        if state.is_closed || self.revoked.is_cancelled() {
            let why = if state.is_closed { NotSealed::Closed } else { NotSealed::Released };
            drop(state);
            drop(block);
            return Err(why);
        }
        let spare = hold(&mut state, self.id, block);
        drop(state);
        drop(spare);
        Ok(())
    }

    /// Gives the room back as promised, with what has come, unless the block was released meanwhile.
    pub fn promise(self, strip: Strip) {
        let mut state = self.blocks.state();
        let is_wanted =
            !state.is_closed && !self.revoked.is_cancelled() && !state.held.contains_key(&self.id);
        let dropped = if is_wanted { state.promised.insert(self.id, strip) } else { Some(strip) };
        drop(state);
        drop(dropped);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut state = self.blocks.state();
        if let Some(entries) = state.arrivals.get_mut(&self.id) {
            entries.retain(|entry| entry.number != self.number);
            if entries.is_empty() {
                state.arrivals.remove(&self.id);
            }
        }
    }
}

/// Holds a block, unless it is held. What is not needed any more is to be dropped behind the lock.
#[must_use]
fn hold(state: &mut State, id: BlockId, block: BudgetedBlock) -> (Option<BudgetedBlock>, Option<Strip>) {
    let promised = state.promised.remove(&id);
    let spare = match state.held.entry(id) {
        std::collections::hash_map::Entry::Occupied(_) => Some(block),
        std::collections::hash_map::Entry::Vacant(entry) => {
            entry.insert(Arc::new(block));
            None
        }
    };
    (spare, promised)
}

async fn ended(arrivals: Vec<Ended>) {
    for arrival in arrivals {
        arrival.wait().await;
    }
}
