//! A cluster in virtual time: hosts, a query node and messages that are late or lost, around the real state machine and
//! the real fence. After every step it is checked that no host is over its capacity and that no block is gone while a
//! host that held it lives. For tests only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stellate_model::block::BlockId;

use crate::checksum::Checksum;
use crate::link::HostId;
use crate::manifest::ContextId;

use super::agent::Fence;
use super::drain::DrainProgress;
use super::messages::{
    AgentOrder, AgentRefusal, AgentReply, AgentRequest, AnchorCopy, BlockNeed, ContextClaim, ContextKey,
    HeldBlock, HostInventory, Inventory, NodeKey, QueryNodeNotice, Refusal, Stamp,
};
use super::settings::ClusterSettings;
use super::supervisor::{Action, Cluster};
use super::table::Hold;
use super::term::Term;

pub(super) const STEP: Duration = Duration::from_millis(250);
pub(super) const BLOCK: u64 = 100;
pub(super) const ANCHOR: u64 = 40;
/// The time of day, since 1970, at which worlds begin.
pub(super) const WALL: Duration = Duration::from_secs(1_800_000_000);
pub(super) const QUERY: NodeKey = NodeKey([9; 6]);

/// Chance that repeats: splitmix64.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

pub(super) fn block(number: u64) -> BlockId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&Chance(number).below(u64::MAX).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    BlockId::from_bytes(bytes)
}

/// Of a supervisor on a node without hosts.
pub(super) fn term(counter: u64) -> Term {
    Term { counter, node: NodeKey([8; 6]) }
}

pub(super) fn host(number: u16) -> HostId {
    HostId::of_node([0, 0, 0, 1, (number >> 8) as u8, number as u8], 0)
}

pub(super) fn claim(context: u64, blocks: u64, replicas: u16) -> ContextClaim {
    let first = context * 10_000;
    let need = |n: u64| BlockNeed { id: block(first + n), bytes: BLOCK, tokens: 512, anchored: n > 0 };
    ContextClaim {
        context: ContextId(context),
        query_node: QUERY,
        needs: (0..blocks).map(need).collect(),
        anchor: Some(AnchorCopy { id: block(first + 9_999), bytes: ANCHOR, first_block: block(first) }),
        replicas,
    }
}

pub(super) struct SimHost {
    pub(super) capacity: u64,
    pub(super) is_up: bool,
    /// Whether its device makes no progress: it answers, and computes nothing.
    pub(super) is_stuck: bool,
    pub(super) blocks: BTreeMap<BlockId, u64>,
    pub(super) reserved: BTreeMap<BlockId, u64>,
    /// Copies that are not committed, as far as the supervisor knows: they count for nothing.
    unverified: BTreeSet<BlockId>,
    fence: Fence,
    at: Stamp,
    since: Duration,
}

impl SimHost {
    pub(super) fn used(&self) -> u64 {
        self.blocks.values().chain(self.reserved.values()).sum()
    }

    fn next(&mut self) -> Stamp {
        self.at.count += 1;
        self.at
    }
}

enum Message {
    Order(HostId, AgentOrder),
    Reply(Term, u64, AgentReply),
    Inventory(Term, Inventory, Vec<HostId>),
    Notice(Term, QueryNodeNotice),
    Switched(Term, u64),
    Recomputed(Term, u64, bool),
    Encode { host: HostId, by: (Term, u64), need: BlockNeed, anchor: Option<AnchorCopy>, tell: Option<u64> },
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) cluster: Cluster,
    pub(super) settings: ClusterSettings,
    pub(super) hosts: BTreeMap<HostId, SimHost>,
    pub(super) contexts: BTreeMap<ContextId, ContextClaim>,
    pub(super) routes: BTreeMap<(ContextId, BlockId), HostId>,
    pub(super) drains: Vec<DrainProgress>,
    /// Messages lost, in thousandths.
    pub(super) loss: u64,
    pub(super) moved: u64,
    /// Supervisors that were replaced by one above what somebody had seen.
    pub(super) replaced: u64,
    /// The term that every context was announced to, and the highest that the query node has seen.
    announced: Term,
    seen: Term,
    /// What orders were followed, to tell how a block was lost.
    log: Vec<(Duration, HostId, (Term, u64), String)>,
    chance: Chance,
    messages: Vec<(Duration, Message)>,
    /// Blocks that some living host holds or has held since it last died out.
    safe: BTreeSet<BlockId>,
    heal: BTreeMap<ContextId, Vec<HostId>>,
    beat: Duration,
}

