//! What is made of records, removals and rosters that arrive: which are newer, which are believed, what follows. Nothing
//! here depends on the order in which they arrive.

use std::collections::BTreeSet;
use std::time::Duration;

use foca::{Member as SwimMember, State};
use rand::seq::SliceRandom;

use super::identity::{Generation, MemberIdentity, NodeId};
use super::io::{Event, InputError, Output};
use super::judge::Clash;
use super::machine::{Membership, Timer};
use super::peers::{Liveness, Peer};
use super::record::{NodeRecord, NodeState};
use super::wire::{
    MAX_CLAIMED, MAX_ROSTER_BYTES, MAX_WANTED, Message, News, RefusalReason, Roster, RosterEntry,
};

/// Deaths that others are told of in a roster: those of the last minutes, for who missed the news when it was new.
const LATELY: Duration = Duration::from_secs(600);
/// See [`LATELY`].
const MAX_DEAD: usize = 256;
/// For how long a node must have been a member for its word to raise doubts about others. When a cut heals, each side holds
/// the other for dead; that is not news.
const SETTLED: Duration = Duration::from_secs(60);
/// How many members that we hold for dead and another for alive are spoken to at once.
const REVIVED_AT_ONCE: usize = 16;

impl Membership {
    pub(super) fn hear_news(&mut self, from: NodeId, news: Vec<News>) {
        let mut removed = Vec::new();
        for piece in news {
            match piece {
                News::Record(record) => self.learn(record),
                News::Removed(node) => removed.push(node),
            }
        }
        self.hear_removals(from, removed);
    }

    /// A member could say of anyone that it was removed: it is believed nothing, and nothing is kept of it.
    fn hear_removals(&mut self, by: NodeId, mut removed: Vec<NodeId>) {
        removed.truncate(MAX_CLAIMED);
        removed.retain(|node| !self.peers.is_removed(node));
        if !removed.is_empty() {
            self.outputs.push_back(Output::Claimed { by, removed });
        }
    }

    /// Takes a record if it is later than what is known, and passes it on.
    fn learn(&mut self, record: NodeRecord) {
        let node = record.node;
        if node == self.me.node || self.peers.is_removed(&node) {
            return;
        }
        if let Err(error) = record.check_received() {
            tracing::debug!(?node, %error, "a record that breaks the bounds");
            return;
        }
        if self.peers.get(&node).is_none() && self.peers.len() >= self.options.max_members {
            tracing::debug!(?node, "no room for another node");
            return;
        }
        let now = self.timers.now();
        let peer = self.peers.entry(node, now);
        if peer.record.as_ref().is_some_and(|known| known.age() >= record.age()) {
            return;
        }
        let renamed = peer.record.as_ref().is_none_or(|known| known.name != record.name);
        let leaves = record.state == NodeState::Left;
        let identity = peer.identity.filter(|identity| identity.generation.boot == record.boot);
        peer.record = Some(record.clone());
        let announced = peer.announced;
        self.spread(News::Record(record));
        if leaves && let Some(identity) = identity {
            self.declare_down(identity);
        } else if announced {
            self.event(Event::Changed(node));
            if renamed {
                self.check_names(node);
            }
        } else {
            self.announce(node);
        }
    }

    /// Removes a node for good, of which there is proof, if it is not yet; and passes it on.
    pub(super) fn learn_removal(&mut self, node: NodeId) {
        if node == self.me.node {
            self.event(Event::Refused { by: node, reason: RefusalReason::Removed });
            return;
        }
        if self.peers.is_removed(&node) {
            return;
        }
        let identity = self.peers.get(&node).filter(|peer| peer.is_up()).and_then(|peer| peer.identity);
        self.peers.remove(node);
        self.event(Event::Removed(node));
        self.refuse(node, RefusalReason::Removed);
        if let Some(identity) = identity {
            self.declare_down(identity);
        }
        self.spread(News::Removed(node));
    }

    /// Makes SWIM hold this life of a node for dead without telling others: each hears why for itself.
    pub(super) fn declare_down(&mut self, identity: MemberIdentity) {
        self.drive(|swim, effects| {
            let down = SwimMember::new(identity, 0, State::Down);
            if let Err(error) = swim.apply_many(std::iter::once(down), false, effects) {
                tracing::debug!(%error, "a member could not be declared down");
            }
        });
    }

