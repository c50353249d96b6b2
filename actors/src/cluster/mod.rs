//! The supervisor of a cluster of nodes: which block lies where, and what is done when hosts join, are drained or die.
//! Everything that decides is without IO and driven by a clock that is passed in; the actors over it are thin. How its
//! messages travel is in `stellate-runtime`; how one process places its own blocks is in [`crate::supervisor`].

pub mod actor;
pub mod agent;
pub mod bounds;
pub mod drain;
pub mod election;
mod encode_order;
mod from_disk;
pub mod intents;
mod inventory;
mod leases;
mod listening;
pub mod mandate;
pub mod messages;
pub mod migration;
pub mod order;
pub mod plan;
pub mod repair;
mod replicas;
pub mod settings;
#[cfg(test)]
mod sim;
pub mod snapshot;
mod stuck;
pub mod supervisor;
mod table;
pub mod term;
#[cfg(test)]
mod tests;
mod upkeep;
pub mod versions;

pub use table::HostState;
