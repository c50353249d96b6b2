//! What the supervisor does as time passes: notices hosts that fell silent, frees what nobody needs, drives drains and
//! moves, makes replicas, rebalances. [`Cluster::tick`] is called about every second; everything else follows events too.

use std::time::Duration;

use stellate_model::block::BlockId;

use crate::link::HostId;
use crate::manifest::ContextId;

use super::drain::{Candidate, DrainState, pick};
use super::messages::{AgentRequest, NodeKey, QueryNodeNotice};
use super::migration::Migration;
use super::plan::{HostView, MoveReason, PlannedMove};
use super::repair::RepairWay;
use super::snapshot::{ClusterSnapshot, ContextRow, HostRow, MoveRow};
use super::supervisor::{Action, Cluster, Pending};
use super::table::{Hold, HostState};

/// Orders that may wait for an answer: far more than all hosts together are ever given.
const MAX_PENDING: usize = 100_000;

impl Cluster {
    /// Does what the time calls for.
    pub fn tick(&mut self, now: Duration) {
        if self.is_replaced {
            return;
        }
        let silent = |heard: Duration, limit: Duration| now.saturating_sub(heard) > limit;
        let hosts = self.table.hosts.iter();
        let gone =
            hosts.filter(|(_, h)| h.state != HostState::Gone && silent(h.heard, self.settings.host_timeout));
        for host in gone.map(|(&host, _)| host).collect::<Vec<_>>() {
            tracing::warn!(%host, "a host has fallen silent");
            self.host_gone(now, host);
        }
        if !self.has_settled && now >= self.settles {
            self.has_settled = true;
            for id in self.table.blocks.keys().copied().collect::<Vec<_>>() {
                self.check_lost(&id, &[]);
            }
        }
        self.release_orphans(now);
        self.sweep(now);
        self.backoff.retain(|_, until| *until > now);
        let late = self.moves.iter().filter(|(_, m)| !m.is_committed() && m.deadline <= now);
        for id in late.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.cancel_move(now, id, "a step took too long");
        }
        self.release_switches(now);
        self.pass_deadlines(now);
        if now >= self.next_round
            && let Some(every) = self.settings.rebalance_every
        {
            self.next_round = now + every;
            if self.queue.is_empty()
                && self.drains.values().all(|drain| drain.progress.state != DrainState::Moving)
            {
                self.queue = super::plan::rebalance(&self.views(now), &self.settings).moves.into();
            }
        }
        while self.pending.len() > MAX_PENDING {
            self.pending.pop_first();
        }
        self.pump(now);
        self.pump_replicas(now);
    }

    /// Starts what can start of drains, then of the round of rebalancing. Looks at few blocks, so that every event may call it.
    pub(crate) fn pump(&mut self, now: Duration) {
        if self.is_replaced || !self.has_settled {
            return;
        }
        self.pump_drains(now);
        for planned in std::mem::take(&mut self.queue) {
            let is_waiting = self.is_receiving(planned.to);
            let is_blocked = self.backoff.contains_key(&(planned.block, planned.to));
            if is_waiting {
                self.queue.push_back(planned);
            } else if !is_blocked {
                self.start_move(now, planned);
            }
        }
    }

    fn pump_drains(&mut self, now: Duration) {
        let hosts = self.table.hosts.iter().filter(|(_, entry)| entry.state == HostState::Draining);
        for from in hosts.map(|(&host, _)| host).collect::<Vec<_>>() {
            let held = self.table.hosts[&from].blocks.iter();
            let held: Vec<_> =
                held.filter(|(_, h)| h.hold == Hold::Held).map(|(&id, h)| (id, h.bytes)).collect();
            let mut useless = Vec::new();
            for (block, bytes) in held {
                // Copies of anchors serve to encode more blocks here, which there will not be.
                self.table.holding_mut(from, &block).expect("just listed").anchors.clear();
                if !self.table.is_claimed(from, &block) {
                    useless.push(block);
                } else if !self.is_moving(&block) {
                    self.drain_block(now, from, block, bytes);
                }
            }
            if self.knows_contexts(now) {
                self.free(now, from, useless);
            }
        }
        self.finish_drains();
    }

    fn drain_block(&mut self, now: Duration, from: HostId, block: BlockId, bytes: u64) {
        let others = self.lasting_holders(&block);
        if others.len() >= self.wanted(&block) {
            self.start_switch(now, block, from, others[0], MoveReason::Drain);
        } else if let Some(to) = self.target(now, &block, bytes, 1000) {
            self.start_move(now, PlannedMove { block, bytes, from, to, why: MoveReason::Drain });
        }
    }

    fn finish_drains(&mut self) {
        let is_empty = |node: NodeKey| {
            let mut hosts = self.table.hosts.iter().filter(|(host, _)| NodeKey::of(**host) == node);
            hosts.all(|(_, entry)| entry.blocks.values().all(|h| matches!(h.hold, Hold::Freeing(_))))
        };
        let moving = self.drains.iter().filter(|(_, drain)| drain.progress.state == DrainState::Moving);
        let done: Vec<_> = moving.map(|(&node, _)| node).filter(|&node| is_empty(node)).collect();
        for node in done {
            self.end_drain(node, DrainState::Done, Vec::new());
        }
    }

    fn end_drain(&mut self, node: NodeKey, state: DrainState, affected: Vec<ContextId>) {
        for host in self.hosts_of_node(node) {
            let entry = self.table.hosts.get_mut(&host).expect("just listed");
            if entry.state == HostState::Draining {
                entry.state = HostState::Drained;
            }
        }
        let drain = self.drains.get_mut(&node).expect("the drain is under way");
        (drain.progress.state, drain.progress.affected) = (state, affected);
        self.report_drain(node);
    }

    /// Ends drains whose deadline has passed: what is left is lost, as if the node had gone.
    fn pass_deadlines(&mut self, now: Duration) {
        let late = self.drains.iter().filter(|(_, drain)| {
            drain.progress.state == DrainState::Moving
                && drain.deadline.is_some_and(|deadline| deadline <= now)
        });
        for node in late.map(|(&node, _)| node).collect::<Vec<_>>() {
            let moving = self.moves.iter().filter(|(_, m)| NodeKey::of(m.from) == node);
            for id in moving.map(|(&id, _)| id).collect::<Vec<_>>() {
                self.cancel_move(now, id, "the deadline of the drain has passed");
            }
            let left: Vec<_> = self.must_move(node).into_iter().filter(|block| block.3.is_empty()).collect();
            let users = left.iter().filter_map(|block| self.table.blocks.get(&block.0));
            let affected: std::collections::BTreeSet<_> =
                users.flat_map(|entry| &entry.users).copied().collect();
            self.end_drain(node, DrainState::DeadlinePassed, affected.into_iter().collect());
            for (block, _, host, _) in left {
                self.check_lost(&block, &[host]);
            }
        }
    }

    /// Counts a committed move for the drain of its source.
    pub(crate) fn count_moved(&mut self, migration: &Migration) {
        let node = NodeKey::of(migration.from);
        if let Some(drain) = self.drains.get_mut(&node) {
            match migration.choice.way {
                RepairWay::Copy => {
                    drain.progress.moved_blocks += 1;
                    drain.progress.moved_bytes += migration.bytes;
                }
                RepairWay::Recompute => drain.progress.recomputed_blocks += 1,
            }
            self.report_drain(node);
        }
    }

    fn report_drain(&mut self, node: NodeKey) {
        let left: Vec<_> = self.must_move(node);
        let drain = self.drains.get_mut(&node).expect("the drain is known");
        drain.progress.left_blocks = left.len() as u64;
        drain.progress.left_bytes = left.iter().map(|block| block.1).sum();
        self.actions.push_back(Action::Drain(drain.progress.clone()));
    }

    /// Makes replicas that are missing, and has routes leave those that are too many. Looks at every block.
    pub(crate) fn pump_replicas(&mut self, now: Duration) {
        if self.is_replaced || !self.has_settled || !self.knows_contexts(now) {
            return;
        }
        for block in self.table.blocks.keys().copied().collect::<Vec<_>>() {
            let lasting = self.lasting_holders(&block);
            let want = self.wanted(&block);
            let bytes = self.table.blocks[&block].bytes;
            if self.is_moving(&block) || lasting.is_empty() {
                continue;
            }
            let is_promised =
                self.table.hosts_of(&block).any(|h| self.table.hold(h, &block) == Some(Hold::Promised));
            if lasting.len() < want && !is_promised {
                let why = MoveReason::Replica { have: lasting.len() as u16, want: want as u16 };
                if let Some(to) = self.target(now, &block, bytes, self.settings.full_permille) {
                    self.start_move(now, PlannedMove { block, bytes, from: lasting[0], to, why });
                }
            }
            let spare = lasting.iter().skip(want).rev().find(|host| {
                self.table.holding(**host, &block).is_some_and(|holding| holding.anchors.is_empty())
            });
            if let Some(&spare) = spare {
                self.start_switch(now, block, spare, lasting[0], MoveReason::Surplus);
            }
        }
    }

    /// Hosts that hold a block and will go on holding it, the latest first.
    fn lasting_holders(&self, block: &BlockId) -> Vec<HostId> {
        let mut holders = self.table.holders(block);
        holders.retain(|host| !self.is_leaving(*host) && self.table.hold(*host, block) == Some(Hold::Held));
        holders
    }

    /// How many hosts shall hold a block: as many as asked for, as far as there are hosts.
    fn wanted(&self, block: &BlockId) -> usize {
        let active = self.table.hosts.values().filter(|entry| entry.state == HostState::Active).count();
        let asked = self.table.blocks.get(block).map_or(1, |entry| usize::from(entry.replicas));
        asked.min(active).max(1)
    }

    pub(crate) fn is_leaving(&self, host: HostId) -> bool {
        self.table
            .hosts
            .get(&host)
            .is_none_or(|e| !matches!(e.state, HostState::Active | HostState::Cordoned))
    }

    /// The best host to send a block to now.
    fn target(&self, now: Duration, block: &BlockId, bytes: u64, full_permille: u64) -> Option<HostId> {
        let candidates = self.candidates(now, full_permille, |host| {
            self.table.holding(host, block).is_none() && !self.backoff.contains_key(&(*block, host))
        });
        let index = pick(&candidates, block, bytes, |host| !self.is_receiving(host))?;
        Some(candidates[index].host)
    }

    pub(crate) fn candidates(
        &self,
        now: Duration,
        full_permille: u64,
        may_take: impl Fn(HostId) -> bool,
    ) -> Vec<Candidate> {
        let active = self.table.hosts.iter().filter(|(_, entry)| entry.state == HostState::Active);
        let candidate = |(&host, entry): (&HostId, &super::table::HostEntry)| Candidate {
            host,
            capacity_bytes: (u128::from(entry.capacity_bytes) * u128::from(full_permille) / 1000) as u64,
            used_bytes: entry.used_bytes,
            share_permille: self.share_permille(now, host),
        };
        active.filter(|(host, _)| may_take(**host)).map(candidate).collect()
    }

    pub(crate) fn share_permille(&self, now: Duration, host: HostId) -> u64 {
        let age =
            self.table.hosts.get(&host).map_or(Duration::ZERO, |entry| now.saturating_sub(entry.up_since));
        self.settings.ramp_permille(age)
    }

    /// The blocks that a node must not go with: address, bytes, host, hosts elsewhere that hold it and will go on to.
    /// Those that enough other hosts hold are not among them.
    pub(crate) fn must_move(&self, node: NodeKey) -> Vec<(BlockId, u64, HostId, Vec<HostId>)> {
        let mut blocks = Vec::new();
        for (&host, entry) in self.table.hosts.iter().filter(|(host, _)| NodeKey::of(**host) == node) {
            for (id, holding) in entry.blocks.iter().filter(|(_, holding)| holding.hold == Hold::Held) {
                let mut others = self.lasting_holders(id);
                others.retain(|&other| NodeKey::of(other) != node);
                if self.table.blocks.contains_key(id) && others.len() < self.wanted(id) {
                    blocks.push((*id, holding.bytes, host, others));
                }
            }
        }
        blocks
    }

    pub(crate) fn views(&self, now: Duration) -> Vec<HostView> {
        let hosts = self.table.hosts.iter();
        hosts
            .map(|(&host, entry)| {
                let is_movable = |id: &BlockId, hold: Hold| {
                    hold == Hold::Held && self.table.blocks.contains_key(id) && !self.is_moving(id)
                };
                let blocks = entry.blocks.iter();
                HostView {
                    host,
                    capacity_bytes: entry.capacity_bytes,
                    used_bytes: entry.used_bytes,
                    share_permille: self.share_permille(now, host),
                    takes: entry.state == HostState::Active,
                    blocks: blocks.map(|(id, h)| (*id, (h.bytes, is_movable(id, h.hold)))).collect(),
                }
            })
            .collect()
    }

    /// A host is gone, with all it held.
    pub(crate) fn host_gone(&mut self, now: Duration, host: HostId) {
        let Some(entry) = self.table.hosts.get_mut(&host) else { return };
        entry.state = HostState::Gone;
        for block in entry.blocks.keys().copied().collect::<Vec<_>>() {
            self.forget(now, host, block);
        }
    }

    /// A block is not on a host any more.
    pub(crate) fn forget(&mut self, now: Duration, host: HostId, block: BlockId) {
        self.table.remove(host, &block);
        self.vanished(now, host, block);
        self.check_lost(&block, &[host]);
    }

    /// Notes a block that no host holds, and that none is about to, for the contexts that need it.
    pub(crate) fn check_lost(&mut self, block: &BlockId, suspects: &[HostId]) {
        let is_coming = |host| match self.table.hold(host, block) {
            Some(Hold::Promised) => true,
            Some(Hold::Incoming) => self.is_moving(block),
            _ => false,
        };
        let is_had = !self.table.holders(block).is_empty() || self.table.hosts_of(block).any(is_coming);
        let Some(entry) = self.table.blocks.get_mut(block) else { return };
        if is_had || entry.is_lost || !self.has_settled {
            return;
        }
        entry.is_lost = true;
        for context in &entry.users {
            let (blocks, hosts) = self.lost.entry(*context).or_default();
            blocks.insert(*block);
            hosts.extend(suspects);
        }
    }

    pub(crate) fn flush_lost(&mut self) {
        for (context, (blocks, suspects)) in std::mem::take(&mut self.lost) {
            let Some(claim) = self.table.contexts.get(&context) else { continue };
            tracing::warn!(%context, blocks = blocks.len(), "blocks of a context are lost; its query node heals it");
            let (blocks, suspects) = (blocks.into_iter().collect(), suspects.into_iter().collect());
            let notice = QueryNodeNotice::Lost { context, blocks, suspects };
            self.actions.push_back(Action::ToQueryNode { node: claim.query_node, notice });
        }
    }

    /// Whether a query node is there, and must be waited for.
    pub(crate) fn is_leased(&self, now: Duration, node: NodeKey) -> bool {
        let heard = self.query_nodes.get(&node);
        heard.is_some_and(|&heard| now.saturating_sub(heard) <= self.settings.query_lease)
    }

    pub(crate) fn release_switches(&mut self, now: Duration) {
        for id in self.moves.keys().copied().collect::<Vec<_>>() {
            self.free_source(now, id);
        }
    }

    /// Releases the contexts of query nodes that have been away for too long.
    fn release_orphans(&mut self, now: Duration) {
        let is_orphan = |node: &NodeKey| {
            let heard = self.query_nodes.get(node).copied().unwrap_or(self.started);
            now.saturating_sub(heard) > self.settings.orphan_grace
        };
        let orphans = self.table.contexts.values().filter(|claim| is_orphan(&claim.query_node));
        for context in orphans.map(|claim| claim.context).collect::<Vec<_>>() {
            tracing::warn!(%context, "the query node of a context has been away for too long; its blocks are freed");
            self.release(now, context);
        }
    }

    /// Frees the blocks among these that nobody needs.
    pub(crate) fn free_unclaimed(&mut self, now: Duration, ids: &[BlockId]) {
        if !self.knows_contexts(now) {
            return;
        }
        let mut freed: std::collections::BTreeMap<HostId, Vec<BlockId>> = std::collections::BTreeMap::new();
        for id in ids {
            if let Some(id) = self.move_of(id).filter(|_| !self.table.blocks.contains_key(id)) {
                self.cancel_move(now, id, "nobody needs its block");
            }
            for host in self.table.hosts_of(id) {
                let is_there = !matches!(self.table.hold(host, id), Some(Hold::Freeing(_) | Hold::Incoming));
                if is_there && !self.table.is_claimed(host, id) {
                    freed.entry(host).or_default().push(*id);
                }
            }
        }
        for (host, blocks) in freed {
            self.free(now, host, blocks);
        }
    }

    /// Whether every context has been heard of, as far as can be known: a supervisor that has just started frees nothing.
    fn knows_contexts(&self, now: Duration) -> bool {
        let is_there = |&node: &NodeKey| self.is_leased(now, node);
        now >= self.started + self.settings.unclaimed_grace && !self.unannounced.iter().any(is_there)
    }

    /// Frees what nobody has needed for a while, and asks again for what should be freed by now.
    fn sweep(&mut self, now: Duration) {
        let (mut freed, knows_contexts) = (Vec::new(), self.knows_contexts(now));
        for host in self.table.hosts.keys().copied().collect::<Vec<_>>() {
            let mut blocks = Vec::new();
            for id in self.table.hosts[&host].blocks.keys().copied().collect::<Vec<_>>() {
                let is_claimed = self.table.is_claimed(host, &id);
                let holding = self.table.holding_mut(host, &id).expect("just listed");
                let is_due = match holding.hold {
                    Hold::Freeing(sent) => now.saturating_sub(sent) > self.settings.order_timeout,
                    Hold::Held | Hold::Promised if !is_claimed => {
                        let since = *holding.unclaimed.get_or_insert(now);
                        knows_contexts && now.saturating_sub(since) >= self.settings.unclaimed_grace
                    }
                    _ => {
                        holding.unclaimed = None;
                        false
                    }
                };
                if is_due {
                    blocks.push(id);
                }
            }
            freed.push((host, blocks));
        }
        for (host, blocks) in freed {
            self.free(now, host, blocks);
        }
    }

    /// Orders blocks on a host to be freed.
    pub(crate) fn free(&mut self, now: Duration, host: HostId, blocks: Vec<BlockId>) {
        if blocks.is_empty() {
            return;
        }
        for block in &blocks {
            let bytes = self.table.holding(host, block).expect("what is freed is there").bytes;
            self.table.set(host, *block, bytes, Hold::Freeing(now));
        }
        let version = self.table.version;
        let pending = Pending::Free { host, version, blocks: blocks.clone() };
        self.order(host, AgentRequest::Free { host, blocks }, pending);
    }

    /// Everything it knows.
    pub fn snapshot(&self, now: Duration) -> ClusterSnapshot {
        let hosts = self.table.hosts.iter().map(|(&host, entry)| HostRow {
            host,
            state: entry.state,
            capacity_bytes: entry.capacity_bytes,
            used_bytes: entry.used_bytes,
            blocks: entry.blocks.values().filter(|h| matches!(h.hold, Hold::Held | Hold::Leaving)).count()
                as u64,
            inbound: self.moves.values().filter(|m| m.to == host && !m.is_committed()).count() as u64,
            share_permille: self.share_permille(now, host),
            encode_tokens_per_s: entry.encode_tokens_per_s,
            copy_bytes_per_s: entry.copy_bytes_per_s,
            silent_ms: now.saturating_sub(entry.heard).as_millis() as u64,
        });
        let contexts = self.table.contexts.values().map(|claim| {
            let holders: Vec<_> = claim.needs.iter().map(|need| self.table.holders(&need.id)).collect();
            let hosts: std::collections::BTreeSet<_> =
                holders.iter().filter_map(|h| h.first().copied()).collect();
            ContextRow {
                context: claim.context,
                query_node: claim.query_node,
                blocks: claim.needs.len() as u64,
                bytes: claim.needs.iter().map(|need| need.bytes).sum(),
                held_blocks: holders.iter().filter(|holders| !holders.is_empty()).count() as u64,
                hosts: hosts.into_iter().collect(),
            }
        });
        let moves = self.moves.iter().map(|(&migration, m)| MoveRow {
            migration,
            block: m.block,
            bytes: m.bytes,
            done_bytes: m.done_bytes,
            from: m.from,
            to: m.to,
            why: m.why,
            choice: m.choice,
            step: m.step,
        });
        ClusterSnapshot {
            term: self.term,
            version: self.table.version,
            hosts: hosts.collect(),
            contexts: contexts.collect(),
            moves: moves.collect(),
            queued_moves: self.queue.len() as u64,
            drains: self.drains.values().map(|drain| drain.progress.clone()).collect(),
        }
    }
}