    /// Tells `to` of the nodes it asked for.
    pub(super) fn tell(&mut self, to: NodeId, nodes: &[NodeId]) {
        let news = nodes.iter().filter_map(|node| {
            if *node == self.me.node {
                return Some(News::Record(self.me.clone()));
            }
            if self.peers.is_removed(node) {
                return Some(News::Removed(*node));
            }
            self.peers.get(node)?.record.clone().map(News::Record)
        });
        let news = news.collect();
        self.send_news(to, news);
    }

    /// Asks `from`, who has just spoken to us, for the records of members that we do not know how to reach: it has told us of
    /// them, or may know them.
    pub(super) fn want_records(&mut self, from: NodeId) {
        let lacking = self.peers.up().filter(|(_, peer)| peer.record.is_none());
        let nodes: Vec<_> = lacking.map(|(node, _)| *node).take(MAX_WANTED).collect();
        if !nodes.is_empty() {
            self.outputs.push_back(Output::Datagram { to: from, bytes: Message::Want(nodes).frame() });
        }
    }

    /// Sends our roster, if not too many have been sent lately.
    pub(super) fn send_roster(&mut self, to: NodeId, wants_reply: bool) {
        let Some(left) = self.rosters_left.checked_sub(1) else {
            tracing::debug!(?to, "no roster sent: too many lately");
            return;
        };
        self.rosters_left = left;
        let mut members =
            vec![RosterEntry { identity: self.identity(), incarnation: 0, record: Some(self.me.clone()) }];
        for member in self.swim.iter_members() {
            let record = self.peers.get(&member.id().node).and_then(|peer| peer.record.clone());
            members.push(RosterEntry { identity: *member.id(), incarnation: member.incarnation(), record });
        }
        members.sort_by_key(|entry| entry.identity.node);
        let you = self
            .peers
            .get(&to)
            .and_then(|peer| peer.identity)
            .map_or(Generation::default(), |it| it.generation);
        let dead = self.peers.dead_since(self.timers.now().saturating_sub(LATELY), MAX_DEAD);
        let roster = Roster { wants_reply, you, members, dead, removed: self.peers.removed().collect() };
        let bytes = Message::Roster(Box::new(roster)).frame();
        if bytes.len() > MAX_ROSTER_BYTES {
            tracing::error!(bytes = bytes.len(), "the roster is too long to be sent");
            return;
        }
        self.outputs.push_back(Output::Roster { to, bytes });
    }

    pub(super) fn hear_roster(&mut self, from: NodeId, roster: Roster) -> Result<(), InputError> {
        let Some(sender) = roster.members.iter().find(|entry| entry.identity.node == from) else {
            return Err(InputError::Sender { claimed: from });
        };
        let theirs: BTreeSet<_> = roster.removed.iter().copied().collect();
        if self.peers.removed().any(|node| !theirs.contains(&node)) {
            self.outputs.push_back(Output::Prove { to: from });
        }
        self.hear_removals(from, theirs.into_iter().collect());
        if let Some(reason) = self.refusal(from, sender) {
            self.refuse(from, reason);
            return Ok(());
        }
        self.outlive(roster.you);
        self.merge(roster.members);
        self.doubt(from, &roster.dead);
        if roster.wants_reply {
            self.send_roster(from, false);
        }
        Ok(())
    }

    /// Why a node that shows up may not take part. Whoever is a member already is not asked again.
    fn refusal(&self, from: NodeId, sender: &RosterEntry) -> Option<RefusalReason> {
        if self.peers.get(&from).is_some_and(|peer| peer.is_up()) {
            return None;
        }
        let record = sender.record.as_ref()?;
        let holder = if record.name == self.me.name {
            Some(self.me.node)
        } else {
            self.peers.holder_of(&record.name, &from)
        };
        if let Some(by) = holder {
            return Some(RefusalReason::NameTaken { name: record.name.clone(), by });
        }
        let full = self.peers.get(&from).is_none() && self.peers.len() >= self.options.max_members;
        full.then_some(RefusalReason::Full)
    }

