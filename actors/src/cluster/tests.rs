//! The supervisor against simulated clusters: what must hold under every fault, and what refusals say.

mod mishaps;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::drain::DrainState;
use super::intents::Intent;
use super::messages::{
    AgentOrder, AgentRequest, AnchorCopy, ContextClaim, HostInventory, Inventory, NodeKey, Refusal, Stamp,
    SupervisorReply, SupervisorRequest,
};
use super::plan::Skipped;
use super::settings::{ClusterSettings, RepairPolicy};
use super::sim::{BLOCK, Chance, STEP, WALL, World, claim, host, term};
use super::supervisor::{Action, Cluster};
use super::table::{Hold, HostState};
use super::term::Term;
use crate::manifest::ContextId;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn quick() -> ClusterSettings {
    ClusterSettings {
        unclaimed_grace: seconds(8),
        slow_start: seconds(10),
        rebalance_every: Some(seconds(5)),
        backoff: seconds(3),
        order_timeout: seconds(3),
        copy_timeout: seconds(4),
        ..ClusterSettings::default()
    }
}

/// A cluster that knows its hosts and is past its grace.
fn settled(seed: u64, hosts: u16, capacity: u64, settings: ClusterSettings) -> World {
    let mut world = World::new(seed, hosts, capacity, settings);
    world.run(seconds(15));
    world
}

fn node(number: u16) -> NodeKey {
    NodeKey::of(host(number))
}

#[test]
fn fifty_hosts_and_two_thousand_blocks_end_balanced_after_joins_drains_and_deaths() {
    let seed = 20_260_101;
    let mut world = settled(seed, 40, 10_000, quick());
    for context in 0..40 {
        world.place(claim(context, 50, 1), &[]).expect("there is room");
    }
    world.run(seconds(10));
    (40..50).for_each(|number| world.join(number, 10_000));
    world.run(seconds(60));
    world.cluster.drain(world.now, node(3), None, false).expect("there is room");
    world.cluster.drain(world.now, node(4), None, false).expect("there is room");
    world.run(seconds(60));
    assert!(world.drains.iter().filter(|progress| progress.state == DrainState::Done).count() == 2);
    assert!(world.hosts[&host(3)].blocks.is_empty() && world.hosts[&host(4)].blocks.is_empty());
    (7..10).for_each(|number| world.kill(host(number)));
    world.run(seconds(30));
    world.join(7, 10_000);
    world.run(seconds(200));
    assert_eq!(world.missing(), 0);
    let of: Vec<_> =
        world.hosts.iter().filter(|(id, h)| h.is_up && ![host(3), host(4)].contains(id)).collect();
    let fills: Vec<_> = of.iter().map(|(_, h)| h.used() * 1000 / h.capacity).collect();
    let difference = fills.iter().max().unwrap() - fills.iter().min().unwrap();
    assert!(difference <= 50, "hosts differ by {difference} thousandths with seed {seed}: {fills:?}");
}

#[test]
fn equal_hosts_get_equally_many_blocks_of_a_context() {
    let mut world = settled(1, 8, 10_000, quick());
    let mut long = claim(1, 64, 1);
    long.anchor = None;
    world.place(long, &[]).unwrap();
    world.run(seconds(3));
    assert!(world.hosts.values().all(|host| host.used() == 8 * BLOCK));
}

#[test]
fn a_context_that_does_not_fit_is_refused_with_the_numbers_and_fits_once_a_host_joins() {
    let mut world = settled(2, 2, 400, quick());
    let mut long = claim(1, 10, 1);
    long.anchor = None;
    let refused = world.place(long.clone(), &[]);
    let free_bytes = vec![(host(0), 400), (host(1), 400)];
    assert_eq!(refused, Err(Refusal::NoRoom { needed_bytes: 1000, block_bytes: 100, free_bytes }));
    assert!(world.cluster.table.hosts.values().all(|entry| entry.used_bytes == 0), "nothing was promised");
    world.join(2, 400);
    world.run(seconds(2));
    world.place(long, &[]).unwrap();
}

