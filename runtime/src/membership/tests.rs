//! Tests of membership: whole clusters on virtual time, and single machines with hand-made inputs.

#![allow(clippy::print_stdout, reason = "seeds and virtual times are told")]

mod cluster;
mod inputs;
mod pure;
mod scenarios;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::*;
use crate::identity::NodeId;

/// The id of the node with this number.
fn node(number: u16) -> NodeId {
    NodeId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

/// A healthy node's record.
fn record(number: u16, boot: u32) -> NodeRecord {
    NodeRecord {
        node: node(number),
        boot,
        version: 1,
        name: format!("node-{number}"),
        program: "1.0.0".to_owned(),
        addresses: vec![SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + u32::from(number)), 7400))],
        protocol: ProtocolRange { oldest: 1, newest: 1 },
        roles: Roles { context: true, ..Roles::default() },
        state: NodeState::Joining,
        model: Some(ModelFormat { fingerprint: "f".repeat(64), kv_format: "bf16".to_owned() }),
        devices: vec![Device { name: "cpu".to_owned(), count: 1, memory_bytes: 64 << 30 }],
        capacity_bytes: 48 << 30,
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}
