//! The context hosts' end of attention over the network: streams of other nodes' query hosts, whose requests go into the
//! local hosts' queues and whose replies go out in order. Nothing here waits for a host on the network thread.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::TrySendError;
use stellate_kernels::{KvShape, Partial};
use stellate_model::decoder::Decoder;
use stellate_runtime::identity::NodeId;
use stellate_runtime::transport::{
    CloseCode, Connection, Frame, FrameError, FrameReceiver, FrameSender, StreamError, Thinned,
};
use tokio::sync::oneshot;

use super::frames::{
    ATTEND, ATTENDED, Attend, AttendShape, Attended, OPEN, Open, REFUSED, ROUTE, Refusal, Refused, Route,
    digest,
};
use super::pace::Pacer;
use super::routes::{Known, Routes};
use crate::context_host::ContextHostHandle;
use crate::link::{AttendJob, AttendReply, AttendRequest, Fold, HostId, LinkError, WayBack};

/// Members whose warnings are counted apart.
const MAX_WARNED: usize = 1024;

/// Requests of one stream under way. A query host has one, and at times one that it has given up.
const MAX_UNDER_WAY: usize = 4;

/// The context hosts of this node, as other nodes reach them.
#[derive(Clone, Debug)]
pub struct LocalHosts {
    pub(super) hosts: Arc<BTreeMap<HostId, ContextHostHandle>>,
    pub(super) kv_shape: KvShape,
    pub(super) pacer: Pacer,
    shape: AttendShape,
    warnings: Arc<Warnings>,
}

impl LocalHosts {
    /// These hosts, which run `decoder`.
    pub fn new(
        hosts: impl IntoIterator<Item = ContextHostHandle>,
        decoder: &Decoder,
        kv_shape: KvShape,
    ) -> Self {
        let hosts = hosts.into_iter().map(|host| (host.host, host)).collect();
        let (pacer, shape) = (Pacer::default(), AttendShape::of(decoder));
        Self { hosts: Arc::new(hosts), kv_shape, pacer, shape, warnings: Arc::default() }
    }

    /// The same, whose blocks leave at the pace of `pacer`.
    pub fn paced(self, pacer: Pacer) -> Self {
        Self { pacer, ..self }
    }

    /// Logs why a stream of a member has ended: as a warning where the member broke the protocol, unless there were many.
    pub(super) fn tell(&self, peer: NodeId, stream: &'static str, error: &StreamError) {
        let node = peer.short();
        match error {
            // Whoever is stopped within a frame has ended its stream there.
            StreamError::Frame(error) if *error != FrameError::Truncated => {
                if let Some(left_out) = self.warnings.grant(peer, self.pacer.now()) {
                    tracing::warn!(%node, %error, stream, left_out, "a member broke the protocol; its stream was ended");
                }
            }
            error => tracing::debug!(%node, %error, stream, "a stream has ended"),
        }
    }
}

/// Warnings of members that break the protocol, some for each, so that none hides another.
#[derive(Debug, Default)]
struct Warnings(Mutex<BTreeMap<NodeId, Thinned>>);

impl Warnings {
    fn grant(&self, peer: NodeId, now: Duration) -> Option<u64> {
        let mut of = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() >= MAX_WARNED {
            of.clear();
        }
        of.entry(peer).or_default().grant(now)
    }
}

impl AttendShape {
    /// That of a model.
    pub fn of(decoder: &Decoder) -> Self {
        let partial = decoder.partial_shape(0);
        Self { layers: decoder.config().layers, heads: partial.heads, head_dim: partial.head_dim }
    }
}

/// Serves the streams that the peer opens on a decode connection, until the connection is gone.
pub async fn serve_decode(connection: Connection, hosts: LocalHosts) {
    let peer = connection.peer().id;
    while let Ok((sender, receiver)) = connection.accept().await {
        let hosts = hosts.clone();
        tokio::spawn(async move {
            let mut receiver = receiver;
            let mut sender = sender;
            if let Err(error) = serve_stream(&mut sender, &mut receiver, &hosts).await {
                hosts.tell(peer, "decode", &error);
                sender.reset(0);
                receiver.stop(CloseCode::ProtocolViolation);
            }
        });
    }
}

/// One stream: its lists of blocks, what is under way, and memory that is used again.
struct Stream<'a> {
    hosts: &'a LocalHosts,
    host: HostId,
    routes: Routes,
    under_way: VecDeque<UnderWay>,
    queries: Arc<Vec<f32>>,
    partials: Vec<Partial>,
}

struct UnderWay {
    request: u64,
    route: u32,
    asked: Option<Known>,
    tokens: usize,
    reply: Reply,
}

enum Reply {
    Awaited(oneshot::Receiver<Result<AttendReply, LinkError>>),
    Refused(Refusal),
}

async fn serve_stream(
    sender: &mut FrameSender,
    receiver: &mut FrameReceiver,
    hosts: &LocalHosts,
) -> Result<(), StreamError> {
    let open: Open = receiver.expect().await?.expect(OPEN)?;
    let mut stream = Stream {
        hosts,
        host: HostId(open.host),
        routes: Routes::default(),
        under_way: VecDeque::new(),
        queries: Arc::default(),
        partials: Vec::new(),
    };
    loop {
        let (may_read, handle) =
            (stream.under_way.len() < MAX_UNDER_WAY, stream.hosts.hosts.get(&stream.host));
        tokio::select! {
            biased;
            answer = next_answer(&mut stream.under_way, handle) => stream.answer(sender, answer).await?,
            frame = receiver.receive(), if may_read => match frame? {
                None => return Ok(()),
                Some(frame) => {
                    stream.take(&frame)?;
                    receiver.recycle(frame.payload);
                }
            },
        }
    }
}

