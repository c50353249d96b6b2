//! The owner of a session: what is written goes to every node that keeps a copy, and counts once the real [`Owner`] says so. The
//! order of steps is that of a member's sessions: one errand of a session at a time, each driven until nobody is waited for.

use std::time::Duration;

use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::copies::{
    Copy, CopySet, Epoch, Head, KeeperReply, KeeperRequest, Owner, Send, Standing, preferred,
};
use stellate_actors::manifest::ContextId;
use stellate_actors::session::SessionId;

use crate::context::{ContextSpec, TurnLog};
use crate::copies::ANSWER;
use crate::message::{Message, Purpose};
use crate::mutation::Mutation;
use crate::node::{key_of, number_of};
use crate::sessions::Question;
use crate::world::World;

/// Rounds of upkeep, of one second each, after which nodes that did not answer are asked again.
const RETRY_ROUNDS: u32 = 10;

/// How long a member that cannot be reached stays one: as long as membership takes to hold it for dead.
const GONE: Duration = Duration::from_secs(8);

/// What is done to a session.
#[derive(Clone, Debug)]
pub(crate) enum Errand {
    /// It is opened.
    Open,
    /// A turn is written.
    Append,
    /// It is looked whether it still is this node's, for a question.
    Claim(Question),
    /// It is this node's once a quorum says so; for a question.
    Take(Question),
    /// Copies are put where they should be, in so many steps still.
    Upkeep(u8),
    /// It is removed.
    Remove,
}

/// What is not in the log of this node yet.
#[derive(Debug)]
enum Unwritten {
    Nothing,
    /// The last turn.
    Last(Vec<u8>),
    /// The log as it was found elsewhere.
    All(Vec<Vec<u8>>),
}

/// An own session.
#[derive(Debug)]
pub(crate) struct Owned {
    /// What was sent by another one has no effect.
    name: u64,
    pub(crate) owner: Owner,
    /// The context, if it is not on the disk yet.
    spec: Option<ContextSpec>,
    unwritten: Unwritten,
    /// Answers to come.
    waits: usize,
    errand: Option<Errand>,
    /// What is done next.
    next: Option<Errand>,
}

impl Owned {
    fn new(name: u64, owner: Owner, spec: Option<ContextSpec>) -> Self {
        let (unwritten, errand) = (Unwritten::Nothing, None);
        Self { name, owner, spec, unwritten, waits: 0, errand, next: None }
    }

    /// The owner that a node was when it stopped, if it was.
    pub(crate) fn remembered(me: NodeKey, copy: &Copy, name: u64) -> Option<Self> {
        let head = copy.head.clone()?;
        let is_own = head.epoch.owner == me && head.epoch == copy.promised && !head.is_removed;
        is_own.then(|| Self::new(name, Owner::new(me, head, copy.turns), None))
    }

    /// Whether it is this node's, and not only about to be.
    pub(crate) fn is_taken(&self) -> bool {
        !matches!(self.errand, Some(Errand::Take(_)))
    }
}

impl World {
    pub(crate) fn owned(&mut self, number: u16, session: SessionId) -> Option<&mut Owned> {
        self.node_mut(number).copies.owned.get_mut(&session)
    }

    /// The nodes that may keep copies of sessions over a context, best first.
    fn keepers_for(&self, number: u16, context: ContextId, members: &[NodeKey]) -> Vec<NodeKey> {
        let away = &self.node(number).copies.away;
        let stays = |key: NodeKey| {
            members.contains(&key) && away.get(&key).is_none_or(|since| *since + GONE > self.now)
        };
        let others = (0..self.nodes.len() as u16).filter(|&other| other != number);
        let fits = others.filter(|&other| self.reaches(number, other) || stays(key_of(other)));
        preferred(context, fits.map(|other| (key_of(other), self.node(other).runs_sessions)))
    }

    /// A session over a context is opened.
    pub(crate) fn open_session(&mut self, number: u16, session: SessionId, spec: ContextSpec) {
        let (me, name, copies) = (key_of(number), self.name(), usize::from(self.scenario.shape.copies));
        let others = self.keepers_for(number, spec.id, &[]).into_iter().take(copies);
        let set = CopySet::of(std::iter::once(me).chain(others).collect());
        let (context, epoch) = (spec.id, Epoch::first(me));
        let head = Head { session, context, epoch, version: 1, set, is_removed: false };
        let mut owned = Owned::new(name, Owner::new(me, head, 0), Some(spec));
        owned.errand = Some(Errand::Open);
        self.node_mut(number).copies.owned.insert(session, owned);
        self.drive(number, session);
    }

