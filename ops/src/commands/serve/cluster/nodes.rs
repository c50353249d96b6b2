//! The nodes of the cluster as administrators see them: the roster's view in words and figures, with what the supervisor knows
//! of their blocks laid over it. And back: which node a command means.

use std::collections::BTreeMap;

use stellate_actors::api::{ClusterError, NodeInfo, NodeState};
use stellate_actors::cluster::HostState;
use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::cluster::snapshot::{ClusterSnapshot, HostRow};
use stellate_actors::link::HostId;
use stellate_actors::member::names;
use stellate_runtime::identity::NodeId;
use stellate_runtime::membership::{self, Liveness, NodeRecord, Standing, judge};
use stellate_runtime::substrate::{Roster, RosterMember, Substrate};
use stellate_runtime::transport::{ConnectionClass, IncompatiblePeer, ProtocolRange};

/// A node that a command names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) is_own: bool,
}

impl Named {
    /// As the supervisor knows it.
    pub(super) fn key(&self) -> NodeKey {
        key_of(self.id)
    }
}

/// A node's key: what the ids of its hosts begin with.
pub(in super::super) fn key_of(node: NodeId) -> NodeKey {
    let [a, b, c, d, e, f, ..] = *node.as_bytes();
    NodeKey([a, b, c, d, e, f])
}

/// The node with this name or id.
pub(super) fn named(roster: &Roster, node: &str) -> Result<Named, ClusterError> {
    let own = &roster.own;
    if own.name == node || own.node.to_string() == node {
        return Ok(Named { id: own.node, name: own.name.clone(), is_own: true });
    }
    let by_id = || roster.members.iter().find(|member| member.id.to_string() == node);
    let found = roster.named(node).or_else(by_id);
    let found = found.map(|member| Named { id: member.id, name: member.record.name.clone(), is_own: false });
    found.ok_or_else(|| ClusterError::UnknownNode { node: node.chars().take(80).collect() })
}

/// Whether there is no other node, now or once it is back.
pub(in super::super) fn is_alone(roster: &Roster) -> bool {
    roster.members.iter().all(|member| member.liveness == Liveness::Left)
}

/// This node and those that are there.
fn live(roster: &Roster) -> impl Iterator<Item = &NodeRecord> {
    let others = roster.members.iter().filter(|member| member.is_up()).map(|member| &member.record);
    std::iter::once(&roster.own).chain(others)
}

/// The node that holds the CA's key, if it was ever seen.
pub(super) fn issuer(roster: &Roster) -> Option<&str> {
    let all = std::iter::once(&roster.own).chain(roster.members.iter().map(|member| &member.record));
    all.filter(|record| record.roles.issuer).map(|record| record.name.as_str()).next()
}

/// Another node that runs sessions.
pub(super) fn query_node(roster: &Roster) -> Option<&str> {
    let usable = roster.members.iter().filter(|member| member.is_usable() && member.record.roles.query);
    usable.map(|member| member.record.name.as_str()).next()
}

/// The other node that gives such names, and where it is.
pub(super) fn namer(roster: &Roster, name: u64) -> Option<String> {
    let found = names::namer(roster, name)?;
    let address = found.addresses.first()?;
    Some(format!("`{}` at {address}", found.name))
}

/// What keeps this node from working with its cluster, in words.
pub(super) fn misfit(roster: &Roster) -> Option<String> {
    match judge(&roster.requirements, &roster.own) {
        Standing::Compatible => None,
        Standing::Incompatible(mismatches) => Some(in_words(&mismatches)),
    }
}

/// A host by the name of its node, as in `first.0`.
pub(super) fn host_name(roster: &Roster, host: HostId) -> String {
    match node_name(roster, NodeKey::of(host)) {
        Some(name) => format!("{name}.{}", host.index()),
        None => host.to_string(),
    }
}

/// A node by its key.
pub(super) fn node_name(roster: &Roster, key: NodeKey) -> Option<&str> {
    let all = std::iter::once(&roster.own).chain(roster.members.iter().map(|member| &member.record));
    all.filter(|record| key_of(record.node) == key).map(|record| record.name.as_str()).next()
}

/// What the supervisor says, with the names of nodes in place of their keys.
pub(super) fn with_names(roster: &Roster, text: &str) -> String {
    live(roster)
        .fold(text.to_owned(), |text, record| text.replace(&key_of(record.node).to_string(), &record.name))
}

/// Every node, in the order of their names.
pub(super) fn rows(substrate: &Substrate, snapshot: Option<&ClusterSnapshot>) -> Vec<NodeInfo> {
    let roster = substrate.roster();
    let mut hosts: BTreeMap<NodeKey, Vec<&HostRow>> = BTreeMap::new();
    for row in snapshot.iter().flat_map(|snapshot| &snapshot.hosts) {
        hosts.entry(NodeKey::of(row.host)).or_default().push(row);
    }
    // Of a node that should have hosts and has not reported any, nothing is known yet.
    let hosts_of = |record: &NodeRecord| {
        let found = hosts.get(&key_of(record.node)).map(Vec::as_slice);
        found.or((snapshot.is_some() && !record.roles.context).then_some(&[]))
    };
    let mut rows = vec![with_hosts(own(&roster), hosts_of(&roster.own))];
    // Asked now: membership does not notice who speaks another version.
    let strangers = substrate.endpoint().incompatible_peers();
    rows.extend(roster.members.iter().map(|member| {
        let stranger = strangers.iter().find(|peer| peer.id == member.id);
        let connection = substrate.endpoint().connection(member.id, ConnectionClass::Control);
        let row = NodeInfo {
            rtt_us: connection.map(|connection| connection.stats().rtt.as_micros() as u64),
            ..with_version(other(&roster, member), stranger, roster.own.protocol)
        };
        with_hosts(row, hosts_of(&member.record))
    }));
    let is_listed = |peer: &&IncompatiblePeer| roster.member(peer.id).is_none();
    rows.extend(strangers.iter().filter(is_listed).map(|peer| of_another_version(peer, roster.own.protocol)));
    rows.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    rows
}

