//! Sessions: each step of an answer asks every host that holds blocks, looks whether what came covers the context exactly once,
//! and goes on; what fails is healed and asked again, as the query host does.

use std::collections::BTreeMap;
use std::time::Duration;

use stellate_actors::cluster::messages::SupervisorRequest;
use stellate_actors::link::HostId;
use stellate_actors::manifest::ContextId;
use stellate_actors::session::SessionId;
use stellate_model::block::BlockId;

use crate::agent::truth;
use crate::chance::digest;
use crate::context::TurnLog;
use crate::message::{Message, Purpose, Timer};
use crate::mutation::Mutation;
use crate::node::node_of;
use crate::owning::{Errand, turns_of};
use crate::query::part;
use crate::world::World;

/// Times that one step may be asked again, each after a heal that succeeded.
const MAX_RETRIES: u32 = 4;

/// How long a host may take to attend.
const ATTEND: Duration = Duration::from_secs(10);

/// A question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    /// Tokens of its answer.
    pub(crate) tokens: u64,
    /// Turns of the session that were acknowledged before it was asked: its answer rests on all of them.
    pub(crate) known: usize,
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) context: ContextId,
    pub(crate) turns: Vec<TurnLog>,
    turn: Option<Turn>,
}

/// A turn under way.
#[derive(Debug)]
struct Turn {
    question: u64,
    wanted: u64,
    tokens: Vec<u64>,
    retries: u32,
    /// What came of earlier steps has no effect.
    step: u64,
    waits: Waits,
}

#[derive(Debug)]
enum Waits {
    Nothing,
    /// For the hosts' replies.
    Replies {
        waiting: usize,
        version: u64,
        replies: Vec<(HostId, Vec<(BlockId, u64)>)>,
        fault: Option<Option<HostId>>,
    },
    /// For the context to be healed.
    Heal,
    /// For its copies.
    Copies,
}

impl Session {
    pub(crate) fn new(context: ContextId, turns: Vec<TurnLog>) -> Self {
        Self { context, turns, turn: None }
    }

    /// Whether it is answering.
    pub(crate) fn is_asked(&self) -> bool {
        self.turn.is_some()
    }

    /// What the next token is asked with.
    fn query(&self, turn: &Turn) -> u64 {
        let earlier = self.turns.iter().flat_map(|turn| turn.tokens.iter().copied().chain([turn.question]));
        digest(earlier.chain([turn.question]).chain(turn.tokens.iter().copied()))
    }
}

impl World {
    /// The sessions over a context that has just been made: each is there once its copies are.
    pub(crate) fn open_sessions(&mut self, number: u16, context: ContextId) {
        for _ in 0..self.chance.between(1, 2) {
            let id = SessionId(self.name());
            if let Some(context) = self.context(number, context) {
                let spec = context.spec.clone();
                self.open_session(number, id, spec);
            }
        }
    }

    /// A session is there.
    pub(crate) fn session_opened(&mut self, number: u16, id: SessionId) {
        let Some(context) = self.owned(number, id).map(|owned| owned.owner.head().context) else { return };
        let Some(query) = &mut self.node_mut(number).query else { return };
        // Unless it was given up meanwhile, with its context.
        if query.contexts.contains_key(&context) {
            query.sessions.insert(id, Session::new(context, Vec::new()));
            self.checks.opened(id, number);
        }
    }

    /// A session is asked at a node, which takes it over if it is nobody's who can be asked. False if it is busy.
    pub(crate) fn ask_session(&mut self, number: u16, id: SessionId, tokens: u64) -> bool {
        let asked = self.question(id, tokens);
        self.put_question(number, id, asked)
    }

    /// A question that is asked now.
    pub(crate) fn question(&self, id: SessionId, tokens: u64) -> Question {
        Question { tokens, known: self.checks.acknowledged_turns(id).len() }
    }

