//! Errors on their way through the network: a code and a message for everything, and the variants themselves for those that
//! programs act upon. What comes back is the same error type that a node of this process gives.

use serde::Serialize;
use stellate_runtime::transport::{CertificateFault, Closed, DialError, FrameError, StreamError};
use wincode::{SchemaRead, SchemaWrite};

use super::cluster::ClusterError;
use crate::cluster::messages::Refusal;
use crate::context_host::HostError;
use crate::error::{AskError, ContextFull, EncodeError, SessionError};
use crate::journal::JournalError;
use crate::manifest::ContextId;
use crate::prompt::PromptError;
use crate::session::SessionId;

/// What kind of refusal it is: what a program decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is wrong as it is.
    Usage,
    /// The model cannot do it: it came without, or with in pieces, what it takes.
    Model,
    /// There is no such context, session or node.
    NotFound,
    /// There is no room.
    Full,
    /// There is too much to do at the moment.
    Busy,
    /// It was cancelled.
    Cancelled,
    /// The node is leaving, or cannot do this; another one can.
    Unavailable,
    /// It would do harm.
    Refused,
    /// It went wrong.
    Failed,
    /// The certificate does not allow it.
    NotAllowed,
    /// Another node has it, which is named with its address.
    Elsewhere,
}

/// A node of another process could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// It cannot be reached. Nothing was asked.
    #[error(transparent)]
    Unreachable(#[from] DialError),
    /// The connection was lost while it was asked. What it was doing is cancelled; contexts and sessions are still there.
    #[error(
        "the connection to the node was lost ({0}); ask again: its contexts and sessions are still there"
    )]
    Lost(Closed),
    /// It refused, and said why.
    #[error("{message}")]
    Refused {
        /// What kind of refusal.
        code: ErrorCode,
        /// Why, and what to do.
        message: String,
    },
    /// Another node has the session.
    #[error("{message}")]
    Elsewhere {
        /// Where that node listens.
        address: String,
        /// Which it is, and what to do.
        message: String,
    },
    /// The session has gone on, or was never that far: the turn that was asked for is not this question's.
    #[error("{message}")]
    OtherTurn {
        /// Which turn, and what to do.
        message: String,
    },
    /// What it said makes no sense, or what was asked does not fit into a frame. Nothing is known of the request's fate.
    #[error("the request failed: {0}; run the same version of `stellate` on both sides")]
    Protocol(String),
    /// This side could not take part in the network.
    #[error("cannot use the network: {0}")]
    Local(String),
}

impl RemoteError {
    /// Whether the certificate was refused, by either side, or does not allow what was asked.
    pub fn is_identity(&self) -> bool {
        matches!(
            self,
            Self::Refused { code: ErrorCode::NotAllowed, .. }
                | Self::Unreachable(DialError::RefusedByPeer { .. } | DialError::PeerRefused { .. })
                | Self::Lost(Closed::RefusedByPeer(_) | Closed::PeerRefused(_))
        )
    }

    /// Whether the same may come out well at another node, or here in a moment: nothing is wrong with what was asked.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Lost(_) => !self.is_identity(),
            Self::Refused { code, .. } => *code == ErrorCode::Unavailable,
            Self::Elsewhere { .. } => true,
            Self::OtherTurn { .. } | Self::Protocol(_) | Self::Local(_) => false,
        }
    }

    /// What is wrong with the certificate, if that is what it is.
    pub fn certificate_fault(&self) -> Option<CertificateFault> {
        match self {
            Self::Unreachable(
                DialError::RefusedByPeer { fault, .. } | DialError::PeerRefused { fault, .. },
            )
            | Self::Lost(Closed::RefusedByPeer(fault) | Closed::PeerRefused(fault)) => Some(*fault),
            _ => None,
        }
    }
}

impl From<StreamError> for RemoteError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Closed(closed) => Self::Lost(closed),
            error => Self::Protocol(error.to_string()),
        }
    }
}

impl From<FrameError> for RemoteError {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// Longest message that travels: the header of a frame has room for it.
const MAX_MESSAGE_BYTES: usize = 8 << 10;

/// A refusal as it travels.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct Fault {
    pub(super) code: ErrorCode,
    pub(super) message: String,
    pub(super) detail: Detail,
}

