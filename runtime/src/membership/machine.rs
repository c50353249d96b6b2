//! The state machine: inputs, timers, and what SWIM makes of them. What is done with records and rosters that
//! arrive is in `merge`, what is done unasked in `duties`.

use std::collections::VecDeque;
use std::time::Duration;

use foca::OwnedNotification;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::duties::{TICK, jittered};
use super::identity::{Generation, MemberIdentity, NodeId};
use super::io::{Event, InputError, Output, Start};
use super::news::Backlog;
use super::options::MembershipOptions;
use super::peers::{Liveness, Member, Peers};
use super::record::{NodeRecord, NodeState, RecordError};
use super::swim::{self, Codec, Effects, Swim};
use super::timers::Timers;
use super::wire::{FrameError, MAX_ROSTER_BYTES, Message, News, RefusalReason};

/// How many are told at once that we leave; the rest hear of it from them.
const TOLD_ON_LEAVING: usize = 16;

#[derive(Debug)]
pub(super) enum Timer {
    Swim(foca::Timer<MemberIdentity>),
    /// Suspicions are looked through, the old is forgotten, and rosters may be sent again.
    Tick,
    Gossip,
    Roster,
    /// On a member that was doubted, in this incarnation.
    Verdict(MemberIdentity, u16),
    /// Of the chain with this number; those of earlier chains are void.
    Bootstrap(u64),
}

/// One node's view of the cluster. See the [module](super).
pub struct Membership {
    pub(super) options: MembershipOptions,
    pub(super) swim: Swim,
    pub(super) rng: ChaCha8Rng,
    pub(super) me: NodeRecord,
    pub(super) peers: Peers,
    pub(super) backlog: Backlog,
    pub(super) timers: Timers<Timer>,
    pub(super) outputs: VecDeque<Output>,
    /// Whole rosters that may still be sent.
    pub(super) rosters_left: u32,
    pub(super) gossiping: bool,
    pub(super) bootstrap_chain: u64,
    pub(super) bootstrap_after: Duration,
    left: bool,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Membership")
            .field("me", &self.identity())
            .field("nodes", &self.peers.len())
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// A node that knows nobody yet; its first output is [`Output::Bootstrap`].
    ///
    /// # Errors
    /// Its record may not be published.
    pub fn new(start: Start, options: MembershipOptions) -> Result<Self, RecordError> {
        let Start { mut record, removed, seed, now } = start;
        record.version = 1;
        record.check()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let identity =
            MemberIdentity { node: record.node, generation: Generation { boot: record.boot, renewal: 0 } };
        let swim_rng = ChaCha8Rng::seed_from_u64(rng.random());
        let mut peers = Peers::default();
        for node in removed {
            peers.remove(node);
        }
        let mut timers = Timers::new(now, options.stall);
        timers.set(TICK, Timer::Tick);
        // The first comparison is soon: whoever has just joined is the likeliest to have missed something.
        timers.set(jittered(options.roster_period / 6, &mut rng), Timer::Roster);
        timers.set(Duration::ZERO, Timer::Bootstrap(0));
        Ok(Self {
            swim: Swim::new(identity, swim::config(&options), swim_rng, Codec),
            rng,
            me: record,
            peers,
            backlog: Backlog::default(),
            timers,
            outputs: VecDeque::new(),
            rosters_left: 2 * options.rosters_per_second,
            gossiping: false,
            bootstrap_chain: 0,
            bootstrap_after: options.bootstrap_period,
            left: false,
            options,
        })
    }

    /// Which node we are, in which life.
    pub fn identity(&self) -> MemberIdentity {
        *self.swim.identity()
    }

    /// What we say of ourselves.
    pub fn record(&self) -> &NodeRecord {
        &self.me
    }

