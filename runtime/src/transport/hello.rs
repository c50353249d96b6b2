//! The first frames of a connection, once TLS has told who is there: what it is for, and in which life of the process. The
//! version of the connection stands in the preamble of the hello: the newest that the dialer speaks, and then, if the acceptor
//! closes for that, the newest that both do. Whoever speaks none of it is told in the close reason what this side does.

use std::fmt;

use wincode::{SchemaRead, SchemaWrite};

use super::close::CloseCode;
use super::frame::{FrameError, FrameKind, FrameLimits};
use super::stream::{FrameReceiver, FrameSender, StreamError};
use crate::identity::Role;

/// What a connection is for. One that carries much must not stand before one that has to be quick, so each has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub enum ConnectionClass {
    /// Membership and the actors' control messages.
    Control,
    /// Decode steps: small frames, where each microsecond counts.
    Decode,
    /// Blocks that move: large frames.
    Bulk,
    /// Certificates and revocation lists; answered by the transport itself.
    Identity,
    /// Requests of administrators and of sessions from outside.
    Admin,
}

impl ConnectionClass {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Control, Self::Decode, Self::Bulk, Self::Identity, Self::Admin];

    /// Whether the holder of such a certificate may open it.
    pub fn allows(self, role: Role) -> bool {
        match self {
            Self::Control | Self::Decode | Self::Bulk | Self::Identity => role == Role::Node,
            Self::Admin => true,
        }
    }
}

impl fmt::Display for ConnectionClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Decode => "decode",
            Self::Bulk => "bulk",
            Self::Identity => "identity",
            Self::Admin => "admin",
        })
    }
}

/// The first frames are a few numbers each; nobody needs more room to say them.
pub(super) const HELLO_LIMITS: FrameLimits = FrameLimits { header_bytes: 256, payload_bytes: 0 };

/// From the dialer.
#[derive(Clone, Copy, Debug, SchemaRead, SchemaWrite)]
pub(super) struct Hello {
    pub(super) class: ConnectionClass,
    /// Grows with each start of the dialer's process.
    pub(super) incarnation: u64,
}

/// From the acceptor.
#[derive(Clone, Copy, Debug, SchemaRead, SchemaWrite)]
pub(super) struct Welcome {
    /// Grows with each start of the acceptor's process.
    pub(super) incarnation: u64,
}

/// Says hello and waits for the welcome.
pub(super) async fn greet(
    sender: &mut FrameSender,
    receiver: &mut FrameReceiver,
    hello: Hello,
) -> Result<Welcome, StreamError> {
    sender.send(FrameKind::HELLO, &hello, &[]).await?;
    sender.finish();
    Ok(receiver.expect().await?.expect(FrameKind::WELCOME)?)
}

/// Waits for the hello, and says of which version it is.
pub(super) async fn hear(receiver: &mut FrameReceiver) -> Result<(Hello, u16), StreamError> {
    let hello = receiver.expect().await?.expect(FrameKind::HELLO)?;
    Ok((hello, receiver.version().expect("a frame has come")))
}

/// Answers it.
pub(super) async fn welcome(sender: &mut FrameSender, incarnation: u64) -> Result<(), StreamError> {
    sender.send(FrameKind::WELCOME, &Welcome { incarnation }, &[]).await?;
    sender.finish();
    Ok(())
}

/// With which code a connection is closed on which the first frames went wrong.
pub(super) fn code_of(error: &StreamError) -> CloseCode {
    match error {
        StreamError::Frame(FrameError::Version { .. }) => CloseCode::VersionMismatch,
        _ => CloseCode::ProtocolViolation,
    }
}
