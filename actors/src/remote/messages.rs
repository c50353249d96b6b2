//! What the control plane carries between query nodes, context hosts and the supervisor, in a form that has bytes: the
//! messages of [`context_host`](crate::context_host) and [`supervisor`](crate::supervisor) without what only one process
//! understands. Bytes are made and read by `stellate_runtime::encoding`.

use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

use crate::budget::StoreFull;
use crate::cancel::CancelToken;
use crate::context_host::{EncodeJob, Encoded, HostError};
use crate::error::{ContextFull, EncodeError};
use crate::link::HostId;
use crate::manifest::ContextId;
use crate::path::context::Anchor;
use crate::placement::{AnchorNeed, Need, Placed};
use crate::progress::EncodeMeter;
use crate::supervisor::{PlaceRequest, Placement};

/// [`EncodeJob`] as it travels. Progress and cancellation are the caller's matter.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct EncodeOrder {
    /// The host that is to encode.
    pub host: u64,
    /// The block.
    pub id: [u8; 32],
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The position of its first token in the context.
    pub position: u64,
    /// The anchor that it stands behind.
    pub anchor: Option<AnchorOrder>,
    /// Computes the anchor again.
    pub recompute_anchor: bool,
}

/// [`Anchor`] as it travels.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct AnchorOrder {
    /// Its address as a block of its own.
    pub id: [u8; 32],
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The context's first block.
    pub first_block: [u8; 32],
    /// Whether the host keeps it.
    pub is_kept: bool,
}

impl EncodeOrder {
    /// The order to `host` that `job` comes to.
    pub fn of(host: HostId, job: &EncodeJob) -> Self {
        let anchor = job.anchor.as_ref().map(|anchor| AnchorOrder {
            id: *anchor.id.as_bytes(),
            ids: anchor.ids.to_vec(),
            first_block: *anchor.first_block.as_bytes(),
            is_kept: anchor.is_kept,
        });
        Self {
            host: host.0,
            id: *job.id.as_bytes(),
            ids: job.ids.to_vec(),
            position: job.position as u64,
            anchor,
            recompute_anchor: job.recompute_anchor,
        }
    }

    /// The job, counted by `meter` and ended by `cancel`. `None` if the order cannot be carried out: it names no token, or
    /// an anchor of none, or positions beyond what a number holds. Token ids are for the host's model to check.
    pub fn into_job(self, meter: EncodeMeter, cancel: CancelToken) -> Option<EncodeJob> {
        let position = usize::try_from(self.position).ok()?;
        position.checked_add(self.ids.len())?;
        let is_empty = |ids: &[u32]| ids.is_empty();
        if is_empty(&self.ids) || self.anchor.as_ref().is_some_and(|anchor| is_empty(&anchor.ids)) {
            return None;
        }
        let anchor = self.anchor.map(|anchor| Anchor {
            id: BlockId::from_bytes(anchor.id),
            ids: anchor.ids.into(),
            first_block: BlockId::from_bytes(anchor.first_block),
            is_kept: anchor.is_kept,
        });
        let (id, ids) = (BlockId::from_bytes(self.id), self.ids.into());
        Some(EncodeJob { id, ids, position, anchor, recompute_anchor: self.recompute_anchor, meter, cancel })
    }
}

/// [`Encoded`] as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum WireEncoded {
    /// [`Encoded::Held`].
    Held,
    /// [`Encoded::Fresh`].
    Fresh,
}

impl From<Encoded> for WireEncoded {
    fn from(encoded: Encoded) -> Self {
        match encoded {
            Encoded::Held => Self::Held,
            Encoded::Fresh => Self::Fresh,
        }
    }
}

impl From<WireEncoded> for Encoded {
    fn from(encoded: WireEncoded) -> Self {
        match encoded {
            WireEncoded::Held => Self::Held,
            WireEncoded::Fresh => Self::Fresh,
        }
    }
}

/// [`HostError`] as it travels.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum WireHostError {
    /// [`HostError::Full`]: tokens needed and free.
    Full(u64, u64),
    /// [`HostError::Overloaded`]: the host and the bound of its queue.
    Overloaded(u64, u64),
    /// [`HostError::Unreachable`]: the host and what happened.
    Unreachable(u64, String),
    /// [`HostError::Cancelled`].
    Cancelled,
}

impl From<HostError> for WireHostError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Full(StoreFull { needed_tokens, free_tokens }) => {
                Self::Full(needed_tokens as u64, free_tokens as u64)
            }
            HostError::Overloaded { host, queue } => Self::Overloaded(host.0, queue as u64),
            HostError::Unreachable { host, cause } => Self::Unreachable(host.0, cause),
            HostError::Cancelled => Self::Cancelled,
        }
    }
}

impl From<WireHostError> for HostError {
    fn from(error: WireHostError) -> Self {
        match error {
            WireHostError::Full(needed, free) => {
                Self::Full(StoreFull { needed_tokens: saturated(needed), free_tokens: saturated(free) })
            }
            WireHostError::Overloaded(host, queue) => {
                Self::Overloaded { host: HostId(host), queue: saturated(queue) }
            }
            WireHostError::Unreachable(host, cause) => Self::Unreachable { host: HostId(host), cause },
            WireHostError::Cancelled => Self::Cancelled,
        }
    }
}

