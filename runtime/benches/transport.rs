//! Latency and throughput of the transport on loopback: `cargo bench -p stellate-runtime`. Frames of 8 KiB to 1 and 4 peers
//! and back on long-lived streams, beside the same bytes without frames on the same connection; and bulk frames one way.
//! Each peer has a network thread of its own, in this process.
#![allow(clippy::print_stdout)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use stellate_runtime::identity::{CertificateAuthority, Credentials, Revocations};
use stellate_runtime::transport::{
    Connection, ConnectionClass, Endpoint, EndpointSetup, FrameKind, FrameReceiver, FrameSender,
    NetworkHandle, NetworkThread, Target,
};

const KIND: FrameKind = FrameKind::FIRST_FREE;
const ECHO_BYTES: usize = 8192;
const ROUNDS: usize = 5000;
const WARM_UP: usize = 1000;
const BULK_BYTES: usize = 256 << 20;
const BULK_FRAME_BYTES: usize = 1 << 20;
const REPEATS: usize = 3;

type Stream = (FrameSender, FrameReceiver);

struct Peer {
    _network: NetworkThread,
    _endpoint: Endpoint,
    connections: [Connection; 3],
}

fn main() {
    let network = NetworkThread::start("client").expect("a thread starts");
    let authority = CertificateAuthority::create(SystemTime::now()).expect("a CA is made");
    let (client, _accepted) = open(&network.handle(), &authority, "client");
    let client = Arc::new(client);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        let mut peers = Vec::new();
        for index in 0..4 {
            peers.push(start_peer(&client, &authority, &format!("peer-{index}")).await);
        }
        // Paths need a moment of traffic until their MTU is found; the warm-ups give it.
        for _ in 0..REPEATS {
            for hosts in [1, 4] {
                let streams = open_all(&peers[..hosts], 0).await;
                let times = network.handle().run(echo(streams)).await.expect("the thread runs");
                report(&format!("frames of 8 KiB to {hosts} and back"), times);
            }
            let (sender, receiver) = peers[0].connections[1].open().await.expect("a stream opens");
            let times = network.handle().run(echo_bare(sender, receiver)).await.expect("the thread runs");
            report("8 KiB without frames to 1 and back", times);
            let (sender, receiver) = peers[0].connections[2].open().await.expect("a stream opens");
            let took = network.handle().run(bulk(sender, receiver)).await.expect("the thread runs");
            let rate = BULK_BYTES as f64 / took.as_secs_f64() / f64::from(1 << 30);
            let stats = peers[0].connections[2].stats();
            println!(
                "bulk frames of 1 MiB: {rate:.2} GiB/s (path MTU {}, lost {})",
                stats.mtu_bytes, stats.lost_packets
            );
        }
    });
}

fn open(
    network: &NetworkHandle,
    authority: &CertificateAuthority,
    name: &str,
) -> (Endpoint, stellate_runtime::transport::Accepted) {
    let name = name.parse().expect("a name");
    let credentials: Arc<Credentials> =
        authority.issue_node(&name, SystemTime::now()).expect("issued").into();
    let revocations = Revocations::new(authority.certificate()).expect("the CA has a key");
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    Endpoint::bind(network, EndpointSetup::new(address, credentials, revocations)).expect("a port is free")
}

/// A peer that answers decode frames with themselves, bare bytes on the control class, and the last bulk frame.
async fn start_peer(client: &Endpoint, authority: &CertificateAuthority, name: &str) -> Peer {
    let network = NetworkThread::start(name).expect("a thread starts");
    let (endpoint, mut accepted) = open(&network.handle(), authority, name);
    let handle = network.handle();
    handle.spawn(async move {
        while let Some(connection) = accepted.next().await {
            tokio::spawn(async move {
                while let Ok((sender, receiver)) = connection.accept().await {
                    match connection.class() {
                        ConnectionClass::Decode => drop(tokio::spawn(answer_frames(sender, receiver, 1))),
                        ConnectionClass::Bulk => {
                            drop(tokio::spawn(answer_frames(
                                sender,
                                receiver,
                                BULK_BYTES / BULK_FRAME_BYTES,
                            )));
                        }
                        _ => drop(tokio::spawn(answer_bare(sender, receiver))),
                    }
                }
            });
        }
    });
    let target = Target::seed(endpoint.local_address().expect("it is bound"));
    let dial = |class| client.dial(target.clone(), class);
    let connections = [
        dial(ConnectionClass::Decode).await.expect("dialled"),
        dial(ConnectionClass::Control).await.expect("dialled"),
        dial(ConnectionClass::Bulk).await.expect("dialled"),
    ];
    Peer { _network: network, _endpoint: endpoint, connections }
}

async fn open_all(peers: &[Peer], connection: usize) -> Vec<Stream> {
    let mut streams = Vec::new();
    for peer in peers {
        streams.push(peer.connections[connection].open().await.expect("a stream opens"));
    }
    streams
}

/// Sends back each `every`-th frame.
async fn answer_frames(mut sender: FrameSender, mut receiver: FrameReceiver, every: usize) {
    let mut count = 0;
    while let Ok(Some(frame)) = receiver.receive().await {
        count += 1;
        if count % every == 0 && sender.send(KIND, &0u64, &[frame.payload.as_bytes()]).await.is_err() {
            return;
        }
        receiver.recycle(frame.payload);
    }
}

async fn answer_bare(sender: FrameSender, receiver: FrameReceiver) {
    let (mut send, (mut receive, _)) = (sender.into_inner(), receiver.into_inner());
    let mut buffer = vec![0; ECHO_BYTES];
    while receive.read_exact(&mut buffer).await.is_ok() && send.write_all(&buffer).await.is_ok() {}
}

async fn echo(mut streams: Vec<Stream>) -> Vec<Duration> {
    let payload = vec![7u8; ECHO_BYTES];
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..WARM_UP + ROUNDS {
        let start = Instant::now();
        for (sender, _) in &mut streams {
            sender.send(KIND, &(round as u64), &[&payload]).await.expect("sent");
        }
        for (_, receiver) in &mut streams {
            let frame = receiver.expect().await.expect("answered");
            receiver.recycle(frame.payload);
        }
        times.extend((round >= WARM_UP).then(|| start.elapsed()));
    }
    times
}

async fn echo_bare(sender: FrameSender, receiver: FrameReceiver) -> Vec<Duration> {
    let (mut send, (mut receive, _)) = (sender.into_inner(), receiver.into_inner());
    let payload = vec![7u8; ECHO_BYTES];
    let mut buffer = vec![0; ECHO_BYTES];
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..WARM_UP + ROUNDS {
        let start = Instant::now();
        send.write_all(&payload).await.expect("sent");
        receive.read_exact(&mut buffer).await.expect("answered");
        times.extend((round >= WARM_UP).then(|| start.elapsed()));
    }
    times
}

async fn bulk(mut sender: FrameSender, mut receiver: FrameReceiver) -> Duration {
    let payload = bytes::Bytes::from(vec![7u8; BULK_FRAME_BYTES]);
    let start = Instant::now();
    for frame in 0..BULK_BYTES / BULK_FRAME_BYTES {
        sender.send_bytes(KIND, &(frame as u64), payload.clone()).await.expect("sent");
    }
    receiver.expect().await.expect("answered");
    start.elapsed()
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    println!("{what}: p50 {:.0} µs, p99 {:.0} µs", at(0.5), at(0.99));
}
