//! What administrators want of nodes: cordons and drains, how far those are, and how they outlive supervisors.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

use crate::manifest::ContextId;

use super::drain::{self, DrainPlan, DrainProgress, DrainState};
use super::messages::{NodeKey, Refusal};
use super::migration::Migration;
use super::plan::MoveReason;
use super::repair::RepairWay;
use super::supervisor::{Action, Cluster};
use super::table::{Hold, HostState};

/// What an administrator wants of a node; outlives supervisors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum Intent {
    /// No new blocks.
    Cordon,
    /// No blocks at all.
    Drain {
        /// When what is left is healed elsewhere: the time of day, since 1970, for no other clock outlives a supervisor.
        deadline: Option<Duration>,
    },
}

/// When to ask again of a node that a supervisor which has just started has not heard of: agents report every second.
const FIRST_REPORT_MS: u64 = 1000;

/// A drain that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Drain {
    pub(crate) progress: DrainProgress,
    deadline: Option<Duration>,
}

impl Drain {
    fn new(node: NodeKey, deadline: Option<Duration>) -> Self {
        Self { progress: DrainProgress::new(node), deadline }
    }
}

/// The drains that were wanted when a supervisor starts, whose clock is `wall_ahead` behind the time of day.
pub(crate) fn resumed(intents: &BTreeMap<NodeKey, Intent>, wall_ahead: Duration) -> BTreeMap<NodeKey, Drain> {
    let resumed = |(&node, intent): (&NodeKey, &Intent)| match intent {
        Intent::Cordon => None,
        Intent::Drain { deadline } => {
            let deadline = deadline.map(|deadline| deadline.saturating_sub(wall_ahead));
            Some((node, Drain::new(node, deadline)))
        }
    };
    intents.iter().filter_map(resumed).collect()
}

impl Cluster {
    /// Gives a node no new blocks. A drain of it is taken back.
    ///
    /// # Errors
    /// [`Refusal::NoSuchNode`].
    pub fn cordon(&mut self, node: NodeKey) -> Result<(), Refusal> {
        self.known(node)?;
        self.drains.remove(&node);
        self.intend(node, Some(Intent::Cordon));
        Ok(())
    }

    /// Takes a cordon or a drain back. What has moved stays where it is.
    ///
    /// # Errors
    /// [`Refusal::NoSuchNode`].
    pub fn uncordon(&mut self, node: NodeKey) -> Result<(), Refusal> {
        self.known(node)?;
        self.drains.remove(&node);
        self.intend(node, None);
        Ok(())
    }

    /// Moves all blocks of a node elsewhere; with `dry_run` only says which. Past the deadline, what is left is healed
    /// elsewhere by the query nodes, as if the node had gone.
    ///
    /// # Errors
    /// [`Refusal::NoSuchNode`]; [`Refusal::DrainNoRoom`] with the numbers; [`Refusal::Settling`].
    pub fn drain(
        &mut self,
        now: Duration,
        node: NodeKey,
        deadline: Option<Duration>,
        dry_run: bool,
    ) -> Result<DrainPlan, Refusal> {
        self.known(node)?;
        self.may_decide(now)?;
        let blocks = self.must_move(node);
        let candidates = self.candidates(now, 1000, |host| NodeKey::of(host) != node);
        let plan = drain::plan(node, &blocks, candidates)?;
        if !dry_run {
            let deadline = deadline.map(|after| now + after);
            let wall = deadline.map(|deadline| deadline + self.wall_ahead);
            self.intend(node, Some(Intent::Drain { deadline: wall }));
            self.drains.insert(node, Drain::new(node, deadline));
            self.report_drain(node);
            self.pump(now);
        }
        Ok(plan)
    }

    /// Forgets a node, and the contexts that it keeps: it does not come back.
    ///
    /// # Errors
    /// [`Refusal::NoSuchNode`]; [`Refusal::NotEmpty`] if blocks lie on it alone and `force` is not set.
    pub fn remove(&mut self, now: Duration, node: NodeKey, force: bool) -> Result<(), Refusal> {
        self.known(node)?;
        let alone: Vec<_> = self.must_move(node).into_iter().filter(|block| block.3.is_empty()).collect();
        if !alone.is_empty() && !force {
            let users = |id: &BlockId| self.table.blocks.get(id).map(|entry| entry.users.clone());
            let contexts: BTreeSet<_> =
                alone.iter().filter_map(|block| users(&block.0)).flatten().map(|key| key.context).collect();
            let (blocks, contexts) = (alone.len() as u64, contexts.into_iter().collect());
            return Err(Refusal::NotEmpty { node, blocks, contexts });
        }
        self.drains.remove(&node);
        self.node_gone(now, node);
        self.forget_query_node(now, node);
        self.intend(node, None);
        for host in self.hosts_of_node(node) {
            self.table.hosts.remove(&host);
        }
        Ok(())
    }

