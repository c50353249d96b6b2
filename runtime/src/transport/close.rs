//! Why connections end: the codes that nodes tell each other ([`CloseCode`]), what TLS says of a refused certificate
//! ([`CertificateFault`]), and both as one typed reason ([`Closed`]).

use std::fmt;

use quinn::{ConnectionError, VarInt};

use crate::protocol::ProtocolRange;

/// What a node says when it closes a connection. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// Nothing is wrong: the node stops, or needs the connection no more.
    Done,
    /// The other side speaks none of the closer's versions; the reason holds these, oldest and newest, two bytes each, or the one
    /// that it speaks; little-endian.
    VersionMismatch,
    /// The other side was removed from the cluster.
    Revoked,
    /// A newer connection of the same kind took its place.
    Superseded,
    /// The role in the certificate does not allow this class of connection.
    NotAllowed,
    /// The other side broke the protocol.
    ProtocolViolation,
    /// The node has as many connections as it takes.
    Busy,
    /// The other side has restarted since; a connection of its earlier life is not taken.
    Stale,
    /// The hello did not come in time.
    TooSlow,
    /// The node does not offer what the class is for.
    NotOffered,
    /// The closer expected another node at this address.
    UnexpectedPeer,
    /// A code that this version does not know.
    Unknown(u64),
}

impl CloseCode {
    /// Each known code with its number.
    const NUMBERS: [(Self, u32); 11] = [
        (Self::Done, 0),
        (Self::VersionMismatch, 1),
        (Self::Revoked, 2),
        (Self::Superseded, 3),
        (Self::NotAllowed, 4),
        (Self::ProtocolViolation, 5),
        (Self::Busy, 6),
        (Self::Stale, 7),
        (Self::TooSlow, 8),
        (Self::NotOffered, 9),
        (Self::UnexpectedPeer, 10),
    ];

    fn of(number: VarInt) -> Self {
        let number = number.into_inner();
        let known = Self::NUMBERS.iter().find(|(_, known)| u64::from(*known) == number);
        known.map_or(Self::Unknown(number), |(code, _)| *code)
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        match CloseCode::NUMBERS.iter().find(|(known, _)| *known == code) {
            Some((_, number)) => VarInt::from_u32(*number),
            // Only ever made from a number that came in one.
            None => match code {
                CloseCode::Unknown(number) => VarInt::from_u64(number).unwrap_or(VarInt::MAX),
                _ => unreachable!("every other code has a number"),
            },
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "it is done",
            Self::VersionMismatch => "it speaks another version of the protocol",
            Self::Revoked => "the node was removed from the cluster",
            Self::Superseded => "a newer connection took its place",
            Self::NotAllowed => "the certificate's role does not allow this connection",
            Self::ProtocolViolation => "the protocol was broken",
            Self::Busy => "it has as many connections as it takes; try again later",
            Self::Stale => "the node has restarted since",
            Self::TooSlow => "the hello did not come in time",
            Self::NotOffered => "it does not offer this; ask another node",
            Self::UnexpectedPeer => "another node was expected at this address",
            Self::Unknown(code) => return write!(f, "of a reason that this version does not know ({code})"),
        })
    }
}

/// What was wrong with a certificate, by the alert of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CertificateFault {
    /// None was shown.
    Missing,
    /// Another cluster's CA has issued it, or nobody's.
    OtherCluster,
    /// Its time is over, or has not come.
    Expired,
    /// Its holder was removed from the cluster.
    Revoked,
    /// It does not allow what it was used for.
    WrongRole,
    /// Anything else that a certificate can be.
    Bad,
}

impl CertificateFault {
    /// Of a TLS alert (RFC 8446, section 6.2), if it is about certificates.
    fn of_alert(alert: u8) -> Option<Self> {
        Some(match alert {
            116 => Self::Missing,
            48 => Self::OtherCluster,
            45 => Self::Expired,
            44 => Self::Revoked,
            // Unsupported certificate (a usage that it lacks), access denied (a role that it lacks).
            43 | 49 => Self::WrongRole,
            // Bad certificate, unknown, illegal parameter, decryption: damaged or made up.
            42 | 46 | 47 | 50 | 51 => Self::Bad,
            _ => return None,
        })
    }
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "none was shown",
            Self::OtherCluster => "it is not of this cluster",
            Self::Expired => "it has expired; compare the clocks; then join again with a token (a node), or `stellate admin create` (a person)",
            Self::Revoked => "its holder was removed from the cluster",
            Self::WrongRole => "its role does not allow this",
            Self::Bad => "it is damaged or of another kind",
        })
    }
}

