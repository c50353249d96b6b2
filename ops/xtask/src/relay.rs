//! Faults between real nodes without a change to them: a node listens at one address and advertises another, that of a relay
//! which carries its packets. What becomes of each is said by the [`Weather`].
//!
//! A node dials from the socket that it listens on, so a packet's source says who sent it. The relay of a node gives every
//! source a socket of its own towards the node, as a NAT does, and carries answers back from the relay's address. Should a node
//! dial back to what it saw as a peer's address, it reaches that socket, and its packets are carried to the peer all the same.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stellate_ops::local::own_address;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::network::Place;
use crate::weather::{Chances, Packets, Party, Weather};

/// Largest datagram.
const MAX_PACKET_BYTES: usize = 64 << 10;

/// Buffers of sockets: a node may send a burst of a copy at once, and none of it is to be lost but by chance.
const BUFFER_BYTES: usize = 4 << 20;

/// Packets that may be on their way later than at once; one more is lost, as in a full queue of a router.
const MAX_UNDERWAY: usize = 8192;

/// Sources of one relay at most; each has a socket.
const MAX_FLOWS: usize = 512;

/// A source that is silent for so long is forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// The relays of a cluster, in the order of its nodes.
#[derive(Debug)]
pub struct Relays {
    carrier: Carrier,
    relays: Vec<Relay>,
}

impl Relays {
    /// None yet, in fair weather, whose chances follow from `seed` once there are any.
    pub fn new(seed: u64) -> Self {
        Self { carrier: Carrier::new(seed), relays: Vec::new() }
    }

    /// A relay for the node of an index, which is the next one or one that did not come up.
    ///
    /// # Errors
    /// No socket or port can be had.
    pub async fn place(&mut self, index: usize) -> io::Result<Place> {
        let listen = own_address()?;
        let relay = Relay::start(&self.carrier, Party::Node(index), listen).await?;
        let address = relay.address();
        self.relays.truncate(index);
        self.relays.push(relay);
        Ok(Place { listen, join_listen: None, address, runner: Vec::new() })
    }

    /// The chances on every way from now on.
    pub fn set(&self, chances: Chances) {
        self.carrier.change(|weather| weather.set(chances));
    }

    /// Lets nothing through from one node to another, for each of these pairs of indexes.
    pub fn cut(&self, ways: &[(usize, usize)]) {
        self.carrier.change(|weather| {
            for (from, to) in ways {
                weather.cut(Party::Node(*from), Party::Node(*to));
            }
        });
    }

    /// No way is cut any more, and nothing is left to chance.
    pub fn clear(&self) {
        self.carrier.change(Weather::clear);
    }

    /// What became of packets so far.
    pub fn packets(&self) -> Packets {
        self.carrier.change(|weather| weather.packets())
    }
}

/// The weather over all relays of a cluster, and who is who. Clones are the same.
#[derive(Clone, Debug)]
struct Carrier(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    weather: Mutex<Weather>,
    parties: Mutex<BTreeMap<SocketAddr, Party>>,
    underway: Arc<Semaphore>,
}

impl Carrier {
    /// Fair weather, and nobody known.
    fn new(seed: u64) -> Self {
        Self(Arc::new(Shared {
            weather: Mutex::new(Weather::new(seed)),
            parties: Mutex::default(),
            underway: Arc::new(Semaphore::new(MAX_UNDERWAY)),
        }))
    }

