//! The context host: an actor over the keys and values of blocks ([`held`]) and over a device thread that computes them and
//! attends to them ([`device`]). The actor hands blocks to encode over and answers all else at once, so that nobody waits
//! behind a block that is being encoded. How a block is encoded is in [`crate::path::context`].

mod arrival;
mod device;
pub mod held;
mod port;
pub mod rate;
pub mod strip;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError, bounded};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use stellate_kernels::KvShape;
use stellate_model::block::BlockId;
use stellate_runtime::clock::Clock;

use crate::budget::{BudgetedBlock, KvBudget, StoreFull};
use crate::cancel::CancelToken;
use crate::device_thread::{DeviceThread, Inbox};
use crate::disk::Disk;
use crate::engine::Engine;
use crate::health::Vitals;
use crate::link::{AttendJob, HostId, LocalLink};
use crate::path::context::Anchor;
use crate::progress::EncodeMeter;

pub use device::EncodeWork;
use held::HeldBlocks;
use rate::Rates;

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
    #[error(
        "context host {host} is overloaded ({queue} jobs wait); ask again in {} s",
        crate::retry::QUEUE_S
    )]
    Overloaded {
        /// The host.
        host: HostId,
        /// The bound of its queue.
        queue: usize,
    },
    /// The host is gone, or the way to it broke.
    #[error(
        "context host {host} does not answer: {cause}; its blocks are encoded elsewhere when they are needed"
    )]
    Unreachable {
        /// The host.
        host: HostId,
        /// What happened.
        cause: String,
    },
    /// Its device thread makes no progress.
    #[error(
        "context host {host} is stuck; look at its device; its blocks are encoded elsewhere when they are needed"
    )]
    Stuck {
        /// The host.
        host: HostId,
    },
    /// The work was cancelled.
    #[error("the work was cancelled")]
    Cancelled,
}

/// A block to encode.
#[derive(Clone, Debug)]
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

impl EncodeJob {
    /// The blocks that a host holds when it has followed the order.
    pub(crate) fn recalled(&self) -> Vec<BlockId> {
        let anchor = self.anchor.as_ref().filter(|anchor| anchor.is_kept && !self.recompute_anchor);
        std::iter::once(self.id).chain(anchor.map(|anchor| anchor.id)).collect()
    }
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
#[derive(Debug, RactorMessage)]
pub enum ContextHostMsg {
    /// Encode a block, unless it is held.
    Encode(EncodeJob, RpcReplyPort<Result<Encoded, HostError>>),
    /// Make room for a block of so many tokens, unless it is held.
    Reserve(BlockId, usize, RpcReplyPort<Result<Reserved, HostError>>),
    /// Hold a block that was computed elsewhere.
    Seal(BlockId, BudgetedBlock, RpcReplyPort<Result<(), HostError>>),
    /// Give a block to be read elsewhere in the process, if it is held. It stays as it is until the last reader is done.
    Share(BlockId, RpcReplyPort<Result<Option<Arc<BudgetedBlock>>, HostError>>),
    /// Let go of blocks that no context needs any more.
    Release(Vec<BlockId>),
    /// Encode a block whose copy, which was on its way, has come or does not come; sent by itself.
    Resume(EncodeWork),
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
    /// How long its device thread may stand still at one piece of work before the host counts as stuck.
    pub stuck_after: Duration,
    /// Measures how fast it encodes, ends promises of room, and tells when it is stuck.
    pub clock: Arc<dyn Clock>,
    /// The disk of its node, if that has one.
    pub disk: Option<Disk>,
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
    /// What it holds: to be looked at, and to be added to by what comes from other nodes.
    pub held: Arc<HeldBlocks>,
    /// How fast it works.
    pub rates: Arc<Rates>,
    /// Whether its device thread gets on.
    pub vitals: Arc<Vitals>,
    attends: Sender<AttendJob>,
}

impl ContextHostHandle {
    /// A link for attention over this host's blocks.
    pub fn link(&self) -> LocalLink {
        LocalLink::new(self.host, self.attends.clone()).watched(Arc::clone(&self.vitals))
    }