/// Asks a node for room on one of its hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct ReserveOrder {
    /// The host.
    pub host: u64,
    /// The block.
    pub id: [u8; 32],
    /// Tokens of the block.
    pub tokens: u64,
}

/// [`PlaceRequest`] as it travels.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct WirePlaceRequest {
    /// Its name if it was placed before.
    pub context: Option<u64>,
    /// Hosts that did not answer.
    pub suspects: Vec<u64>,
    /// Its blocks: address, bytes, whether it is anchored.
    pub needs: Vec<([u8; 32], u64, bool)>,
    /// Its anchor: address, bytes, first block.
    pub anchor: Option<([u8; 32], u64, [u8; 32])>,
}

impl From<&PlaceRequest> for WirePlaceRequest {
    fn from(request: &PlaceRequest) -> Self {
        let need = |need: &Need| (*need.id.as_bytes(), need.bytes as u64, need.anchored);
        let anchor =
            |anchor: AnchorNeed| (*anchor.id.as_bytes(), anchor.bytes as u64, *anchor.first_block.as_bytes());
        Self {
            context: request.context.map(|context| context.0),
            suspects: request.suspects.iter().map(|host| host.0).collect(),
            needs: request.needs.iter().map(need).collect(),
            anchor: request.anchor.map(anchor),
        }
    }
}

impl From<WirePlaceRequest> for PlaceRequest {
    fn from(request: WirePlaceRequest) -> Self {
        let need =
            |(id, bytes, anchored)| Need { id: BlockId::from_bytes(id), bytes: saturated(bytes), anchored };
        let anchor = |(id, bytes, first_block)| AnchorNeed {
            id: BlockId::from_bytes(id),
            bytes: saturated(bytes),
            first_block: BlockId::from_bytes(first_block),
        };
        Self {
            context: request.context.map(ContextId),
            suspects: request.suspects.into_iter().map(HostId).collect(),
            needs: request.needs.into_iter().map(need).collect(),
            anchor: request.anchor.map(anchor),
        }
    }
}

/// [`Placement`] as it travels.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct WirePlacement {
    /// The name of the context.
    pub context: u64,
    /// For every block its host, whether it is held there, and whether the host keeps a copy of the anchor.
    pub placed: Vec<(u64, bool, bool)>,
}

impl From<&Placement> for WirePlacement {
    fn from(placement: &Placement) -> Self {
        let placed = |placed: &Placed| (placed.host.0, placed.held, placed.anchor_copy);
        Self { context: placement.context.0, placed: placement.placed.iter().map(placed).collect() }
    }
}

impl WirePlacement {
    /// The placement of `blocks` blocks, or none if it is of another number.
    pub fn into_placement(self, blocks: usize) -> Option<Placement> {
        let placed = |(host, held, anchor_copy)| Placed { host: HostId(host), held, anchor_copy };
        (self.placed.len() == blocks).then(|| Placement {
            context: ContextId(self.context),
            placed: self.placed.into_iter().map(placed).collect(),
        })
    }
}

/// Why a context was not placed: [`EncodeError`] as a supervisor says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum WirePlaceError {
    /// [`EncodeError::Full`].
    Full {
        /// See [`ContextFull::needed_tokens`].
        needed_tokens: u64,
        /// See [`ContextFull::free_tokens`].
        free_tokens: u64,
        /// See [`ContextFull::block_tokens`].
        block_tokens: u64,
        /// See [`ContextFull::largest_free_tokens`].
        largest_free_tokens: u64,
        /// See [`ContextFull::hosts`].
        hosts: u64,
    },
    /// [`EncodeError::Stopped`], and whatever a supervisor has no other word for.
    Stopped,
}

impl From<&EncodeError> for WirePlaceError {
    fn from(error: &EncodeError) -> Self {
        match error {
            EncodeError::Full(full) => Self::Full {
                needed_tokens: full.needed_tokens as u64,
                free_tokens: full.free_tokens as u64,
                block_tokens: full.block_tokens as u64,
                largest_free_tokens: full.largest_free_tokens as u64,
                hosts: full.hosts as u64,
            },
            _ => Self::Stopped,
        }
    }
}

impl From<WirePlaceError> for EncodeError {
    fn from(error: WirePlaceError) -> Self {
        match error {
            WirePlaceError::Full { needed_tokens, free_tokens, block_tokens, largest_free_tokens, hosts } => {
                Self::Full(ContextFull {
                    needed_tokens: saturated(needed_tokens),
                    free_tokens: saturated(free_tokens),
                    block_tokens: saturated(block_tokens),
                    largest_free_tokens: saturated(largest_free_tokens),
                    hosts: saturated(hosts),
                })
            }
            WirePlaceError::Stopped => Self::Stopped,
        }
    }
}

fn saturated(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
