//! The query host's end of attention over the network, as its device thread sees it: a channel to one context host, and
//! the links of sessions, which share it. What happens on the network thread is in `courier`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use stellate_kernels::Partial;
use stellate_model::block::BlockId;
use stellate_runtime::transport::{NetworkHandle, Payload};
use tokio::sync::mpsc;

use super::courier::Courier;
use super::dial::Dialer;
use super::frames::AttendShape;
use crate::link::{AttendReply, AttendRequest, Fold, HostId, HostLink, LinkError};

/// Messages that may wait for the network thread: one of each session that a query host steps, and then some.
const OUTBOX: usize = 256;

/// How long a thread that waits for a reply looks for it before it sleeps. Hosts that attend little answer within it, and
/// waking a thread takes about as long as their answer; beyond, its core is better given away.
const AWAKE: Duration = Duration::from_micros(200);
/// Looks before the core is offered to whoever has work.
const LOOKS: usize = 16;

/// How a channel behaves.
#[derive(Clone, Copy, Debug)]
pub struct DecodeOptions {
    /// Longest wait for a reply. It must cover a chunk that the host encodes at the time, through all layers.
    pub reply_timeout: Duration,
    /// Longest wait for a connection, and until a request is on its way.
    pub send_timeout: Duration,
}

impl Default for DecodeOptions {
    /// Replies take longer than a chunk of a large model on a slow host. One that is dead is found out by its connection before,
    /// and one that stands still says so itself.
    fn default() -> Self {
        Self { reply_timeout: Duration::from_secs(300), send_timeout: Duration::from_secs(10) }
    }
}

/// What went over a channel, heads of frames counted; QUIC's own bytes are not.
#[derive(Debug, Default)]
pub struct LinkStats {
    pub(super) requests: AtomicU64,
    pub(super) replies: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) streams: AtomicU64,
}

impl LinkStats {
    /// Requests sent.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Replies that came whole, refusals among them.
    pub fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Bytes of frames sent: requests and lists of blocks.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of frames received.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Streams opened: more than one means that one was lost.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    pub(super) fn add(counter: &AtomicU64, amount: usize) {
        counter.fetch_add(amount as u64, Ordering::Relaxed);
    }
}

/// Of a reply: its partials' bytes.
pub(super) type Arrived = Result<Vec<Payload>, LinkError>;

/// A request on its way to the network thread.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) number: u64,
    pub(super) layer: u32,
    pub(super) blocks: Arc<[BlockId]>,
    pub(super) fold: Fold,
    pub(super) tokens: usize,
    pub(super) queries: Arc<Vec<f32>>,
    /// Memory for the reply: that of the one before.
    pub(super) spare: Vec<Payload>,
    pub(super) reply: Sender<Arrived>,
}

#[derive(Debug)]
pub(super) enum Outgoing {
    Ask(Ask),
    /// This request was given up: the stream is of no more use.
    GiveUp(u64),
}

/// The way to one context host of another node, for all sessions of a query host. Clones are the same one. It connects when
/// it is first used, and again after a fault.
#[derive(Clone, Debug)]
pub struct DecodeChannel(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    host: HostId,
    shape: AttendShape,
    options: DecodeOptions,
    outbox: mpsc::Sender<Outgoing>,
    stats: Arc<LinkStats>,
    next: AtomicU64,
}

impl DecodeChannel {
    /// A channel to `host` over decode connections of `dialer`, driven on the network thread. `shape` is the model's.
    pub fn new(
        network: &NetworkHandle,
        host: HostId,
        shape: AttendShape,
        dialer: Arc<dyn Dialer>,
        options: DecodeOptions,
    ) -> Self {
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let stats = Arc::new(LinkStats::default());
        let courier = Courier::new(host, shape, options, dialer, Arc::clone(&stats));
        network.spawn(courier.run(outgoing));
        Self(Arc::new(Shared { host, shape, options, outbox, stats, next: AtomicU64::new(1) }))
    }

    /// The host at the other end.
    pub fn host(&self) -> HostId {
        self.0.host
    }

    /// A link of its own, for one session.
    pub fn link(&self) -> QuicLink {
        QuicLink { channel: self.clone(), replies: bounded(1), pending: None, spare: Vec::new() }
    }

    /// What went over it so far.
    pub fn stats(&self) -> &LinkStats {
        &self.0.stats
    }

