//! Query nodes as the supervisor sees them: which are waited for when blocks move, and how long one that is away keeps its
//! contexts.

use std::time::Duration;

use super::messages::{ContextKey, NodeKey};
use super::supervisor::Cluster;

/// A query node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryNode {
    /// When it was heard of last.
    pub(crate) heard: Duration,
    /// Whether it was seen to go since. It keeps its contexts for a while all the same: it may be starting again, or be cut
    /// off from the supervisor alone.
    is_gone: bool,
}

impl Cluster {
    /// A query node is there.
    pub(crate) fn hear_of_query_node(&mut self, now: Duration, node: NodeKey) {
        self.query_nodes.insert(node, QueryNode { heard: now, is_gone: false });
    }

    /// A query node was seen to go: it is not waited for any more.
    pub(crate) fn query_node_gone(&mut self, node: NodeKey) {
        if let Some(entry) = self.query_nodes.get_mut(&node) {
            entry.is_gone = true;
        }
    }

    /// A query node does not come back: its contexts are released.
    pub(crate) fn forget_query_node(&mut self, now: Duration, node: NodeKey) {
        self.query_nodes.remove(&node);
        self.unannounced.remove(&node);
        for key in self.contexts_of(|query_node| query_node == node) {
            self.release(now, key);
        }
    }

    /// Whether a query node is there, and must be waited for.
    pub(crate) fn is_leased(&self, now: Duration, node: NodeKey) -> bool {
        self.query_nodes.get(&node).is_some_and(|entry| {
            !entry.is_gone && now.saturating_sub(entry.heard) <= self.settings.query_lease
        })
    }

    /// Releases the contexts of query nodes that have been away for too long.
    pub(crate) fn release_orphans(&mut self, now: Duration) {
        let is_orphan = |node: NodeKey| {
            let heard = self.query_nodes.get(&node).map_or(self.started, |entry| entry.heard);
            now.saturating_sub(heard) > self.settings.orphan_grace
        };
        for key in self.contexts_of(is_orphan) {
            tracing::warn!(context = %key.context, node = %key.query_node, "the query node of a context has been away for too long; its blocks are freed");
            self.release(now, key);
        }
    }

    fn contexts_of(&self, is_meant: impl Fn(NodeKey) -> bool) -> Vec<ContextKey> {
        let claims = self.table.contexts.values().filter(|claim| is_meant(claim.query_node));
        claims.map(|claim| claim.key()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::messages::{
        AgentRequest, ContextClaim, HeldBlock, HostInventory, Inventory, Stamp, SupervisorReply,
        SupervisorRequest,
    };
    use super::super::settings::ClusterSettings;
    use super::super::sim::{BLOCK, WALL, claim, host, term};
    use super::super::supervisor::Action;
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// A supervisor that has been up for a quarter of an hour, more than the grace; a context of the first node, whose two
    /// blocks lie on the second.
    struct Old {
        cluster: Cluster,
        now: Duration,
        claim: ContextClaim,
        beats: u64,
    }

    impl Old {
        fn new() -> Self {
            let (settings, intents) = (ClusterSettings::default(), BTreeMap::new());
            let cluster = Cluster::new(Duration::ZERO, WALL, term(1), settings, intents);
            let claim = ContextClaim { query_node: NodeKey::of(host(0)), anchor: None, ..claim(1, 2, 1) };
            let mut old = Self { cluster, now: Duration::ZERO, claim, beats: 0 };
            old.beat(true);
            old.cluster.hold(old.now, old.claim.clone());
            old.pass(900, true);
            assert_eq!(old.freed(), 0);
            old
        }

        /// The second node reports, and so does the first if it is there.
        fn beat(&mut self, is_there: bool) {
            self.beats += 1;
            let first = usize::from(!is_there);
            for number in [0, 1].into_iter().skip(first) {
                let held = self.claim.needs.iter().filter(|_| number == 1);
                let held = held.map(|need| HeldBlock { id: need.id, bytes: BLOCK }).collect();
                // The first has no room for a block, so that none moves.
                let room = if number == 0 { 1 } else { 10 * BLOCK };
                let hosts = vec![HostInventory::of(host(number), room, held)];
                let at = Stamp { start: 1, count: self.beats };
                let (node, seen) = (NodeKey::of(host(number)), self.cluster.term());
                let inventory = Inventory { node, at, up_ms: 0, seen, hosts, disk: None };
                self.cluster.inventory(self.now, &inventory);
            }
            if is_there {
                let term = self.cluster.term();
                self.cluster.renew(self.now, NodeKey::of(host(0)), term, term);
            }
            self.cluster.tick(self.now);
        }

        fn pass(&mut self, time: u64, is_there: bool) {
            for _ in 0..time {
                self.now += seconds(1);
                self.beat(is_there);
            }
        }

        /// How many blocks were ordered to be freed since this was asked last.
        fn freed(&mut self) -> usize {
            let actions = std::iter::from_fn(|| self.cluster.poll_action());
            let freed = actions.filter_map(|action| match action {
                Action::ToAgent { order, .. } => match order.request {
                    AgentRequest::Free { blocks, .. } => Some(blocks.len()),
                    _ => None,
                },
                _ => None,
            });
            freed.sum()
        }
    }

    #[test]
    fn a_query_node_that_is_seen_to_go_keeps_its_blocks_for_the_whole_grace() {
        let mut old = Old::new();
        old.cluster.node_gone(old.now, NodeKey::of(host(0)));
        assert!(!old.cluster.is_leased(old.now, NodeKey::of(host(0))), "nothing waits for it");
        old.pass(600, false);
        assert_eq!(old.freed(), 0);
        old.pass(1, false);
        assert_eq!(old.freed(), 2);
    }

    #[test]
    fn a_query_node_that_comes_back_within_the_grace_keeps_its_blocks() {
        let mut old = Old::new();
        old.cluster.node_gone(old.now, NodeKey::of(host(0)));
        old.pass(590, false);
        old.pass(1, true);
        assert!(old.cluster.is_leased(old.now, NodeKey::of(host(0))));
        old.cluster.node_gone(old.now, NodeKey::of(host(0)));
        old.pass(600, false);
        assert_eq!((old.freed(), old.cluster.table.contexts.len()), (0, 1), "its grace begins anew");
    }

    #[test]
    fn a_query_node_that_was_seen_to_go_is_not_waited_for_because_the_supervisor_stood_still() {
        let mut old = Old::new();
        old.cluster.node_gone(old.now, NodeKey::of(host(0)));
        old.now += seconds(20);
        old.beat(false);
        assert!(!old.cluster.is_leased(old.now, NodeKey::of(host(0))));
    }

    #[test]
    fn the_contexts_of_a_node_that_is_removed_are_released_at_once() {
        let mut old = Old::new();
        let remove = SupervisorRequest::Remove { node: NodeKey::of(host(0)), force: false };
        assert_eq!(old.cluster.ask(old.now, remove), SupervisorReply::Done);
        assert_eq!((old.freed(), old.cluster.table.contexts.len()), (2, 0));
        assert!(old.cluster.query_nodes.is_empty());
    }
}
