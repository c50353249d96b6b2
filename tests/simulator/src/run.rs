//! A run from its start to its verdict: the scenario, then the end of all faults, then a bounded time in which everything must be
//! as if nothing had happened.

use std::collections::BTreeSet;
use std::time::Duration;

use stellate_actors::cluster::messages::SupervisorRequest;
use stellate_model::block::BlockId;

use crate::checks::{Counts, Violation};
use crate::mutation::Mutation;
use crate::node::key_of;
use crate::owning::turns_of;
use crate::scenario::Scenario;
use crate::trace::{Trace, TraceHash};
use crate::world::World;

/// Faults end so long after the last step.
const AFTER: Duration = Duration::from_secs(5);

/// How long the cluster may take to be quiet: what nobody claims is kept for 30 s, an order may take 10 s, a query node is
/// waited for for 10 s, and a copy that failed is tried again after 30 s.
const QUIET: Duration = Duration::from_secs(180);

/// How long the last questions may take.
const LAST: Duration = Duration::from_secs(60);

/// Blocks of room up to which not all that was placed once can be placed again: scenarios fill such hosts.
const ROOMY: u64 = 16;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(2);

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The hash of all that happened: the same whenever the scenario is run.
    pub hash: TraceHash,
    /// Events.
    pub events: u64,
    /// The virtual time that it took.
    pub time: Duration,
    /// What happened, in numbers.
    pub counts: Counts,
    /// What was wrong, if anything was.
    pub violation: Option<Violation>,
    /// What happened, in lines, if they were wanted.
    pub lines: Vec<String>,
}

/// Runs a scenario.
pub fn run(scenario: &Scenario, mutation: Option<Mutation>) -> Outcome {
    run_with(scenario, mutation, Trace::default())
}

/// Runs a scenario and keeps a line for everything that happens.
pub fn run_with_lines(scenario: &Scenario, mutation: Option<Mutation>) -> Outcome {
    run_with(scenario, mutation, Trace::with_lines())
}

fn run_with(scenario: &Scenario, mutation: Option<Mutation>, trace: Trace) -> Outcome {
    let mut world = World::new(scenario.clone(), mutation, trace);
    let violation = world.live().err();
    Outcome {
        hash: world.trace.hash(),
        events: world.trace.events(),
        time: world.now,
        counts: std::mem::take(&mut world.checks.counts),
        violation,
        lines: std::mem::take(&mut world.trace).into_lines(),
    }
}

impl World {
    fn live(&mut self) -> Result<(), Violation> {
        let last = self.scenario.steps.iter().map(|(at, _)| *at).max().unwrap_or(0);
        self.run_until(Duration::from_millis(last) + AFTER)?;
        self.end_faults();
        self.wait(QUIET, |world| world.unrest(false))?;
        // Supervisors that came beside one another kept what was wanted each on its own disk.
        if !self.scenario.has_second_supervisor() {
            self.wishes_hold()?;
        }
        for number in 0..self.nodes.len() as u16 {
            self.wish(SupervisorRequest::Uncordon(key_of(number)));
        }
        self.ask_all()?;
        // Whatever was acknowledged is on a disk.
        for number in 0..self.nodes.len() as u16 {
            self.crash(number);
        }
        for number in 0..self.nodes.len() as u16 {
            self.start(number);
        }
        self.remember()?;
        self.ask_all()?;
        self.wait(QUIET, |world| world.unrest(true))?;
        self.remember()
    }

    /// Everybody is there, can be reached and has room to write.
    fn end_faults(&mut self) {
        self.network.heal();
        for number in 0..self.nodes.len() as u16 {
            self.start(number);
            let node = self.node_mut(number);
            (node.disk.is_full, node.disk.sync) = (false, Duration::from_millis(3));
            (node.agent.host.times, node.agent.host.damages, node.agent.host.lies) = (1, 0, 0);
            self.node_mut(number).supervises = number == 0 && self.scenario.shape.voters == 0;
            if self.node(number).paused_at.is_some() {
                self.wake(number);
            }
        }
        self.end_second_supervisors();
    }

    /// Waits until nothing is wrong, and fails with what is if it takes too long.
    fn wait(&mut self, limit: Duration, unrest: impl Fn(&Self) -> Option<String>) -> Result<(), Violation> {
        let end = self.now + limit;
        while let Some(what) = unrest(self) {
            if self.now >= end {
                self.checks.left_over(what);
                return self.checks.verdict();
            }
            self.run_until(self.now + LOOK)?;
        }
        Ok(())
    }

