//! A node whose device stands still although its network answers, under a supervisor that knows of that, and under one of the
//! version before, which does not.

use stellate_actors::cluster::HostState;
use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::cluster::snapshot::ClusterSnapshot;

use crate::node::Spec;
use crate::{BLOCKS, Cluster, Running, TOKENS, answers, blocks_on};

fn state_of(snapshot: &ClusterSnapshot, node: NodeKey) -> Option<HostState> {
    snapshot.hosts.iter().find(|row| NodeKey::of(row.host) == node).map(|row| row.state)
}

#[test]
fn a_node_whose_device_stands_still_is_done_without_and_used_again_when_it_goes_on() {
    for (max_protocol, shown) in [(0, HostState::Stuck), (1, HostState::Gone)] {
        let cluster = Cluster::new();
        let mut first = Running::start(&Spec { max_protocol, ..cluster.supervisor("first", &[]) });
        let spec = Spec { stuck_after_s: Some(3), ..cluster.spec("second", &[&first]) };
        let mut second = Running::start(&spec);
        let mut third = Running::start(&cluster.spec("third", &[&first, &second]));
        first.until_hosts(3);
        let key = second.key;
        assert!(third.encode("star", BLOCKS, 1).contains(&key.to_string()), "blocks lie on all");
        let expected = answers("star", 1, &[(0, 40), (1, TOKENS), (2, TOKENS)]);
        let told = third.ask_and(0, 0, 40, || assert_eq!(second.call("stick"), "stuck"));
        assert_eq!(told, expected[0], "stuck in the middle of an answer");
        let snapshot = first.until(|snapshot| state_of(snapshot, key) == Some(shown));
        assert_eq!(snapshot.hosts.len(), 3);
        // Healed by itself, and nothing new is placed there.
        first.until(|snapshot| snapshot.contexts.iter().all(|row| row.held_blocks == row.blocks));
        assert!(!third.encode("star", BLOCKS, 2).contains(&key.to_string()));
        assert_eq!(third.ask(0, 1), expected[1]);
        assert!(!third.call("places 0").contains(&key.to_string()));
        assert_eq!(second.call("go on"), "goes on");
        first.until(|snapshot| state_of(snapshot, key) == Some(HostState::Active));
        let again = third.encode("star", 4 * BLOCKS, 3);
        assert!(again.contains(&key.to_string()), "it is used again: {again:?}");
        let snapshot = first.until(|snapshot| blocks_on(snapshot, key) > 0);
        assert_eq!(state_of(&snapshot, key), Some(HostState::Active));
        assert_eq!(third.ask(0, 2), expected[2]);
    }
}
