//! Blocks on their way between nodes, over bulk connections: who has one serves it from any offset on, who wants one takes
//! it straight into the memory it will lie in, and who has computed one for another host puts it there. Whether a block
//! should move is decided elsewhere.
//!
//! Bytes leave as they lie, without a copy; arriving ones are copied once, on a thread that may block, which also sums them
//! up. The checksum comes after the last byte, since it is computed meanwhile. Nothing of another checksum is ever sealed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stellate_model::block::BlockId;
use stellate_runtime::transport::{
    CloseCode, Closed, Connection, FrameError, FrameReceiver, FrameSender, StreamError,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::frames::{
    BLOCK, BlockHead, DONE, Done, FETCH, Fetch, NO_TRANSFER, NoTransfer, PIECE, PIECE_BYTES, PUT, PUT_REPLY,
    Piece, Put, PutReply,
};
pub use super::landing::Landing;
use super::pace::{Bucket, Pacer};
use super::serve::LocalHosts;
use crate::budget::{BudgetedBlock, StoreFull};
use crate::checksum::Checksum;
use crate::context_host::HostError;
use crate::context_host::held::Opening;
use crate::link::HostId;

/// Transfers of one connection under way; a host takes one at a time, a node a few.
const MAX_TRANSFERS: usize = 8;

/// How long a transfer waits for others to end before it is refused; less than who asked waits for an answer.
const TURN: Duration = Duration::from_secs(10);

/// Longest silence within a transfer. The room of one that stalls is given back.
pub(super) const STALL: Duration = Duration::from_secs(15);

/// A block did not arrive whole. What arrived is kept: fetching goes on behind it, from the same host or another one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The way broke.
    #[error("the copy of a block was cut off: {0}; fetch the rest")]
    Interrupted(String),
    /// The other side sent what no member sends.
    #[error("the copy of a block was broken off: {0}; fetch the rest")]
    Protocol(FrameError),
    /// The other side has no such block, or does not give it.
    #[error("the block is not to be had: {}; ask another host or encode it again", describe(.0))]
    Refused(NoTransfer),
    /// The bytes are not those that were sent. They were thrown away.
    #[error("the copy of a block has another checksum than the block; fetch it again")]
    Checksum,
    /// The landing was told to end. What arrived is there.
    #[error("the copy of a block was cancelled")]
    Cancelled,
}

/// A block was not put into another host. That host holds nothing of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The way broke.
    #[error("the copy of a block was cut off: {0}; put it again")]
    Interrupted(String),
    /// The host has no room.
    #[error(transparent)]
    Full(StoreFull),
    /// The host does not take it.
    #[error("the host does not take the block: {0}")]
    Refused(String),
}

impl From<StreamError> for FetchError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Frame(error) if error != FrameError::Truncated => Self::Protocol(error),
            error => Self::Interrupted(error.to_string()),
        }
    }
}

impl From<Closed> for FetchError {
    fn from(closed: Closed) -> Self {
        Self::Interrupted(closed.to_string())
    }
}

impl From<StreamError> for PutError {
    fn from(error: StreamError) -> Self {
        Self::Interrupted(error.to_string())
    }
}

impl From<Closed> for PutError {
    fn from(closed: Closed) -> Self {
        Self::Interrupted(closed.to_string())
    }
}

/// What a refusal says.
fn describe(reason: &NoTransfer) -> &'static str {
    match reason {
        NoTransfer::HostGone => "the host has stopped, or is not of that node",
        NoTransfer::NoSuchBlock => "the host does not hold it",
        NoTransfer::Shape => "the host runs another model or format",
        NoTransfer::Full(..) => "the host has no room",
        NoTransfer::Overloaded => "the node has too many transfers under way; try again in a moment",
        NoTransfer::Checksum => "other bytes arrived than were sent; try again",
    }
}

/// Fetches what `landing` lacks of block `id` from `host`, a context host of the peer, at `rate` bytes a second at most.
/// Failed, it leaves in the landing what has arrived, and can be called again with any connection and any host that holds the
/// block. If the future is dropped on its way, the landing is of no more use.
pub async fn fetch_block(
    connection: &Connection,
    host: HostId,
    id: BlockId,
    landing: &mut Landing,
    rate: Option<u64>,
) -> Result<(), FetchError> {
    let offset = landing.arrived_bytes() as u64;
    let fetch = Fetch { host: host.0, id: *id.as_bytes(), offset, rate: rate.unwrap_or(0) };
    let (mut receiver, head) = tokio::select! {
        asked = ask_for(connection, fetch) => asked?,
        () = landing.cancel().cancelled() => return Err(FetchError::Cancelled),
    };
    if !landing.take_head(&head) {
        return Err(FetchError::Refused(NoTransfer::Shape));
    }
    landing.receive(&mut receiver).await
}

