//! What a cluster's supervisor, agents and query nodes say to each other, as values that encode to bytes. No actor, no
//! reply port and no tensor is here: the control plane carries these as the payloads of its calls.

use std::fmt;

use serde::{Deserialize, Serialize};
use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

use crate::checksum::Checksum;
use crate::link::HostId;
use crate::manifest::ContextId;

use super::bounds;
use super::drain::DrainPlan;
pub use super::encode_order::{AnchorOrder, EncodeOrder};
pub use super::inventory::{HeldBlock, HostInventory, Inventory};
use super::plan::Plan;
use super::snapshot::ClusterSnapshot;
use super::term::Term;

/// A node, by the first 48 bits of its id, which are those of its hosts' ids too.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    SchemaRead,
    SchemaWrite,
)]
pub struct NodeKey(pub [u8; 6]);

impl NodeKey {
    /// The node of a host.
    pub fn of(host: HostId) -> Self {
        Self(host.node())
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A moment in the life of an agent: later moments are greater. What an inventory does not list was not there at its
/// moment, which says nothing of what came later.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    SchemaRead,
    SchemaWrite,
)]
pub struct Stamp {
    /// How often the agent has started.
    pub start: u64,
    /// How much has happened since.
    pub count: u64,
}

/// A block of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct BlockNeed {
    /// Its address.
    pub id: BlockId,
    /// Bytes of its keys and values.
    pub bytes: u64,
    /// Its tokens, by which the time to compute it again is reckoned.
    pub tokens: u32,
    /// Whether it is encoded behind the context's anchor.
    pub anchored: bool,
}

/// The anchor of a context as [`crate::placement::AnchorNeed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct AnchorCopy {
    /// Its address as a block of its own.
    pub id: BlockId,
    /// Bytes of its keys and values.
    pub bytes: u64,
    /// The first block of the context.
    pub first_block: BlockId,
}

/// A context that a query node keeps: what it announces, and what it asks to have placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct ContextClaim {
    /// Its name, unique on its query node.
    pub context: ContextId,
    /// The node that keeps it and is told of moves.
    pub query_node: NodeKey,
    /// Its blocks, in order.
    pub needs: Vec<BlockNeed>,
    /// Its anchor.
    pub anchor: Option<AnchorCopy>,
    /// Nodes that shall hold each block; 0 counts as 1, and more than there are nodes as all of them.
    pub replicas: u16,
}

impl ContextClaim {
    /// The claim with no more bytes than a supervisor believes; see [`super::bounds`].
    pub(crate) fn bounded(mut self) -> Self {
        self.needs.iter_mut().for_each(|need| need.bytes = bounds::of_block(need.bytes));
        self.anchor.iter_mut().for_each(|anchor| anchor.bytes = bounds::of_block(anchor.bytes));
        self
    }

    /// By which a supervisor knows the context.
    pub fn key(&self) -> ContextKey {
        ContextKey { query_node: self.query_node, context: self.context }
    }
}

/// A context as a supervisor knows it: names are given by query nodes, so two of them may give the same.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
pub struct ContextKey {
    /// The node that keeps it.
    pub query_node: NodeKey,
    /// What that node calls it.
    pub context: ContextId,
}

/// Where one block of a context goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct PlacedBlock {
    /// The host.
    pub host: HostId,
    /// Whether the host is known to hold it.
    pub held: bool,
    /// Whether it is encoded behind a copy of the anchor that the host keeps.
    pub anchor_copy: bool,
    /// The host that the anchor is best copied from, if that is cheaper than to compute it.
    pub anchor_from: Option<HostId>,
}

/// Where a context goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct ContextPlaced {
    /// The term of the supervisor that says so.
    pub term: Term,
    /// The version of its table; orders to encode carry both.
    pub version: u64,
    /// A host for every block, in order.
    pub placed: Vec<PlacedBlock>,
}

/// An order to an agent. An agent refuses orders of a term lower than the highest it has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct AgentOrder {
    /// The term of the supervisor.
    pub term: Term,
    /// The version of its table. A block that was claimed by a later version is not freed by an earlier one.
    pub version: u64,
    /// The number of the order in its term; the reply is for it.
    pub order: u64,
    /// What is to be done.
    pub request: AgentRequest,
}

/// What an agent is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum AgentRequest {
    /// Encode a block, unless it is held. Sent by query nodes.
    Encode(EncodeOrder),
    /// Promise room for a block that is to be pulled.
    Reserve {
        /// The host.
        host: HostId,
        /// The block.
        block: BlockId,
        /// Its bytes.
        bytes: u64,
        /// Its tokens.
        tokens: u32,
    },
    /// Copy a block, for which there is room, from another host.
    Pull {
        /// The host that shall hold it.
        host: HostId,
        /// The block.
        block: BlockId,
        /// The host that holds it.
        from: HostId,
    },
    /// Sum a block up as it lies in the store.
    Verify {
        /// The host.
        host: HostId,
        /// The block.
        block: BlockId,
    },
    /// Let go of blocks, of room that was promised to them, and of copies under way.
    Free {
        /// The host.
        host: HostId,
        /// The blocks.
        blocks: Vec<BlockId>,
    },
    /// Say what is there.
    Inventory,
}

