//! What nodes send each other, and what they wait for.

use std::time::Duration;

use stellate_actors::checksum::Checksum;
use stellate_actors::cluster::election::{Message as Word, Version};
use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::cluster::messages::{
    AgentOrder, AgentReply, QueryNodeNotice, SupervisorReply, SupervisorRequest,
};
use stellate_actors::copies::{Copy, KeeperReply, KeeperRequest};
use stellate_actors::link::HostId;
use stellate_actors::manifest::ContextId;
use stellate_actors::session::SessionId;
use stellate_model::block::BlockId;

use crate::context::ContextSpec;
use crate::network::Class;

/// What travels.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// To a supervisor.
    Ask(u64, SupervisorRequest),
    /// From it.
    Answer(u64, SupervisorReply),
    /// To an agent.
    Order(u64, AgentOrder),
    /// From it.
    Obeyed(u64, AgentReply),
    /// From a supervisor to a query node.
    Notice(QueryNodeNotice),
    /// To a context host: attend this query to these blocks.
    Attend(u64, u64, Vec<BlockId>),
    /// From it: a partial for each block that it attended to, or the block that it has not.
    Attended(u64, Result<Vec<(BlockId, u64)>, BlockId>),
    /// To a context host: send this block.
    Fetch(u64, BlockId),
    /// From it: the block's content and its checksum.
    Fetched(u64, Option<(u64, Checksum)>),
    /// What is there of a session?
    Look(u64, SessionId),
    /// That.
    Looked(u64, Option<Copy>),
    /// To whoever keeps a copy of a session, or may have one; with the context.
    Keep(u64, SessionId, KeeperRequest, Option<ContextSpec>),
    /// From it, unless it could not be written.
    Kept(u64, Option<KeeperReply>),
    /// To whoever has a session's log.
    FetchLog(u64, SessionId),
    /// From it.
    Logged(u64, Option<(Vec<Vec<u8>>, ContextSpec)>),
    /// From a voter to a voter.
    Vote(Word),
    /// Of membership.
    Datagram(Vec<u8>),
    /// Of membership.
    Roster(Vec<u8>),
    /// Of membership: a connection to this node stands.
    Contact,
}

impl Message {
    /// How it travels.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Datagram(_) | Self::Vote(_) => Class::Datagram,
            // Of these a second one would be another: the transport numbers them.
            _ => Class::Stream,
        }
    }

    /// By which it is told from others in a trace.
    pub(crate) fn words(&self) -> [u64; 2] {
        match self {
            Self::Ask(call, _) => [1, *call],
            Self::Answer(call, _) => [2, *call],
            Self::Order(call, order) => [3, call.rotate_left(32) ^ order.order],
            Self::Obeyed(call, _) => [4, *call],
            Self::Notice(_) => [5, 0],
            Self::Attend(call, query, _) => [6, call.rotate_left(32) ^ query],
            Self::Attended(call, reply) => {
                [7, call ^ reply.iter().flatten().fold(0u64, |sum, (_, part)| sum.wrapping_add(*part))]
            }
            Self::Fetch(call, _) => [8, *call],
            Self::Fetched(call, _) => [9, *call],
            Self::Datagram(bytes) => [10, bytes.len() as u64],
            Self::Roster(bytes) => [11, bytes.len() as u64],
            Self::Contact => [12, 0],
            Self::Look(call, _) => [14, *call],
            Self::Looked(call, copy) => {
                [15, call.rotate_left(32) ^ copy.as_ref().map_or(0, |copy| copy.turns)]
            }
            Self::Keep(call, _, KeeperRequest::Fence(epoch), _) => [16, call.rotate_left(32) ^ epoch.counter],
            Self::Keep(call, _, KeeperRequest::Store { from, .. }, _) => [17, call.rotate_left(32) ^ from],
            Self::Kept(call, reply) => [18, 2 * call + u64::from(reply.is_some())],
            Self::FetchLog(call, _) => [19, *call],
            Self::Logged(call, log) => [20, 2 * call + u64::from(log.is_some())],
            Self::Vote(word) => [13, term_of(word)],
        }
    }
}

/// What a voter says, in a word.
fn term_of(word: &Word) -> u64 {
    match word {
        Word::Poll { round, .. } | Word::Would { round, .. } => 2 * round,
        Word::Ask { term, .. } | Word::Granted { term, .. } => 2 * term.counter + 1,
        Word::Refused { term, .. } | Word::Release { term, .. } => 2 * term.counter + 1,
        Word::Replicate { book } => book.version.sequence,
        Word::Stored { version } => version.sequence,
        Word::Nudge => 0,
    }
}

/// What a node waits for an answer to.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    /// A supervisor's order, by its number, in the supervisor that gave it.
    Order { instance: u64, order: u64 },
    /// What the supervisor must hear: told again until it has.
    MustHear(SupervisorRequest, Duration),
    /// A sign of life of the query node.
    Renew,
    /// A context is announced.
    Hold(ContextId),
    /// The end of a context is told.
    Release(ContextId),
    /// A context is placed, in this try.
    Place(ContextId, u64),
    /// A block is encoded, in this try.
    Encode(ContextId, u64, HostId),
    /// A block is encoded again for a move.
    Recompute(SupervisorRequest),
    /// Attention for a step of a session.
    Attend(SessionId, u64, HostId),
    /// A copy of a block.
    Fetch(BlockId),
    /// A session's head and turns, by an owner, at a keeper.
    Store(u64, SessionId, NodeKey),
    /// What is there of a session, in a take-over.
    Look(u64, SessionId, NodeKey),
    /// A keeper is fenced, in a take-over.
    Fence(u64, SessionId, NodeKey),
    /// A session's log, in a take-over.
    Log(u64, SessionId),
}

/// A call that was not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) to: u16,
    /// The life of the node that was called.
    pub(crate) life: u64,
    pub(crate) since: Duration,
    pub(crate) purpose: Purpose,
    /// When it is given up; without, when the node that was called is not there any more.
    pub(crate) limit: Option<Duration>,
}

/// What a node does by itself.
#[derive(Clone, Debug)]
pub(crate) enum Timer {
    /// Once a second.
    Beat,
    /// Of membership.
    Membership,
    /// What was written up to here is on the disk.
    Written(u64),
    /// What was written up to here is taken to be on the disk.
    Acknowledged(u64),
    /// It is, and the node was told before.
    Synced(u64),
    /// The device has done its job.
    Device(u64),
    /// A call is looked at.
    Limit(u64),
    /// A context is placed again, in this try.
    Settle(ContextId, u64),
    /// The supervisor is told again.
    Tell(SupervisorRequest, Duration),
    /// A supervisor that was replaced looks whether it may start again.
    StandBy,
    /// A voter looks at the time.
    Vote,
    /// A majority of voters has taken too long to write down what is wanted.
    Wish(Version),
    /// A session goes on.
    Session(SessionId),
}
