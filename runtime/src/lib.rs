//! The substrate of Stellate: settings, clock, logs, identity, transport, durable store, membership, discovery and
//! the control plane, and [`substrate`] that runs them together. Here
//! lives what any service of this kind would need; nothing here knows what a language model is, and nothing here may depend
//! on `stellate-model` or `stellate-kernels` (`.ci/layering` checks it).

#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod control;
pub mod discovery;
pub mod encoding;
pub mod identity;
pub mod membership;
pub mod protocol;
pub mod store;
pub mod substrate;
pub mod telemetry;
pub mod transport;
