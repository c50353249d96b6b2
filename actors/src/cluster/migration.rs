//! How one block moves: reserve, copy (or compute again), verify, commit, switch, free. Until the commit the source keeps
//! the block and the move can be taken back; from the switch on the target has it, and should it die before the source has
//! freed it, the source keeps it after all. Here are the steps; when moves are started is in [`super::supervisor`].

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

use crate::checksum::Checksum;
use crate::link::HostId;

use super::messages::{AgentReply, AgentRequest, NodeKey, QueryNodeNotice};
use super::plan::{MoveReason, PlannedMove};
use super::repair::{self, RepairChoice, RepairWay};
use super::snapshot::{EndedMove, MoveCounts, MoveRow};
use super::supervisor::{Action, Cluster, Pending};
use super::table::Hold;

/// Why a copy is not kept even if it is all there is.
const DIFFERS: &str = "the copy differs from the block";

/// How far a move has come.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The target is asked for room.
    Reserving,
    /// The target copies the block, or it is computed there.
    Copying,
    /// The target's checksum is compared with the source's.
    Verifying,
    /// The target has the block; query nodes are told.
    Switching,
    /// The source lets go of it.
    Freeing,
}

/// A block on its way.
#[derive(Clone, Debug)]
pub(crate) struct Migration {
    pub(crate) block: BlockId,
    pub(crate) bytes: u64,
    pub(crate) done_bytes: u64,
    pub(crate) from: HostId,
    pub(crate) to: HostId,
    pub(crate) why: MoveReason,
    pub(crate) choice: RepairChoice,
    pub(crate) step: Step,
    /// The block's version that the commit expects; once committed, the table's when query nodes were first told.
    version: u64,
    checksum: Option<Checksum>,
    /// When the step has taken too long; once committed, when the commit was.
    pub(crate) deadline: Duration,
    /// Query nodes that have not switched yet.
    waiting: BTreeSet<NodeKey>,
    /// When they were told last.
    told: Duration,
}

impl Migration {
    pub(crate) fn is_committed(&self) -> bool {
        self.step >= Step::Switching
    }

    pub(crate) fn row(&self, migration: u64) -> MoveRow {
        MoveRow {
            migration,
            block: self.block,
            bytes: self.bytes,
            done_bytes: self.done_bytes,
            from: self.from,
            to: self.to,
            why: self.why,
            choice: self.choice,
            step: self.step,
        }
    }

    /// Whether the source keeps the block.
    fn is_replica(&self) -> bool {
        matches!(self.why, MoveReason::Replica { .. })
    }
}

/// Ended moves that are remembered: as many as end between two looks of whoever watches, and far more.
const ENDED_MOVES: usize = 64;

/// Moves that have ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ended {
    pub(crate) last: VecDeque<EndedMove>,
    pub(crate) rebalanced: MoveCounts,
}

impl Ended {
    fn note(&mut self, row: MoveRow, is_committed: bool) {
        if matches!(row.why, MoveReason::Imbalance { .. }) {
            let counts = &mut self.rebalanced;
            *match (is_committed, row.choice.way) {
                (false, _) => &mut counts.cancelled,
                (true, RepairWay::Copy) => &mut counts.moved,
                (true, RepairWay::Recompute) => &mut counts.recomputed,
            } += 1;
        }
        if self.last.len() == ENDED_MOVES {
            self.last.pop_front();
        }
        self.last.push_back(EndedMove { row, is_committed });
    }
}

