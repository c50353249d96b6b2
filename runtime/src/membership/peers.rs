//! The table of members: what is known of each, and the digest by which two tables are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::identity::{MemberIdentity, NodeId};
use super::record::{NodeRecord, NodeState};

/// Whether a member answers, as far as is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// It does, or nobody has said otherwise.
    Alive,
    /// It did not answer and may still say that it is alive.
    Suspect,
    /// It did not, and is taken for dead.
    Down,
    /// It has left by its own will.
    Left,
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node in the latest life that has been heard of.
    pub identity: MemberIdentity,
    /// Whether it answers.
    pub liveness: Liveness,
    /// What it says of itself.
    pub record: NodeRecord,
    /// When [`Self::liveness`] last changed, in the time of [`super::Membership`].
    pub since: Duration,
}

/// What is known of a node; a member once it has both an identity and a record.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) identity: Option<MemberIdentity>,
    pub(super) record: Option<NodeRecord>,
    pub(super) liveness: Liveness,
    pub(super) since: Duration,
    /// Whether the caller has been told of it in its present life.
    pub(super) announced: bool,
    /// Whether the caller has ever been told of it.
    pub(super) known_before: bool,
}

impl Peer {
    pub(super) fn is_up(&self) -> bool {
        self.identity.is_some() && matches!(self.liveness, Liveness::Alive | Liveness::Suspect)
    }

    fn member(&self) -> Option<Member> {
        let (identity, record) = (self.identity?, self.record.clone()?);
        Some(Member { identity, liveness: self.liveness, record, since: self.since })
    }
}

/// All nodes that have been heard of but this one, and those that were removed.
#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: BTreeMap<NodeId, Peer>,
    removed: BTreeSet<NodeId>,
}

impl Peers {
    pub(super) fn get(&self, node: &NodeId) -> Option<&Peer> {
        self.peers.get(node)
    }

    pub(super) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Peer> {
        self.peers.get_mut(node)
    }

    /// The entry of `node`, made if there is none.
    pub(super) fn entry(&mut self, node: NodeId, now: Duration) -> &mut Peer {
        self.peers.entry(node).or_insert_with(|| Peer {
            identity: None,
            record: None,
            liveness: Liveness::Down,
            since: now,
            announced: false,
            known_before: false,
        })
    }

    pub(super) fn remove(&mut self, node: NodeId) -> bool {
        self.peers.remove(&node);
        self.removed.insert(node)
    }

    pub(super) fn is_removed(&self, node: &NodeId) -> bool {
        self.removed.contains(node)
    }

    pub(super) fn removed(&self) -> impl Iterator<Item = NodeId> {
        self.removed.iter().copied()
    }

    /// How many nodes there are, with those that are down or removed.
    pub(super) fn len(&self) -> usize {
        self.peers.len() + self.removed.len()
    }

    pub(super) fn up(&self) -> impl Iterator<Item = (&NodeId, &Peer)> {
        self.peers.iter().filter(|(_, peer)| peer.is_up())
    }

    /// Those that have come to be held for dead since `since`, at most `limit` of them, the latest first.
    pub(super) fn dead_since(&self, since: Duration, limit: usize) -> Vec<MemberIdentity> {
        let lately =
            self.peers.values().filter(|peer| peer.liveness == Liveness::Down && peer.since >= since);
        let mut dead: Vec<_> = lately.filter_map(|peer| Some((peer.since, peer.identity?))).collect();
        dead.sort_unstable_by(|one, other| other.cmp(one));
        dead.into_iter().take(limit).map(|(_, identity)| identity).collect()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = Member> {
        self.peers.values().filter_map(Peer::member)
    }

    pub(super) fn member(&self, node: &NodeId) -> Option<Member> {
        self.peers.get(node)?.member()
    }

    /// Forgets those that have been down, or without an identity, for longer than `after`.
    pub(super) fn forget(&mut self, now: Duration, after: Duration, unheard: Duration) -> Vec<NodeId> {
        let old = |peer: &Peer| {
            let limit = if peer.identity.is_some() { after } else { unheard };
            !peer.is_up() && now.saturating_sub(peer.since) > limit
        };
        let forgotten: Vec<_> =
            self.peers.iter().filter(|(_, peer)| old(peer)).map(|(node, _)| *node).collect();
        for node in &forgotten {
            self.peers.remove(node);
        }
        forgotten
    }

    /// Who holds `name`, alive and not `except`.
    pub(super) fn holder_of(&self, name: &str, except: &NodeId) -> Option<NodeId> {
        let named = |peer: &Peer| {
            peer.record.as_ref().is_some_and(|record| record.name == name && record.state != NodeState::Left)
        };
        self.up().find(|(node, peer)| *node != except && named(peer)).map(|(node, _)| *node)
    }

    /// A digest of who is alive, in which life, with which record, and of who was removed. Two nodes that agree on all of it
    /// have the same, whichever of them is `me`.
    pub(super) fn digest(&self, me: &MemberIdentity, record: &NodeRecord) -> [u8; 32] {
        let mut lines: Vec<_> = self
            .up()
            .filter_map(|(_, peer)| Some((peer.identity?, peer.record.as_ref().map(NodeRecord::age))))
            .collect();
        lines.push((*me, Some(record.age())));
        lines.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for (identity, age) in lines {
            hasher.update(identity.node.as_bytes());
            let (boot, version) = age.unwrap_or_default();
            for number in [identity.generation.boot, identity.generation.renewal, boot, version] {
                hasher.update(&number.to_le_bytes());
            }
        }
        hasher.update(b"removed");
        for node in &self.removed {
            hasher.update(node.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}