impl World {
    pub(super) fn new(seed: u64, hosts: u16, capacity: u64, settings: ClusterSettings) -> Self {
        let cluster = Cluster::new(Duration::ZERO, WALL, term(1), settings.clone(), BTreeMap::new());
        let mut world = Self {
            now: Duration::ZERO,
            cluster,
            settings,
            hosts: BTreeMap::new(),
            contexts: BTreeMap::new(),
            routes: BTreeMap::new(),
            drains: Vec::new(),
            loss: 0,
            moved: 0,
            replaced: 0,
            announced: Term::NONE,
            seen: Term::NONE,
            log: Vec::new(),
            chance: Chance(seed),
            messages: Vec::new(),
            safe: BTreeSet::new(),
            heal: BTreeMap::new(),
            beat: Duration::ZERO,
        };
        (0..hosts).for_each(|number| world.join(number, capacity));
        world
    }

    pub(super) fn join(&mut self, number: u16, capacity: u64) {
        let fence =
            self.hosts.remove(&host(number)).map_or_else(|| (Fence::default(), 0), |h| (h.fence, h.at.start));
        let at = Stamp { start: fence.1 + 1, count: 0 };
        let (blocks, reserved) = (BTreeMap::new(), BTreeMap::new());
        let unverified = BTreeSet::new();
        let joined = SimHost {
            capacity,
            is_up: true,
            is_stuck: false,
            blocks,
            reserved,
            unverified,
            fence: fence.0,
            at,
            since: self.now,
        };
        self.hosts.insert(host(number), joined);
    }

    pub(super) fn kill(&mut self, id: HostId) {
        if let Some(host) = self.hosts.get_mut(&id) {
            let held: Vec<_> = host.blocks.keys().collect();
            self.log.push((self.now, id, (Term::NONE, 0), format!("killed with {held:?}")));
            host.is_up = false;
            host.blocks.clear();
            host.reserved.clear();
            host.unverified.clear();
        }
        // A copy that is on its way out does not count: the one that it moved to does.
        let counts = |host: &HostId, block: &BlockId| {
            let hold = self.cluster.table.hold(*host, block);
            !matches!(hold, Some(Hold::Leaving | Hold::Freeing(_)))
                && !self.hosts[host].unverified.contains(block)
        };
        let held: BTreeSet<_> = self
            .hosts
            .iter()
            .flat_map(|(host, h)| h.blocks.keys().filter(move |block| counts(host, block)))
            .copied()
            .collect();
        self.safe.retain(|id| held.contains(id));
    }

    pub(super) fn restart_supervisor(&mut self) {
        let next = self.cluster.term().next(self.cluster.term().node);
        self.supervise(next);
    }

    /// A supervisor of `term` takes the place of the one before, which says nothing any more.
    pub(super) fn supervise(&mut self, term: Term) {
        let intents = self.cluster.intents.clone();
        self.cluster = Cluster::new(self.now, WALL + self.now, term, self.settings.clone(), intents);
    }

    pub(super) fn place(&mut self, claim: ContextClaim, suspects: &[HostId]) -> Result<(), Refusal> {
        let placed = self.cluster.place(self.now, claim.clone(), suspects)?;
        for (need, placed) in claim.needs.iter().zip(&placed.placed) {
            self.routes.insert((claim.context, need.id), placed.host);
            let anchor = claim.anchor.filter(|_| placed.anchor_copy);
            let by = (placed_by(&self.cluster), placed_version(&self.cluster));
            self.send(Message::Encode { host: placed.host, by, need: *need, anchor, tell: None });
        }
        self.seen = self.seen.max(self.cluster.term());
        self.contexts.insert(claim.context, claim);
        Ok(())
    }