impl Cluster {
    /// Starts a move, if it is still possible and the target receives no other block.
    pub(crate) fn start_move(&mut self, now: Duration, planned: PlannedMove) -> bool {
        let PlannedMove { block, from, to, why, .. } = planned;
        let Some(entry) = self.table.blocks.get(&block) else { return false };
        let (bytes, tokens) = (entry.bytes, entry.tokens);
        let is_possible = self.table.hold(from, &block) == Some(Hold::Held)
            && self.table.holding(to, &block).is_none()
            && self.table.hosts.get(&to).is_some_and(|h| h.takes() && h.free_bytes() >= bytes)
            && !self.is_moving(&block)
            && !self.is_receiving(to);
        if !is_possible {
            return false;
        }
        let (source, target) = (&self.table.hosts[&from], &self.table.hosts[&to]);
        let bandwidth = match (source.copy_bytes_per_s, target.copy_bytes_per_s) {
            (0, known) | (known, 0) => known,
            (a, b) => a.min(b),
        };
        let rates = ((bytes, bandwidth), (u64::from(tokens), target.encode_tokens_per_s));
        let choice = repair::choose(self.settings.repair, true, rates.0, rates.1);
        tracing::info!(%block, %from, %to, %why, %choice, "block moves");
        self.table.set(to, block, bytes, Hold::Incoming);
        let version = self.table.blocks[&block].version;
        let id = self.number();
        let deadline = now + self.settings.order_timeout;
        let (step, waiting) = (Step::Reserving, BTreeSet::new());
        let migration = Migration {
            block,
            bytes,
            done_bytes: 0,
            from,
            to,
            why,
            choice,
            step,
            version,
            checksum: None,
            deadline,
            waiting,
            told: now,
        };
        self.moves.insert(id, migration);
        self.order(to, AgentRequest::Reserve { host: to, block, bytes, tokens }, Pending::Move(id));
        true
    }

    /// Has routes moved from a host that need not hold the block to one that does, and the block freed.
    pub(crate) fn start_switch(
        &mut self,
        now: Duration,
        block: BlockId,
        from: HostId,
        to: HostId,
        why: MoveReason,
    ) {
        if self.is_moving(&block) {
            return;
        }
        let id = self.number();
        let bytes = self.table.blocks[&block].bytes;
        let choice = repair::choose(self.settings.repair, true, (0, 0), (0, 0));
        let (step, waiting) = (Step::Verifying, BTreeSet::new());
        let version = self.table.blocks[&block].version;
        let (deadline, done_bytes) = (now, 0);
        let migration = Migration {
            block,
            bytes,
            done_bytes,
            from,
            to,
            why,
            choice,
            step,
            version,
            checksum: None,
            deadline,
            waiting,
            told: now,
        };
        self.moves.insert(id, migration);
        self.switch(now, id);
    }

    /// A target's answer to the order of a move.
    pub(crate) fn move_replied(&mut self, now: Duration, id: u64, reply: AgentReply) {
        let Some(migration) = self.moves.get_mut(&id) else { return };
        let (block, from, to) = (migration.block, migration.from, migration.to);
        match (migration.step, reply) {
            (Step::Reserving, AgentReply::Reserved { .. }) => {
                migration.step = Step::Copying;
                migration.deadline = now + self.settings.copy_timeout;
                match migration.choice.way {
                    RepairWay::Copy => self.pull(id),
                    RepairWay::Recompute => self.recompute(now, id),
                }
            }
            (Step::Copying, AgentReply::Pulled { checksum, at }) => {
                migration.checksum = Some(checksum);
                self.heard_of(to, at);
                self.verify(now, id);
            }
            (Step::Verifying, AgentReply::Checksum { checksum, at }) => {
                let is_whole = migration.checksum.is_none_or(|expected| expected == checksum);
                self.heard_of(to, at);
                if is_whole {
                    self.commit(now, id);
                } else {
                    self.cancel_move(now, id, DIFFERS);
                }
            }
            (_, AgentReply::Refused(refusal)) => {
                tracing::warn!(%block, %from, %to, %refusal, "a move was refused");
                self.cancel_move(now, id, "the target refused");
            }
            // An answer to an order of an earlier step.
            _ => {}
        }
    }

    fn pull(&mut self, id: u64) {
        let Migration { block, from, to, .. } = self.moves[&id];
        self.order(to, AgentRequest::Pull { host: to, block, from }, Pending::Move(id));
    }

    fn verify(&mut self, now: Duration, id: u64) {
        let migration = self.moves.get_mut(&id).expect("the move is under way");
        migration.step = Step::Verifying;
        migration.deadline = now + self.settings.order_timeout;
        let (host, block) = (migration.to, migration.block);
        self.order(host, AgentRequest::Verify { host, block }, Pending::Move(id));
    }

