//! What a node publishes about itself. Slow facts only: what changes by the second goes to the supervisor, not here.

use std::net::SocketAddr;

use wincode::{SchemaRead, SchemaWrite};

use super::identity::NodeId;
use crate::encoding::{DecodeError, encode};
use crate::identity::{BadNodeName, NodeName};
use crate::protocol::ProtocolRange;

/// A record has at most this many bytes, so that one always fits a datagram of the smallest path that QUIC allows.
pub(super) const MAX_RECORD_BYTES: usize = 800;
const MAX_ADDRESSES: usize = 8;
const MAX_DEVICES: usize = 16;

/// A node as it describes itself. Among two records of a node the one with the higher `(boot, version)` holds.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct NodeRecord {
    /// The node.
    pub node: NodeId,
    /// [`super::Generation::boot`] of the process that wrote it.
    pub boot: u32,
    /// One more at each change within a start.
    pub version: u32,
    /// Its name, a [`NodeName`]: that of its certificate, and its own in the cluster.
    pub name: String,
    /// The version of its program, for people: what it speaks is in `protocol`.
    pub program: String,
    /// Where it listens, the preferred address first.
    pub addresses: Vec<SocketAddr>,
    /// The versions of the cluster's protocol that it speaks.
    pub protocol: ProtocolRange,
    /// What it is there for.
    pub roles: Roles,
    /// What its operator and it itself say about it.
    pub state: NodeState,
    /// The model it has loaded; none for a node that computes nothing.
    pub model: Option<ModelFormat>,
    /// Its devices, equal ones as one.
    pub devices: Vec<Device>,
    /// Bytes for blocks.
    pub capacity_bytes: u64,
}

/// What blocks are made with. Opaque here: equal or not.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct ModelFormat {
    /// Which weights.
    pub fingerprint: String,
    /// How keys and values are stored.
    pub kv_format: String,
}

/// Devices of one kind.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Device {
    /// The name of the product.
    pub name: String,
    /// How many.
    pub count: u16,
    /// The memory of one, in bytes.
    pub memory_bytes: u64,
}

/// What a node is there for; any of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Roles {
    /// Holds blocks.
    pub context: bool,
    /// Runs sessions.
    pub query: bool,
    /// May place blocks.
    pub supervisor: bool,
    /// Holds the CA's key: lets nodes in, removes them, renews certificates.
    pub issuer: bool,
}

/// What its operator and a node itself say about it. Whether it answers is another matter: [`super::Liveness`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaWrite, SchemaRead)]
pub enum NodeState {
    /// Not ready yet.
    Joining,
    /// At work.
    Active,
    /// At work on what it has; takes nothing new.
    Cordoned,
    /// What it has is being moved off.
    Draining,
    /// Has nothing any more and takes nothing.
    Drained,
    /// Has left by its own will.
    Left,
}

impl NodeState {
    /// Whether a node may go from this state to `next`. Cordoning and draining can be taken back; leaving cannot: a node that
    /// has left comes back with another start.
    pub fn may_become(self, next: Self) -> bool {
        use NodeState::{Active, Cordoned, Drained, Draining, Joining, Left};
        match (self, next) {
            (Left, _) => false,
            (_, Left) => true,
            (Joining, Active | Cordoned | Draining) => true,
            (Active, Cordoned | Draining) | (Cordoned, Active | Draining) => true,
            (Draining, Active | Cordoned | Drained) | (Drained, Active | Cordoned | Draining) => true,
            (Joining, Joining | Drained) | (Active | Cordoned | Draining | Drained, _) => false,
        }
    }
}

/// A record that may not be published. It has not been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The name is none for a node.
    #[error(transparent)]
    Name(#[from] BadNodeName),

    /// Too many of something.
    #[error("{found} {what} in a node's record, at most {limit} may be")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many may be.
        limit: usize,
    },

    /// No address to reach it at.
    #[error("a node's record has no address; it must be reachable at one at least")]
    NoAddress,

    /// The oldest version is newer than the newest.
    #[error("versions {} to {} are no range", .0.oldest, .0.newest)]
    Versions(ProtocolRange),

    /// The whole is too long.
    #[error(
        "a node's record has {found} bytes, at most {MAX_RECORD_BYTES} may be: shorten names or list fewer devices"
    )]
    TooLong {
        /// Its bytes.
        found: usize,
    },

    /// It does not encode.
    #[error("a node's record does not encode: {0}")]
    Encoding(String),

    /// The node may not go from its state to that one.
    #[error("a node that is {from:?} cannot become {to:?}")]
    State {
        /// Its state.
        from: NodeState,
        /// What was asked for.
        to: NodeState,
    },

    /// The node, its start or its version were changed, which are not the caller's.
    #[error("node, boot and version of a record are not to be changed")]
    Fixed,
}

impl NodeRecord {
    /// Which of two records of a node is the later.
    pub fn age(&self) -> (u32, u32) {
        (self.boot, self.version)
    }

    /// Whether it may be published, and believed when received.
    ///
    /// # Errors
    /// [`RecordError`] says which bound it breaks.
    pub fn check(&self) -> Result<(), RecordError> {
        self.name.parse::<NodeName>()?;
        let many = |what, found, limit| {
            if found > limit { Err(RecordError::TooMany { what, found, limit }) } else { Ok(()) }
        };
        many("addresses", self.addresses.len(), MAX_ADDRESSES)?;
        many("kinds of devices", self.devices.len(), MAX_DEVICES)?;
        if self.addresses.is_empty() {
            return Err(RecordError::NoAddress);
        }
        if self.protocol.oldest > self.protocol.newest {
            return Err(RecordError::Versions(self.protocol));
        }
        let found = encode(self).map_err(|error| RecordError::Encoding(error.to_string()))?.len();
        if found > MAX_RECORD_BYTES { Err(RecordError::TooLong { found }) } else { Ok(()) }
    }

    /// The same for what a peer sent.
    pub(super) fn check_received(&self) -> Result<(), DecodeError> {
        self.check().map_err(|error| DecodeError { bytes: 0, problem: error.to_string() })
    }
}