    /// A session that was fenced elsewhere is this node's, once a quorum has its log under this head.
    pub(crate) fn go_on(
        &mut self,
        number: u16,
        head: Head,
        log: (Vec<Vec<u8>>, ContextSpec),
        asked: Question,
    ) {
        let (session, name, turns) = (head.session, self.name(), log.0.len() as u64);
        let mut owned = Owned::new(name, Owner::new(key_of(number), head, turns), Some(log.1));
        (owned.unwritten, owned.errand) = (Unwritten::All(log.0), Some(Errand::Take(asked)));
        self.node_mut(number).copies.owned.insert(session, owned);
        self.drive(number, session);
    }

    /// Does something to a session: at once, or after what is being done.
    pub(crate) fn errand(&mut self, number: u16, session: SessionId, errand: Errand) {
        let believes = self.has(Mutation::BelieveItself);
        let Some(owned) = self.owned(number, session) else { return };
        if owned.errand.is_some() {
            // Upkeep comes again by itself, and nothing else matters beside a removal.
            let matters = !matches!(errand, Errand::Upkeep(_)) && !matches!(owned.next, Some(Errand::Remove));
            owned.next = if matters { Some(errand) } else { owned.next.take() };
            return;
        }
        match &errand {
            Errand::Claim(_) if believes && owned.owner.standing() == Standing::Settled => {}
            Errand::Claim(_) => {
                owned.owner.doubt();
                owned.owner.retry();
            }
            Errand::Remove => {
                owned.owner.remove();
                owned.owner.retry();
            }
            Errand::Open | Errand::Append | Errand::Take(_) | Errand::Upkeep(_) => {}
        }
        owned.errand = Some(errand);
        if matches!(owned.errand, Some(Errand::Append)) && !self.append(number, session) {
            return;
        }
        self.drive(number, session);
    }

    /// The turn that is over is one more of the log. False if it is not.
    fn append(&mut self, number: u16, session: SessionId) -> bool {
        let turn = self.turn_to_write(number, session);
        let Some(owned) = self.owned(number, session) else { return false };
        match turn {
            Some((index, bytes)) if owned.owner.turns() == index => {
                owned.owner.append();
                owned.unwritten = Unwritten::Last(bytes);
                true
            }
            _ => {
                owned.errand = None;
                self.turn_failed(number, session, "the turn is not the next of the log");
                false
            }
        }
    }

    /// Sends what is to be sent, and goes on once nobody is waited for any more.
    fn drive(&mut self, number: u16, session: SessionId) {
        let written = self.node(number).disk.session(session);
        let Some(owned) = self.owned(number, session) else { return };
        let (sends, head, count) = (owned.owner.sends(), owned.owner.head().clone(), owned.owner.turns());
        let spec = owned.spec.clone().or_else(|| written.as_ref().and_then(|log| log.spec.clone()));
        let log = written.map(|log| log.turns).unwrap_or_default();
        let turns_from = |from: u64| -> Vec<Vec<u8>> {
            let rest = log.iter().skip(from as usize).cloned();
            match &owned.unwritten {
                _ if head.is_removed => Vec::new(),
                Unwritten::All(turns) => turns.iter().skip(from as usize).cloned().collect(),
                Unwritten::Last(last) if from < count => {
                    let missing = (log.len() as u64) < count;
                    rest.chain(missing.then(|| last.clone())).collect()
                }
                Unwritten::Last(_) => Vec::new(),
                Unwritten::Nothing => rest.collect(),
            }
        };
        let asks: Vec<_> = sends.into_iter().map(|Send { to, from }| (to, from, turns_from(from))).collect();
        owned.waits += asks.len();
        let (name, is_over) = (owned.name, owned.waits == 0);
        for (to, from, turns) in asks {
            let request = KeeperRequest::Store { head: head.clone(), from, turns };
            let (purpose, spec) = (Purpose::Store(name, session, to), spec.clone());
            self.call(number, number_of(to), purpose, Some(ANSWER), |call| {
                Message::Keep(call, session, request, spec)
            });
        }
        if is_over {
            self.driven(number, session);
        }
    }

    /// A keeper has answered, or does not.
    pub(crate) fn stored(
        &mut self,
        number: u16,
        (name, session, to): (u64, SessionId, NodeKey),
        reply: Option<KeeperReply>,
    ) {
        let is_own = to == key_of(number);
        let is_hasty = match &reply {
            Some(KeeperReply::Stored { .. }) => is_own && self.has(Mutation::AcknowledgeAlone),
            Some(_) => false,
            None => is_own && self.has(Mutation::IgnoreFullDisk),
        };
        let Some(owned) = self.owned(number, session).filter(|owned| owned.name == name) else { return };
        owned.waits = owned.waits.saturating_sub(1);
        match &reply {
            Some(reply) => owned.owner.replied(to, reply),
            None => owned.owner.failed(to),
        }
        if is_hasty && matches!(owned.errand, Some(Errand::Append)) {
            self.acknowledge(number, session);
        }
        self.drive(number, session);
    }