#[test]
fn a_drain_that_does_not_fit_is_refused_with_the_numbers_and_a_dry_run_changes_nothing() {
    let mut world = settled(3, 3, 1000, quick());
    for context in 0..8 {
        let mut short = claim(context, 3, 1);
        short.anchor = None;
        world.place(short, &[]).unwrap();
    }
    world.run(seconds(3));
    let refused = world.cluster.drain(world.now, node(0), None, false);
    let expected = Refusal::DrainNoRoom {
        node: node(0),
        blocks: 8,
        bytes: 800,
        free_bytes: 400,
        homeless_blocks: 4,
        block_bytes: 100,
    };
    assert_eq!(refused, Err(expected));
    assert_eq!(world.cluster.table.hosts[&host(0)].state, HostState::Active);
    world.join(3, 1000);
    world.run(seconds(2));
    let plan = world.cluster.drain(world.now, node(0), None, true).expect("there is room now");
    assert_eq!((plan.moves.len(), plan.bytes), (8, 800));
    assert_eq!(world.cluster.table.hosts[&host(0)].state, HostState::Active);
}

#[test]
fn past_its_deadline_a_drain_names_the_contexts_and_leaves_the_rest_to_be_healed() {
    let mut world = settled(4, 3, 10_000, quick());
    world.place(claim(1, 60, 1), &[]).unwrap();
    world.run(seconds(3));
    world.cluster.drain(world.now, node(0), Some(seconds(4)), false).unwrap();
    world.run(seconds(30));
    let last = world.drains.last().unwrap();
    assert_eq!((last.state, &last.affected[..]), (DrainState::DeadlinePassed, &[ContextId(1)][..]));
    assert!(last.moved_blocks > 0 && last.left_blocks > 0, "{last:?}");
    assert_eq!(world.missing(), 0);
    assert!(world.routes.values().all(|at| *at != host(0)));
}

#[test]
fn blocks_that_are_quicker_computed_than_copied_are_computed_on_the_new_host() {
    let forced = ClusterSettings { repair: RepairPolicy::AlwaysRecompute, ..quick() };
    let mut world = settled(5, 3, 10_000, forced);
    world.place(claim(1, 12, 1), &[]).unwrap();
    world.run(seconds(3));
    world.cluster.drain(world.now, node(0), None, false).unwrap();
    world.run(seconds(30));
    let last = world.drains.last().unwrap();
    assert_eq!((last.state, last.moved_blocks), (DrainState::Done, 0));
    assert!(last.recomputed_blocks > 0 && world.missing() == 0);
}

#[test]
fn replicas_are_made_and_one_takes_over_when_a_host_dies() {
    let mut world = settled(6, 4, 10_000, quick());
    world.place(claim(1, 12, 2), &[]).unwrap();
    world.run(seconds(30));
    let holders =
        |world: &World, id| world.hosts.values().filter(|host| host.blocks.contains_key(id)).count();
    let needs = world.contexts[&ContextId(1)].needs.clone();
    assert!(needs.iter().all(|need| holders(&world, &need.id) == 2));
    world.kill(host(0));
    assert!(needs.iter().all(|need| holders(&world, &need.id) >= 1));
    world.run(seconds(60));
    assert!(needs.iter().all(|need| holders(&world, &need.id) == 2));
    assert_eq!(world.missing(), 0);
}

/// How many hosts hold each block of the first context.
fn copies(world: &World) -> Vec<usize> {
    let holders = |id| world.hosts.values().filter(|host| host.blocks.contains_key(id)).count();
    world.contexts[&ContextId(1)].needs.iter().map(|need| holders(&need.id)).collect()
}

#[test]
fn copies_are_made_as_soon_as_a_context_is_encoded_and_what_is_one_too_many_goes_later() {
    let settings = ClusterSettings { unclaimed_grace: seconds(60), rebalance_every: None, ..quick() };
    let mut world = World::new(11, 4, 10_000, settings);
    world.run(seconds(3));
    world.place(claim(1, 6, 2), &[]).unwrap();
    world.run(seconds(30));
    assert_eq!(copies(&world), [2; 6]);
    // The query node was started again, and asks for fewer.
    world.place(claim(1, 6, 1), &[]).unwrap();
    world.run(seconds(20));
    assert_eq!(copies(&world), [2; 6], "others may ask for them that have not been heard of");
    world.run(seconds(60));
    assert_eq!((copies(&world), world.missing()), (vec![1; 6], 0));
}

