//! What the `stellate` program and its tests share: clusters of processes on this machine, and the demo's documents. The
//! commands are the program's alone (`main.rs`).

#![forbid(unsafe_code)]

pub mod document;
pub mod local;