    /// Changes the weather.
    fn change<T>(&self, change: impl FnOnce(&mut Weather) -> T) -> T {
        change(&mut self.0.weather.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who sends from `source`.
    fn party(&self, source: SocketAddr) -> Party {
        let parties = self.0.parties.lock().unwrap_or_else(PoisonError::into_inner);
        parties.get(&source).copied().unwrap_or(Party::Client)
    }

    /// Carries one packet.
    async fn carry(&self, way: (Party, Party), packet: &[u8], socket: &Arc<UdpSocket>, to: SocketAddr) {
        let fate = self.change(|weather| weather.next(way.0, way.1));
        for delay in fate.copies.into_iter().flatten() {
            if delay.is_zero() {
                // What the receiver's queue does not take is lost, as on any network.
                let _ = socket.send_to(packet, to).await;
                continue;
            }
            let Ok(permit) = self.0.underway.clone().try_acquire_owned() else { continue };
            let (socket, packet) = (socket.clone(), packet.to_vec());
            tokio::spawn(async move {
                sleep(delay).await;
                let _ = socket.send_to(&packet, to).await;
                drop(permit);
            });
        }
    }
}

/// What stands before one node. Dropped, it carries nothing more.
#[derive(Debug)]
struct Relay {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// A relay before the node that listens, or is going to, at `node`.
    ///
    /// # Errors
    /// No socket can be had.
    async fn start(carrier: &Carrier, party: Party, node: SocketAddr) -> io::Result<Self> {
        let front = Arc::new(socket().await?);
        let address = front.local_addr()?;
        carrier.0.parties.lock().unwrap_or_else(PoisonError::into_inner).insert(node, party);
        let mut tasks = JoinSet::new();
        tasks.spawn(carry_in(carrier.clone(), party, node, front));
        Ok(Self { address, _tasks: tasks })
    }

    /// Where the node is reached through it.
    fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let buffers = socket2::SockRef::from(&socket);
    // What is granted may be less; bursts then lose a little more.
    let _ = buffers.set_recv_buffer_size(BUFFER_BYTES);
    let _ = buffers.set_send_buffer_size(BUFFER_BYTES);
    Ok(socket)
}

/// Takes what comes for a node, and has every source's answers carried back.
async fn carry_in(carrier: Carrier, party: Party, node: SocketAddr, front: Arc<UdpSocket>) {
    let mut flows: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut answers = JoinSet::new();
    let mut packet = vec![0; MAX_PACKET_BYTES];
    loop {
        let received = tokio::select! {
            received = front.recv_from(&mut packet) => received,
            Some(Ok(silent)) = answers.join_next() => {
                flows.remove(&silent);
                continue;
            }
        };
        // An error tells of an earlier packet that nobody took.
        let Ok((length, source)) = received else { continue };
        let back = match flows.get(&source) {
            Some(back) => back.clone(),
            None if flows.len() >= MAX_FLOWS => continue,
            None => {
                let Ok(back) = socket().await else { continue };
                let back = Arc::new(back);
                flows.insert(source, back.clone());
                answers.spawn(carry_back(carrier.clone(), party, node, back.clone(), front.clone(), source));
                back
            }
        };
        carrier.carry((carrier.party(source), party), &packet[..length], &back, node).await;
    }
}

/// Carries a node's answers back to one source, until both are silent.
async fn carry_back(
    carrier: Carrier,
    party: Party,
    node: SocketAddr,
    back: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    source: SocketAddr,
) -> SocketAddr {
    let mut packet = vec![0; MAX_PACKET_BYTES];
    loop {
        match timeout(FORGET, back.recv_from(&mut packet)).await {
            Err(_) => return source,
            Ok(Ok((length, from))) if from == node => {
                carrier.carry((party, carrier.party(source)), &packet[..length], &front, source).await;
            }
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);
    const A: Party = Party::Node(0);
    const B: Party = Party::Node(1);

    async fn heard(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
        let mut packet = [0; 16];
        let (length, from) = timeout(PATIENCE, socket.recv_from(&mut packet)).await.ok()?.ok()?;
        Some((packet[..length].to_vec(), from))
    }

    /// Two nodes, each behind a relay.
    async fn two() -> (Carrier, [UdpSocket; 2], [Relay; 2]) {
        let carrier = Carrier::new(1);
        let sockets = [socket().await.unwrap(), socket().await.unwrap()];
        let relays = [
            Relay::start(&carrier, A, sockets[0].local_addr().unwrap()).await.unwrap(),
            Relay::start(&carrier, B, sockets[1].local_addr().unwrap()).await.unwrap(),
        ];
        (carrier, sockets, relays)
    }

    #[tokio::test]
    async fn packets_reach_a_node_through_its_relay_and_answers_come_back_from_it() {
        let (_carrier, [a, b], [_, before_b]) = two().await;
        a.send_to(b"hello", before_b.address()).await.unwrap();
        let (said, from) = heard(&b).await.unwrap();
        assert_eq!((&*said, from == a.local_addr().unwrap()), (&b"hello"[..], false));
        b.send_to(b"welcome", from).await.unwrap();
        assert_eq!(heard(&a).await.unwrap(), (b"welcome".to_vec(), before_b.address()));
    }

    #[tokio::test]
    async fn a_way_that_is_cut_carries_nothing_and_the_other_direction_everything() {
        let (carrier, [a, b], [before_a, before_b]) = two().await;
        carrier.change(|weather| weather.cut(A, B));
        // Whoever dialled, it is the direction that counts.
        b.send_to(b"one", before_a.address()).await.unwrap();
        let (said, from) = heard(&a).await.unwrap();
        assert_eq!(said, b"one");
        a.send_to(b"an answer", from).await.unwrap();
        a.send_to(b"a packet", before_b.address()).await.unwrap();
        while carrier.change(|weather| weather.packets()).cut < 2 {
            tokio::task::yield_now().await;
        }
        carrier.change(Weather::clear);
        a.send_to(b"two", before_b.address()).await.unwrap();
        assert_eq!(heard(&b).await.unwrap().0, b"two");
    }

    #[tokio::test]
    async fn a_packet_that_is_doubled_and_delayed_comes_twice() {
        let (carrier, [a, b], [_, before_b]) = two().await;
        carrier.change(|weather| {
            weather.set(Chances { doubled_permille: 1000, delay_us: 2000, ..Chances::default() });
        });
        a.send_to(b"hello", before_b.address()).await.unwrap();
        assert_eq!(heard(&b).await.unwrap().0, b"hello");
        assert_eq!(heard(&b).await.unwrap().0, b"hello");
        assert_eq!(carrier.change(|weather| weather.packets()).doubled, 1);
    }
}
