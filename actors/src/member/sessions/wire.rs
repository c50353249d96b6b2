//! What nodes ask each other about sessions. Contexts go in pieces; turns as many as fit.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::copies::{Copy, KeeperReply, KeeperRequest};
use crate::manifest::ContextId;
use crate::session::SessionId;

/// Bytes of a context in one message.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// Bytes of turns in one message: below what the control plane takes.
pub(crate) const MAX_TURN_BYTES: usize = 3 << 20;

/// Bytes of a context as it is written down, at most: as a record of the store.
pub(crate) const MAX_CONTEXT_BYTES: u64 = 64 << 20;

/// What a node is asked.
#[derive(Clone, Debug, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub(crate) enum SessionAsk {
    /// What it has of a session. Answered by `Copy`.
    Look(SessionId),
    /// To keep a copy, or to obey. Answered by `Kept`, or by `NeedsContext` where a copy is to be kept.
    Keep(SessionId, KeeperRequest),
    /// Turns from this one on. Answered by `Turns`.
    Turns(SessionId, u64),
    /// A context from this byte on. Answered by `Piece`.
    Context(ContextId, u64),
    /// A piece of a context to keep. Answered by `Done`.
    KeepContext {
        /// The context.
        context: ContextId,
        /// Bytes of the whole.
        whole_bytes: u64,
        /// Where the piece begins.
        offset: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// To take a session over, although its owner is there. Answered by `Done`.
    TakeOver(SessionId),
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub(crate) enum SessionAnswer {
    /// What it has.
    Copy(Option<Copy>),
    /// As a keeper.
    Kept(KeeperReply),
    /// It lacks the session's context.
    NeedsContext,
    /// Turns as they are written down; none behind the last.
    Turns(Vec<Vec<u8>>),
    /// A piece, and the bytes of the whole.
    Piece {
        /// Of the whole.
        whole_bytes: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// It is done.
    Done,
    /// It is not done, and why.
    Refused(String),
}
