//! Who is in the cluster: SWIM (the `foca` crate) for who is alive, records that nodes publish about themselves, and an
//! exchange of whole rosters that leaves no straggler. [`Membership`] is a state machine without sockets, clocks or threads:
//! the caller hands it what arrived and what time it is, and takes from it what to send and what happened. The same inputs,
//! times and seed give the same outputs.
//!
//! What it tells is eventually the same everywhere and good enough to know whom to ask. Nothing that must be right may rest
//! on it: who leads and where blocks lie is decided by terms and versions elsewhere, and a data path that fails is left at
//! once, not when membership says so. Dialling addresses, checking certificates and keeping connections is the transport's.
//!
//! # How nodes meet
//! 1. The caller asks [discovery](crate::discovery) for addresses upon [`Output::Bootstrap`], connects, and learns from the
//!    peer's certificate which node it is. [`Membership::contact`] then sends that node our roster.
//! 2. The node checks that we may join (not removed, a name of our own, a wire version it knows), takes our roster and
//!    answers with its own. Both tell others what was new, and SWIM goes on from there.
//! 3. Every 30 s each node compares a digest of its roster with one other's and exchanges rosters where they differ.
//!
//! # What a datagram may be
//! One byte of wire version and one of kind, the same in all versions, then a body of the kind; `wire` has them. A datagram
//! comes from the node that the transport has authenticated, and one that says otherwise is refused.

mod duties;
mod identity;
mod io;
mod judge;
mod machine;
mod merge;
mod news;
mod options;
mod overdue;
mod peers;
mod record;
mod swim;
mod timers;
mod wire;

#[cfg(test)]
mod tests;

pub use crate::protocol::ProtocolRange;
pub use identity::{Generation, MemberIdentity};
pub use io::{Event, InputError, Output, Start};
pub use judge::{Clash, Mismatch, Requirements, Standing, clashes, judge};
pub use machine::Membership;
pub use options::MembershipOptions;
pub use peers::{Liveness, Member};
pub use record::{Device, ModelFormat, NodeRecord, NodeState, RecordError, Roles};
pub use wire::{MAX_CLAIMED, MAX_ROSTER_BYTES, RefusalReason, WIRE_VERSION};
