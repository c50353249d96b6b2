//! Where to look, how often, with defaults.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Where other nodes are looked for. By default nowhere: a node alone needs nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryOptions {
    /// Addresses of nodes: `10.0.0.1:7400`, `[fe80::1]:7400`, `node-1.example:7400`, or any of them without a port.
    pub seeds: Vec<String>,

    /// Names in DNS. One that begins with an underscore, such as `_stellate._udp.example`, is asked for services (SRV), which
    /// have ports of their own; any other, with or without `:port`, for addresses (A and AAAA), as the headless services of
    /// Kubernetes have them.
    pub dns: Vec<String>,

    /// Multicast DNS on the local network; none: not used.
    pub mdns: Option<MdnsOptions>,

    /// The port of those that name none.
    pub default_port: u16,

    /// Each source is asked once in each of these.
    pub interval: Duration,

    /// No source is asked again sooner than this, however often it is wanted.
    pub shortest_interval: Duration,

    /// How long one question to DNS may take; also how long a look on the local network waits for answers.
    pub timeout: Duration,

    /// DNS servers; none: those of the system.
    pub name_servers: Vec<SocketAddr>,

    /// The most addresses that a source may find in one look; more are left out with a warning.
    pub max_candidates: usize,

    /// The most findings that wait to be taken; sources wait when there are as many.
    pub queue: usize,
}

impl Default for DiscoveryOptions {
    fn default() -> Self {
        Self {
            seeds: Vec::new(),
            dns: Vec::new(),
            mdns: None,
            default_port: 7400,
            interval: Duration::from_secs(30),
            shortest_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(3),
            name_servers: Vec::new(),
            max_candidates: 256,
            queue: 256,
        }
    }
}

/// How multicast DNS is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdnsOptions {
    /// The type of the service.
    pub service: String,

    /// Only services that name this cluster are taken, so that two clusters on one network stay apart.
    pub cluster: String,

    /// What this node says of itself; none: it only listens.
    pub announcement: Option<Announcement>,

    /// Addresses of the interfaces to use; none: all.
    pub interfaces: Vec<IpAddr>,
}

impl MdnsOptions {
    /// Listening for `cluster` on all interfaces.
    pub fn for_cluster(cluster: &str) -> Self {
        Self {
            service: "_stellate._udp.local.".to_owned(),
            cluster: cluster.to_owned(),
            announcement: None,
            interfaces: Vec::new(),
        }
    }
}

/// A node as it shows on the local network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Its name; of its own on the network.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// Its addresses; none: all that its interfaces have, also later ones.
    pub addresses: Vec<IpAddr>,
}
