//! The nodes of the cluster as administrators see them: the roster's view in words and figures.

use stellate_actors::api::{ClusterError, NodeInfo, NodeState};
use stellate_runtime::identity::NodeId;
use stellate_runtime::membership::{self, Liveness, NodeRecord, Standing, judge};
use stellate_runtime::substrate::{Roster, RosterMember, Substrate};
use stellate_runtime::transport::{ConnectionClass, IncompatiblePeer};

/// A node that a command names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) is_own: bool,
}

/// The node with this name or id.
pub(super) fn named(roster: &Roster, node: &str) -> Result<Named, ClusterError> {
    let own = &roster.own;
    let is_meant = |name: &str, id: NodeId| name == node || id.to_string() == node;
    if is_meant(&own.name, own.node) {
        return Ok(Named { id: own.node, name: own.name.clone(), is_own: true });
    }
    let by_id = || roster.members.iter().find(|member| member.id.to_string() == node);
    let found = roster.named(node).or_else(by_id);
    let found = found.map(|member| Named { id: member.id, name: member.record.name.clone(), is_own: false });
    found.ok_or_else(|| ClusterError::UnknownNode { node: node.chars().take(80).collect() })
}

/// Whether there is no other node that could be given work, now or once it is back.
pub(super) fn is_alone(roster: &Roster) -> bool {
    roster.members.iter().all(|member| member.liveness == Liveness::Left)
}

/// The node that holds the CA's key, as far as the roster knows.
pub(super) fn issuer(roster: &Roster) -> Option<&str> {
    let of_members = || roster.members.iter().map(|member| &member.record);
    let records = std::iter::once(&roster.own).chain(of_members());
    records.filter(|record| record.roles.issuer).map(|record| record.name.as_str()).next()
}

/// Every node, in the order of their names.
pub(super) fn rows(substrate: &Substrate) -> Vec<NodeInfo> {
    let roster = substrate.roster();
    let mut rows = vec![own(&roster)];
    rows.extend(roster.members.iter().map(|member| {
        let connection = substrate.endpoint().connection(member.id, ConnectionClass::Control);
        NodeInfo {
            rtt_us: connection.map(|connection| connection.stats().rtt.as_micros() as u64),
            ..other(&roster, member)
        }
    }));
    let is_listed = |peer: &&IncompatiblePeer| roster.member(peer.id).is_none();
    rows.extend(roster.incompatible.iter().filter(is_listed).map(of_another_version));
    rows.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    rows
}

fn own(roster: &Roster) -> NodeInfo {
    let mut row = of_record(&roster.own);
    if let Standing::Incompatible(mismatches) = judge(&roster.requirements, &roster.own) {
        let why: Vec<_> = mismatches.iter().map(ToString::to_string).collect();
        (row.state, row.why) = (NodeState::Incompatible, Some(why.join("; ")));
    }
    row.why = row.why.or_else(|| clash(roster, &roster.own));
    row
}

fn other(roster: &Roster, member: &RosterMember) -> NodeInfo {
    let mut row = of_record(&member.record);
    let address = member.connection.map(|address| address.to_string());
    row.address = address.unwrap_or(row.address);
    match (member.liveness, &member.standing) {
        (Liveness::Left, _) => row.state = NodeState::Left,
        (Liveness::Down, _) => row.state = NodeState::Down,
        (_, Standing::Incompatible(mismatches)) => {
            let why: Vec<_> = mismatches.iter().map(ToString::to_string).collect();
            (row.state, row.why) = (NodeState::Incompatible, Some(why.join("; ")));
        }
        (Liveness::Suspect, _) => row.state = NodeState::Suspect,
        (Liveness::Alive, _) => {}
    }
    row.why = row.why.or_else(|| clash(roster, &member.record));
    row
}

fn clash(roster: &Roster, record: &NodeRecord) -> Option<String> {
    let others = roster.clashes.iter().any(|clash| clash.name == record.name);
    others.then(|| "another node has the same name; remove one of them by its id".to_owned())
}

fn of_record(record: &NodeRecord) -> NodeInfo {
    let roles = [
        ("context", record.roles.context),
        ("query", record.roles.query),
        ("supervisor", record.roles.supervisor),
    ];
    let devices: Vec<_> =
        record.devices.iter().map(|device| format!("{}x {}", device.count, device.name)).collect();
    NodeInfo {
        name: record.name.clone(),
        id: record.node.to_string(),
        address: record.addresses.first().map(ToString::to_string).unwrap_or_default(),
        state: match record.state {
            membership::NodeState::Joining => NodeState::Joining,
            membership::NodeState::Active => NodeState::Active,
            membership::NodeState::Cordoned => NodeState::Cordoned,
            membership::NodeState::Draining => NodeState::Draining,
            membership::NodeState::Drained => NodeState::Drained,
            membership::NodeState::Left => NodeState::Left,
        },
        why: None,
        roles: roles.iter().filter(|(_, has)| *has).map(|(role, _)| (*role).to_owned()).collect(),
        devices: devices.join(", "),
        version: record.program.clone(),
        capacity_bytes: record.capacity_bytes,
        used_bytes: 0,
        blocks: 0,
        sessions: None,
        rtt_us: None,
    }
}

fn of_another_version(peer: &IncompatiblePeer) -> NodeInfo {
    NodeInfo {
        name: peer.name.to_string(),
        id: peer.id.to_string(),
        address: peer.address.to_string(),
        state: NodeState::Incompatible,
        why: Some(format!("it speaks version {} of the protocol; run the same program on both", peer.theirs)),
        roles: Vec::new(),
        devices: String::new(),
        version: String::new(),
        capacity_bytes: 0,
        used_bytes: 0,
        blocks: 0,
        sessions: None,
        rtt_us: None,
    }
}
