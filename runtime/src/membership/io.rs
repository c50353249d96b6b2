//! What goes into the state machine beside messages, and what comes out of it.

use std::time::Duration;

use super::identity::{Generation, NodeId};
use super::judge::Clash;
use super::record::NodeRecord;
use super::wire::RefusalReason;
use crate::encoding::DecodeError;

/// What a node starts with.
#[derive(Clone, Debug)]
pub struct Start {
    /// What it says of itself. `boot` is its counter of starts, from the durable store; `version` is set to 1.
    pub record: NodeRecord,
    /// Nodes that have been removed, as far as there is proof.
    pub removed: Vec<NodeId>,
    /// For every random choice.
    pub seed: u64,
    /// The caller's time.
    pub now: Duration,
}

/// What the caller has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send it as one datagram to that node, or drop it if there is no way.
    Datagram {
        /// To whom.
        to: NodeId,
        /// What; at most [`super::MembershipOptions::datagram_bytes`].
        bytes: Vec<u8>,
    },
    /// Send it on a stream to that node, connecting if need be; the peer gives it to [`super::Membership::handle_roster`].
    Roster {
        /// To whom.
        to: NodeId,
        /// What; at most [`super::MAX_ROSTER_BYTES`].
        bytes: Vec<u8>,
    },
    /// We are alone: find addresses, connect, and call [`super::Membership::contact`] with whoever is there. Asked again, ever more
    /// seldom, until there is somebody.
    Bootstrap,
    /// A member says that nodes were removed. That is a hint and nothing else: call [`super::Membership::remove`] for those
    /// of which there is proof.
    Claimed {
        /// Who says so.
        by: NodeId,
        /// Of whom. At most [`super::MAX_CLAIMED`], none of them removed here.
        removed: Vec<NodeId>,
    },
    /// A member does not know of all nodes that are removed here: give it the proof.
    Prove {
        /// Who.
        to: NodeId,
    },
    /// Something has happened.
    Event(Event),
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node that was not known is a member.
    Joined {
        /// Who.
        node: NodeId,
        /// In which life.
        generation: Generation,
    },
    /// A member that was known is there in another life, or after it was down or had left.
    Rejoined {
        /// Who.
        node: NodeId,
        /// In which life.
        generation: Generation,
    },
    /// A member does not answer.
    Suspect(NodeId),
    /// A suspected member has said that it is alive.
    Trusted(NodeId),
    /// A member is taken for dead.
    Down(NodeId),
    /// A member has left by its own will.
    Left(NodeId),
    /// A member's record has changed.
    Changed(NodeId),
    /// A node has been removed for good: nothing of it is to be left open.
    Removed(NodeId),
    /// A member that is down has been forgotten.
    Forgotten(NodeId),
    /// There is at least one other member.
    Connected,
    /// All others are down or have left.
    Alone,
    /// The others took us for dead; we go on in this life. Where `boot` has changed too, our counter of starts was behind
    /// (lost, or another process runs with our key): store it.
    Renewed(Generation),
    /// A node does not let us take part.
    Refused {
        /// Who.
        by: NodeId,
        /// Why.
        reason: RefusalReason,
    },
    /// A node speaks another version of membership's messages.
    OtherVersion {
        /// Who.
        peer: NodeId,
        /// Its version.
        theirs: u8,
    },
    /// Two members have one name.
    NameClash(Clash),
}

/// What arrived is not taken. The state is unchanged. To be counted and logged, and no reason to stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Longer than may be.
    #[error("{bytes} bytes, at most {limit} may be")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// No message.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// Another version. The peer has been told.
    #[error("wire version {theirs}")]
    Version {
        /// The peer's.
        theirs: u8,
    },
    /// From a removed node. It has been told.
    #[error("from a removed node")]
    Removed,
    /// From whoever the transport says, in the name of another, or of us.
    #[error("says it is from {claimed}")]
    Sender {
        /// In whose name.
        claimed: NodeId,
    },
    /// SWIM does not take it.
    #[error("SWIM: {0}")]
    Swim(String),
    /// A roster that came as a datagram or the other way round.
    #[error("not what comes this way")]
    Channel,
    /// We have left.
    #[error("we have left")]
    Left,
}
