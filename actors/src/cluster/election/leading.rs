//! The side of a voter that wants to lead, and leads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Book, Election, Message, Output, Resignation, Role, Version, Voter};
use crate::cluster::term::Term;

/// A question whether voters would promise.
#[derive(Debug)]
pub(super) struct Poll {
    round: u64,
    /// When it ends at the latest.
    until: Duration,
    /// How long each voter that has answered is bound still, this one too.
    left: BTreeMap<Voter, Duration>,
}

/// How far a voter that has promised to itself is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A majority's promises are to come.
    Campaign,
    /// The latest copy of the intents is to be written by a majority.
    Confirm,
    /// It leads; a majority has this version of the intents.
    Lead(Version),
}

/// A term of this voter.
#[derive(Debug)]
pub(super) struct Reign {
    pub(super) term: Term,
    stage: Stage,
    /// When it is given up, unless it leads by then.
    pub(super) until: Duration,
    peers: BTreeMap<Voter, Peer>,
    /// The latest copy of the intents that came with a promise.
    latest: Book,
    promised: BTreeSet<Voter>,
    refused: BTreeSet<Voter>,
}

/// Another voter, as one that wants to lead sees it.
#[derive(Debug, Default)]
struct Peer {
    /// Questions that it has not answered, and when each was sent.
    asked: BTreeMap<u64, Duration>,
    /// When the latest question that it has granted was sent.
    granted: Option<Duration>,
    ask_at: Duration,
    /// The latest copy that it has on disk, and the latest that it was sent.
    stored: Version,
    sent: Version,
    copy_at: Duration,
}

impl Reign {
    pub(super) fn is_leading(&self) -> bool {
        matches!(self.stage, Stage::Lead(_))
    }
}

impl Election {
    /// Until when a majority is bound to this voter, as counted by the one that leads.
    pub(super) fn lease_until(&self, reign: &Reign) -> Option<Duration> {
        if self.writes.promise > self.writes.durable {
            return None;
        }
        let lease = self.settings.lease - self.settings.margin();
        // This voter is bound to itself as long as it reigns.
        let Some(last) = self.settings.majority().checked_sub(2) else { return Some(self.now + lease) };
        let mut granted: Vec<Duration> = reign.peers.values().filter_map(|peer| peer.granted).collect();
        granted.sort_unstable_by(|one, other| other.cmp(one));
        granted.get(last).map(|sent| *sent + lease)
    }

    /// Does what is due.
    pub(super) fn proceed(&mut self) {
        match &self.role {
            Role::Follower if self.candidacy_at <= self.now => self.start_poll(),
            Role::Polling(poll) if poll.until <= self.now => self.end_poll(),
            Role::Follower | Role::Polling(_) => {}
            Role::Reigning(reign) if !reign.is_leading() && reign.until <= self.now => self.abandon(),
            Role::Reigning(_) => {
                self.advance_stage();
                self.ask_and_copy();
            }
        }
    }

    /// Polls without pausing for two leases: it was asked to lead.
    pub(super) fn be_eager(&mut self) {
        self.eager_until = self.now + 2 * self.settings.lease;
        if let Role::Follower = self.role {
            self.candidacy_at = self.now;
        }
    }

    fn start_poll(&mut self) {
        let (round, own) = (self.next_round(), self.bound(self.node));
        let left = BTreeMap::from([(self.own, own)]);
        self.role = Role::Polling(Poll { round, until: self.now + self.settings.retry(), left });
        let node = self.node;
        self.send_all(&Message::Poll { round, node });
        self.count_poll();
    }

    pub(super) fn would(&mut self, from: Voter, round: u64, left: Duration, highest: Term) {
        self.seen = self.seen.max(highest);
        if let Role::Polling(poll) = &mut self.role
            && poll.round == round
        {
            poll.left.insert(from, left);
            self.count_poll();
        }
    }

    /// Goes on once a majority is free, this voter among them; ends once all have answered.
    fn count_poll(&mut self) {
        let Role::Polling(poll) = &self.role else { return };
        let free = poll.left.values().filter(|left| left.is_zero()).count();
        if free >= self.settings.majority() && poll.left[&self.own].is_zero() {
            self.begin();
        } else if poll.left.len() == usize::from(self.settings.voters) {
            self.end_poll();
        }
    }

