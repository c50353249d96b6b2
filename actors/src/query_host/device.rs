//! The query host's device thread: it owns the sessions and computes. Turns share it fairly: each that has something to do
//! takes one step (a chunk of a question or a token of an answer) a round, and so does the `exact` block under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use ractor::{ActorRef, RpcReplyPort};
use stellate_runtime::clock::Clock;

use super::slot::{Means, Slot, routes};
use super::{Errand, Errands, ExactJob, OpenSession, QueryHostArgs, QueryHostMsg, SessionLease};
use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::catalogue::Catalogue;
use crate::directory::Directory;
use crate::engine::Engine;
use crate::error::{AskError, EncodeError, SessionError};
use crate::fanout::{Fanout, FanoutError};
use crate::journal::JournalError;
use crate::link::HostId;
use crate::manifest::{ContextId, Manifest};
use crate::path::context::{EncodedContext, ExactEncoder};
use crate::path::query::{Step, TurnRequest};
use crate::progress::EncodeMeter;
use crate::prompt::Prompter;
use crate::session::{SessionId, SessionState};
use crate::supervisor::Placement;
use crate::tail::Tail;
use crate::whereabouts::{Moved, Whereabouts};

/// How long the thread rests when every turn waits for its listener or for its context: far below what a listener notices.
const LISTENER_POLL: Duration = Duration::from_millis(1);

/// The state of a query host, all of it on its own thread.
#[derive(Debug)]
pub(super) struct Device {
    engine: Engine,
    prompter: Arc<Prompter>,
    clock: Arc<dyn Clock>,
    hosts: Arc<Directory>,
    contexts: Arc<Catalogue>,
    errands: Errands,
    is_durable: bool,
    budget: Arc<KvBudget>,
    max_sessions: usize,
    actor: ActorRef<QueryHostMsg>,
    stop: CancelToken,
    sessions: BTreeMap<SessionId, Slot>,
    next_session: u64,
    healing: BTreeSet<ContextId>,
    exact: VecDeque<Exact>,
}

/// An `exact` block being computed.
#[derive(Debug)]
struct Exact {
    encoder: ExactEncoder,
    route: ExactRoute,
    meter: EncodeMeter,
    cancel: CancelToken,
    reply: RpcReplyPort<Result<BudgetedBlock, EncodeError>>,
}

/// The blocks before an `exact` block, and where they lay when the way to them was last looked up.
#[derive(Debug)]
struct ExactRoute {
    manifest: Arc<Manifest>,
    whereabouts: Arc<Whereabouts>,
    index: usize,
    version: u64,
}

impl ExactRoute {
    fn fanout(&mut self, hosts: &Directory) -> Result<Fanout, FanoutError> {
        let places = self.whereabouts.now();
        self.version = places.version;
        let routes = routes(hosts, &self.manifest, &places, self.index)?;
        Ok(Fanout::in_block_order(routes, self.manifest.cover(self.index)))
    }
}

impl Device {
    pub(super) fn new(
        args: QueryHostArgs,
        budget: Arc<KvBudget>,
        actor: ActorRef<QueryHostMsg>,
        stop: CancelToken,
    ) -> Self {
        Self {
            engine: args.engine,
            prompter: args.prompter,
            clock: args.clock,
            hosts: args.hosts,
            contexts: args.contexts,
            errands: args.errands,
            is_durable: args.is_durable,
            budget,
            max_sessions: args.max_sessions,
            actor,
            stop,
            sessions: BTreeMap::new(),
            next_session: 1,
            healing: BTreeSet::new(),
            exact: VecDeque::new(),
        }
    }