/// The variants that come back as themselves.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) enum Detail {
    None,
    ContextFull { needed: u64, free: u64, block: u64, largest_free: u64, hosts: u64 },
    TooManySessions(u64),
    Overloaded(u64),
    Cancelled,
    Stopped,
    Busy,
    Closed,
    Empty,
    NoTokens,
    NoTokenizer,
    NothingToContinue,
    Elsewhere { address: String },
    OtherTurn,
}

impl Fault {
    pub(super) fn new(code: ErrorCode, message: impl ToString) -> Self {
        let mut message = message.to_string();
        let end = (0..=message.len().min(MAX_MESSAGE_BYTES)).rev().find(|&end| message.is_char_boundary(end));
        message.truncate(end.unwrap_or(0));
        Self { code, message, detail: Detail::None }
    }

    fn with(mut self, detail: Detail) -> Self {
        self.detail = detail;
        self
    }

    /// Says where else to look for what is not here.
    pub(super) fn or_at(mut self, namer: Option<String>) -> Self {
        if let (ErrorCode::NotFound, Some(namer)) = (self.code, namer) {
            self.message = format!("{}; such names are given by node {namer}, ask that one", self.message);
        }
        self
    }

    pub(super) fn no_context(id: ContextId) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no context {id}; `stellate context ls` lists them"))
    }

    pub(super) fn no_session(id: SessionId) -> Self {
        let message = format!("there is no session {id}; `stellate session ls` lists them");
        // To a turn, a session that is gone is a closed one.
        Self::new(ErrorCode::NotFound, message)
    }

    pub(super) fn no_such_turn(id: SessionId, turn: u64, turns: usize) -> Self {
        let message =
            format!("session {id} has {turns} turns, and turn {turn} is not the next one; ask anew");
        Self::new(ErrorCode::Refused, message).with(Detail::OtherTurn)
    }

    pub(super) fn other_question(error: impl ToString) -> Self {
        Self::new(ErrorCode::Refused, error).with(Detail::OtherTurn)
    }

    pub(super) fn elsewhere(id: SessionId, node: &str, address: String) -> Self {
        let message = format!("session {id} is on node `{node}` ({address}); ask that one");
        Self::new(ErrorCode::Elsewhere, message).with(Detail::Elsewhere { address })
    }

    pub(super) fn leaving() -> Self {
        let message =
            "the node is leaving and takes no new work; ask another node, or this one once it is back";
        Self::new(ErrorCode::Unavailable, message)
    }

    pub(super) fn not_an_administrator() -> Self {
        let message = "a node's certificate does not allow this; an administrator's certificate is needed: \
                       `stellate admin create`";
        Self::new(ErrorCode::NotAllowed, message)
    }

    pub(super) fn malformed(problem: impl ToString) -> Self {
        Self::new(ErrorCode::Usage, problem)
    }
}

impl From<Fault> for RemoteError {
    fn from(fault: Fault) -> Self {
        match fault.detail {
            Detail::Elsewhere { address } => Self::Elsewhere { address, message: fault.message },
            Detail::OtherTurn => Self::OtherTurn { message: fault.message },
            _ => Self::Refused { code: fault.code, message: fault.message },
        }
    }
}

impl From<&EncodeError> for Fault {
    fn from(error: &EncodeError) -> Self {
        let count = |count: usize| count as u64;
        let (code, detail) = match error {
            EncodeError::Layout(_) => (ErrorCode::Usage, Detail::None),
            EncodeError::Prompt(error) => of_prompt(error),
            EncodeError::Full(full) => {
                let ContextFull { needed_tokens, free_tokens, block_tokens, largest_free_tokens, hosts } =
                    *full;
                let detail = Detail::ContextFull {
                    needed: count(needed_tokens),
                    free: count(free_tokens),
                    block: count(block_tokens),
                    largest_free: count(largest_free_tokens),
                    hosts: count(hosts),
                };
                (ErrorCode::Full, detail)
            }
            EncodeError::Overloaded { queue } | EncodeError::Host(HostError::Overloaded { queue, .. }) => {
                (ErrorCode::Busy, Detail::Overloaded(count(*queue)))
            }
            EncodeError::Host(HostError::Full(_)) => (ErrorCode::Full, Detail::None),
            EncodeError::Supervisor(_) => (ErrorCode::Unavailable, Detail::None),
            EncodeError::Refused(Refusal::Settling { .. } | Refusal::Replaced) => {
                (ErrorCode::Unavailable, Detail::None)
            }
            EncodeError::Refused(_) => (ErrorCode::Refused, Detail::None),
            EncodeError::Cancelled => (ErrorCode::Cancelled, Detail::Cancelled),
            EncodeError::Stopped => (ErrorCode::Unavailable, Detail::Stopped),
            EncodeError::Remote(RemoteError::Refused { code, .. }) => (*code, Detail::None),
            _ => (ErrorCode::Failed, Detail::None),
        };
        Self::new(code, error).with(detail)
    }
}

