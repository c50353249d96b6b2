//! Which of several voters supervises: a majority grants one of them a lease, each grant is on disk before it is given, and
//! who holds a majority's leases leads under a term above all before. Without IO, clock or chance: messages and the time
//! go in, and what is to be sent, written and done comes out of [`Election::poll_output`].
//!
//! 1. A voter that is bound to nobody *polls* the others. Only if a majority would promise does it go on, so that a minority
//!    raises no term and disturbs nobody.
//! 2. It takes a term above all that was heard of, promises to it on its own disk, and *asks* the others to. They answer once
//!    their promise is on disk, with their copies of the intents, and are bound to it for the time of a lease.
//! 3. It has the latest of these copies, under its term, written by a majority. Then it is *elected*.
//! 4. It asks again five times in a lease. Its lease counts from when it *sent* what a majority has granted, less a margin for
//!    clocks that run at different rates; a voter's counts from when it *got* it. So who leads stops before anyone can follow.
//!
//! Terms are those of Paxos ballots (Lamport, "Paxos Made Simple", 2001), step 3 is its second phase over one value, and the
//! leases are those of Gray and Cheriton (SOSP 1989). A voter that starts waits for one whole lease, since it does not know
//! when it last granted one, except for the node that it had promised to. Granting is in [`granting`], the rest in
//! [`leading`].

mod granting;
mod leading;
mod words;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use wincode::{SchemaRead, SchemaWrite};

pub use self::words::{Ballot, Book, Message, Output, Resignation, Version, Voter};

use self::leading::{Poll, Reign};
use super::intents::Intent;
use super::messages::NodeKey;
use super::term::Term;

/// Answers that may wait for the disk. What is beyond is dropped, and asked for again.
const MAX_WAITING: usize = 64;

/// Nodes that something may be wanted of: what a leader keeps is sent as a whole.
pub const MAX_INTENTS: usize = 4096;

/// How many voters there are, and how long a lease is. The same on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionSettings {
    /// Voters: an odd number.
    pub voters: u8,
    /// How long a voter is bound by what it has granted.
    pub lease: Duration,
}

impl ElectionSettings {
    /// Voters that must agree.
    pub fn majority(&self) -> usize {
        usize::from(self.voters) / 2 + 1
    }

    /// Time between two renewals of a lease.
    pub fn renewal(&self) -> Duration {
        self.lease / 5
    }

    /// What a leader's lease is shorter than its voters': clocks may differ by a tenth in their rates.
    pub fn margin(&self) -> Duration {
        self.lease / 10
    }

    /// After how long what was not answered is asked again.
    fn retry(&self) -> Duration {
        self.lease / 20
    }

    /// The longest that a voter waits beyond what it must, so that not all try at once.
    fn stagger(&self) -> Duration {
        self.lease / 5
    }
}

/// What is wanted was not proposed to the voters, and does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another voter may lead by now.
    #[error("this node does not supervise any more; ask again")]
    NotLeading,
    /// More than can be sent.
    #[error("something is wanted of {MAX_INTENTS} nodes already; remove or uncordon one of them")]
    TooMany,
}

/// What can be seen of a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Standing {
    /// The highest term that it has promised to.
    pub promised: Term,
    /// The term that it is bound to, and for how long still.
    pub granted: Option<(Term, Duration)>,
    /// The term in which it leads, and how long its lease lasts still.
    pub leads: Option<(Term, Duration)>,
    /// Its copy of the intents.
    pub book: Version,
}

/// A lease that this voter has granted.
#[derive(Clone, Copy, Debug)]
struct Grant {
    term: Term,
    until: Duration,
}

/// What a voter that has started does not know: whether it had granted a lease that still runs.
#[derive(Clone, Copy, Debug)]
struct Quiet {
    /// The node to which it was, if it was: the one promised to last.
    holder: Option<NodeKey>,
    until: Duration,
}

/// What of the ballot is on disk.
#[derive(Debug, Default)]
struct Writes {
    /// The last that was asked for.
    issued: u64,
    /// The last that is on disk, and all before.
    durable: u64,
    /// The first that has the promise as it stands, and the copy.
    promise: u64,
    book: u64,
    /// When a write that failed is tried again.
    retry_at: Option<Duration>,
    /// Answers and the write that each waits for.
    waiting: VecDeque<(u64, Voter, Message)>,
}

/// What a voter does beside granting.
#[derive(Debug)]
enum Role {
    Follower,
    Polling(Poll),
    Reigning(Reign),
}

