//! The query host: an actor that owns a device thread, which owns the sessions. The actor only hands work over; how turns
//! share the thread is in [`device`], what a turn does in [`crate::path::query`].

mod device;

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, TrySendError, bounded};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use stellate_kernels::KvShape;
use stellate_runtime::clock::Clock;

use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::context_host::ContextHostHandle;
use crate::engine::Engine;
use crate::error::{AskError, EncodeError, SessionError};
use crate::manifest::Manifest;
use crate::path::context::EncodedContext;
use crate::path::query::TurnRequest;
use crate::progress::EncodeMeter;
use crate::prompt::{Prompter, Prompting};
use crate::session::{SessionId, TurnRecord};

/// A block of an `exact` context, to be computed along the path of a query token.
#[derive(Debug)]
pub struct ExactJob {
    /// The context.
    pub manifest: Arc<Manifest>,
    /// Which of its blocks.
    pub index: usize,
    /// Room for it, of the store of the host that will hold it.
    pub room: BudgetedBlock,
    /// Counts the tokens done.
    pub meter: EncodeMeter,
    /// Ends the work between two chunks.
    pub cancel: CancelToken,
}

/// What a query host is asked.
#[derive(Debug)]
pub enum QueryHostMsg {
    /// Compute a block of an `exact` context.
    EncodeExact(ExactJob, RpcReplyPort<Result<BudgetedBlock, EncodeError>>),
    /// Open a session over a context.
    Open(Arc<EncodedContext>, Prompting, RpcReplyPort<Result<SessionId, SessionError>>),
    /// Answer a question. What goes wrong is told in the answer's own stream.
    Ask(SessionId, TurnRequest),
    /// The log of a session; nothing if it is closed.
    Turns(SessionId, RpcReplyPort<Vec<TurnRecord>>),
    /// Close a session.
    Close(SessionId),
}

/// What a query host starts with.
#[derive(Debug)]
pub struct QueryHostArgs {
    /// What it computes with; moves to its device thread.
    pub engine: Engine,
    /// Tokenizer and chat template.
    pub prompter: Arc<Prompter>,
    /// Measures turns.
    pub clock: Arc<dyn Clock>,
    /// The context hosts.
    pub hosts: Vec<ContextHostHandle>,
    /// The shape of the node's keys and values.
    pub kv_shape: KvShape,
    /// Bytes that the tails of all sessions may take.
    pub capacity_bytes: usize,
    /// Sessions that may be open.
    pub max_sessions: usize,
    /// Jobs that may wait for it.
    pub queue_jobs: usize,
}

/// A query host that runs.
#[derive(Clone, Debug)]
pub struct QueryHostHandle {
    /// Where work is asked for.
    pub actor: ActorRef<QueryHostMsg>,
    /// The store of its sessions' tails.
    pub budget: Arc<KvBudget>,
}

/// Starts a query host.
pub async fn start(args: QueryHostArgs) -> Result<QueryHostHandle, ractor::SpawnErr> {
    let budget = KvBudget::new(args.kv_shape, args.capacity_bytes);
    let (actor, _) = Actor::spawn(None, QueryHost, (args, Arc::clone(&budget))).await?;
    Ok(QueryHostHandle { actor, budget })
}

struct QueryHost;

struct State {
    queue_jobs: usize,
    stop: CancelToken,
    work: Option<Sender<QueryHostMsg>>,
    closed: Vec<SessionId>,
    thread: Option<JoinHandle<()>>,
}

impl Actor for QueryHost {
    type Msg = QueryHostMsg;
    type State = State;
    type Arguments = (QueryHostArgs, Arc<KvBudget>);

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        (args, budget): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let queue_jobs = args.queue_jobs.max(1);
        let (work, jobs) = bounded(queue_jobs);
        let stop = CancelToken::default();
        let device = device::Device::new(args, budget, stop.clone());
        let thread =
            std::thread::Builder::new().name("stellate-query".to_owned()).spawn(move || device.run(&jobs))?;
        Ok(State { queue_jobs, stop, work: Some(work), closed: Vec::new(), thread: Some(thread) })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: QueryHostMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        for session in std::mem::take(&mut state.closed) {
            state.offer(QueryHostMsg::Close(session));
        }
        state.offer(message);
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Self::Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.stop.cancel();
        state.work = None;
        if let Some(thread) = state.thread.take() {
            // The thread ends after the step under way; nothing on this runtime waits for it meanwhile.
            tokio::task::spawn_blocking(move || thread.join())
                .await?
                .map_err(|_| "the query thread panicked")?;
        }
        Ok(())
    }
}

impl State {
    /// Hands a message to the device thread, or refuses it if the queue is full. A close is kept for later instead.
    fn offer(&mut self, message: QueryHostMsg) {
        let Some(work) = &self.work else { return };
        // A thread that is gone drops the message, and with it the way back: the asker is told.
        let Err(TrySendError::Full(message)) = work.try_send(message) else { return };
        let queue = self.queue_jobs;
        match message {
            QueryHostMsg::EncodeExact(_, reply) => {
                drop(reply.send(Err(EncodeError::Overloaded { queue })));
            }
            QueryHostMsg::Open(_, _, reply) => drop(reply.send(Err(SessionError::Overloaded { queue }))),
            QueryHostMsg::Ask(_, request) => {
                drop(request.events.try_send(Err(AskError::Overloaded { queue })));
            }
            // Without a reply the asker learns that there is none.
            QueryHostMsg::Turns(..) => {}
            QueryHostMsg::Close(session) => self.closed.push(session),
        }
    }
}
