//! What the owner of a session sends to whom, when what it has counts as copied, and who shall keep copies. Its own node is
//! asked like any other, and before all others: what others have in its epoch is a beginning of what it has.

use std::collections::{BTreeMap, BTreeSet};

use super::head::{CopySet, Epoch, Head};
use super::keeper::KeeperReply;
use crate::cluster::messages::NodeKey;

/// Something to be sent: the head as it is, and the turns from `from` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// To whom.
    pub to: NodeKey,
    /// The first turn that it is not known to have.
    pub from: u64,
}

/// How far a session is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// An answer is to come that may change it.
    Waiting,
    /// A quorum has the head and all turns; every other member has them too, or did not answer.
    Settled,
    /// No quorum has them, and nobody is left to ask. What was written may or may not be found by a later owner.
    Short {
        /// Those that did not answer. If the owner's own node is among them, nobody else was asked.
        silent: Vec<NodeKey>,
    },
    /// Somebody else owns the session. Nothing that was not settled is acknowledged any more.
    Fenced(Epoch),
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    /// Version and turns that it has, at least.
    stored: Option<(u64, u64)>,
    /// Where its log is taken to end; it says so if it ends before.
    next: u64,
    /// Whether an answer is to come.
    is_asked: bool,
    /// Version and turns that it has once it has done what it was asked last.
    asked: (u64, u64),
    /// Whether it did not answer the last time; it is not waited for.
    is_silent: bool,
}

/// The owner of one session.
#[derive(Clone, Debug)]
pub struct Owner {
    me: NodeKey,
    head: Head,
    turns: u64,
    peers: BTreeMap<NodeKey, Peer>,
    fenced: Option<Epoch>,
}

impl Owner {
    /// Of the session whose head is `head`, with `turns` turns: those that its node has, or is asked to write next.
    ///
    /// # Panics
    /// If the head is another's.
    pub fn new(me: NodeKey, head: Head, turns: u64) -> Self {
        assert_eq!(head.epoch.owner, me, "only its owner appends to a session");
        let mut owner = Self { me, head, turns, peers: BTreeMap::new(), fenced: None };
        owner.meet();
        // Whoever lacks some says from where on; the whole log of a long session is more than goes at once.
        owner.peers.values_mut().for_each(|peer| peer.next = turns);
        owner
    }

    /// The head, to be sent.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Turns, those that are not settled counted.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// One more turn is to be written.
    pub fn append(&mut self) {
        self.turns += 1;
    }

    /// The session is to be removed; once more changes nothing.
    pub fn remove(&mut self) {
        if self.head.is_removed {
            return;
        }
        self.head = Head { is_removed: true, version: self.head.version + 1, ..self.head.clone() };
        self.turns = 0;
    }

    /// What to send now. Each is answered by [`replied`](Self::replied) or [`failed`](Self::failed).
    pub fn sends(&mut self) -> Vec<Send> {
        if self.fenced.is_some() {
            return Vec::new();
        }
        let is_written = self.has(self.me);
        let aim = (self.head.version, self.turns);
        let mut sends = Vec::new();
        for (&to, peer) in &mut self.peers {
            let is_next = to == self.me || is_written;
            if is_next && !peer.is_asked && !peer.is_silent && peer.stored.is_none_or(|has| has < aim) {
                peer.is_asked = true;
                // Who leaves is to have the head alone.
                peer.asked = (aim.0, if self.head.is_kept_by(to) { aim.1 } else { 0 });
                sends.push(Send { to, from: peer.next.min(self.turns) });
            }
        }
        sends
    }

