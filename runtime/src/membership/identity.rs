//! Which life of a node.

use std::fmt;

use wincode::{SchemaRead, SchemaWrite};

pub(super) use crate::identity::NodeId;

/// Which life of a node. A later one replaces an earlier one wherever it is heard of, so that a restarted node leaves no ghost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaWrite, SchemaRead)]
pub struct Generation {
    /// The number of the start: one more at each start of the process, kept in the durable store and never taken from a clock.
    pub boot: u32,
    /// How often this process has come back after the others took it for dead.
    pub renewal: u32,
}

impl fmt::Display for Generation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.boot, self.renewal)
    }
}

/// A node in one of its lives: what SWIM counts as one member. SWIM's own incarnation, by which a suspected member says that
/// it is alive, comes on top of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaWrite, SchemaRead)]
pub struct MemberIdentity {
    /// The node.
    pub node: NodeId,
    /// Its life.
    pub generation: Generation,
}

impl foca::Identity for MemberIdentity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let renewal = self.generation.renewal.checked_add(1)?;
        Some(Self { generation: Generation { renewal, ..self.generation }, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}
