//! Blocks on their way to a host: each is noted in the table of what the host holds ([`super::held`]) until it has come or does
//! not come any more, so that a release can take it back and others can wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stellate_model::block::BlockId;
use tokio::sync::watch;

use super::held::HeldBlocks;
use super::strip::Strip;
use crate::budget::BudgetedBlock;
use crate::cancel::CancelToken;

/// How a block comes to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is computed here, now or when its turn comes.
    Encode,
    /// Its bytes come from elsewhere.
    Copy,
    /// It is computed elsewhere for this host, and its bytes come from there.
    Put,
    /// Its bytes, so many, come from the disk of the node.
    Disk(u64),
}

impl Way {
    /// Whether bytes come, in place of being computed here: those who are to compute the block wait for them.
    pub(super) fn brings_bytes(self) -> bool {
        self != Self::Encode
    }
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
    way: Way,
    revoked: CancelToken,
    arrived: Arc<AtomicU64>,
    _ended: watch::Sender<()>,
}

/// An arrival as the table knows it.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its number: those noted later have higher ones.
    pub(super) number: u64,
    pub(super) way: Way,
    /// Set by a release.
    pub(super) revoked: CancelToken,
    arrived: Arc<AtomicU64>,
    ended: watch::Receiver<()>,
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

impl Entry {
    /// An arrival, and how the table knows it.
    pub(super) fn new(blocks: &Arc<HeldBlocks>, id: BlockId, number: u64, way: Way) -> (Self, Arrival) {
        let (sender, ended) = watch::channel(());
        let (revoked, arrived) = (CancelToken::default(), Arc::new(AtomicU64::new(0)));
        let entry = Self { number, way, revoked: revoked.clone(), arrived: Arc::clone(&arrived), ended };
        (entry, Arrival { blocks: Arc::clone(blocks), id, number, way, revoked, arrived, _ended: sender })
    }

    /// Its end.
    pub(super) fn ended(&self) -> Ended {
        Ended(self.ended.clone())
    }

    /// Bytes that have come.
    pub(super) fn arrived_bytes(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Arrival {
    /// Set once the block is not wanted any more.
    pub fn revoked(&self) -> &CancelToken {
        &self.revoked
    }

    /// The count of the bytes that have come, for who receives them.
    pub fn count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.arrived)
    }

    /// The copies of the same block that were noted before this arrival. Who is noted waits for these only, so that no two
    /// wait for each other.
    pub fn earlier_copies(&self) -> Vec<Ended> {
        self.blocks.copies_before(&self.id, self.number)
    }

    /// How many arrivals of the block are under way.
    pub(super) fn of_block(&self) -> usize {
        self.blocks.arrivals_of(&self.id)
    }

    /// Holds the block, unless it was released meanwhile. One that is held already stays.
    ///
    /// # Errors
    /// [`NotSealed`]; the block is given back.
    pub fn seal(self, block: BudgetedBlock) -> Result<(), NotSealed> {
        self.blocks.seal(self.id, self.way, &self.revoked, block)
    }

    /// Gives the room back as promised, with what has come, unless the block was released meanwhile.
    pub fn promise(self, strip: Strip) {
        self.blocks.promise_again(self.id, &self.revoked, strip);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.blocks.forget_arrival(&self.id, self.number);
    }
}
