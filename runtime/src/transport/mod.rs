//! Transport: frames between members of a cluster, over QUIC with mutual TLS 1.3 and nothing else. Who is a member is
//! decided in `identity`; what frames mean, by those who send them.
//!
//! * [`NetworkThread`]: where all of it runs.
//! * [`Endpoint`]: a node's place on the network; it dials and accepts [`Connection`]s, one per peer and
//!   [`ConnectionClass`].
//! * [`FrameSender`], [`FrameReceiver`]: streams of [`Frame`]s, made and read by a codec without IO ([`FrameDecoder`]).
//! * [`join()`] and [`JoinServer`]: how a node without a certificate gets one, on a socket of its own.
//!
//! # What is bounded
//!
//! Handshakes under way, their time, connections, streams and bytes in flight of each, frames, datagrams, attempts to join
//! per address and in all, connections that wait to be picked up ([`TransportOptions`]). A claim of a length buys no
//! memory. When half of the handshakes are taken, addresses have to prove themselves before anything is spent on them. What
//! remains to an attacker is to fill the link, or to send so many first packets that genuine ones are refused meanwhile.
//!
//! # Latency
//!
//! Measured on loopback, in this order of effect: segmentation offload; a path MTU of 6500; few and early acknowledgements; one
//! current-thread runtime for the network; decode and bulk on connections of their own; long-lived streams.

mod accept;
mod backoff;
mod close;
mod connection;
mod dial;
mod endpoint;
mod frame;
mod gate;
mod hello;
mod join;
mod join_server;
mod limiter;
mod options;
mod payload;
mod registry;
mod renewal;
mod sockets;
mod stream;
mod thinned;
mod thread;

pub use backoff::Backoff;
pub use close::{CertificateFault, CloseCode, Closed};
pub use connection::{Connection, DatagramError, PathStats, Peer};
pub use dial::{DialError, Expected, Target};
pub use endpoint::{Accepted, Endpoint, EndpointError, EndpointSetup};
pub use frame::{
    Frame, FrameDecoder, FrameError, FrameKind, FrameLimits, Header, MAGIC, OpenFrame, PREAMBLE_BYTES,
    encode_head,
};
pub use hello::ConnectionClass;
pub use join::{JoinError, Joined, join};
pub use join_server::JoinServer;
pub use options::{MAX_MTU_BYTES, OptionsError, TransportOptions};
pub use payload::{Payload, PayloadShapeError};
pub use registry::IncompatiblePeer;
pub use renewal::RenewError;
pub(crate) use renewal::{decode_revocations, encode_revocations};
pub use sockets::Sockets;
pub use stream::{FrameReceiver, FrameSender, StreamError};
pub use thinned::Thinned;
pub use thread::{NetworkHandle, NetworkThread};

pub use crate::protocol::{ProtocolRange, WIRE_VERSION};
