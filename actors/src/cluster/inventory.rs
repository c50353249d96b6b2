//! What a node's agent reports of its hosts, a part of [`messages`](super::messages).

use serde::{Deserialize, Serialize};
use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

use super::messages::{NodeKey, Stamp};
use super::term::Term;
use crate::disk::index::DiskFigures;
use crate::link::HostId;

/// A block that a host holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct HeldBlock {
    /// Its address.
    pub id: BlockId,
    /// Bytes it takes.
    pub bytes: u64,
}

/// What one context host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct HostInventory {
    /// The host.
    pub host: HostId,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// The blocks it holds whole, copies of anchors among them.
    pub blocks: Vec<HeldBlock>,
    /// Blocks on their way to it, with the bytes that have come.
    pub inbound: Vec<HeldBlock>,
    /// Blocks that come back from the node's disk, with the bytes that they will take. They need not be encoded, and may turn
    /// out not to come after all.
    pub from_disk: Vec<HeldBlock>,
    /// Blocks that were computed for it since it has started, copies of anchors among them.
    pub computed_blocks: u64,
    /// Measured rate of encoding, in tokens a second; 0 where nothing was encoded yet.
    pub encode_tokens_per_s: u64,
    /// Measured bandwidth of copies, in bytes a second; 0 where nothing was copied yet.
    pub copy_bytes_per_s: u64,
}

impl HostInventory {
    /// Of a host that holds blocks, and of which nothing was measured yet.
    pub fn of(host: HostId, capacity_bytes: u64, blocks: Vec<HeldBlock>) -> Self {
        Self {
            host,
            capacity_bytes,
            blocks,
            inbound: Vec::new(),
            from_disk: Vec::new(),
            computed_blocks: 0,
            encode_tokens_per_s: 0,
            copy_bytes_per_s: 0,
        }
    }
}

/// What a node's agent reports when it connects and every second: also its heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct Inventory {
    /// The node.
    pub node: NodeKey,
    /// The moment it was taken.
    pub at: Stamp,
    /// How long the node has been up, in milliseconds: new hosts are filled slowly.
    pub up_ms: u64,
    /// The highest term of a supervisor that the node has seen.
    pub seen: Term,
    /// Its hosts.
    pub hosts: Vec<HostInventory>,
    /// The disk that they share, if it has one.
    pub disk: Option<DiskFigures>,
}