/// Asks for a block, up to the head of the answer.
async fn ask_for(connection: &Connection, fetch: Fetch) -> Result<(FrameReceiver, BlockHead), FetchError> {
    let (mut sender, mut receiver) = connection.open().await?;
    sender.send(FETCH, &fetch, &[]).await?;
    sender.finish();
    let head = in_time(receiver.expect()).await?;
    if head.kind == NO_TRANSFER {
        return Err(FetchError::Refused(head.header().map_err(StreamError::from)?));
    }
    let head = head.expect(BLOCK).map_err(StreamError::from)?;
    Ok((receiver, head))
}

/// Puts a block that was computed here into `host`, a context host of the peer, which then holds it; at the pace of all
/// copies that leave this node, if there is one.
pub async fn put_block(
    connection: &Connection,
    host: HostId,
    id: BlockId,
    block: Arc<BudgetedBlock>,
    pacer: Option<&Pacer>,
) -> Result<(), PutError> {
    let (mut sender, mut receiver) = connection.open().await?;
    let head = BlockHead::new(block.shape(), block.len(), 0);
    sender.send(PUT, &Put { host: host.0, id: *id.as_bytes(), head }, &[]).await?;
    if take_put_reply(&mut receiver).await? == PutReply::Held {
        return Ok(());
    }
    send_pieces(&mut sender, block, 0, 0, pacer.unwrap_or(&Pacer::default())).await?;
    sender.finish();
    match take_put_reply(&mut receiver).await? {
        PutReply::Held => Ok(()),
        PutReply::Ready => Err(PutError::Interrupted("it wants the bytes twice".to_owned())),
    }
}

async fn take_put_reply(receiver: &mut FrameReceiver) -> Result<PutReply, PutError> {
    let frame = in_time(receiver.expect()).await?;
    if frame.kind == NO_TRANSFER {
        return Err(match frame.header().map_err(StreamError::from)? {
            NoTransfer::Full(needed, free) => {
                PutError::Full(StoreFull { needed_tokens: needed as usize, free_tokens: free as usize })
            }
            reason => PutError::Refused(describe(&reason).to_owned()),
        });
    }
    Ok(frame.expect(PUT_REPLY).map_err(StreamError::from)?)
}

/// Fails where the peer is silent for too long.
pub(super) async fn in_time<T>(
    receiving: impl Future<Output = Result<T, StreamError>>,
) -> Result<T, StreamError> {
    timeout(STALL, receiving).await.unwrap_or(Err(StreamError::Closed(Closed::TimedOut)))
}

/// Sends a block's bytes from `offset` on, and their checksum; at `rate` bytes a second at most, if that is not 0, and at the pace
/// of the node.
async fn send_pieces(
    sender: &mut FrameSender,
    block: Arc<BudgetedBlock>,
    offset: usize,
    rate: u64,
    pacer: &Pacer,
) -> Result<(), StreamError> {
    let summed = Arc::clone(&block);
    let summing = tokio::task::spawn_blocking(move || Checksum::of(summed.raw()));
    let bytes = Bytes::from_owner(Raw(block));
    let (start, mut own, mut is_free) = (pacer.now(), Bucket::default(), true);
    for at in (offset..bytes.len()).step_by(PIECE_BYTES) {
        let piece = bytes.slice(at..(at + PIECE_BYTES).min(bytes.len()));
        let asked = if rate > 0 { own.take(pacer.now(), piece.len(), rate) } else { Duration::ZERO };
        let wait = pacer.take(piece.len()).max(asked);
        if !wait.is_zero() {
            is_free = false;
            tokio::time::sleep(wait).await;
        }
        let header = Piece { offset: at as u64 };
        in_time(sender.send_bytes(PIECE, &header, piece)).await?;
    }
    // The first piece of a transfer is taken by the connection at once.
    if is_free && bytes.len() - offset > PIECE_BYTES {
        pacer.measured(bytes.len() - offset, pacer.now().saturating_sub(start));
    }
    let checksum = summing.await.map_err(|_| StreamError::Finished)?;
    sender.send(DONE, &Done { checksum }, &[]).await
}

/// A block's memory, kept until its last byte is acknowledged.
struct Raw(Arc<BudgetedBlock>);

impl AsRef<[u8]> for Raw {
    fn as_ref(&self) -> &[u8] {
        self.0.raw()
    }
}

/// Serves the blocks of a node's context hosts, and takes blocks for them.
#[derive(Clone, Debug)]
pub struct BlockServer {
    hosts: LocalHosts,
    transfers: Arc<Semaphore>,
}

