//! What a supervisor takes of the numbers that others claim. Members are who they say they are, and may say anything else: sums
//! over all hosts must stay numbers whatever one of them reports.

/// The most bytes that a host is taken to hold or to have room for: a pebibyte. Of 8,192 hosts together that is half of what a
/// number holds.
pub const MAX_HOST_BYTES: u64 = 1 << 50;

/// The most bytes that one block is taken to have: 64 GiB, more than any host has to spare for one. As many as one message
/// names together are as many as a host has.
pub const MAX_BLOCK_BYTES: u64 = 1 << 36;

const _: () = assert!(MAX_BLOCK_BYTES < MAX_HOST_BYTES, "a block is a part of what a host holds");

/// The bytes of a host, as far as they are believed.
pub fn of_host(bytes: u64) -> u64 {
    bytes.min(MAX_HOST_BYTES)
}

/// A count of blocks that a host has computed, as far as it is believed.
pub fn of_count(blocks: u64) -> u64 {
    blocks.min(MAX_HOST_BYTES)
}

/// The bytes of a block, as far as they are believed.
pub fn of_block(bytes: u64) -> u64 {
    bytes.min(MAX_BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::messages::{HeldBlock, HostInventory, Inventory, NodeKey, Stamp};
    use super::super::settings::ClusterSettings;
    use super::super::sim::{World, block, claim, host};
    use super::super::term::Term;
    use super::*;
    use crate::link::HostId;

    fn world() -> World {
        let settings =
            ClusterSettings { unclaimed_grace: Duration::from_secs(8), ..ClusterSettings::default() };
        let mut world = World::new(41, 3, 10_000, settings);
        world.run(Duration::from_secs(15));
        world.place(claim(1, 12, 1), &[]).expect("there is room");
        world.run(Duration::from_secs(3));
        world
    }

    /// What a node says of itself, or of others.
    fn says(node: NodeKey, hosts: impl IntoIterator<Item = (HostId, u64, Vec<HeldBlock>)>) -> Inventory {
        let of_host = |(host, capacity_bytes, blocks): (HostId, u64, Vec<HeldBlock>)| HostInventory {
            host,
            capacity_bytes,
            inbound: blocks.clone(),
            from_disk: blocks.clone(),
            computed_blocks: u64::MAX,
            blocks,
            encode_tokens_per_s: u64::MAX,
            copy_bytes_per_s: u64::MAX,
        };
        let hosts = hosts.into_iter().map(of_host).collect();
        let at = Stamp { start: 1, count: 1 };
        Inventory { node, at, up_ms: u64::MAX, seen: Term::NONE, hosts, disk: None }
    }

    #[test]
    fn numbers_beyond_any_machine_neither_stop_a_supervisor_nor_draw_blocks_that_are_not_theirs() {
        let mut world = world();
        let liar = NodeKey([0xee; 6]);
        let held = |number| HeldBlock { id: block(900_000 + number), bytes: u64::MAX };
        let hosts = (0..64).map(|index| {
            (
                HostId::of_node(liar.0, index),
                u64::MAX,
                (0..64).map(|n| held(u64::from(index) * 64 + n)).collect(),
            )
        });
        let inventory = says(liar, hosts);
        world.cluster.inventory(world.now, &inventory);
        world.cluster.tick(world.now);
        let plan = world.cluster.rebalance(world.now, false).expect("it has settled");
        assert!(plan.moves.iter().all(|planned| planned.bytes <= MAX_BLOCK_BYTES));
        let snapshot = world.cluster.overview(world.now);
        let of_liar: Vec<_> = snapshot.hosts.iter().filter(|row| NodeKey::of(row.host) == liar).collect();
        assert_eq!(of_liar.len(), 64);
        assert!(of_liar.iter().all(|row| row.capacity_bytes == MAX_HOST_BYTES));
        world.cluster.table.check();
        // A context as large as numbers go is refused with numbers, and nothing is promised for it.
        let mut huge = claim(2, 100, 1);
        huge.needs.iter_mut().for_each(|need| (need.bytes, need.tokens) = (u64::MAX, u32::MAX));
        let placed = world.cluster.place(world.now, huge, &[]);
        assert!(placed.is_ok() || world.cluster.table.contexts.len() == 1, "{placed:?}");
        world.cluster.table.check();
    }

    #[test]
    fn what_a_node_says_of_the_hosts_of_others_is_not_heard() {
        let mut world = world();
        let before = world.cluster.overview(world.now);
        let liar = NodeKey([0xee; 6]);
        // That they have room, and hold nothing of what they hold.
        let hosts = (0..3).map(|number| (host(number), 1, Vec::new()));
        world.cluster.inventory(world.now, &says(liar, hosts));
        assert_eq!(world.cluster.overview(world.now), before);
        assert_eq!(world.missing(), 0);
    }

    #[test]
    fn blocks_that_a_host_only_claims_to_hold_are_encoded_when_they_are_asked_for() {
        let mut world = world();
        // The node of host 1 says that it holds a context that nobody has encoded yet.
        let liar = NodeKey::of(host(1));
        let context = claim(2, 6, 1);
        let held = context.needs.iter().map(|need| HeldBlock { id: need.id, bytes: need.bytes }).collect();
        let at = Stamp { start: 1, count: 1 << 40 };
        let inventory = Inventory { at, ..says(liar, [(host(1), 10_000, held)]) };
        world.cluster.inventory(world.now, &inventory);
        world.place(context, &[]).expect("there is room");
        assert!(world.routes.values().any(|at| *at == host(1)), "it was believed");
        world.run(Duration::from_secs(30));
        assert_eq!(world.missing(), 0, "whoever asked there found out, and had them encoded");
    }
}