    /// All other members, also those that are down or have left and are not yet forgotten, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.peers.members()
    }

    /// One member.
    pub fn member(&self, node: &NodeId) -> Option<Member> {
        self.peers.member(node)
    }

    /// Whether a node has been removed for good.
    pub fn is_removed(&self, node: &NodeId) -> bool {
        self.peers.is_removed(node)
    }

    /// A digest of who is alive, in which life and with which record: the same on two nodes that agree.
    pub fn digest(&self) -> [u8; 32] {
        self.peers.digest(&self.identity(), &self.me)
    }

    /// What to do next; none when all has been taken. To be taken until then after each input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called at the latest, on the caller's clock.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.left { None } else { self.timers.next_due() }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.left {
            return;
        }
        self.timers.advance(now);
        while let Some(timer) = self.timers.pop() {
            match timer {
                Timer::Swim(timer) => {
                    self.drive(|swim, effects| {
                        if let Err(error) = swim.handle_timer(timer, effects) {
                            tracing::debug!(%error, "a timer of SWIM");
                        }
                    });
                }
                Timer::Tick => self.tick(),
                Timer::Gossip => self.gossip(),
                Timer::Roster => self.compare_rosters(),
                Timer::Verdict(identity, incarnation) => self.pass_verdict(identity, incarnation),
                Timer::Bootstrap(chain) if chain == self.bootstrap_chain => self.bootstrap(),
                Timer::Bootstrap(_) => {}
            }
        }
    }

    /// We are connected to `peer`, whose certificate the transport has checked: meet it, unless it is a member already.
    pub fn contact(&mut self, now: Duration, peer: NodeId) {
        let known = self.peers.get(&peer).is_some_and(|peer| peer.is_up() && peer.record.is_some());
        if self.left || known || peer == self.me.node || self.peers.is_removed(&peer) {
            return;
        }
        self.timers.advance(now);
        self.send_roster(peer, true);
    }

    /// A datagram from `from`, whom the transport has authenticated.
    ///
    /// # Errors
    /// [`InputError`]; nothing has changed.
    pub fn handle_datagram(&mut self, now: Duration, from: NodeId, bytes: &[u8]) -> Result<(), InputError> {
        match self.admit(now, from, bytes, self.options.datagram_bytes)? {
            Message::Swim(body) => return self.hear_swim(from, body),
            Message::News(news) => self.hear_news(from, news),
            Message::Digest(theirs) if theirs != self.digest() => self.send_roster(from, true),
            Message::Digest(_) => {}
            Message::Want(nodes) => self.tell(from, &nodes),
            Message::Refused(reason) => self.event(Event::Refused { by: from, reason }),
            Message::Roster(_) => return Err(InputError::Channel),
        }
        Ok(())
    }

    /// A roster that came on a stream from `from`, whom the transport has authenticated.
    ///
    /// # Errors
    /// [`InputError`]; nothing has changed.
    pub fn handle_roster(&mut self, now: Duration, from: NodeId, bytes: &[u8]) -> Result<(), InputError> {
        match self.admit(now, from, bytes, MAX_ROSTER_BYTES)? {
            Message::Roster(roster) => self.hear_roster(from, *roster),
            _ => Err(InputError::Channel),
        }
    }

    /// Changes what we say of ourselves. To leave, call [`Self::leave`].
    ///
    /// # Errors
    /// The new record may not be published; the old one stays.
    pub fn update(&mut self, now: Duration, change: impl FnOnce(&mut NodeRecord)) -> Result<(), RecordError> {
        self.timers.advance(now);
        let mut record = self.me.clone();
        change(&mut record);
        if record == self.me {
            return Ok(());
        }
        if (record.node, record.age()) != (self.me.node, self.me.age()) {
            return Err(RecordError::Fixed);
        }
        let leaves = record.state == NodeState::Left;
        if record.state != self.me.state && (leaves || !self.me.state.may_become(record.state)) {
            return Err(RecordError::State { from: self.me.state, to: record.state });
        }
        record.check()?;
        record.version += 1;
        self.me = record;
        self.spread(News::Record(self.me.clone()));
        Ok(())
    }

    /// Leaves: tells some of the others, who tell the rest. After this the node says and takes nothing more; what is in the
    /// outputs should still be sent.
    pub fn leave(&mut self, now: Duration) {
        if self.left {
            return;
        }
        self.timers.advance(now);
        self.me.state = NodeState::Left;
        self.me.version += 1;
        let told = self.choose(TOLD_ON_LEAVING);
        let farewell = Message::News(vec![News::Record(self.me.clone())]).frame();
        for to in told {
            self.outputs.push_back(Output::Datagram { to, bytes: farewell.clone() });
        }
        self.left = true;
    }

    /// Removes a node for good, of which there is proof.
    pub fn remove(&mut self, now: Duration, node: NodeId) {
        self.timers.advance(now);
        self.learn_removal(node);
    }

    /// Checks what holds of every message: its length, its version, and that its sender may speak.
    fn admit<'bytes>(
        &mut self,
        now: Duration,
        from: NodeId,
        bytes: &'bytes [u8],
        limit: usize,
    ) -> Result<Message<'bytes>, InputError> {
        if self.left {
            return Err(InputError::Left);
        }
        if bytes.len() > limit {
            return Err(InputError::TooLong { bytes: bytes.len(), limit });
        }
        if from == self.me.node {
            return Err(InputError::Sender { claimed: from });
        }
        self.timers.advance(now);
        if self.peers.is_removed(&from) {
            // A refusal is not answered: two nodes that have removed each other would answer for ever.
            if !matches!(Message::parse(bytes), Ok(Message::Refused(_))) {
                self.refuse(from, RefusalReason::Removed);
            }
            return Err(InputError::Removed);
        }
        Message::parse(bytes).map_err(|error| match error {
            FrameError::Malformed(error) => InputError::Malformed(error),
            FrameError::Version { theirs, refusal } => {
                self.event(Event::OtherVersion { peer: from, theirs });
                if !refusal {
                    self.refuse(from, RefusalReason::Version { ours: super::WIRE_VERSION });
                }
                InputError::Version { theirs }
            }
        })
    }

    fn hear_swim(&mut self, from: NodeId, body: &[u8]) -> Result<(), InputError> {
        let sender = swim::sender(body)?;
        if sender.node != from {
            return Err(InputError::Sender { claimed: sender.node });
        }
        let life = self.identity();
        let result = self.drive(|swim, effects| swim.handle_data(body, effects));
        if self.identity() != life {
            // We were taken for dead. If that was for want of a higher counter of starts, only a roster tells.
            self.send_roster(from, true);
        }
        self.want_records(from);
        result.map_err(|error| InputError::Swim(error.to_string()))
    }

    /// Calls SWIM and does what it wants done, and what follows from that.
    pub(super) fn drive<T>(&mut self, act: impl FnOnce(&mut Swim, &mut Effects) -> T) -> T {
        let mut effects = Effects::default();
        let result = act(&mut self.swim, &mut effects);
        let Effects { sends, timers, notifications } = effects;
        for (to, body) in sends {
            let bytes = Message::Swim(&body).frame();
            self.outputs.push_back(Output::Datagram { to: to.node, bytes });
        }
        for (after, timer) in timers {
            self.timers.set(after, Timer::Swim(timer));
        }
        for notification in notifications {
            self.follow(notification);
        }
        result
    }

    fn follow(&mut self, notification: OwnedNotification<MemberIdentity>) {
        let now = self.timers.now();
        match notification {
            OwnedNotification::MemberUp(identity) => self.member_up(identity),
            OwnedNotification::MemberDown(identity) => self.member_down(identity),
            // Whoever is removed stays down, in whatever life: `member_up` sees to it.
            OwnedNotification::Rename(_, identity) if self.peers.is_removed(&identity.node) => {}
            OwnedNotification::Rename(_, identity) => {
                let peer = self.peers.entry(identity.node, now);
                let replaced = peer.identity.replace(identity);
                if peer.is_up() && replaced.is_some() && peer.announced {
                    self.event(Event::Rejoined { node: identity.node, generation: identity.generation });
                }
            }
            OwnedNotification::Active => self.event(Event::Connected),
            OwnedNotification::Idle => {
                self.event(Event::Alone);
                self.bootstrap_after = self.options.bootstrap_period;
                self.bootstrap_chain += 1;
                self.timers.set(Duration::ZERO, Timer::Bootstrap(self.bootstrap_chain));
            }
            OwnedNotification::Rejoin(identity) => self.event(Event::Renewed(identity.generation)),
            OwnedNotification::Defunct => {
                // Only after 2^32 renewals: an identity can always be renewed.
                tracing::error!("membership has no life left; restart the process");
            }
        }
    }

    fn member_up(&mut self, identity: MemberIdentity) {
        let full = self.peers.get(&identity.node).is_none() && self.peers.len() >= self.options.max_members;
        if full || self.peers.is_removed(&identity.node) {
            self.declare_down(identity);
            return;
        }
        let now = self.timers.now();
        let peer = self.peers.entry(identity.node, now);
        peer.identity = Some(identity);
        peer.liveness = Liveness::Alive;
        peer.since = now;
        peer.announced = false;
        self.announce(identity.node);
    }

    fn member_down(&mut self, identity: MemberIdentity) {
        let now = self.timers.now();
        let Some(peer) = self.peers.get_mut(&identity.node) else { return };
        if peer.identity != Some(identity) || !peer.is_up() {
            return;
        }
        let farewell = peer
            .record
            .as_ref()
            .is_some_and(|record| record.state == NodeState::Left && record.boot == identity.generation.boot);
        peer.liveness = if farewell { Liveness::Left } else { Liveness::Down };
        peer.since = now;
        if std::mem::take(&mut peer.announced) {
            self.event(if farewell { Event::Left(identity.node) } else { Event::Down(identity.node) });
        }
    }

    /// Tells the caller of a member that is alive and whose record is known.
    pub(super) fn announce(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(identity) = peer.identity else { return };
        if peer.announced || !peer.is_up() || peer.record.is_none() {
            return;
        }
        peer.announced = true;
        let generation = identity.generation;
        let known_before = std::mem::replace(&mut peer.known_before, true);
        self.event(if known_before {
            Event::Rejoined { node, generation }
        } else {
            Event::Joined { node, generation }
        });
        self.check_names(node);
    }

    pub(super) fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}
