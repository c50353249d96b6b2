//! A block's way to another node as a migration goes it, beside as many bytes over a bare QUIC stream with the same settings.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use serde::Serialize;
use stellate_actors::budget::KvBudget;
use stellate_actors::context_host::Reserved;
use stellate_actors::link::HostId;
use stellate_actors::port::HostPort as _;
use stellate_actors::remote::{BlockServer, Landing, LocalHosts, fetch_block};
use stellate_model::block::BlockId;
use stellate_runtime::transport::{Connection, ConnectionClass};

use super::nodes::{Asker, FORMAT, decoder, start_host};
use super::quantile;
use crate::human;

const LAYERS: usize = 16;
const BLOCK_TOKENS: usize = 2048;
const HOST: HostId = HostId(0);
const BLOCK: BlockId = BlockId::from_bytes([2; 32]);
/// Bytes written at once, as pieces of a block are.
const WRITE_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 64 << 10;

/// Copies of one block.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Copies {
    block_bytes: usize,
    /// Medians, in bytes a second.
    bare_bytes_per_s: f64,
    copy_bytes_per_s: f64,
    ratio: f64,
}

impl Copies {
    pub(super) fn to_text(&self) -> String {
        let rate = |rate: f64| format!("{}/s", human::bytes(rate as usize));
        format!(
            "A block of {} to another node, hashed on both: {}; bare bytes {}: {:.2} ×",
            human::bytes(self.block_bytes),
            rate(self.copy_bytes_per_s),
            rate(self.bare_bytes_per_s),
            self.ratio
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
    block.raw_mut().iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
    block.set_len(BLOCK_TOKENS);
    let block_bytes = block.bytes();
    host.seal(BLOCK, block).await?;
    let asker = Asker::new()?;
    let blocks = BlockServer::new(LocalHosts::new([host], &decoder, shape));
    let bytes = Bytes::from(vec![7; block_bytes]);
    let node = asker.node("source", move |connection| {
        let (blocks, bytes) = (blocks.clone(), bytes.clone());
        async move {
            match connection.class() {
                ConnectionClass::Bulk => blocks.serve(connection).await,
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
    Ok(Copies { block_bytes, bare_bytes_per_s, copy_bytes_per_s, ratio })
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
