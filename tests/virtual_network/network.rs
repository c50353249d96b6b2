//! The made-up network: sockets for QUIC, and what a seed lets happen to it.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use stellate_runtime::clock::{Clock, ManualClock};
use stellate_runtime::identity::{CertificateAuthority, Credentials, Revocations};
use stellate_runtime::transport::{Accepted, Endpoint, EndpointSetup, NetworkHandle, Sockets, Target};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Where every node listens.
const PORT: u16 = 4433;
/// The step of the network's time, and the least time that a packet takes.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// The largest packet there is.
const PACKET_BYTES: usize = 65_535;

/// The seeds to run: so many, unless the environment says otherwise.
pub(crate) fn seeds(count: u64) -> std::ops::Range<u64> {
    let of = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = of("STELLATE_FIRST_SEED").unwrap_or(1);
    first..first + of("STELLATE_SEEDS").unwrap_or(count)
}

/// Numbers drawn from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }
}

/// Sockets of the node in whose software they are opened.
#[derive(Debug)]
struct Made(u64);

impl Sockets for Made {
    fn open(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let bound = turmoil::net::UdpSocket::bind(address).now_or_never();
        let socket = Arc::new(bound.expect("nothing is waited for")?);
        let (sender, arrived) = unbounded_channel();
        let reader = Arc::clone(&socket);
        tokio::spawn(async move {
            let mut bytes = vec![0; PACKET_BYTES];
            while let Ok((count, from)) = reader.recv_from(&mut bytes).await {
                if sender.send((bytes[..count].to_vec(), from)).is_err() {
                    break;
                }
            }
        });
        Ok(Arc::new(Socket { socket, arrived: Mutex::new(arrived) }))
    }

    fn seed(&self) -> [u8; 32] {
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&self.0.to_le_bytes());
        seed
    }
}

struct Socket {
    socket: Arc<turmoil::net::UdpSocket>,
    arrived: Mutex<UnboundedReceiver<(Vec<u8>, SocketAddr)>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let each = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(each) {
            match self.socket.try_send_to(packet, transmit.destination) {
                // Who is not there hears nothing; a real network says no more.
                Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match self.arrived.lock().unwrap().poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Poll::Ready(Some((bytes, addr))) => {
                buffers[0][..bytes.len()].copy_from_slice(&bytes);
                let len = bytes.len();
                meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                Poll::Ready(Ok(1))
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// What the nodes of one cluster know: who they are, and the time.
#[derive(Debug)]
pub(crate) struct Cluster {
    seed: u64,
    authority: CertificateAuthority,
    pub(crate) clock: ManualClock,
    credentials: Vec<Arc<Credentials>>,
    /// How often each has started.
    lives: Vec<AtomicU64>,
}

impl Cluster {
    pub(crate) fn new(seed: u64, nodes: usize) -> Arc<Self> {
        let clock = ManualClock::new();
        // Certificates need a date that X.509 can write.
        clock.advance(Duration::from_secs(1_795_000_000));
        let authority = CertificateAuthority::create(clock.wall()).unwrap();
        let issue = |node| authority.issue_node(&name(node).parse().unwrap(), clock.wall()).unwrap();
        let mut ids: Vec<Credentials> = (0..nodes).map(issue).collect();
        // Of two that dial each other at once the lower id wins: keys are random, their order must not be.
        ids.sort_by_key(Credentials::id);
        let credentials = ids.into_iter().map(Arc::new).collect();
        let lives = (0..nodes).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { seed, authority, clock, credentials, lives })
    }

    /// An endpoint of a node that starts, in its software.
    pub(crate) fn endpoint(&self, node: usize) -> (Endpoint, Accepted) {
        let life = self.lives[node].fetch_add(1, Ordering::Relaxed) + 1;
        let address = (Ipv4Addr::UNSPECIFIED, PORT).into();
        let credentials = Arc::clone(&self.credentials[node]);
        // Each process has a list of its own; that of all of them would keep tasks of nodes that have crashed.
        let revocations = Revocations::new(self.authority.certificate()).unwrap();
        let mut setup = EndpointSetup::new(address, credentials, revocations);
        setup.clock = Arc::new(self.clock.clone());
        setup.incarnation = life;
        setup.sockets = Some(Arc::new(Made(self.seed * 1_000 + node as u64 * 100 + life)));
        Endpoint::bind(&NetworkHandle::current(), setup).unwrap()
    }

    /// Where to dial a node, in the software of another.
    pub(crate) fn target(&self, node: usize) -> Target {
        Target::node(self.credentials[node].id(), (turmoil::lookup(name(node)), PORT).into())
    }
}

pub(crate) fn name(node: usize) -> String {
    format!("node-{node}")
}

/// What may happen between nodes, or to one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing goes between two.
    Cut(usize, usize),
    /// Nothing goes from the first to the second.
    CutOneWay(usize, usize),
    /// What goes between two waits, and then comes all at once.
    Hold(usize, usize),
    /// A node is gone without a word.
    Crash(usize),
    /// Each packet is lost with this chance of a thousand.
    Lose(usize),
}

impl Fault {
    /// One of those that may happen to so many nodes; none of the first `spared` crashes.
    pub(crate) fn draw(dice: &mut Dice, nodes: usize, spared: usize) -> Self {
        let one = dice.below(nodes);
        let other = (one + 1 + dice.below(nodes - 1)) % nodes;
        match dice.below(5) {
            0 => Self::Cut(one, other),
            1 => Self::CutOneWay(one, other),
            2 => Self::Hold(one, other),
            3 => Self::Crash(spared + dice.below(nodes - spared)),
            _ => Self::Lose(10 + dice.below(90)),
        }
    }

    pub(crate) fn happen(self, sim: &mut turmoil::Sim<'_>) {
        match self {
            Self::Cut(one, other) => sim.partition(name(one), name(other)),
            Self::CutOneWay(from, to) => sim.partition_oneway(name(from), name(to)),
            Self::Hold(one, other) => sim.hold(name(one), name(other)),
            Self::Crash(node) => sim.crash(name(node)),
            Self::Lose(rate) => sim.set_fail_rate(rate as f64 / 1000.0),
        }
    }

    pub(crate) fn end(self, sim: &mut turmoil::Sim<'_>) {
        match self {
            Self::Cut(one, other) => sim.repair(name(one), name(other)),
            Self::CutOneWay(from, to) => sim.repair_oneway(name(from), name(to)),
            Self::Hold(one, other) => sim.release(name(one), name(other)),
            Self::Crash(node) => sim.bounce(name(node)),
            Self::Lose(_) => sim.set_fail_rate(0.0),
        }
    }
}

/// A network on which packets take 1 to 8 ms.
pub(crate) fn network<'a>(seed: u64) -> turmoil::Sim<'a> {
    turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .min_message_latency(TICK)
        .max_message_latency(Duration::from_millis(8))
        .repair_rate(1.0)
        .udp_capacity(1 << 14)
        .simulation_duration(Duration::from_secs(3600))
        .build()
}