/// A voter.
#[derive(Debug)]
pub struct Election {
    settings: ElectionSettings,
    own: Voter,
    node: NodeKey,
    /// The latest time that was passed in.
    now: Duration,
    chance: u64,
    ballot: Ballot,
    writes: Writes,
    grant: Option<Grant>,
    /// Until it grants something, or is told that nothing binds it.
    quiet: Option<Quiet>,
    /// The highest term that was heard of.
    seen: Term,
    role: Role,
    /// When it polls next.
    candidacy_at: Duration,
    /// Until when it polls without pausing: it was asked to lead.
    eager_until: Duration,
    rounds: u64,
    outputs: VecDeque<Output>,
}

impl Election {
    /// The voter `own` on `node`, which starts at `now` with what is on its disk and has heard of terms up to `seen`. The
    /// chance by which voters differ in their pauses comes from `chance`.
    ///
    /// # Panics
    /// The number of voters is even, or `own` is none of them.
    pub fn new(
        now: Duration,
        settings: ElectionSettings,
        (own, node): (Voter, NodeKey),
        ballot: Ballot,
        seen: Term,
        chance: u64,
    ) -> Self {
        assert!(settings.voters % 2 == 1 && own.0 < settings.voters, "{own} of {} voters", settings.voters);
        let holder = (ballot.promised != Term::NONE).then_some(ballot.promised.node);
        let until = now + settings.lease;
        // Of itself it knows that it does not lead.
        let is_free = holder == Some(node) || settings.voters == 1;
        let mut election = Self {
            settings,
            own,
            node,
            now,
            chance,
            seen: seen.max(ballot.promised),
            ballot,
            writes: Writes::default(),
            grant: None,
            quiet: (!is_free).then_some(Quiet { holder, until }),
            role: Role::Follower,
            candidacy_at: now,
            eager_until: now,
            rounds: 0,
            outputs: VecDeque::new(),
        };
        if !is_free {
            election.candidacy_at = until + election.pause(settings.stagger());
        }
        election
    }

    /// The next thing that was done; call until there is none, after every other call.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Time has passed. Call it at least ten times within [`ElectionSettings::renewal`].
    pub fn tick(&mut self, now: Duration) {
        self.advance(now);
        if self.writes.retry_at.is_some_and(|at| at <= self.now) {
            self.persist();
        }
        self.proceed();
    }

    /// A message has come from another voter.
    pub fn receive(&mut self, now: Duration, from: Voter, message: Message) {
        self.advance(now);
        if from == self.own || from.0 >= self.settings.voters {
            return;
        }
        match message {
            Message::Poll { round, node } => self.polled(from, round, node),
            Message::Would { round, left, highest } => self.would(from, round, left, highest),
            Message::Ask { round, term, wants_book } => self.asked(from, round, term, wants_book),
            Message::Granted { round, term, book } => self.granted(from, round, term, book),
            Message::Refused { term, promised } => self.refused(from, term, promised),
            Message::Replicate { book } => self.replicated(from, book),
            Message::Stored { version } => self.stored(from, version),
            Message::Release { term, heir } => self.released(term, heir),
            Message::Nudge => self.be_eager(),
        }
    }

    /// The ballot of a write, and so of all before it, is on disk.
    pub fn persisted(&mut self, now: Duration, number: u64) {
        self.advance(now);
        self.writes.durable = self.writes.durable.max(number);
        self.writes.retry_at = None;
        while self.writes.waiting.front().is_some_and(|(needed, ..)| *needed <= self.writes.durable) {
            let (_, to, message) = self.writes.waiting.pop_front().expect("it was just looked at");
            self.outputs.push_back(Output::Send { to, message });
        }
        self.proceed();
    }

    /// A write failed, and may be on disk or not. It is asked for again after a while.
    pub fn persist_failed(&mut self, now: Duration, number: u64) {
        self.advance(now);
        if number > self.writes.durable {
            self.writes.waiting.clear();
            self.writes.retry_at = Some(self.now + self.settings.retry());
        }
    }

    /// Somebody has seen a leader of this term. If this voter leads in an earlier one it resigns, and campaigns for a later.
    pub fn saw(&mut self, now: Duration, term: Term) {
        self.advance(now);
        self.outranked(term);
    }

