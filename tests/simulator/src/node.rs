//! A node: what runs on it, what it keeps, and its clocks.

use std::collections::BTreeMap;
use std::time::Duration;

use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::link::HostId;
use stellate_runtime::membership::Membership;

use crate::agent::Agent;
use crate::chance::Chance;
use crate::copies::Copies;
use crate::disk::{Disk, Write};
use crate::message::{Call, Timer};
use crate::mutation::Mutation;
use crate::query::QueryNode;
use crate::scenario::Shape;
use crate::supervise::Supervising;
use crate::voting::Voting;
use crate::world::{Event, World};

/// Time between two signs of life.
pub(crate) const BEAT: Duration = Duration::from_secs(1);

/// When an operating system writes down by itself what nobody has synced.
const FLUSH: Duration = Duration::from_secs(5);

/// The time of day, since 1970, at which worlds begin.
const WALL: Duration = Duration::from_secs(1_800_000_000);

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) key: NodeKey,
    pub(crate) is_up: bool,
    /// Rises with every start and every end.
    pub(crate) life: u64,
    pub(crate) paused_at: Option<Duration>,
    pub(crate) paused_until: Option<Duration>,
    /// What is due while it stands still.
    pub(crate) backlog: Vec<Event>,
    pub(crate) disk: Disk,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) agent: Agent,
    pub(crate) supervising: Supervising,
    pub(crate) voting: Option<Box<Voting>>,
    pub(crate) query: Option<QueryNode>,
    pub(crate) copies: Copies,
    pub(crate) membership: Option<Membership>,
    /// The timeout of membership that is set.
    pub(crate) membership_due: Option<Duration>,
    /// Whether it supervises by its settings, rightly or not.
    pub(crate) supervises: bool,
    pub(crate) runs_sessions: bool,
    capacity: u64,
    /// What its clock was ahead of the world's at the start.
    clock_ahead: Duration,
    /// By how many millionths its clock runs fast.
    clock_fast_ppm: u64,
    /// By how much its time of day is off, in seconds.
    pub(crate) wall_off: i64,
    /// When it last began, went on, or was cut off.
    pub(crate) disturbed: Duration,
    /// When its power failed last.
    pub(crate) crashed: Option<Duration>,
}

impl Node {
    pub(crate) fn new(number: u16, shape: Shape, chance: &mut Chance) -> Self {
        let key = key_of(number);
        let capacity = shape.capacity_blocks * crate::context::BLOCK_BYTES;
        Self {
            key,
            is_up: false,
            life: 0,
            paused_at: None,
            paused_until: None,
            backlog: Vec::new(),
            disk: Disk::new(),
            calls: BTreeMap::new(),
            agent: Agent::new(capacity),
            supervising: Supervising::Not,
            voting: None,
            query: None,
            copies: Copies::default(),
            membership: None,
            membership_due: None,
            supervises: number == 0 && shape.voters == 0,
            runs_sessions: number < shape.query_nodes,
            capacity,
            clock_ahead: Duration::from_millis(chance.below(1_000_000)),
            clock_fast_ppm: chance.below(200),
            wall_off: 0,
            disturbed: Duration::ZERO,
            crashed: None,
        }
    }

    /// The time on its clock, which never jumps.
    pub(crate) fn clock(&self, now: Duration) -> Duration {
        let fast = now.as_nanos() as u64 / 1_000_000 * self.clock_fast_ppm;
        self.clock_ahead + now + Duration::from_nanos(fast)
    }

    /// The time of day on it, since 1970.
    pub(crate) fn wall(&self, now: Duration) -> Duration {
        (WALL + now).saturating_add_signed_seconds(self.wall_off)
    }

    /// Its context host.
    pub(crate) fn host(&self) -> HostId {
        HostId::of_node(self.key.0, 0)
    }
}

trait SignedSeconds {
    fn saturating_add_signed_seconds(self, seconds: i64) -> Self;
}

impl SignedSeconds for Duration {
    fn saturating_add_signed_seconds(self, seconds: i64) -> Self {
        let magnitude = Self::from_secs(seconds.unsigned_abs());
        if seconds < 0 { self.saturating_sub(magnitude) } else { self.saturating_add(magnitude) }
    }
}

/// The key of the node of a number.
pub(crate) fn key_of(number: u16) -> NodeKey {
    let [high, low] = number.to_be_bytes();
    NodeKey([0, 0, 0, 1, high, low])
}

