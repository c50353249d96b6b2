//! The voters on the first nodes of a cluster: the real election, its ballots on the simulated disk and its words over the
//! simulated network, with a supervisor on whoever leads.

use std::collections::BTreeMap;
use std::time::Duration;

use stellate_actors::cluster::election::{
    Ballot, Election, ElectionSettings, Message as Word, Output, Resignation, Version, Voter,
};
use stellate_actors::cluster::intents::Intent;
use stellate_actors::cluster::mandate::Mandate;
use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::cluster::term::Term;

use crate::disk::Write;
use crate::message::{Message, Timer};
use crate::mutation::Mutation;
use crate::supervise::Supervising;
use crate::world::World;

/// For how long one is elected before it must be confirmed: as by default.
const LEASE: Duration = Duration::from_secs(10);

/// How often a voter looks at the time: ten times in a renewal, which is what it needs at least.
const TICK: Duration = Duration::from_millis(200);

/// How long a majority may take to write down what is wanted of a node.
const WRITING: Duration = Duration::from_secs(3);

/// A voter.
#[derive(Debug)]
pub(crate) struct Voting {
    election: Election,
    /// What the supervisor on this node acts by.
    mandate: Mandate,
    /// Ballots on their way to the disk: the number there, and the election's.
    writes: Vec<(u64, u64)>,
    /// What the supervisor that was elected holds to be wanted of nodes.
    intents: BTreeMap<NodeKey, Intent>,
    /// The latest question for its promise.
    asked: u64,
    /// The version that a wish waits for.
    proposed: Option<Version>,
}

impl World {
    /// Voters of the cluster; none if a node supervises by its settings.
    fn voters(&self) -> u8 {
        self.scenario.shape.voters
    }

    /// The voter of a node begins a life.
    pub(crate) fn start_voting(&mut self, number: u16) {
        if number >= u16::from(self.voters()) {
            return;
        }
        let settings = ElectionSettings { voters: self.voters(), lease: LEASE };
        let (chance, now, forgets) = (self.chance.word(), self.now, self.has(Mutation::ForgetBallot));
        let node = self.node_mut(number);
        let (kept, clock) = (node.disk.kept(), node.clock(now));
        let ballot = if forgets { Ballot::default() } else { kept.ballot.clone() };
        let own = (Voter(number as u8), node.key);
        let election = Election::new(clock, settings, own, ballot, kept.seen.max(kept.own), chance);
        let mandate = Mandate::elected();
        let (writes, intents) = (Vec::new(), BTreeMap::new());
        let voting = Voting { election, mandate, writes, intents, asked: 0, proposed: None };
        node.voting = Some(Box::new(voting));
        self.vote_due(number);
    }

    /// Time has passed for a voter.
    pub(crate) fn vote_due(&mut self, number: u16) {
        self.after(number, TICK, Timer::Vote);
        self.vote(number, Election::tick);
    }

    /// A voter has said something.
    pub(crate) fn vote_heard(&mut self, number: u16, from: u16, word: Word) {
        if let (Some(voting), Word::Ask { round, .. }) = (&mut self.node_mut(number).voting, &word) {
            voting.asked = *round;
        }
        self.vote(number, |election, now| election.receive(now, Voter(from as u8), word));
    }

    /// What is said in place of what should be, by a voter that is bound to nobody.
    fn unbound(&self, number: u16, word: Word) -> Word {
        let Some(voting) = self.node(number).voting.as_ref().filter(|_| self.has(Mutation::GrantTwo)) else {
            return word;
        };
        match word {
            Word::Would { round, highest, .. } => Word::Would { round, left: Duration::ZERO, highest },
            Word::Refused { term, .. } => {
                let book = self.node(number).disk.kept().ballot.book.clone();
                Word::Granted { round: voting.asked, term, book: Some(book) }
            }
            word => word,
        }
    }

    /// A ballot may be on the disk now.
    pub(crate) fn vote_kept(&mut self, number: u16, write: u64) {
        let Some(voting) = &mut self.node_mut(number).voting else { return };
        let kept: Vec<_> = voting.writes.extract_if(.., |(at, _)| *at <= write).collect();
        for (_, ballot) in kept {
            self.vote(number, |election, now| election.persisted(now, ballot));
        }
    }

    /// An administrator asks a voter to lead.
    pub(crate) fn take_the_lead(&mut self, number: u16) {
        if number >= u16::from(self.voters()) {
            return;
        }
        let heir = Voter(number as u8);
        let leader = (0..self.nodes.len() as u16).find(|&other| self.leads(other).is_some());
        match leader.filter(|&leader| self.node(leader).paused_at.is_none()) {
            Some(leader) => self.vote(leader, |election, now| {
                let _ = election.hand_over(now, heir);
            }),
            None if self.node(number).is_up && self.node(number).paused_at.is_none() => {
                self.vote(number, Election::campaign);
            }
            None => {}
        }
    }

