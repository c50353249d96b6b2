//! Blocks that come back from the disk of the node: by themselves when it has started, and because somebody asks for them. What
//! is read, and when, is in [`crate::disk`].

use std::sync::Arc;

use stellate_model::block::BlockId;

use super::{Arrival, Ended, HeldBlocks, Strip, Way};
use crate::context_host::HostError;
use crate::disk::{Disk, Load};

impl HeldBlocks {
    /// The disk of the node, if it has one.
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// Has those of `ids` back from the disk that are there and neither held nor on their way; those that come from there by
    /// themselves come first from now on. Gives what is to be waited for. Whoever looks afterwards and does not find one computes
    /// it.
    pub fn recall(self: &Arc<Self>, ids: &[BlockId]) -> Vec<Ended> {
        let Some(disk) = &self.disk else { return Vec::new() };
        let mut ended = Vec::new();
        for id in ids {
            let mut state = self.state();
            if state.is_closed || state.held.contains_key(id) {
                continue;
            }
            let mut entries = state.arrivals.get(id).into_iter().flatten();
            let is_coming = entries.clone().any(|entry| entry.way.brings_bytes());
            if let Some(entry) = entries.find(|entry| matches!(entry.way, Way::Disk(_))) {
                ended.push(entry.ended());
                drop(state);
                disk.hurry(id);
            } else if !is_coming && let Some(bytes) = disk.bytes_of(id) {
                let arrival = self.note(&mut state, *id, Way::Disk(bytes));
                ended.extend(state.arrivals[id].last().map(|entry| entry.ended()));
                drop(state);
                disk.load(Load { id: *id, held: Arc::clone(self), arrival });
            }
        }
        ended
    }

    /// Notes that a block of `bytes` comes from the disk by itself, unless it is held, or the host has stopped.
    pub(crate) fn expect_from_disk(self: &Arc<Self>, id: BlockId, bytes: u64) -> Option<Arrival> {
        let mut state = self.open().ok()?;
        let is_there = state.held.contains_key(&id) || state.arrivals.contains_key(&id);
        (!is_there).then(|| self.note(&mut state, id, Way::Disk(bytes)))
    }

    /// Room for a block from the disk: what was promised, else what is free. Tells whether it was promised.
    pub(crate) fn room_from_disk(&self, id: BlockId, tokens: usize) -> Result<(Strip, bool), HostError> {
        let mut state = self.open()?;
        let bytes = self.budget.shape().bytes_for(tokens);
        if state.promised.get(&id).is_some_and(|promised| promised.fits(bytes, tokens)) {
            let mut strip = state.promised.remove(&id).expect("just seen").strip;
            strip.restart();
            return Ok((strip, true));
        }
        Ok((Strip::new(self.budget.allocate(tokens)?), false))
    }

    /// The blocks that are on their way from the disk, with the bytes that they will take, by address.
    pub fn from_disk(&self) -> Vec<(BlockId, u64)> {
        let state = self.state();
        let of_disk = state.arrivals.iter().filter_map(|(&id, entries)| {
            entries.iter().find_map(|entry| match entry.way {
                Way::Disk(bytes) => Some((id, bytes)),
                _ => None,
            })
        });
        let mut coming: Vec<_> = of_disk.collect();
        coming.sort_unstable();
        coming
    }
}