impl BlockServer {
    /// A server for `hosts`, at their pace.
    pub fn new(hosts: LocalHosts) -> Self {
        Self { hosts, transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)) }
    }

    /// Serves what the peer asks on a bulk connection, until the connection is gone. Of all connections together,
    /// only so many transfers are under way as there may be.
    pub async fn serve(self, connection: Connection) {
        let peer = connection.peer().id;
        while let Ok((mut sender, mut receiver)) = connection.accept().await {
            let server = self.clone();
            tokio::spawn(async move {
                match server.serve_stream(&mut sender, &mut receiver).await {
                    Ok(None) => sender.finish(),
                    Ok(Some(reason)) => {
                        let _ = sender.send(NO_TRANSFER, &reason, &[]).await;
                        sender.finish();
                        receiver.stop(CloseCode::Done);
                    }
                    Err(error) => {
                        server.hosts.tell(peer, "bulk", &error);
                        sender.reset(0);
                        receiver.stop(CloseCode::Done);
                    }
                }
            });
        }
    }

    async fn serve_stream(
        &self,
        sender: &mut FrameSender,
        receiver: &mut FrameReceiver,
    ) -> Result<Option<NoTransfer>, StreamError> {
        let request = in_time(receiver.expect()).await?;
        let Ok(Ok(_permit)) = timeout(TURN, self.transfers.acquire()).await else {
            return Ok(Some(NoTransfer::Overloaded));
        };
        if request.kind == FETCH {
            return self.serve_fetch(sender, request.header()?).await;
        }
        self.serve_put(sender, receiver, request.expect(PUT)?).await
    }

    async fn serve_fetch(
        &self,
        sender: &mut FrameSender,
        fetch: Fetch,
    ) -> Result<Option<NoTransfer>, StreamError> {
        let id = BlockId::from_bytes(fetch.id);
        let Some(host) = self.hosts.hosts.get(&HostId(fetch.host)) else {
            return Ok(Some(NoTransfer::HostGone));
        };
        let Some(block) = host.held.get(&id) else {
            let is_open = host.held.is_open();
            return Ok(Some(if is_open { NoTransfer::NoSuchBlock } else { NoTransfer::HostGone }));
        };
        let offset = usize::try_from(fetch.offset).unwrap_or(usize::MAX);
        // A sealed block is as large as its tokens need; another copy is laid out by that.
        if offset > block.bytes() || block.bytes() != block.shape().bytes_for(block.len()) {
            return Ok(Some(NoTransfer::Shape));
        }
        sender.send(BLOCK, &BlockHead::new(block.shape(), block.len(), fetch.offset), &[]).await?;
        send_pieces(sender, block, offset, fetch.rate, &self.hosts.pacer).await?;
        Ok(None)
    }

    async fn serve_put(
        &self,
        sender: &mut FrameSender,
        receiver: &mut FrameReceiver,
        put: Put,
    ) -> Result<Option<NoTransfer>, StreamError> {
        let (id, head) = (BlockId::from_bytes(put.id), put.head);
        let Some(host) = self.hosts.hosts.get(&HostId(put.host)) else {
            return Ok(Some(NoTransfer::HostGone));
        };
        let tokens = usize::try_from(head.tokens).ok().filter(|&tokens| tokens <= MAX_BLOCK_TOKENS);
        let Some(tokens) = tokens.filter(|&tokens| head.is_of(self.hosts.kv_shape, tokens, 0)) else {
            return Ok(Some(NoTransfer::Shape));
        };
        let (strip, arrival, was_promised) = match host.held.receive(id, tokens).await {
            Err(error) => return Ok(Some(refusal(&error))),
            Ok(Opening::Held) => {
                sender.send(PUT_REPLY, &PutReply::Held, &[]).await?;
                return Ok(None);
            }
            Ok(Opening::Room { strip, arrival, was_promised }) => (strip, arrival, was_promised),
        };
        let mut landing = Landing::on(strip, arrival.revoked().clone(), arrival.count());
        // Whoever frees the block waits for this to end, and must not wait for a peer that takes nothing.
        let told = tokio::select! {
            told = sender.send(PUT_REPLY, &PutReply::Ready, &[]) => told.map_err(FetchError::from),
            () = arrival.revoked().cancelled() => Err(FetchError::Cancelled),
        };
        let received = match told {
            Ok(()) if landing.take_head(&head) => landing.receive(receiver).await,
            Ok(()) => Err(FetchError::Refused(NoTransfer::Shape)),
            Err(error) => Err(error),
        };
        if let Err(error) = received {
            // The room stays promised, so that the block can be put again.
            if let Some(strip) = landing.into_strip().filter(|_| was_promised) {
                arrival.promise(strip);
            }
            return match error {
                FetchError::Checksum => Ok(Some(NoTransfer::Checksum)),
                FetchError::Protocol(error) => Err(error.into()),
                error => Err(StreamError::Closed(Closed::Other(error.to_string()))),
            };
        }
        let Some(block) = landing.into_block() else { return Ok(Some(NoTransfer::Checksum)) };
        if arrival.seal(block).is_err() {
            // Released while it was on its way, or with the host.
            return Ok(Some(NoTransfer::HostGone));
        }
        sender.send(PUT_REPLY, &PutReply::Held, &[]).await?;
        Ok(None)
    }
}

/// Tokens of a block that a peer may claim: far beyond any, and far from where sizes overflow.
const MAX_BLOCK_TOKENS: usize = 1 << 28;

fn refusal(error: &HostError) -> NoTransfer {
    match error {
        HostError::Full(full) => NoTransfer::Full(full.needed_tokens as u64, full.free_tokens as u64),
        HostError::Overloaded { .. } => NoTransfer::Overloaded,
        HostError::Unreachable { .. } | HostError::Stuck { .. } | HostError::Cancelled => {
            NoTransfer::HostGone
        }
    }
}
