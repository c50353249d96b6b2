//! What a supervisor knows, as values for people: what `status`, `node ls` and `ps` print.

use serde::{Deserialize, Serialize};
use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

use crate::disk::index::DiskFigures;
use crate::link::HostId;
use crate::manifest::ContextId;

use super::drain::DrainProgress;
use super::messages::NodeKey;
use super::migration::Step;
use super::plan::MoveReason;
use super::repair::RepairChoice;
use super::table::HostState;
use super::term::Term;

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct HostRow {
    /// The host.
    pub host: HostId,
    /// What becomes of it.
    pub state: HostState,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes it holds, or has promised to hold.
    pub used_bytes: u64,
    /// Blocks that it holds.
    pub blocks: u64,
    /// Blocks that are on their way to it.
    pub inbound: u64,
    /// What share of what its capacity is due it is given, in thousandths.
    pub share_permille: u64,
    /// Measured rate of encoding, in tokens a second; 0 if none was measured.
    pub encode_tokens_per_s: u64,
    /// Measured bandwidth of copies, in bytes a second; 0 if none was measured.
    pub copy_bytes_per_s: u64,
    /// Milliseconds since it was heard of.
    pub silent_ms: u64,
    /// Blocks that were computed for it since it has started.
    pub computed_blocks: u64,
    /// The disk that it shares with the other hosts of its node, if that has one.
    pub disk: Option<DiskFigures>,
}

/// A context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct ContextRow {
    /// Its name.
    pub context: ContextId,
    /// The node that keeps it.
    pub query_node: NodeKey,
    /// Its blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of its blocks that some host holds.
    pub held_blocks: u64,
    /// Those of its blocks that as many nodes hold as shall.
    pub safe_blocks: u64,
    /// The hosts that hold them.
    pub hosts: Vec<HostId>,
}

/// A block on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct MoveRow {
    /// Its number.
    pub migration: u64,
    /// The block.
    pub block: BlockId,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes that have come.
    pub done_bytes: u64,
    /// Where it comes from.
    pub from: HostId,
    /// Where it goes.
    pub to: HostId,
    /// Why.
    pub why: MoveReason,
    /// How, and by which figures that was chosen.
    pub choice: RepairChoice,
    /// How far it has come.
    pub step: Step,
}

/// A move that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct EndedMove {
    /// As it was at its end.
    pub row: MoveRow,
    /// Whether the block is on its target; else the move was taken back.
    pub is_committed: bool,
}

/// How moves have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct MoveCounts {
    /// Blocks copied.
    pub moved: u64,
    /// Blocks computed again.
    pub recomputed: u64,
    /// Moves taken back.
    pub cancelled: u64,
}

/// Everything a supervisor knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct ClusterSnapshot {
    /// Its term.
    pub term: Term,
    /// The version of its table.
    pub version: u64,
    /// Its hosts, by id.
    pub hosts: Vec<HostRow>,
    /// The contexts, by name.
    pub contexts: Vec<ContextRow>,
    /// Blocks on their way, by number.
    pub moves: Vec<MoveRow>,
    /// Moves that wait for their turn.
    pub queued_moves: u64,
    /// The next move has this number, or a higher one.
    pub next_move: u64,
    /// The last moves that have ended: of those that take less time than two looks, nothing else tells.
    pub ended_moves: Vec<EndedMove>,
    /// What rebalancing has done since the supervisor has started.
    pub rebalanced: MoveCounts,
    /// Drains, by node.
    pub drains: Vec<DrainProgress>,
}