    /// What is not as it should be in a cluster without faults.
    fn unrest(&self, is_empty_of_others: bool) -> Option<String> {
        let supervisors: Vec<u16> = self.supervisors().collect();
        let &[supervisor] = supervisors.as_slice() else {
            return Some(format!("{} supervisors run", supervisors.len()));
        };
        let snapshot = self.snapshot(supervisor).expect("one runs there");
        // Blocks that were encoded late, by an order of before, may take a host beyond what it was promised for a while.
        if let Some(row) = snapshot.hosts.iter().find(|row| row.used_bytes > row.capacity_bytes) {
            return Some(format!(
                "{} of {} bytes are counted on {}",
                row.used_bytes, row.capacity_bytes, row.host
            ));
        }
        if !snapshot.moves.is_empty() || snapshot.queued_moves > 0 {
            return Some(format!("{} blocks still move: {:?}", snapshot.moves.len(), snapshot.moves.first()));
        }
        let (mut claimed, mut answering) = (BTreeSet::new(), 0);
        for query in self.nodes.iter().filter_map(|node| node.query.as_ref()) {
            answering += crate::sessions::answering(&query.sessions);
            for context in query.contexts.values() {
                claimed.extend(context.manifest.blocks.iter().map(|block| block.id));
                claimed.extend(context.claim.anchor.map(|anchor| anchor.id));
                if context.is_settling() {
                    return Some(format!("context {} is still being placed", context.spec.id));
                }
            }
        }
        if answering > 0 {
            return Some(format!("{answering} sessions still answer"));
        }
        if let Some(lacks) = self.lacks_copies() {
            return Some(lacks);
        }
        for (number, node) in (0u16..).zip(&self.nodes) {
            let host = &node.agent.host;
            let is_left = |block: &&BlockId| !claimed.contains(*block);
            let left = host.held.keys().filter(is_left).count();
            if left > 0 && is_empty_of_others {
                return Some(format!("node {number} holds {left} blocks that no context needs"));
            }
            if host.copies() > 0 {
                return Some(format!("copies still come to node {number}"));
            }
        }
        None
    }

    fn wishes_hold(&mut self) -> Result<(), Violation> {
        let supervisor = self.supervisors().next().expect("the cluster is quiet, so one runs");
        let snapshot = self.snapshot(supervisor).expect("one runs there");
        self.checks.wishes_hold(&snapshot);
        self.checks.verdict()
    }

    /// Every session answers a question.
    fn ask_all(&mut self) -> Result<(), Violation> {
        for (session, _) in self.checks.sessions() {
            let before = self.checks.counts.acknowledged;
            let full = |world: &Self| world.checks.counts.refused.get("no room").copied().unwrap_or(0);
            let refused = full(self);
            let end = self.now + LAST;
            while self.checks.counts.acknowledged == before {
                // Blocks that lay close together before need not find room once more where there is little, nor where further
                // copies have taken it: the failure model says so.
                let shape = self.scenario.shape;
                let is_tight = shape.capacity_blocks <= ROOMY || shape.replicas > 1;
                if full(self) > refused && is_tight {
                    break;
                }
                let Some((_, number)) = self.checks.sessions().into_iter().find(|(id, _)| *id == session)
                else {
                    break;
                };
                // Nor where room is kept: for what a node that ended was about to make, or for a copy that nobody came for, a
                // quarter of an hour.
                let is_kept = self.nodes.iter().any(|node| !node.agent.host.promised.is_empty());
                if self.now >= end && is_tight && (self.checks.left_unmade || is_kept) {
                    break;
                }
                if self.now >= end {
                    self.checks.left_over(format!("{session} on node {number} does not answer"));
                    return self.checks.verdict();
                }
                self.ask_session(number, session, 2);
                self.run_until(self.now + LOOK)?;
            }
        }
        Ok(())
    }

    /// Every acknowledged turn is in the newest log of its session that is on a disk.
    fn remember(&mut self) -> Result<(), Violation> {
        for (session, _) in self.checks.sessions() {
            let logs = self.nodes.iter().filter_map(|node| {
                let log = node.disk.kept().sessions.get(&session)?;
                let head = log.copy.head.as_ref().filter(|head| head.is_kept_by(node.key))?;
                Some((head.epoch, log))
            });
            let newest = logs.max_by_key(|(epoch, log)| (*epoch, log.turns.len()));
            let turns = newest.map(|(_, log)| turns_of(&log.turns));
            self.checks.remembered(session, turns.as_deref());
            self.checks.verdict()?;
        }
        Ok(())
    }
}
