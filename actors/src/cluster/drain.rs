//! What draining a node moves and whether there is room for it, and how far a drain has come. Pure; the moves themselves
//! are in [`super::migration`].

use serde::{Deserialize, Serialize};
use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

use crate::link::HostId;
use crate::manifest::ContextId;

use super::messages::{NodeKey, Refusal};
use super::order::score;
use super::plan::{MoveReason, PlannedMove};
use super::replicas::nodes_of;

/// What draining a node moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct DrainPlan {
    /// The node.
    pub node: NodeKey,
    /// The moves, with the hosts that have room for them now; where a block really goes is decided when it goes.
    pub moves: Vec<PlannedMove>,
    /// Bytes of all moves.
    pub bytes: u64,
    /// Bytes free on the other hosts that take blocks.
    pub free_bytes: u64,
}

/// How a drain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(rename_all = "snake_case")]
pub enum DrainState {
    /// Blocks are moving.
    Moving,
    /// Nothing is left: the node can go.
    Done,
    /// The deadline has passed: what is left is healed elsewhere.
    DeadlinePassed,
}

/// How far a drain has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct DrainProgress {
    /// The node.
    pub node: NodeKey,
    /// How it stands.
    pub state: DrainState,
    /// Blocks copied elsewhere.
    pub moved_blocks: u64,
    /// Their bytes.
    pub moved_bytes: u64,
    /// Blocks computed again elsewhere.
    pub recomputed_blocks: u64,
    /// Blocks still to go.
    pub left_blocks: u64,
    /// Their bytes.
    pub left_bytes: u64,
    /// After the deadline: contexts with blocks that had not moved, whose sessions wait while those are computed again.
    pub affected: Vec<ContextId>,
}

impl DrainProgress {
    pub(crate) fn new(node: NodeKey) -> Self {
        Self {
            node,
            state: DrainState::Moving,
            moved_blocks: 0,
            moved_bytes: 0,
            recomputed_blocks: 0,
            left_blocks: 0,
            left_bytes: 0,
            affected: Vec::new(),
        }
    }
}

/// A host that may take a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) host: HostId,
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    /// What share of what its capacity is due it is given, in thousandths.
    pub(crate) share_permille: u64,
}

/// The candidate that is least full, for its share, with the block; among equals the first in the block's order.
pub(crate) fn pick(
    candidates: &[Candidate],
    block: &BlockId,
    bytes: u64,
    may_take: impl Fn(HostId) -> bool,
) -> Option<usize> {
    let fits = |c: &Candidate| c.used_bytes.saturating_add(bytes) <= c.capacity_bytes && may_take(c.host);
    let fill = |c: &Candidate| {
        let weight = u128::from(c.capacity_bytes) * u128::from(c.share_permille) / 1000;
        // In hundredths, so that blocks of a context do not all follow a host that is emptier by a few bytes.
        u128::from(c.used_bytes + bytes) * 100 / weight.max(1)
    };
    let order = |c: &Candidate| score(block, c.host, c.capacity_bytes);
    let fitting = candidates.iter().enumerate().filter(|(_, c)| fits(c));
    let best = fitting.min_by(|(_, a), (_, b)| {
        fill(a).cmp(&fill(b)).then(order(b).total_cmp(&order(a))).then(a.host.cmp(&b.host))
    });
    best.map(|(index, _)| index)
}

/// Plans the drain of a node that holds `blocks` (address, bytes, host, hosts elsewhere that hold it already), each of
/// which shall be on one more of `candidates`, on a node that does not hold it, and must be if no other host holds it.
///
/// # Errors
/// [`Refusal::DrainNoRoom`] with the numbers.
pub(crate) fn plan(
    node: NodeKey,
    blocks: &[(BlockId, u64, HostId, Vec<HostId>)],
    mut candidates: Vec<Candidate>,
) -> Result<DrainPlan, Refusal> {
    let free_bytes = candidates.iter().map(|c| c.capacity_bytes.saturating_sub(c.used_bytes)).sum();
    let bytes = blocks.iter().map(|block| block.1).sum();
    let mut moves = Vec::with_capacity(blocks.len());
    let mut homeless = Vec::new();
    // Large blocks first: they find room while there is much of it.
    let mut order: Vec<_> = blocks.iter().collect();
    order.sort_by_key(|(id, bytes, ..)| (std::cmp::Reverse(*bytes), *id));
    for (block, bytes, from, others) in order {
        let nodes = nodes_of(others);
        match pick(&candidates, block, *bytes, |host| !nodes.contains(&NodeKey::of(host))) {
            Some(index) => {
                candidates[index].used_bytes += bytes;
                let (to, why) = (candidates[index].host, MoveReason::Drain);
                moves.push(PlannedMove { block: *block, bytes: *bytes, from: *from, to, why });
            }
            None if others.is_empty() => homeless.push(*bytes),
            // There is a copy less for a while.
            None => {}
        }
    }
    match homeless.first() {
        None => Ok(DrainPlan { node, moves, bytes, free_bytes }),
        Some(&block_bytes) => Err(Refusal::DrainNoRoom {
            node,
            blocks: blocks.len() as u64,
            bytes,
            free_bytes,
            homeless_blocks: homeless.len() as u64,
            block_bytes,
        }),
    }
}