#[test]
fn of_two_nodes_with_copies_either_can_be_drained_and_blocks_that_a_third_has_room_for_go_there() {
    for (hosts, left) in [(2, 1), (3, 2)] {
        let mut world = settled(12, hosts, 10_000, quick());
        world.place(claim(1, 6, 2), &[]).unwrap();
        world.run(seconds(30));
        assert_eq!(copies(&world), [2; 6]);
        world.cluster.drain(world.now, node(0), None, false).expect("the other has everything");
        world.run(seconds(60));
        assert_eq!(world.drains.last().unwrap().state, DrainState::Done);
        assert_eq!((copies(&world), world.missing()), (vec![left; 6], 0));
    }
}

#[test]
fn a_drain_goes_on_with_a_copy_less_where_there_is_no_room_for_it() {
    let mut world = settled(13, 3, 800, ClusterSettings { full_permille: 1000, ..quick() });
    let mut long = claim(1, 10, 2);
    long.anchor = None;
    world.place(long, &[]).unwrap();
    world.run(seconds(60));
    assert_eq!(copies(&world), [2; 10]);
    world.cluster.drain(world.now, node(0), None, false).expect("the others have every block");
    world.run(seconds(60));
    assert_eq!(world.drains.last().unwrap().state, DrainState::Done);
    assert!(copies(&world).iter().all(|&count| count >= 1) && world.missing() == 0);
}

#[test]
fn a_new_supervisor_frees_nothing_that_is_announced_and_everything_else_after_its_grace() {
    let mut world = settled(7, 3, 10_000, quick());
    world.place(claim(1, 9, 1), &[]).unwrap();
    world.place(claim(2, 9, 1), &[]).unwrap();
    world.run(seconds(3));
    // The second context's query node releases it while no supervisor is there.
    world.contexts.remove(&ContextId(2));
    world.routes.retain(|(context, _), _| *context != ContextId(2));
    world.restart_supervisor();
    world.run(seconds(1));
    assert!(matches!(world.place(claim(3, 1, 1), &[]), Err(Refusal::Settling { .. })));
    world.run(seconds(6));
    let blocks = |world: &World| world.hosts.values().map(|host| host.blocks.len()).sum::<usize>();
    assert_eq!(blocks(&world), 2 * 11, "nine blocks and two copies of the anchor of each");
    world.run(seconds(10));
    assert_eq!((blocks(&world), world.missing(), world.moved), (11, 0, 0));
}

#[test]
fn an_anchor_that_another_host_holds_is_copied_where_that_is_cheaper_or_forced() {
    use RepairPolicy::{AlwaysCopy, AlwaysRecompute, Cheapest};
    for (repair, is_copied) in [(Cheapest, true), (AlwaysCopy, true), (AlwaysRecompute, false)] {
        let settings = ClusterSettings { repair, rebalance_every: None, ..quick() };
        let mut world = settled(21, 2, 10_000, settings);
        let first = claim(1, 8, 1);
        let anchor = first.anchor;
        world.place(first, &[]).unwrap();
        world.run(seconds(3));
        world.join(2, 10_000);
        world.run(seconds(20));
        let placed = world.cluster.place(world.now, ContextClaim { anchor, ..claim(2, 12, 1) }, &[]).unwrap();
        let of_new: Vec<_> = placed.placed.iter().filter(|placed| placed.host == host(2)).collect();
        assert!(of_new.iter().any(|placed| placed.anchor_copy), "{of_new:?}");
        let source = of_new.iter().find_map(|placed| placed.anchor_from);
        assert_eq!(source.is_some(), is_copied, "{repair:?}");
        assert!(source.is_none_or(|from| world.hosts[&from].blocks.contains_key(&anchor.unwrap().id)));
    }
}