    /// Nobody leads, or a majority is bound to who does: asks again when a majority may be free.
    fn end_poll(&mut self) {
        let Role::Polling(poll) = std::mem::replace(&mut self.role, Role::Follower) else { return };
        let own = poll.left[&self.own];
        let mut left: Vec<Duration> = poll.left.into_values().collect();
        left.sort_unstable();
        let (now, settings) = (self.now, self.settings);
        let pause = match self.eager_until > now {
            true => settings.retry() / 2,
            false => settings.renewal() / 2 + self.pause(settings.stagger()),
        };
        self.candidacy_at = match left.get(settings.majority() - 1) {
            // It was told until when: it comes back then, or earlier if it is in a hurry, since who is bound may be released.
            Some(wait) if self.eager_until <= now => {
                now + (*wait).max(own).min(settings.lease)
                    + self.pause(settings.stagger()).max(settings.retry())
            }
            _ => now + pause,
        };
    }

    /// Takes a term of its own, above all that it has heard of.
    fn begin(&mut self) {
        let term = self.seen.max(self.ballot.promised).next(self.node);
        self.seen = term;
        let peers = self.others().map(|voter| (voter, Peer::default())).collect();
        self.role = Role::Reigning(Reign {
            term,
            stage: Stage::Campaign,
            until: self.now + self.settings.lease / 2,
            peers,
            latest: self.ballot.book.clone(),
            promised: BTreeSet::new(),
            refused: BTreeSet::new(),
        });
        (self.grant, self.quiet) = (None, None);
        self.promise(term);
    }

    pub(super) fn granted(&mut self, from: Voter, round: u64, term: Term, book: Option<Book>) {
        let oldest = self.now.saturating_sub(self.settings.lease);
        let Role::Reigning(reign) = &mut self.role else { return };
        let Some(peer) = reign.peers.get_mut(&from).filter(|_| reign.term == term) else { return };
        let Some(sent) = peer.asked.remove(&round) else { return };
        if reign.stage == Stage::Campaign {
            // Without its copy the promise is of no use yet.
            let Some(book) = book else { return };
            reign.promised.insert(from);
            if book.version > reign.latest.version {
                reign.latest = book;
            }
        }
        peer.granted = peer.granted.max(Some(sent));
        peer.asked.retain(|_, at| *at > oldest);
        peer.ask_at = sent + self.settings.renewal();
        self.proceed();
    }

    pub(super) fn refused(&mut self, from: Voter, term: Term, promised: Term) {
        self.seen = self.seen.max(promised);
        let needless = usize::from(self.settings.voters) - self.settings.majority();
        let Role::Reigning(reign) = &mut self.role else { return };
        if reign.term != term {
            return;
        }
        reign.refused.insert(from);
        if promised > term {
            // It can never promise to this term again.
            self.outranked(promised);
        } else if reign.stage == Stage::Campaign && reign.refused.len() > needless {
            self.abandon();
        }
    }

    pub(super) fn stored(&mut self, from: Voter, version: Version) {
        let Role::Reigning(reign) = &mut self.role else { return };
        if version.term == reign.term
            && let Some(peer) = reign.peers.get_mut(&from)
        {
            peer.stored = peer.stored.max(version);
            self.proceed();
        }
    }

    /// A later term was seen: one that reigns in an earlier one gives it up.
    pub(super) fn outranked(&mut self, term: Term) {
        self.seen = self.seen.max(term);
        match &self.role {
            Role::Reigning(reign) if reign.term < term && reign.is_leading() => {
                self.resign(Resignation::Outranked { by: term });
            }
            Role::Reigning(reign) if reign.term < term => self.abandon(),
            _ => {}
        }
    }

