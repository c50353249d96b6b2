//! The frames of the decode and of the bulk connections: kinds, headers, bounds, and the checks of what a peer claims.
//! Without IO; who sends which frame when is in [`link`](super::link), [`serve`](super::serve) and [`blocks`](super::blocks).

use stellate_kernels::{KvFormat, KvShape, PartialShape};
use stellate_model::block::BlockId;
use stellate_runtime::transport::FrameKind;
use wincode::{SchemaRead, SchemaWrite};

use crate::checksum::Checksum;
use crate::cluster::versions::STUCK_HOSTS;
use crate::link::{Fold, HostId, LinkError};

const fn kind(offset: u16) -> FrameKind {
    FrameKind(FrameKind::FIRST_FREE.0 + offset)
}

/// Decode, from the query host: which context host the stream is for. The first frame.
pub const OPEN: FrameKind = kind(16);
/// Decode, from the query host: a list of blocks. The payload is their ids, 32 bytes each.
pub const ROUTE: FrameKind = kind(17);
/// Decode, from the query host: a layer's queries, f32 `[tokens, heads, head_dim]`.
pub const ATTEND: FrameKind = kind(18);
/// Decode, from the context host: one partial of a reply, f32 `[tokens, heads, head_dim]` and `[tokens, heads]`.
pub const ATTENDED: FrameKind = kind(19);
/// Decode, from the context host: no reply to a request, and why.
pub const REFUSED: FrameKind = kind(20);

/// Bulk, from who wants a block.
pub const FETCH: FrameKind = kind(32);
/// Bulk, from who sends a block: what it is.
pub const BLOCK: FrameKind = kind(33);
/// Bulk: raw bytes of the block.
pub const PIECE: FrameKind = kind(34);
/// Bulk: all bytes were sent, and their checksum.
pub const DONE: FrameKind = kind(35);
/// Bulk, from who has a block for another host.
pub const PUT: FrameKind = kind(36);
/// Bulk, from who receives it: how to go on.
pub const PUT_REPLY: FrameKind = kind(37);
/// Bulk, in place of any other frame: there is no transfer, and why.
pub const NO_TRANSFER: FrameKind = kind(38);

/// Lists of blocks that a decode stream keeps. Beyond, it begins anew with the first.
pub const MAX_ROUTES: usize = 256;
/// Blocks in all lists of a stream together: 4 MiB of ids, or a context of a hundred million tokens.
pub const MAX_ROUTED_BLOCKS: usize = 1 << 17;
/// Tokens of one request: many times a chunk, so that a claim stays far from what a host may hold.
pub const MAX_TOKENS: usize = 1 << 14;
/// Bytes of a reply, all partials together: four times those of a chunk of 512 tokens over eight blocks apart, for a model of
/// 8 billion parameters.
pub const MAX_REPLY_BYTES: usize = 256 << 20;
/// Bytes of one piece of a block.
pub const PIECE_BYTES: usize = 1 << 20;

/// What a model's attention looks like from outside: it bounds and checks requests and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttendShape {
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

impl AttendShape {
    /// Bytes of the queries of `tokens` tokens.
    pub fn query_bytes(self, tokens: usize) -> usize {
        tokens * self.heads * self.head_dim * size_of::<f32>()
    }

    /// Bytes of one partial of `tokens` tokens: heads × (head_dim × 4 + 4) each.
    pub fn partial_bytes(self, tokens: usize) -> usize {
        self.query_bytes(tokens) + tokens * self.heads * size_of::<f32>()
    }

    /// Tokens of queries with so many values.
    pub fn tokens(self, values: usize) -> Option<usize> {
        let per_token = self.heads * self.head_dim;
        (values > 0 && per_token > 0 && values.is_multiple_of(per_token)).then(|| values / per_token)
    }

    /// The shape of a partial of `tokens` tokens.
    pub fn partial(self, tokens: usize) -> PartialShape {
        PartialShape { tokens, heads: self.heads, head_dim: self.head_dim }
    }
}

/// Header of [`OPEN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Open {
    /// The context host.
    pub host: u64,
}

/// Header of [`ROUTE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Route {
    /// Its number: one more than that of the list before, or 0, which forgets all lists.
    pub route: u32,
}

