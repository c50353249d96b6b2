//! What the network of a cluster is called, and which addresses it has. Names carry the number of the process that made them, so
//! that what a killed one has left can be told from what is in use.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process;
use std::sync::{Mutex, PoisonError};

use super::tools::{NamespaceError, run};

/// Networks of one process at once, and nodes of each, so that a name of an interface has no more than its 15 characters.
const MAX_SLOTS: u8 = 100;
const MAX_NODES: usize = 99;

/// Subnets that are looked at until one is free.
const MAX_TRIED: u32 = 64;

/// Where nodes listen and where others join: each has all ports of its namespace for itself.
const PORT: u16 = 7400;
const JOIN_PORT: u16 = 7401;

/// Of namespaces, and of tables in the host's namespace.
const PREFIX: &str = "stellate-faults-";

/// Which networks of this process there are.
static TAKEN: Mutex<BTreeSet<u8>> = Mutex::new(BTreeSet::new());

/// A number that no other network of this process has. Dropped, it is free again.
#[derive(Debug)]
pub(super) struct Slot(u8);

impl Slot {
    /// # Errors
    /// [`NamespaceError::TooMany`].
    pub(super) fn take() -> Result<Self, NamespaceError> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (0..MAX_SLOTS).find(|slot| !taken.contains(slot));
        let free = free.ok_or(NamespaceError::TooMany { most: MAX_SLOTS })?;
        taken.insert(free);
        Ok(Self(free))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// The names of a network. Nodes are indexes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    process: u32,
    slot: u8,
}

impl Names {
    pub(super) fn new(slot: &Slot) -> Self {
        Self { process: process::id(), slot: slot.0 }
    }

    pub(super) fn bridge(self) -> String {
        format!("st{}.{}", self.process, self.slot)
    }

    /// The host's end of the cable to a node.
    pub(super) fn link(self, node: usize) -> String {
        assert!(node < MAX_NODES, "a schedule has few nodes");
        format!("st{}.{}.{}", self.process, self.slot, node + 1)
    }

    pub(super) fn namespace(self, node: usize) -> String {
        format!("{PREFIX}{}-{}-{}", self.process, self.slot, node + 1)
    }

    /// The table of rules in the host's namespace.
    pub(super) fn host_table(self) -> String {
        format!("{PREFIX}{}-{}", self.process, self.slot)
    }
}

/// The process that made what has this name; none if it is not of these.
pub(super) fn owner(name: &str) -> Option<u32> {
    let numbers = |text: &str, separator: char| {
        let numbers: Option<Vec<u32>> = text.split(separator).map(|number| number.parse().ok()).collect();
        numbers.filter(|numbers| matches!(numbers.len(), 2 | 3)).map(|numbers| numbers[0])
    };
    match name.strip_prefix(PREFIX) {
        Some(rest) => numbers(rest, '-'),
        None => numbers(name.strip_prefix("st")?, '.'),
    }
}

/// Whether something of this name was left by a process that is gone.
pub(super) fn is_left_over(name: &str) -> bool {
    owner(name).is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists())
}

