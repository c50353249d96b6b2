//! Mishaps between two steps of a move, and a supervisor that stands still: each was first found by whole clusters on virtual time.

use stellate_model::block::BlockId;

use super::super::messages::{AgentOrder, AgentReply, AgentRequest, HeldBlock, QueryNodeNotice};
use super::super::plan::{MoveReason, PlannedMove};
use super::super::sim::{QUERY, WALL};
use super::*;
use crate::checksum::Checksum;

/// Two hosts and a context of one block, which lies on the first. Time passes as it is told.
struct Two {
    cluster: Cluster,
    now: Duration,
    claim: ContextClaim,
    reports: u64,
}

impl Two {
    fn new() -> Self {
        let cluster =
            Cluster::new(Duration::ZERO, WALL, term(1), ClusterSettings::default(), BTreeMap::new());
        let mut claim = claim(1, 1, 1);
        claim.anchor = None;
        let mut two = Self { cluster, now: Duration::ZERO, claim, reports: 0 };
        two.beat(&[0, 1], &[0]);
        two.cluster.hold(two.now, two.claim.clone());
        two.pass(40, &[0, 1], &[0]);
        two.actions();
        two
    }

    fn block(&self) -> BlockId {
        self.claim.needs[0].id
    }

    /// The hosts that live report, some of which hold the block, and so does the query node.
    fn beat(&mut self, alive: &[u16], holders: &[u16]) {
        self.reports += 1;
        for &number in alive {
            let held = holders.contains(&number).then(|| HeldBlock { id: self.block(), bytes: BLOCK });
            let hosts = vec![HostInventory::of(host(number), 10 * BLOCK, held.into_iter().collect())];
            let at = Stamp { start: 1, count: 10 * self.reports };
            let seen = self.cluster.term();
            let inventory = Inventory { node: node(number), at, up_ms: 0, seen, hosts, disk: None };
            self.cluster.inventory(self.now, &inventory);
        }
        self.cluster.renew(self.now, QUERY, self.cluster.term(), self.cluster.term());
        self.cluster.tick(self.now);
    }

    fn pass(&mut self, time: u64, alive: &[u16], holders: &[u16]) {
        for _ in 0..time {
            self.now += seconds(1);
            self.beat(alive, holders);
        }
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.cluster.poll_action()).collect()
    }

    fn order(&mut self) -> AgentOrder {
        let orders = self.actions().into_iter().find_map(|action| match action {
            Action::ToAgent { order, .. } => Some(order),
            _ => None,
        });
        orders.expect("an order was given")
    }

    fn notices(&mut self) -> Vec<QueryNodeNotice> {
        let notices = self.actions().into_iter().filter_map(|action| match action {
            Action::ToQueryNode { notice, .. } => Some(notice),
            _ => None,
        });
        notices.collect()
    }

    /// Moves the block to the second host, up to the notice to its query node: that, and the move's number.
    fn move_block(&mut self) -> (QueryNodeNotice, u64) {
        let (from, to, why) = (host(0), host(1), MoveReason::Drain);
        let planned = PlannedMove { block: self.block(), bytes: BLOCK, from, to, why };
        assert!(self.cluster.start_move(self.now, planned));
        let (checksum, at) = (Checksum([7; 16]), Stamp { start: 1, count: 10 * self.reports + 1 });
        let replies = [
            AgentReply::Reserved { held: false },
            AgentReply::Pulled { checksum, at },
            AgentReply::Checksum { checksum, at },
        ];
        for reply in replies {
            let order = self.order();
            self.cluster.agent_replied(self.now, order.order, reply);
        }
        let [notice] = &self.notices()[..] else { panic!("the query node is told once") };
        let &QueryNodeNotice::Moved { migration, .. } = notice else { panic!("of the move") };
        (notice.clone(), migration)
    }
}