    /// A node has answered.
    pub fn replied(&mut self, node: NodeKey, reply: &KeeperReply) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.is_asked = false;
        peer.is_silent = false;
        match reply {
            KeeperReply::Stored { epoch, version, turns } if *epoch == self.head.epoch => {
                peer.stored = peer.stored.max(Some((*version, *turns)));
                peer.next = *turns;
                // Asked the same again, it would answer the same again, without end.
                peer.is_silent = (*version, *turns) < peer.asked;
            }
            // It may have had more, and lost it.
            KeeperReply::Behind { from } => {
                peer.next = *from;
                peer.stored = None;
            }
            KeeperReply::Fenced(epoch) if *epoch > self.head.epoch => {
                self.fenced = self.fenced.max(Some(*epoch));
            }
            // Nothing that was asked.
            KeeperReply::Stored { .. } | KeeperReply::Promised(_) | KeeperReply::Fenced(_) => {
                peer.is_silent = true;
            }
        }
        self.part();
    }

    /// A node did not answer: it is not waited for, until [`retry`](Self::retry).
    pub fn failed(&mut self, node: NodeKey) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.is_asked = false;
            peer.is_silent = true;
        }
    }

    /// All are to say anew what they have, its own node too: so it is known whether the session still is this owner's before
    /// anything is told that rests on its log. Another may have taken it over while this node stood still.
    pub fn doubt(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.stored = None);
    }

    /// Nobody's answer is waited for any more, of those that were asked: whoever waited has given up.
    pub fn give_up(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.is_asked = false);
    }

    /// Asks the silent ones again.
    pub fn retry(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.is_silent = false);
    }

    /// How far it is.
    pub fn standing(&self) -> Standing {
        if let Some(epoch) = self.fenced {
            return Standing::Fenced(epoch);
        }
        let mut open: BTreeSet<NodeKey> = self.head.set.all().into_iter().chain([self.me]).collect();
        open.retain(|node| !self.has(*node));
        let is_written = self.has(self.me);
        let peer = |node: &NodeKey| self.peers.get(node).copied().unwrap_or_default();
        // The others are asked once it is written here.
        let may_answer = |node: &NodeKey| peer(node).is_asked || is_written || *node == self.me;
        if open.iter().any(|node| !peer(node).is_silent && may_answer(node)) {
            return Standing::Waiting;
        }
        if self.has_quorum() {
            return Standing::Settled;
        }
        Standing::Short { silent: open.into_iter().filter(|node| peer(node).is_silent).collect() }
    }

    /// Nodes that have all of it, and those that shall.
    pub fn copies(&self) -> (usize, usize) {
        let members = &self.head.set.members;
        (members.iter().filter(|node| self.has(**node)).count(), members.len())
    }

    /// Starts the next change of the set, if one is due: the change under way is over once a quorum knows of it; and `live`,
    /// best first, may ask for `copies` others than are members, of which those that are live stay. Tells whether there is
    /// something to send.
    pub fn change(&mut self, live: &[NodeKey], copies: usize) -> bool {
        if self.fenced.is_some() || self.head.is_removed || !self.has_quorum() {
            return false;
        }
        let CopySet { members, before } = &self.head.set;
        let wanted = if before.is_empty() { self.wanted(live, copies) } else { members.clone() };
        if before.is_empty() && wanted == *members {
            return false;
        }
        let before = if before.is_empty() { members.clone() } else { Vec::new() };
        self.head.set = CopySet { members: wanted, before };
        self.head.version += 1;
        self.meet();
        true
    }

    fn wanted(&self, live: &[NodeKey], copies: usize) -> Vec<NodeKey> {
        let others = |nodes: &[NodeKey]| -> Vec<NodeKey> {
            nodes.iter().copied().filter(|node| *node != self.me && live.contains(node)).collect()
        };
        let mut wanted = vec![self.me];
        for node in others(&self.head.set.members).into_iter().chain(others(live)) {
            if wanted.len() <= copies && !wanted.contains(&node) {
                wanted.push(node);
            }
        }
        wanted
    }

    fn has_quorum(&self) -> bool {
        self.has(self.me) && self.head.set.has_quorum(|node| self.has(node))
    }

    fn has(&self, node: NodeKey) -> bool {
        let aim = (self.head.version, self.turns);
        self.peers
            .get(&node)
            .is_some_and(|peer| peer.stored.is_some_and(|has| has.0 >= aim.0 && has.1 >= aim.1))
    }

    /// Those that count have a place.
    fn meet(&mut self) {
        for node in self.head.set.all().into_iter().chain([self.me]) {
            self.peers.entry(node).or_default();
        }
    }

    /// Those that have left and know it are forgotten.
    fn part(&mut self) {
        let (members, version, me) = (self.head.set.all(), self.head.version, self.me);
        self.peers.retain(|node, peer| {
            let knows = peer.stored.is_some_and(|has| has.0 >= version);
            *node == me || members.contains(node) || !knows
        });
    }
}