    fn interrupted(&self, cause: impl Into<String>) -> LinkError {
        LinkError::Interrupted { host: self.0.host, cause: cause.into() }
    }

    fn send(&self, outgoing: Outgoing) -> Result<(), LinkError> {
        self.0.outbox.try_send(outgoing).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => self.interrupted("too many requests wait for the network"),
            mpsc::error::TrySendError::Closed(_) => self.interrupted("this node's network has stopped"),
        })
    }
}

/// A link to a context host of another node.
#[derive(Debug)]
pub struct QuicLink {
    channel: DecodeChannel,
    replies: (Sender<Arrived>, Receiver<Arrived>),
    pending: Option<Pending>,
    spare: Vec<Payload>,
}

#[derive(Debug)]
struct Pending {
    number: u64,
    blocks: Arc<[BlockId]>,
    tokens: usize,
    partials: Vec<Partial>,
}

impl HostLink for QuicLink {
    fn host(&self) -> HostId {
        self.channel.host()
    }

    fn post(&mut self, request: AttendRequest) -> Result<(), LinkError> {
        if self.pending.take().is_some() {
            // The request before was given up: its late reply is dropped with its channel.
            self.replies = bounded(1);
        }
        let AttendRequest { layer, blocks, fold, queries, partials } = request;
        let shared = &self.channel.0;
        let shape = || self.channel.interrupted("the queries are not of this model's shape");
        let tokens = shared.shape.tokens(queries.len()).ok_or_else(shape)?;
        let layer = u32::try_from(layer).map_err(|_| shape())?;
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let (spare, reply) = (std::mem::take(&mut self.spare), self.replies.0.clone());
        let ask = Ask { number, layer, blocks: Arc::clone(&blocks), fold, tokens, queries, spare, reply };
        self.channel.send(Outgoing::Ask(ask))?;
        self.pending = Some(Pending { number, blocks, tokens, partials });
        Ok(())
    }

    fn wait(&mut self) -> Result<AttendReply, LinkError> {
        let Some(pending) = self.pending.take() else {
            return Err(self.channel.interrupted("nothing was asked"));
        };
        let Pending { number, blocks, tokens, mut partials } = pending;
        let timeout = self.channel.0.options.reply_timeout;
        look_for(&self.replies.1);
        let payloads = match self.replies.1.recv_timeout(timeout) {
            Ok(arrived) => arrived?,
            Err(RecvTimeoutError::Timeout) => {
                self.replies = bounded(1);
                // Where the network has stopped, nothing comes late either.
                let _ = self.channel.send(Outgoing::GiveUp(number));
                let cause = format!("no reply within {} ms", timeout.as_millis());
                return Err(self.channel.interrupted(cause));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(self.channel.interrupted("this node's network has stopped"));
            }
        };
        let shape = self.channel.0.shape.partial(tokens);
        partials.truncate(payloads.len());
        partials.iter_mut().for_each(|partial| partial.reset(shape));
        partials.resize_with(payloads.len(), || Partial::empty(shape));
        for (partial, payload) in partials.iter_mut().zip(&payloads) {
            // Its length was checked when it came.
            let values = payload.as_slice_of::<f32>().map_err(|e| self.channel.interrupted(e.to_string()))?;
            let (out, lse) = values.split_at(partial.out.len());
            if !are_attention(out, lse, !blocks.is_empty()) {
                return Err(LinkError::NotNumbers { host: self.channel.host() });
            }
            partial.out.copy_from_slice(out);
            partial.lse.copy_from_slice(lse);
        }
        self.spare = payloads;
        Ok(AttendReply { blocks, partials })
    }
}

/// Whether numbers can be attention over some keys, or over none: finite, and with the weight of something where there is
/// something. One that is not would make everything that it is merged with such.
fn are_attention(out: &[f32], lse: &[f32], has_keys: bool) -> bool {
    let is_weight = |lse: &f32| lse.is_finite() || !has_keys && *lse == f32::NEG_INFINITY;
    out.iter().all(|value| value.is_finite()) && lse.iter().all(is_weight)
}

/// Looks for a reply for a while without sleeping. Where threads are more than cores, those that have work go first.
fn look_for(replies: &Receiver<Arrived>) {
    let start = Instant::now();
    while start.elapsed() < AWAKE {
        for _ in 0..LOOKS {
            if !replies.is_empty() {
                return;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
}