/// The number of the node of a key.
pub(crate) fn number_of(key: NodeKey) -> u16 {
    u16::from_be_bytes([key.0[4], key.0[5]])
}

/// The number of the node of a host.
pub(crate) fn node_of(host: HostId) -> u16 {
    number_of(NodeKey::of(host))
}

impl World {
    /// A node begins a life.
    pub(crate) fn start(&mut self, number: u16) {
        let (now, forgets) = (self.now, self.has(Mutation::ForgetTerm));
        let node = self.node_mut(number);
        if node.is_up {
            return;
        }
        (node.is_up, node.life, node.disturbed) = (true, node.life + 1, now);
        (node.paused_at, node.paused_until) = (None, None);
        let start = node.disk.started();
        let seen = if forgets { Default::default() } else { node.disk.kept().seen };
        node.agent = Agent::started(node.capacity, start, seen, node.clock(now));
        if node.runs_sessions {
            node.query = Some(QueryNode::opened(node.key, node.disk.kept()));
        }
        self.open_copies(number);
        let node = self.node(number);
        if node.supervises {
            self.start_supervisor(number, Default::default());
        }
        self.start_voting(number);
        self.start_membership(number);
        // Nodes do not beat in step.
        let first = Duration::from_millis(self.chance.below(1000));
        self.after(number, first, Timer::Beat);
    }

    /// A node ends without a word. What was not synced may be lost.
    pub(crate) fn crash(&mut self, number: u16) {
        let (mut chance, now) = (Chance::new(self.chance.word()), self.now);
        let node = self.node_mut(number);
        if !node.is_up {
            return;
        }
        (node.is_up, node.life, node.crashed) = (false, node.life + 1, Some(now));
        (node.paused_at, node.paused_until) = (None, None);
        node.backlog.clear();
        node.calls.clear();
        node.disk.crash(&mut chance);
        (node.supervising, node.voting) = (Supervising::Not, None);
        (node.membership, node.membership_due) = (None, None);
        node.agent = Agent::new(node.capacity);
        node.copies = Copies::default();
        let ended = node.query.take();
        if let Some(query) = ended {
            self.checks.left_unmade |= query.contexts.values().any(|context| !context.is_made);
            query
                .sessions
                .values()
                .filter(|session| session.is_asked())
                .for_each(|_| self.checks.refused("the node ended"));
        }
    }

    /// A node stands still for a while.
    pub(crate) fn pause(&mut self, number: u16, time: Duration) {
        let until = self.now + time;
        let now = self.now;
        let node = self.node_mut(number);
        if node.is_up && node.paused_at.is_none() {
            (node.paused_at, node.paused_until) = (Some(now), Some(until));
            self.schedule(until, number, Event::Resume);
        }
    }

    /// Writes; the node is told when it is on the disk. `None` if the disk is full.
    pub(crate) fn write(&mut self, number: u16, write: Write) -> Option<u64> {
        match self.has(Mutation::AcknowledgeUnsynced) {
            true => self.write_unsynced(number, write),
            false => self.write_synced(number, write),
        }
    }

    fn write_synced(&mut self, number: u16, write: Write) -> Option<u64> {
        let disk = &mut self.node_mut(number).disk;
        let written = disk.write(write).ok()?;
        let sync = disk.sync;
        self.after(number, sync, Timer::Written(written));
        Some(written)
    }

    /// Writes, and does not wait until it is on the disk.
    pub(crate) fn write_unsynced(&mut self, number: u16, write: Write) -> Option<u64> {
        let disk = &mut self.node_mut(number).disk;
        let written = disk.write(write).ok()?;
        let sync = disk.sync;
        self.after(number, Duration::ZERO, Timer::Acknowledged(written));
        self.after(number, sync + FLUSH, Timer::Synced(written));
        Some(written)
    }

    /// What a node does once a second.
    pub(crate) fn beat(&mut self, number: u16) {
        self.after(number, BEAT, Timer::Beat);
        self.report(number);
        self.supervisor_beat(number);
        self.query_beat(number);
        self.copies_beat(number);
    }

    /// What was written up to a number is on the disk.
    pub(crate) fn written(&mut self, number: u16, write: u64) {
        self.term_kept(number, write);
        self.supervisor_kept(number, write);
        self.vote_kept(number, write);
        self.query_kept(number, write);
        self.copies_kept(number, write);
    }
}