/// Header of [`ATTEND`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Attend {
    /// Its number, which the reply repeats.
    pub request: u64,
    /// The list of blocks.
    pub route: u32,
    /// The layer.
    pub layer: u32,
    /// Tokens of the queries.
    pub tokens: u32,
    /// What the reply's partials are.
    pub fold: WireFold,
}

impl Attend {
    /// Bytes of the header, whatever it says.
    pub const BYTES: usize = 8 + 3 * 4 + 4;

    /// Whether a request of `payload_bytes` over `blocks` blocks is one that a host of `shape` can answer.
    pub fn check(&self, payload_bytes: usize, blocks: usize, shape: AttendShape) -> Result<(), Refusal> {
        let tokens = self.tokens as usize;
        let partials = if self.fold == WireFold::Apart { blocks } else { 1 };
        let fits = (1..=MAX_TOKENS).contains(&tokens)
            && (self.layer as usize) < shape.layers
            && payload_bytes == shape.query_bytes(tokens)
            && partials.saturating_mul(shape.partial_bytes(tokens)) <= MAX_REPLY_BYTES;
        if fits { Ok(()) } else { Err(Refusal::Shape) }
    }
}

/// [`Fold`] as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum WireFold {
    /// [`Fold::ByHost`].
    ByHost,
    /// [`Fold::ByBlock`].
    ByBlock,
    /// [`Fold::Apart`].
    Apart,
}

impl From<Fold> for WireFold {
    fn from(fold: Fold) -> Self {
        match fold {
            Fold::ByHost => Self::ByHost,
            Fold::ByBlock => Self::ByBlock,
            Fold::Apart => Self::Apart,
        }
    }
}

impl From<WireFold> for Fold {
    fn from(fold: WireFold) -> Self {
        match fold {
            WireFold::ByHost => Self::ByHost,
            WireFold::ByBlock => Self::ByBlock,
            WireFold::Apart => Self::Apart,
        }
    }
}

/// Header of [`ATTENDED`]. A reply of several partials is as many frames, so that no frame grows with a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Attended {
    /// The request.
    pub request: u64,
    /// The list of blocks that was asked for.
    pub route: u32,
    /// Which partial of the reply.
    pub part: u32,
    /// How many there are.
    pub parts: u32,
    /// The [`digest`] of the blocks that were attended.
    pub digest: [u8; 32],
}

impl Attended {
    /// Bytes of the header, whatever it says.
    pub const BYTES: usize = 8 + 3 * 4 + 32;
}

/// Header of [`REFUSED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Refused {
    /// The request.
    pub request: u64,
    /// Why.
    pub reason: Refusal,
}

/// Why a request has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Refusal {
    /// The host has stopped, or is not of this node.
    HostGone,
    /// The host does not hold this block.
    NoSuchBlock([u8; 32]),
    /// The list of blocks was not told on this stream.
    NoSuchRoute,
    /// The host's queue is full.
    Overloaded,
    /// The request is of another shape than the host's model.
    Shape,
    /// The host could not answer for a reason of its own.
    Failed,
    /// The host's device thread makes no progress. Of wire version 2: see [`Refusal::lowered`].
    Stuck,
}

impl Refusal {
    /// What the asker is told.
    pub fn into_error(self, host: HostId) -> LinkError {
        let interrupted = |cause: &str| LinkError::Interrupted { host, cause: cause.to_owned() };
        match self {
            Self::HostGone => LinkError::HostGone { host },
            Self::NoSuchBlock(block) => LinkError::NoSuchBlock { host, block: BlockId::from_bytes(block) },
            Self::NoSuchRoute => interrupted("it does not know the list of blocks"),
            Self::Overloaded => interrupted("its queue is full"),
            Self::Shape => interrupted("it runs a model of another shape"),
            Self::Failed => interrupted("it could not compute the attention"),
            Self::Stuck => LinkError::Stuck { host },
        }
    }

    /// As a peer that speaks wire version `version` knows it.
    pub fn lowered(self, version: u16) -> Self {
        match self {
            Self::Stuck if version < STUCK_HOSTS => Self::Failed,
            reason => reason,
        }
    }
}

impl From<LinkError> for Refusal {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::HostGone { .. } => Self::HostGone,
            LinkError::NoSuchBlock { block, .. } => Self::NoSuchBlock(*block.as_bytes()),
            LinkError::Interrupted { .. } | LinkError::NotNumbers { .. } => Self::Failed,
            LinkError::Stuck { .. } => Self::Stuck,
        }
    }
}