#[test]
fn a_first_block_that_is_the_anchor_too_is_asked_for_where_it_stays() {
    let mut world = settled(23, 3, 10_000, ClusterSettings { rebalance_every: None, ..quick() });
    let claim = claim(1, 12, 1);
    let (first, anchor) =
        (claim.needs[0], claim.anchor.map(|anchor| AnchorCopy { id: claim.needs[0].id, ..anchor }));
    let claim =
        ContextClaim { anchor: anchor.map(|anchor| AnchorCopy { bytes: first.bytes, ..anchor }), ..claim };
    world.place(claim.clone(), &[]).unwrap();
    world.run(seconds(3));
    let is_held = |world: &World, host| world.cluster.table.hold(host, &first.id) == Some(Hold::Held);
    for drained in [0, 1] {
        assert!(is_held(&world, host(drained)), "each host keeps the anchor");
        world.cluster.drain(world.now, node(drained), None, false).unwrap();
        for _ in 0..40 {
            let placed = world.cluster.place(world.now, claim.clone(), &[]).unwrap().placed[0];
            assert!(placed.held && is_held(&world, placed.host), "{placed:?}");
            world.run(STEP);
        }
    }
}

#[test]
fn two_query_nodes_that_call_their_contexts_alike_keep_the_blocks_of_both() {
    let mut world = settled(16, 2, 10_000, quick());
    world.place(claim(1, 5, 1), &[]).unwrap();
    world.run(seconds(3));
    let namesake = ContextClaim { context: ContextId(1), query_node: NodeKey([5; 6]), ..claim(2, 3, 1) };
    let key = namesake.key();
    world.cluster.place(world.now, namesake, &[]).unwrap();
    world.run(seconds(20));
    assert_eq!((world.cluster.table.contexts.len(), world.missing()), (2, 0));
    world.cluster.release(world.now, key);
    world.run(seconds(20));
    assert_eq!((world.cluster.table.contexts.len(), world.missing()), (1, 0));
}

#[test]
fn a_cordon_takes_a_drain_back_and_rebalancing_goes_on() {
    let mut world = settled(17, 3, 10_000, quick());
    world.place(claim(1, 60, 1), &[]).unwrap();
    world.run(seconds(3));
    world.cluster.drain(world.now, node(0), None, false).unwrap();
    world.run(seconds(2));
    let first = &world.drains[0];
    assert!(first.left_blocks > 0, "the first word of a drain says how much there is to do: {first:?}");
    world.cluster.cordon(node(0)).unwrap();
    assert_eq!(world.cluster.snapshot(world.now).drains, []);
    assert_eq!(world.cluster.table.hosts[&host(0)].state, HostState::Cordoned);
    world.join(3, 10_000);
    world.run(seconds(60));
    assert!(!world.hosts[&host(0)].blocks.is_empty(), "the rest of its blocks stays");
    assert!(world.hosts[&host(3)].blocks.len() > 5, "blocks move to where there is room");
    let snapshot = world.cluster.snapshot(world.now);
    assert!(snapshot.rebalanced.moved > 5 && snapshot.next_move > 5, "{:?}", snapshot.rebalanced);
    assert!(snapshot.ended_moves.iter().any(|ended| ended.is_committed && ended.row.to == host(3)));
}

#[test]
fn a_drain_goes_on_under_a_new_supervisor_and_keeps_its_deadline() {
    for deadline in [None, Some(seconds(10)), Some(seconds(4))] {
        let mut world = settled(18, 3, 10_000, quick());
        world.place(claim(1, 60, 1), &[]).unwrap();
        world.run(seconds(3));
        let drained_from = world.now;
        world.cluster.drain(world.now, node(0), deadline, false).unwrap();
        world.run(seconds(2));
        world.restart_supervisor();
        assert_eq!(world.cluster.snapshot(world.now).drains[0].state, DrainState::Moving);
        world.drains.clear();
        let ended = |world: &World| world.drains.last().is_some_and(|last| last.state != DrainState::Moving);
        while !ended(&world) && world.now < drained_from + seconds(100) {
            world.step();
        }
        let (last, took) = (world.drains.last().unwrap().clone(), world.now - drained_from);
        match deadline {
            None => assert_eq!(last.state, DrainState::Done),
            Some(deadline) => {
                assert_eq!(last.state, DrainState::DeadlinePassed, "{last:?}");
                assert!(took >= deadline && took < deadline + seconds(4), "{deadline:?} became {took:?}");
            }
        }
        assert_eq!(world.cluster.table.hosts[&host(0)].state, HostState::Drained);
        world.run(seconds(30));
        assert_eq!(world.missing(), 0);
    }
}

