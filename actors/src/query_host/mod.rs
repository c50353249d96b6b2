//! The query host: an actor that owns a device thread, which owns the sessions. The actor only hands work over; how turns
//! share the thread is in [`device`], what a turn does in [`crate::path::query`].

mod device;

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use stellate_kernels::KvShape;
use stellate_runtime::clock::Clock;

use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::context_host::ContextHostHandle;
use crate::device_thread::{DeviceThread, RETRY};
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
#[derive(Debug, RactorMessage)]
pub enum QueryHostMsg {
    /// Compute a block of an `exact` context.
    EncodeExact(ExactJob, RpcReplyPort<Result<BudgetedBlock, EncodeError>>),
    /// Open a session over a context.
    Open(Arc<EncodedContext>, Prompting, RpcReplyPort<Result<SessionLease, SessionError>>),
    /// Answer a question. What goes wrong is told in the answer's own stream.
    Ask(SessionId, TurnRequest),
    /// The log of a session; nothing if it is closed.
    Turns(SessionId, RpcReplyPort<Vec<TurnRecord>>),
    /// Close a session.
    Close(SessionId),
    /// Hand over closes that found the queue full.
    Retry,
}

/// Keeps a session open: dropped, also on its way to who asked for it, it has the session closed.
#[derive(Debug)]
pub struct SessionLease {
    session: SessionId,
    query: ActorRef<QueryHostMsg>,
}

impl SessionLease {
    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }
}

impl Drop for SessionLease {
    fn drop(&mut self) {
        // A query host that is gone has no sessions.
        let _ = self.query.cast(QueryHostMsg::Close(self.session));
    }
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

impl Actor for QueryHost {
    type Msg = QueryHostMsg;
    type State = DeviceThread<QueryHostMsg>;
    type Arguments = (QueryHostArgs, Arc<KvBudget>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (args, budget): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let thread = DeviceThread::spawn("stellate-query".to_owned(), args.queue_jobs, move |jobs, stop| {
            device::Device::new(args, budget, myself, stop).run(jobs);
        });
        Ok(thread?)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: QueryHostMsg,
        thread: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if hand_over(thread, message) {
            drop(myself.send_after(RETRY, || QueryHostMsg::Retry));
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<Self::Msg>,
        thread: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        thread.stop().await
    }
}

/// Hands a message to the device thread, or refuses it if the queue is full; a close is kept instead. Tells whether one
/// was just kept or is still kept by a retry.
fn hand_over(thread: &mut DeviceThread<QueryHostMsg>, message: QueryHostMsg) -> bool {
    let queue = thread.queue_jobs();
    let message = match message {
        QueryHostMsg::Retry => return thread.retry(),
        message => thread.offer(message),
    };
    match message {
        // Without a reply the asker of a log learns that there is none.
        Ok(()) | Err(QueryHostMsg::Retry | QueryHostMsg::Turns(..)) => {}
        Err(QueryHostMsg::EncodeExact(_, reply)) => {
            drop(reply.send(Err(EncodeError::Overloaded { queue })));
        }
        Err(QueryHostMsg::Open(_, _, reply)) => drop(reply.send(Err(SessionError::Overloaded { queue }))),
        Err(QueryHostMsg::Ask(_, request)) => {
            drop(request.events.try_send(Err(AskError::Overloaded { queue })));
        }
        Err(close @ QueryHostMsg::Close(_)) => {
            thread.keep(close);
            return true;
        }
    }
    false
}
