//! Copies of blocks on further nodes: how many there shall be, where the next one goes, which one is too many. The first copy
//! is placed with its context; the others are made from it in the background, and again when a node is lost. Hosts of one node
//! go together, so a second copy on the same node counts for nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use stellate_model::block::BlockId;

use crate::link::HostId;

use super::drain::{Candidate, pick};
use super::messages::NodeKey;
use super::plan::{MoveReason, PlannedMove};
use super::supervisor::Cluster;
use super::table::Hold;

impl Cluster {
    /// Makes copies that are missing, and has routes leave those that are too many. Looks at every block.
    pub(crate) fn pump_replicas(&mut self, now: Duration) {
        if self.is_replaced || !self.has_settled {
            return;
        }
        let knows_contexts = self.knows_contexts(now);
        for block in self.table.blocks.keys().copied().collect::<Vec<_>>() {
            let lasting = self.lasting_holders(&block);
            if self.is_moving(&block) || lasting.is_empty() {
                continue;
            }
            let want = self.wanted(&block, None);
            let kept = one_of_each_node(&lasting, want);
            if kept.len() < want {
                self.copy(now, block, kept[0], (kept.len(), want));
            } else if knows_contexts && let Some(spare) = self.spare(&block, &lasting, &kept) {
                self.start_switch(now, block, spare, kept[0], MoveReason::Surplus);
            }
        }
    }

    fn copy(&mut self, now: Duration, block: BlockId, from: HostId, (have, want): (usize, usize)) {
        // One that is to be encoded elsewhere is waited for.
        let is_promised =
            self.table.hosts_of(&block).any(|host| self.table.hold(host, &block) == Some(Hold::Promised));
        let bytes = self.table.blocks[&block].bytes;
        if !is_promised && let Some(to) = self.target(now, &block, bytes, self.settings.full_permille) {
            let why = MoveReason::Replica { have: have as u16, want: want as u16 };
            self.start_move(now, PlannedMove { block, bytes, from, to, why });
        }
    }

    /// A holder that is one too many, the earliest first. One that keeps the block as an anchor is none.
    fn spare(&self, block: &BlockId, lasting: &[HostId], kept: &[HostId]) -> Option<HostId> {
        let is_spare = |host: &&HostId| {
            let holding = self.table.holding(**host, block);
            !kept.contains(host) && holding.is_some_and(|holding| holding.anchors.is_empty())
        };
        lasting.iter().rev().find(is_spare).copied()
    }

    /// Hosts that hold a block and will go on holding it, the latest first.
    pub(crate) fn lasting_holders(&self, block: &BlockId) -> Vec<HostId> {
        let mut holders = self.table.holders(block);
        holders.retain(|host| !self.is_leaving(*host) && self.table.hold(*host, block) == Some(Hold::Held));
        holders
    }

    /// How many nodes shall hold a block: as many as asked for, as far as there are any that take it or hold it already; for
    /// one that is about to go, as far as there are others.
    pub(crate) fn wanted(&self, block: &BlockId, without: Option<NodeKey>) -> usize {
        let asked = self.table.blocks.get(block).map_or(1, |entry| usize::from(entry.replicas));
        if asked <= 1 {
            return 1;
        }
        let active = self.table.hosts.iter().filter(|(_, entry)| entry.takes());
        let mut nodes: BTreeSet<_> = active.map(|(&host, _)| NodeKey::of(host)).collect();
        // Cordoned ones among them.
        nodes.extend(nodes_of(&self.lasting_holders(block)));
        nodes.retain(|node| Some(*node) != without);
        asked.min(nodes.len()).max(1)
    }

    /// Whether as many nodes hold a block as were asked for.
    pub(crate) fn has_all_copies(&self, block: &BlockId) -> bool {
        let asked = self.table.blocks.get(block).map_or(1, |entry| usize::from(entry.replicas));
        nodes_of(&self.lasting_holders(block)).len() >= asked.max(1)
    }

