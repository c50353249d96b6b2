//! How an operation may end under faults: as it should, with a typed error, or in a way that is a fault of the product.

use stellate_actors::AskError;
use stellate_actors::api::{ErrorCode, RemoteError};
use stellate_actors::error::{EncodeError, SessionError};

/// What is wrong with the product: none of this may happen, whatever fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Another answer than one process gives.
    #[error("a wrong answer to {asked}: {found:?}, one process answers {expected:?}")]
    Answer {
        /// What was asked.
        asked: String,
        /// What came.
        found: Vec<u32>,
        /// What should have come.
        expected: Vec<u32>,
    },
    /// Something that was acknowledged is not there.
    #[error("lost: {0}")]
    Lost(String),
    /// An error that says nothing that a program can act upon.
    #[error("an untyped failure: {0}")]
    Untyped(String),
    /// Nothing came in time.
    #[error("hung: {0}")]
    Hung(String),
    /// All faults have ended, and it does not work again.
    #[error("not healed: {0}")]
    NotHealed(String),
    /// A process ended by itself, or said that it met a fault of the program.
    #[error("a node failed: {0}")]
    Node(String),
}

/// How an operation ended.
#[derive(Debug)]
pub enum Ended<T> {
    /// As it should.
    Well(T),
    /// With an error that says what it is: the word for it.
    Typed(String),
    /// It could not begin: what it builds on had failed before.
    Skipped,
}

/// The word for an error of asking, or what is wrong with it.
pub fn of_ask(error: &AskError) -> Result<String, Wrong> {
    match error {
        AskError::Remote(error) => of_remote(error),
        AskError::Busy => Ok("the session still answers".to_owned()),
        AskError::Closed => Ok("closed".to_owned()),
        AskError::Overloaded { .. } => Ok("overloaded".to_owned()),
        AskError::Stopped => Ok("the node is closing".to_owned()),
        AskError::Full(_) => Ok("full".to_owned()),
        AskError::Fanout(_) | AskError::Unhealed { .. } => Ok("blocks missing".to_owned()),
        AskError::Journal(_) => Ok("not written down".to_owned()),
        error => Err(Wrong::Untyped(format!("{error:?}"))),
    }
}

/// The word for an error of encoding, or what is wrong with it.
pub fn of_encode(error: &EncodeError) -> Result<String, Wrong> {
    match error {
        EncodeError::Remote(error) => of_remote(error),
        EncodeError::Full(_) => Ok("full".to_owned()),
        EncodeError::Overloaded { .. } => Ok("overloaded".to_owned()),
        EncodeError::Supervisor(_) | EncodeError::Refused(_) => Ok("not placed".to_owned()),
        EncodeError::Cancelled => Ok("cancelled".to_owned()),
        EncodeError::Stopped => Ok("the node is closing".to_owned()),
        EncodeError::Host(_) | EncodeError::Fanout(_) => Ok("blocks missing".to_owned()),
        EncodeError::Journal(_) => Ok("not written down".to_owned()),
        error => Err(Wrong::Untyped(format!("{error:?}"))),
    }
}

/// The word for an error of opening a session, or what is wrong with it.
pub fn of_session(error: &SessionError) -> Result<String, Wrong> {
    match error {
        SessionError::Remote(error) => of_remote(error),
        SessionError::TooMany { .. } => Ok("too many sessions".to_owned()),
        SessionError::Overloaded { .. } => Ok("overloaded".to_owned()),
        SessionError::Stopped => Ok("the node is closing".to_owned()),
        SessionError::Journal(_) => Ok("not written down".to_owned()),
        error => Err(Wrong::Untyped(format!("{error:?}"))),
    }
}

/// The word for an error of another node, or what is wrong with it.
pub fn of_remote(error: &RemoteError) -> Result<String, Wrong> {
    match error {
        RemoteError::Unreachable(_) => Ok("unreachable".to_owned()),
        RemoteError::Lost(_) => Ok("connection lost".to_owned()),
        RemoteError::Elsewhere { .. } => Ok("refused: elsewhere".to_owned()),
        RemoteError::OtherTurn { .. } => Ok("refused: the session has gone on".to_owned()),
        RemoteError::Refused { code, .. } => Ok(match code {
            ErrorCode::Usage | ErrorCode::Model | ErrorCode::NotAllowed => {
                return Err(Wrong::Untyped(format!("{error:?}")));
            }
            ErrorCode::NotFound => "refused: not found",
            ErrorCode::Full => "refused: full",
            ErrorCode::Busy => "refused: busy",
            ErrorCode::Cancelled => "refused: cancelled",
            ErrorCode::Unavailable => "refused: unavailable",
            ErrorCode::Refused => "refused: would do harm",
            ErrorCode::Failed => "refused: failed",
            ErrorCode::Elsewhere => "refused: elsewhere",
        }
        .to_owned()),
        error => Err(Wrong::Untyped(format!("{error:?}"))),
    }
}