    fn put_question(&mut self, number: u16, id: SessionId, asked: Question) -> bool {
        let is_asked = |session: &Session| session.turn.is_some();
        match &self.node(number).query {
            Some(query) if !query.sessions.get(&id).is_some_and(is_asked) => {}
            _ => return false,
        }
        match self.owned(number, id).map(|owned| owned.is_taken()) {
            Some(true) => self.errand(number, id, Errand::Claim(asked)),
            Some(false) => return false,
            None => self.take(number, id, asked, false),
        }
        true
    }

    /// Whoever asked was told which node has the session.
    pub(crate) fn redirected(&mut self, owner: u16, id: SessionId, asked: Question) {
        let node = self.node(owner);
        if !node.is_up || node.paused_at.is_some() || !self.put_question(owner, id, asked) {
            self.checks.refused("the node that has the session does not answer");
        }
    }

    /// A session was taken over.
    pub(crate) fn session_taken(&mut self, number: u16, id: SessionId, asked: Question) {
        let log = self.node(number).disk.session(id).unwrap_or_default();
        self.trace.note(self.now, number, &[400, id.0, log.copy.turns], || format!("takes {id} over"));
        self.checks.taken(id, number);
        // One that stood still meanwhile may have lost it again, which it learns when it writes.
        let copies = self.nodes.iter().filter_map(|node| node.disk.session(id));
        if copies.map(|other| other.copy.promised).max() == Some(log.copy.promised) {
            self.checks.remembered(id, Some(&turns_of(&log.turns)));
        }
        self.begin_turn(number, id, asked);
    }

    /// A session takes a question: it is this node's, as far as a quorum knows.
    pub(crate) fn begin_turn(&mut self, number: u16, id: SessionId, asked: Question) {
        let (question, step) = (self.chance.word(), self.name());
        let Some(log) = self.node(number).disk.session(id) else { return };
        let Some(spec) = log.spec.filter(|spec| self.adopt(number, spec)) else {
            return self.checks.refused("the disk is full");
        };
        let Some(query) = &mut self.node_mut(number).query else { return };
        let opened = || Session::new(spec.id, turns_of(&log.turns));
        let session = query.sessions.entry(id).or_insert_with(opened);
        if session.turn.is_none() {
            let (turns, wanted) = (session.turns.clone(), asked.tokens);
            let (tokens, waits) = (Vec::new(), Waits::Nothing);
            session.turn = Some(Turn { question, wanted, tokens, retries: 0, step, waits });
            self.checks.asked();
            self.checks.rests_on(id, &turns, asked.known);
            self.advance(number, id);
        }
    }

    /// The next step of a turn.
    pub(crate) fn advance(&mut self, number: u16, id: SessionId) {
        let name = self.name();
        let Some(query) = &mut self.node_mut(number).query else { return };
        let Some(session) = query.sessions.get_mut(&id) else { return };
        let Some(context) = query.contexts.get(&session.context) else { return };
        let Some(turn) = &session.turn else { return };
        if !matches!(turn.waits, Waits::Nothing) {
            return;
        }
        if turn.tokens.len() as u64 == turn.wanted {
            return self.finish(number, id);
        }
        let asked = session.query(turn);
        let places = context.whereabouts.now();
        let routes = context.manifest.by_host(&places, context.manifest.blocks.len());
        let turn = session.turn.as_mut().expect("just looked at");
        turn.step = name;
        let Some(routes) = routes else {
            return self.park(number, id, None, places.version);
        };
        let (waiting, version) = (routes.len(), places.version);
        turn.waits = Waits::Replies { waiting, version, replies: Vec::new(), fault: None };
        for (host, blocks) in routes {
            let purpose = Purpose::Attend(id, name, host);
            self.call(number, node_of(host), purpose, Some(ATTEND), |call| {
                Message::Attend(call, asked, blocks)
            });
        }
    }