    /// Hands over a job without waiting, or gives it back: the queue is full, or the host has stopped.
    pub fn offer(&self, job: AttendJob) -> Result<(), TrySendError<AttendJob>> {
        self.attends.try_send(job)
    }
}

/// Starts a context host.
pub async fn start(args: ContextHostArgs) -> Result<ContextHostHandle, ractor::SpawnErr> {
    let (attends, attend_jobs) = bounded(ATTEND_QUEUE);
    let budget = KvBudget::new(args.kv_shape, args.capacity_bytes);
    let host = args.host;
    let held = HeldBlocks::backed(host, Arc::clone(&budget), Arc::clone(&args.clock), args.disk.clone());
    let rates = Arc::new(Rates::default());
    let (pulse, clock) = (args.engine.pulse.clone(), Arc::clone(&args.clock));
    let vitals = Arc::new(Vitals::new(host, pulse, args.stuck_after, clock));
    let start = Start { args, held: Arc::clone(&held), rates: Arc::clone(&rates), attend_jobs };
    let (actor, _) = Actor::spawn(None, ContextHost, start).await?;
    Ok(ContextHostHandle { host, actor, budget, held, rates, vitals, attends })
}

struct Start {
    args: ContextHostArgs,
    held: Arc<HeldBlocks>,
    rates: Arc<Rates>,
    attend_jobs: crossbeam_channel::Receiver<AttendJob>,
}

struct ContextHost;

struct State {
    host: HostId,
    held: Arc<HeldBlocks>,
    thread: DeviceThread<EncodeWork>,
}

impl Actor for ContextHost {
    type Msg = ContextHostMsg;
    type State = State;
    type Arguments = Start;

    async fn pre_start(&self, _: ActorRef<Self::Msg>, start: Start) -> Result<State, ActorProcessingErr> {
        let Start { args, held, rates, attend_jobs } = start;
        let ContextHostArgs { host, engine, queue_jobs, clock, .. } = args;
        let shared = Arc::clone(&held);
        let thread = DeviceThread::spawn(format!("stellate-{host}"), queue_jobs, move |jobs, stop| {
            let attend_jobs = Inbox(attend_jobs);
            device::Device::new(host, engine, shared, (rates, clock), stop).run(&attend_jobs.0, jobs);
        })?;
        Ok(State { host, held, thread })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: ContextHostMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ContextHostMsg::Encode(job, reply) => {
                // What is on the disk is waited for as a copy is.
                drop(state.held.recall(&job.recalled()));
                state.encode(&myself, EncodeWork::new(&state.held, job, reply));
            }
            ContextHostMsg::Resume(work) if work.is_held(&state.held) => work.answer(Ok(Encoded::Held)),
            ContextHostMsg::Resume(work) => state.hand_over(work),
            ContextHostMsg::Reserve(id, tokens, reply) => {
                let held = Arc::clone(&state.held);
                // It may be on its way.
                tokio::spawn(async move { drop(reply.send(held.reserve(id, tokens).await)) });
            }
            ContextHostMsg::Seal(id, block, reply) => drop(reply.send(state.held.insert(id, block))),
            ContextHostMsg::Share(id, reply) => drop(reply.send(Ok(state.held.get(&id)))),
            ContextHostMsg::Release(ids) => drop(state.held.release(&ids)),
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Self::Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.thread.stop().await
    }
}

impl State {
    /// Has a block encoded once no copy of it is on its way any more.
    fn encode(&mut self, myself: &ActorRef<ContextHostMsg>, work: EncodeWork) {
        let copies = work.earlier_copies();
        if copies.is_empty() {
            return self.hand_over(work);
        }
        if work.of_block() > self.thread.queue_jobs() {
            let (host, queue) = (self.host, self.thread.queue_jobs());
            return work.answer(Err(HostError::Overloaded { host, queue }));
        }
        let myself = myself.clone();
        tokio::spawn(async move {
            for copy in copies {
                copy.wait().await;
            }
            // A host that has stopped drops the work, and with it the way back: who asked is told.
            drop(myself.cast(ContextHostMsg::Resume(work)));
        });
    }

    /// Hands a block to the device thread, or refuses it if the queue is full.
    fn hand_over(&mut self, work: EncodeWork) {
        let (host, queue) = (self.host, self.thread.queue_jobs());
        if let Err(work) = self.thread.offer(work) {
            work.answer(Err(HostError::Overloaded { host, queue }));
        }
    }
}