#[test]
fn a_query_node_that_does_not_say_that_it_follows_a_move_is_told_again() {
    let mut two = Two::new();
    let (notice, migration) = two.move_block();
    two.pass(9, &[0, 1], &[0, 1]);
    assert_eq!(two.notices(), []);
    two.pass(1, &[0, 1], &[0, 1]);
    assert_eq!(two.notices(), [notice]);
    two.cluster.switched(two.now, QUERY, migration);
    assert_eq!(two.order().request, AgentRequest::Free { host: host(0), blocks: vec![two.block()] });
}

#[test]
fn a_block_that_is_wanted_where_it_is_being_freed_can_move_again() {
    let mut two = Two::new();
    let (_, migration) = two.move_block();
    two.pass(1, &[0, 1], &[0, 1]);
    two.cluster.switched(two.now, QUERY, migration);
    assert!(matches!(two.order().request, AgentRequest::Free { .. }));
    two.cluster.node_gone(two.now, node(1));
    let placed = two.cluster.place(two.now, two.claim.clone(), &[host(1)]).expect("the first host has room");
    assert_eq!(placed.placed[0].host, host(0));
    assert!(two.cluster.moves.is_empty(), "{:?}", two.cluster.moves);
}

#[test]
fn silence_while_the_supervisor_stood_still_counts_for_nothing() {
    let mut two = Two::new();
    two.now += seconds(20);
    two.cluster.tick(two.now);
    let states = |two: &Two| [0, 1].map(|number| two.cluster.table.hosts[&host(number)].state);
    assert_eq!((states(&two), two.notices()), ([HostState::Active; 2], vec![]));
    two.pass(6, &[0], &[0]);
    assert_eq!(states(&two), [HostState::Active, HostState::Gone], "silence from then on counts");
}

#[test]
fn a_promise_that_a_host_has_no_room_for_is_taken_back_and_made_elsewhere() {
    let mut two = Two::new();
    let claim = ContextClaim { anchor: None, ..claim(2, 6, 1) };
    let placed = two.cluster.place(two.now, claim.clone(), &[]).unwrap().placed;
    assert!(placed.iter().any(|placed| placed.host == host(0)), "both have room");
    // What an earlier supervisor had placed there was encoded late, and fills it.
    let late = (200..210).map(|number| HeldBlock { id: super::super::sim::block(number), bytes: BLOCK });
    let full = HostInventory::of(host(0), 10 * BLOCK, late.collect());
    let (at, seen) = (Stamp { start: 1, count: 10 * two.reports + 1 }, two.cluster.term());
    let inventory = Inventory { node: node(0), at, up_ms: 0, seen, hosts: vec![full], disk: None };
    two.cluster.inventory(two.now, &inventory);
    let rows = two.cluster.snapshot(two.now).hosts;
    assert!(rows.iter().all(|row| row.used_bytes <= row.capacity_bytes), "{rows:?}");
    let told = two.actions().into_iter().any(|action| {
        matches!(action, Action::ToQueryNode { notice: QueryNodeNotice::Lost { context, .. }, .. } if context == claim.context)
    });
    assert!(told, "its query node has it encoded elsewhere");
    let placed = two.cluster.place(two.now, claim, &[]).unwrap().placed;
    assert!(placed.iter().all(|placed| placed.host == host(1)), "{placed:?}");
}

#[test]
fn a_promise_to_encode_what_is_held_elsewhere_is_taken_back() {
    let mut two = Two::new();
    // The query node could not reach the first host, which holds the block all the same.
    let placed = two.cluster.place(two.now, two.claim.clone(), &[host(0)]).unwrap().placed;
    assert_eq!(placed[0].host, host(1));
    two.actions();
    let freed_in = |two: &mut Two, seconds: u64| {
        two.pass(seconds, &[0, 1], &[0]);
        let actions = two.actions().into_iter().filter_map(|action| match action {
            Action::ToAgent { order, .. } => Some(order.request),
            _ => None,
        });
        actions.collect::<Vec<_>>()
    };
    let grace = two.cluster.settings.unclaimed_grace.as_secs();
    assert_eq!(freed_in(&mut two, grace - 1), []);
    let free = AgentRequest::Free { host: host(1), blocks: vec![two.block()] };
    assert_eq!(freed_in(&mut two, 2), [free]);
}