    /// A host has attended, or has not.
    pub(crate) fn attended(
        &mut self,
        number: u16,
        (id, step, host): (SessionId, u64, HostId),
        reply: Option<Result<Vec<(BlockId, u64)>, BlockId>>,
    ) {
        let Some(query) = &mut self.node_mut(number).query else { return };
        let Some(turn) = query.sessions.get_mut(&id).and_then(|session| session.turn.as_mut()) else {
            return;
        };
        if turn.step != step {
            return;
        }
        let Waits::Replies { waiting, version, replies, fault } = &mut turn.waits else { return };
        *waiting = waiting.saturating_sub(1);
        match reply {
            Some(Ok(parts)) => replies.push((host, parts)),
            Some(Err(_)) => *fault = fault.or(Some(None)),
            None => *fault = Some(Some(host)),
        }
        if *waiting > 0 {
            return;
        }
        let (version, fault, replies) = (*version, *fault, std::mem::take(replies));
        turn.waits = Waits::Nothing;
        self.switched_between_steps(number);
        match fault {
            Some(suspect) => self.park(number, id, suspect, version),
            None => self.merge(number, id, &replies, version),
        }
    }

    /// Merges what the hosts have answered, if it covers the context exactly once.
    fn merge(&mut self, number: u16, id: SessionId, replies: &[(HostId, Vec<(BlockId, u64)>)], version: u64) {
        let merges_anything = self.has(Mutation::MergeWithoutCover);
        let Some(query) = &mut self.node_mut(number).query else { return };
        let Some(session) = query.sessions.get_mut(&id) else { return };
        let Some(context) = query.contexts.get(&session.context) else { return };
        let Some(turn) = &session.turn else { return };
        let named: Vec<Vec<BlockId>> =
            replies.iter().map(|(_, parts)| parts.iter().map(|(block, _)| *block).collect()).collect();
        let covers = context.cover.check(&named.iter().map(Vec::as_slice).collect::<Vec<_>>());
        if covers.is_err() && !merges_anything {
            return self.park(number, id, None, version);
        }
        let asked = session.query(turn);
        let merged =
            replies.iter().flat_map(|(_, parts)| parts).fold(0u64, |sum, (_, part)| sum.wrapping_add(*part));
        let blocks = context.manifest.blocks.iter();
        let expected = blocks.fold(0u64, |sum, block| sum.wrapping_add(part(asked, truth(&block.id))));
        let turn = session.turn.as_mut().expect("just looked at");
        turn.tokens.push(digest([asked, merged]));
        turn.retries = 0;
        let count = turn.tokens.len() as u64;
        self.checks.token(merged == expected, || format!("token {count} of {id}"));
        self.trace.note(self.now, number, &[200, id.0, merged], || format!("token {count} of {id}"));
        // What the rest of a step takes.
        self.after(number, Duration::from_millis(15), Timer::Session(id));
    }

    /// After a step without attention: waits for the context to be healed, unless its blocks lie elsewhere by now.
    fn park(&mut self, number: u16, id: SessionId, suspect: Option<HostId>, version: u64) {
        let drops = self.has(Mutation::DropRetry);
        let Some(query) = &mut self.node_mut(number).query else { return };
        let Some(session) = query.sessions.get_mut(&id) else { return };
        let Some(context) = query.contexts.get(&session.context) else { return };
        let context_id = session.context;
        let Some(turn) = session.turn.as_mut() else { return };
        turn.retries += 1;
        if turn.retries > MAX_RETRIES {
            session.turn = None;
            return self.checks.refused("a step failed too often");
        }
        if context.whereabouts.version() != version {
            turn.waits = Waits::Nothing;
            return self.after(number, Duration::ZERO, Timer::Session(id));
        }
        turn.waits = Waits::Heal;
        if !drops {
            self.settle(number, context_id, suspect.into_iter().collect());
        }
    }

    /// A context was healed, or not.
    pub(crate) fn healed(&mut self, number: u16, context: ContextId, outcome: Result<(), &'static str>) {
        self.checks.healed(outcome.is_ok());
        let Some(query) = &mut self.node_mut(number).query else { return };
        let (mut going_on, mut failed) = (Vec::new(), Vec::new());
        for (id, session) in query.sessions.iter_mut().filter(|(_, session)| session.context == context) {
            let Some(turn) = session.turn.as_mut().filter(|turn| matches!(turn.waits, Waits::Heal)) else {
                continue;
            };
            match outcome {
                Ok(()) => {
                    turn.waits = Waits::Nothing;
                    going_on.push(*id);
                }
                Err(cause) => {
                    session.turn = None;
                    failed.push(cause);
                }
            }
        }
        failed.into_iter().for_each(|cause| self.checks.refused(cause));
        for id in going_on {
            self.advance(number, id);
        }
    }

