//! The seam between a query host and a context host: a request for the attention of one layer over some blocks, and
//! its reply. Here is the link within a process, through memory; the link between processes is in [`crate::remote`].
//! Neither goes through an actor's mailbox.

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use serde::{Deserialize, Serialize};
use stellate_kernels::Partial;
use stellate_model::block::BlockId;
use tokio::sync::oneshot;
use wincode::{SchemaRead, SchemaWrite};

use crate::health::{LOOK, Vitals};

/// A context host: which of its node's, and of which node. The low 16 bits number the host in its node; the high 48 bits
/// are the first of the node's id, or 0 in a process of its own.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
pub struct HostId(pub u64);

impl HostId {
    /// Bits that number a host in its node.
    const INDEX_BITS: u32 = 16;

    /// Host `index` of the node whose id begins with these bytes.
    pub fn of_node(id: [u8; 6], index: u16) -> Self {
        let [a, b, c, d, e, f] = id;
        Self(u64::from_be_bytes([0, 0, a, b, c, d, e, f]) << Self::INDEX_BITS | u64::from(index))
    }

    /// Its number in its node.
    pub fn index(self) -> u16 {
        self.0 as u16
    }

    /// The first bytes of its node's id; zeros in a process of its own.
    pub fn node(self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> Self::INDEX_BITS {
            0 => write!(f, "h{}", self.index()),
            node => write!(f, "{node:012x}.{}", self.index()),
        }
    }
}

/// How the attention over several blocks is folded on its way to the query host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// All blocks of a host in one partial. How hosts' blocks lie shows in the last bits of the sums.
    ByHost,
    /// Block after block, each attended alone, in one partial: the fold of [`Fold::Apart`], done by a host that has every block.
    ByBlock,
    /// Not at all: a partial for each block, for the query host to fold in the order of the context.
    Apart,
}

impl Fold {
    /// Whether sums come out the same, bit for bit, wherever blocks lie.
    pub fn is_placement_free(self) -> bool {
        self != Self::ByHost
    }
}

/// Asks a context host for the attention of `queries` over `blocks`, unmasked: every query token stands behind them.
#[derive(Clone, Debug)]
pub struct AttendRequest {
    /// The layer.
    pub layer: usize,
    /// The blocks, in the order of the context.
    pub blocks: Arc<[BlockId]>,
    /// What the reply's partials are.
    pub fold: Fold,
    /// Rotated queries, `[tokens, heads, head_dim]`.
    pub queries: Arc<Vec<f32>>,
    /// Memory for the reply's partials, whatever they hold: those of the reply before.
    pub partials: Vec<Partial>,
}

/// The attention that was asked for, and what it covers.
#[derive(Clone, Debug)]
pub struct AttendReply {
    /// The blocks that were attended, each once.
    pub blocks: Arc<[BlockId]>,
    /// Their attention: one partial, or one for each block if they are [`Fold::Apart`].
    pub partials: Vec<Partial>,
}

/// Why a context host gave no attention. The step can be asked again once the cause is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The host has stopped, or was never there.
    #[error("context host {host} has stopped; open the node again")]
    HostGone {
        /// The host.
        host: HostId,
    },
    /// The way to the host broke, or it did not answer in time.
    #[error(
        "context host {host} does not answer: {cause}; ask again once it is back, or its blocks are elsewhere"
    )]
    Interrupted {
        /// The host.
        host: HostId,
        /// What happened.
        cause: String,
    },
    /// The host's device thread makes no progress.
    #[error("context host {host} is stuck; look at its device; its blocks are encoded elsewhere meanwhile")]
    Stuck {
        /// The host.
        host: HostId,
    },
    /// The host answered with numbers that no attention is: none at all, infinite ones, or the weight of nothing. Nothing of it was
    /// merged.
    #[error(
        "context host {host} answered what is no attention (not a number, or infinite); look at its device and memory, or remove \
         its node; its blocks are encoded elsewhere meanwhile"
    )]
    NotNumbers {
        /// The host.
        host: HostId,
    },
    /// The host does not hold a block that it was asked for.
    #[error("context host {host} does not hold block {block}; encode the context again")]
    NoSuchBlock {
        /// The host.
        host: HostId,
        /// The block.
        block: BlockId,
    },
}

/// A way to reach one context host. Requests are answered in the order they were posted.
pub trait HostLink: Send + fmt::Debug {
    /// The host at the other end.
    fn host(&self) -> HostId;
    /// Sends a request; the host computes while the caller does something else.
    fn post(&mut self, request: AttendRequest) -> Result<(), LinkError>;
    /// Waits for the reply to the request posted last.
    fn wait(&mut self) -> Result<AttendReply, LinkError>;
}

