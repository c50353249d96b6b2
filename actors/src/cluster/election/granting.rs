//! The side of a voter that promises, and keeps copies of the intents for whoever leads.

use std::time::Duration;

use super::{Book, Election, Grant, Message, Output, Role, Voter};
use crate::cluster::messages::NodeKey;
use crate::cluster::term::Term;

impl Election {
    /// How long this voter is bound to others than `node`; zero if it is free to promise to it.
    pub(super) fn bound(&self, node: NodeKey) -> Duration {
        let reigning = match &self.role {
            Role::Reigning(_) if node == self.node => Duration::ZERO,
            Role::Reigning(reign) if reign.is_leading() => {
                self.lease_until(reign).unwrap_or(self.now).saturating_sub(self.now)
            }
            Role::Reigning(reign) => reign.until.saturating_sub(self.now),
            Role::Follower | Role::Polling(_) => Duration::ZERO,
        };
        let granted = match self.grant {
            Some(grant) if grant.term.node != node => grant.until.saturating_sub(self.now),
            _ => Duration::ZERO,
        };
        let quiet = match self.quiet {
            Some(quiet) if quiet.holder != Some(node) => quiet.until.saturating_sub(self.now),
            _ => Duration::ZERO,
        };
        reigning.max(granted).max(quiet)
    }

    pub(super) fn polled(&mut self, from: Voter, round: u64, node: NodeKey) {
        let (left, highest) = (self.bound(node), self.seen.max(self.ballot.promised));
        self.outputs.push_back(Output::Send { to: from, message: Message::Would { round, left, highest } });
    }

    pub(super) fn asked(&mut self, from: Voter, round: u64, term: Term, wants_book: bool) {
        self.seen = self.seen.max(term);
        let is_outranked =
            matches!(&self.role, Role::Reigning(reign) if !reign.is_leading() && reign.term < term);
        if is_outranked {
            // It does not lead, and has promised to itself alone.
            self.abandon();
        }
        if term < self.ballot.promised || !self.bound(term.node).is_zero() {
            let promised = self.ballot.promised;
            self.outputs.push_back(Output::Send { to: from, message: Message::Refused { term, promised } });
            return;
        }
        if let Role::Polling(_) = self.role {
            self.role = Role::Follower;
        }
        let until = self.now + self.settings.lease;
        (self.grant, self.quiet) = (Some(Grant { term, until }), None);
        self.candidacy_at = until + self.pause(self.settings.stagger());
        if term > self.ballot.promised {
            self.promise(term);
        }
        let book = wants_book.then(|| self.ballot.book.clone());
        self.answer_after(self.writes.promise, from, Message::Granted { round, term, book });
    }

    pub(super) fn replicated(&mut self, from: Voter, book: Book) {
        let term = book.version.term;
        if term < self.ballot.promised {
            let promised = self.ballot.promised;
            self.outputs.push_back(Output::Send { to: from, message: Message::Refused { term, promised } });
        } else if term == self.ballot.promised && term.node != self.node {
            if book.version > self.ballot.book.version {
                self.write_book(book);
            }
            let version = self.ballot.book.version;
            self.answer_after(self.writes.book, from, Message::Stored { version });
        }
        // Of a term that was not promised to, the question comes first: it is asked again, and so is this.
    }

    pub(super) fn released(&mut self, term: Term, heir: Option<Voter>) {
        if self.grant.is_some_and(|grant| grant.term == term) {
            self.grant = None;
        } else if self.ballot.promised == term && self.quiet.is_some() {
            self.quiet = None;
        } else {
            return;
        }
        match heir {
            Some(heir) if heir == self.own => self.be_eager(),
            Some(_) => {
                self.candidacy_at = self.now + self.settings.lease / 4 + self.pause(self.settings.stagger())
            }
            None => self.candidacy_at = self.now + self.pause(self.settings.stagger()),
        }
    }

    /// Promises to a term, higher than all before.
    pub(super) fn promise(&mut self, term: Term) {
        self.ballot.promised = term;
        self.writes.promise = self.persist();
    }

    pub(super) fn write_book(&mut self, book: Book) {
        self.ballot.book = book;
        self.writes.book = self.persist();
    }
}
