//! What the members of a cluster send each other when nothing happens, counted on the state machines that run in the nodes, by a
//! simulated clock. QUIC's own bytes are not in it: some 40 for each datagram, and UDP's and IP's headers.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use stellate_runtime::identity::NodeId;
use stellate_runtime::membership::{
    Membership, MembershipOptions, NodeRecord, NodeState, Output, ProtocolRange, Roles, Start,
};

use crate::human;
use crate::report::table;

const CLUSTERS: [usize; 4] = [3, 10, 30, 100];
/// Until all have met and news are old.
const SETTLED: Duration = Duration::from_secs(120);
const COUNTED: Duration = Duration::from_secs(120);

/// A cluster of so many nodes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Gossip {
    nodes: usize,
    bytes_per_s_and_node: f64,
    datagrams_per_s_and_node: f64,
}

pub(super) fn measure() -> anyhow::Result<Vec<Gossip>> {
    CLUSTERS.into_iter().map(|nodes| Simulation::new(nodes)?.run()).collect()
}

pub(super) fn table(measured: &[Gossip]) -> String {
    let row = |gossip: &Gossip| {
        vec![
            gossip.nodes.to_string(),
            format!("{}/s", human::bytes(gossip.bytes_per_s_and_node as usize)),
            format!("{:.1}/s", gossip.datagrams_per_s_and_node),
        ]
    };
    table::markdown(&["nodes", "gossip of each", "datagrams"], measured.iter().map(row).collect(), 0)
}

struct Simulation {
    nodes: Vec<Membership>,
    /// From, to, whether it is a roster, bytes: all under way, and there at once.
    under_way: VecDeque<(usize, usize, bool, Vec<u8>)>,
    sent: (u64, u64),
}

impl Simulation {
    fn new(nodes: usize) -> anyhow::Result<Self> {
        let machine = |number: usize| {
            let start = Start {
                record: record(number),
                removed: Vec::new(),
                seed: number as u64,
                now: Duration::ZERO,
            };
            Membership::new(start, MembershipOptions::default())
        };
        let nodes = (0..nodes).map(machine).collect::<Result<_, _>>()?;
        Ok(Self { nodes, under_way: VecDeque::new(), sent: (0, 0) })
    }

    fn run(mut self) -> anyhow::Result<Gossip> {
        let mut before = None;
        loop {
            let due = self.nodes.iter().filter_map(Membership::poll_timeout).min();
            let now = due.context("a member always has a timer")?;
            if now >= SETTLED && before.is_none() {
                before = Some(self.sent);
            }
            if now >= SETTLED + COUNTED {
                break;
            }
            for number in 0..self.nodes.len() {
                if self.nodes[number].poll_timeout().is_some_and(|due| due <= now) {
                    self.nodes[number].handle_timeout(now);
                    self.collect(number, now);
                }
            }
            while let Some((from, to, is_roster, bytes)) = self.under_way.pop_front() {
                let (sender, machine) = (id(from), &mut self.nodes[to]);
                match is_roster {
                    true => machine.handle_roster(now, sender, &bytes)?,
                    false => machine.handle_datagram(now, sender, &bytes)?,
                }
                self.collect(to, now);
            }
        }
        let (nodes, before) = (self.nodes.len(), before.unwrap_or_default());
        let each = |count: u64| count as f64 / COUNTED.as_secs_f64() / nodes as f64;
        Ok(Gossip {
            nodes,
            bytes_per_s_and_node: each(self.sent.0 - before.0),
            datagrams_per_s_and_node: each(self.sent.1 - before.1),
        })
    }

    /// Takes what a member wants sent.
    fn collect(&mut self, number: usize, now: Duration) {
        while let Some(output) = self.nodes[number].poll_output() {
            let (to, is_roster, bytes) = match output {
                Output::Datagram { to, bytes } => (to, false, bytes),
                Output::Roster { to, bytes } => (to, true, bytes),
                // The first one is everybody's seed.
                Output::Bootstrap if number > 0 => {
                    self.nodes[number].contact(now, id(0));
                    continue;
                }
                Output::Bootstrap | Output::Claimed { .. } | Output::Prove { .. } | Output::Event(_) => {
                    continue;
                }
            };
            self.sent = (self.sent.0 + bytes.len() as u64, self.sent.1 + 1);
            if let Some(to) = number_of(to).filter(|to| *to < self.nodes.len()) {
                self.under_way.push_back((number, to, is_roster, bytes));
            }
        }
    }
}

fn id(number: usize) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    NodeId::from_bytes(bytes)
}

fn number_of(id: NodeId) -> Option<usize> {
    let (first, _) = id.as_bytes().split_first_chunk()?;
    usize::try_from(u64::from_be_bytes(*first)).ok()
}

/// A node as most are.
fn record(number: usize) -> NodeRecord {
    let [high, low] = (number as u16).to_be_bytes();
    NodeRecord {
        node: id(number),
        boot: 1,
        version: 1,
        name: format!("node-{number}"),
        addresses: vec![(Ipv4Addr::new(10, 0, high, low), 7400).into()],
        protocol: ProtocolRange { oldest: 1, newest: 1 },
        roles: Roles { context: true, query: true, supervisor: true, issuer: false },
        program: "0.1.0".to_owned(),
        state: NodeState::Active,
        model: None,
        devices: Vec::new(),
        capacity_bytes: 64 << 30,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_quiet_cluster_send_little_and_their_probes_at_least() {
        let gossip = Simulation::new(3).unwrap().run().unwrap();
        assert!(gossip.datagrams_per_s_and_node >= 1.0, "{gossip:?}");
        assert!(gossip.bytes_per_s_and_node < 10_000.0, "{gossip:?}");
    }
}
