//! When to ask again what was refused for want of room or time. A refusal that has such a hint says it in words as well; one that
//! has none will be refused again, until somebody does something about it.

use std::time::Duration;

use crate::api::{ErrorCode, RemoteError};
use crate::cluster::messages::Refusal;
use crate::context_host::HostError;
use crate::error::{AskError, EncodeError, SessionError};

/// A full queue holds steps of milliseconds, and some of seconds.
pub const QUEUE_S: u64 = 1;

/// A place for a session is free once somebody closes one: after an answer of usual length.
pub const SESSION_S: u64 = 3;

/// A supervisor that was not found or did not answer is looked for so long before that is told; it may be starting.
pub const SUPERVISOR_S: u64 = 5;

/// A node that cannot be reached may be starting.
const NODE_S: u64 = 2;

impl EncodeError {
    /// When to encode again, if that may help by itself.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { .. } | Self::Host(HostError::Overloaded { .. }) => seconds(QUEUE_S),
            Self::Refused(Refusal::Settling { retry_ms }) => Some(Duration::from_millis(*retry_ms)),
            Self::Refused(Refusal::Replaced) | Self::Supervisor(_) => seconds(SUPERVISOR_S),
            Self::Remote(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl AskError {
    /// When to ask again, if that may help by itself.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { .. } | Self::Busy => seconds(QUEUE_S),
            Self::Unhealed { cause, .. } => cause.retry_after(),
            Self::Remote(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl SessionError {
    /// When to open it again, if that may help by itself.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooMany { .. } => seconds(SESSION_S),
            Self::Overloaded { .. } => seconds(QUEUE_S),
            Self::Remote(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl RemoteError {
    /// When to ask again, if that may help by itself.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { code: ErrorCode::Busy, .. } => seconds(QUEUE_S),
            Self::Refused { code: ErrorCode::Unavailable, .. } => seconds(SUPERVISOR_S),
            Self::Unreachable(error) if error.is_transient() => seconds(NODE_S),
            // Whoever dials again finds out more.
            Self::Lost(_) => Some(Duration::ZERO),
            _ => None,
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what all of these give")]
fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::HostId;

    #[test]
    fn what_was_refused_for_want_of_time_says_when_to_ask_again_and_what_does_not_fit_does_not() {
        let hint = |error: &EncodeError| error.retry_after();
        assert_eq!(hint(&EncodeError::Overloaded { queue: 64 }), Some(Duration::from_secs(1)));
        let host = HostError::Overloaded { host: HostId(1), queue: 64 };
        assert_eq!(hint(&EncodeError::Host(host)), Some(Duration::from_secs(1)));
        let settling = EncodeError::Refused(Refusal::Settling { retry_ms: 700 });
        assert_eq!(hint(&settling), Some(Duration::from_millis(700)));
        assert_eq!(hint(&EncodeError::Refused(Refusal::NoHosts)), None);
        assert_eq!(hint(&EncodeError::Cancelled), None);
        assert_eq!(AskError::Overloaded { queue: 64 }.retry_after(), Some(Duration::from_secs(1)));
        assert_eq!(AskError::NoTokens.retry_after(), None);
        assert_eq!(SessionError::TooMany { max_sessions: 64 }.retry_after(), Some(Duration::from_secs(3)));
        let refused = |code| RemoteError::Refused { code, message: String::new() }.retry_after();
        assert_eq!(refused(ErrorCode::Busy), Some(Duration::from_secs(1)));
        assert_eq!(refused(ErrorCode::Full), None);
    }

    #[test]
    fn refusals_with_a_hint_say_it_in_words() {
        for message in [
            EncodeError::Overloaded { queue: 64 }.to_string(),
            AskError::Overloaded { queue: 64 }.to_string(),
            SessionError::Overloaded { queue: 64 }.to_string(),
            HostError::Overloaded { host: HostId(1), queue: 64 }.to_string(),
        ] {
            assert!(message.contains("again in 1 s"), "{message}");
        }
        let message = SessionError::TooMany { max_sessions: 64 }.to_string();
        assert!(message.contains("again in 3 s"), "{message}");
    }
}
