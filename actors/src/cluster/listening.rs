//! Who else is there: how a supervisor that has just started listens before it decides, and how it learns that another came
//! after it.

use std::time::Duration;

use super::messages::{Inventory, NodeKey, QueryNodeNotice, Refusal};
use super::supervisor::{Action, Cluster};
use super::term::Term;

impl Cluster {
    /// The hosts of the supervisor's own node have reported. A supervisor before which nothing was placed, and one that is
    /// alone, have nothing more to listen for.
    pub fn reported(&mut self, now: Duration, is_alone: bool) {
        if self.is_first() || is_alone {
            self.settles = self.settles.min(now);
        }
    }

    /// Some nodes are there and have not reported yet: they are listened to for a while longer, as long at most as a host
    /// may be silent before it counts as gone.
    pub fn awaiting(&mut self, now: Duration) {
        let longest = self.started + self.settings.host_timeout;
        if !self.has_settled && !self.is_first() {
            self.settles = self.settles.max((now + self.settings.settle / 2).min(longest));
        }
    }

    /// Whether no supervisor was there before this one, as far as anybody has said. A node that is new can have the first
    /// term of its own in a cluster that is old.
    fn is_first(&self) -> bool {
        self.term.may_be_first() && !self.has_predecessor
    }

    /// Others were there before: what they have placed is still to be heard of.
    fn follow_predecessor(&mut self) {
        if !self.is_first() {
            return;
        }
        tracing::info!(term = %self.term, "another supervisor was there before; this one listens first");
        self.has_predecessor = true;
        let heard = self.started + self.settings.settle;
        if heard > self.settles {
            (self.settles, self.has_settled) = (heard, false);
        }
    }

    /// Notes what a sign of life says of other supervisors.
    pub(crate) fn hear_of_others(&mut self, inventory: &Inventory) {
        let has_blocks = inventory.hosts.iter().any(|host| !host.blocks.is_empty());
        let is_of_another = inventory.seen != Term::NONE && inventory.seen != self.term;
        // Of blocks that were placed by this one it knows.
        if is_of_another || has_blocks && self.table.version == 0 {
            self.follow_predecessor();
        }
        self.hear_of_term(inventory.seen);
    }

    /// Somebody has seen a supervisor of a term: if that is later than this one, this one does nothing any more.
    pub(crate) fn hear_of_term(&mut self, seen: Term) {
        if seen > self.term && !self.is_replaced {
            tracing::warn!(term = %self.term, later = %seen, "a later supervisor was seen; this one stops");
            self.is_replaced = true;
            self.actions.push_back(Action::Replaced { highest: seen });
        }
    }

    /// A query node is there, has announced its contexts to the supervisor of the term `announced`, and has seen nothing later
    /// than `seen`.
    pub fn renew(&mut self, now: Duration, node: NodeKey, announced: Term, seen: Term) {
        self.hear_of_query_node(now, node);
        let latest = seen.max(announced);
        if latest != Term::NONE && latest != self.term {
            self.follow_predecessor();
        }
        self.hear_of_term(latest);
        if announced == self.term {
            self.unannounced.remove(&node);
        } else if !self.is_replaced {
            self.unannounced.insert(node);
            let notice = QueryNodeNotice::Announce { term: self.term };
            self.actions.push_back(Action::ToQueryNode { node, notice });
        }
    }

    pub(crate) fn may_decide(&self, now: Duration) -> Result<(), Refusal> {
        if self.is_replaced {
            return Err(Refusal::Replaced);
        }
        let left = self.settles.saturating_sub(now);
        match left.as_millis() as u64 {
            0 => Ok(()),
            retry_ms => Err(Refusal::Settling { retry_ms }),
        }
    }
}
