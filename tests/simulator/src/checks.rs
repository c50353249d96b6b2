//! What must always hold, looked at from outside: nothing here uses what the cluster believes of itself but where that is what
//! is looked at.

use std::collections::{BTreeMap, BTreeSet};

use stellate_actors::cluster::intents::Intent;
use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::cluster::migration::Step;
use stellate_actors::cluster::plan::MoveReason;
use stellate_actors::cluster::snapshot::{ClusterSnapshot, MoveRow};
use stellate_actors::cluster::term::Term;
use stellate_actors::session::SessionId;
use stellate_model::block::BlockId;

use crate::context::TurnLog;
use crate::node::Node;

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {what}")]
pub struct Violation {
    /// Which rule was broken.
    pub rule: &'static str,
    /// By what.
    pub what: String,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Faults and wishes, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What was refused, by cause.
    pub refused: BTreeMap<&'static str, u64>,
    /// Questions that sessions took.
    pub asked: u64,
    /// Turns that were acknowledged.
    pub acknowledged: u64,
    /// Tokens that were given.
    pub tokens: u64,
    /// Contexts that were made.
    pub contexts: u64,
    /// Heals that brought a context back.
    pub healed: u64,
    /// Heals that did not.
    pub unhealed: u64,
    /// Nodes that membership took for dead.
    pub suspected: u64,
    /// Voters that were elected.
    pub elected: u64,
    /// Sessions that another node took over.
    pub taken: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (all, some) in [(&mut self.faults, &other.faults), (&mut self.refused, &other.refused)] {
            some.iter().for_each(|(&what, count)| *all.entry(what).or_default() += count);
        }
        self.asked += other.asked;
        self.acknowledged += other.acknowledged;
        self.tokens += other.tokens;
        self.contexts += other.contexts;
        self.healed += other.healed;
        self.unhealed += other.unhealed;
        self.suspected += other.suspected;
        self.elected += other.elected;
        self.taken += other.taken;
    }
}

/// The checks.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    violation: Option<Violation>,
    pub(crate) counts: Counts,
    /// Whether a node ended while it made a context, which nobody gives up then.
    pub(crate) left_unmade: bool,
    /// The highest term that each agent has followed, in all its lives.
    followed: BTreeMap<u16, Term>,
    /// The latest term that was elected.
    elected: Term,
    /// The supervisor of each term that has committed anything.
    committed: BTreeMap<Term, u64>,
    /// Sessions that were opened, and their nodes.
    sessions: Vec<(SessionId, u16)>,
    /// The most blocks that a supervisor knew of.
    most_blocks: u64,
    /// The longest log of each session up to a turn that was acknowledged.
    turns: BTreeMap<SessionId, Vec<TurnLog>>,
    /// What was promised of nodes.
    wishes: BTreeMap<NodeKey, Option<Intent>>,
    /// What was wanted of nodes since and not acknowledged: it may hold or not.
    asked: BTreeMap<NodeKey, Vec<Option<Intent>>>,
}

impl Checks {
    /// What is wrong, if something is.
    pub(crate) fn verdict(&mut self) -> Result<(), Violation> {
        self.violation.take().map_or(Ok(()), Err)
    }

    pub(crate) fn fail(&mut self, rule: &'static str, what: String) {
        self.violation.get_or_insert(Violation { rule, what });
    }

    pub(crate) fn fault(&mut self, name: &'static str) {
        *self.counts.faults.entry(name).or_default() += 1;
    }

    pub(crate) fn refused(&mut self, cause: &'static str) {
        *self.counts.refused.entry(cause).or_default() += 1;
    }

    pub(crate) fn asked(&mut self) {
        self.counts.asked += 1;
    }

    pub(crate) fn suspected(&mut self) {
        self.counts.suspected += 1;
    }

    pub(crate) fn made_context(&mut self) {
        self.counts.contexts += 1;
    }

    pub(crate) fn healed(&mut self, is_healed: bool) {
        *if is_healed { &mut self.counts.healed } else { &mut self.counts.unhealed } += 1;
    }

