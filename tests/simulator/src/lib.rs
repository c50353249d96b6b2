//! Whole clusters of Stellate's state machines on virtual time, from one seed.
//!
//! What decides is the code that runs in a cluster: membership, the election of a supervisor, the supervisor with placement,
//! migration and repair, the agents' fence, where a context's blocks lie, the exact cover of every merge, and the copies of
//! sessions with their owners and take-overs. What carries decisions out (disks, networks, devices, clocks) is simulated, with
//! faults of every kind. Keys and values are symbols, so that an answer with a block
//! missing, doubled or damaged is another answer.
//!
//! The same [`Scenario`] gives the same run, told by [`Outcome::hash`]. After every event it is checked what must always hold
//! ([`Violation`]); after the last fault, that everything heals within a bound and nothing is left over. A scenario that fails is
//! made shorter by [`shrink()`] and printed as JSON. [`Mutation`]s are bugs that are put in to see that they are found.

#![forbid(unsafe_code)]

mod agent;
mod chance;
mod checks;
mod context;
mod copies;
mod disk;
mod member;
mod message;
mod mutation;
mod network;
mod node;
mod owning;
mod query;
mod run;
mod scenario;
mod sessions;
mod shrink;
mod steps;
mod supervise;
mod taking;
mod trace;
mod voting;
mod world;

pub use chance::Chance;
pub use checks::{Counts, Violation};
pub use mutation::Mutation;
pub use run::{Outcome, run, run_with_lines};
pub use scenario::{Scenario, Shape, Step, Weather};
pub use shrink::shrink;
pub use trace::TraceHash;