    /// Does something to a voter, at the time of its clock, and what it wants done.
    fn vote(&mut self, number: u16, act: impl FnOnce(&mut Election, Duration)) {
        let now = self.now;
        let node = self.node_mut(number);
        let clock = node.clock(now);
        let Some(voting) = &mut node.voting else { return };
        act(&mut voting.election, clock);
        // Before anybody is told that this voter is bound no more.
        voting.mandate.renew(voting.election.leads());
        self.look_at_leases();
        while let Some(output) = self.node_mut(number).voting.as_mut().and_then(|v| v.election.poll_output())
        {
            match output {
                Output::Persist { number: ballot, ballot: kept } => self.keep_ballot(number, ballot, kept),
                Output::Send { to, message } => {
                    let word = self.unbound(number, message);
                    self.send(number, u16::from(to.0), Message::Vote(word));
                }
                Output::Elected { term, intents } => self.lead(number, term, intents),
                Output::Kept { version } => self.voters_kept(number, version),
                Output::Resigned { term, why } => self.follow(number, term, why),
            }
        }
    }

    fn keep_ballot(&mut self, number: u16, ballot: u64, kept: Ballot) {
        let is_hasty = self.has(Mutation::PromiseUnsynced);
        let written = match is_hasty {
            true => self.write_unsynced(number, Write::Ballot(kept)),
            false => self.write(number, Write::Ballot(kept)),
        };
        match written {
            Some(write) => {
                if let Some(voting) = &mut self.node_mut(number).voting {
                    voting.writes.push((write, ballot));
                }
            }
            None => {
                let (now, node) = (self.now, self.node_mut(number));
                let clock = node.clock(now);
                if let Some(voting) = &mut node.voting {
                    voting.election.persist_failed(clock, ballot);
                }
            }
        }
    }

    /// A voter was elected: a supervisor starts on its node.
    fn lead(&mut self, number: u16, term: Term, intents: BTreeMap<NodeKey, Intent>) {
        self.checks.elected(term);
        self.trace.note(self.now, number, &[300, term.counter], || format!("elected for term {term}"));
        let Some(voting) = &mut self.node_mut(number).voting else { return };
        (voting.intents, voting.proposed) = (intents.clone(), None);
        let mandate = voting.mandate.clone();
        self.run_supervisor(number, term, mandate, intents);
    }

    /// A voter does not lead any more: its supervisor ends.
    fn follow(&mut self, number: u16, term: Term, why: Resignation) {
        self.trace.note(self.now, number, &[301, term.counter], || format!("term {term} ends: {why}"));
        self.node_mut(number).supervising = Supervising::Not;
    }

    /// The supervisor that was elected has ended by itself: nodes follow one of `highest`.
    pub(crate) fn elected_ended(&mut self, number: u16, term: Term, highest: Term) {
        let ignores = self.has(Mutation::IgnoreHigherTerm);
        self.vote(number, |election, now| match election.leads() {
            Some((leads, _)) if leads == term && highest > term && !ignores => election.saw(now, highest),
            Some((leads, _)) if leads == term && !ignores => election.resign_ended(now),
            _ => {}
        });
    }

    /// Has a majority of voters write down what is wanted of a node. False if it is not even proposed.
    pub(crate) fn propose(&mut self, number: u16, (node, intent): (NodeKey, Option<Intent>)) -> bool {
        let now = self.now;
        let waits = !self.has(Mutation::KeepAlone);
        let at = self.node(number).clock(now);
        let Some(voting) = &mut self.node_mut(number).voting else { return false };
        let mut intents = voting.intents.clone();
        match intent {
            Some(intent) => drop(intents.insert(node, intent)),
            None => drop(intents.remove(&node)),
        }
        let Ok(version) = voting.election.propose(at, intents) else { return false };
        voting.proposed = Some(version);
        self.after(number, if waits { WRITING } else { Duration::from_millis(1) }, Timer::Wish(version));
        self.vote(number, |_, _| {});
        true
    }

    /// A majority has written down all that was wanted up to a version.
    fn voters_kept(&mut self, number: u16, version: Version) {
        let Some(voting) = &mut self.node_mut(number).voting else { return };
        if voting.proposed.take_if(|proposed| *proposed <= version).is_some() {
            voting.intents = voting.election.intents().clone();
            self.wish_kept(number);
        }
    }

    /// A majority has taken too long.
    pub(crate) fn wish_due(&mut self, number: u16, version: Version) {
        if self.has(Mutation::KeepAlone) {
            return self.voters_kept(number, version);
        }
        let at = self.node(number).clock(self.now);
        let Some(voting) = &mut self.node_mut(number).voting else { return };
        if voting.proposed.take_if(|proposed| *proposed == version).is_some() {
            // It was taken back here: so that it is taken back where it was written down as well.
            let before = voting.intents.clone();
            let _ = voting.election.propose(at, before);
            self.vote(number, |_, _| {});
            self.not_kept(number);
        }
    }

    /// The term in which a node's voter leads, by its own clock: as whoever obeys it would find it, also one that stands still.
    fn leads(&self, number: u16) -> Option<Term> {
        let node = self.node(number);
        let (term, until) = node.voting.as_ref()?.election.leads()?;
        (node.clock(self.now) < until).then_some(term)
    }

    fn look_at_leases(&mut self) {
        let leading: Vec<_> =
            (0..u16::from(self.voters())).filter(|&voter| self.leads(voter).is_some()).collect();
        if leading.len() > 1 {
            self.checks.fail("one voter at most holds a lease", format!("nodes {leading:?} do"));
        }
    }
}