    pub(super) fn release(&mut self, context: ContextId) {
        self.contexts.remove(&context);
        self.heal.remove(&context);
        self.routes.retain(|(of, _), _| *of != context);
        self.cluster.release(self.now, ContextKey { query_node: QUERY, context });
    }

    fn send(&mut self, message: Message) {
        let delay = Duration::from_millis(self.chance.below(700));
        // Calls over a connection arrive in order or not at all; these are told apart by what they carry.
        if self.chance.below(1000) >= self.loss {
            self.messages.push((self.now + delay, message));
        }
    }

    /// Lets time pass, and checks what must always hold.
    pub(super) fn step(&mut self) {
        self.now += STEP;
        if self.now >= self.beat {
            self.beat = self.now + Duration::from_secs(1);
            self.report();
            self.cluster.renew(self.now, QUERY, self.announced, self.seen);
            self.cluster.tick(self.now);
            self.heal_routes();
        }
        self.act();
        let (due, later) =
            std::mem::take(&mut self.messages).into_iter().partition(|(at, _)| *at <= self.now);
        self.messages = later;
        let mut due: Vec<(Duration, Message)> = due;
        due.sort_by_key(|(at, _)| *at);
        for (_, message) in due {
            self.deliver(message);
            self.act();
        }
        self.count_copies();
        self.check();
    }

