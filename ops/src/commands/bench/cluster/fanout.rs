//! One layer's fan-out to hosts of other nodes, beside the same bytes over bare QUIC streams and the same fan-out through memory.
//! The three take turns, so that a machine that grows slower meanwhile slows all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use stellate_actors::cancel::CancelToken;
use stellate_actors::context_host::{ContextHostHandle, EncodeJob};
use stellate_actors::link::{AttendRequest, Fold, HostId, HostLink};
use stellate_actors::port::HostPort as _;
use stellate_actors::progress::EncodeMeter;
use stellate_actors::remote::frames::{Attend, Attended};
use stellate_actors::remote::{
    AttendShape, DecodeChannel, DecodeOptions, LocalHosts, NodeDialer, serve_decode,
};
use stellate_kernels::Partial;
use stellate_model::block::BlockId;
use stellate_model::decoder::Decoder;
use stellate_runtime::transport::{Connection, ConnectionClass, PREAMBLE_BYTES};

use super::nodes::{Asked, Asker, FORMAT, decoder, start_host};
use super::quantile;
use crate::human;
use crate::report::table;

const HOSTS: [usize; 4] = [1, 2, 4, 8];
/// Paths need a moment of traffic until their largest packet is found.
const WARM_UP: usize = 500;
const TURNS: usize = 3;
const BLOCK: BlockId = BlockId::from_bytes([1; 32]);

/// A fan-out to so many hosts.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FanOut {
    hosts: usize,
    request_bytes: usize,
    reply_bytes: usize,
    bare: Micros,
    memory: Micros,
    network: Micros,
    /// p50 over the network by p50 of the bare echo.
    ratio: f64,
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Micros {
    p50_us: f64,
    p99_us: f64,
}

impl Micros {
    pub(super) fn of(times: &[Duration]) -> Self {
        let mut micros: Vec<_> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        micros.sort_by(f64::total_cmp);
        Self { p50_us: quantile(&micros, 0.5), p99_us: quantile(&micros, 0.99) }
    }

    /// Both, with their unit.
    pub(super) fn words(self) -> [String; 2] {
        [self.p50_us, self.p99_us].map(|us| format!("{us:.0} µs"))
    }
}

/// A node with one context host; its control connections answer bare bytes.
struct Node {
    _node: Asked,
    bare: Connection,
    host: ContextHostHandle,
    channel: DecodeChannel,
}

pub(super) async fn measure(rounds: usize) -> anyhow::Result<Vec<FanOut>> {
    let asker = Asker::new()?;
    let decoder = decoder(1)?;
    let shape = AttendShape::of(&decoder);
    let mut nodes = Vec::new();
    for number in 0..HOSTS[HOSTS.len() - 1] {
        nodes.push(node(&asker, &decoder, number).await?);
    }
    let mut measured = Vec::new();
    for hosts in HOSTS {
        let (mut bare, mut memory, mut network) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let connections: Vec<_> = nodes[..hosts].iter().map(|node| node.bare.clone()).collect();
            let echoing = asker.network.handle().spawn(bare_echo(connections, shape, rounds));
            bare.extend(echoing.await??);
            let links = nodes[..hosts].iter().map(|node| node.host.link()).collect();
            memory.extend(fan_out(links, shape, BLOCK, rounds).await?);
            let links = nodes[..hosts].iter().map(|node| node.channel.link()).collect();
            network.extend(fan_out(links, shape, BLOCK, rounds).await?);
        }
        let [bare, memory, network] = [bare, memory, network].map(|times| Micros::of(&times));
        let (request_bytes, reply_bytes) = frame_bytes(shape);
        let ratio = network.p50_us / bare.p50_us;
        measured.push(FanOut { hosts, request_bytes, reply_bytes, bare, memory, network, ratio });
    }
    Ok(measured)
}

