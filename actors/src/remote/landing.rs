//! Where a block arrives: the memory that it will lie in, filled from the front, and the hash of what is there. Copying and
//! hashing are done on a thread that may block, piece by piece, beside the network thread that receives.

use stellate_kernels::KvShape;
use stellate_runtime::transport::{Frame, FrameError, FrameReceiver, Payload, StreamError};
use tokio::sync::mpsc;

use super::blocks::{FetchError, in_time};
use super::frames::{DONE, Done, PIECE, PIECE_BYTES, Piece};
use crate::budget::BudgetedBlock;

/// Pieces that wait to be copied: enough that neither side waits for the other at each piece.
const PIECES_AHEAD: usize = 4;

/// A block of which the first bytes are there. It survives the connections that fill it.
#[derive(Debug)]
pub struct Landing {
    shape: KvShape,
    tokens: usize,
    arrived: usize,
    /// `None` while a thread fills it, and for ever if that thread was left behind.
    strip: Option<Strip>,
    is_verified: bool,
}

#[derive(Debug)]
struct Strip {
    block: BudgetedBlock,
    arrived: usize,
    hasher: blake3::Hasher,
}

impl Landing {
    /// For a block of `tokens` tokens, which `room` is made for.
    ///
    /// # Panics
    /// If the room is for another number of tokens.
    pub fn new(room: BudgetedBlock, tokens: usize) -> Self {
        assert_eq!(room.bytes(), room.shape().bytes_for(tokens), "the room is as large as the block");
        let shape = room.shape();
        let strip = Strip { block: room, arrived: 0, hasher: blake3::Hasher::new() };
        Self { shape, tokens, arrived: 0, strip: Some(strip), is_verified: false }
    }

    /// The shape of the block.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Tokens of the block.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes that are there, from the first on.
    pub fn arrived_bytes(&self) -> usize {
        self.arrived
    }

    /// The block, if all of it arrived and hashed right.
    pub fn into_block(self) -> Option<BudgetedBlock> {
        let mut block = self.strip.filter(|_| self.is_verified)?.block;
        block.set_len(self.tokens);
        Some(block)
    }

    /// Takes pieces until the hash comes, and compares it.
    pub(super) async fn receive(&mut self, receiver: &mut FrameReceiver) -> Result<(), FetchError> {
        let cut_off = || FetchError::Interrupted("an earlier copy was left within a piece".to_owned());
        let strip = self.strip.take().ok_or_else(cut_off)?;
        let (pieces, to_copy) = mpsc::channel(PIECES_AHEAD);
        let (give_back, mut spare) = mpsc::channel(PIECES_AHEAD);
        let copying = tokio::task::spawn_blocking(move || strip.fill(to_copy, &give_back));
        let received = self.pass_on(receiver, pieces, &mut spare).await;
        let strip = copying.await.map_err(|_| cut_off())?;
        self.arrived = strip.arrived;
        let Done { hash } = match received {
            Err(error) => {
                self.strip = Some(strip);
                return Err(error);
            }
            Ok(done) => done,
        };
        if strip.hasher.finalize() == blake3::Hash::from_bytes(hash) {
            self.is_verified = true;
            self.strip = Some(strip);
            return Ok(());
        }
        self.arrived = 0;
        self.strip = Some(Strip { block: strip.block, arrived: 0, hasher: blake3::Hasher::new() });
        Err(FetchError::Hash)
    }

    /// Passes pieces on to the thread that copies, until all are there and the hash came.
    async fn pass_on(
        &self,
        receiver: &mut FrameReceiver,
        pieces: mpsc::Sender<Payload>,
        spare: &mut mpsc::Receiver<Payload>,
    ) -> Result<Done, FetchError> {
        let total = self.shape.bytes_for(self.tokens);
        let mut at = self.arrived;
        while at < total {
            while let Ok(payload) = spare.try_recv() {
                receiver.recycle(payload);
            }
            let frame = in_time(receiver.expect()).await?;
            check_piece(&frame, at, total)?;
            at += frame.payload.len();
            let stopped = |_| FetchError::Interrupted("copying has stopped".to_owned());
            pieces.send(frame.payload).await.map_err(stopped)?;
        }
        Ok(in_time(receiver.expect()).await?.expect(DONE).map_err(StreamError::from)?)
    }
}

/// Whether a frame is the piece that belongs behind the first `at` bytes.
fn check_piece(frame: &Frame, at: usize, total: usize) -> Result<(), StreamError> {
    let piece: Piece = frame.expect(PIECE)?;
    let fits = piece.offset == at as u64 && (1..=PIECE_BYTES.min(total - at)).contains(&frame.payload.len());
    let problem = || "a piece is not the one that comes next".to_owned();
    if fits { Ok(()) } else { Err(FrameError::Header { kind: PIECE, problem: problem() }.into()) }
}

impl Strip {
    fn fill(mut self, mut pieces: mpsc::Receiver<Payload>, give_back: &mpsc::Sender<Payload>) -> Self {
        while let Some(piece) = pieces.blocking_recv() {
            let bytes = piece.as_bytes();
            let end = self.arrived + bytes.len();
            self.block.raw_mut()[self.arrived..end].copy_from_slice(bytes);
            self.hasher.update(bytes);
            self.arrived = end;
            // Where nobody waits for the memory, it goes.
            let _ = give_back.try_send(piece);
        }
        self
    }
}