/// Interfaces of the host.
pub(super) fn links() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The addresses of a network: `10.x.y.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subnet(u8, u8);

impl Subnet {
    /// One into which the host has no route yet.
    ///
    /// # Errors
    /// [`NamespaceError::NoSubnet`], or `ip` cannot be run.
    pub(super) fn find(names: Names) -> Result<Self, NamespaceError> {
        for tried in 0..MAX_TRIED {
            let subnet = Self::candidate(names.process, names.slot, tried);
            let prefix = format!("{}/24", subnet.at(0));
            let mut routes = String::new();
            for which in ["match", "root"] {
                routes += &run(&["ip", "-4", "route", "show", which, &prefix], "")?;
            }
            if is_free(&routes) {
                return Ok(subnet);
            }
        }
        Err(NamespaceError::NoSubnet)
    }

    /// Processes that run at once begin at different ones, and so do networks of one process.
    fn candidate(process: u32, slot: u8, tried: u32) -> Self {
        let number = process.wrapping_mul(u32::from(MAX_SLOTS)).wrapping_add(u32::from(slot));
        let [.., x, y] = number.wrapping_add(tried.wrapping_mul(7919)).to_be_bytes();
        Self(x, y)
    }

    fn at(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.0, self.1, last)
    }

    /// The host's own address.
    pub(super) fn host(self) -> Ipv4Addr {
        self.at(254)
    }

    /// The bridge's hardware address: of its own, so that it does not change as nodes are added.
    pub(super) fn host_hardware(self) -> String {
        format!("02:00:0a:{:02x}:{:02x}:fe", self.0, self.1)
    }

    pub(super) fn node(self, node: usize) -> Ipv4Addr {
        assert!(node < MAX_NODES, "a schedule has few nodes");
        self.at(u8::try_from(node + 1).expect("it is below 100"))
    }

    pub(super) fn listen(self, node: usize) -> SocketAddr {
        (self.node(node), PORT).into()
    }

    pub(super) fn join_listen(self, node: usize) -> SocketAddr {
        (self.node(node), JOIN_PORT).into()
    }
}

/// Whether these routes, as `ip` shows them, lead everywhere or nowhere.
fn is_free(routes: &str) -> bool {
    routes.lines().all(|route| route.split_whitespace().any(|word| word == "default"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: Names = Names { process: 4_194_304, slot: 99 };

    #[test]
    fn names_tell_their_process_and_those_of_interfaces_are_short_enough() {
        assert_eq!(LARGEST.bridge(), "st4194304.99");
        assert_eq!(LARGEST.link(98), "st4194304.99.99");
        assert!(LARGEST.link(98).len() <= 15);
        assert_eq!(LARGEST.namespace(0), "stellate-faults-4194304-99-1");
        assert_eq!(LARGEST.host_table(), "stellate-faults-4194304-99");
        for name in [LARGEST.bridge(), LARGEST.link(3), LARGEST.namespace(3), LARGEST.host_table()] {
            assert_eq!(owner(&name), Some(4_194_304), "{name}");
        }
        for name in ["eth0", "stellate-faults", "stellate-faults-7", "st7", "st7.x", "st7.1.2.3", "strange.1"]
        {
            assert_eq!(owner(name), None, "{name}");
        }
    }

    #[test]
    fn what_a_process_that_is_gone_has_left_is_known() {
        let own = Names { process: process::id(), slot: 1 };
        assert!(!is_left_over(&own.bridge()) && !is_left_over(&own.namespace(1)));
        // Numbers of processes are smaller.
        assert!(is_left_over("st4194305.0.1") && !is_left_over("eth0"));
    }

    #[test]
    fn networks_have_subnets_of_their_own() {
        let subnet = Subnet::candidate(0x1_0203, 4, 0);
        assert_eq!(subnet, Subnet::candidate(0x1_0203, 4, 0));
        assert_ne!(subnet, Subnet::candidate(0x1_0203, 5, 0));
        assert_ne!(subnet, Subnet::candidate(0x1_0204, 4, 0));
        assert_ne!(subnet, Subnet::candidate(0x1_0203, 4, 1));
        let subnet = Subnet(1, 200);
        assert_eq!(subnet.listen(0).to_string(), "10.1.200.1:7400");
        assert_eq!(subnet.join_listen(5).to_string(), "10.1.200.6:7401");
        assert_eq!(
            (subnet.host().to_string(), subnet.host_hardware()),
            ("10.1.200.254".into(), "02:00:0a:01:c8:fe".into())
        );
    }

    #[test]
    fn a_subnet_is_free_if_only_the_default_route_leads_there() {
        assert!(is_free(""));
        assert!(is_free("default via 192.0.2.1 dev eth0 \n"));
        assert!(!is_free("default via 192.0.2.1 dev eth0\n10.0.0.0/8 dev eth1 scope link\n"));
    }

    #[test]
    fn slots_are_given_once_and_again_when_they_are_dropped() {
        let (one, two) = (Slot::take().unwrap(), Slot::take().unwrap());
        assert_ne!(one.0, two.0);
        drop((one, two));
        assert!(Slot::take().is_ok());
    }
}
