//! Where a block arrives: the memory that it will lie in, filled from the front, and the checksum of what is there. Bytes are
//! copied and summed on a thread that may block, beside the network thread that receives; they are copied once, from the packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use stellate_kernels::KvShape;
use stellate_runtime::transport::{FrameError, FrameReceiver, OpenFrame, StreamError};
use tokio::sync::mpsc;

use super::blocks::{FetchError, in_time};
use super::frames::{BlockHead, DONE, Done, PIECE, PIECE_BYTES, Piece};
use crate::budget::BudgetedBlock;
use crate::cancel::CancelToken;
use crate::checksum::Checksum;
use crate::context_host::strip::Strip;

/// Bytes that are handed to the thread that copies at once: few enough to be summed while they are in the nearest cache.
const BATCH_BYTES: usize = 64 << 10;

/// Packets of which a batch is made at most: each keeps its memory, however little of it is the batch's.
const BATCH_PARTS: usize = 128;

/// Batches that wait to be copied: enough that neither side waits for the other at each.
const BATCHES_AHEAD: usize = 16;

/// A block of which the first bytes are there. It survives the connections that fill it.
#[derive(Debug)]
pub struct Landing {
    shape: KvShape,
    bytes: usize,
    tokens: usize,
    arrived: usize,
    /// `None` while a thread fills it, and for ever if that thread was left behind.
    strip: Option<Strip>,
    checksum: Option<Checksum>,
    cancel: CancelToken,
    count: Arc<AtomicU64>,
}

impl Landing {
    /// For a block of `tokens` tokens, which `room` is made for.
    ///
    /// # Panics
    /// If the room is for another number of tokens.
    pub fn new(room: BudgetedBlock, tokens: usize) -> Self {
        assert_eq!(room.bytes(), room.shape().bytes_for(tokens), "the room is as large as the block");
        Self { tokens, ..Self::on(Strip::new(room), CancelToken::default(), Arc::default()) }
    }

    /// For a block of as many bytes as there is room for, some of which may be there. Copies into it end when `cancel` says
    /// so, and `count` is told of the bytes that have come.
    pub fn on(strip: Strip, cancel: CancelToken, count: Arc<AtomicU64>) -> Self {
        let (shape, bytes, arrived) = (strip.shape(), strip.bytes(), strip.arrived_bytes());
        let tokens = strip.capacity_tokens();
        Self { shape, bytes, tokens, arrived, strip: Some(strip), checksum: None, cancel, count }
    }

    /// The shape of the block.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Tokens of the block; before its head has come, tokens that there is room for.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes that are there, from the first on.
    pub fn arrived_bytes(&self) -> usize {
        self.arrived
    }

    /// The checksum of the block as it was sent, if all of it arrived and has the same.
    pub fn checksum(&self) -> Option<Checksum> {
        self.checksum
    }

    /// The block, if all of it arrived as it was sent.
    pub fn into_block(self) -> Option<BudgetedBlock> {
        let tokens = self.tokens;
        self.strip.filter(|_| self.checksum.is_some()).map(|strip| strip.into_block(tokens))
    }

    /// The room, with what has arrived, unless a copy was left within a piece.
    pub fn into_strip(self) -> Option<Strip> {
        self.strip
    }

    /// Ends copies into it.
    pub(super) fn cancel(&self) -> &CancelToken {
        &self.cancel
    }

    /// Whether a block of this head, from where this one ends, fits; and takes its number of tokens if so.
    pub(super) fn take_head(&mut self, head: &BlockHead) -> bool {
        let tokens = usize::try_from(head.tokens).unwrap_or(usize::MAX);
        let fits = tokens <= self.tokens
            && self.shape.bytes_for(tokens) == self.bytes
            && head.is_of(self.shape, tokens, self.arrived as u64);
        if fits {
            self.tokens = tokens;
        }
        fits
    }

    /// Takes pieces until the checksum comes, and compares it.
    pub(super) async fn receive(&mut self, receiver: &mut FrameReceiver) -> Result<(), FetchError> {
        let cut_off = || FetchError::Interrupted("an earlier copy was left within a piece".to_owned());
        let strip = self.strip.take().ok_or_else(cut_off)?;
        let (batches, to_copy) = mpsc::channel(BATCHES_AHEAD);
        let count = Arc::clone(&self.count);
        let copying = tokio::task::spawn_blocking(move || fill(strip, to_copy, &count));
        // Not dropped when it is cancelled, but ended: the memory is here again when this returns.
        let received = tokio::select! {
            received = self.pass_on(receiver, batches) => received,
            () = self.cancel.cancelled() => Err(FetchError::Cancelled),
        };
        let strip = copying.await.map_err(|_| cut_off())?;
        self.arrived = strip.arrived_bytes();
        let strip = self.strip.insert(strip);
        let Done { checksum } = received?;
        if strip.checksum() == checksum {
            self.checksum = Some(checksum);
            return Ok(());
        }
        strip.restart();
        self.arrived = 0;
        self.count.store(0, Ordering::Relaxed);
        Err(FetchError::Checksum)
    }

    /// Passes bytes on to the thread that copies, until all are there and the checksum came.
    async fn pass_on(
        &self,
        receiver: &mut FrameReceiver,
        batches: mpsc::Sender<Vec<Bytes>>,
    ) -> Result<Done, FetchError> {
        let stopped = |_| FetchError::Interrupted("copying has stopped".to_owned());
        let (total, mut at) = (self.bytes, self.arrived);
        while at < total {
            let piece = in_time(receiver.expect_open()).await?;
            check_piece(&piece, at, total)?;
            at += piece.payload_bytes;
            let mut left = piece.payload_bytes;
            while left > 0 {
                let batch = in_time(take_batch(receiver, left)).await?;
                left -= batch.iter().map(Bytes::len).sum::<usize>();
                batches.send(batch).await.map_err(stopped)?;
            }
        }
        Ok(in_time(receiver.expect()).await?.expect(DONE).map_err(StreamError::from)?)
    }
}

/// Some of the `left` bytes of a piece, as they come.
async fn take_batch(receiver: &mut FrameReceiver, left: usize) -> Result<Vec<Bytes>, StreamError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < left.min(BATCH_BYTES) && batch.len() < BATCH_PARTS {
        let part = receiver.chunk().await?;
        bytes += part.len();
        batch.push(part);
    }
    Ok(batch)
}

/// Whether a frame is the piece that belongs behind the first `at` bytes.
fn check_piece(frame: &OpenFrame, at: usize, total: usize) -> Result<(), StreamError> {
    let piece: Piece = frame.expect(PIECE)?;
    let fits = piece.offset == at as u64 && (1..=PIECE_BYTES.min(total - at)).contains(&frame.payload_bytes);
    let problem = || "a piece is not the one that comes next".to_owned();
    if fits { Ok(()) } else { Err(FrameError::Header { kind: PIECE, problem: problem() }.into()) }
}

/// Copies bytes until no more come.
fn fill(mut strip: Strip, mut batches: mpsc::Receiver<Vec<Bytes>>, count: &AtomicU64) -> Strip {
    while let Some(batch) = batches.blocking_recv() {
        strip.fill(&batch);
        count.store(strip.arrived_bytes() as u64, Ordering::Relaxed);
    }
    strip
}
