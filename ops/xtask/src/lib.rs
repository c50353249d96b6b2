//! What is done to Stellate to publish how it behaves under faults: schedules from seeds, networks that lose packets, machines
//! with bad clocks and disks, clients that hold every answer against one process. Real processes are driven; what they do is
//! in the other crates. The commands are the program's (`main.rs`).

#![forbid(unsafe_code)]

pub mod caller;
pub mod door;
pub mod failover;
pub mod fuzz;
pub mod machine;
pub mod namespaces;
pub mod network;
pub mod oracle;
pub mod outcome;
pub mod overload;
pub mod play;
pub mod relay;
pub mod reliability;
pub mod schedule;
pub mod schedules;
pub mod simulate;
pub mod soak;
pub mod stage;
pub mod talk;
pub mod tally;
pub mod weather;
