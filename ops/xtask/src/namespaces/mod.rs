//! Faults between real nodes without a relay: every node is in a network namespace of its own, with a cable (a pair of veth
//! interfaces) to a bridge of the host. Rules of nft where packets are received drop them, by chance or since a way is cut; they
//! cannot double or delay any. Names and addresses are in `names.rs`, rules in `rules.rs`, the programs in `tools.rs`.
//!
//! Packets are dropped at the receiver, not at the sender, whose system would tell the program that it could not send. Clients
//! are in the host's namespace, so what nodes send to them is dropped by a table there, which looks at the bridge alone.

mod names;
mod rules;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use names::{Names, Slot, Subnet};
use rules::{Receiver, Rules};
use tools::{Running, run};

use crate::network::Place;
use crate::weather::{Chances, Packets, Party};

pub use tools::NamespaceError;

/// The node's end of its cable.
const DEVICE: &str = "eth0";

/// The table of rules in a node's namespace.
const TABLE: &str = "stellate-faults";

/// The devices segment no packets of theirs: the kernel cuts what is sent as one large packet into those that count, so that each
/// is lost for itself.
const SEGMENTS: &str = "gso_max_segs 1";

/// How long a packet is waited for that proves a cable, and how often.
const PROOF: Duration = Duration::from_millis(500);
const PROOFS: usize = 6;

/// Whether clusters can be in namespaces here: one is made, tried and removed.
///
/// # Errors
/// [`NamespaceError`]: what is missing, and what to do about it.
pub fn permitted() -> Result<(), NamespaceError> {
    let mut network = Namespaces::open()?;
    let place = network.place(0)?;
    network.set(Chances { lost_permille: 1, ..Chances::default() })?;
    network.cut(&[(1, 0)])?;
    network.clear()?;
    network.packets()?;
    match is_reached(place.address) {
        true => Ok(()),
        false => Err(NamespaceError::NotReached),
    }
}