    /// Goes on in a life after `heard`, the latest of ours that others have heard of. Ours is behind when the counter of starts
    /// was lost; without this, everything that we say would be taken for the past.
    fn outlive(&mut self, heard: Generation) {
        let MemberIdentity { node, generation } = self.identity();
        let Some(boot) = heard.boot.checked_add(1).filter(|_| heard.boot > generation.boot) else { return };
        let generation = Generation { boot, renewal: 0 };
        self.me.boot = generation.boot;
        self.drive(|swim, effects| {
            if let Err(error) = swim.change_identity(MemberIdentity { node, generation }, effects) {
                tracing::error!(%error, "a later life could not be taken up");
            }
        });
        self.event(Event::Renewed(generation));
        self.spread(News::Record(self.me.clone()));
    }

    fn merge(&mut self, members: Vec<RosterEntry>) {
        let (mut alive, mut revived) = (Vec::new(), Vec::new());
        for RosterEntry { identity, incarnation, record } in members {
            let node = identity.node;
            if node == self.me.node || self.peers.is_removed(&node) {
                continue;
            }
            if self.peers.get(&node).is_none() && self.peers.len() + alive.len() >= self.options.max_members {
                continue;
            }
            if let Some(record) = record.filter(|record| record.node == node) {
                self.learn(record);
            }
            let held_dead = self
                .peers
                .get(&node)
                .is_some_and(|peer| peer.identity == Some(identity) && peer.liveness == Liveness::Down);
            if held_dead {
                revived.push(identity);
            } else {
                alive.push(SwimMember::new(identity, incarnation, State::Alive));
            }
        }
        self.drive(|swim, effects| {
            if let Err(error) = swim.apply_many(alive.into_iter(), true, effects) {
                tracing::debug!(%error, "a roster could not be taken whole");
            }
        });
        // One whom we hold for dead and another for alive: if it is, it answers, learns of its death and renews itself.
        revived.shuffle(&mut self.rng);
        for identity in revived.into_iter().take(REVIVED_AT_ONCE) {
            self.drive(|swim, effects| {
                if let Err(error) = swim.announce(identity, effects) {
                    tracing::debug!(%error, "a member that is down could not be spoken to");
                }
            });
        }
    }

    /// Suspects those that `from` holds for dead and we do not. Whoever misses the news of a death would otherwise notice only
    /// when it comes to probe the dead, which takes as many seconds as there are members. The living have the usual time to say
    /// that they are.
    fn doubt(&mut self, from: NodeId, dead: &[MemberIdentity]) {
        let now = self.timers.now();
        let settled = |peer: &Peer| peer.is_up() && now.saturating_sub(peer.since) > SETTLED;
        if !self.peers.get(&from).is_some_and(settled) {
            return;
        }
        let members = self.swim.iter_members();
        let doubted = members.filter(|member| member.state() == State::Alive && dead.contains(member.id()));
        let mut doubted: Vec<_> = doubted.map(|member| (*member.id(), member.incarnation())).collect();
        doubted.sort_unstable();
        for (identity, incarnation) in &doubted {
            self.timers.set(self.options.suspicion, Timer::Verdict(*identity, *incarnation));
        }
        let suspects = doubted
            .into_iter()
            .map(|(identity, incarnation)| SwimMember::new(identity, incarnation, State::Suspect));
        self.drive(|swim, effects| {
            if let Err(error) = swim.apply_many(suspects, true, effects) {
                tracing::debug!(%error, "members could not be suspected");
            }
        });
    }

    /// Declares a member dead that was doubted and has not said since that it is alive.
    pub(super) fn pass_verdict(&mut self, identity: MemberIdentity, incarnation: u16) {
        let accused = |member: &SwimMember<MemberIdentity>| {
            *member.id() == identity
                && member.incarnation() == incarnation
                && member.state() == State::Suspect
        };
        if !self.swim.iter_members().any(accused) {
            return;
        }
        self.drive(|swim, effects| {
            let down = SwimMember::new(identity, incarnation, State::Down);
            if let Err(error) = swim.apply_many(std::iter::once(down), true, effects) {
                tracing::debug!(%error, "a member could not be declared down");
            }
        });
    }

    /// Reports a name that `node` shares with another.
    pub(super) fn check_names(&mut self, node: NodeId) {
        let Some(name) =
            self.peers.get(&node).and_then(|peer| peer.record.as_ref()).map(|record| record.name.clone())
        else {
            return;
        };
        let other =
            if name == self.me.name { Some(self.me.node) } else { self.peers.holder_of(&name, &node) };
        if let Some(other) = other {
            let nodes = vec![node.min(other), node.max(other)];
            self.event(Event::NameClash(Clash { name, nodes }));
        }
    }
}
