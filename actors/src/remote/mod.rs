//! What goes between nodes besides control messages: attention ([`link`], [`serve`]), blocks ([`blocks`]), and a context
//! host of another node as the paths see it ([`host`]). Bytes on the wire are in [`frames`], orders in [`crate::cluster::messages`];
//! connections, certificates and frames themselves are `stellate_runtime`'s.
//!
//! # One stream per query host and context host
//!
//! All sessions of a query host share one long-lived stream to each context host ([`link::DecodeChannel`]). The query host
//! steps its sessions one after the other on one thread, so that a second stream would never carry anything at the same
//! time; and one stream means lists of blocks told once for all sessions, and a bound on streams that does not grow with
//! sessions. A stream is in order, as is a host's queue: requests are answered in the order they were posted. Replies carry
//! the number of their request all the same, so that one that comes late is never taken for another's.
//!
//! # Threads
//!
//! A device thread posts into a bounded queue and waits on a channel; a task on the network thread frames, sends, receives and
//! checks; tensors are copied in and out of messages by the device threads. Nothing on the network thread waits for a host.

pub mod blocks;
mod courier;
pub mod dial;
pub mod frames;
pub mod host;
mod landing;
pub mod link;
pub mod pace;
mod routes;
pub mod serve;

pub use blocks::{BlockServer, FetchError, Landing, PutError, fetch_block, put_block};
pub use dial::{DialFailure, Dialer, NodeDialer};
pub use frames::AttendShape;
pub use host::{ControlCalls, RemoteHost, RoomPromise};
pub use link::{DecodeChannel, DecodeOptions, LinkStats, QuicLink};
pub use pace::Pacer;
pub use serve::{LocalHosts, serve_decode};