    /// Lets another voter lead. `Err` if this voter does not lead.
    ///
    /// # Errors
    /// [`ProposeError::NotLeading`].
    pub fn hand_over(&mut self, now: Duration, to: Voter) -> Result<(), ProposeError> {
        self.advance(now);
        match self.leads().is_some() {
            false => Err(ProposeError::NotLeading),
            true if to == self.own => Ok(()),
            true => {
                self.resign(Resignation::HandedOver { to });
                self.outputs.push_back(Output::Send { to, message: Message::Nudge });
                Ok(())
            }
        }
    }

    /// Leads as soon as leases allow.
    pub fn campaign(&mut self, now: Duration) {
        self.advance(now);
        self.be_eager();
        self.proceed();
    }

    /// What this voter leads has ended by itself, or is about to: others need not wait for its lease to end.
    pub fn resign_ended(&mut self, now: Duration) {
        self.advance(now);
        match self.leads().is_some() {
            true => self.resign(Resignation::Ended),
            false => self.abandon(),
        }
    }

    /// Proposes that the intents be these. [`Output::Kept`] of this version, or a later one of the same term, tells that they
    /// are; after [`Output::Resigned`] it is not known.
    ///
    /// # Errors
    /// Nothing was proposed.
    pub fn propose(
        &mut self,
        now: Duration,
        intents: BTreeMap<NodeKey, Intent>,
    ) -> Result<Version, ProposeError> {
        self.advance(now);
        let (term, _) = self.leads().ok_or(ProposeError::NotLeading)?;
        if intents.len() > MAX_INTENTS {
            return Err(ProposeError::TooMany);
        }
        let version = Version { term, sequence: self.ballot.book.version.sequence + 1 };
        self.write_book(Book { version, intents });
        self.proceed();
        Ok(version)
    }

    /// The term in which this voter leads, and until when it may act in it: look before every act.
    pub fn leads(&self) -> Option<(Term, Duration)> {
        match &self.role {
            Role::Reigning(reign) if reign.is_leading() => {
                let until = self.lease_until(reign)?;
                (self.now < until).then_some((reign.term, until))
            }
            _ => None,
        }
    }

    /// What can be seen of it.
    pub fn standing(&self) -> Standing {
        let grant = self.grant.filter(|grant| grant.until > self.now);
        let leads = self.leads().map(|(term, until)| (term, until.saturating_sub(self.now)));
        Standing {
            promised: self.ballot.promised,
            granted: leads.or_else(|| grant.map(|grant| (grant.term, grant.until - self.now))),
            leads,
            book: self.ballot.book.version,
        }
    }

    /// What administrators want of nodes, as far as this voter knows.
    pub fn intents(&self) -> &BTreeMap<NodeKey, Intent> {
        &self.ballot.book.intents
    }

    /// Notes the time. Before anything else is done: who leads without a lease resigns.
    fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
        if let Role::Reigning(reign) = &self.role
            && reign.is_leading()
            && self.lease_until(reign).is_none_or(|until| until <= self.now)
        {
            self.resign(Resignation::LeaseRanOut);
        }
    }

    /// Has the ballot written as it stands. Returns the number of the write.
    fn persist(&mut self) -> u64 {
        let writes = &mut self.writes;
        writes.issued += 1;
        writes.retry_at = None;
        // What is not on disk yet is in this write too.
        for number in [&mut writes.promise, &mut writes.book] {
            if *number > writes.durable {
                *number = writes.issued;
            }
        }
        self.outputs.push_back(Output::Persist { number: writes.issued, ballot: self.ballot.clone() });
        writes.issued
    }

    /// Answers once the write `needed` is on disk.
    fn answer_after(&mut self, needed: u64, to: Voter, message: Message) {
        if needed <= self.writes.durable {
            self.outputs.push_back(Output::Send { to, message });
        } else if self.writes.waiting.len() < MAX_WAITING {
            self.writes.waiting.push_back((needed, to, message));
        }
    }

    fn send_all(&mut self, message: &Message) {
        for to in self.others() {
            self.outputs.push_back(Output::Send { to, message: message.clone() });
        }
    }

    fn others(&self) -> impl Iterator<Item = Voter> + use<> {
        let own = self.own;
        (0..self.settings.voters).map(Voter).filter(move |voter| *voter != own)
    }

    fn next_round(&mut self) -> u64 {
        self.rounds += 1;
        self.rounds
    }

    /// A pause below `bound`, by chance: splitmix64.
    fn pause(&mut self, bound: Duration) -> Duration {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.chance;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros((word ^ (word >> 31)) % bound)
    }
}
