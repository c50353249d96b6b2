//! How a node becomes the owner of a session: it asks who has what, fences a quorum of the newest set, and goes on from the
//! newest copy among those that it has fenced.

use std::collections::{BTreeMap, BTreeSet};

use super::head::{Copy, Epoch, Head};
use super::keeper::KeeperReply;
use crate::cluster::messages::NodeKey;
use crate::session::SessionId;

/// What asking around has come to. Nothing was changed anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nobody who answered has it.
    Nowhere {
        /// Those that did not answer.
        silent: Vec<NodeKey>,
    },
    /// It was removed.
    Removed,
    /// This is its owner, as far as those who answered know.
    Owned(Epoch),
}

/// Who has what of a session.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    copies: BTreeMap<NodeKey, Copy>,
    silent: BTreeSet<NodeKey>,
}

impl Survey {
    /// A node has told what it has.
    pub fn told(&mut self, node: NodeKey, copy: Option<Copy>) {
        self.copies.insert(node, copy.unwrap_or_default());
    }

    /// A node did not answer.
    pub fn failed(&mut self, node: NodeKey) {
        self.silent.insert(node);
    }

    /// The newest head that anybody has.
    pub fn newest(&self) -> Option<&Head> {
        newest(self.copies.values())
    }

    /// What it comes to.
    pub fn found(&self) -> Found {
        match self.newest() {
            None => Found::Nowhere { silent: self.silent.iter().copied().collect() },
            Some(head) if head.is_removed => Found::Removed,
            Some(head) => {
                let promised = self.copies.values().map(|copy| copy.promised).max().unwrap_or_default();
                Found::Owned(promised.max(head.epoch))
            }
        }
    }
}

/// How a take-over stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// Answers are to come.
    Waiting,
    /// The session is this node's once it has written the first head and the log that `source` has, `turns` turns.
    Won {
        /// What its owner begins with.
        head: Head,
        /// Has the log.
        source: NodeKey,
        /// Its length.
        turns: u64,
    },
    /// It was removed, or nobody was ever given its log: nothing was acknowledged.
    Gone,
    /// Somebody else was quicker.
    Lost(Epoch),
    /// No quorum of its copies answers. Those that did obey no earlier owner any more.
    Short {
        /// The copies that did not answer.
        silent: Vec<NodeKey>,
    },
}

/// A take-over under way.
#[derive(Clone, Debug)]
pub struct TakeOver {
    epoch: Epoch,
    asked: BTreeSet<NodeKey>,
    promised: BTreeMap<NodeKey, Copy>,
    silent: BTreeSet<NodeKey>,
    /// The newest head known.
    head: Head,
    later: Option<Epoch>,
}

impl TakeOver {
    /// A take-over by `me` of what `survey` has found; none if that is not owned by anybody.
    pub fn begin(me: NodeKey, survey: &Survey) -> Option<Self> {
        let Found::Owned(epoch) = survey.found() else { return None };
        Some(Self {
            epoch: epoch.next(me),
            asked: BTreeSet::new(),
            promised: BTreeMap::new(),
            silent: BTreeSet::new(),
            head: survey.newest()?.clone(),
            later: None,
        })
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.head.session
    }

    /// That of the owner to be.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The nodes to be fenced with [`epoch`](Self::epoch) that were not asked yet.
    pub fn asks(&mut self) -> Vec<NodeKey> {
        let nodes: Vec<_> = self.head.set.all().difference(&self.asked).copied().collect();
        self.asked.extend(&nodes);
        nodes
    }

    /// A node has answered.
    pub fn replied(&mut self, node: NodeKey, reply: KeeperReply) {
        match reply {
            KeeperReply::Promised(copy) => {
                if let Some(head) = &copy.head
                    && head.rank() > self.head.rank()
                {
                    self.head = head.clone();
                }
                self.promised.insert(node, copy);
            }
            KeeperReply::Fenced(epoch) => self.later = self.later.max(Some(epoch)),
            KeeperReply::Stored { .. } | KeeperReply::Behind { .. } => self.failed(node),
        }
    }

    /// A node did not answer.
    pub fn failed(&mut self, node: NodeKey) {
        self.silent.insert(node);
    }

    /// How it stands.
    pub fn fencing(&self) -> Fencing {
        if let Some(epoch) = self.later {
            return Fencing::Lost(epoch);
        }
        if self.head.is_removed {
            return Fencing::Gone;
        }
        if self.head.set.has_quorum(|node| self.promised.contains_key(&node)) {
            return self.won();
        }
        let members = self.head.set.all();
        let is_open = |node: &&NodeKey| !self.promised.contains_key(*node) && !self.silent.contains(*node);
        if members.iter().any(|node| is_open(&node)) {
            return Fencing::Waiting;
        }
        let silent = members.into_iter().filter(|node| !self.promised.contains_key(node)).collect();
        Fencing::Short { silent }
    }

    fn won(&self) -> Fencing {
        let with_log = self.promised.iter().filter_map(|(node, copy)| {
            let head = copy.head.as_ref().filter(|head| head.is_kept_by(*node))?;
            Some(((head.epoch, copy.turns), *node))
        });
        let Some(((_, turns), source)) = with_log.max() else {
            return Fencing::Gone;
        };
        // The set is taken as it is, also in the middle of its change: its new owner carries on with that first.
        let head = Head { epoch: self.epoch, version: self.head.version + 1, ..self.head.clone() };
        Fencing::Won { head, source, turns }
    }
}

/// The newest of these copies' heads. One that was removed stays so.
fn newest<'a>(copies: impl Iterator<Item = &'a Copy>) -> Option<&'a Head> {
    copies.filter_map(|copy| copy.head.as_ref()).max_by_key(|head| head.rank())
}
