//! The control plane: sessions of actors between nodes (`ractor_cluster`) over streams of the *control* connections, so
//! that an actor of another node is called as one of this process, and found through process groups. Control messages and
//! the lives of actors only: a tensor never passes here, since one large message holds up every small one behind it.
//!
//! * [`ControlPlane`]: the one of this process; who is there and who is gone, and which node an actor is on.
//! * [`Wire`]: structured arguments of messages, which never panic on hostile bytes.
//!
//! # What `ractor_cluster` leaves to us
//! * Its pings never time out: a dead or frozen peer is found by QUIC's idle time, which ends the stream and so the session.
//! * It authenticates by a weak shared secret: here the certificate does, and a session whose name is not that of the
//!   certificate is closed. The secret is derived from the cluster's CA and hides nothing.
//! * It has no back-pressure: senders bound what they have under way themselves.
//! * It always opens a TCP port: on loopback, with TLS that has no certificate to show, so that nobody gets in.
//! * Two sessions with one peer race: the old one has to be gone before the next is opened.
//! * It keeps statics: one control plane in a process.
//! * It prints payloads at the level `debug`: see [`crate::telemetry`].

mod plane;
mod sessions;
mod stream;
mod wire;

pub use plane::{ControlError, ControlPlane, ControlSetup};
pub use sessions::ControlEvent;
pub use wire::{MAX_WIRE_BYTES, Wire, WireError, WireValue};
