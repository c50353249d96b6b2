//! Blocks that hosts get back from the disks of their nodes, as the supervisor sees them: not there yet, and need not be encoded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stellate_model::block::BlockId;

use crate::link::HostId;

use super::messages::{ContextKey, HostInventory};
use super::supervisor::Cluster;
use super::table::Hold;

impl Cluster {
    /// Blocks that come from the disk of a host's node are as good as promised to it: what is placed meanwhile goes there, and
    /// they are not lost. One that does not come after all is forgotten, unless it was placed there in the meantime.
    pub(crate) fn compare_disk(
        &mut self,
        now: Duration,
        host: HostId,
        reported: &HostInventory,
        anchors: &BTreeMap<BlockId, BTreeSet<ContextKey>>,
    ) {
        let coming: BTreeSet<BlockId> = reported.from_disk.iter().map(|block| block.id).collect();
        let entry = &self.table.hosts[&host];
        for id in entry.from_disk.difference(&coming).copied().collect::<Vec<_>>() {
            self.table.hosts.get_mut(&host).expect("it reports").from_disk.remove(&id);
            if self.table.hold(host, &id) == Some(Hold::Promised) {
                self.forget(now, host, id);
            }
        }
        for block in &reported.from_disk {
            if self.table.hold(host, &block.id).is_none() {
                self.table.set(host, block.id, block.bytes, Hold::Promised);
                if let Some(users) = anchors.get(&block.id) {
                    self.table.holding_mut(host, &block.id).expect("just set").anchors.clone_from(users);
                }
                self.table.hosts.get_mut(&host).expect("it reports").from_disk.insert(block.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::{HeldBlock, Inventory, NodeKey, QueryNodeNotice, Stamp};
    use super::super::settings::ClusterSettings;
    use super::super::sim::{BLOCK, claim, host, term};
    use super::super::supervisor::Action;
    use super::super::term::Term;
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// What one host reports, with blocks that come from its disk.
    fn from_disk(number: u16, count: u64, held: &[BlockId], coming: &[BlockId]) -> Inventory {
        let listed =
            |ids: &[BlockId]| ids.iter().map(|&id| HeldBlock { id, bytes: BLOCK }).collect::<Vec<_>>();
        let reported = HostInventory {
            from_disk: listed(coming),
            ..HostInventory::of(host(number), 1000, listed(held))
        };
        let at = Stamp { start: 1, count };
        Inventory {
            node: NodeKey::of(host(number)),
            at,
            up_ms: 0,
            seen: Term::NONE,
            hosts: vec![reported],
            disk: None,
        }
    }

    #[test]
    fn a_block_that_comes_from_a_disk_is_placed_where_it_comes_and_counts_there_once() {
        let mut cluster = Cluster::new(
            Duration::ZERO,
            Duration::ZERO,
            term(1),
            ClusterSettings::default(),
            BTreeMap::new(),
        );
        let mut claim = claim(1, 3, 1);
        claim.anchor = None;
        let ids: Vec<_> = claim.needs.iter().map(|need| need.id).collect();
        let now = seconds(3);
        // By itself the context would be spread over all hosts.
        cluster.inventory(now, &from_disk(0, 1, &[], &ids));
        (1..4).for_each(|number| cluster.inventory(now, &from_disk(number, 1, &[], &[])));
        let placed = cluster.place(now, claim.clone(), &[]).unwrap().placed;
        assert!(placed.iter().all(|placed| placed.host == host(0) && !placed.held), "{placed:?}");
        cluster.inventory(now, &from_disk(0, 2, &ids[..1], &ids[1..]));
        assert_eq!(cluster.table.hosts[&host(0)].used_bytes, 3 * BLOCK);
        cluster.table.check();
        // One of them does not come after all, and was placed there: whoever was told so encodes it there.
        cluster.inventory(now, &from_disk(0, 3, &ids[..2], &[]));
        assert_eq!(cluster.table.hold(host(0), &ids[2]), Some(Hold::Promised));
    }

    /// The blocks that query nodes are told are lost.
    fn lost(cluster: &mut Cluster) -> Vec<BlockId> {
        let actions = std::iter::from_fn(|| cluster.poll_action());
        let lost = actions.filter_map(|action| match action {
            Action::ToQueryNode { notice: QueryNodeNotice::Lost { blocks, .. }, .. } => Some(blocks),
            _ => None,
        });
        lost.flatten().collect()
    }

    #[test]
    fn a_block_that_does_not_come_from_a_disk_after_all_is_lost_and_healed() {
        let mut cluster = Cluster::new(
            Duration::ZERO,
            Duration::ZERO,
            term(1),
            ClusterSettings::default(),
            BTreeMap::new(),
        );
        let mut claim = claim(1, 2, 1);
        claim.anchor = None;
        let ids: Vec<_> = claim.needs.iter().map(|need| need.id).collect();
        cluster.inventory(seconds(1), &from_disk(0, 1, &ids[..1], &ids[1..]));
        cluster.tick(seconds(3));
        cluster.hold(seconds(3), claim);
        assert_eq!(lost(&mut cluster), [], "it is on its way");
        cluster.inventory(seconds(4), &from_disk(0, 2, &ids[..1], &[]));
        assert_eq!(lost(&mut cluster), [ids[1]]);
        assert_eq!(cluster.table.hosts[&host(0)].used_bytes, BLOCK);
        cluster.table.check();
    }
}