/// The reply to the request that is to be answered next; a refusal if the host stands still meanwhile. Cancelled, it loses
/// nothing.
async fn next_answer(
    under_way: &mut VecDeque<UnderWay>,
    host: Option<&ContextHostHandle>,
) -> (UnderWay, Result<AttendReply, Refusal>) {
    let stuck = async {
        match host {
            Some(host) => host.vitals.stuck().await,
            None => std::future::pending().await,
        }
    };
    let reply = match under_way.front_mut() {
        None => return std::future::pending().await,
        Some(UnderWay { reply: Reply::Refused(reason), .. }) => Err(*reason),
        // A way back is never dropped without a word, but for a thread that dies of a panic.
        Some(UnderWay { reply: Reply::Awaited(reply), .. }) => tokio::select! {
            biased;
            reply = reply => reply.map_or(Err(Refusal::HostGone), |reply| reply.map_err(Refusal::from)),
            () = stuck => Err(Refusal::Stuck),
        },
    };
    (under_way.pop_front().expect("the front was just seen"), reply)
}

impl Stream<'_> {
    /// Takes a frame that has come: a list of blocks, or a request, which goes to the host at once.
    fn take(&mut self, frame: &Frame) -> Result<(), FrameError> {
        if frame.kind == ROUTE {
            let Route { route } = frame.header()?;
            let problem = || "lists of blocks are numbered from 0 on, and bounded".to_owned();
            let taken = self.routes.take(route, frame.payload.as_bytes());
            return taken.ok_or_else(|| FrameError::Header { kind: ROUTE, problem: problem() });
        }
        let header: Attend = frame.expect(ATTEND)?;
        let asked = self.routes.get(header.route).cloned();
        let reply = match &asked {
            None => Reply::Refused(Refusal::NoSuchRoute),
            Some(known) => match header.check(frame.payload.len(), known.blocks.len(), self.hosts.shape) {
                Err(refusal) => Reply::Refused(refusal),
                Ok(()) => self.hand_over(&header, known, frame),
            },
        };
        let Attend { request, route, tokens, .. } = header;
        self.under_way.push_back(UnderWay { request, route, asked, tokens: tokens as usize, reply });
        Ok(())
    }

    fn hand_over(&mut self, header: &Attend, known: &Known, frame: &Frame) -> Reply {
        let Some(handle) = self.hosts.hosts.get(&self.host) else { return Reply::Refused(Refusal::HostGone) };
        if handle.vitals.is_stuck() {
            return Reply::Refused(Refusal::Stuck);
        }
        let Ok(values) = frame.payload.as_slice_of::<f32>() else { return Reply::Refused(Refusal::Shape) };
        self.hosts.pacer.decoded();
        let mut queries = std::mem::take(&mut self.queries);
        match Arc::get_mut(&mut queries) {
            Some(memory) => {
                memory.clear();
                memory.extend_from_slice(values);
            }
            None => queries = Arc::new(values.to_vec()),
        }
        self.queries = Arc::clone(&queries);
        let request = AttendRequest {
            layer: header.layer as usize,
            blocks: Arc::clone(&known.blocks),
            fold: Fold::from(header.fold),
            queries,
            partials: std::mem::take(&mut self.partials),
        };
        let (reply, awaited) = WayBack::to_task(self.host);
        match handle.offer(AttendJob { request, reply }) {
            Ok(()) => Reply::Awaited(awaited),
            Err(TrySendError::Full(_)) => Reply::Refused(Refusal::Overloaded),
            Err(TrySendError::Disconnected(_)) => Reply::Refused(Refusal::HostGone),
        }
    }

    /// Sends a reply, a frame for each partial.
    async fn answer(
        &mut self,
        sender: &mut FrameSender,
        (asked, reply): (UnderWay, Result<AttendReply, Refusal>),
    ) -> Result<(), StreamError> {
        let UnderWay { request, route, asked, tokens, .. } = asked;
        let refused = |reason: Refusal| Refused { request, reason: reason.lowered(sender.version()) };
        let reply = match reply {
            Err(reason) => return sender.send(REFUSED, &refused(reason), &[]).await,
            Ok(reply) => reply,
        };
        let shape = self.hosts.shape.partial(tokens);
        if reply.partials.iter().any(|partial| partial.shape() != shape) {
            return sender.send(REFUSED, &refused(Refusal::Shape), &[]).await;
        }
        // What the host says that it attended, not what it was asked.
        let digest = match asked.filter(|asked| Arc::ptr_eq(&asked.blocks, &reply.blocks)) {
            Some(asked) => asked.digest,
            None => digest(&reply.blocks),
        };
        let parts = reply.partials.len() as u32;
        for (part, partial) in reply.partials.iter().enumerate() {
            let header = Attended { request, route, part: part as u32, parts, digest };
            let payload = [bytemuck::cast_slice(&partial.out), bytemuck::cast_slice(&partial.lse)];
            sender.send(ATTENDED, &header, &payload).await?;
        }
        self.partials = reply.partials;
        Ok(())
    }
}
