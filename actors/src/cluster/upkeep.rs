//! What the supervisor does as time passes: notices hosts that fell silent, frees what nobody needs, drives drains and
//! moves, rebalances. [`Cluster::tick`] is called about every second; everything else follows events too. Copies of blocks
//! on further nodes are in [`super::replicas`].

use std::time::Duration;

use stellate_model::block::BlockId;

use crate::link::HostId;

use super::drain::Candidate;
use super::messages::{AgentRequest, NodeKey, QueryNodeNotice};
use super::plan::{HostView, MoveReason, PlannedMove};
use super::replicas::nodes_of;
use super::snapshot::{ClusterSnapshot, ContextRow, HostRow};
use super::supervisor::{Action, Cluster, Pending};
use super::table::{Hold, HostState};

/// Time between two looks from which on it was the supervisor that stood still: it looks every second.
const STALL: Duration = Duration::from_secs(3);

/// Orders that may wait for an answer: far more than all hosts together are ever given.
const MAX_PENDING: usize = 100_000;

impl Cluster {
    /// Does what the time calls for.
    pub fn tick(&mut self, now: Duration) {
        if self.is_replaced {
            return;
        }
        self.make_up_for_stall(now);
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
        self.tell_moved_again(now);
        self.pass_deadlines(now);
        if now >= self.next_round
            && let Some(every) = self.settings.rebalance_every
        {
            self.next_round = now + every;
            if self.queue.is_empty() && !self.is_draining() {
                self.queue = super::plan::rebalance(&self.views(now), &self.settings).moves.into();
            }
        }
        while self.pending.len() > MAX_PENDING {
            self.pending.pop_first();
        }
        self.pump(now);
        self.pump_replicas(now);
    }

    /// If this comes late, it was the supervisor that stood still, and what the others said meanwhile is yet to be read: their
    /// silence does not count.
    fn make_up_for_stall(&mut self, now: Duration) {
        let stood_still = now.saturating_sub(self.ticked);
        self.ticked = now;
        if stood_still < STALL {
            return;
        }
        tracing::warn!(?stood_still, "the supervisor stood still; silence meanwhile does not count");
        self.table.hosts.values_mut().for_each(|entry| entry.heard = (entry.heard + stood_still).min(now));
        self.query_nodes.values_mut().for_each(|node| node.heard = (node.heard + stood_still).min(now));
        self.moves.values_mut().filter(|m| !m.is_committed()).for_each(|m| m.deadline += stood_still);
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
        let may_go = nodes_of(&others).len() >= self.wanted(&block, None)
            // A copy less is better than a drain that never ends.
            || !others.is_empty() && !self.has_room(now, &block, bytes, 1000);
        if may_go {
            self.start_switch(now, block, from, others[0], MoveReason::Drain);
        } else if let Some(to) = self.target(now, &block, bytes, 1000) {
            self.start_move(now, PlannedMove { block, bytes, from, to, why: MoveReason::Drain });
        }
    }

    pub(crate) fn is_leaving(&self, host: HostId) -> bool {
        self.table
            .hosts
            .get(&host)
            .is_none_or(|e| !matches!(e.state, HostState::Active | HostState::Cordoned))
    }

