//! The supervisor of a cluster as a state machine without IO, clock or chance: calls go in with the time, actions come
//! out of [`Cluster::poll_action`]. It knows what hosts hold only from what they report, and is rebuilt from nothing but
//! that. What it is asked is here; what it does on its own as time passes is in [`super::upkeep`], moves in
//! [`super::migration`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use stellate_model::block::BlockId;

use crate::link::HostId;
use crate::placement::{AnchorNeed, HostLoad, Need, Preference, place_by};

use super::drain::DrainProgress;
use super::intents::{self, Drain, Intent};
use super::leases::QueryNode;
use super::messages::{
    AgentOrder, AgentRefusal, AgentReply, AgentRequest, ContextClaim, ContextKey, ContextPlaced, Inventory,
    NodeKey, PlacedBlock, QueryNodeNotice, Refusal, Stamp,
};
use super::migration::{Ended, Migration};
use super::plan::{Plan, PlannedMove};
use super::settings::ClusterSettings;
use super::table::{Hold, HostEntry, HostState, Table};
use super::term::Term;

/// What a supervisor has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send an order to a node's agent; its answer goes to [`Cluster::agent_replied`].
    ToAgent {
        /// The node.
        node: NodeKey,
        /// The order.
        order: AgentOrder,
    },
    /// Tell a query node something.
    ToQueryNode {
        /// The node.
        node: NodeKey,
        /// What.
        notice: QueryNodeNotice,
    },
    /// Tell who watches the drain.
    Drain(DrainProgress),
    /// Keep an intent, or forget it.
    Intent {
        /// The node.
        node: NodeKey,
        /// What is wanted of it.
        intent: Option<Intent>,
        /// What was wanted of it before: holds again, by [`Cluster::not_kept`], if this cannot be kept.
        before: Option<Intent>,
    },
    /// A later supervisor is there: this one does nothing any more.
    Replaced {
        /// Its term.
        highest: Term,
    },
}

/// An order that was not answered yet.
#[derive(Clone, Debug)]
pub(crate) enum Pending {
    Move(u64),
    Free {
        host: HostId,
        version: u64,
        blocks: Vec<BlockId>,
    },
    /// That the agent knows of the term.
    Fence,
}

/// The supervisor.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) settings: ClusterSettings,
    pub(crate) term: Term,
    pub(crate) started: Duration,
    /// When it looked at the time last.
    pub(crate) ticked: Duration,
    /// What the time of day, since 1970, is ahead of the clock.
    pub(crate) wall_ahead: Duration,
    /// When it has listened for long enough to decide.
    pub(crate) settles: Duration,
    pub(crate) is_replaced: bool,
    /// Whether agents are told of the term before anything is ordered in it.
    pub(crate) fences: bool,
    /// Whether somebody has told of a supervisor before it.
    pub(crate) has_predecessor: bool,
    pub(crate) table: Table,
    pub(crate) intents: BTreeMap<NodeKey, Intent>,
    /// Query nodes that were heard of.
    pub(crate) query_nodes: BTreeMap<NodeKey, QueryNode>,
    /// Those that are there and have not announced their contexts yet.
    pub(crate) unannounced: BTreeSet<NodeKey>,
    pub(crate) moves: BTreeMap<u64, Migration>,
    pub(crate) queue: VecDeque<PlannedMove>,
    pub(crate) drains: BTreeMap<NodeKey, Drain>,
    pub(crate) backoff: BTreeMap<(BlockId, HostId), Duration>,
    pub(crate) pending: BTreeMap<u64, Pending>,
    pub(crate) lost: BTreeMap<ContextKey, (BTreeSet<BlockId>, BTreeSet<HostId>)>,
    pub(crate) next_round: Duration,
    pub(crate) has_settled: bool,
    pub(crate) actions: VecDeque<Action>,
    /// Moves that have ended, the last of them, and how many rebalancing has made.
    pub(crate) ended: Ended,
    pub(crate) next_number: u64,
}