/// Whether a system answers at an address that nothing listens at.
fn is_reached(address: SocketAddr) -> bool {
    let Ok(socket) = UdpSocket::bind("0.0.0.0:0") else { return false };
    if socket.set_read_timeout(Some(PROOF)).is_err() || socket.connect(address).is_err() {
        return false;
    }
    (0..PROOFS).any(|_| {
        let refused = socket.send(&[0]).and_then(|_| socket.recv(&mut [0]));
        refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
}

/// Removes what processes of this program have left that were killed.
///
/// # Errors
/// `ip` or `nft` cannot be run. What cannot be removed stays.
pub fn remove_leftovers() -> Result<(), NamespaceError> {
    let named = run(&["ip", "netns", "list"], "")?;
    let namespaces = named.lines().filter_map(|line| line.split_whitespace().next());
    for namespace in namespaces.filter(|name| names::is_left_over(name)) {
        let _ = run(&["ip", "netns", "delete", namespace], "");
    }
    for link in names::links().iter().filter(|name| names::is_left_over(name)) {
        let _ = run(&["ip", "link", "delete", link], "");
    }
    let tables = run(&["nft", "list", "tables", "ip"], "")?;
    for table in tables.lines().filter_map(|line| line.strip_prefix("table ip ")) {
        if names::is_left_over(table) {
            let _ = run(&["nft", "delete", "table", "ip", table], "");
        }
    }
    Ok(())
}

/// The network of one cluster. Dropped, all of it is removed; processes in it lose their network then.
#[derive(Debug)]
pub struct Namespaces {
    names: Names,
    subnet: Subnet,
    lost_permille: u16,
    cuts: BTreeSet<(usize, usize)>,
    /// Who receives, and what holds there.
    receivers: BTreeMap<Party, (Receiver, Rules)>,
    /// What the name is made of stays taken until all is removed.
    _slot: Slot,
}

impl Namespaces {
    /// A bridge without nodes, and without faults.
    ///
    /// # Errors
    /// [`NamespaceError`]; nothing is left behind.
    pub fn open() -> Result<Self, NamespaceError> {
        if !cfg!(target_os = "linux") {
            return Err(NamespaceError::NotLinux);
        }
        if !rustix::process::geteuid().is_root() {
            return Err(NamespaceError::NotRoot);
        }
        run(&["nft", "--version"], "")?;
        let slot = Slot::take()?;
        let names = Names::new(&slot);
        let subnet = Subnet::find(names)?;
        let mut network = Self {
            names,
            subnet,
            lost_permille: 0,
            cuts: BTreeSet::new(),
            receivers: BTreeMap::new(),
            _slot: slot,
        };
        let (bridge, host, hardware) = (names.bridge(), subnet.host(), subnet.host_hardware());
        let made = format!(
            "link add {bridge} {SEGMENTS} address {hardware} type bridge\n\
             address add {host}/24 dev {bridge}\n\
             link set {bridge} up\n"
        );
        run(&["ip", "-batch", "-"], &made)?;
        let host = Receiver { namespace: None, table: names.host_table(), device: bridge };
        network.receive(Party::Client, host)?;
        Ok(network)
    }

    /// A namespace for the node of an index, which keeps it until the end.
    ///
    /// # Errors
    /// [`NamespaceError`]; what was made of it is removed with the rest.
    pub fn place(&mut self, index: usize) -> Result<Place, NamespaceError> {
        let namespace = self.names.namespace(index);
        let place = Place {
            listen: self.subnet.listen(index),
            join_listen: Some(self.subnet.join_listen(index)),
            address: self.subnet.listen(index),
            runner: ["ip", "netns", "exec", &namespace].map(str::to_owned).to_vec(),
        };
        if self.receivers.contains_key(&Party::Node(index)) {
            return Ok(place);
        }
        let (link, bridge, node) = (self.names.link(index), self.names.bridge(), self.subnet.node(index));
        run(&["ip", "netns", "add", &namespace], "")?;
        // From here on it is removed with the rest.
        let receiver =
            Receiver { namespace: Some(namespace.clone()), table: TABLE.into(), device: DEVICE.into() };
        self.receivers.insert(Party::Node(index), (receiver.clone(), Rules::default()));
        let outside = format!(
            "link add {link} {SEGMENTS} type veth peer name {DEVICE} netns {namespace}\n\
             link set {link} master {bridge} up\n"
        );
        run(&["ip", "-batch", "-"], &outside)?;
        let inside = format!(
            "link set lo up\n\
             address add {node}/24 dev {DEVICE}\n\
             link set {DEVICE} {SEGMENTS} up\n"
        );
        run(&["ip", "-n", &namespace, "-batch", "-"], &inside)?;
        self.receive(Party::Node(index), receiver)?;
        Ok(place)
    }

    /// Packets are lost on every way from now on by the first of these chances; the others are left out.
    ///
    /// # Errors
    /// [`NamespaceError`]; some receivers may have the rules of before until the next change.
    pub fn set(&mut self, chances: Chances) -> Result<(), NamespaceError> {
        self.lost_permille = chances.lost_permille;
        self.apply()
    }

    /// Lets nothing through from one node to another, for each of these pairs of indexes.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn cut(&mut self, ways: &[(usize, usize)]) -> Result<(), NamespaceError> {
        self.cuts.extend(ways);
        self.apply()
    }

    /// No way is cut any more, and nothing is left to chance.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn clear(&mut self) -> Result<(), NamespaceError> {
        self.cuts.clear();
        self.lost_permille = 0;
        self.apply()
    }

    /// What became of packets so far.
    ///
    /// # Errors
    /// [`NamespaceError`].
    pub fn packets(&self) -> Result<Packets, NamespaceError> {
        let mut all = Packets::default();
        for (receiver, _) in self.receivers.values() {
            all.add(&receiver.packets()?);
        }
        Ok(all)
    }

    /// The rules over a new receiver.
    fn receive(&mut self, party: Party, receiver: Receiver) -> Result<(), NamespaceError> {
        let rules = self.rules(party);
        receiver.begin(&rules)?.finish()?;
        self.receivers.insert(party, (receiver, rules));
        Ok(())
    }

    /// What is to hold at a receiver.
    fn rules(&self, party: Party) -> Rules {
        let cuts = self.cuts.iter().filter(|(_, to)| Party::Node(*to) == party);
        let cuts = cuts.map(|(from, to)| (self.subnet.node(*from), self.subnet.node(*to))).collect();
        Rules { cuts, lost_permille: self.lost_permille }
    }

    /// Changes the rules where they are to be others, everywhere at about the same time.
    fn apply(&mut self) -> Result<(), NamespaceError> {
        let mut running = Vec::new();
        for (party, (receiver, rules)) in &self.receivers {
            let wanted = self.rules(*party);
            if wanted != *rules {
                running.push((*party, wanted.clone(), receiver.begin(&wanted)));
            }
        }
        let mut applied = Ok(());
        for (party, wanted, running) in running {
            match running.and_then(Running::finish) {
                Ok(_) => self.receivers.get_mut(&party).expect("it was there").1 = wanted,
                Err(error) => applied = applied.and(Err(error)),
            }
        }
        applied
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // A namespace goes when the last process in it has ended; its cable is cut at once.
        for party in self.receivers.keys() {
            if let Party::Node(index) = *party {
                let _ = run(&["ip", "link", "delete", &self.names.link(index)], "");
                let _ = run(&["ip", "netns", "delete", &self.names.namespace(index)], "");
            }
        }
        let _ = run(&["nft", "delete", "table", "ip", &self.names.host_table()], "");
        let _ = run(&["ip", "link", "delete", &self.names.bridge()], "");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::print_stdout, reason = "what is skipped is told")]

    use super::*;

    /// A system without a listener answers what reaches it: whether the host hears that of a node.
    fn is_heard(address: SocketAddr) -> bool {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(PROOF)).unwrap();
        socket.send(&[0]).unwrap();
        socket.recv(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }

    /// A packet from one node to another.
    fn send(network: &Namespaces, from: usize, to: usize) {
        let target = network.subnet.listen(to);
        let script = format!("echo hello > /dev/udp/{}/{}", target.ip(), target.port());
        run(&["ip", "netns", "exec", &network.names.namespace(from), "bash", "-c", &script], "").unwrap();
    }

    fn counted(network: &Namespaces, node: usize) -> Packets {
        network.receivers[&Party::Node(node)].0.packets().unwrap()
    }

    #[test]
    fn nodes_lose_what_the_rules_say_and_nothing_is_left_behind() {
        if let Err(error) = permitted() {
            println!("SKIPPED: {error}");
            return;
        }
        let mut network = Namespaces::open().unwrap();
        let places = [0, 1, 2].map(|index| network.place(index).unwrap());
        assert!(places.iter().all(|place| is_reached(place.address)));
        assert_eq!(places[1].runner, ["ip", "netns", "exec", &network.names.namespace(1)]);

        network.cut(&[(0, 1)]).unwrap();
        let before = [counted(&network, 0), counted(&network, 1)];
        send(&network, 0, 1);
        send(&network, 2, 1);
        // Whoever says hello is told that nobody listens, which is a packet as well.
        send(&network, 1, 0);
        let after = [counted(&network, 0), counted(&network, 1)];
        assert_eq!(after[1].cut - before[1].cut, 2, "{before:?} {after:?}");
        assert_eq!(after[1].sent - before[1].sent, 3, "{before:?} {after:?}");
        assert_eq!((after[0].cut, after[0].sent - before[0].sent), (0, 1), "{before:?} {after:?}");

        network.clear().unwrap();
        send(&network, 0, 1);
        assert_eq!(counted(&network, 1).cut, after[1].cut);
        network.set(Chances { lost_permille: 1000, ..Chances::default() }).unwrap();
        assert!(!is_heard(places[0].address));
        assert!(network.packets().unwrap().lost >= 1);
        network.clear().unwrap();
        assert!(is_reached(places[0].address));

        let names = network.names;
        drop(network);
        assert!(names::links().iter().all(|link| !link.starts_with(&names.bridge())));
        let named = run(&["ip", "netns", "list"], "").unwrap();
        let tables = run(&["nft", "list", "tables"], "").unwrap();
        assert!(!named.contains(&names.host_table()) && !tables.contains(&names.host_table()));
    }
}