    /// Works until the actor is gone.
    pub(super) fn run(mut self, work: &Receiver<QueryHostMsg>) {
        tracing::debug!(backend = self.engine.backend.name(), "query host started");
        self.engine.backend.attach();
        while !self.stop.is_cancelled() {
            while let Ok(message) = work.try_recv() {
                self.handle(message);
            }
            let has_exact = self.advance_exact();
            let message = match self.step_turns() {
                Some(Step::Waiting) if !has_exact => work.recv_timeout(LISTENER_POLL),
                None if !has_exact => work.recv().map_err(|_| RecvTimeoutError::Disconnected),
                _ => continue,
            };
            match message {
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn handle(&mut self, message: QueryHostMsg) {
        match message {
            QueryHostMsg::EncodeExact(job, reply) => self.begin_exact(job, reply),
            QueryHostMsg::Open(request, reply) => drop(reply.send(self.open(request))),
            QueryHostMsg::Ask(session, request) => self.ask(session, request),
            QueryHostMsg::Turns(session, reply) => {
                let turns = self.sessions.get(&session).map(|slot| slot.session().turns().to_vec());
                drop(reply.send(turns.unwrap_or_default()));
            }
            QueryHostMsg::IsOpen(session, reply) => drop(reply.send(self.sessions.contains_key(&session))),
            QueryHostMsg::Close(session) => {
                if self.sessions.get_mut(&session).is_some_and(Slot::close) {
                    self.sessions.remove(&session);
                }
            }
            QueryHostMsg::Moved(moved, reply) => {
                self.switch(&moved);
                drop(reply.send(()));
            }
            QueryHostMsg::Heal(context, suspects) => self.heal(context, suspects),
            QueryHostMsg::Rerouted(context, placement) => self.reroute(&context, placement),
            QueryHostMsg::Written(session, outcome) => self.written(session, outcome),
            QueryHostMsg::Retry => {}
        }
    }

    fn open(&mut self, request: OpenSession) -> Result<SessionLease, SessionError> {
        let OpenSession { context, id, turns } = request;
        if self.sessions.len() >= self.max_sessions {
            return Err(SessionError::TooMany { max_sessions: self.max_sessions });
        }
        let id = id.unwrap_or(SessionId(self.next_session));
        if self.sessions.contains_key(&id) {
            return Err(SessionError::AlreadyOpen { session: id });
        }
        self.next_session = self.next_session.max(id.0 + 1);
        let session = SessionState::new(context, Tail::growing(Arc::clone(&self.budget)), turns);
        self.sessions.insert(id, Slot::new(id, session));
        Ok(SessionLease { session: id, query: self.actor.clone() })
    }

    fn ask(&mut self, session: SessionId, request: TurnRequest) {
        let events = request.events.clone();
        let asked = self.with_sessions(|sessions, means| match sessions.get_mut(&session) {
            None => Err(AskError::Closed),
            Some(slot) => slot.ask(request, means),
        });
        if let Err(error) = asked {
            // A stream of its own, empty so far: there is room.
            let _ = events.try_send(Err(error));
        }
    }

    /// A turn is durable, or could not be written down.
    fn written(&mut self, session: SessionId, outcome: Result<(), JournalError>) {
        let Some(slot) = self.sessions.get_mut(&session) else { return };
        let next = slot.written(outcome);
        if slot.is_closed() {
            self.sessions.remove(&session);
        }
        if let Some(request) = next {
            self.ask(session, request);
        }
    }

    /// A block lies elsewhere. No step is under way: the next ones go there.
    fn switch(&self, moved: &Moved) {
        for context in self.contexts.all() {
            if context.whereabouts.moved(&context.manifest, moved) {
                tracing::debug!(context = %context.manifest.id, ?moved, "a route is switched");
            }
        }
        for Exact { route, .. } in &self.exact {
            route.whereabouts.moved(&route.manifest, moved);
        }
    }

    /// Has a context healed that nobody asks at the moment, unless that is under way, or it was not used since the node was
    /// opened: then its blocks are encoded when they are asked for.
    fn heal(&mut self, context: ContextId, suspects: Vec<HostId>) {
        let known = self.contexts.get(context);
        let Some(known) = known.filter(|known| !known.whereabouts.now().placed.is_empty()) else { return };
        if !self.healing.contains(&context) && self.errands.try_send(Errand::Heal(known, suspects)).is_ok() {
            self.healing.insert(context);
        }
    }

    /// A context has been healed, or not: the turns that waited go on, or end.
    fn reroute(&mut self, context: &Arc<EncodedContext>, placement: Result<Placement, Arc<EncodeError>>) {
        self.healing.remove(&context.manifest.id);
        let failed = match placement {
            Ok(Placement { placed, at, .. }) => {
                context.whereabouts.set(&context.manifest, placed, at);
                None
            }
            Err(error) => Some(error),
        };
        self.sessions.values_mut().for_each(|slot| slot.healed(context, failed.as_ref()));
    }

    /// One step of every turn. Tells the liveliest outcome, or `None` if there is nothing to do before a message comes.
    fn step_turns(&mut self) -> Option<Step> {
        self.with_sessions(|sessions, means| {
            let steps = sessions.values_mut().filter_map(|slot| slot.step(means));
            steps.reduce(|a, b| if a == Step::Waiting { b } else { a })
        })
    }

    fn with_sessions<T>(
        &mut self,
        act: impl FnOnce(&mut BTreeMap<SessionId, Slot>, &mut Means<'_>) -> T,
    ) -> T {
        let mut means = Means {
            engine: &mut self.engine,
            prompter: &self.prompter,
            clock: &*self.clock,
            hosts: &self.hosts,
            errands: &self.errands,
            is_durable: self.is_durable,
            healing: &mut self.healing,
        };
        act(&mut self.sessions, &mut means)
    }

    fn begin_exact(&mut self, job: ExactJob, reply: RpcReplyPort<Result<BudgetedBlock, EncodeError>>) {
        let ExactJob { manifest, whereabouts, index, room, meter, cancel } = job;
        let mut route = ExactRoute { manifest, whereabouts, index, version: 0 };
        let fanout = match route.fanout(&self.hosts) {
            Ok(fanout) => fanout,
            Err(error) => return drop(reply.send(Err(error.into()))),
        };
        let range = route.manifest.blocks[index].range.clone();
        let encoder = ExactEncoder::new(Arc::clone(&route.manifest.ids), range, fanout, room);
        self.exact.push_back(Exact { encoder, route, meter, cancel, reply });
    }

    /// One chunk of the `exact` block under way. Tells whether there was one.
    fn advance_exact(&mut self) -> bool {
        let Some(mut exact) = self.exact.pop_front() else { return false };
        if exact.cancel.is_cancelled() {
            drop(exact.reply.send(Err(EncodeError::Cancelled)));
            return true;
        }
        match self.step_exact(&mut exact) {
            Ok(tokens) => exact.meter.encoded(tokens),
            Err(error) => {
                drop(exact.reply.send(Err(error.into())));
                return true;
            }
        }
        if exact.encoder.is_done() {
            drop(exact.reply.send(Ok(exact.encoder.seal())));
        } else {
            self.exact.push_front(exact);
        }
        true
    }

    fn step_exact(&mut self, exact: &mut Exact) -> Result<usize, FanoutError> {
        if exact.route.whereabouts.version() != exact.route.version {
            exact.encoder.reroute(exact.route.fanout(&self.hosts)?);
        }
        exact.encoder.step(&mut self.engine)
    }
}
