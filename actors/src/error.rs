//! What a user of a node can be told: one error type per operation. Every refusal leaves all else as it was.

use std::sync::Arc;

use ractor::RactorErr;
use stellate_kernels::KernelError;
use stellate_model::block::LayoutError;
use stellate_model::checkpoint::CheckpointError;
use stellate_model::config::ConfigError;
use stellate_model::decoder::UnknownToken;
use stellate_model::random::UnknownShape;
use stellate_model::sampler::SamplingError;
use stellate_model::stream::StopError;

use crate::api::RemoteError;
use crate::budget::StoreFull;
use crate::cluster::messages::Refusal;
use crate::context_host::HostError;
use crate::fanout::FanoutError;
use crate::journal::JournalError;
use crate::manifest::ContextId;
use crate::member::AskFailure;
use crate::prompt::PromptError;
use crate::retry::{QUEUE_S, SESSION_S};
use crate::session::SessionId;

/// The actor or thread that was asked has stopped: the node is closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is closing; open it again")]
pub struct Stopped;

/// The reply of a remote call, or [`Stopped`] if none can come.
pub(crate) trait Asked<T> {
    fn asked(self) -> Result<T, Stopped>;
}

impl<T, M> Asked<T> for Result<T, RactorErr<M>> {
    fn asked(self) -> Result<T, Stopped> {
        self.map_err(|_| Stopped)
    }
}

/// A node could not be opened. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer or the chat template cannot be used.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// No random model of that name.
    #[error(transparent)]
    Shape(#[from] UnknownShape),
    /// A backend could not be built.
    #[error(transparent)]
    Backend(#[from] KernelError),
    /// A thread or actor could not be started.
    #[error("cannot start {what}: {reason}")]
    Start {
        /// What was to be started.
        what: String,
        /// What the system said.
        reason: String,
    },
    /// A node without context hosts holds no context.
    #[error("hosts.count is 0; a node needs at least one context host")]
    NoHosts,
    /// The node of another process cannot be used.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// The context hosts have no room for a context. Nothing of it is kept; every other context is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the context does not fit: {needed_tokens} tokens were needed and {free_tokens} are free (context hosts: {hosts}); \
     its next block needs {block_tokens} on one host, and no host has more than {largest_free_tokens} free; raise \
     kv.capacity_bytes, add a host, close a context, or use smaller blocks"
)]
pub struct ContextFull {
    /// Tokens that its blocks, with the copies of its anchor, would have taken; in whole tiles of 64 a block.
    pub needed_tokens: usize,
    /// Tokens that there is room for, on all hosts together.
    pub free_tokens: usize,
    /// Tokens of the first block that fits nowhere, with the copy of the anchor that it needs.
    pub block_tokens: usize,
    /// Tokens that the emptiest host has room for.
    pub largest_free_tokens: usize,
    /// Hosts of the node.
    pub hosts: usize,
}

