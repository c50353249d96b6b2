//! What nodes say to each other about membership: messages, their bounds, and their bytes. Whether they may be believed is
//! for `merge` and `machine`.

use wincode::{SchemaRead, SchemaWrite};

use super::identity::{Generation, MemberIdentity, NodeId};
use super::record::NodeRecord;
use crate::encoding::{DecodeError, decode, encode};

/// The version of these messages. A node answers another version with [`Message::Refused`], of which the first two bytes
/// are the same in all versions.
pub const WIRE_VERSION: u8 = 1;

/// The longest roster, in bytes: within the codec's own limit, and 4,096 members with records of the usual length.
pub const MAX_ROSTER_BYTES: usize = 4 << 20;

/// The most nodes of one message that are taken for removed as far as there is proof; as many as a list of the revoked holds.
pub const MAX_CLAIMED: usize = 65_536;

/// The most nodes that one [`Message::Want`] names.
pub(super) const MAX_WANTED: usize = 16;

const SWIM: u8 = 1;
const NEWS: u8 = 2;
const DIGEST: u8 = 3;
const WANT: u8 = 4;
const REFUSED: u8 = 5;
const ROSTER: u8 = 6;

/// A message of this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message<'bytes> {
    /// SWIM's own, in the encoding of `swim`.
    Swim(&'bytes [u8]),
    /// What has changed lately, or was asked for.
    News(Vec<News>),
    /// The sender's digest of its roster.
    Digest([u8; 32]),
    /// Records that the sender lacks.
    Want(Vec<NodeId>),
    /// The receiver may not take part.
    Refused(RefusalReason),
    /// The sender's roster. Longer than a datagram: it goes over a stream.
    Roster(Box<Roster>),
}

/// A piece of news.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub(super) enum News {
    /// A node describes itself.
    Record(NodeRecord),
    /// A node has been removed for good, says the sender; the proof comes another way.
    Removed(NodeId),
}

/// Why a node may not take part.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub enum RefusalReason {
    /// It has been removed from the cluster.
    Removed,
    /// Another node has its name.
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        by: NodeId,
    },
    /// It speaks another version of these messages.
    Version {
        /// The version of the node that refuses.
        ours: u8,
    },
    /// There are as many members as there may be.
    Full,
}

/// What a node knows of the others.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub(super) struct Roster {
    /// Whether the receiver is asked for its own.
    pub(super) wants_reply: bool,
    /// The latest life of the receiver that the sender has heard of, dead or alive: a node that has lost its counter of
    /// starts learns from it what it must be above.
    pub(super) you: Generation,
    /// Who is alive, the sender among them.
    pub(super) members: Vec<RosterEntry>,
    /// Whom the sender has lately come to hold for dead: to be doubted, not to be believed.
    pub(super) dead: Vec<MemberIdentity>,
    /// Who has been removed for good, says the sender.
    pub(super) removed: Vec<NodeId>,
}

/// A member that is alive.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub(super) struct RosterEntry {
    /// The node in its present life.
    pub(super) identity: MemberIdentity,
    /// SWIM's incarnation of it.
    pub(super) incarnation: u16,
    /// Its record, if the sender has it.
    pub(super) record: Option<NodeRecord>,
}

/// Bytes that are no message of this version. Nothing has been taken from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FrameError {
    /// Another version of these messages, and whether it is a refusal, which is never answered.
    Version { theirs: u8, refusal: bool },
    /// Not what a message of this version looks like.
    Malformed(DecodeError),
}

impl Message<'_> {
    /// The message as bytes.
    ///
    /// What is sent is our own and has been checked, so that it encodes; should it not, nothing is sent.
    pub(super) fn frame(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Swim(body) => (SWIM, Ok(body.to_vec())),
            Self::News(news) => (NEWS, encode(news)),
            Self::Digest(digest) => (DIGEST, Ok(digest.to_vec())),
            Self::Want(nodes) => (WANT, encode(nodes)),
            Self::Refused(reason) => (REFUSED, encode(reason)),
            Self::Roster(roster) => (ROSTER, encode(&**roster)),
        };
        let body = body.unwrap_or_else(|error| {
            tracing::error!(%error, kind, "a membership message does not encode");
            Vec::new()
        });
        let mut frame = Vec::with_capacity(2 + body.len());
        frame.extend([WIRE_VERSION, kind]);
        frame.extend(body);
        frame
    }

    /// The message whose bytes these are, all of them.
    pub(super) fn parse(frame: &[u8]) -> Result<Message<'_>, FrameError> {
        let malformed = |problem: &str| {
            FrameError::Malformed(DecodeError { bytes: frame.len(), problem: problem.to_owned() })
        };
        let [version, kind, body @ ..] = frame else { return Err(malformed("no version and kind")) };
        if *version != WIRE_VERSION {
            return Err(FrameError::Version { theirs: *version, refusal: *kind == REFUSED });
        }
        match *kind {
            SWIM => Ok(Message::Swim(body)),
            NEWS => decode(body).map(Message::News).map_err(FrameError::Malformed),
            DIGEST => body.try_into().map(Message::Digest).map_err(|_| malformed("a digest has 32 bytes")),
            WANT => match decode::<Vec<NodeId>>(body) {
                Ok(nodes) if nodes.len() <= MAX_WANTED => Ok(Message::Want(nodes)),
                Ok(_) => Err(malformed("too many nodes wanted")),
                Err(error) => Err(FrameError::Malformed(error)),
            },
            REFUSED => decode(body).map(Message::Refused).map_err(FrameError::Malformed),
            ROSTER => {
                decode(body).map(|roster| Message::Roster(Box::new(roster))).map_err(FrameError::Malformed)
            }
            _ => Err(malformed("an unknown kind")),
        }
    }
}