    /// A token was given: it is what one healthy machine would give.
    pub(crate) fn token(&mut self, is_right: bool, which: impl FnOnce() -> String) {
        self.counts.tokens += 1;
        if !is_right {
            self.fail("an answer is the one that a single healthy machine would give", which());
        }
    }

    /// An agent follows an order of a term.
    pub(crate) fn followed(&mut self, number: u16, term: Term) {
        let highest = *self.followed.entry(number).and_modify(|seen| *seen = term.max(*seen)).or_insert(term);
        if term < highest {
            let what = format!("node {number} follows {term} after {highest}");
            self.fail("no lower term is followed", what);
        }
    }

    /// A voter was elected.
    pub(crate) fn elected(&mut self, term: Term) {
        if term <= self.elected {
            self.fail("terms rise", format!("{term} was elected after {}", self.elected));
        }
        self.elected = term;
        self.counts.elected += 1;
    }

    /// A supervisor has decided something that others act upon.
    pub(crate) fn committed(&mut self, term: Term, instance: u64) {
        if term < self.elected {
            let what = format!("one does under {term} after {} was elected", self.elected);
            self.fail("nothing is decided under a term before the one that was elected", what);
        }
        if *self.committed.entry(term).or_insert(instance) != instance {
            self.fail("one supervisor at most commits under a term", format!("two do under {term}"));
        }
    }

    /// What a host holds and has promised.
    pub(crate) fn room(&mut self, number: u16, used: u64, capacity: u64) {
        if used > capacity {
            let what = format!("the host of node {number} has {used} of {capacity} bytes");
            self.fail("no host is given more than it has room for", what);
        }
    }

    /// What a supervisor knows.
    pub(crate) fn looked(&mut self, snapshot: &ClusterSnapshot) {
        if let Some(row) = snapshot.hosts.iter().find(|row| row.inbound > 1) {
            let what = format!("{} come to {}", row.inbound, row.host);
            self.fail("one copy at most comes to a host", what);
        }
        let blocks: u64 = snapshot.hosts.iter().map(|row| row.blocks).sum();
        let is_round =
            |row: &&MoveRow| matches!(row.why, MoveReason::Imbalance { .. }) && row.step < Step::Switching;
        let moving = snapshot.moves.iter().filter(is_round).count() as u64;
        // One that an administrator asks for may begin while another is under way, and hosts may go meanwhile.
        self.most_blocks = blocks.max(self.most_blocks);
        let budget = 2 * ((self.most_blocks / 10).max(1) + 1);
        if moving > budget {
            self.fail("a round moves a tenth of the blocks at most", format!("{moving} of {blocks} move"));
        }
    }

    pub(crate) fn opened(&mut self, session: SessionId, number: u16) {
        self.sessions.push((session, number));
    }

    pub(crate) fn forgotten(&mut self, session: SessionId) {
        self.sessions.retain(|(id, _)| *id != session);
        self.turns.remove(&session);
    }

    pub(crate) fn sessions(&self) -> Vec<(SessionId, u16)> {
        self.sessions.clone()
    }

    /// A session is another node's from now on.
    pub(crate) fn taken(&mut self, session: SessionId, number: u16) {
        self.counts.taken += 1;
        self.sessions.iter_mut().filter(|(id, _)| *id == session).for_each(|(_, at)| *at = number);
    }

    /// The last turn of a log was acknowledged by the node that owns it.
    pub(crate) fn acknowledged(&mut self, session: SessionId, number: u16, log: Vec<TurnLog>) {
        self.counts.acknowledged += 1;
        if !self.sessions.iter().any(|(id, _)| *id == session) {
            return;
        }
        let longest = self.turns.entry(session).or_default();
        // One that was fenced meanwhile may learn late that its last turn was settled before.
        let both = longest.len().min(log.len());
        let is_same = longest[..both] == log[..both];
        if log.len() > both {
            *longest = log;
        }
        if !is_same {
            let what = format!(
                "node {number} acknowledges turns of {session} that are others than those acknowledged before"
            );
            self.fail("no two logs that diverge are both acknowledged", what);
        }
    }

