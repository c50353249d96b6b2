//! Tests of discovery: a DNS server of our own on loopback, sources that are made up, and multicast DNS where it works.

#![allow(clippy::print_stdout, reason = "a skipped test is said aloud")]

mod driver;
mod names;
#[cfg(feature = "mdns")]
mod network;
mod server;

use std::net::SocketAddr;
use std::time::Duration;

use super::*;

/// How long a test waits for what must come.
const LIMIT: Duration = Duration::from_secs(30);

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn addresses(look: &Look) -> Vec<SocketAddr> {
    look.candidates.iter().map(|candidate| candidate.address).collect()
}
