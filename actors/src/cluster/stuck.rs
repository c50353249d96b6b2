//! Hosts whose device thread makes no progress although their node answers: what lies on one does not count as held, and it gets
//! nothing, until it goes on. Its blocks stay in the table, since they are there again when it does.

use std::time::Duration;

use crate::link::HostId;

use super::messages::Inventory;
use super::supervisor::Cluster;
use super::table::Hold;

impl Cluster {
    /// What a node has; see [`inventory_with_stuck`](Self::inventory_with_stuck). None of its hosts is stuck.
    pub fn inventory(&mut self, now: Duration, inventory: &Inventory) {
        self.inventory_with_stuck(now, inventory, &[]);
    }

    /// Notes whether a host is stuck. If it comes to be so, moves to it and from it are taken back, and contexts whose blocks are
    /// on no other host are told; if it goes on, its blocks count again.
    pub(crate) fn note_stuck(&mut self, now: Duration, host: HostId, is_stuck: bool) {
        let Some(entry) = self.table.hosts.get_mut(&host) else { return };
        if std::mem::replace(&mut entry.is_stuck, is_stuck) == is_stuck {
            return;
        }
        let blocks: Vec<_> = entry.blocks.iter().map(|(&id, holding)| (id, holding.hold)).collect();
        if !is_stuck {
            tracing::info!(%host, "a host that was stuck goes on; it is used again");
            for (block, _) in blocks.iter().filter(|(_, hold)| matches!(hold, Hold::Held | Hold::Leaving)) {
                if let Some(entry) = self.table.blocks.get_mut(block) {
                    entry.is_lost = false;
                }
            }
            return;
        }
        tracing::warn!(%host, blocks = blocks.len(), "a host is stuck; it is not used until it goes on");
        for &(block, _) in &blocks {
            // The source of a committed move can still let go of the block: that takes no device.
            let moving = self.move_of(&block).map(|id| &self.moves[&id]);
            if moving.is_some_and(|migration| migration.to == host || !migration.is_committed()) {
                self.vanished(now, host, block);
            }
            self.check_lost(&block, &[host]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::{SupervisorReply, SupervisorRequest};
    use super::super::settings::ClusterSettings;
    use super::super::sim::{World, claim, host};
    use super::super::snapshot::ClusterSnapshot;
    use super::super::table::HostState;
    use super::*;
    use crate::cluster::messages::{NodeKey, QueryNodeNotice, Refusal};
    use crate::cluster::supervisor::Action;
    use crate::manifest::ContextId;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn quick() -> ClusterSettings {
        ClusterSettings {
            unclaimed_grace: seconds(8),
            slow_start: seconds(10),
            rebalance_every: None,
            backoff: seconds(3),
            ..ClusterSettings::default()
        }
    }

    /// Three hosts, and a context of 12 blocks on them.
    fn world(replicas: u16) -> World {
        let mut world = World::new(31, 3, 10_000, quick());
        world.run(seconds(15));
        world.place(claim(1, 12, replicas), &[]).expect("there is room");
        world.run(seconds(30));
        world
    }

    fn shown(world: &mut World) -> ClusterSnapshot {
        match world.cluster.ask(world.now, SupervisorRequest::Overview) {
            SupervisorReply::Snapshot(snapshot) => *snapshot,
            reply => panic!("{reply:?}"),
        }
    }

    fn blocks_of(world: &World, number: u16) -> usize {
        world.hosts[&host(number)].blocks.len()
    }

    #[test]
    fn a_stuck_host_gets_nothing_and_what_it_holds_is_encoded_elsewhere() {
        let mut world = world(1);
        let before = blocks_of(&world, 0);
        assert!(before > 0);
        world.hosts.get_mut(&host(0)).unwrap().is_stuck = true;
        world.run(seconds(10));
        assert_eq!(world.missing(), 0, "every route leads to a host that works");
        assert!(world.routes.values().all(|at| *at != host(0)));
        let snapshot = shown(&mut world);
        assert_eq!((snapshot.hosts[0].state, snapshot.hosts[1].state), (HostState::Stuck, HostState::Active));
        assert_eq!(snapshot.contexts[0].held_blocks, 12);
        // Its state in the words of version 1, which does not know of stuck hosts.
        assert_eq!(world.cluster.snapshot(world.now).hosts[0].state, HostState::Active);
        world.place(claim(2, 12, 1), &[]).expect("two hosts have room");
        world.run(seconds(10));
        assert!(world.routes.values().all(|at| *at != host(0)) && world.missing() == 0);
        assert_eq!(blocks_of(&world, 0), before, "it keeps what it has, and gets no more");
    }

    #[test]
    fn a_host_that_goes_on_is_used_again_and_what_is_held_twice_is_freed() {
        let mut world = world(1);
        world.hosts.get_mut(&host(0)).unwrap().is_stuck = true;
        world.run(seconds(10));
        world.hosts.get_mut(&host(0)).unwrap().is_stuck = false;
        world.run(seconds(40));
        assert_eq!(shown(&mut world).hosts[0].state, HostState::Active);
        let held: usize = (0..3).map(|number| blocks_of(&world, number)).sum();
        // Each block once, and the anchor beside them wherever it is kept.
        assert!((12..=15).contains(&held) && world.missing() == 0, "{held} blocks are held");
        let mut long = claim(2, 60, 1);
        long.anchor = None;
        world.place(long, &[]).expect("there is room");
        world.run(seconds(10));
        assert!(blocks_of(&world, 0) > 10, "{} blocks", blocks_of(&world, 0));
    }

    #[test]
    fn contexts_are_told_once_and_not_where_a_copy_is_left() {
        for (replicas, told) in [(1, 1), (2, 0)] {
            let mut world = world(replicas);
            assert!(blocks_of(&world, 0) > 0);
            let (at, now) = (world.hosts[&host(0)].blocks.keys().copied().collect::<Vec<_>>(), world.now);
            while world.cluster.poll_action().is_some() {}
            for _ in 0..3 {
                world.cluster.note_stuck(now, host(0), true);
            }
            let mut notices = Vec::new();
            while let Some(action) = world.cluster.poll_action() {
                if let Action::ToQueryNode {
                    notice: QueryNodeNotice::Lost { context, blocks, suspects },
                    ..
                } = action
                {
                    assert!(blocks.iter().all(|block| at.contains(block)));
                    notices.push((context, suspects));
                }
            }
            assert_eq!(notices, vec![(ContextId(1), vec![host(0)]); told]);
        }
    }

    #[test]
    fn moves_to_and_from_a_stuck_host_are_taken_back_and_a_drain_of_another_passes_it_by() {
        let mut world = world(1);
        let drained = NodeKey::of(host(1));
        world.hosts.get_mut(&host(0)).unwrap().is_stuck = true;
        world.cluster.drain(world.now, drained, None, false).expect("there is room");
        world.run(seconds(60));
        assert!(world.cluster.moves.values().all(|m| m.to != host(0)), "nothing moves to it");
        assert!(world.routes.values().all(|at| *at == host(2)) && world.missing() == 0);
        assert!(blocks_of(&world, 1) == 0, "the drain came to its end");
    }

    #[test]
    fn where_all_are_stuck_nothing_is_placed_and_the_refusal_says_so() {
        let mut world = world(1);
        world.hosts.values_mut().for_each(|host| host.is_stuck = true);
        world.run(seconds(5));
        let refused = world.cluster.place(world.now, claim(2, 1, 1), &[]);
        assert_eq!(refused, Err(Refusal::NoHosts));
        world.hosts.values_mut().for_each(|host| host.is_stuck = false);
        world.run(seconds(20));
        world.place(claim(2, 1, 1), &[]).expect("they go on");
        world.run(seconds(3));
        assert_eq!(world.missing(), 0);
    }
}
