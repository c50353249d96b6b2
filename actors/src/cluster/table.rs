//! The table of a cluster: which host holds which block, in what state, for whom. Bookkeeping only: every change goes
//! through here, so that bytes and users always add up; what to do about it is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

use crate::disk::index::DiskFigures;
use crate::link::HostId;

use super::bounds;
use super::messages::{ContextClaim, ContextKey, HostInventory, NodeKey, Stamp};

/// What becomes of a host.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It takes blocks.
    Active,
    /// It keeps its blocks and takes no new ones.
    Cordoned,
    /// Its blocks are moving elsewhere.
    Draining,
    /// It was drained; what it still holds counts for nothing.
    Drained,
    /// It is silent, or was seen to go.
    Gone,
    /// Its device makes no progress: it gets nothing, and what it holds does not count. So it is shown only; it may be any of the
    /// first three as well.
    Stuck,
}

/// What a block on a host is. Every state takes the block's bytes of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// To be encoded there by a query node.
    Promised,
    /// To come there by a move that is not committed.
    Incoming,
    /// There.
    Held,
    /// There, and moved elsewhere; freed when nobody routes to it any more.
    Leaving,
    /// To be freed: the order went out at that time.
    Freeing(Duration),
}

/// A block on a host.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    pub(crate) bytes: u64,
    pub(crate) hold: Hold,
    /// The table's version when it became what it is.
    pub(crate) version: u64,
    /// Contexts that keep it here as a copy of their anchor.
    pub(crate) anchors: BTreeSet<ContextKey>,
    /// Since when nobody needs it.
    pub(crate) unclaimed: Option<Duration>,
}

/// A host.
#[derive(Clone, Debug)]
pub(crate) struct HostEntry {
    pub(crate) state: HostState,
    /// Whether its device makes no progress.
    pub(crate) is_stuck: bool,
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) encode_tokens_per_s: u64,
    pub(crate) copy_bytes_per_s: u64,
    /// When its node came up.
    pub(crate) up_since: Duration,
    pub(crate) heard: Duration,
    /// The latest moment heard of: inventories taken before are out of date.
    pub(crate) at: Stamp,
    pub(crate) blocks: BTreeMap<BlockId, Holding>,
    /// Those of them that are promised because they come from the disk of the node, and not by a placement.
    pub(crate) from_disk: BTreeSet<BlockId>,
    pub(crate) computed_blocks: u64,
    pub(crate) disk: Option<DiskFigures>,
}

impl HostEntry {
    pub(crate) fn new(now: Duration) -> Self {
        Self {
            state: HostState::Active,
            is_stuck: false,
            capacity_bytes: 0,
            used_bytes: 0,
            encode_tokens_per_s: 0,
            copy_bytes_per_s: 0,
            up_since: now,
            heard: now,
            at: Stamp::default(),
            blocks: BTreeMap::new(),
            from_disk: BTreeSet::new(),
            computed_blocks: 0,
            disk: None,
        }
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.used_bytes)
    }

    /// Whether what it holds can be attended to.
    pub(crate) fn serves(&self) -> bool {
        !self.is_stuck && matches!(self.state, HostState::Active | HostState::Cordoned | HostState::Draining)
    }

    /// Whether it takes blocks.
    pub(crate) fn takes(&self) -> bool {
        !self.is_stuck && self.state == HostState::Active
    }

    /// What is shown of it.
    pub(crate) fn shown(&self) -> HostState {
        let is_there = !matches!(self.state, HostState::Drained | HostState::Gone);
        if self.is_stuck && is_there { HostState::Stuck } else { self.state }
    }

    /// Notes what its inventory says of the host itself.
    pub(crate) fn measure(&mut self, inventory: &HostInventory) {
        self.capacity_bytes = bounds::of_host(inventory.capacity_bytes);
        self.encode_tokens_per_s = inventory.encode_tokens_per_s;
        self.copy_bytes_per_s = inventory.copy_bytes_per_s;
        self.computed_blocks = bounds::of_count(inventory.computed_blocks);
    }
}