    /// Nobody is waited for any more.
    fn driven(&mut self, number: u16, session: SessionId) {
        let copies = usize::from(self.scenario.shape.copies);
        let Some(owned) = self.owned(number, session) else { return };
        let Some(errand) = owned.errand.clone() else { return };
        if let Errand::Upkeep(steps) = errand
            && steps > 0
        {
            let head = owned.owner.head().clone();
            let live = self.keepers_for(number, head.context, &head.set.members);
            let Some(owned) = self.owned(number, session) else { return };
            if owned.owner.change(&live, copies) {
                owned.errand = Some(Errand::Upkeep(steps - 1));
                return self.drive(number, session);
            }
        }
        let Some(owned) = self.owned(number, session) else { return };
        (owned.errand, owned.unwritten) = (None, Unwritten::Nothing);
        let standing = owned.owner.standing();
        self.over(number, session, errand, standing);
        if let Some(next) = self.owned(number, session).and_then(|owned| owned.next.take()) {
            self.errand(number, session, next);
        }
    }

    /// What came of an errand.
    fn over(&mut self, number: u16, session: SessionId, errand: Errand, standing: Standing) {
        let me = key_of(number);
        match (standing, errand) {
            (Standing::Waiting, _) => unreachable!("it is driven until nobody is waited for"),
            (Standing::Settled, Errand::Open) => self.session_opened(number, session),
            (Standing::Settled, Errand::Append) => self.acknowledge(number, session),
            (Standing::Settled, Errand::Claim(asked)) => self.begin_turn(number, session, asked),
            (Standing::Settled, Errand::Take(asked)) => self.session_taken(number, session, asked),
            (Standing::Settled, Errand::Upkeep(_)) => {
                if self.owned(number, session).is_some_and(|owned| owned.owner.head().is_removed) {
                    self.session_lost(number, session);
                }
            }
            (Standing::Settled, Errand::Remove) => self.session_lost(number, session),
            (Standing::Fenced(_), errand) => {
                self.session_lost(number, session);
                if let Errand::Claim(asked) = errand {
                    self.take(number, session, asked, false);
                }
            }
            (Standing::Short { .. }, Errand::Open | Errand::Take(_)) => {
                self.session_lost(number, session);
                self.checks.refused("too few copies answer");
            }
            (Standing::Short { silent }, errand) => {
                match errand {
                    Errand::Append => self.turn_unsettled(number, session),
                    Errand::Claim(_) => self.checks.refused("too few copies answer"),
                    Errand::Open | Errand::Take(_) | Errand::Upkeep(_) | Errand::Remove => {}
                }
                // What this node's disk has is not known; it is read again.
                if silent.contains(&me) && !matches!(errand, Errand::Upkeep(_) | Errand::Remove) {
                    self.session_lost(number, session);
                }
            }
        }
    }

    /// Another node owns a session from now on, or nobody does.
    pub(crate) fn session_lost(&mut self, number: u16, session: SessionId) {
        let copies = &mut self.node_mut(number).copies;
        if copies.owned.contains_key(&session) {
            copies.owned.remove(&session);
            self.session_closed(number, session);
        }
    }

    /// Keeps copies where they should be, once a second.
    pub(crate) fn copies_beat(&mut self, number: u16) {
        let now = self.now;
        if self.node(number).copies.owned.is_empty() {
            return;
        }
        let others = (0..self.nodes.len() as u16).filter(|&other| other != number);
        let away: Vec<_> = others.filter(|&other| !self.reaches(number, other)).map(key_of).collect();
        let copies = &mut self.node_mut(number).copies;
        copies.away.retain(|key, _| away.contains(key));
        for key in away {
            copies.away.entry(key).or_insert(now);
        }
        copies.rounds = copies.rounds.wrapping_add(1);
        let is_retry = copies.rounds.is_multiple_of(RETRY_ROUNDS);
        let idle = copies.owned.iter().filter(|(_, owned)| owned.errand.is_none());
        let idle: Vec<_> = idle.map(|(&session, _)| session).collect();
        for session in idle {
            if is_retry && let Some(owned) = self.owned(number, session) {
                owned.owner.retry();
            }
            self.errand(number, session, Errand::Upkeep(3));
        }
    }

    /// A session that has fewer copies than it should, at a node that owns it.
    pub(crate) fn lacks_copies(&self) -> Option<String> {
        let nodes = self.nodes.iter();
        let wanted = nodes.len().min(usize::from(self.scenario.shape.copies) + 1);
        (0u16..).zip(&self.nodes).find_map(|(number, node)| {
            let mut owned = node.copies.owned.iter().map(|(session, owned)| (session, owned.owner.copies()));
            let (session, (has, shall)) =
                owned.find(|(_, (has, shall))| *has < wanted || *shall != wanted)?;
            Some(format!("{session} of node {number} has {has} copies of {shall}, and should have {wanted}"))
        })
    }
}

/// The turns of a log.
pub(crate) fn turns_of(log: &[Vec<u8>]) -> Vec<TurnLog> {
    log.iter().map(|bytes| TurnLog::from_bytes(bytes)).collect()
}
