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
use crate::disk::Write;
use crate::message::{Message, Purpose, Timer};
use crate::mutation::Mutation;
use crate::node::node_of;
use crate::query::part;
use crate::world::World;

/// Times that one step may be asked again, each after a heal that succeeded.
const MAX_RETRIES: u32 = 4;

/// How long a host may take to attend.
const ATTEND: Duration = Duration::from_secs(10);

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
    /// For the disk.
    Disk(u64),
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
    /// The sessions over a context that has just been made: each is there once it is on the disk.
    pub(crate) fn open_sessions(&mut self, number: u16, context: ContextId) {
        for _ in 0..self.chance.between(1, 2) {
            let id = SessionId(self.name());
            match self.write(number, Write::Session(id, context)) {
                None => self.checks.refused("the disk is full"),
                Some(write) => {
                    if let Some(query) = &mut self.node_mut(number).query {
                        query.opening.push((write, id, context));
                    }
                }
            }
        }
    }

    /// Sessions may be on the disk now.
    pub(crate) fn sessions_kept(&mut self, number: u16, write: u64) {
        let Some(query) = &mut self.node_mut(number).query else { return };
        let opened: Vec<_> = query.opening.extract_if(.., |(at, ..)| *at <= write).collect();
        for (_, id, context) in opened {
            let Some(query) = &mut self.node_mut(number).query else { return };
            // Given up meanwhile, with its context.
            if query.contexts.contains_key(&context) {
                query.sessions.insert(id, Session::new(context, Vec::new()));
                self.checks.opened(id, number);
            }
        }
    }

    /// A session is asked. Whether it takes the question.
    pub(crate) fn ask_session(&mut self, number: u16, id: SessionId, tokens: u64) -> bool {
        let (question, step) = (self.chance.word(), self.name());
        let Some(query) = &mut self.node_mut(number).query else { return false };
        let Some(session) = query.sessions.get_mut(&id).filter(|session| session.turn.is_none()) else {
            return false;
        };
        session.turn = Some(Turn {
            question,
            wanted: tokens,
            tokens: Vec::new(),
            retries: 0,
            step,
            waits: Waits::Nothing,
        });
        self.checks.asked();
        self.advance(number, id);
        true
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

    /// A turn is over: it is written down, and acknowledged once it is on the disk.
    fn finish(&mut self, number: u16, id: SessionId) {
        let ignores = self.has(Mutation::IgnoreFullDisk);
        let Some(query) = &mut self.node_mut(number).query else { return };
        let Some(session) = query.sessions.get_mut(&id) else { return };
        let Some(turn) = &session.turn else { return };
        let log = TurnLog { question: turn.question, tokens: turn.tokens.clone() };
        let index = session.turns.len();
        match self.write(number, Write::Turn(id, index, log)) {
            Some(write) => {
                let session = self.session(number, id).expect("just looked at");
                session.turn.as_mut().expect("just looked at").waits = Waits::Disk(write);
            }
            None if ignores => self.acknowledge(number, id),
            None => {
                self.session(number, id).expect("just looked at").turn = None;
                self.checks.refused("the disk is full");
            }
        }
    }

    fn session(&mut self, number: u16, id: SessionId) -> Option<&mut Session> {
        self.node_mut(number).query.as_mut()?.sessions.get_mut(&id)
    }

    /// Turns may be on the disk now.
    pub(crate) fn turns_kept(&mut self, number: u16, write: u64) {
        let Some(query) = &self.node(number).query else { return };
        let is_kept = |session: &Session| {
            session.turn.as_ref().is_some_and(|turn| matches!(turn.waits, Waits::Disk(at) if at <= write))
        };
        let kept: Vec<_> = query.sessions.iter().filter(|(_, s)| is_kept(s)).map(|(&id, _)| id).collect();
        for id in kept {
            self.acknowledge(number, id);
        }
    }

    fn acknowledge(&mut self, number: u16, id: SessionId) {
        let Some(session) = self.session(number, id) else { return };
        let Some(turn) = session.turn.take() else { return };
        let log = TurnLog { question: turn.question, tokens: turn.tokens };
        session.turns.push(log.clone());
        self.checks.acknowledged(id, log);
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
