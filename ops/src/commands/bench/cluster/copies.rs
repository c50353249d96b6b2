//! A block's way to another node as a migration goes it, beside as many bytes over a bare QUIC stream with the same settings; and
//! what attention over that block takes meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use serde::Serialize;
use stellate_actors::budget::KvBudget;
use stellate_actors::cancel::CancelToken;
use stellate_actors::context_host::Reserved;
use stellate_actors::context_host::strip::Strip;
use stellate_actors::link::HostId;
use stellate_actors::port::HostPort as _;
use stellate_actors::remote::{
    AttendShape, BlockServer, DecodeChannel, DecodeOptions, FetchError, Landing, LocalHosts, NodeDialer,
    fetch_block, serve_decode,
};
use stellate_kernels::KvShape;
use stellate_model::block::BlockId;
use stellate_model::decoder::Decoder;
use stellate_runtime::transport::{Connection, ConnectionClass};
use tokio::task::JoinHandle;

use super::fanout::{Micros, fan_out};
use super::nodes::{Asked, Asker, FORMAT, decoder, start_host};
use super::quantile;
use crate::human;

const LAYERS: usize = 16;
const BLOCK_TOKENS: usize = 2048;
const HOST: HostId = HostId(0);
const BLOCK: BlockId = BlockId::from_bytes([2; 32]);
/// Bytes written at once, as pieces of a block are.
const WRITE_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 64 << 10;
/// Rounds of attention for every copy.
const ROUNDS_A_COPY: usize = 200;

/// Copies of one block.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Copies {
    block_bytes: usize,
    /// Medians, in bytes a second.
    bare_bytes_per_s: f64,
    copy_bytes_per_s: f64,
    ratio: f64,
    attention: Attention,
}

/// One layer's attention of one token over the block, asked from another node.
#[derive(Clone, Debug, Serialize)]
struct Attention {
    alone: Micros,
    /// While the block is copied again and again.
    beside_copies: Micros,
    /// Of those copies.
    copy_bytes_per_s: f64,
}

impl Copies {
    pub(super) fn to_text(&self) -> String {
        let rate = |rate: f64| format!("{}/s", human::bytes(rate as usize));
        let Attention { alone, beside_copies, copy_bytes_per_s } = &self.attention;
        let ([alone, alone_p99], [beside, beside_p99]) = (alone.words(), beside_copies.words());
        format!(
            "A block of {} to another node, summed on both: {}; bare bytes {}: {:.2} ×.\n\
             A layer's attention over it from another node: p50 {alone}, p99 {alone_p99}; while it is copied, held back to {}: \
             p50 {beside}, p99 {beside_p99}.",
            human::bytes(self.block_bytes),
            rate(self.copy_bytes_per_s),
            rate(self.bare_bytes_per_s),
            self.ratio,
            rate(*copy_bytes_per_s),
        )
    }
}

pub(super) async fn measure(copies: usize) -> anyhow::Result<Copies> {
    let decoder = decoder(LAYERS)?;
    let shape = decoder.kv_shape(FORMAT);
    let host = start_host(&decoder, HOST, BLOCK_TOKENS).await?;
    let Reserved::Room(mut block) = host.reserve(BLOCK, BLOCK_TOKENS).await? else {
        bail!("a new host holds no block");
    };
    // Small numbers, all of which are different from their neighbours.
    block
        .raw_mut()
        .as_chunks_mut()
        .0
        .iter_mut()
        .enumerate()
        .for_each(|(at, pair)| *pair = [(at % 251) as u8, 0x3c]);
    block.set_len(BLOCK_TOKENS);
    let block_bytes = block.bytes();
    host.seal(BLOCK, block).await?;
    let asker = Asker::new()?;
    let hosts = LocalHosts::new([host], &decoder, shape);
    let blocks = BlockServer::new(hosts.clone());
    let bytes = Bytes::from(vec![7; block_bytes]);
    let node = asker.node("source", move |connection| {
        let (blocks, hosts, bytes) = (blocks.clone(), hosts.clone(), bytes.clone());
        async move {
            match connection.class() {
                ConnectionClass::Bulk => blocks.serve(connection).await,
                ConnectionClass::Decode => serve_decode(connection, hosts).await,
                _ => send_bare(connection, bytes).await,
            }
        }
    })?;
    let bulk = asker.endpoint.dial(node.target()?, ConnectionClass::Bulk).await?;
    let bare = asker.endpoint.dial(node.target()?, ConnectionClass::Control).await?;
    let (mut copied, mut moved) = (Vec::new(), Vec::new());
    // One more of each first: paths need traffic until their largest packet is found.
    for copy in 0..=copies {
        let took = asker.network.handle().spawn(receive_bare(bare.clone(), block_bytes)).await??;
        let budget = KvBudget::new(shape, usize::MAX);
        let mut landing = Landing::new(budget.allocate(BLOCK_TOKENS)?, BLOCK_TOKENS);
        let connection = bulk.clone();
        let fetching = asker.network.handle().spawn(async move {
            let start = Instant::now();
            let fetched = fetch_block(&connection, HOST, BLOCK, &mut landing, None).await;
            fetched.map(|()| (start.elapsed().as_secs_f64(), landing))
        });
        let (fetched, landing) = fetching.await??;
        ensure!(landing.into_block().is_some(), "the block did not arrive whole");
        if copy > 0 {
            moved.push(block_bytes as f64 / took);
            copied.push(block_bytes as f64 / fetched);
        }
    }
    let [bare_bytes_per_s, copy_bytes_per_s] = [moved, copied].map(|mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        quantile(&rates, 0.5)
    });
    let ratio = copy_bytes_per_s / bare_bytes_per_s;
    let attention = attention(&asker, &node, bulk, &decoder, ROUNDS_A_COPY * copies).await?;
    Ok(Copies { block_bytes, bare_bytes_per_s, copy_bytes_per_s, ratio, attention })
}

