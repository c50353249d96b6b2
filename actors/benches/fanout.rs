//! What a layer's fan-out costs on loopback: `cargo bench -p stellate-actors --bench fanout`. Queries of one token in the shape
//! of Llama 3.2 1B go to 1, 2, 4 and 8 context hosts, each of a node with a network thread of its own, and their partials come
//! back; beside it the same bytes over bare QUIC streams of connections with the same settings, echoed by the nodes' network
//! threads, and the same fan-out to the same hosts through memory. Hosts attend one key. One argument: rounds.
#![allow(clippy::print_stdout)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ractor::call;
use stellate_actors::cancel::CancelToken;
use stellate_actors::context_host::{self, ContextHostArgs, ContextHostHandle, ContextHostMsg, EncodeJob};
use stellate_actors::engine::Engine;
use stellate_actors::link::{AttendRequest, Fold, HostId, HostLink};
use stellate_actors::progress::EncodeMeter;
use stellate_actors::remote::frames::{Attend, Attended};
use stellate_actors::remote::{
    AttendShape, DecodeChannel, DecodeOptions, LocalHosts, NodeDialer, serve_decode,
};
use stellate_actors::{KvFormat, WeightChoice};
use stellate_kernels::{Cpu, CpuOptions, Partial};
use stellate_model::block::BlockId;
use stellate_model::decoder::Decoder;
use stellate_model::random::{RandomModel, random_weights};
use stellate_runtime::clock::SystemClock;
use stellate_runtime::identity::{CertificateAuthority, Credentials, Revocations};
use stellate_runtime::transport::{
    Accepted, Connection, ConnectionClass, Endpoint, EndpointSetup, NetworkThread, PREAMBLE_BYTES, Target,
};

const WARM_UP: usize = 500;
const REPEATS: usize = 3;
const HOSTS: [usize; 4] = [1, 2, 4, 8];
const BLOCK: BlockId = BlockId::from_bytes([1; 32]);

/// A node with one context host; its control connections echo bare bytes.
struct Node {
    _network: NetworkThread,
    _endpoint: Endpoint,
    bare: Connection,
    host: ContextHostHandle,
    channel: DecodeChannel,
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(3000);
    let authority = CertificateAuthority::create(SystemTime::now()).expect("a CA is made");
    let network = NetworkThread::start("asker").expect("a thread starts");
    let endpoint = Arc::new(open(&network, &authority, "asker").0);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let decoder = decoder();
    let shape = AttendShape::of(&decoder);
    let most = HOSTS[HOSTS.len() - 1];
    let nodes: Vec<Node> = (0..most)
        .map(|number| runtime.block_on(node(&network, &endpoint, &authority, &decoder, number)))
        .collect();
    for repeat in 0..REPEATS {
        for count in HOSTS {
            let connections: Vec<_> = nodes[..count].iter().map(|node| node.bare.clone()).collect();
            let echoing = network.handle().spawn(bare_echo(connections, shape, rounds));
            let bare = report(runtime.block_on(echoing).expect("the echo ends"));
            let mut links: Vec<_> = nodes[..count].iter().map(|node| node.host.link()).collect();
            let memory = report(fan_out(&mut links, shape, rounds));
            let mut links: Vec<_> = nodes[..count].iter().map(|node| node.channel.link()).collect();
            let ours = report(fan_out(&mut links, shape, rounds));
            println!(
                "run {repeat}, {count} hosts: bare p50 {:.0} µs, p99 {:.0} µs; memory p50 {:.0} µs, p99 {:.0} µs; fan-out p50 {:.0} µs, p99 {:.0} µs: {:.2} x",
                bare.0,
                bare.1,
                memory.0,
                memory.1,
                ours.0,
                ours.1,
                ours.0 / bare.0
            );
        }
    }
}

/// One layer of the attention of a 1B model; the rest of it is as small as it can be.
fn decoder() -> Arc<Decoder> {
    let mut config = RandomModel::named("tiny").expect("it is a known shape");
    (config.layers, config.heads, config.kv_heads, config.head_dim) = (1, 32, 8, 64);
    let loaded = random_weights(&config, WeightChoice::F32, 1).expect("weights are made");
    Arc::new(Decoder::new(config, loaded))
}

async fn node(
    asker: &NetworkThread,
    from: &Arc<Endpoint>,
    authority: &CertificateAuthority,
    decoder: &Arc<Decoder>,
    number: usize,
) -> Node {
    let host = start_host(decoder, HostId(number as u64)).await;
    let name = format!("node-{number}");
    let network = NetworkThread::start(&name).expect("a thread starts");
    let (endpoint, mut accepted) = open(&network, authority, &name);
    let (shape, id) = (AttendShape::of(decoder), host.host);
    let hosts = LocalHosts::new([host.clone()], decoder, decoder.kv_shape(KvFormat::Bf16));
    network.handle().spawn(async move {
        while let Some(connection) = accepted.next().await {
            match connection.class() {
                ConnectionClass::Decode => drop(tokio::spawn(serve_decode(connection, hosts.clone()))),
                _ => drop(tokio::spawn(answer_bare(connection, shape))),
            }
        }
    });
    let address = endpoint.local_address().expect("it is bound");
    let target = Target::node(endpoint.credentials().id(), address);
    let bare = from.dial(target.clone(), ConnectionClass::Control).await.expect("dialled");
    let dialer = NodeDialer::new(Arc::clone(from), target, ConnectionClass::Decode, Arc::new(|_| {}));
    let options = DecodeOptions::default();
    let channel = DecodeChannel::new(&asker.handle(), id, shape, Arc::new(dialer), options);
    Node { _network: network, _endpoint: endpoint, bare, host, channel }
}