    /// Goes from stage to stage as far as it can.
    fn advance_stage(&mut self) {
        let (majority, durable) = (self.settings.majority(), self.writes.durable);
        let Role::Reigning(reign) = &mut self.role else { return };
        let is_promised = self.writes.promise <= durable && reign.promised.len() + 1 >= majority;
        if reign.stage == Stage::Campaign && is_promised {
            reign.stage = Stage::Confirm;
            let version = Version { term: reign.term, sequence: 1 };
            let book = Book { version, intents: std::mem::take(&mut reign.latest.intents) };
            self.write_book(book);
        }
        let version = self.ballot.book.version;
        let Role::Reigning(reign) = &self.role else { return };
        let kept = self.kept(reign);
        let is_bound = self.lease_until(reign).is_some_and(|until| self.now < until);
        let (term, stage) = (reign.term, reign.stage);
        match stage {
            Stage::Confirm if kept == Some(version) && is_bound => {
                self.set_stage(Stage::Lead(version));
                self.eager_until = self.now;
                let intents = self.ballot.book.intents.clone();
                self.outputs.push_back(Output::Elected { term, intents });
            }
            Stage::Lead(before) if kept.is_some_and(|kept| kept > before) => {
                let version = kept.unwrap_or(before);
                self.set_stage(Stage::Lead(version));
                self.outputs.push_back(Output::Kept { version });
            }
            _ => {}
        }
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Role::Reigning(reign) = &mut self.role {
            reign.stage = stage;
        }
    }

    /// The latest version of this term that a majority has on disk.
    fn kept(&self, reign: &Reign) -> Option<Version> {
        let own = (self.writes.book <= self.writes.durable).then_some(self.ballot.book.version);
        let stored = reign.peers.values().map(|peer| peer.stored).chain(own);
        let mut stored: Vec<Version> = stored.filter(|version| version.term == reign.term).collect();
        stored.sort_unstable_by(|one, other| other.cmp(one));
        stored.get(self.settings.majority() - 1).copied()
    }

    /// Sends the questions and the copies that are due.
    fn ask_and_copy(&mut self) {
        let (now, settings) = (self.now, self.settings);
        if self.writes.promise > self.writes.durable {
            return;
        }
        let (book, mut rounds) = (self.ballot.book.clone(), self.rounds);
        let Role::Reigning(reign) = &mut self.role else { return };
        let (term, wants_book) = (reign.term, reign.stage == Stage::Campaign);
        for (&to, peer) in &mut reign.peers {
            if peer.ask_at <= now {
                rounds += 1;
                // A grant of what was asked longer ago counts for nothing, and one that is down answers nothing.
                peer.asked.retain(|_, at| *at + settings.lease > now);
                peer.asked.insert(rounds, now);
                peer.ask_at = now + settings.retry();
                let message = Message::Ask { round: rounds, term, wants_book };
                self.outputs.push_back(Output::Send { to, message });
            }
            let is_due = peer.copy_at <= now || peer.sent < book.version;
            if !wants_book && peer.stored < book.version && is_due {
                (peer.sent, peer.copy_at) = (book.version, now + settings.retry());
                let message = Message::Replicate { book: book.clone() };
                self.outputs.push_back(Output::Send { to, message });
            }
        }
        self.rounds = rounds;
    }

    /// Questions to each other voter that wait for an answer; the most of one.
    #[cfg(test)]
    pub(super) fn open_questions(&self) -> usize {
        let Role::Reigning(reign) = &self.role else { return 0 };
        reign.peers.values().map(|peer| peer.asked.len()).max().unwrap_or(0)
    }

    /// Gives up a term in which it does not lead.
    pub(super) fn abandon(&mut self) {
        if let Role::Reigning(reign) = &self.role {
            let (term, heir) = (reign.term, None);
            self.role = Role::Follower;
            self.candidacy_at = self.now + self.settings.retry() + self.pause(self.settings.stagger());
            self.send_all(&Message::Release { term, heir });
        }
    }

    /// Gives up a term in which it leads.
    pub(super) fn resign(&mut self, why: Resignation) {
        let Role::Reigning(reign) = &self.role else { return };
        let term = reign.term;
        self.role = Role::Follower;
        let pause = self.pause(self.settings.stagger());
        let (after, heir) = match why {
            Resignation::LeaseRanOut => (pause, None),
            Resignation::Outranked { .. } => (Duration::ZERO, Some(self.own)),
            Resignation::HandedOver { to } => (self.settings.lease / 2 + pause, Some(to)),
            Resignation::Ended => (self.settings.lease / 4 + pause, None),
        };
        self.candidacy_at = self.now + after;
        self.outputs.push_back(Output::Resigned { term, why });
        self.send_all(&Message::Release { term, heir });
    }
}