pub(super) fn table(measured: &[FanOut]) -> String {
    let row = |fan_out: &FanOut| {
        let bytes = [fan_out.request_bytes, fan_out.reply_bytes].map(human::count);
        let mut row = vec![fan_out.hosts.to_string(), bytes.join(" + ")];
        for times in [fan_out.bare, fan_out.memory, fan_out.network] {
            row.extend(times.words());
        }
        row.push(format!("{:.2} ×", fan_out.ratio));
        row
    };
    let header = [
        "hosts",
        "bytes out + back",
        "bare echo p50",
        "p99",
        "memory p50",
        "p99",
        "fan-out p50",
        "p99",
        "fan-out by bare",
    ];
    table::markdown(&header, measured.iter().map(row).collect(), 0)
}

async fn node(asker: &Asker, decoder: &Arc<Decoder>, number: usize) -> anyhow::Result<Node> {
    let id = HostId(number as u64);
    let host = start_host(decoder, id, 64).await?;
    let job = EncodeJob {
        id: BLOCK,
        ids: [1].into(),
        position: 0,
        anchor: None,
        recompute_anchor: false,
        meter: EncodeMeter::default(),
        cancel: CancelToken::default(),
    };
    host.encode(job).await?;
    let shape = AttendShape::of(decoder);
    let hosts = LocalHosts::new([host.clone()], decoder, decoder.kv_shape(FORMAT));
    let node = asker.node(&format!("node-{number}"), move |connection| {
        let hosts = hosts.clone();
        async move {
            match connection.class() {
                ConnectionClass::Decode => serve_decode(connection, hosts).await,
                _ => answer_bare(connection, shape).await,
            }
        }
    })?;
    let bare = asker.endpoint.dial(node.target()?, ConnectionClass::Control).await?;
    let from = Arc::clone(&asker.endpoint);
    let dialer = NodeDialer::new(from, node.target()?, ConnectionClass::Decode, Arc::new(|_| {}));
    let options = DecodeOptions::default();
    let channel = DecodeChannel::new(&asker.network.handle(), id, shape, Arc::new(dialer), options);
    Ok(Node { _node: node, bare, host, channel })
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

async fn bare_echo(
    connections: Vec<Connection>,
    shape: AttendShape,
    rounds: usize,
) -> anyhow::Result<Vec<Duration>> {
    let (request, reply) = frame_bytes(shape);
    let (request, mut reply) = (vec![7; request], vec![0; reply]);
    let mut streams = Vec::new();
    for connection in &connections {
        let (sender, receiver) = connection.open().await?;
        streams.push((sender.into_inner(), receiver.into_inner().0));
    }
    let mut times = Vec::with_capacity(rounds);
    for round in 0..WARM_UP + rounds {
        let start = Instant::now();
        for (send, _) in &mut streams {
            send.write_all(&request).await?;
        }
        for (_, receive) in &mut streams {
            receive.read_exact(&mut reply).await?;
        }
        times.extend((round >= WARM_UP).then(|| start.elapsed()));
    }
    Ok(times)
}

/// Asks for attention over `block`, on a thread that may block, as a query host's device thread does it.
pub(super) async fn fan_out<L: HostLink + 'static>(
    mut links: Vec<L>,
    shape: AttendShape,
    block: BlockId,
    rounds: usize,
) -> anyhow::Result<Vec<Duration>> {
    let asking = tokio::task::spawn_blocking(move || {
        let blocks: Arc<[BlockId]> = [block].into();
        let queries = Arc::new(vec![0.5; shape.heads * shape.head_dim]);
        let mut spare: Vec<Vec<Partial>> = vec![Vec::new(); links.len()];
        let mut times = Vec::with_capacity(rounds);
        for round in 0..WARM_UP + rounds {
            let start = Instant::now();
            for (link, spare) in links.iter_mut().zip(&mut spare) {
                let (blocks, queries) = (Arc::clone(&blocks), Arc::clone(&queries));
                let partials = std::mem::take(spare);
                link.post(AttendRequest { layer: 0, blocks, fold: Fold::ByHost, queries, partials })?;
            }
            for (link, spare) in links.iter_mut().zip(&mut spare) {
                *spare = link.wait()?.partials;
            }
            times.extend((round >= WARM_UP).then(|| start.elapsed()));
        }
        anyhow::Ok(times)
    });
    asking.await.context("the asking thread")?
}