#[test]
fn what_is_wanted_of_a_node_that_this_supervisor_never_heard_of_can_be_taken_back() {
    let intents = BTreeMap::from([(node(7), Intent::Cordon), (node(8), Intent::Cordon)]);
    let mut cluster = Cluster::new(Duration::ZERO, WALL, term(1), quick(), intents);
    cluster.tick(seconds(3));
    assert_eq!(cluster.uncordon(node(7)), Ok(()));
    assert_eq!(cluster.remove(seconds(3), node(8), false), Ok(()));
    assert_eq!(cluster.intents, BTreeMap::new());
    assert_eq!(cluster.uncordon(node(7)), Err(Refusal::NoSuchNode { node: node(7) }));
}

#[test]
fn a_drained_host_that_was_away_is_drained_again_and_not_draining_for_ever() {
    let mut world = settled(19, 2, 10_000, quick());
    world.cluster.drain(world.now, node(0), None, false).unwrap();
    world.run(seconds(3));
    world.kill(host(0));
    world.run(seconds(10));
    world.join(0, 10_000);
    world.run(seconds(3));
    assert_eq!(world.cluster.table.hosts[&host(0)].state, HostState::Drained);
}

#[test]
fn an_intent_that_cannot_be_kept_does_not_hold_and_what_it_began_is_taken_back() {
    let mut world = settled(20, 3, 10_000, quick());
    world.place(claim(1, 9, 1), &[]).unwrap();
    world.run(seconds(3));
    world.cluster.drain(world.now, node(0), None, false).unwrap();
    world.cluster.not_kept(world.now, node(0), None);
    assert_eq!(world.cluster.table.hosts[&host(0)].state, HostState::Active);
    assert_eq!(world.cluster.snapshot(world.now).moves, []);
    world.run(seconds(20));
    assert_eq!((world.moved, world.missing()), (0, 0));
}

#[test]
fn a_supervisor_that_moves_to_another_node_frees_nothing_whatever_that_node_knows_of_terms() {
    for (byte, counter) in [(1, 1), (9, 1), (1, 2), (9, 2)] {
        let mut world = settled(14, 3, 10_000, quick());
        world.place(claim(1, 9, 1), &[]).unwrap();
        world.run(seconds(5));
        // Its node has seen nothing of the one before, or has: either may stand before or behind it.
        world.supervise(Term { counter, node: NodeKey([byte; 6]) });
        world.cluster.reported(world.now, false);
        world.run(seconds(60));
        let blocks = world.hosts.values().map(|host| host.blocks.len()).sum::<usize>();
        assert_eq!((blocks, world.missing(), world.moved), (11, 0, 0), "node {byte}, counter {counter}");
        assert_eq!(
            world.replaced,
            u64::from((byte, counter) == (1, 1)),
            "one below what was seen stands down"
        );
        assert!(world.cluster.term() > term(1));
        world.place(claim(2, 3, 1), &[]).expect("the new one places");
    }
}

