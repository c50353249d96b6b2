//! A node's disk: what was synced outlives a crash, what was not may or may not, and a disk that is full takes nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use stellate_actors::cluster::election::Ballot;
use stellate_actors::cluster::intents::Intent;
use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::cluster::term::Term;
use stellate_actors::copies::{Change, Copy};
use stellate_actors::manifest::ContextId;
use stellate_actors::session::SessionId;

use crate::chance::Chance;
use crate::context::ContextSpec;

/// Something to be kept.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// The highest term that the node's agent has seen.
    Seen(Term),
    /// The latest term of the node's own supervisor.
    Own(Term),
    /// What the node's voter must not forget.
    Ballot(Ballot),
    /// What is wanted of a node.
    Intent(NodeKey, Option<Intent>),
    /// A context.
    Context(ContextSpec),
    /// A context is not wanted any more.
    Gone(ContextId),
    /// What is kept of a session, with the context that it is over.
    Copy(SessionId, Change, Option<ContextSpec>),
}

/// What is kept of a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) copy: Copy,
    pub(crate) turns: Vec<Vec<u8>>,
    /// The context, as long as there is a log.
    pub(crate) spec: Option<ContextSpec>,
}

impl Log {
    fn apply(&mut self, change: Change, spec: Option<ContextSpec>) {
        self.copy = change.copy().clone();
        match change {
            Change::Head(_) => {}
            Change::Append { turns, .. } => self.turns.extend(turns),
            Change::Replace { turns, .. } => self.turns = turns,
            Change::Drop(_) => self.turns.clear(),
        }
        self.spec = spec.or(self.spec.take());
    }
}

/// What a disk holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    /// How often the node has started.
    pub(crate) starts: u64,
    pub(crate) seen: Term,
    pub(crate) own: Term,
    pub(crate) ballot: Ballot,
    pub(crate) intents: BTreeMap<NodeKey, Intent>,
    pub(crate) contexts: BTreeMap<ContextId, ContextSpec>,
    pub(crate) sessions: BTreeMap<SessionId, Log>,
}

impl Kept {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Seen(term) => self.seen = self.seen.max(term),
            Write::Own(term) => self.own = self.own.max(term),
            Write::Ballot(ballot) => self.ballot = ballot,
            Write::Intent(node, Some(intent)) => drop(self.intents.insert(node, intent)),
            Write::Intent(node, None) => drop(self.intents.remove(&node)),
            Write::Context(spec) => drop(self.contexts.insert(spec.id, spec)),
            Write::Gone(context) => drop(self.contexts.remove(&context)),
            Write::Copy(session, change, spec) => {
                self.sessions.entry(session).or_default().apply(change, spec)
            }
        }
    }
}

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    kept: Kept,
    /// Written and not synced, oldest first, by number.
    unsynced: VecDeque<(u64, Write)>,
    next: u64,
    pub(crate) is_full: bool,
    /// How long a sync takes.
    pub(crate) sync: Duration,
}

/// A full disk takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskFull;

impl Disk {
    pub(crate) fn new() -> Self {
        let sync = Duration::from_millis(3);
        Self { kept: Kept::default(), unsynced: VecDeque::new(), next: 1, is_full: false, sync }
    }

    /// Of a node whose agent has seen a term.
    pub(crate) fn remembering(term: Term) -> Self {
        let mut disk = Self::new();
        disk.kept.seen = term;
        disk
    }

    /// What is on it for sure.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// What is read back of a session, synced or not.
    pub(crate) fn session(&self, session: SessionId) -> Option<Log> {
        let mut log = self.kept.sessions.get(&session).cloned();
        for (_, write) in &self.unsynced {
            if let Write::Copy(id, change, spec) = write
                && *id == session
            {
                log.get_or_insert_default().apply(change.clone(), spec.clone());
            }
        }
        log
    }

    /// Writes. It is kept for sure once [`Self::synced`] was called with the number.
    pub(crate) fn write(&mut self, write: Write) -> Result<u64, DiskFull> {
        if self.is_full {
            return Err(DiskFull);
        }
        let number = self.next;
        self.next += 1;
        self.unsynced.push_back((number, write));
        Ok(number)
    }

    /// All that was written up to `number` is on the disk.
    pub(crate) fn synced(&mut self, number: u64) {
        while self.unsynced.front().is_some_and(|(written, _)| *written <= number) {
            let (_, write) = self.unsynced.pop_front().expect("just looked at");
            self.kept.apply(write);
        }
    }

    /// Power fails: of what was not synced some of the first writes are there. A write that was torn is found by its
    /// checksum and is not.
    pub(crate) fn crash(&mut self, chance: &mut Chance) {
        let survive = chance.below(self.unsynced.len() as u64 + 1);
        for (_, write) in self.unsynced.drain(..).take(survive as usize) {
            self.kept.apply(write);
        }
        self.unsynced.clear();
    }

    /// The node has started: counts it.
    pub(crate) fn started(&mut self) -> u64 {
        self.kept.starts += 1;
        self.kept.starts
    }
}