/// A context could not be encoded. Nothing of it is kept; every other context is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A layout that no context can have.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The text cannot be tokenised.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A token that the model does not know.
    #[error(transparent)]
    UnknownToken(#[from] UnknownToken),
    /// The model cannot take a context of this length.
    #[error(transparent)]
    Model(#[from] ConfigError),
    /// The context hosts have no room for it.
    #[error(transparent)]
    Full(#[from] ContextFull),
    /// A context host could not do its part.
    #[error("context host: {0}")]
    Host(#[from] HostError),
    /// The hosts of earlier blocks could not do their part (`exact`).
    #[error(transparent)]
    Fanout(#[from] FanoutError),
    /// The query host, which computes `exact` blocks, has more to do than it may hold.
    #[error("the query host's queue is full ({queue} jobs); encode again in {} s", QUEUE_S)]
    Overloaded {
        /// Its bound.
        queue: usize,
    },
    /// There is no supervisor to place it, or it does not answer.
    #[error("the context was not placed: {0}")]
    Supervisor(#[from] AskFailure),
    /// The supervisor does not place it.
    #[error("the context was not placed: {0}")]
    Refused(Refusal),
    /// It could not be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It was cancelled.
    #[error("the encoding was cancelled")]
    Cancelled,
    /// The node is closing.
    #[error("the node is closing; open it again")]
    Stopped,
    /// The node is elsewhere: it cannot be reached, or says something that has no variant here.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// A question could not be answered. The session is as it was before the question.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The question cannot be tokenised or rendered.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A token that the model does not know.
    #[error(transparent)]
    UnknownToken(#[from] UnknownToken),
    /// The conversation is longer than the model can take.
    #[error(transparent)]
    Model(#[from] ConfigError),
    /// A sampling parameter out of its range, or logits that are no numbers.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A stop string that cannot be looked for.
    #[error(transparent)]
    StopString(#[from] StopError),
    /// There is nothing to feed: no token in the question, and none left over from an earlier turn.
    #[error("the question has no tokens; ask something, or begin the context with a token")]
    Empty,
    /// No token may be generated.
    #[error("max_tokens is 0; allow at least one token")]
    NoTokens,
    /// The query host has no room for the conversation.
    #[error("the conversation does not fit: {0}")]
    Full(#[from] StoreFull),
    /// A step's attention is not to be had.
    #[error(transparent)]
    Fanout(#[from] FanoutError),
    /// A step's attention is not to be had, and the context's blocks could not be brought back.
    #[error("{fault}; its blocks could not be brought back: {cause}")]
    Unhealed {
        /// What the step met.
        fault: FanoutError,
        /// Why no other placement was found.
        cause: Arc<EncodeError>,
    },
    /// The turn could not be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The session answers another question.
    #[error("the session is still answering; finish or cancel that turn first")]
    Busy,
    /// The session was closed.
    #[error("the session is closed; open another one over the context")]
    Closed,
    /// The query host has more to do than it may hold.
    #[error("the query host's queue is full ({queue} jobs); ask again in {} s", QUEUE_S)]
    Overloaded {
        /// Its bound.
        queue: usize,
    },
    /// The node is closing.
    #[error("the node is closing; open it again")]
    Stopped,
    /// The node is elsewhere: it cannot be reached, or says something that has no variant here.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// A context of an earlier time could not be taken up again, or not be removed. It is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// There is no such context.
    #[error("there is no context {context}; list those that there are")]
    Unknown {
        /// The name that was asked for.
        context: ContextId,
    },
    /// It was encoded by another model, or for another KV format.
    #[error(
        "context {context} was encoded by another model or KV format; open the node with those, or remove it"
    )]
    OtherModel {
        /// The context.
        context: ContextId,
    },
    /// What is written of it cannot be read, or removed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The node is elsewhere: it cannot be reached, or says something that has no variant here.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The node is closing.
    #[error("the node is closing; open it again")]
    Stopped,
}

/// A session could not be opened, or not be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There is no such session.
    #[error("there is no session {session}; list those that there are")]
    Unknown {
        /// The name that was asked for.
        session: SessionId,
    },
    /// Somebody has it open already.
    #[error("session {session} is open already; use that handle, or drop it first")]
    AlreadyOpen {
        /// The session.
        session: SessionId,
    },
    /// Its context cannot be taken up again.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// What is written of it cannot be read, or it cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The query host serves as many sessions as it may.
    #[error(
        "{max_sessions} sessions are open, as many as query.max_sessions allows; try again in {} s, close one, or raise it",
        SESSION_S
    )]
    TooMany {
        /// The bound.
        max_sessions: usize,
    },
    /// The query host has more to do than it may hold.
    #[error("the query host's queue is full ({queue} jobs); open the session again in {} s", QUEUE_S)]
    Overloaded {
        /// Its bound.
        queue: usize,
    },
    /// The node is closing.
    #[error("the node is closing; open it again")]
    Stopped,
    /// The node is elsewhere: it cannot be reached, or says something that has no variant here.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

impl From<Stopped> for EncodeError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<Stopped> for AskError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<Stopped> for SessionError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<Stopped> for ContextError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<StoreFull> for HostError {
    fn from(full: StoreFull) -> Self {
        Self::Full(full)
    }
}
