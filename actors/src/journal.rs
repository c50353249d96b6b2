//! What a node remembers of its contexts and sessions over its own end: what is written down, and when. How it is stored
//! is in [`store`]; a node without a journal remembers nothing.

pub mod kept;
mod store;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use stellate_model::block::{BlockId, Layout};
use stellate_runtime::store::HandleError;

use crate::cluster::messages::NodeKey;
use crate::manifest::{ContextId, Manifest};
use crate::prompt::Prompting;
use crate::session::{SessionId, TurnRecord};

pub use store::StoreJournal;

/// A journal failed. What it had acknowledged before is still there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The store failed or refused; whether the entry is there is then unknown.
    #[error(transparent)]
    Store(#[from] HandleError),
    /// An entry is not what was written.
    #[error("{what} is damaged ({problem}); remove it, or put a copy of the data folder back")]
    Damaged {
        /// Which entry.
        what: String,
        /// What was found.
        problem: String,
    },
    /// The session is another node's by now. What was not acknowledged here is not in it, unless it finds it there.
    #[error("session {session} is on node {owner} now; ask that one")]
    Moved {
        /// The session.
        session: SessionId,
        /// Whose it is.
        owner: NodeKey,
    },
    /// The session was removed, or is being removed. Nothing was written.
    #[error("session {session} was removed; open another one over its context")]
    Removed {
        /// The session.
        session: SessionId,
    },
    /// The context was removed, or let go because its last session here was. Nothing was written.
    #[error("context {context} was removed here; encode it again, or ask the node that it was encoded on")]
    NoContext {
        /// The context.
        context: ContextId,
    },
    /// It is written down here, and too few of the nodes that keep copies answered. It stays in the session; whether it
    /// outlives this node is not known yet.
    #[error(
        "session {session} is written down here, but its copies are not ({silent} of them do not answer); ask again once \
         those nodes are back, or others have joined"
    )]
    Unsettled {
        /// The session.
        session: SessionId,
        /// Nodes that did not answer.
        silent: usize,
    },
    /// This node could not write it down, so that no other was asked to. Whether it is there is not known until it is read again.
    #[error("session {session} could not be written down: {why}")]
    Unwritten {
        /// The session.
        session: SessionId,
        /// What the store said.
        why: String,
    },
}

impl JournalError {
    /// Whether the entry is in the log of this node all the same.
    pub fn is_written(&self) -> bool {
        matches!(self, Self::Unsettled { .. })
    }
}

/// A context as it is written down: enough to encode it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRecord {
    /// Its name.
    pub id: ContextId,
    /// Its shape.
    pub layout: Layout,
    /// How questions over it are put.
    pub prompting: Prompting,
    /// The addresses of its blocks, in order.
    pub blocks: Vec<BlockId>,
    /// Its tokens.
    pub ids: Arc<[u32]>,
}

impl ContextRecord {
    /// A context as it is to be written down.
    pub fn of(manifest: &Manifest, prompting: Prompting) -> Self {
        Self {
            id: manifest.id,
            layout: manifest.layout,
            prompting,
            blocks: manifest.blocks.iter().map(|block| block.id).collect(),
            ids: Arc::clone(&manifest.ids),
        }
    }
}

/// A session as it is written down, beside the log of its turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its name.
    pub id: SessionId,
    /// The context that it is over.
    pub context: ContextId,
}

/// Called when a context is gone, before it can come back: whoever keeps it in memory forgets it.
pub type Forget<'a> = &'a (dyn Fn() + Send + Sync);

/// What comes of a request to a journal.
pub type Journaled<'a, T> = BoxFuture<'a, Result<T, JournalError>>;

/// Remembers contexts and sessions. Each write is acknowledged once it is durable.
pub trait Journal: fmt::Debug + Send + Sync + 'static {
    /// A number for a context or a session that was never given before.
    fn name(&self) -> Journaled<'_, u64>;
    /// A context has been encoded.
    fn context_created(&self, context: ContextRecord) -> Journaled<'_, ()>;
    /// A context is not wanted any more, and no session over it. Tells which sessions there were; nothing if there is no
    /// such context.
    fn context_removed<'a>(
        &'a self,
        context: ContextId,
        forget: Forget<'a>,
    ) -> Journaled<'a, Option<Vec<SessionId>>>;
    /// A context is no more than kept here if another node made it, which answers, and no session here is over it. Tells
    /// whether that is so now, and was not before.
    fn context_let_go<'a>(&'a self, _context: ContextId, _forget: Forget<'a>) -> Journaled<'a, bool> {
        // All contexts of a process of its own are its own.
        Box::pin(async { Ok(false) })
    }
    /// A session has been opened.
    fn session_opened(&self, session: SessionRecord) -> Journaled<'_, ()>;
    /// A session is not wanted any more. Tells whether there was one.
    fn session_closed(&self, session: SessionId) -> Journaled<'_, bool>;
    /// A session has been asked: its turn of this number, the first being 0. The same again is refused.
    fn turn_appended(&self, session: SessionId, index: u64, turn: TurnRecord) -> Journaled<'_, ()>;
    /// The names of all contexts.
    fn contexts(&self) -> Journaled<'_, Vec<ContextId>>;
    /// A context, if there is one of that name.
    fn context(&self, id: ContextId) -> Journaled<'_, Option<ContextRecord>>;
    /// All sessions.
    fn sessions(&self) -> Journaled<'_, Vec<SessionRecord>>;
    /// A session and its turns, if there is one of that name.
    fn session(&self, id: SessionId) -> Journaled<'_, Option<(SessionRecord, Vec<TurnRecord>)>>;
}