    /// Asks a query node to have the block encoded on the target; without one the block is copied.
    fn recompute(&mut self, now: Duration, id: u64) {
        let Migration { block, to: at, .. } = self.moves[&id];
        let users = self.table.blocks.get(&block).map(|entry| &entry.users);
        let asked = users.into_iter().flatten().find_map(|context| {
            let node = self.table.contexts.get(context)?.query_node;
            self.is_leased(now, node).then_some((context.context, node))
        });
        match asked {
            Some((context, node)) => {
                let (term, version) = (self.term, self.table.version);
                let notice = QueryNodeNotice::Recompute { migration: id, term, version, context, block, at };
                self.actions.push_back(Action::ToQueryNode { node, notice });
            }
            None => {
                self.moves.get_mut(&id).expect("the move is under way").choice.way = RepairWay::Copy;
                self.pull(id);
            }
        }
    }

    /// A query node had the block of a move encoded, or could not.
    pub fn recomputed(&mut self, now: Duration, id: u64, done: bool) {
        let Some(migration) = self.moves.get_mut(&id) else { return };
        if migration.step != Step::Copying || migration.choice.way != RepairWay::Recompute {
            return;
        }
        if done {
            self.verify(now, id);
        } else if self.table.hold(migration.from, &migration.block) == Some(Hold::Held) {
            migration.choice.way = RepairWay::Copy;
            migration.deadline = now + self.settings.copy_timeout;
            self.pull(id);
        } else {
            self.cancel_move(now, id, "the block could not be computed again");
        }
    }

    /// The commit: only if nothing has happened to the block's holders since the move began.
    fn commit(&mut self, now: Duration, id: u64) {
        let Migration { block, bytes, to, version, .. } = self.moves[&id];
        let is_current = self.table.blocks.get(&block).is_some_and(|entry| entry.version == version)
            && self.table.hold(to, &block) == Some(Hold::Incoming);
        if !is_current {
            self.cancel_move(now, id, "the table has changed");
            return;
        }
        self.table.set(to, block, bytes, Hold::Held);
        self.table.blocks.get_mut(&block).expect("just looked at").is_lost = false;
        self.count_moved(&self.moves[&id].clone());
        self.ended.note(self.moves[&id].row(id), true);
        if self.moves[&id].is_replica() {
            self.moves.remove(&id);
        } else {
            self.switch(now, id);
        }
    }

    /// Tells the query nodes of the block's new host.
    fn switch(&mut self, now: Duration, id: u64) {
        let Migration { block, bytes, from, .. } = self.moves[&id];
        if self.table.hold(from, &block) != Some(Hold::Held) {
            // The source has died in the meantime: there is nothing to free. Query nodes that route there heal.
            self.moves.remove(&id);
            return;
        }
        self.table.set(from, block, bytes, Hold::Leaving);
        let nodes = self.table.query_nodes(&block);
        let migration = self.moves.get_mut(&id).expect("the move is under way");
        migration.step = Step::Switching;
        migration.deadline = now;
        // Kept for when they are told again: a placement that came in between is later than the move.
        migration.version = self.table.version;
        migration.waiting = nodes;
        self.tell_moved(now, id);
        self.free_source(now, id);
    }

    /// Tells the query nodes that have not switched.
    fn tell_moved(&mut self, now: Duration, id: u64) {
        let Some(migration) = self.moves.get_mut(&id) else { return };
        migration.told = now;
        let Migration { block, from, to, version, .. } = *migration;
        for &node in &migration.waiting {
            let notice = QueryNodeNotice::Moved { migration: id, term: self.term, version, block, from, to };
            self.actions.push_back(Action::ToQueryNode { node, notice });
        }
    }

    /// Tells query nodes again that have not said for a while that they have switched: the notice or its answer was lost, or
    /// the node was started anew in between.
    pub(crate) fn tell_moved_again(&mut self, now: Duration) {
        let again = self.settings.order_timeout;
        let is_due = |m: &Migration| m.step == Step::Switching && now.saturating_sub(m.told) >= again;
        let due: Vec<_> = self.moves.iter().filter(|(_, m)| is_due(m)).map(|(&id, _)| id).collect();
        due.into_iter().for_each(|id| self.tell_moved(now, id));
    }

    /// A query node routes to the new host.
    pub fn switched(&mut self, now: Duration, node: NodeKey, id: u64) {
        if let Some(migration) = self.moves.get_mut(&id) {
            migration.waiting.remove(&node);
            self.free_source(now, id);
        }
    }