    /// The turns of a session up to the last that was acknowledged.
    pub(crate) fn acknowledged_turns(&self, session: SessionId) -> &[TurnLog] {
        self.turns.get(&session).map_or(&[], Vec::as_slice)
    }

    /// A question is answered behind `turns`; the first `known` of the session had been acknowledged when it was asked.
    pub(crate) fn rests_on(&mut self, session: SessionId, turns: &[TurnLog], known: usize) {
        let acknowledged = self.acknowledged_turns(session);
        let known = &acknowledged[..known.min(acknowledged.len())];
        if !turns.starts_with(known) {
            let what = format!("{session}: {} turns of {} that were acknowledged", turns.len(), known.len());
            self.fail("an answer rests on all turns that were acknowledged before it was asked", what);
        }
    }

    /// What is remembered of a session, where it is newest.
    pub(crate) fn remembered(&mut self, session: SessionId, turns: Option<&[TurnLog]>) {
        let acknowledged = self.acknowledged_turns(session);
        // More may be there, which were written when the node ended before it could say so.
        if !turns.unwrap_or_default().starts_with(acknowledged) {
            let (had, has) = (acknowledged.len(), turns.map(<[_]>::len));
            let what = format!("{session} had {had} acknowledged turns, and its newest log has {has:?}");
            self.fail("an acknowledged turn is never lost", what);
        }
    }

    /// Something is wanted of a node, and on its way to the disk.
    pub(crate) fn wish(&mut self, node: NodeKey, intent: Option<Intent>) {
        self.asked.entry(node).or_default().push(intent);
    }

    /// It is acknowledged.
    pub(crate) fn wished(&mut self, node: NodeKey, intent: Option<Intent>) {
        self.asked.remove(&node);
        self.wishes.insert(node, intent);
    }

    /// What is wanted of nodes, as the supervisor that leads at the end says.
    pub(crate) fn wishes_hold(&mut self, snapshot: &ClusterSnapshot) {
        use stellate_actors::cluster::HostState;
        for row in &snapshot.hosts {
            let wanted = self.wishes.get(&NodeKey::of(row.host)).copied().flatten();
            let holds = |wanted: Option<Intent>| match (wanted, row.state) {
                (_, HostState::Gone) => true,
                (None, state) => state == HostState::Active,
                (Some(Intent::Cordon), state) => state == HostState::Cordoned,
                (Some(Intent::Drain { .. }), state) => {
                    matches!(state, HostState::Draining | HostState::Drained)
                }
            };
            let mut asked = self.asked.get(&NodeKey::of(row.host)).into_iter().flatten();
            if !holds(wanted) && !asked.any(|asked| holds(*asked)) {
                let what = format!("{} is {:?}, and {wanted:?} was promised", row.host, row.state);
                self.fail("what was promised of a node holds", what);
            }
        }
    }

    /// A node was drained: what contexts need of what it holds is elsewhere too.
    pub(crate) fn drained(&mut self, nodes: &[Node], drained: NodeKey) {
        let needed: BTreeSet<BlockId> = nodes
            .iter()
            .filter(|node| node.is_up)
            .flat_map(|node| node.query.iter().flat_map(|query| query.contexts.values()))
            .filter(|context| context.is_made)
            .flat_map(|context| context.manifest.blocks.iter().map(|block| block.id))
            .collect();
        let Some(node) = nodes.iter().find(|node| node.key == drained && node.is_up) else { return };
        let elsewhere = |block: &BlockId| {
            let mut others = nodes.iter().filter(|other| other.is_up && other.key != drained);
            others.any(|other| other.agent.host.held.contains_key(block))
        };
        let lost = node.agent.host.held.keys().find(|block| needed.contains(block) && !elsewhere(block));
        if let Some(block) = lost {
            self.fail(
                "a drain loses nothing before its deadline",
                format!("{block:?} is on {drained} alone"),
            );
        }
    }

    /// The end of a run: nothing is left over.
    pub(crate) fn left_over(&mut self, what: String) {
        self.fail("after the faults everything heals within a bound, and no work is left over", what);
    }
}
