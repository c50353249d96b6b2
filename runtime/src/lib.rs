//! The substrate of Stellate: settings, clock, logs, identity and transport. Here lives what any service of this kind would need; nothing
//! here knows what a language model is, and nothing here may depend on `stellate-model` or `stellate-kernels`
//! (`.ci/layering` checks it).

#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod identity;
pub mod telemetry;
pub mod transport;