    /// What is wanted of the hosts of a node.
    pub(crate) fn intended(&self, node: NodeKey) -> HostState {
        match self.intents.get(&node) {
            None => HostState::Active,
            Some(Intent::Cordon) => HostState::Cordoned,
            Some(Intent::Drain { .. }) => HostState::Draining,
        }
    }

    fn intend(&mut self, node: NodeKey, intent: Option<Intent>) {
        let before = self.set_intent(node, intent);
        self.actions.push_back(Action::Intent { node, intent, before });
    }

    fn set_intent(&mut self, node: NodeKey, intent: Option<Intent>) -> Option<Intent> {
        let before = match intent {
            Some(intent) => self.intents.insert(node, intent),
            None => self.intents.remove(&node),
        };
        let state = self.intended(node);
        let hosts = self.table.hosts.iter_mut().filter(|(host, _)| NodeKey::of(**host) == node);
        hosts.filter(|(_, entry)| entry.state != HostState::Gone).for_each(|(_, entry)| entry.state = state);
        before
    }

    /// What was wanted of a node last could not be kept: what was wanted before holds again, and what was begun for it is
    /// taken back.
    pub fn not_kept(&mut self, now: Duration, node: NodeKey, before: Option<Intent>) {
        self.set_intent(node, before);
        self.drains.remove(&node);
        let wanted = before.map(|before| (node, before)).into_iter().collect();
        self.drains.append(&mut resumed(&wanted, self.wall_ahead));
        let is_begun = |m: &&Migration| NodeKey::of(m.from) == node && m.why == MoveReason::Drain;
        let begun = self.moves.iter().filter(|(_, m)| is_begun(m) && !self.drains.contains_key(&node));
        for id in begun.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.cancel_move(now, id, "the drain could not be written down");
        }
    }

    /// A host of a node is there, or there again: a drain of its node has something to do.
    pub(crate) fn resume_drain(&mut self, node: NodeKey) {
        if let Some(drain) = self.drains.get_mut(&node) {
            drain.progress.state = DrainState::Moving;
        }
    }

    /// Whether blocks of a node that is there are to move off it.
    pub(crate) fn is_draining(&self) -> bool {
        let is_there = |node: NodeKey| {
            let mut hosts = self.table.hosts.iter().filter(|(host, _)| NodeKey::of(**host) == node);
            hosts.any(|(_, entry)| entry.serves())
        };
        self.drains.iter().any(|(&node, drain)| drain.progress.state == DrainState::Moving && is_there(node))
    }

    /// Notes which drains have come to their end.
    pub(crate) fn finish_drains(&mut self) {
        let is_empty = |node: NodeKey| {
            // One that was never heard of may hold anything.
            let hosts = self.hosts_of_node(node);
            let is_free =
                |host| self.table.hosts[host].blocks.values().all(|h| matches!(h.hold, Hold::Freeing(_)));
            !hosts.is_empty() && hosts.iter().all(is_free)
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
    pub(crate) fn pass_deadlines(&mut self, now: Duration) {
        if !self.has_settled {
            // What is left is not known yet.
            return;
        }
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
            let affected: BTreeSet<_> = users.flat_map(|entry| &entry.users).map(|key| key.context).collect();
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

    fn known(&self, node: NodeKey) -> Result<(), Refusal> {
        // What is wanted of a node that is away for good can be taken back too.
        let is_known = self.intents.contains_key(&node)
            || self.table.hosts.keys().any(|&host| NodeKey::of(host) == node);
        match is_known {
            true => Ok(()),
            // It may be about to report.
            false if !self.has_settled && !self.is_replaced => {
                Err(Refusal::Settling { retry_ms: FIRST_REPORT_MS })
            }
            false => Err(Refusal::NoSuchNode { node }),
        }
    }
}