impl Cluster {
    /// A supervisor of `term`, which must be higher than every term before, with the intents that were kept; at `now`, when
    /// the time of day is `wall` since 1970.
    pub fn new(
        now: Duration,
        wall: Duration,
        term: Term,
        settings: ClusterSettings,
        intents: BTreeMap<NodeKey, Intent>,
    ) -> Self {
        let wall_ahead = wall.saturating_sub(now);
        Self {
            next_round: now + settings.unclaimed_grace,
            settles: now + settings.settle,
            settings,
            term,
            started: now,
            ticked: now,
            wall_ahead,
            is_replaced: false,
            fences: false,
            has_predecessor: false,
            table: Table::default(),
            drains: intents::resumed(&intents, wall_ahead),
            intents,
            query_nodes: BTreeMap::new(),
            unannounced: BTreeSet::new(),
            moves: BTreeMap::new(),
            queue: VecDeque::new(),
            backoff: BTreeMap::new(),
            pending: BTreeMap::new(),
            lost: BTreeMap::new(),
            has_settled: false,
            actions: VecDeque::new(),
            ended: Ended::default(),
            next_number: 1,
        }
    }

    /// The next thing that was done; call until there is none, after every other call.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.flush_lost();
        if self.is_replaced {
            self.actions.retain(|action| matches!(action, Action::Replaced { .. }));
        }
        self.actions.pop_front()
    }

    /// From now on every agent that reports is told of the term, and refuses earlier supervisors from then on: for one that
    /// was elected, since the one before it may not have noticed yet.
    pub fn fence_agents(&mut self) {
        self.fences = true;
    }

    /// It may not act any more, without knowing of a later one.
    pub fn stand_down(&mut self) {
        if !self.is_replaced {
            self.is_replaced = true;
            self.actions.push_back(Action::Replaced { highest: self.term });
        }
    }

    /// Its term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// What a node has: registers its hosts, corrects the table, and shows that it lives. Those of its hosts that are `stuck` are
    /// not used.
    pub fn inventory_with_stuck(&mut self, now: Duration, inventory: &Inventory, stuck: &[HostId]) {
        self.hear_of_others(inventory);
        if self.fences && inventory.seen < self.term {
            self.order_of(inventory.node, AgentRequest::Inventory, Pending::Fence);
        }
        for reported in inventory.hosts.iter().filter(|host| NodeKey::of(host.host) == inventory.node) {
            let host = reported.host;
            let up_since = now.saturating_sub(Duration::from_millis(inventory.up_ms));
            let state = self.intended(inventory.node);
            let entry = self.table.hosts.entry(host).or_insert_with(|| {
                tracing::info!(%host, capacity_bytes = reported.capacity_bytes, "host joined");
                HostEntry { state: HostState::Gone, ..HostEntry::new(now) }
            });
            entry.heard = now;
            if inventory.at <= entry.at {
                continue;
            }
            let is_back = entry.state == HostState::Gone;
            if is_back {
                (entry.state, entry.up_since) = (state, up_since);
            }
            let has_restarted = entry.at.start != 0 && entry.at.start != inventory.at.start;
            entry.at = inventory.at;
            entry.measure(reported);
            entry.disk = inventory.disk;
            self.compare(now, host, reported, has_restarted);
            self.note_stuck(now, host, stuck.contains(&host));
            if is_back {
                self.resume_drain(inventory.node);
            }
        }
        self.release_switches(now);
        self.pump(now);
    }

    /// Makes the table say what a host reports.
    fn compare(
        &mut self,
        now: Duration,
        host: HostId,
        reported: &super::messages::HostInventory,
        has_restarted: bool,
    ) {
        let listed: BTreeSet<BlockId> = reported.blocks.iter().map(|block| block.id).collect();
        let mut told = reported.blocks.iter().chain(&reported.from_disk);
        let is_unknown = told.any(|block| self.table.holding(host, &block.id).is_none());
        let anchors = if is_unknown { self.table.anchors() } else { BTreeMap::new() };
        for block in &reported.blocks {
            let hold = self.table.hold(host, &block.id);
            if matches!(hold, None | Some(Hold::Promised)) {
                self.table.set(host, block.id, block.bytes, Hold::Held);
                if let Some(users) = anchors.get(&block.id).filter(|_| hold.is_none()) {
                    self.table.holding_mut(host, &block.id).expect("just set").anchors.clone_from(users);
                }
                if let Some(entry) = self.table.blocks.get_mut(&block.id) {
                    entry.is_lost = false;
                }
            }
        }
        let holdings = &self.table.hosts[&host].blocks;
        let is_missing = |hold: Hold| match hold {
            Hold::Held | Hold::Leaving => true,
            // What was promised is yet to come; the rest ends with the agent that knew of it.
            Hold::Incoming | Hold::Freeing(_) => has_restarted,
            Hold::Promised => false,
        };
        let missing =
            holdings.iter().filter(|(id, holding)| !listed.contains(id) && is_missing(holding.hold));
        for block in missing.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.forget(now, host, block);
        }
        self.compare_disk(now, host, reported, &anchors);
        self.take_promises_back(now, host);
        for inbound in &reported.inbound {
            let deadline = now + self.settings.copy_timeout;
            let moves = self.moves.values_mut().filter(|m| m.to == host && m.block == inbound.id);
            for migration in moves.filter(|m| m.done_bytes < inbound.bytes) {
                (migration.done_bytes, migration.deadline) = (inbound.bytes, deadline);
            }
        }
    }

    /// A host can have taken what a supervisor before this one had placed, which leaves no room for what was promised since: that
    /// is promised elsewhere when it is asked for, and not here for ever.
    fn take_promises_back(&mut self, now: Duration, host: HostId) {
        let entry = &self.table.hosts[&host];
        let mut over = entry.used_bytes.saturating_sub(entry.capacity_bytes);
        let promised = entry
            .blocks
            .iter()
            .rev()
            .filter(|(id, holding)| holding.hold == Hold::Promised && !entry.from_disk.contains(id));
        let mut taken = Vec::new();
        for (id, holding) in promised {
            if over == 0 {
                break;
            }
            over = over.saturating_sub(holding.bytes);
            taken.push(*id);
        }
        for block in taken {
            tracing::debug!(%host, ?block, "the host has no room for what it was promised");
            self.forget(now, host, block);
        }
    }

    /// An agent's answer to an order, by the order's number.
    pub fn agent_replied(&mut self, now: Duration, order: u64, reply: AgentReply) {
        let Some(pending) = self.pending.remove(&order) else { return };
        if let AgentReply::Refused(AgentRefusal::Fenced { highest, .. }) = reply {
            self.hear_of_term(highest);
            return;
        }
        match (pending, reply) {
            (Pending::Move(id), reply) => {
                self.move_replied(now, id, reply);
                if self.moves.get(&id).is_none_or(Migration::is_committed) {
                    // The target can take another block.
                    self.pump_replicas(now);
                }
            }
            (Pending::Free { host, version, blocks }, AgentReply::Freed { at }) => {
                self.heard_of(host, at);
                for block in blocks {
                    let holding = self.table.holding(host, &block);
                    let is_freed =
                        holding.is_some_and(|h| matches!(h.hold, Hold::Freeing(_)) && h.version <= version);
                    if is_freed {
                        self.forget(now, host, block);
                    }
                }
            }
            // Sent again in time.
            (Pending::Free { .. } | Pending::Fence, _) => {}
        }
        self.pump(now);
    }

    /// A query node keeps a context.
    pub fn hold(&mut self, now: Duration, claim: ContextClaim) {
        let claim = claim.bounded();
        self.hear_of_query_node(now, claim.query_node);
        let (context, anchor) = (claim.key(), claim.anchor);
        let ids: Vec<_> = claim.needs.iter().map(|need| need.id).collect();
        let given_up = self.table.claim(claim);
        if let Some(anchor) = anchor {
            for host in self.table.hosts_of(&anchor.id).collect::<Vec<_>>() {
                self.table.holding_mut(host, &anchor.id).expect("just listed").anchors.insert(context);
            }
        }
        self.free_unclaimed(now, &given_up);
        if self.has_settled {
            for id in &ids {
                self.table.blocks.get_mut(id).expect("just claimed").is_lost = false;
                self.check_lost(id, &[]);
            }
        }
    }

    /// Finds room for a context and promises it. A block that a host holds stays there, unless the host is suspect. New
    /// blocks may fill a host to its capacity: the limit of rebalancing leaves that room for them.
    ///
    /// # Errors
    /// [`Refusal::Settling`], [`Refusal::NoHosts`], [`Refusal::NoRoom`], [`Refusal::Replaced`]. Nothing is promised.
    pub fn place(
        &mut self,
        now: Duration,
        claim: ContextClaim,
        suspects: &[HostId],
    ) -> Result<ContextPlaced, Refusal> {
        self.may_decide(now)?;
        let claim = claim.bounded();
        self.hear_of_query_node(now, claim.query_node);
        let mut loads = self.loads(now, &claim, suspects);
        if loads.is_empty() {
            return Err(Refusal::NoHosts);
        }
        let needs: Vec<_> = claim
            .needs
            .iter()
            .map(|need| Need {
                id: need.id,
                bytes: need.bytes as usize,
                tokens: need.tokens as usize,
                anchored: need.anchored,
            })
            .collect();
        let anchor = claim.anchor.map(|anchor| AnchorNeed {
            id: anchor.id,
            bytes: anchor.bytes as usize,
            first_block: anchor.first_block,
        });
        let share = loads.iter().map(|load| (load.host, self.share_permille(now, load.host))).collect();
        let takers: Vec<_> = loads.iter().map(|load| load.host).collect();
        let preference = Preference::Rendezvous { share_permille: &share };
        let placed = place_by(preference, &mut loads, &needs, anchor).map_err(|room| Refusal::NoRoom {
            needed_bytes: room.needed_bytes as u64,
            block_bytes: room.block_bytes as u64,
            free_bytes: takers
                .iter()
                .copied()
                .zip(room.free_bytes.iter().map(|&bytes| bytes as u64))
                .collect(),
        })?;
        let context = claim.key();
        let anchor_copy = claim.anchor;
        let given_up = self.table.claim(claim);
        let (mut answers, mut sources) = (Vec::with_capacity(placed.len()), BTreeMap::new());
        for (need, placed) in needs.iter().zip(&placed) {
            let held = self.promise(placed.host, need.id, need.bytes as u64);
            let mut anchor_from = None;
            if let Some(anchor) = anchor_copy.filter(|_| placed.anchor_copy) {
                if !self.promise(placed.host, anchor.id, anchor.bytes) && !held {
                    let source = || self.anchor_source(context, placed.host, suspects);
                    anchor_from = *sources.entry(placed.host).or_insert_with(source);
                }
                let holding = self.table.holding_mut(placed.host, &anchor.id).expect("just promised");
                holding.anchors.insert(context);
            }
            let (host, anchor_copy) = (placed.host, placed.anchor_copy);
            answers.push(PlacedBlock { host, held, anchor_copy, anchor_from });
        }
        self.free_unclaimed(now, &given_up);
        Ok(ContextPlaced { term: self.term, version: self.table.version, placed: answers })
    }

    /// Promises a block room on a host; tells whether the host holds it.
    fn promise(&mut self, host: HostId, block: BlockId, bytes: u64) -> bool {
        match self.table.hold(host, &block) {
            Some(Hold::Held | Hold::Leaving) => return true,
            Some(Hold::Promised | Hold::Incoming) => {}
            None => self.table.set(host, block, bytes, Hold::Promised),
            // A later version takes back what an earlier one had freed: see [`AgentOrder::version`].
            Some(Hold::Freeing(_)) => {
                self.table.set(host, block, bytes, Hold::Promised);
                self.end_freeing(host, block);
            }
        }
        if let Some(holding) = self.table.holding_mut(host, &block) {
            holding.unclaimed = None;
        }
        if let Some(entry) = self.table.hosts.get_mut(&host) {
            entry.from_disk.remove(&block);
        }
        false
    }

    /// The hosts as placement sees them: each block of the context on the one host that it is best attended on.
    fn loads(&mut self, now: Duration, claim: &ContextClaim, suspects: &[HostId]) -> Vec<HostLoad> {
        let mut kept: BTreeMap<HostId, BTreeSet<BlockId>> = BTreeMap::new();
        for id in claim.needs.iter().map(|need| need.id) {
            let holder = self.table.holders(&id).into_iter().find(|host| !suspects.contains(host));
            if holder.is_none()
                && let Some(id) = self.move_of(&id)
            {
                self.cancel_move(now, id, "its block is placed anew");
            }
            let holder = holder.or_else(|| {
                self.table.hosts_of(&id).find(|host| {
                    let is_promised =
                        matches!(self.table.hold(*host, &id), Some(Hold::Promised | Hold::Freeing(_)));
                    is_promised && !suspects.contains(host) && self.table.hosts[host].takes()
                })
            });
            if let Some(host) = holder {
                kept.entry(host).or_default().insert(id);
            }
        }
        // Where an anchor is as long as a block it is the first block too, which stays on one host; as an anchor any copy will do.
        let has_anchor =
            |host| claim.anchor.is_some_and(|anchor| self.table.holding(host, &anchor.id).is_some());
        let hosts =
            self.table.hosts.iter().filter(|(host, entry)| entry.serves() && !suspects.contains(host));
        let load = |(&host, entry): (&HostId, &HostEntry)| {
            let capacity = if entry.takes() { entry.capacity_bytes } else { entry.used_bytes };
            HostLoad {
                host,
                capacity_bytes: capacity as usize,
                used_bytes: entry.used_bytes as usize,
                blocks: kept.remove(&host).unwrap_or_default(),
                has_anchor: has_anchor(host),
            }
        };
        hosts.map(load).collect()
    }

    /// A context is not needed any more: what no other needs is freed.
    pub fn release(&mut self, now: Duration, context: ContextKey) {
        if let Some(claim) = self.table.release(context) {
            let ids: Vec<_> =
                claim.needs.iter().map(|need| need.id).chain(claim.anchor.map(|anchor| anchor.id)).collect();
            self.free_unclaimed(now, &ids);
        }
    }

    /// A node was seen to go. A host of it that is heard of again is there again.
    pub fn node_gone(&mut self, now: Duration, node: NodeKey) {
        self.query_node_gone(node);
        for host in self.hosts_of_node(node) {
            self.host_gone(now, host);
        }
        self.release_switches(now);
        self.pump(now);
    }

    /// Plans a round of rebalancing, and does it if `apply`: moves wait until their target receives nothing else.
    ///
    /// # Errors
    /// [`Refusal::Settling`], [`Refusal::Replaced`].
    pub fn rebalance(&mut self, now: Duration, apply: bool) -> Result<Plan, Refusal> {
        self.may_decide(now)?;
        let plan = super::plan::rebalance(&self.views(now), &self.settings);
        if apply {
            self.queue = plan.moves.iter().copied().collect();
            self.pump(now);
        }
        Ok(plan)
    }

    /// A number for a move or an order, unique in the term.
    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    pub(crate) fn order(&mut self, host: HostId, request: AgentRequest, pending: Pending) {
        self.order_of(NodeKey::of(host), request, pending);
    }

    fn order_of(&mut self, node: NodeKey, request: AgentRequest, pending: Pending) {
        let (order, term, version) = (self.number(), self.term, self.table.version);
        self.pending.insert(order, pending);
        let order = AgentOrder { term, version, order, request };
        self.actions.push_back(Action::ToAgent { node, order });
    }

    /// Inventories of a host's node that were taken before `at` are out of date.
    pub(crate) fn heard_of(&mut self, host: HostId, at: Stamp) {
        if let Some(entry) = self.table.hosts.get_mut(&host) {
            entry.at = entry.at.max(at);
        }
    }

    pub(crate) fn hosts_of_node(&self, node: NodeKey) -> Vec<HostId> {
        self.table.hosts.keys().copied().filter(|&host| NodeKey::of(host) == node).collect()
    }
}