/// What an agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum AgentReply {
    /// The block is there.
    Encoded {
        /// Whether it was encoded just now.
        fresh: bool,
    },
    /// There is room, and it is promised.
    Reserved {
        /// Whether the host holds the block already.
        held: bool,
    },
    /// The block has come and was sealed.
    Pulled {
        /// Of the block as the source holds it.
        checksum: Checksum,
        /// The moment from which inventories list it.
        at: Stamp,
    },
    /// The block as it lies in the store.
    Checksum {
        /// Of its bytes.
        checksum: Checksum,
        /// A moment at which it was there.
        at: Stamp,
    },
    /// What was to be freed is not there any more, but for what a later version claimed.
    Freed {
        /// The moment from which inventories do not list it.
        at: Stamp,
    },
    /// What is there.
    Inventory(Inventory),
    /// It was not done; what the host holds is as it was.
    Refused(AgentRefusal),
}

/// Why an agent did not follow an order. What its hosts hold is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum AgentRefusal {
    /// A later supervisor has been seen.
    #[error(
        "the order is of term {term}, and a supervisor of term {highest} was seen; this supervisor must stop"
    )]
    Fenced {
        /// The term of the order.
        term: Term,
        /// The highest term seen.
        highest: Term,
    },
    /// The store has no room.
    #[error("{needed_bytes} bytes are needed and {free_bytes} are free; place the block elsewhere")]
    Full {
        /// Bytes that were asked for.
        needed_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
    },
    /// The node has no such host.
    #[error("the node has no host {host}; ask for its inventory")]
    NoSuchHost {
        /// The host.
        host: HostId,
    },
    /// The host, or the source of a copy, does not hold the block.
    #[error("{host} does not hold block {block}; encode it again")]
    NoSuchBlock {
        /// The host.
        host: HostId,
        /// The block.
        block: BlockId,
    },
    /// Something else, in words.
    #[error("{cause}; ask again, or another host")]
    Failed {
        /// What happened.
        cause: String,
    },
}

/// What the supervisor tells a query node. Losing one costs time, never an answer: the query node heals when a step fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum QueryNodeNotice {
    /// A new supervisor is there: announce every context with [`SupervisorRequest::Hold`].
    Announce {
        /// Its term.
        term: Term,
    },
    /// A block has moved: route to its new host between two steps, then answer [`SupervisorRequest::Switched`].
    Moved {
        /// The move; named in the answer.
        migration: u64,
        /// The term of the supervisor, and the version of its table.
        term: Term,
        /// See `term`.
        version: u64,
        /// The block.
        block: BlockId,
        /// Where it was.
        from: HostId,
        /// Where it is.
        to: HostId,
    },
    /// Blocks of a context are on no host any more: heal it.
    Lost {
        /// The context.
        context: ContextId,
        /// The blocks.
        blocks: Vec<BlockId>,
        /// Where they were; not to be asked again.
        suspects: Vec<HostId>,
    },
    /// Have a block encoded on a host that has promised room, then answer [`SupervisorRequest::Recomputed`].
    Recompute {
        /// The move; named in the answer.
        migration: u64,
        /// The term and version that the order to the agent carries.
        term: Term,
        /// See `term`.
        version: u64,
        /// The context.
        context: ContextId,
        /// The block.
        block: BlockId,
        /// The host.
        at: HostId,
    },
}

/// What the supervisor is asked, by agents, query nodes and the administrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum SupervisorRequest {
    /// What a node has: its heartbeat.
    Inventory(Inventory),
    /// A query node is there: its heartbeat. As long as it has not announced its contexts to this supervisor, it is asked
    /// to, and nothing is freed for want of a context.
    Renew {
        /// The query node.
        node: NodeKey,
        /// The term of the supervisor that every context was announced to, if there is one.
        announced: Term,
        /// The highest term that it has seen.
        seen: Term,
    },
    /// A context is kept. Answered with [`SupervisorReply::Noted`] when it is noted.
    Hold(ContextClaim),
    /// Find room for a context and promise it; also for one whose blocks are not all to be had.
    Place {
        /// The context.
        claim: ContextClaim,
        /// Hosts that did not answer.
        suspects: Vec<HostId>,
    },
    /// A context is not needed any more.
    Release(ContextKey),
    /// A query node routes to the new host of a block.
    Switched {
        /// The query node.
        node: NodeKey,
        /// The term of the supervisor that has moved it: each numbers its moves from 1.
        term: Term,
        /// The move.
        migration: u64,
    },
    /// A block was encoded again, or could not be.
    Recomputed {
        /// The term of the supervisor that has asked.
        term: Term,
        /// The move.
        migration: u64,
        /// Whether it is there.
        done: bool,
    },
    /// A node was seen to go.
    NodeGone(NodeKey),
    /// Give a node no new blocks.
    Cordon(NodeKey),
    /// Take a cordon or a drain back.
    Uncordon(NodeKey),
    /// Move all blocks of a node elsewhere.
    Drain {
        /// The node.
        node: NodeKey,
        /// Milliseconds after which what is left is healed elsewhere.
        deadline_ms: Option<u64>,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Forget a node. Refused while blocks lie on it alone, unless forced.
    Remove {
        /// The node.
        node: NodeKey,
        /// Whether blocks may be lost (and encoded again).
        force: bool,
    },
    /// Plan a round of rebalancing, and do it if `apply`.
    Rebalance {
        /// Whether it is done.
        apply: bool,
    },
    /// Everything the supervisor knows.
    Snapshot,
    /// As [`Inventory`](Self::Inventory), of a node on which the device threads of some hosts make no progress. Of wire version
    /// 2, as what follows; see [`super::versions`].
    StuckInventory {
        /// What the node has, those hosts among it.
        inventory: Inventory,
        /// Those hosts.
        stuck: Vec<HostId>,
    },
    /// As [`Snapshot`](Self::Snapshot), in which hosts that are stuck are said to be so.
    Overview,
}

