//! The session API over the network: a node's contexts and sessions, and the cluster's own operations, asked for over
//! connections of the admin class. Certificates and streams are the transport's; what a cluster does is behind
//! [`ClusterAdmin`].
//!
//! * [`Client`]: connects; [`Client::node`] gives the same [`Node`](crate::Node), `Context`, `Session` and `Turn` as a node of
//!   this process.
//! * [`Api`] and [`serve_api`]: answer the requests of one connection over a local node, and keep its contexts and sessions
//!   for whoever asks next ([`Shelf`]).
//!
//! # The protocol
//!
//! One bidirectional stream per request. The client sends one request frame and leaves its half open; the server answers with
//! event frames, of which the last one ends the answer, and finishes. To cancel, the client resets its half: an encoding
//! ends without an answer, a turn with what was said so far. A connection that is lost cancels as well. Bulk (texts, tokens,
//! logits, lists) is the payload of a frame; headers are small. What a peer may make the server hold is bounded by the frame
//! limits, by [`MAX_READING`] requests being read at once, and by the streams of a connection.

mod client;
mod cluster;
mod convert;
mod fault;
mod info;
pub mod peer;
mod remote;
mod roaming;
mod server;
mod sessions;
mod shelf;
mod wire;
mod work;

pub use client::Client;
pub use cluster::{
    Check, Claimed, ClusterAdmin, ClusterError, DrainRequest, Finding, IssuedToken, MoveEvent, MoveKind,
    NodeInfo, NodeState, Planned, RebalancePlan, SupervisorInfo, TokenInfo, VoterInfo,
};
pub use fault::{ErrorCode, RemoteError};
pub use info::{About, BadId, ContextInfo, SessionInfo, SessionPlaceInfo, Status, TurnInfo};
pub use remote::{Moves, RemoteContext, RemoteSession};
pub use server::{Api, MAX_READING, serve_api};
pub use shelf::{MAX_CONTEXTS, Shelf};
#[doc(hidden)]
pub use wire::{event_again, request_again};
