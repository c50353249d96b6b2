//! The query host's device thread: it owns the sessions and computes. Turns share it fairly: each that has something to do
//! takes one step (a chunk of a question or a token of an answer) a round, and so does the `exact` block under way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use ractor::{ActorRef, RpcReplyPort};
use stellate_model::block::BlockId;
use stellate_runtime::clock::Clock;

use super::{ExactJob, QueryHostArgs, QueryHostMsg, SessionLease};
use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::context_host::ContextHostHandle;
use crate::engine::Engine;
use crate::error::{AskError, EncodeError, SessionError};
use crate::fanout::{Fanout, Route};
use crate::link::HostId;
use crate::manifest::Manifest;
use crate::path::context::{EncodedContext, ExactEncoder};
use crate::path::query::{Step, TurnRequest, TurnRun};
use crate::prompt::{Prompter, Prompting};
use crate::session::{SessionId, SessionState};
use crate::tail::Tail;

/// How long the thread rests when every turn waits for its listener: far below what a listener notices.
const LISTENER_POLL: Duration = Duration::from_millis(1);

/// The state of a query host, all of it on its own thread.
#[derive(Debug)]
pub(super) struct Device {
    engine: Engine,
    prompter: Arc<Prompter>,
    clock: Arc<dyn Clock>,
    hosts: BTreeMap<HostId, ContextHostHandle>,
    budget: Arc<KvBudget>,
    max_sessions: usize,
    actor: ActorRef<QueryHostMsg>,
    stop: CancelToken,
    sessions: BTreeMap<SessionId, Slot>,
    next_session: u64,
    exact: VecDeque<Exact>,
}

/// A session and the turn that it answers.
#[derive(Debug)]
struct Slot {
    session: SessionState,
    run: Option<TurnRun>,
}

/// An `exact` block being computed.
#[derive(Debug)]
struct Exact {
    encoder: ExactEncoder,
    job: ExactProgress,
    reply: RpcReplyPort<Result<BudgetedBlock, EncodeError>>,
}

#[derive(Debug)]
struct ExactProgress {
    meter: crate::progress::EncodeMeter,
    cancel: CancelToken,
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
            hosts: args.hosts.into_iter().map(|host| (host.host, host)).collect(),
            budget,
            max_sessions: args.max_sessions,
            actor,
            stop,
            sessions: BTreeMap::new(),
            next_session: 1,
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
                Some(Step::Again | Step::Ended) => continue,
                _ if has_exact => continue,
                Some(Step::Waiting) => work.recv_timeout(LISTENER_POLL),
                None => work.recv().map_err(|_| RecvTimeoutError::Disconnected),
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
            QueryHostMsg::Open(context, prompting, reply) => drop(reply.send(self.open(context, prompting))),
            QueryHostMsg::Ask(session, request) => self.ask(session, request),
            QueryHostMsg::Turns(session, reply) => {
                let turns = self.sessions.get(&session).map(|slot| slot.session.turns().to_vec());
                drop(reply.send(turns.unwrap_or_default()));
            }
            QueryHostMsg::Close(session) => {
                if let Some(Slot { mut session, run: Some(mut run) }) = self.sessions.remove(&session) {
                    run.fail(&mut session, AskError::Closed);
                }
            }
            QueryHostMsg::Retry => {}
        }
    }

    fn open(
        &mut self,
        context: Arc<EncodedContext>,
        prompting: Prompting,
    ) -> Result<SessionLease, SessionError> {
        if self.sessions.len() >= self.max_sessions {
            return Err(SessionError::TooMany { max_sessions: self.max_sessions });
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let manifest = &context.manifest;
        let blocks = manifest.blocks.len();
        let fanout = Fanout::new(self.routes(manifest, blocks), manifest.cover(blocks));
        let tail = Tail::growing(Arc::clone(&self.budget));
        let session = SessionState::new(context, prompting, fanout, tail);
        self.sessions.insert(id, Slot { session, run: None });
        Ok(SessionLease { session: id, query: self.actor.clone() })
    }

    /// The routes to the first `blocks` blocks of a context.
    fn routes(&self, manifest: &Manifest, blocks: usize) -> Vec<Route> {
        let route = |(host, blocks): (HostId, Vec<BlockId>)| Route {
            link: Box::new(self.hosts[&host].link()),
            blocks: blocks.into(),
        };
        manifest.by_host(blocks).into_iter().map(route).collect()
    }

    fn ask(&mut self, session: SessionId, request: TurnRequest) {
        let events = request.events.clone();
        let begun = match self.sessions.get_mut(&session) {
            None => Err(AskError::Closed),
            Some(slot) => {
                // The listener of a cancelled turn may ask again before the thread came round to notice.
                if slot.run.as_ref().is_some_and(TurnRun::is_cancelled) {
                    slot.step(&mut self.engine, &self.prompter, &*self.clock);
                }
                slot.begin(request, &self.prompter, &self.engine)
            }
        };
        if let Err(error) = begun {
            // A stream of its own, empty so far: there is room.
            let _ = events.try_send(Err(error));
        }
    }

    /// One step of every turn. Tells the liveliest outcome, or `None` without a turn.
    fn step_turns(&mut self) -> Option<Step> {
        let (engine, prompter, clock) = (&mut self.engine, &self.prompter, &*self.clock);
        let steps = self.sessions.values_mut().filter_map(|slot| slot.step(engine, prompter, clock));
        steps.reduce(|a, b| if a == Step::Waiting { b } else { a })
    }

    fn begin_exact(&mut self, job: ExactJob, reply: RpcReplyPort<Result<BudgetedBlock, EncodeError>>) {
        let ExactJob { manifest, index, room, meter, cancel } = job;
        let fanout = Fanout::in_block_order(self.routes(&manifest, index), manifest.cover(index));
        let range = manifest.blocks[index].range.clone();
        let encoder = ExactEncoder::new(Arc::clone(&manifest.ids), range, fanout, room);
        self.exact.push_back(Exact { encoder, job: ExactProgress { meter, cancel }, reply });
    }

    /// One chunk of the `exact` block under way. Tells whether there was one.
    fn advance_exact(&mut self) -> bool {
        let Some(Exact { mut encoder, job, reply }) = self.exact.pop_front() else { return false };
        if job.cancel.is_cancelled() {
            drop(reply.send(Err(EncodeError::Cancelled)));
            return true;
        }
        match encoder.step(&mut self.engine) {
            Ok(tokens) => job.meter.encoded(tokens),
            Err(error) => {
                drop(reply.send(Err(error.into())));
                return true;
            }
        }
        if encoder.is_done() {
            drop(reply.send(Ok(encoder.seal())));
        } else {
            self.exact.push_front(Exact { encoder, job, reply });
        }
        true
    }
}

impl Slot {
    fn begin(&mut self, request: TurnRequest, prompter: &Prompter, engine: &Engine) -> Result<(), AskError> {
        if self.run.is_some() {
            return Err(AskError::Busy);
        }
        self.run = Some(TurnRun::begin(request, &self.session, prompter, engine)?);
        Ok(())
    }

    fn step(&mut self, engine: &mut Engine, prompter: &Prompter, clock: &dyn Clock) -> Option<Step> {
        let step = self.run.as_mut()?.step(engine, &mut self.session, prompter, clock);
        if step == Step::Ended {
            self.run = None;
        }
        Some(step)
    }
}