    /// A turn is over: it is written down, and acknowledged once its copies are.
    fn finish(&mut self, number: u16, id: SessionId) {
        let is_own = self.owned(number, id).is_some();
        let Some(turn) = self.session(number, id).and_then(|session| session.turn.as_mut()) else { return };
        turn.waits = Waits::Copies;
        match is_own {
            true => self.errand(number, id, Errand::Append),
            false => self.session_closed(number, id),
        }
    }

    /// The turn that is over, and its number.
    pub(crate) fn turn_to_write(&mut self, number: u16, id: SessionId) -> Option<(u64, Vec<u8>)> {
        let session = self.session(number, id)?;
        let turn = session.turn.as_ref().filter(|turn| matches!(turn.waits, Waits::Copies))?;
        let log = TurnLog { question: turn.question, tokens: turn.tokens.clone() };
        Some((session.turns.len() as u64, log.to_bytes()))
    }

    fn session(&mut self, number: u16, id: SessionId) -> Option<&mut Session> {
        self.node_mut(number).query.as_mut()?.sessions.get_mut(&id)
    }

    /// A turn was not written.
    pub(crate) fn turn_failed(&mut self, number: u16, id: SessionId, cause: &'static str) {
        if let Some(session) = self.session(number, id)
            && session.turn.take().is_some()
        {
            self.checks.refused(cause);
        }
    }

    /// A turn is written down here, and too few of its copies are.
    pub(crate) fn turn_unsettled(&mut self, number: u16, id: SessionId) {
        if self.end_turn(number, id) {
            self.checks.refused("too few copies answer");
        }
    }

    /// A turn is on the disks of a quorum.
    pub(crate) fn acknowledge(&mut self, number: u16, id: SessionId) {
        if self.end_turn(number, id) {
            let turns = self.session(number, id).map(|session| session.turns.clone()).unwrap_or_default();
            self.checks.acknowledged(id, number, turns);
        }
    }

    fn end_turn(&mut self, number: u16, id: SessionId) -> bool {
        let Some(session) = self.session(number, id) else { return false };
        let Some(turn) = session.turn.take() else { return false };
        session.turns.push(TurnLog { question: turn.question, tokens: turn.tokens });
        true
    }

    /// A session is not this node's any more.
    pub(crate) fn session_closed(&mut self, number: u16, id: SessionId) {
        let Some(query) = &mut self.node_mut(number).query else { return };
        if query.sessions.remove(&id).is_some_and(|session| session.is_asked()) {
            self.checks.refused("another node has the session");
        }
    }

    /// Tells the supervisor that a move is followed, as soon as no step is under way that goes where the block was.
    pub(crate) fn tell_between_steps(&mut self, number: u16, request: SupervisorRequest, until: Duration) {
        let Some(query) = &mut self.node_mut(number).query else { return };
        query.switches.push((request, until));
        self.switched_between_steps(number);
    }

    fn switched_between_steps(&mut self, number: u16) {
        let Some(query) = &mut self.node_mut(number).query else { return };
        let is_under_way = |session: &Session| {
            session.turn.as_ref().is_some_and(|turn| matches!(turn.waits, Waits::Replies { .. }))
        };
        if query.sessions.values().any(is_under_way) {
            return;
        }
        for (request, until) in std::mem::take(&mut query.switches) {
            self.tell(number, request, until);
        }
    }
}

/// Sessions of a node that answer now.
pub(crate) fn answering(sessions: &BTreeMap<SessionId, Session>) -> usize {
    sessions.values().filter(|session| session.is_asked()).count()
}