impl From<&AskError> for Fault {
    fn from(error: &AskError) -> Self {
        let (code, detail) = match error {
            // When to ask again is what its cause says.
            AskError::Unhealed { cause, .. } => (Fault::from(&**cause).code, Detail::None),
            AskError::Prompt(error) => of_prompt(error),
            AskError::NoTokens => (ErrorCode::Usage, Detail::NoTokens),
            AskError::StopString(_) => (ErrorCode::Usage, Detail::None),
            AskError::Empty => (ErrorCode::Failed, Detail::Empty),
            AskError::Full(_) => (ErrorCode::Full, Detail::None),
            AskError::Busy => (ErrorCode::Busy, Detail::Busy),
            AskError::Closed => (ErrorCode::NotFound, Detail::Closed),
            AskError::Overloaded { queue } => (ErrorCode::Busy, Detail::Overloaded(*queue as u64)),
            AskError::Stopped => (ErrorCode::Unavailable, Detail::Stopped),
            AskError::Remote(RemoteError::Refused { code, .. }) => (*code, Detail::None),
            AskError::Journal(JournalError::Removed { .. }) => (ErrorCode::NotFound, Detail::None),
            AskError::Journal(JournalError::Moved { .. } | JournalError::Unsettled { .. }) => {
                (ErrorCode::Unavailable, Detail::None)
            }
            _ => (ErrorCode::Failed, Detail::None),
        };
        Self::new(code, error).with(detail)
    }
}

impl From<&SessionError> for Fault {
    fn from(error: &SessionError) -> Self {
        let (code, detail) = match error {
            SessionError::TooMany { max_sessions } => {
                (ErrorCode::Full, Detail::TooManySessions(*max_sessions as u64))
            }
            SessionError::Overloaded { queue } => (ErrorCode::Busy, Detail::Overloaded(*queue as u64)),
            SessionError::Stopped => (ErrorCode::Unavailable, Detail::Stopped),
            SessionError::Unknown { .. }
            | SessionError::Journal(JournalError::Removed { .. } | JournalError::NoContext { .. }) => {
                (ErrorCode::NotFound, Detail::None)
            }
            SessionError::Journal(JournalError::Moved { .. } | JournalError::Unsettled { .. }) => {
                (ErrorCode::Unavailable, Detail::None)
            }
            _ => (ErrorCode::Failed, Detail::None),
        };
        Self::new(code, error).with(detail)
    }
}

impl From<&ClusterError> for Fault {
    fn from(error: &ClusterError) -> Self {
        Self::new(error.code(), error)
    }
}

fn of_prompt(error: &PromptError) -> (ErrorCode, Detail) {
    match error {
        PromptError::NoTokenizer => (ErrorCode::Model, Detail::NoTokenizer),
        PromptError::BadTokenizer(_) | PromptError::BadTemplate(_) => (ErrorCode::Model, Detail::None),
        PromptError::NothingToContinue => (ErrorCode::Failed, Detail::NothingToContinue),
        _ => (ErrorCode::Failed, Detail::None),
    }
}

fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

impl From<Fault> for EncodeError {
    fn from(fault: Fault) -> Self {
        match fault.detail {
            Detail::ContextFull { needed, free, block, largest_free, hosts } => Self::Full(ContextFull {
                needed_tokens: size(needed),
                free_tokens: size(free),
                block_tokens: size(block),
                largest_free_tokens: size(largest_free),
                hosts: size(hosts),
            }),
            Detail::Overloaded(queue) => Self::Overloaded { queue: size(queue) },
            Detail::Cancelled => Self::Cancelled,
            Detail::Stopped => Self::Stopped,
            Detail::NoTokenizer => Self::Prompt(PromptError::NoTokenizer),
            _ => Self::Remote(fault.into()),
        }
    }
}