/// What the supervisor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum SupervisorReply {
    /// It is done.
    Done,
    /// Where the context goes.
    Placed(ContextPlaced),
    /// What draining moves.
    Drain(DrainPlan),
    /// What rebalancing moves.
    Plan(Plan),
    /// Everything the supervisor knows.
    Snapshot(Box<ClusterSnapshot>),
    /// It was not done, and nothing has changed.
    Refused(Refusal),
    /// It is noted, by the supervisor of this term.
    Noted(Term),
}

/// Why the supervisor did not do what it was asked. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum Refusal {
    /// It has just started and does not know yet what hosts hold.
    #[error("the supervisor has just started and is listening to its hosts; ask again in {retry_ms} ms")]
    Settling {
        /// When to ask again, in milliseconds.
        retry_ms: u64,
    },
    /// There is no host that takes blocks.
    #[error("no host takes blocks; join a node or uncordon one")]
    NoHosts,
    /// The blocks do not fit.
    #[error(
        "the context takes {needed_bytes} bytes more, of which {block_bytes} in one block, and {} are free on {} hosts, \
         {} at most on one; join a node or release a context",
        free_bytes.iter().fold(0u64, |sum, free| sum.saturating_add(free.1)), free_bytes.len(),
        free_bytes.iter().map(|free| free.1).max().unwrap_or(0)
    )]
    NoRoom {
        /// Bytes that the blocks that no host holds and the copies of the anchor would take.
        needed_bytes: u64,
        /// Bytes of the first block that fits on no host.
        block_bytes: u64,
        /// Bytes free on each host that takes blocks.
        free_bytes: Vec<(HostId, u64)>,
    },
    /// There is no such node.
    #[error("there is no node {node}; `stellate node ls` names them")]
    NoSuchNode {
        /// The node.
        node: NodeKey,
    },
    /// The other hosts lack room for what a node holds.
    #[error(
        "node {node} holds {bytes} bytes in {blocks} blocks that must move, the other hosts have {free_bytes} bytes free, \
         and {homeless_blocks} blocks fit nowhere ({block_bytes} bytes in the first); join a node or release a context"
    )]
    DrainNoRoom {
        /// The node.
        node: NodeKey,
        /// Blocks that must move.
        blocks: u64,
        /// Their bytes.
        bytes: u64,
        /// Bytes free on other hosts that take blocks.
        free_bytes: u64,
        /// Blocks that fit nowhere once the others have moved.
        homeless_blocks: u64,
        /// Bytes of the first of them.
        block_bytes: u64,
    },
    /// Blocks lie on the node alone.
    #[error("{blocks} blocks of {} contexts lie on node {node} alone; drain it first, or force", contexts.len())]
    NotEmpty {
        /// The node.
        node: NodeKey,
        /// How many blocks.
        blocks: u64,
        /// The contexts that they belong to.
        contexts: Vec<ContextId>,
    },
    /// What is wanted of a node could not be written down, and does not hold.
    #[error(
        "what is wanted of node {node} could not be kept on the supervisor's disk: {cause}; see to that disk, and ask again"
    )]
    NotKept {
        /// The node.
        node: NodeKey,
        /// What happened.
        cause: String,
    },
    /// The supervisor was replaced by a later one.
    #[error("a supervisor of a later term is there; ask that one")]
    Replaced,
    /// The node that asks cannot work with this cluster.
    #[error("this node cannot work with the cluster: {cause}; `stellate node ls` says why")]
    Incompatible {
        /// Why.
        cause: String,
    },
    /// What was asked could not be read.
    #[error("the supervisor could not read what was asked: {cause}; run the same version on both sides")]
    Unreadable {
        /// What is wrong with it.
        cause: String,
    },
    /// What is wanted of a node was written down by too few voters. Whether it holds is decided by who supervises next.
    #[error(
        "what is wanted of node {node} was not written down by a majority of the voters: {cause}; it may hold or not: look with \
         `stellate status`, see that most voters run (`stellate supervisor status`), and ask again"
    )]
    NotReplicated {
        /// The node.
        node: NodeKey,
        /// What happened.
        cause: String,
    },
}