#[test]
fn of_two_supervisors_the_earlier_stands_down_as_soon_as_an_agent_or_a_query_node_tells_of_the_later() {
    let later = Term { counter: 1, node: NodeKey([9; 6]) };
    let mut told = settled(15, 2, 10_000, quick());
    told.place(claim(1, 4, 1), &[]).unwrap();
    told.run(seconds(3));
    told.cluster.renew(told.now, node(0), term(1), later);
    assert_eq!(told.cluster.poll_action(), Some(Action::Replaced { highest: later }));
    assert_eq!(told.cluster.place(told.now, claim(2, 1, 1), &[]), Err(Refusal::Replaced));
    let mut told = settled(15, 2, 10_000, quick());
    let inventory = Inventory {
        node: node(0),
        at: Stamp { start: 1, count: 1000 },
        up_ms: 0,
        seen: later,
        hosts: Vec::new(),
        disk: None,
    };
    told.cluster.inventory(told.now, &inventory);
    assert_eq!(told.cluster.poll_action(), Some(Action::Replaced { highest: later }));
}

#[test]
fn a_first_supervisor_begins_at_once_and_one_that_hears_of_another_listens_first() {
    let hosts = |seen| Inventory {
        node: node(0),
        at: Stamp { start: 1, count: 1 },
        up_ms: 0,
        seen,
        hosts: vec![HostInventory::of(host(0), 1000, Vec::new())],
        disk: None,
    };
    let earlier = Term { counter: 1, node: NodeKey([1; 6]) };
    for (seen, is_first) in [(Term::NONE, true), (earlier, false)] {
        let mut cluster = Cluster::new(Duration::ZERO, Duration::ZERO, term(1), quick(), BTreeMap::new());
        cluster.inventory(Duration::ZERO, &hosts(seen));
        cluster.reported(Duration::ZERO, false);
        assert_eq!(cluster.place(Duration::ZERO, claim(1, 1, 1), &[]).is_ok(), is_first, "{seen}");
    }
}

#[test]
fn a_new_host_is_filled_slowly_and_no_round_moves_more_than_a_tenth() {
    let settings = ClusterSettings { slow_start: seconds(1000), rebalance_every: None, ..quick() };
    let mut world = settled(8, 4, 10_000, settings);
    world.now += seconds(2000);
    world.run(seconds(2));
    world.place(claim(1, 200, 1), &[]).unwrap();
    world.run(seconds(2));
    world.join(4, 10_000);
    world.run(seconds(2));
    let plan = world.cluster.rebalance(world.now, false).unwrap();
    let due = 200 * BLOCK / 5 / 10;
    assert_eq!(plan.moves.len() as u64, due / BLOCK, "a tenth of its share");
    assert!(plan.moves.iter().all(|planned| planned.to == host(4)));
    assert!(
        plan.skipped.iter().any(|skipped| matches!(skipped, Skipped::SlowStart { .. })),
        "{:?}",
        plan.skipped
    );
    world.now += seconds(2000);
    world.run(seconds(2));
    let plan = world.cluster.rebalance(world.now, false).unwrap();
    assert_eq!(plan.moves.len(), 20);
    assert!(plan.skipped.contains(&Skipped::RoundLimit { blocks: 20 }), "{:?}", plan.skipped);
}

#[test]
fn a_node_with_the_only_copies_is_removed_by_force_alone() {
    let mut world = settled(9, 2, 10_000, quick());
    world.place(claim(1, 4, 1), &[]).unwrap();
    world.run(seconds(3));
    let remove = |force| SupervisorRequest::Remove { node: node(0), force };
    let refused = world.cluster.ask(world.now, remove(false));
    assert!(
        matches!(&refused, SupervisorReply::Refused(Refusal::NotEmpty { blocks: 2, contexts, .. })
        if contexts[..] == [ContextId(1)]),
        "{refused:?}"
    );
    assert_eq!(world.cluster.ask(world.now, remove(true)), SupervisorReply::Done);
    world.kill(host(0));
    world.run(seconds(10));
    assert_eq!(world.missing(), 0);
}

#[test]
fn what_the_supervisor_knows_comes_back_from_its_bytes() {
    let mut world = settled(10, 3, 10_000, quick());
    world.place(claim(1, 9, 1), &[]).unwrap();
    world.run(seconds(3));
    world.cluster.drain(world.now, node(0), None, false).unwrap();
    let snapshot = world.cluster.ask(world.now, SupervisorRequest::Snapshot);
    let bytes = stellate_runtime::encoding::encode(&snapshot).unwrap();
    assert_eq!(stellate_runtime::encoding::decode::<SupervisorReply>(&bytes), Ok(snapshot));
}