/// The BLAKE3 hash of ids one after the other: names a list of blocks in a reply.
pub fn digest(blocks: &[BlockId]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for block in blocks {
        hasher.update(block.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The ids of a list as the payload of [`ROUTE`].
pub fn write_ids(blocks: &[BlockId]) -> Vec<u8> {
    blocks.iter().flat_map(|block| *block.as_bytes()).collect()
}

/// The ids in the payload of [`ROUTE`], or none if it is none.
pub fn read_ids(payload: &[u8]) -> Option<Vec<BlockId>> {
    let (ids, rest) = payload.as_chunks::<32>();
    rest.is_empty().then(|| ids.iter().map(|id| BlockId::from_bytes(*id)).collect())
}

/// Header of [`FETCH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Fetch {
    /// The host that holds the block.
    pub host: u64,
    /// The block.
    pub id: [u8; 32],
    /// Bytes that the asker has already.
    pub offset: u64,
    /// Bytes a second at most; 0 as fast as it goes.
    pub rate: u64,
}

/// What a block is: header of [`BLOCK`], and part of [`Put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct BlockHead {
    /// Layers.
    pub layers: u32,
    /// Key/value heads per layer.
    pub kv_heads: u32,
    /// Values per head.
    pub head_dim: u32,
    /// How values are stored.
    pub format: WireFormat,
    /// Tokens of the block, all of them complete.
    pub tokens: u64,
    /// Raw bytes of the block.
    pub bytes: u64,
    /// Where the pieces start.
    pub offset: u64,
}

impl BlockHead {
    /// The head of a block of `tokens` tokens.
    pub fn new(shape: KvShape, tokens: usize, offset: u64) -> Self {
        let KvShape { layers, kv_heads, head_dim, format } = shape;
        let small = |number: usize| u32::try_from(number).expect("a model's sizes are far below 2^32");
        Self {
            layers: small(layers),
            kv_heads: small(kv_heads),
            head_dim: small(head_dim),
            format: format.into(),
            tokens: tokens as u64,
            bytes: shape.bytes_for(tokens) as u64,
            offset,
        }
    }

    /// Whether it is that of a block of `tokens` tokens of `shape`, from `offset` on.
    pub fn is_of(&self, shape: KvShape, tokens: usize, offset: u64) -> bool {
        *self == Self::new(shape, tokens, offset) && offset <= self.bytes
    }
}

/// [`KvFormat`] as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum WireFormat {
    /// [`KvFormat::F32`].
    F32,
    /// [`KvFormat::Bf16`].
    Bf16,
    /// [`KvFormat::Q8`].
    Q8,
}

impl From<KvFormat> for WireFormat {
    fn from(format: KvFormat) -> Self {
        match format {
            KvFormat::F32 => Self::F32,
            KvFormat::Bf16 => Self::Bf16,
            KvFormat::Q8 => Self::Q8,
        }
    }
}

/// Header of [`PIECE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Piece {
    /// Where its bytes belong: right behind the piece before.
    pub offset: u64,
}

/// Header of [`DONE`]. The checksum comes last: it is computed while the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Done {
    /// Of all raw bytes of the block, from the first one on.
    pub checksum: Checksum,
}

/// Header of [`PUT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Put {
    /// The host that is to hold the block.
    pub host: u64,
    /// The block.
    pub id: [u8; 32],
    /// What it is; its offset is 0.
    pub head: BlockHead,
}

/// Header of [`PUT_REPLY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum PutReply {
    /// Send the pieces.
    Ready,
    /// The host holds the block, from before or by now.
    Held,
}

/// Header of [`NO_TRANSFER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum NoTransfer {
    /// The host has stopped, or is not of this node.
    HostGone,
    /// The host does not hold the block.
    NoSuchBlock,
    /// The block is of another shape than the host's model or format.
    Shape,
    /// The host has no room: tokens that were needed and that are free.
    Full(u64, u64),
    /// Too many transfers are under way, or the host's queue is full.
    Overloaded,
    /// The bytes that arrived are not those that were sent.
    Checksum,
}

#[cfg(test)]
mod tests;
