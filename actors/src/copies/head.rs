//! What stands in front of every copy of a session: whose it is, which nodes keep it, and which of two copies is newer.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use twox_hash::xxhash3_128::Hasher;
use wincode::{SchemaRead, SchemaWrite};

use crate::cluster::messages::NodeKey;
use crate::manifest::ContextId;
use crate::session::SessionId;

/// The time of one owner, compared as a whole: by the counter, then by the owner. No two owners have the same.
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
pub struct Epoch {
    /// One above the highest that the owner has seen.
    pub counter: u64,
    /// The owner's node.
    pub owner: NodeKey,
}

impl Epoch {
    /// The first of a session that `owner` has opened.
    pub fn first(owner: NodeKey) -> Self {
        Self { counter: 1, owner }
    }

    /// That of `owner`, who has seen `self` and nothing higher.
    pub fn next(self, owner: NodeKey) -> Self {
        Self { counter: self.counter.saturating_add(1), owner }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.counter, self.owner)
    }
}

/// The nodes that keep copies. While they change, a quorum of those before counts as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct CopySet {
    /// Those that shall keep copies; the first breaks ties.
    pub members: Vec<NodeKey>,
    /// Those that kept them before, as long as the change is not known to a quorum of both; else none.
    pub before: Vec<NodeKey>,
}

impl CopySet {
    /// A set that is not changing.
    pub fn of(members: Vec<NodeKey>) -> Self {
        Self { members, before: Vec::new() }
    }

    /// All that count, in order.
    pub fn all(&self) -> BTreeSet<NodeKey> {
        self.members.iter().chain(&self.before).copied().collect()
    }

    /// Whether those of whom `counts` holds are a quorum: any two quorums have a node in common.
    pub fn has_quorum(&self, counts: impl Fn(NodeKey) -> bool) -> bool {
        is_quorum(&self.members, &counts) && (self.before.is_empty() || is_quorum(&self.before, &counts))
    }
}

/// More than half, or half with the first.
fn is_quorum(members: &[NodeKey], counts: impl Fn(NodeKey) -> bool) -> bool {
    let count = 2 * members.iter().filter(|node| counts(**node)).count();
    count > members.len() || (count == members.len() && members.first().is_some_and(|node| counts(*node)))
}

/// What is written in front of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct Head {
    /// The session.
    pub session: SessionId,
    /// The context that it is over.
    pub context: ContextId,
    /// Whose it is.
    pub epoch: Epoch,
    /// Counts the heads of an epoch.
    pub version: u64,
    /// Who keeps copies.
    pub set: CopySet,
    /// Whether the session was removed: there is no log any more.
    pub is_removed: bool,
}

impl Head {
    /// Of two heads of one session, the greater is newer.
    pub fn rank(&self) -> (Epoch, u64) {
        (self.epoch, self.version)
    }

    /// Whether `node` has the log, and not only this head.
    pub fn is_kept_by(&self, node: NodeKey) -> bool {
        !self.is_removed && (self.epoch.owner == node || self.set.all().contains(&node))
    }
}

/// What a node has of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct Copy {
    /// The newest head that it was given; none if it has only promised.
    pub head: Option<Head>,
    /// It obeys no lower epoch.
    pub promised: Epoch,
    /// Turns in its log.
    pub turns: u64,
}

/// The nodes that are best asked to keep copies of sessions over a context, best first: those that run sessions before the
/// others, and among them by weighted rendezvous of the context (all weights alike), so that its sessions share a manifest.
pub fn preferred(context: ContextId, nodes: impl IntoIterator<Item = (NodeKey, bool)>) -> Vec<NodeKey> {
    let draw = |node: NodeKey| Hasher::oneshot_with_seed(context.0, &node.0);
    let mut nodes: Vec<_> =
        nodes.into_iter().map(|(node, runs_sessions)| (!runs_sessions, draw(node), node)).collect();
    nodes.sort_unstable();
    nodes.into_iter().map(|(_, _, node)| node).collect()
}