    /// Copies count once the table says that they are there.
    fn count_copies(&mut self) {
        for (id, host) in &mut self.hosts {
            host.unverified.retain(|block| {
                !matches!(
                    self.cluster.table.hold(*id, block),
                    Some(Hold::Held | Hold::Leaving | Hold::Promised)
                )
            });
        }
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn report(&mut self) {
        let term = self.cluster.term();
        for id in self.hosts.keys().copied().collect::<Vec<_>>() {
            let now = self.now;
            let host = self.hosts.get_mut(&id).expect("just listed");
            if !host.is_up {
                continue;
            }
            let held = |blocks: &BTreeMap<BlockId, u64>| {
                blocks.iter().map(|(&id, &bytes)| HeldBlock { id, bytes }).collect::<Vec<_>>()
            };
            let at = host.next();
            let inventory = HostInventory {
                encode_tokens_per_s: 1000,
                copy_bytes_per_s: 1000,
                ..HostInventory::of(id, host.capacity, held(&host.blocks))
            };
            let up_ms = (now - host.since).as_millis() as u64;
            let seen = host.fence.highest();
            let (node, hosts) = (NodeKey::of(id), vec![inventory]);
            let inventory = Inventory { node, at, up_ms, seen, hosts, disk: None };
            let stuck = host.is_stuck.then_some(id).into_iter().collect();
            self.send(Message::Inventory(term, inventory, stuck));
        }
    }

    fn act(&mut self) {
        let term = self.cluster.term();
        while let Some(action) = self.cluster.poll_action() {
            match action {
                Action::ToAgent { node, order } => {
                    let host =
                        *self.hosts.keys().find(|h| NodeKey::of(**h) == node).expect("orders go to hosts");
                    self.send(Message::Order(host, order));
                }
                Action::ToQueryNode { notice, .. } => self.send(Message::Notice(term, notice)),
                Action::Drain(progress) => self.drains.push(progress),
                Action::Intent { .. } => {}
                // As the member does: one that was replaced starts above what was seen.
                Action::Replaced { highest } => {
                    self.replaced += 1;
                    self.supervise(highest.next(self.cluster.term().node));
                }
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        let current = self.cluster.term();
        match message {
            Message::Order(id, order) => self.follow(id, order),
            Message::Reply(term, order, reply) if term == current => {
                self.cluster.agent_replied(self.now, order, reply)
            }
            Message::Inventory(term, inventory, stuck) if term == current => {
                self.cluster.inventory_with_stuck(self.now, &inventory, &stuck)
            }
            Message::Switched(term, id) if term == current => self.cluster.switched(self.now, QUERY, id),
            Message::Recomputed(term, id, done) if term == current => {
                self.cluster.recomputed(self.now, id, done)
            }
            Message::Notice(term, notice) => self.notice(term, notice),
            Message::Encode { host, by, need, anchor, tell } => {
                let done = self.encode(host, by, need, anchor);
                if let Some(migration) = tell {
                    self.send(Message::Recomputed(by.0, migration, done));
                }
            }
            // Of a supervisor that is not there any more.
            _ => {}
        }
    }

    fn encode(&mut self, id: HostId, by: (Term, u64), need: BlockNeed, anchor: Option<AnchorCopy>) -> bool {
        let is_working = |host: &&mut SimHost| host.is_up && !host.is_stuck;
        let Some(host) = self.hosts.get_mut(&id).filter(is_working) else { return false };
        if host.fence.admit(by.0).is_err() {
            return false;
        }
        self.log.push((self.now, id, by, format!("encode {:?}", need.id)));
        let wanted = [Some((need.id, need.bytes)), anchor.map(|a| (a.id, a.bytes))];
        for (block, bytes) in wanted.into_iter().flatten() {
            host.fence.claim(id, block, by);
            let is_reserved = host.reserved.remove(&block).is_some();
            if !host.blocks.contains_key(&block) {
                if !is_reserved && host.used() + bytes > host.capacity {
                    return false;
                }
                host.blocks.insert(block, bytes);
                self.safe.insert(block);
            }
        }
        true
    }

    fn follow(&mut self, id: HostId, order: AgentOrder) {
        let (by, number) = ((order.term, order.version), order.order);
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.is_up) else { return };
        let reply = match host.fence.admit(order.term) {
            Err(refusal) => AgentReply::Refused(refusal),
            Ok(_) => {
                let asked = format!("{:?}", order.request);
                let reply = self.obey(id, by, order.request);
                self.log.push((self.now, id, by, format!("{asked} -> {reply:?}")));
                reply
            }
        };
        self.send(Message::Reply(by.0, number, reply));
    }

    fn obey(&mut self, id: HostId, by: (Term, u64), request: AgentRequest) -> AgentReply {
        let from_holds = match &request {
            AgentRequest::Pull { block, from, .. } => {
                self.hosts.get(from).is_some_and(|h| h.is_up && h.blocks.contains_key(block))
            }
            _ => false,
        };
        let host = self.hosts.get_mut(&id).expect("just found");
        let checksum = |block: &BlockId| Checksum::of(block.as_bytes());
        match request {
            AgentRequest::Reserve { block, bytes, .. } => {
                host.fence.claim(id, block, by);
                let free_bytes = host.capacity.saturating_sub(host.used());
                if host.blocks.contains_key(&block) {
                    AgentReply::Reserved { held: false }
                } else if bytes > free_bytes {
                    AgentReply::Refused(AgentRefusal::Full { needed_bytes: bytes, free_bytes })
                } else {
                    host.reserved.insert(block, bytes);
                    AgentReply::Reserved { held: false }
                }
            }
            AgentRequest::Pull { block, from, .. } => match host.reserved.get(&block).copied() {
                Some(bytes) if from_holds => {
                    host.reserved.remove(&block);
                    host.blocks.insert(block, bytes);
                    host.unverified.insert(block);
                    AgentReply::Pulled { checksum: checksum(&block), at: host.next() }
                }
                _ => AgentReply::Refused(AgentRefusal::NoSuchBlock { host: from, block }),
            },
            AgentRequest::Verify { block, .. } if host.blocks.contains_key(&block) => {
                AgentReply::Checksum { checksum: checksum(&block), at: host.next() }
            }
            AgentRequest::Verify { block, .. } => {
                AgentReply::Refused(AgentRefusal::NoSuchBlock { host: id, block })
            }
            AgentRequest::Free { blocks, .. } => {
                for block in host.fence.freeable(id, &blocks, by) {
                    host.blocks.remove(&block);
                    host.unverified.remove(&block);
                    host.reserved.remove(&block);
                }
                AgentReply::Freed { at: host.next() }
            }
            AgentRequest::Encode(_) | AgentRequest::Inventory => {
                panic!("the supervisor does not ask for that")
            }
        }
    }

    fn notice(&mut self, term: Term, notice: QueryNodeNotice) {
        match notice {
            QueryNodeNotice::Announce { .. } if term == self.cluster.term() => {
                (self.announced, self.seen) = (term, term.max(self.seen));
                for claim in self.contexts.values().cloned().collect::<Vec<_>>() {
                    self.cluster.hold(self.now, claim);
                }
            }
            QueryNodeNotice::Announce { .. } => {}
            QueryNodeNotice::Moved { migration, block, from, to, .. } => {
                self.moved += 1;
                let routes = self.routes.iter_mut().filter(|((_, id), at)| *id == block && **at == from);
                routes.for_each(|(_, at)| *at = to);
                self.send(Message::Switched(term, migration));
            }
            QueryNodeNotice::Lost { context, suspects, .. } => {
                self.heal.entry(context).or_default().extend(suspects);
            }
            QueryNodeNotice::Recompute { migration, term, version, context, block, at } => {
                let Some(claim) = self.contexts.get(&context) else { return };
                let Some(need) = claim.needs.iter().find(|need| need.id == block).copied() else { return };
                let by = (term, version);
                self.send(Message::Encode { host: at, by, need, anchor: None, tell: Some(migration) });
            }
        }
    }

    /// What a decode step would find: routes to hosts without the block are healed.
    fn heal_routes(&mut self) {
        let is_bad = |id: &BlockId, host: &HostId| {
            !self.hosts.get(host).is_some_and(|h| h.is_up && !h.is_stuck && h.blocks.contains_key(id))
        };
        for ((context, id), host) in &self.routes {
            if is_bad(id, host) {
                let is_up = self.hosts.get(host).is_some_and(|h| h.is_up && !h.is_stuck);
                self.heal.entry(*context).or_default().extend((!is_up).then_some(*host));
            }
        }
        for (context, suspects) in std::mem::take(&mut self.heal) {
            if let Some(claim) = self.contexts.get(&context).cloned()
                && self.place(claim, &suspects).is_err()
            {
                self.heal.insert(context, suspects);
            }
        }
    }

    pub(super) fn check(&self) {
        self.cluster.table.check();
        for (id, host) in &self.hosts {
            assert!(host.used() <= host.capacity, "{id} holds {} of {} bytes", host.used(), host.capacity);
        }
        for (id, entry) in &self.cluster.table.hosts {
            let (used, capacity) = (entry.used_bytes, entry.capacity_bytes);
            assert!(used <= capacity, "{used} of {capacity} bytes are promised on {id}");
        }
        let held: BTreeSet<_> = self.hosts.values().flat_map(|host| host.blocks.keys()).collect();
        for need in self.contexts.values().flat_map(|claim| &claim.needs) {
            if self.safe.contains(&need.id) && !held.contains(&need.id) {
                panic!("block {} was freed by all at {:?}:\n{}", need.id, self.now, self.story(&need.id));
            }
        }
    }

    /// What happened to a block.
    fn story(&self, block: &BlockId) -> String {
        let name = format!("{block:?}");
        let lines = self.log.iter().filter(|(_, _, _, what)| what.contains(&name));
        lines
            .map(|(at, host, by, what)| format!("{at:?} {host} {by:?} {}\n", &what[..what.len().min(300)]))
            .collect()
    }

    /// Blocks of contexts that are not where their routes lead.
    pub(super) fn missing(&self) -> usize {
        let is_there = |id: &BlockId, host: &HostId| {
            self.hosts.get(host).is_some_and(|h| h.is_up && !h.is_stuck && h.blocks.contains_key(id))
        };
        self.routes.iter().filter(|((_, id), host)| !is_there(id, host)).count()
    }
}

fn placed_by(cluster: &Cluster) -> Term {
    cluster.term()
}

fn placed_version(cluster: &Cluster) -> u64 {
    cluster.table.version
}
