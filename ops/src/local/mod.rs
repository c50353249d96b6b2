//! Clusters of real `stellate serve` processes on this machine, in a folder of their own with a CA of their own: what
//! `stellate dev`, `stellate demo --nodes` and the scenario tests run on. One process is in `process.rs`, its end when
//! whoever started it is gone in `lifeline.rs`, where it listens in `ports.rs`, waiting for what it does in `wait.rs`; nothing here
//! asks questions.

mod cluster;
mod error;
mod lifeline;
mod ports;
mod process;
mod wait;

pub use cluster::{LocalCluster, LocalNode, LocalOptions, NodeSetup};
pub use error::LocalError;
pub use lifeline::end_with_stdin;
pub use ports::own_address;
pub use process::Ready;
