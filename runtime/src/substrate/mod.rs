//! A node of a cluster, without what it computes: one object that opens its place on the network, lets others in, finds them,
//! keeps a connection to each, and tells who is there. [`Substrate::start`] is all that a daemon calls; what the node is for
//! lives above and uses [`Substrate::connect`], [`Incoming`] and [`Substrate::control`].
//!
//! # What runs
//! All of it on one network thread of its own; disks are waited for, never blocked on.
//! 1. `start` reads what the node must not forget ([`memory`]), counts this start, and binds the endpoint; where the CA's key
//!    is, it also opens the join address over the durable store ([`DurableIssuing`]).
//! 2. The [`driver`] hands [`crate::membership`] what arrives and what time it is, does what it wants done, and publishes the
//!    [`Roster`].
//! 3. [`links`] keeps one control connection to each live member, carries datagrams, rosters and revocation lists over it,
//!    and has the control plane open its session there.
//! 4. [`upkeep`] renews the certificate, and writes lists of the revoked to the disk.

mod driver;
mod handle;
mod issuing;
mod links;
mod memory;
mod node;
mod roster;
mod setup;
mod upkeep;

#[cfg(test)]
mod tests;

pub use handle::SubstrateHandle;
pub use issuing::DurableIssuing;
pub use memory::MemoryError;
pub use node::{ConnectError, ManageError, Substrate, UpdateError};
pub use roster::{Roster, RosterMember};
pub use setup::{Incoming, NodeProfile, StartError, SubstrateSetup};
