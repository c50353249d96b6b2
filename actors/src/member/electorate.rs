//! Who the voters are, by the names that settings give them: which node each is, and which of them can be called.

use std::time::Duration;

use ractor::{ActorCell, ActorRef};
use stellate_runtime::control::Wire;
use stellate_runtime::identity::NodeId;

use super::calls::{Envelope, VOTERS, VoterCall, VoterReply, VoterRequest};
use super::peers::{Peers, key_of};
use crate::cluster::election::{ElectionSettings, Message, Voter};
use crate::cluster::messages::NodeKey;

/// How long a voter may take to say how it stands: it computes nothing.
const STANDING: Duration = Duration::from_secs(2);

/// The voters of a cluster, as settings have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoterSetup {
    /// Their names: 1, 3 or 5, the same on all nodes.
    pub names: Vec<String>,
    /// For how long one is elected before it must be confirmed.
    pub lease: Duration,
}

/// The voters as this node knows them.
#[derive(Clone, Debug)]
pub(super) struct Electorate {
    /// In alphabetical order: a voter is its place.
    names: Vec<String>,
    lease: Duration,
    /// Differs between nodes whose settings name different voters: those do not hear each other.
    digest: u64,
    peers: Peers,
}

impl Electorate {
    pub(super) fn new(setup: &VoterSetup, peers: Peers) -> Self {
        let mut names = setup.names.clone();
        names.sort();
        let said = format!("{names:?} {}", setup.lease.as_millis());
        let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(said.as_bytes()).as_bytes();
        let digest = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Self { names, lease: setup.lease, digest, peers }
    }

    pub(super) fn settings(&self) -> ElectionSettings {
        // As many as settings allow.
        let voters = u8::try_from(self.names.len()).unwrap_or(u8::MAX);
        ElectionSettings { voters, lease: self.lease }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (Voter, &str)> {
        (0..).map(Voter).zip(self.names.iter().map(String::as_str))
    }

    pub(super) fn name(&self, voter: Voter) -> Option<&str> {
        self.names.get(usize::from(voter.0)).map(String::as_str)
    }

    pub(super) fn named(&self, name: &str) -> Option<Voter> {
        self.names().find(|(_, known)| *known == name).map(|(voter, _)| voter)
    }

    /// This node, if it is a voter.
    pub(super) fn own(&self) -> Option<Voter> {
        self.named(&self.peers.substrate.roster().own.name)
    }

    /// The node of a voter, if it is known.
    pub(super) fn node(&self, voter: Voter) -> Option<NodeId> {
        let (name, roster) = (self.name(voter)?, self.peers.substrate.roster());
        match roster.own.name == name {
            true => Some(self.peers.substrate.id()),
            false => roster.named(name).map(|member| member.id),
        }
    }

    /// Whether that node is this voter's, as far as is known.
    fn is_of(&self, voter: Voter, node: NodeKey) -> bool {
        self.node(voter).is_some_and(|id| key_of(id) == node)
    }

    /// The voters that cannot be called at the moment, by name.
    pub(super) fn missing(&self) -> Vec<String> {
        let is_missing = |voter| self.node(voter).is_none_or(|node| !self.peers.can_be_called(key_of(node)));
        self.names().filter(|(voter, _)| is_missing(*voter)).map(|(_, name)| name.to_owned()).collect()
    }

    /// Whom a message is from, if it is from a voter by the same settings.
    pub(super) fn sender(&self, envelope: &Envelope) -> Result<Voter, String> {
        let Envelope { electorate, from, node, .. } = envelope;
        if *electorate != self.digest {
            return Err("its settings name other voters, or another lease (cluster.voters, cluster.lease_s)"
                .to_owned());
        }
        match self.is_of(*from, *node) {
            true => Ok(*from),
            false => {
                Err("it is no voter by this node's settings (cluster.voters), or not known here yet"
                    .to_owned())
            }
        }
    }

    fn gate(&self, voter: Voter) -> Option<ActorCell> {
        self.peers.find(VOTERS, key_of(self.node(voter)?)).map(|(_, gate)| gate)
    }

    /// Sends a message, which may be lost.
    pub(super) fn send(&self, from: Voter, to: Voter, message: Message) {
        let Some(gate) = self.gate(to) else { return };
        let (electorate, node) = (self.digest, self.peers.own_key());
        let said = VoterCall::Say(Wire::new(Envelope { electorate, from, node, message }));
        drop(ActorRef::<VoterCall>::from(gate).cast(said));
    }

    /// Asks a voter once.
    pub(super) async fn ask(&self, voter: Voter, request: VoterRequest) -> Result<VoterReply, String> {
        let gate = self.gate(voter).ok_or_else(|| "its node is not there".to_owned())?;
        self.peers.ask_voter(&gate.into(), request, STANDING).await
    }
}