    /// Frees the source once every query node has switched, or is not there any more, and the target has been heard of
    /// since the commit: should it have died meanwhile, the source has the only copy.
    pub(crate) fn free_source(&mut self, now: Duration, id: u64) {
        let Some(migration) = self.moves.get(&id) else { return };
        let is_waiting = migration.waiting.iter().any(|&node| self.is_leased(now, node));
        let is_target_alive =
            self.table.hosts.get(&migration.to).is_some_and(|h| h.heard > migration.deadline);
        if migration.step != Step::Switching || is_waiting || !is_target_alive {
            return;
        }
        let (block, bytes, from) = (migration.block, migration.bytes, migration.from);
        let keeps_anchor =
            self.table.holding(from, &block).is_some_and(|holding| !holding.anchors.is_empty());
        if keeps_anchor && !self.is_leaving(from) {
            self.moves.remove(&id);
            self.table.set(from, block, bytes, Hold::Held);
            return;
        }
        self.moves.get_mut(&id).expect("just looked at").step = Step::Freeing;
        self.free(now, from, vec![block]);
    }

    /// Takes a move back that is not committed; a committed one goes on.
    pub(crate) fn cancel_move(&mut self, now: Duration, id: u64, cause: &str) {
        if self.moves.get(&id).is_none_or(Migration::is_committed) {
            return;
        }
        let migration = self.moves.remove(&id).expect("just looked at");
        self.ended.note(migration.row(id), false);
        let Migration { block, bytes, from, to, step, .. } = migration;
        tracing::info!(%block, %from, %to, ?step, cause, "a move was taken back");
        self.backoff.insert((block, to), now + self.settings.backoff);
        if self.table.hold(to, &block) == Some(Hold::Incoming) {
            // What came whole is kept if it is all there is: it counts again once an inventory lists it.
            let is_last =
                step == Step::Verifying && cause != DIFFERS && self.table.holders(&block).is_empty();
            if is_last {
                self.table.set(to, block, bytes, Hold::Promised);
            } else {
                self.free(now, to, vec![block]);
            }
        }
        self.check_lost(&block, &[from, to]);
    }

    /// A block is not on a host any more, which the table has noted: moves of it go on without the host, or end.
    pub(crate) fn vanished(&mut self, now: Duration, host: HostId, block: BlockId) {
        let Some(id) = self.move_of(&block) else { return };
        let migration = self.moves.get_mut(&id).expect("just found");
        let (from, to, step) = (migration.from, migration.to, migration.step);
        let is_coming =
            step == Step::Verifying || step == Step::Copying && migration.choice.way == RepairWay::Recompute;
        match step {
            Step::Reserving | Step::Copying | Step::Verifying if host == from && is_coming => {
                // The target has the block, or gets it without the source.
                if let Some(entry) = self.table.blocks.get(&block) {
                    migration.version = entry.version;
                }
            }
            Step::Reserving | Step::Copying | Step::Verifying => self.cancel_move(now, id, "a host has gone"),
            Step::Switching if host == to => {
                self.moves.remove(&id);
                self.keep_source(block, from, to);
            }
            Step::Switching | Step::Freeing if host == from => drop(self.moves.remove(&id)),
            Step::Switching | Step::Freeing => {}
        }
    }

    /// The target of a committed move is gone and the source still has the block: it keeps it.
    fn keep_source(&mut self, block: BlockId, from: HostId, to: HostId) {
        let Some(bytes) = self.table.holding(from, &block).map(|holding| holding.bytes) else { return };
        self.table.set(from, block, bytes, Hold::Held);
        let (migration, term, version) = (self.number(), self.term, self.table.version);
        for node in self.table.query_nodes(&block) {
            let notice = QueryNodeNotice::Moved { migration, term, version, block, from: to, to: from };
            self.actions.push_back(Action::ToQueryNode { node, notice });
        }
    }

    /// The source of a move keeps its block after all: a placement wants it there.
    pub(crate) fn end_freeing(&mut self, host: HostId, block: BlockId) {
        self.moves.retain(|_, m| !(m.step == Step::Freeing && m.from == host && m.block == block));
    }

    pub(crate) fn is_receiving(&self, host: HostId) -> bool {
        self.moves.values().any(|migration| migration.to == host && !migration.is_committed())
    }

    pub(crate) fn is_moving(&self, block: &BlockId) -> bool {
        self.move_of(block).is_some()
    }

    pub(crate) fn move_of(&self, block: &BlockId) -> Option<u64> {
        self.moves.iter().find(|(_, migration)| migration.block == *block).map(|(&id, _)| id)
    }
}