/// Asks for attention over the block of `node`, alone and while it is copied.
async fn attention(
    asker: &Asker,
    node: &Asked,
    bulk: Connection,
    decoder: &Decoder,
    rounds: usize,
) -> anyhow::Result<Attention> {
    let from = Arc::clone(&asker.endpoint);
    let dialer = NodeDialer::new(from, node.target()?, ConnectionClass::Decode, Arc::new(|_| {}));
    let (attend, options) = (AttendShape::of(decoder), DecodeOptions::default());
    let channel = DecodeChannel::new(&asker.network.handle(), HOST, attend, Arc::new(dialer), options);
    let ask = || fan_out(vec![channel.link()], attend, BLOCK, rounds);
    let alone = ask().await?;
    let copying = Copying::start(bulk, decoder.kv_shape(FORMAT));
    let asked = ask().await;
    let copied = copying.end().await?;
    let [alone, beside_copies] = [alone, asked?].map(|times| Micros::of(&times));
    Ok(Attention { alone, beside_copies, copy_bytes_per_s: copied })
}

/// The block, copied again and again.
struct Copying {
    start: Instant,
    stop: CancelToken,
    /// Bytes of the copies that are done, and of the one under way.
    bytes: [Arc<AtomicU64>; 2],
    task: JoinHandle<anyhow::Result<()>>,
}

impl Copying {
    fn start(bulk: Connection, shape: KvShape) -> Self {
        let (stop, bytes) = (CancelToken::default(), [Arc::default(), Arc::<AtomicU64>::default()]);
        let (stopped, [done, now]) = (stop.clone(), bytes.clone());
        let task = tokio::spawn(async move {
            // One memory for all: nobody gives a block's back as soon as it has come.
            let mut block = KvBudget::new(shape, usize::MAX).allocate(BLOCK_TOKENS)?;
            loop {
                let room = Strip::new(block);
                let block_bytes = room.bytes() as u64;
                let mut landing = Landing::on(room, stopped.clone(), Arc::clone(&now));
                match fetch_block(&bulk, HOST, BLOCK, &mut landing, None).await {
                    Err(FetchError::Cancelled) => return Ok(()),
                    fetched => fetched?,
                }
                now.store(0, Ordering::Relaxed);
                done.fetch_add(block_bytes, Ordering::Relaxed);
                block = landing.into_block().context("the block did not arrive whole")?;
            }
        });
        Self { start: Instant::now(), stop, bytes, task }
    }

    /// Ends it. Gives the bytes a second that came.
    async fn end(self) -> anyhow::Result<f64> {
        let bytes = self.bytes.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum::<u64>();
        let seconds = self.start.elapsed().as_secs_f64();
        self.stop.cancel();
        self.task.await??;
        Ok(bytes as f64 / seconds)
    }
}

/// Sends these bytes on each stream that the peer opens, as they lie.
async fn send_bare(connection: Connection, bytes: Bytes) {
    while let Ok((sender, receiver)) = connection.accept().await {
        let bytes = bytes.clone();
        tokio::spawn(async move {
            let mut send = sender.into_inner();
            for at in (0..bytes.len()).step_by(WRITE_BYTES) {
                let piece = bytes.slice(at..(at + WRITE_BYTES).min(bytes.len()));
                if send.write_chunk(piece).await.is_err() {
                    return;
                }
            }
            let _ = send.finish();
            drop(receiver);
        });
    }
}

/// Seconds until so many bytes have come.
async fn receive_bare(connection: Connection, bytes: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    let (sender, receiver) = connection.open().await?;
    let (mut send, (mut receive, _)) = (sender.into_inner(), receiver.into_inner());
    send.write_all(b"x").await?;
    let mut left = bytes;
    while left > 0 {
        let chunk = receive.read_chunk(READ_BYTES, true).await?.context("the stream ended early")?;
        left -= chunk.bytes.len();
    }
    Ok(start.elapsed().as_secs_f64())
}