    /// The best host to send a block to now. Its node holds no copy.
    pub(crate) fn target(
        &self,
        now: Duration,
        block: &BlockId,
        bytes: u64,
        full_permille: u64,
    ) -> Option<HostId> {
        let mut candidates = self.takers(now, block, full_permille);
        candidates.retain(|candidate| !self.backoff.contains_key(&(*block, candidate.host)));
        let index = pick(&candidates, block, bytes, |host| !self.is_receiving(host))?;
        Some(candidates[index].host)
    }

    /// Whether some host could take one more copy of a block, if not now then later.
    pub(crate) fn has_room(&self, now: Duration, block: &BlockId, bytes: u64, full_permille: u64) -> bool {
        pick(&self.takers(now, block, full_permille), block, bytes, |_| true).is_some()
    }

    /// Hosts of nodes that hold no copy of a block that stays.
    fn takers(&self, now: Duration, block: &BlockId, full_permille: u64) -> Vec<Candidate> {
        let nodes = nodes_of(&self.lasting_holders(block));
        self.candidates(now, full_permille, |host| {
            self.table.holding(host, block).is_none() && !nodes.contains(&NodeKey::of(host))
        })
    }
}

/// The nodes of hosts.
pub(crate) fn nodes_of(hosts: &[HostId]) -> BTreeSet<NodeKey> {
    hosts.iter().copied().map(NodeKey::of).collect()
}

/// The first host of each node, as far as `most` nodes.
fn one_of_each_node(hosts: &[HostId], most: usize) -> Vec<HostId> {
    let mut nodes = BTreeSet::new();
    let firsts = hosts.iter().copied().filter(|&host| nodes.insert(NodeKey::of(host)));
    firsts.take(most).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::messages::{AgentRequest, HeldBlock, HostInventory, Inventory, Stamp};
    use super::super::settings::ClusterSettings;
    use super::super::sim::{claim, term};
    use super::super::supervisor::Action;
    use super::super::term::Term;
    use super::*;

    fn inventory(count: u64, node: u8, hosts: &[&[BlockId]]) -> Inventory {
        let key = [0, 0, 0, 0, 0, node];
        let host = |(index, blocks): (u16, &&[BlockId])| {
            HostInventory::of(
                HostId::of_node(key, index),
                10_000,
                blocks.iter().map(|&id| HeldBlock { id, bytes: 100 }).collect(),
            )
        };
        let at = Stamp { start: 1, count };
        Inventory {
            node: NodeKey(key),
            at,
            up_ms: 0,
            seen: Term::NONE,
            hosts: (0..).zip(hosts).map(host).collect(),
            disk: None,
        }
    }

    #[test]
    fn the_second_copy_goes_to_another_node_although_a_second_host_of_the_first_is_as_empty() {
        let settings = ClusterSettings { settle: Duration::ZERO, ..ClusterSettings::default() };
        let mut cluster = Cluster::new(Duration::ZERO, Duration::ZERO, term(1), settings, BTreeMap::new());
        let context = claim(1, 2, 2);
        let ids: Vec<BlockId> = context.needs.iter().map(|need| need.id).collect();
        let second = Duration::from_secs(1);
        cluster.hold(second, context);
        cluster.inventory(second, &inventory(1, 1, &[&ids, &[]]));
        cluster.tick(second);
        let reserved = |cluster: &mut Cluster| {
            std::iter::from_fn(|| cluster.poll_action())
                .filter_map(|action| match action {
                    Action::ToAgent { node, order } => match order.request {
                        AgentRequest::Reserve { host, .. } => Some((node.0[5], host)),
                        _ => None,
                    },
                    _ => None,
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(reserved(&mut cluster), [], "the second host of the node goes when the first does");
        assert!(!cluster.has_all_copies(&ids[0]));
        cluster.inventory(second, &inventory(1, 2, &[&[], &[]]));
        cluster.tick(2 * second);
        let hosts = [0, 1].map(|index| (2, HostId::of_node([0, 0, 0, 0, 0, 2], index)));
        let mut asked = reserved(&mut cluster);
        asked.sort_unstable();
        assert_eq!(asked, hosts, "one into each host at a time");
    }
}
