//! The query host: an actor that owns a device thread, which owns the sessions. The actor only hands work over; how turns
//! share the thread is in [`device`], what a session does there in [`slot`], what a turn does in [`crate::path::query`].
//! What takes its time elsewhere (a context to be healed, a turn to be written down) is done by [`mod@errands`].

mod device;
mod errands;
mod slot;

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use stellate_kernels::KvShape;
use stellate_runtime::clock::Clock;

use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::catalogue::Catalogue;
use crate::device_thread::{DeviceThread, RETRY};
use crate::directory::Directory;
use crate::engine::Engine;
use crate::error::{AskError, EncodeError, SessionError};
use crate::journal::JournalError;
use crate::link::HostId;
use crate::manifest::{ContextId, Manifest};
use crate::path::context::EncodedContext;
use crate::path::query::TurnRequest;
use crate::progress::EncodeMeter;
use crate::prompt::Prompter;
use crate::session::{SessionId, TurnRecord};
use crate::supervisor::Placement;
use crate::whereabouts::{Moved, Whereabouts};

pub use errands::{Errand, Errands, errands, run_errands};

/// A block of an `exact` context, to be computed along the path of a query token.
#[derive(Debug)]
pub struct ExactJob {
    /// The context.
    pub manifest: Arc<Manifest>,
    /// Where the blocks before it lie.
    pub whereabouts: Arc<Whereabouts>,
    /// Which of its blocks.
    pub index: usize,
    /// Room for it, of the store of the host that will hold it.
    pub room: BudgetedBlock,
    /// Counts the tokens done.
    pub meter: EncodeMeter,
    /// Ends the work between two chunks.
    pub cancel: CancelToken,
}

/// A session to open.
#[derive(Debug)]
pub struct OpenSession {
    /// What it is over.
    pub context: Arc<EncodedContext>,
    /// Its name, if it has one already; else the query host names it.
    pub id: Option<SessionId>,
    /// What was asked and answered in it before.
    pub turns: Vec<TurnRecord>,
}

/// What a query host is asked.
#[derive(Debug, RactorMessage)]
pub enum QueryHostMsg {
    /// Compute a block of an `exact` context.
    EncodeExact(ExactJob, RpcReplyPort<Result<BudgetedBlock, EncodeError>>),
    /// Open a session over a context.
    Open(OpenSession, RpcReplyPort<Result<SessionLease, SessionError>>),
    /// Answer a question. What goes wrong is told in the answer's own stream.
    Ask(SessionId, TurnRequest),
    /// The log of a session; nothing if it is closed.
    Turns(SessionId, RpcReplyPort<Vec<TurnRecord>>),
    /// Whether a session is open.
    IsOpen(SessionId, RpcReplyPort<bool>),
    /// Close a session.
    Close(SessionId),
    /// A block lies elsewhere. Answered when no step asks for it in its old place any more.
    Moved(Moved, RpcReplyPort<()>),
    /// Blocks of a context are lost, on these hosts among others: bring it back, as if a step had failed.
    Heal(ContextId, Vec<HostId>),
    /// A context's blocks lie so from now on, or could not be brought back.
    Rerouted(Arc<EncodedContext>, Result<Placement, Arc<EncodeError>>),
    /// The last turn of a session is durable, or could not be written down.
    Written(SessionId, Result<(), JournalError>),
    /// Hand over messages that found the queue full.
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
    pub hosts: Arc<Directory>,
    /// The contexts of the node.
    pub contexts: Arc<Catalogue>,
    /// What is to be done elsewhere.
    pub errands: Errands,
    /// Whether a turn ends only once it is written down.
    pub is_durable: bool,
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

/// Hands a message to the device thread, or refuses it if the queue is full; what must not be lost is kept instead: at most
/// a few messages for each session. Tells whether one was just kept or is still kept by a retry.
fn hand_over(thread: &mut DeviceThread<QueryHostMsg>, message: QueryHostMsg) -> bool {
    let queue = thread.queue_jobs();
    let message = match message {
        QueryHostMsg::Retry => return thread.retry(),
        message => thread.offer(message),
    };
    match message {
        // Without a reply the asker of a log learns that there is none.
        // Nor is a move acknowledged: who misses it asks in the old place, and heals; so does who misses a loss.
        Ok(())
        | Err(
            QueryHostMsg::Retry
            | QueryHostMsg::Turns(..)
            | QueryHostMsg::IsOpen(..)
            | QueryHostMsg::Moved(..)
            | QueryHostMsg::Heal(..),
        ) => {}
        Err(QueryHostMsg::EncodeExact(_, reply)) => {
            drop(reply.send(Err(EncodeError::Overloaded { queue })));
        }
        Err(QueryHostMsg::Open(_, reply)) => drop(reply.send(Err(SessionError::Overloaded { queue }))),
        Err(QueryHostMsg::Ask(_, request)) => {
            drop(request.events.try_send(Err(AskError::Overloaded { queue })));
        }
        Err(kept @ (QueryHostMsg::Close(_) | QueryHostMsg::Rerouted(..) | QueryHostMsg::Written(..))) => {
            thread.keep(kept);
            return true;
        }
    }
    false
}