impl From<Fault> for AskError {
    fn from(fault: Fault) -> Self {
        match fault.detail {
            Detail::Overloaded(queue) => Self::Overloaded { queue: size(queue) },
            Detail::Stopped => Self::Stopped,
            Detail::Busy => Self::Busy,
            Detail::Closed => Self::Closed,
            Detail::Empty => Self::Empty,
            Detail::NoTokens => Self::NoTokens,
            Detail::NoTokenizer => Self::Prompt(PromptError::NoTokenizer),
            Detail::NothingToContinue => Self::Prompt(PromptError::NothingToContinue),
            _ => Self::Remote(fault.into()),
        }
    }
}

impl From<Fault> for SessionError {
    fn from(fault: Fault) -> Self {
        match fault.detail {
            Detail::TooManySessions(max_sessions) => Self::TooMany { max_sessions: size(max_sessions) },
            Detail::Overloaded(queue) => Self::Overloaded { queue: size(queue) },
            Detail::Stopped => Self::Stopped,
            _ => Self::Remote(fault.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_the_codec(fault: &Fault) -> Fault {
        let bytes = stellate_runtime::encoding::encode(fault).unwrap();
        stellate_runtime::encoding::decode(&bytes).unwrap()
    }

    #[test]
    fn errors_that_programs_act_upon_come_back_as_themselves() {
        let full = ContextFull {
            needed_tokens: 1,
            free_tokens: 2,
            block_tokens: 3,
            largest_free_tokens: 4,
            hosts: 5,
        };
        let back = through_the_codec(&Fault::from(&EncodeError::Full(full))).into();
        assert!(matches!(back, EncodeError::Full(same) if same == full), "{back:?}");
        for error in
            [AskError::Busy, AskError::Closed, AskError::NoTokens, AskError::Empty, AskError::Stopped]
        {
            let back = AskError::from(through_the_codec(&Fault::from(&error)));
            assert_eq!(std::mem::discriminant(&back), std::mem::discriminant(&error));
        }
        let error = AskError::Prompt(PromptError::NoTokenizer);
        let back = AskError::from(through_the_codec(&Fault::from(&error)));
        assert!(matches!(back, AskError::Prompt(PromptError::NoTokenizer)), "{back:?}");
        let error = SessionError::TooMany { max_sessions: 3 };
        let back = SessionError::from(through_the_codec(&Fault::from(&error)));
        assert!(matches!(back, SessionError::TooMany { max_sessions: 3 }), "{back:?}");
    }

    #[test]
    fn other_errors_keep_their_code_and_their_words() {
        let layout = stellate_model::block::LayoutError::EmptyBlocks;
        let back = EncodeError::from(through_the_codec(&Fault::from(&EncodeError::Layout(layout))));
        assert_eq!(back.to_string(), layout.to_string());
        assert!(matches!(back, EncodeError::Remote(RemoteError::Refused { code: ErrorCode::Usage, .. })));
        let cause = std::sync::Arc::new(EncodeError::Stopped);
        let unhealed = AskError::Unhealed { fault: crate::fanout::FanoutError::Unplaced, cause };
        let back = AskError::from(through_the_codec(&Fault::from(&unhealed)));
        assert_eq!(back.to_string(), unhealed.to_string());
        assert!(matches!(&back, AskError::Remote(error) if error.is_passing()), "{back:?}");
    }

    #[test]
    fn a_message_without_end_is_cut_between_two_characters() {
        let fault = Fault::new(ErrorCode::Failed, "ä".repeat(MAX_MESSAGE_BYTES));
        assert_eq!(fault.message.len(), MAX_MESSAGE_BYTES);
        let fault = Fault::new(ErrorCode::Failed, format!("a{}", "ä".repeat(MAX_MESSAGE_BYTES)));
        assert_eq!(fault.message.len(), MAX_MESSAGE_BYTES - 1);
    }
}
