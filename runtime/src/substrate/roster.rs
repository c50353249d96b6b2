//! Who is there, as a snapshot for readers: membership's view with what the transport knows.

use std::net::SocketAddr;
use std::time::Duration;

use crate::identity::NodeId;
use crate::membership::{
    Clash, Generation, Liveness, Membership, NodeRecord, NodeState, RefusalReason, Requirements, Standing,
    clashes, judge,
};
use crate::transport::{ConnectionClass, Endpoint, IncompatiblePeer};

/// The cluster as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// This node.
    pub own: NodeRecord,
    /// In which life it is.
    pub generation: Generation,
    /// What members are judged by.
    pub requirements: Requirements,
    /// All others, also those that are down or have left and are not yet forgotten, ordered by id.
    pub members: Vec<RosterMember>,
    /// Nodes that speak another version of the transport, and so are no members.
    pub incompatible: Vec<IncompatiblePeer>,
    /// Names that more than one live node has.
    pub clashes: Vec<Clash>,
    /// Nodes that do not let this one take part, the latest reason of each.
    pub refusals: Vec<(NodeId, RefusalReason)>,
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterMember {
    /// The node.
    pub id: NodeId,
    /// In which life.
    pub generation: Generation,
    /// What it says of itself.
    pub record: NodeRecord,
    /// Whether it answers, by membership, which takes seconds to notice.
    pub liveness: Liveness,
    /// Since when, on this node's clock.
    pub since: Duration,
    /// Whether it can work with this cluster, and why not.
    pub standing: Standing,
    /// Where its control connection goes, if there is one.
    pub connection: Option<SocketAddr>,
}

impl RosterMember {
    /// Whether it is there and can be given work: it answers, is compatible, and takes new work.
    pub fn is_usable(&self) -> bool {
        self.is_up() && self.standing == Standing::Compatible && self.record.state == NodeState::Active
    }

    /// Whether it answers, as far as is known.
    pub fn is_up(&self) -> bool {
        matches!(self.liveness, Liveness::Alive | Liveness::Suspect)
    }

    /// Where to dial it: where it is connected now, then as it says itself.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.record.addresses.clone();
        if let Some(connected) = self.connection.filter(|connected| !addresses.contains(connected)) {
            addresses.push(connected);
        }
        addresses
    }
}

impl Roster {
    pub(super) fn of(
        membership: &Membership,
        endpoint: &Endpoint,
        requirements: &Requirements,
        refusals: Vec<(NodeId, RefusalReason)>,
    ) -> Self {
        let member = |member: crate::membership::Member| {
            let id = member.identity.node;
            let connection = endpoint.connection(id, ConnectionClass::Control);
            RosterMember {
                id,
                generation: member.identity.generation,
                standing: judge(requirements, &member.record),
                record: member.record,
                liveness: member.liveness,
                since: member.since,
                connection: connection.map(|connection| connection.remote_address()),
            }
        };
        let members: Vec<_> = membership.members().map(member).collect();
        let own = membership.record().clone();
        let live = members.iter().filter(|member| member.is_up()).map(|member| &member.record);
        let clashes = clashes(live.chain([&own]));
        Self {
            generation: membership.identity().generation,
            requirements: requirements.clone(),
            incompatible: endpoint.incompatible_peers(),
            own,
            members,
            clashes,
            refusals,
        }
    }

    /// A member by its id.
    pub fn member(&self, id: NodeId) -> Option<&RosterMember> {
        let found = self.members.binary_search_by_key(&id, |member| member.id).ok()?;
        Some(&self.members[found])
    }

    /// A member by its name; one that is up before one that is not.
    pub fn named(&self, name: &str) -> Option<&RosterMember> {
        let named = || self.members.iter().filter(|member| member.record.name == name);
        named().find(|member| member.is_up()).or_else(|| named().next())
    }
}