/// A block that contexts need.
#[derive(Clone, Debug)]
pub(crate) struct BlockEntry {
    pub(crate) bytes: u64,
    pub(crate) tokens: u32,
    /// The table's version at the last change of its holders.
    pub(crate) version: u64,
    pub(crate) users: BTreeSet<ContextKey>,
    /// Nodes that shall hold it.
    pub(crate) replicas: u16,
    /// Whether its users were told that nobody holds it.
    pub(crate) is_lost: bool,
}

/// The table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    pub(crate) version: u64,
    pub(crate) hosts: BTreeMap<HostId, HostEntry>,
    pub(crate) blocks: BTreeMap<BlockId, BlockEntry>,
    pub(crate) contexts: BTreeMap<ContextKey, ContextClaim>,
    holders: BTreeMap<BlockId, BTreeSet<HostId>>,
}

impl Table {
    /// Hosts on which the block is, in whatever state.
    pub(crate) fn hosts_of(&self, block: &BlockId) -> impl Iterator<Item = HostId> + '_ {
        self.holders.get(block).into_iter().flatten().copied()
    }

    pub(crate) fn holding(&self, host: HostId, block: &BlockId) -> Option<&Holding> {
        self.hosts.get(&host)?.blocks.get(block)
    }

    pub(crate) fn holding_mut(&mut self, host: HostId, block: &BlockId) -> Option<&mut Holding> {
        self.hosts.get_mut(&host)?.blocks.get_mut(block)
    }

    pub(crate) fn hold(&self, host: HostId, block: &BlockId) -> Option<Hold> {
        self.holding(host, block).map(|holding| holding.hold)
    }

    /// Hosts that have the block to attend to, those that keep it before those it leaves, the latest first.
    pub(crate) fn holders(&self, block: &BlockId) -> Vec<HostId> {
        let mut holders: Vec<_> = self
            .hosts_of(block)
            .filter(|host| self.hosts[host].serves())
            .filter_map(|host| {
                let holding = self.holding(host, block)?;
                let is_leaving = match holding.hold {
                    Hold::Held => false,
                    Hold::Leaving => true,
                    Hold::Promised | Hold::Incoming | Hold::Freeing(_) => return None,
                };
                Some((is_leaving, std::cmp::Reverse(holding.version), host))
            })
            .collect();
        holders.sort_unstable();
        holders.into_iter().map(|(_, _, host)| host).collect()
    }

    /// Contexts by the blocks that are their anchors.
    pub(crate) fn anchors(&self) -> BTreeMap<BlockId, BTreeSet<ContextKey>> {
        let mut anchors: BTreeMap<BlockId, BTreeSet<ContextKey>> = BTreeMap::new();
        for claim in self.contexts.values() {
            if let Some(anchor) = claim.anchor {
                anchors.entry(anchor.id).or_default().insert(claim.key());
            }
        }
        anchors
    }

    /// Whether any context needs the block on that host.
    pub(crate) fn is_claimed(&self, host: HostId, block: &BlockId) -> bool {
        let is_used = self.blocks.get(block).is_some_and(|entry| !entry.users.is_empty());
        is_used || self.holding(host, block).is_some_and(|holding| !holding.anchors.is_empty())
    }

    /// The query nodes whose contexts need the block.
    pub(crate) fn query_nodes(&self, block: &BlockId) -> BTreeSet<NodeKey> {
        let users = self.blocks.get(block).into_iter().flat_map(|entry| &entry.users);
        users.filter_map(|context| Some(self.contexts.get(context)?.query_node)).collect()
    }

    /// Makes a block on a host what it is said to be. Its bytes are counted once, its anchors stay.
    pub(crate) fn set(&mut self, host: HostId, block: BlockId, bytes: u64, hold: Hold) {
        self.version += 1;
        let (version, bytes) = (self.version, bounds::of_block(bytes));
        let entry = self.hosts.get_mut(&host).expect("blocks are put on hosts of the table");
        let holding = entry.blocks.entry(block).or_insert_with(|| {
            entry.used_bytes += bytes;
            Holding { bytes, hold, version, anchors: BTreeSet::new(), unclaimed: None }
        });
        holding.hold = hold;
        holding.version = version;
        self.holders.entry(block).or_default().insert(host);
        self.touch(&block);
    }

    /// Forgets a block on a host.
    pub(crate) fn remove(&mut self, host: HostId, block: &BlockId) -> Option<Holding> {
        let entry = self.hosts.get_mut(&host)?;
        let holding = entry.blocks.remove(block)?;
        entry.from_disk.remove(block);
        entry.used_bytes -= holding.bytes;
        self.version += 1;
        if let Some(holders) = self.holders.get_mut(block) {
            holders.remove(&host);
            if holders.is_empty() {
                self.holders.remove(block);
            }
        }
        self.touch(block);
        Some(holding)
    }

    fn touch(&mut self, block: &BlockId) {
        let version = self.version;
        if let Some(entry) = self.blocks.get_mut(block) {
            entry.version = version;
        }
    }

    /// Counts a context among the users of its blocks. Returns those that it used before and does not any more.
    pub(crate) fn claim(&mut self, claim: ContextClaim) -> Vec<BlockId> {
        let mut given_up = Vec::new();
        let key = claim.key();
        if let Some(old) = self.contexts.get(&key) {
            let kept: BTreeSet<_> = claim.needs.iter().map(|need| need.id).collect();
            let dropped: Vec<_> =
                old.needs.iter().map(|need| need.id).filter(|id| !kept.contains(id)).collect();
            self.disclaim(key, &dropped);
            given_up = dropped;
        }
        for need in &claim.needs {
            let entry = self.blocks.entry(need.id).or_insert_with(|| BlockEntry {
                bytes: need.bytes,
                tokens: need.tokens,
                version: self.version,
                users: BTreeSet::new(),
                replicas: 1,
                is_lost: false,
            });
            entry.users.insert(key);
        }
        let ids: Vec<_> = claim.needs.iter().map(|need| need.id).collect();
        self.contexts.insert(key, claim);
        self.count_replicas(&ids);
        given_up
    }

    /// Forgets a context. What nobody needs any more stays in the table until it is freed.
    pub(crate) fn release(&mut self, context: ContextKey) -> Option<ContextClaim> {
        let claim = self.contexts.remove(&context)?;
        let ids: Vec<_> = claim.needs.iter().map(|need| need.id).collect();
        self.disclaim(context, &ids);
        let anchor = claim.anchor.map(|anchor| anchor.id);
        for host in anchor.iter().flat_map(|id| self.hosts_of(id)).collect::<Vec<_>>() {
            if let Some(holding) = anchor.and_then(|id| self.holding_mut(host, &id)) {
                holding.anchors.remove(&context);
            }
        }
        Some(claim)
    }

    fn disclaim(&mut self, context: ContextKey, ids: &[BlockId]) {
        for id in ids {
            if let Some(entry) = self.blocks.get_mut(id) {
                entry.users.remove(&context);
                if entry.users.is_empty() {
                    self.blocks.remove(id);
                }
            }
        }
        self.count_replicas(ids);
    }

    /// Notes how many nodes shall hold blocks: as many as the context among their users asks for that asks for most.
    fn count_replicas(&mut self, ids: &[BlockId]) {
        for id in ids {
            let Some(entry) = self.blocks.get_mut(id) else { continue };
            let asked = entry.users.iter().filter_map(|user| Some(self.contexts.get(user)?.replicas));
            entry.replicas = asked.max().unwrap_or(1).max(1);
        }
    }

    /// Panics if bytes and holders do not add up.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        for (host, entry) in &self.hosts {
            let used: u64 = entry.blocks.values().map(|holding| holding.bytes).sum();
            assert_eq!(used, entry.used_bytes, "bytes of {host}");
            assert!(entry.blocks.keys().all(|block| self.holders[block].contains(host)));
        }
        assert!(
            self.holders.iter().all(|(block, hosts)| hosts.iter().all(|h| self.holding(*h, block).is_some()))
        );
    }
}