fn own(roster: &Roster) -> NodeInfo {
    let mut row = of_record(&roster.own);
    if let Some(why) = misfit(roster) {
        (row.state, row.why) = (NodeState::Incompatible, Some(why));
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
            (row.state, row.why) = (NodeState::Incompatible, Some(in_words(mismatches)));
        }
        (Liveness::Suspect, _) => row.state = NodeState::Suspect,
        (Liveness::Alive, _) => {}
    }
    row.why = row.why.or_else(|| clash(roster, &member.record));
    row
}

/// A member that came back with another version is down to membership, and is not dead.
fn with_version(row: NodeInfo, stranger: Option<&IncompatiblePeer>, ours: ProtocolRange) -> NodeInfo {
    match stranger {
        Some(peer) if matches!(row.state, NodeState::Down | NodeState::Suspect | NodeState::Left) => {
            NodeInfo { state: NodeState::Incompatible, why: Some(other_version(peer, ours)), ..row }
        }
        _ => row,
    }
}

fn other_version(peer: &IncompatiblePeer, ours: ProtocolRange) -> String {
    format!(
        "it speaks version {} of the protocol and this node {ours}; upgrade the older one, one version at a time",
        peer.theirs
    )
}

fn in_words(mismatches: &[membership::Mismatch]) -> String {
    mismatches.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn clash(roster: &Roster, record: &NodeRecord) -> Option<String> {
    let others = roster.clashes.iter().any(|clash| clash.name == record.name);
    others.then(|| "another node has the same name; remove one of them by its id".to_owned())
}

/// Lays over a row what the supervisor, if there is one, knows of the node's hosts: nothing before they have reported, and
/// none of hosts that are gone. A node without hosts holds nothing.
fn with_hosts(mut row: NodeInfo, hosts: Option<&[&HostRow]>) -> NodeInfo {
    let Some(hosts) = hosts else { return row };
    let there = || hosts.iter().filter(|host| host.state != HostState::Gone);
    if !hosts.is_empty() && there().next().is_none() {
        return row;
    }
    row.used_bytes = Some(there().map(|host| host.used_bytes).sum());
    row.blocks = Some(there().map(|host| host.blocks).sum());
    row.computed_blocks = Some(there().map(|host| host.computed_blocks).sum());
    // The hosts of a node share it.
    row.disk = there().find_map(|host| host.disk);
    if matches!(row.state, NodeState::Joining | NodeState::Active) {
        let wanted = wanted(hosts.iter().map(|host| host.state));
        row.state = wanted.unwrap_or(row.state);
    }
    let stuck = hosts.iter().filter(|host| host.state == HostState::Stuck);
    let stuck: Vec<_> = stuck.map(|host| host.host.index().to_string()).collect();
    if !stuck.is_empty() && matches!(row.state, NodeState::Active | NodeState::Cordoned | NodeState::Draining)
    {
        row.state = NodeState::Stuck;
        let why = format!(
            "host {} of {} makes no progress; look at its device, and restart the node if it stays",
            stuck.join(", "),
            hosts.len()
        );
        row.why = row.why.or(Some(why));
    }
    row
}

/// What an operator wants of a node, by the states of its hosts; none if it is used as any other.
pub(in super::super) fn wanted(mut hosts: impl Iterator<Item = HostState>) -> Option<NodeState> {
    // All hosts of a node have the same intent.
    hosts.find_map(|state| match state {
        // What is wanted of a host that is stuck is told by the others; while all are, that they are is all that is told.
        HostState::Active | HostState::Gone | HostState::Stuck => None,
        HostState::Cordoned => Some(NodeState::Cordoned),
        HostState::Draining => Some(NodeState::Draining),
        HostState::Drained => Some(NodeState::Drained),
    })
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
        used_bytes: None,
        blocks: None,
        sessions: None,
        rtt_us: None,
        computed_blocks: None,
        disk: None,
    }
}

fn of_another_version(peer: &IncompatiblePeer, ours: ProtocolRange) -> NodeInfo {
    NodeInfo {
        name: peer.name.to_string(),
        id: peer.id.to_string(),
        address: peer.address.to_string(),
        state: NodeState::Incompatible,
        why: Some(other_version(peer, ours)),
        roles: Vec::new(),
        devices: String::new(),
        version: String::new(),
        capacity_bytes: 0,
        used_bytes: None,
        blocks: None,
        sessions: None,
        rtt_us: None,
        computed_blocks: None,
        disk: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_came_back_with_another_version_says_so_and_both_versions() {
        let id = NodeId::from_bytes([1; 32]);
        let name = "second".parse().expect("a name");
        let (ours, theirs) = (ProtocolRange::SPOKEN, ProtocolRange::only(77));
        let peer = IncompatiblePeer { id, name, address: ([127, 0, 0, 1], 7400).into(), theirs };
        let down = NodeInfo { state: NodeState::Down, why: None, ..of_another_version(&peer, ours) };
        assert_eq!(with_version(down.clone(), None, ours).state, NodeState::Down);
        let row = with_version(down.clone(), Some(&peer), ours);
        let why = row.why.expect("a reason");
        assert_eq!(row.state, NodeState::Incompatible);
        assert!(why.contains("77") && why.contains(&ours.to_string()), "{why}");
        let active = NodeInfo { state: NodeState::Active, ..down };
        assert_eq!(
            with_version(active, Some(&peer), ours).why,
            None,
            "it was met before the note was forgotten"
        );
    }
}