/// Why a connection is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// This side closed it.
    #[error("the connection was closed on this side")]
    Here,

    /// The peer closed it and said why.
    #[error("the peer closed the connection: {code}")]
    ByPeer {
        /// Why.
        code: CloseCode,
    },

    /// The peer speaks another version.
    #[error(
        "the peer speaks wire version {theirs}, and this node none of that; upgrade the older one, one version at a time"
    )]
    OtherVersion {
        /// What it speaks.
        theirs: ProtocolRange,
    },

    /// The peer did not accept this side's certificate.
    #[error("the peer refused this node's certificate: {0}")]
    RefusedByPeer(CertificateFault),

    /// This side did not accept the peer's certificate.
    #[error("the peer's certificate was refused: {0}")]
    PeerRefused(CertificateFault),

    /// Nothing was heard for the idle time: the peer is frozen, dead or cut off.
    #[error("the peer fell silent")]
    TimedOut,

    /// The peer has restarted and knows nothing of the connection.
    #[error("the peer restarted")]
    Reset,

    /// The peer took no connection.
    #[error("the peer takes no more connections at the moment")]
    Refused,

    /// Something else, which QUIC describes.
    #[error("the connection failed: {0}")]
    Other(String),
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Self {
        let text = error.to_string();
        match error {
            ConnectionError::LocallyClosed => Self::Here,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Reset,
            ConnectionError::ApplicationClosed(close) => {
                let code = CloseCode::of(close.error_code);
                match versions_of(&close.reason).filter(|_| code == CloseCode::VersionMismatch) {
                    Some(theirs) => Self::OtherVersion { theirs },
                    None => Self::ByPeer { code },
                }
            }
            ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
                REFUSED => Self::Refused,
                code => fault(code).map_or(Self::Other(text), Self::RefusedByPeer),
            },
            ConnectionError::TransportError(error) => {
                fault(error.code.into()).map_or(Self::Other(text), Self::PeerRefused)
            }
            _ => Self::Other(text),
        }
    }
}

/// QUIC's own code of a server that takes no connection (RFC 9000, section 20.1).
const REFUSED: u64 = 0x2;

/// The alert in a QUIC error code (RFC 9000, section 20.1: `CRYPTO_ERROR`), if it is about certificates.
fn fault(code: u64) -> Option<CertificateFault> {
    let alert = code.checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok())?;
    CertificateFault::of_alert(alert)
}

/// The reason that goes with [`CloseCode::VersionMismatch`]: version 1 knew one number only.
pub(super) fn version_reason(ours: ProtocolRange) -> Vec<u8> {
    let ProtocolRange { oldest, newest } = ours;
    let numbers = if oldest == newest { vec![oldest] } else { vec![oldest, newest] };
    numbers.into_iter().flat_map(u16::to_le_bytes).collect()
}

/// What such a reason says, if it is one.
fn versions_of(reason: &[u8]) -> Option<ProtocolRange> {
    match *reason {
        [a, b] => Some(ProtocolRange::only(u16::from_le_bytes([a, b]))),
        [a, b, c, d] => {
            let (oldest, newest) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            (oldest <= newest).then_some(ProtocolRange { oldest, newest })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_says_one_version_or_a_range_and_nothing_else_is_one() {
        for versions in [ProtocolRange::only(1), ProtocolRange { oldest: 2, newest: 3 }] {
            assert_eq!(versions_of(&version_reason(versions)), Some(versions));
        }
        assert_eq!(version_reason(ProtocolRange::only(1)), [1, 0], "as version 1 says it");
        for bytes in [&[][..], &[1], &[1, 0, 2], &[3, 0, 2, 0], &[1, 0, 2, 0, 3, 0]] {
            assert_eq!(versions_of(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn codes_keep_their_numbers_and_come_back_from_them() {
        for (index, (code, number)) in CloseCode::NUMBERS.iter().enumerate() {
            assert_eq!(*number as usize, index);
            assert_eq!(CloseCode::of(VarInt::from(*code)), *code);
        }
        assert_eq!(CloseCode::of(VarInt::from_u32(99)), CloseCode::Unknown(99));
        assert_eq!(VarInt::from(CloseCode::Unknown(99)), VarInt::from_u32(99));
    }
}