fn open(network: &NetworkThread, authority: &CertificateAuthority, name: &str) -> (Endpoint, Accepted) {
    let name = name.parse().expect("a name");
    let credentials: Arc<Credentials> =
        authority.issue_node(&name, SystemTime::now()).expect("issued").into();
    let revocations = Revocations::new(authority.certificate()).expect("the CA has a key");
    let setup = EndpointSetup::new((Ipv4Addr::LOCALHOST, 0).into(), credentials, revocations);
    Endpoint::bind(&network.handle(), setup).expect("a port is free")
}

/// A context host that holds a block of one token.
async fn start_host(decoder: &Arc<Decoder>, host: HostId) -> ContextHostHandle {
    let options = CpuOptions { name: host.to_string(), threads: 1, cpus: Vec::new() };
    let engine = Engine::new(Arc::clone(decoder), Box::new(Cpu::new(&options).expect("a backend")), 64);
    let kv_shape = decoder.kv_shape(KvFormat::Bf16);
    let capacity_bytes = kv_shape.bytes_for(64);
    let clock = Arc::new(SystemClock::new());
    let args = ContextHostArgs { host, engine, kv_shape, capacity_bytes, queue_jobs: 4, clock };
    let handle = context_host::start(args).await.expect("a host starts");
    let job = EncodeJob {
        id: BLOCK,
        ids: [1].into(),
        position: 0,
        anchor: None,
        recompute_anchor: false,
        meter: EncodeMeter::default(),
        cancel: CancelToken::default(),
    };
    call!(handle.actor, ContextHostMsg::Encode, job).expect("the host runs").expect("there is room");
    handle
}

/// Bytes of a request and of a reply of one token, as the fan-out sends them.
fn frame_bytes(shape: AttendShape) -> (usize, usize) {
    let request = PREAMBLE_BYTES + Attend::BYTES + shape.query_bytes(1);
    (request, PREAMBLE_BYTES + Attended::BYTES + shape.partial_bytes(1))
}

async fn answer_bare(connection: Connection, shape: AttendShape) {
    let (request, reply) = frame_bytes(shape);
    while let Ok((sender, receiver)) = connection.accept().await {
        tokio::spawn(async move {
            let (mut send, (mut receive, _)) = (sender.into_inner(), receiver.into_inner());
            let (mut asked, answer) = (vec![0; request], vec![3; reply]);
            while receive.read_exact(&mut asked).await.is_ok() && send.write_all(&answer).await.is_ok() {}
        });
    }
}

async fn bare_echo(connections: Vec<Connection>, shape: AttendShape, rounds: usize) -> Vec<Duration> {
    let (request, reply) = frame_bytes(shape);
    let (request, mut reply) = (vec![7; request], vec![0; reply]);
    let mut streams = Vec::new();
    for connection in &connections {
        let (sender, receiver) = connection.open().await.expect("a stream opens");
        streams.push((sender.into_inner(), receiver.into_inner().0));
    }
    let mut times = Vec::with_capacity(rounds);
    for round in 0..WARM_UP + rounds {
        let start = Instant::now();
        for (send, _) in &mut streams {
            send.write_all(&request).await.expect("sent");
        }
        for (_, receive) in &mut streams {
            receive.read_exact(&mut reply).await.expect("answered");
        }
        times.extend((round >= WARM_UP).then(|| start.elapsed()));
    }
    times
}

/// On this thread, as a query host's device thread does it.
fn fan_out<L: HostLink>(links: &mut [L], shape: AttendShape, rounds: usize) -> Vec<Duration> {
    let blocks: Arc<[BlockId]> = [BLOCK].into();
    let queries = Arc::new(vec![0.5; shape.heads * shape.head_dim]);
    let mut spare: Vec<Vec<Partial>> = vec![Vec::new(); links.len()];
    let mut times = Vec::with_capacity(rounds);
    for round in 0..WARM_UP + rounds {
        let start = Instant::now();
        for (link, spare) in links.iter_mut().zip(&mut spare) {
            let (blocks, queries) = (Arc::clone(&blocks), Arc::clone(&queries));
            let partials = std::mem::take(spare);
            let request = AttendRequest { layer: 0, blocks, fold: Fold::ByHost, queries, partials };
            link.post(request).expect("posted");
        }
        for (link, spare) in links.iter_mut().zip(&mut spare) {
            *spare = link.wait().expect("answered").partials;
        }
        times.extend((round >= WARM_UP).then(|| start.elapsed()));
    }
    times
}

/// p50 and p99 in microseconds.
fn report(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    (at(0.5), at(0.99))
}