/// Few by default, for each is minutes of a cluster's life; more by `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Deaths, stuck devices, joins, drains, cordons, releases, lost messages and new supervisors at any step of any move. The world
    /// checks after every step that no host is over its capacity and that no block is gone while a holder lives.
    #[test]
    fn no_fault_loses_a_block_that_a_living_host_holds(seed in any::<u64>(), replicas in 1u16..3, loss in 0u64..200) {
        let mut chance = Chance(seed);
        let mut world = settled(seed, 5, 3000, quick());
        world.loss = loss;
        let mut contexts = 0;
        for _ in 0..60 {
            let number = chance.below(7) as u16;
            match chance.below(13) {
                0..=2 => {
                    contexts += 1;
                    let _ = world.place(claim(contexts, 1 + chance.below(12), replicas), &[]);
                }
                3 => world.release(ContextId(1 + chance.below(contexts.max(1)))),
                4 if world.hosts.values().filter(|host| host.is_up).count() > 2 => world.kill(host(number)),
                5 if !world.hosts.get(&host(number)).is_some_and(|host| host.is_up) => world.join(number, 3000),
                6 => drop(world.cluster.drain(world.now, node(number), None, false)),
                7 => drop(world.cluster.drain(world.now, node(number), Some(seconds(3)), false)),
                8 => drop(world.cluster.uncordon(node(number))),
                9 => drop(world.cluster.cordon(node(number))),
                10 if chance.below(3) == 0 => world.restart_supervisor(),
                12 => {
                    if let Some(host) = world.hosts.get_mut(&host(number)) {
                        host.is_stuck = !host.is_stuck;
                    }
                }
                _ => drop(world.cluster.rebalance(world.now, true)),
            }
            for _ in 0..=chance.below(16) {
                world.step();
            }
        }
        world.loss = 0;
        for number in 0..7 {
            let _ = world.cluster.uncordon(node(number));
            world.hosts.entry(host(number)).and_modify(|host| host.is_stuck = false);
            if !world.hosts.get(&host(number)).is_some_and(|host| host.is_up) {
                world.join(number, 3000);
            }
        }
        for context in world.contexts.keys().copied().skip(6).collect::<Vec<_>>() {
            world.release(context);
        }
        world.run(seconds(120));
        prop_assert_eq!(world.missing(), 0, "everything is where its routes lead");
        let wanted: BTreeSet<_> = world.contexts.values().flat_map(|claim| {
            claim.needs.iter().map(|need| need.id).chain(claim.anchor.map(|anchor| anchor.id))
        }).collect();
        let kept: BTreeSet<_> = world.hosts.values().flat_map(|host| host.blocks.keys().copied()).collect();
        prop_assert!(kept.is_subset(&wanted), "what nobody needs was freed");
    }
}

#[test]
fn an_elected_supervisor_has_agents_raise_its_term_before_it_orders_anything_else() {
    let node = NodeKey::of(host(0));
    let inventory = |count, seen| {
        let hosts = vec![HostInventory::of(host(0), 1000, Vec::new())];
        Inventory { node, at: Stamp { start: 1, count }, up_ms: 0, seen, hosts, disk: None }
    };
    for is_elected in [false, true] {
        let (settings, intents) = (ClusterSettings::default(), BTreeMap::new());
        let mut cluster = Cluster::new(Duration::ZERO, WALL, term(5), settings, intents);
        if is_elected {
            cluster.fence_agents();
        }
        cluster.inventory(Duration::ZERO, &inventory(1, term(3)));
        let request = AgentRequest::Inventory;
        let order = AgentOrder { term: term(5), version: 0, order: 1, request };
        let expected = is_elected.then_some(Action::ToAgent { node, order });
        assert_eq!((cluster.poll_action(), cluster.poll_action()), (expected, None));
        cluster.inventory(Duration::from_secs(1), &inventory(2, term(5)));
        assert_eq!(cluster.poll_action(), None, "it knows");
    }
}