/// What comes back to an asker.
type Replied = Result<AttendReply, LinkError>;

/// A request with the way back, as a context host's device thread receives it.
#[derive(Debug)]
pub struct AttendJob {
    /// What is asked.
    pub request: AttendRequest,
    /// Where the reply goes.
    pub reply: WayBack,
}

/// The way back to an asker. Dropped without a reply, it tells the asker that the host is gone.
#[derive(Debug)]
pub struct WayBack {
    host: HostId,
    way: Option<Way>,
}

#[derive(Debug)]
enum Way {
    /// To a thread that waits.
    Thread(Sender<Replied>),
    /// To a task that is woken.
    Task(oneshot::Sender<Replied>),
}

impl WayBack {
    /// A way back from `host` to a task, and where the task waits.
    pub fn to_task(host: HostId) -> (Self, oneshot::Receiver<Result<AttendReply, LinkError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { host, way: Some(Way::Task(sender)) }, receiver)
    }

    /// Sends the reply. An asker who has given up never sees it.
    pub fn send(mut self, reply: Result<AttendReply, LinkError>) {
        self.finish(reply);
    }

    fn finish(&mut self, reply: Replied) {
        match self.way.take() {
            Some(Way::Thread(sender)) => drop(sender.try_send(reply)),
            Some(Way::Task(sender)) => drop(sender.send(reply)),
            None => {}
        }
    }
}

impl Drop for WayBack {
    fn drop(&mut self) {
        self.finish(Err(LinkError::HostGone { host: self.host }));
    }
}

/// A link to a context host of the same process.
#[derive(Debug)]
pub struct LocalLink {
    host: HostId,
    jobs: Sender<AttendJob>,
    replies: (Sender<Replied>, Receiver<Replied>),
    /// Whether a reply is on its way.
    is_pending: bool,
    /// How the host does, for one that is not waited for when it is stuck.
    vitals: Option<Arc<Vitals>>,
}

impl LocalLink {
    /// A link to `host`, whose device thread takes its attention jobs from the other end of `jobs`.
    pub fn new(host: HostId, jobs: Sender<AttendJob>) -> Self {
        Self { host, jobs, replies: bounded(1), is_pending: false, vitals: None }
    }

    /// The same, which gives up as soon as the host's `vitals` say that it is stuck.
    pub fn watched(self, vitals: Arc<Vitals>) -> Self {
        Self { vitals: Some(vitals), ..self }
    }

    fn gone(&self) -> LinkError {
        LinkError::HostGone { host: self.host }
    }

    fn check(&self) -> Result<(), LinkError> {
        let is_stuck = self.vitals.as_ref().is_some_and(|vitals| vitals.is_stuck());
        if is_stuck { Err(LinkError::Stuck { host: self.host }) } else { Ok(()) }
    }

    /// Hands a job over, once there is room for it.
    fn send(&self, mut job: AttendJob) -> Result<(), LinkError> {
        loop {
            self.check()?;
            job = match self.jobs.send_timeout(job, LOOK) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Timeout(job)) => job,
                // A job that is refused answers by itself.
                Err(SendTimeoutError::Disconnected(_)) => return Err(self.gone()),
            };
        }
    }

    fn receive(&self) -> Replied {
        loop {
            match self.replies.1.recv_timeout(LOOK) {
                Ok(reply) => return reply,
                Err(RecvTimeoutError::Timeout) => self.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone()),
            }
        }
    }
}

impl HostLink for LocalLink {
    fn host(&self) -> HostId {
        self.host
    }

    fn post(&mut self, request: AttendRequest) -> Result<(), LinkError> {
        if std::mem::replace(&mut self.is_pending, true) {
            // The request before was given up: its late reply is dropped with its channel.
            self.replies = bounded(1);
        }
        let reply = WayBack { host: self.host, way: Some(Way::Thread(self.replies.0.clone())) };
        self.send(AttendJob { request, reply })
    }

    fn wait(&mut self) -> Result<AttendReply, LinkError> {
        if !std::mem::take(&mut self.is_pending) {
            return Err(self.gone());
        }
        let reply = self.receive();
        if matches!(reply, Err(LinkError::Stuck { .. })) {
            // Its late reply is dropped with its channel.
            self.replies = bounded(1);
        }
        reply
    }
}
