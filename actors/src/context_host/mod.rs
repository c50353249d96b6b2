//! The context host: an actor that owns a device thread, which owns the keys and values of blocks. The actor only hands
//! work over, so that its mailbox stays free; what is done with the work is in [`device`], how a block is encoded in
//! [`crate::path::context`].

mod device;

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, TrySendError, bounded};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use stellate_kernels::KvShape;
use stellate_model::block::BlockId;

use crate::budget::{BudgetedBlock, KvBudget, StoreFull};
use crate::cancel::CancelToken;
use crate::engine::Engine;
use crate::link::{AttendJob, HostId, LocalLink};
use crate::path::context::Anchor;
use crate::progress::EncodeMeter;

/// Attention jobs that may wait for a context host: more than the sessions that a query host steps side by side.
const ATTEND_QUEUE: usize = 256;

/// Why a context host did not do its part. What it holds is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Its store has no room.
    #[error(transparent)]
    Full(StoreFull),
    /// Its queue has no room.
    #[error("context host {host} is overloaded ({queue} jobs wait); ask again in a moment")]
    Overloaded {
        /// The host.
        host: HostId,
        /// The bound of its queue.
        queue: usize,
    },
    /// The work was cancelled.
    #[error("the work was cancelled")]
    Cancelled,
}

/// A block to encode.
#[derive(Debug)]
pub struct EncodeJob {
    /// Its address.
    pub id: BlockId,
    /// Its tokens.
    pub ids: Arc<[u32]>,
    /// The position of its first token in the context.
    pub position: usize,
    /// The anchor that it stands behind.
    pub anchor: Option<Anchor>,
    /// Computes the anchor again, as the paper does, instead of once per host.
    pub recompute_anchor: bool,
    /// Counts the tokens done.
    pub meter: EncodeMeter,
    /// Ends the work between two chunks.
    pub cancel: CancelToken,
}

/// What became of an [`EncodeJob`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// The host held the block already.
    Held,
    /// The block was encoded.
    Fresh,
}

/// Room for a block that is computed elsewhere.
#[derive(Debug)]
pub enum Reserved {
    /// The host holds the block already.
    Held,
    /// An empty block of the host's store, to be filled and sealed.
    Room(BudgetedBlock),
}

/// What a context host is asked. Tensors come and go another way: see [`crate::link`].
#[derive(Debug)]
pub enum ContextHostMsg {
    /// Encode a block, unless it is held.
    Encode(EncodeJob, RpcReplyPort<Result<Encoded, HostError>>),
    /// Make room for a block of so many tokens, unless it is held.
    Reserve(BlockId, usize, RpcReplyPort<Result<Reserved, HostError>>),
    /// Hold a block that was computed elsewhere.
    Seal(BlockId, BudgetedBlock, RpcReplyPort<Result<(), HostError>>),
    /// Let go of blocks that no context needs any more.
    Release(Vec<BlockId>),
}

/// What a context host starts with.
#[derive(Debug)]
pub struct ContextHostArgs {
    /// Its number in the node.
    pub host: HostId,
    /// What it computes with; moves to its device thread.
    pub engine: Engine,
    /// The shape of its blocks.
    pub kv_shape: KvShape,
    /// Bytes of keys and values that it may hold.
    pub capacity_bytes: usize,
    /// Jobs that may wait for it.
    pub queue_jobs: usize,
}

/// A context host that runs: the actor, and the ways past its mailbox.
#[derive(Clone, Debug)]
pub struct ContextHostHandle {
    /// Its number in the node.
    pub host: HostId,
    /// Where work is asked for.
    pub actor: ActorRef<ContextHostMsg>,
    /// Its store, to read its fill from.
    pub budget: Arc<KvBudget>,
    attends: Sender<AttendJob>,
}

impl ContextHostHandle {
    /// A link for attention over this host's blocks.
    pub fn link(&self) -> LocalLink {
        LocalLink::new(self.host, self.attends.clone())
    }
}

/// Starts a context host.
pub async fn start(args: ContextHostArgs) -> Result<ContextHostHandle, ractor::SpawnErr> {
    let (attends, attend_jobs) = bounded(ATTEND_QUEUE);
    let budget = KvBudget::new(args.kv_shape, args.capacity_bytes);
    let host = args.host;
    let start = Start { args, budget: Arc::clone(&budget), attend_jobs };
    let (actor, _) = Actor::spawn(None, ContextHost, start).await?;
    Ok(ContextHostHandle { host, actor, budget, attends })
}

struct Start {
    args: ContextHostArgs,
    budget: Arc<KvBudget>,
    attend_jobs: crossbeam_channel::Receiver<AttendJob>,
}

struct ContextHost;

struct State {
    host: HostId,
    queue_jobs: usize,
    stop: CancelToken,
    released: Vec<BlockId>,
    work: Option<Sender<ContextHostMsg>>,
    thread: Option<JoinHandle<()>>,
}

impl Actor for ContextHost {
    type Msg = ContextHostMsg;
    type State = State;
    type Arguments = Start;

    async fn pre_start(&self, _: ActorRef<Self::Msg>, start: Start) -> Result<State, ActorProcessingErr> {
        let Start { args, budget, attend_jobs } = start;
        let (work, jobs) = bounded(args.queue_jobs.max(1));
        let stop = CancelToken::default();
        let device = device::Device::new(args.host, args.engine, budget, stop.clone());
        let thread = std::thread::Builder::new()
            .name(format!("stellate-{}", args.host))
            .spawn(move || device.run(&attend_jobs, &jobs))?;
        Ok(State {
            host: args.host,
            queue_jobs: args.queue_jobs,
            stop,
            released: Vec::new(),
            work: Some(work),
            thread: Some(thread),
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: ContextHostMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.hand_over(message);
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Self::Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.stop.cancel();
        state.work = None;
        if let Some(thread) = state.thread.take() {
            // The thread ends after the chunk under way; nothing on this runtime waits for it meanwhile.
            tokio::task::spawn_blocking(move || thread.join())
                .await?
                .map_err(|_| "the device thread panicked")?;
        }
        Ok(())
    }
}

impl State {
    /// Hands a message to the device thread, or refuses it if the queue is full. Releases are never lost and never
    /// overtaken: those that found the queue full go before the next message.
    fn hand_over(&mut self, message: ContextHostMsg) {
        if !self.released.is_empty() {
            let released = std::mem::take(&mut self.released);
            self.offer(ContextHostMsg::Release(released));
        }
        if self.released.is_empty() {
            self.offer(message);
        } else {
            self.refuse(message);
        }
    }

    fn offer(&mut self, message: ContextHostMsg) {
        let Some(work) = &self.work else { return };
        // A thread that is gone drops the message, and with it the reply port: the asker is told.
        if let Err(TrySendError::Full(message)) = work.try_send(message) {
            self.refuse(message);
        }
    }

    fn refuse(&mut self, message: ContextHostMsg) {
        let error = HostError::Overloaded { host: self.host, queue: self.queue_jobs };
        match message {
            ContextHostMsg::Encode(_, reply) => drop(reply.send(Err(error))),
            ContextHostMsg::Reserve(_, _, reply) => drop(reply.send(Err(error))),
            ContextHostMsg::Seal(_, _, reply) => drop(reply.send(Err(error))),
            ContextHostMsg::Release(ids) => self.released.extend(ids),
        }
    }
}
