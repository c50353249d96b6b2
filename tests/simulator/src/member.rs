//! Membership on each node: the real state machine, its datagrams and rosters over the simulated network.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use stellate_actors::cluster::messages::NodeKey;
use stellate_runtime::identity::NodeId;
use stellate_runtime::membership::{
    Event, Membership, MembershipOptions, NodeRecord, NodeState, Output, ProtocolRange, Roles, Start,
};

use crate::message::{Message, Timer};
use crate::node::{key_of, number_of};
use crate::world::World;

/// The id of the node of a number: its key comes first.
fn id_of(number: u16) -> NodeId {
    let mut bytes = [7; 32];
    bytes[..6].copy_from_slice(&key_of(number).0);
    NodeId::from_bytes(bytes)
}

fn number_of_id(node: NodeId) -> u16 {
    let mut key = [0; 6];
    key.copy_from_slice(&node.as_bytes()[..6]);
    number_of(NodeKey(key))
}

fn record(number: u16, boot: u64) -> NodeRecord {
    NodeRecord {
        node: id_of(number),
        boot: boot as u32,
        version: 1,
        name: format!("node-{number}"),
        program: "1.0.0".to_owned(),
        addresses: vec![SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + u32::from(number)), 7400))],
        protocol: ProtocolRange { oldest: 1, newest: 1 },
        roles: Roles { context: true, query: true, ..Roles::default() },
        state: NodeState::Joining,
        model: None,
        devices: Vec::new(),
        capacity_bytes: 1,
    }
}

impl World {
    /// Membership begins anew with a node's life.
    pub(crate) fn start_membership(&mut self, number: u16) {
        if self.scenario.shape.has_membership {
            let seed = self.chance.word();
            let now = self.now;
            let node = self.node_mut(number);
            let record = record(number, node.disk.kept().starts);
            let start = Start { record, removed: Vec::new(), seed, now: node.clock(now) };
            let machine = Membership::new(start, MembershipOptions::default());
            node.membership = Some(machine.expect("the record is a proper one"));
            self.after_membership(number);
        }
    }

    /// A timeout of membership.
    pub(crate) fn membership_due(&mut self, number: u16) {
        let now = self.now;
        let node = self.node_mut(number);
        node.membership_due = None;
        let clock = node.clock(now);
        if let Some(machine) = &mut node.membership {
            machine.handle_timeout(clock);
        }
        self.after_membership(number);
    }

    /// Something of membership has come.
    pub(crate) fn membership_heard(&mut self, number: u16, from: u16, bytes: &[u8], is_roster: bool) {
        let now = self.now;
        let node = self.node_mut(number);
        let clock = node.clock(now);
        if let Some(machine) = &mut node.membership {
            // What is not taken changes nothing.
            let _ = match is_roster {
                true => machine.handle_roster(clock, id_of(from), bytes),
                false => machine.handle_datagram(clock, id_of(from), bytes),
            };
        }
        self.after_membership(number);
    }

    /// A connection to a node stands.
    pub(crate) fn membership_contact(&mut self, number: u16, other: u16) {
        let now = self.now;
        let node = self.node_mut(number);
        let clock = node.clock(now);
        if let Some(machine) = &mut node.membership {
            machine.contact(clock, id_of(other));
        }
        self.after_membership(number);
    }

    /// Does what membership wants done.
    fn after_membership(&mut self, number: u16) {
        let mut gone = Vec::new();
        while let Some(output) = self.node_mut(number).membership.as_mut().and_then(Membership::poll_output) {
            match output {
                Output::Datagram { to, bytes } => {
                    self.send(number, number_of_id(to), Message::Datagram(bytes));
                }
                Output::Roster { to, bytes } => self.send(number, number_of_id(to), Message::Roster(bytes)),
                Output::Bootstrap => self.bootstrap(number),
                Output::Claimed { .. } | Output::Prove { .. } => {}
                Output::Event(Event::Down(node) | Event::Left(node)) => gone.push(node),
                Output::Event(_) => {}
            }
        }
        let now = self.now;
        let node = self.node_mut(number);
        let clock = node.clock(now);
        if let Some(due) = node.membership.as_ref().and_then(Membership::poll_timeout)
            && node.membership_due.is_none_or(|set| due < set)
        {
            node.membership_due = Some(due);
            self.after(number, due.saturating_sub(clock).max(Duration::from_micros(1)), Timer::Membership);
        }
        for node in gone {
            self.checks.suspected();
            self.node_gone(number, key_of(number_of_id(node)));
        }
    }

    /// Meets the first two nodes, which are everyone's seeds.
    fn bootstrap(&mut self, number: u16) {
        for seed in 0..2 {
            let is_other = seed != number && usize::from(seed) < self.nodes.len();
            if is_other && self.reaches(number, seed) {
                self.send(seed, number, Message::Contact);
            }
        }
    }
}