    pub(crate) fn candidates(
        &self,
        now: Duration,
        full_permille: u64,
        may_take: impl Fn(HostId) -> bool,
    ) -> Vec<Candidate> {
        let active = self.table.hosts.iter().filter(|(_, entry)| entry.takes());
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
    /// Those that enough other nodes hold are not among them.
    pub(crate) fn must_move(&self, node: NodeKey) -> Vec<(BlockId, u64, HostId, Vec<HostId>)> {
        let mut blocks = Vec::new();
        for (&host, entry) in self.table.hosts.iter().filter(|(host, _)| NodeKey::of(**host) == node) {
            for (id, holding) in entry.blocks.iter().filter(|(_, holding)| holding.hold == Hold::Held) {
                let mut others = self.lasting_holders(id);
                others.retain(|&other| NodeKey::of(other) != node);
                let is_enough = nodes_of(&others).len() >= self.wanted(id, Some(node));
                if self.table.blocks.contains_key(id) && !is_enough {
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
                    takes: entry.takes(),
                    blocks: blocks.map(|(id, h)| (*id, (h.bytes, is_movable(id, h.hold)))).collect(),
                }
            })
            .collect()
    }

    /// A host is gone, with all it held.
    pub(crate) fn host_gone(&mut self, now: Duration, host: HostId) {
        let Some(entry) = self.table.hosts.get_mut(&host) else { return };
        (entry.state, entry.is_stuck) = (HostState::Gone, false);
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
            _ if self.table.hosts[&host].is_stuck => false,
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
        for (key, (blocks, suspects)) in std::mem::take(&mut self.lost) {
            let Some(claim) = self.table.contexts.get(&key) else { continue };
            let context = claim.context;
            tracing::warn!(%context, blocks = blocks.len(), "blocks of a context are lost; its query node heals it");
            let (blocks, suspects) = (blocks.into_iter().collect(), suspects.into_iter().collect());
            let notice = QueryNodeNotice::Lost { context, blocks, suspects };
            self.actions.push_back(Action::ToQueryNode { node: claim.query_node, notice });
        }
    }

    pub(crate) fn release_switches(&mut self, now: Duration) {
        for id in self.moves.keys().copied().collect::<Vec<_>>() {
            self.free_source(now, id);
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
    pub(crate) fn knows_contexts(&self, now: Duration) -> bool {
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
                let is_spare = self.is_spare_promise(host, &id);
                let holding = self.table.holding_mut(host, &id).expect("just listed");
                let is_due = match holding.hold {
                    Hold::Freeing(sent) => now.saturating_sub(sent) > self.settings.order_timeout,
                    Hold::Held | Hold::Promised if !is_claimed => {
                        let since = *holding.unclaimed.get_or_insert(now);
                        knows_contexts && now.saturating_sub(since) >= self.settings.unclaimed_grace
                    }
                    Hold::Promised if is_spare => {
                        let since = *holding.unclaimed.get_or_insert(now);
                        now.saturating_sub(since) >= self.settings.unclaimed_grace
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

    /// Whether a block is promised to a host and encoded on another: whoever was to encode it here has gone elsewhere with it.
    fn is_spare_promise(&self, host: HostId, block: &BlockId) -> bool {
        let is_promised = matches!(self.table.hold(host, block), Some(Hold::Promised));
        let is_anchor = self.table.holding(host, block).is_some_and(|holding| !holding.anchors.is_empty());
        let is_had = |other: &HostId| {
            *other != host
                && self.table.hosts[other].takes()
                && matches!(self.table.hold(*other, block), Some(Hold::Held))
        };
        is_promised && !is_anchor && self.table.holders(block).iter().any(is_had)
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

    /// Everything it knows, with hosts that are stuck shown as such.
    pub fn overview(&self, now: Duration) -> ClusterSnapshot {
        let mut snapshot = self.snapshot(now);
        for row in &mut snapshot.hosts {
            row.state = self.table.hosts[&row.host].shown();
        }
        snapshot
    }

    /// Everything it knows, in the words of wire version 1.
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
            computed_blocks: entry.computed_blocks,
            disk: entry.disk,
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
                safe_blocks: claim.needs.iter().filter(|need| self.has_all_copies(&need.id)).count() as u64,
                hosts: hosts.into_iter().collect(),
            }
        });
        let moves = self.moves.iter().map(|(&migration, m)| m.row(migration));
        ClusterSnapshot {
            term: self.term,
            version: self.table.version,
            hosts: hosts.collect(),
            contexts: contexts.collect(),
            moves: moves.collect(),
            queued_moves: self.queue.len() as u64,
            next_move: self.next_number,
            ended_moves: self.ended.last.iter().cloned().collect(),
            rebalanced: self.ended.rebalanced,
            drains: self.drains.values().map(|drain| drain.progress.clone()).collect(),
        }
    }
}
