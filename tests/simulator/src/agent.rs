//! A node's agent and its context host: the real fence, around blocks whose contents are names. What a block holds is told by
//! its address ([`truth`]), so that anything else is seen wherever it shows up.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use stellate_actors::checksum::Checksum;
use stellate_actors::cluster::agent::Fence;
use stellate_actors::cluster::messages::{
    AgentOrder, AgentRefusal, AgentReply, AgentRequest, EncodeOrder, HeldBlock, HostInventory, Inventory,
    Stamp, SupervisorRequest,
};
use stellate_actors::cluster::term::Term;
use stellate_actors::link::HostId;
use stellate_model::block::BlockId;

use crate::chance::digest;
use crate::context::{Context, TOKEN_BYTES};
use crate::disk::Write;
use crate::message::{Message, Purpose, Timer};
use crate::mutation::Mutation;
use crate::node::{BEAT, Node, node_of};
use crate::query::part;
use crate::world::World;

/// What encoding a block takes.
const ENCODE: Duration = Duration::from_millis(120);

/// What sending a block takes.
const COPY: Duration = Duration::from_millis(40);

/// How long two nodes must have been in touch for one to know what the other needs.
const CALM: Duration = Duration::from_secs(40);

/// Times that a copy whose bytes are others is made again.
const COPIES: u32 = 1;

/// What a block holds, if it is what it should be.
pub(crate) fn truth(block: &BlockId) -> u64 {
    let (words, _) = block.as_bytes().as_chunks();
    digest(words.iter().map(|word| u64::from_le_bytes(*word)))
}

/// The checksum of what a block holds.
fn checksum(content: u64) -> Checksum {
    Checksum::of(&content.to_le_bytes())
}

/// A block that is held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) content: u64,
    /// What it was said to be, where nobody looked.
    claimed: Option<Checksum>,
}

/// A block on its way from elsewhere.
#[derive(Debug)]
struct Copy {
    bytes: u64,
    from: HostId,
    tries: u32,
    /// Who is answered.
    order: (u16, u64),
    /// Orders to encode it that wait for it.
    waiting: Vec<(u16, u64, EncodeOrder)>,
}

#[derive(Debug)]
struct Job {
    number: u64,
    order: EncodeOrder,
    from: u16,
    call: u64,
}

/// A context host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) capacity: u64,
    pub(crate) held: BTreeMap<BlockId, Held>,
    pub(crate) promised: BTreeMap<BlockId, u64>,
    copies: BTreeMap<BlockId, Copy>,
    jobs: VecDeque<Job>,
    /// How many times as long everything takes.
    pub(crate) times: u32,
    /// Copies that are still to be damaged.
    pub(crate) damages: u32,
    /// Answers that are still to name other blocks than they should.
    pub(crate) lies: u32,
}

impl Host {
    pub(crate) fn used(&self) -> u64 {
        let copies = self.copies.values().map(|copy| copy.bytes);
        self.held.values().map(|held| held.bytes).chain(self.promised.values().copied()).chain(copies).sum()
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used())
    }

    /// Copies that come now.
    pub(crate) fn copies(&self) -> usize {
        self.copies.len()
    }
}

/// An agent.
#[derive(Debug)]
pub(crate) struct Agent {
    fence: Fence,
    start: u64,
    count: u64,
    up_since: Duration,
    pub(crate) host: Host,
    /// Orders that wait until a term is on the disk.
    mailbox: VecDeque<(u16, u64, AgentOrder)>,
    raising: Option<u64>,
    jobs: u64,
}

impl Agent {
    /// One that does nothing.
    pub(crate) fn new(capacity: u64) -> Self {
        Self::started(capacity, 0, Term::NONE, Duration::ZERO)
    }

    pub(crate) fn started(capacity: u64, start: u64, seen: Term, up_since: Duration) -> Self {
        let host = Host {
            capacity,
            held: BTreeMap::new(),
            promised: BTreeMap::new(),
            copies: BTreeMap::new(),
            jobs: VecDeque::new(),
            times: 1,
            damages: 0,
            lies: 0,
        };
        let (mailbox, fence) = (VecDeque::new(), Fence::new(seen));
        Self { fence, start, count: 0, up_since, host, mailbox, raising: None, jobs: 0 }
    }

    /// The highest term that it has seen.
    pub(crate) fn seen(&self) -> Term {
        self.fence.highest()
    }

    fn moment(&mut self) -> Stamp {
        self.count += 1;
        Stamp { start: self.start, count: self.count }
    }
}

impl World {
    /// Tells the supervisor what is there.
    pub(crate) fn report(&mut self, number: u16) {
        let inventory = self.inventory(number);
        if let Some(supervisor) = self.supervisor_for(number) {
            let request = SupervisorRequest::Inventory(inventory);
            self.send(number, supervisor, Message::Ask(0, request));
        }
    }

    fn inventory(&mut self, number: u16) -> Inventory {
        let now = self.now;
        let node = self.node_mut(number);
        let (key, host_id, clock) = (node.key, node.host(), node.clock(now));
        let agent = &mut node.agent;
        let at = agent.moment();
        let up_ms = clock.saturating_sub(agent.up_since).as_millis() as u64;
        let host = &agent.host;
        let (capacity_bytes, seen) = (host.capacity, agent.fence.highest());
        let blocks = host.held.iter().map(|(&id, held)| HeldBlock { id, bytes: held.bytes }).collect();
        let inbound = host.copies.keys().map(|&id| HeldBlock { id, bytes: 0 }).collect();
        let (encode_tokens_per_s, copy_bytes_per_s) = (30, 2500);
        let host = HostInventory {
            inbound,
            encode_tokens_per_s,
            copy_bytes_per_s,
            ..HostInventory::of(host_id, capacity_bytes, blocks)
        };
        Inventory { node: key, at, up_ms, seen, hosts: vec![host], disk: None }
    }

    /// An order has come.
    pub(crate) fn ordered(&mut self, number: u16, from: u16, call: u64, order: AgentOrder) {
        self.node_mut(number).agent.mailbox.push_back((from, call, order));
        self.follow_orders(number);
    }

    /// A term may be on the disk now.
    pub(crate) fn term_kept(&mut self, number: u16, write: u64) {
        let agent = &mut self.node_mut(number).agent;
        if agent.raising.is_some_and(|raising| raising <= write) {
            agent.raising = None;
            self.follow_orders(number);
        }
    }

    fn follow_orders(&mut self, number: u16) {
        let follows_any = self.has(Mutation::FollowAnyTerm);
        loop {
            let agent = &mut self.node_mut(number).agent;
            if agent.raising.is_some() {
                return;
            }
            let Some((from, call, order)) = agent.mailbox.pop_front() else { return };
            let before = (order.term > agent.fence.highest()).then(|| agent.fence.clone());
            match agent.fence.admit(order.term) {
                Err(refusal) if !follows_any => {
                    self.send(number, from, Message::Obeyed(call, AgentReply::Refused(refusal)));
                }
                Ok(Some(term)) => {
                    agent.mailbox.push_front((from, call, order));
                    match self.write(number, Write::Seen(term)) {
                        Some(write) => self.node_mut(number).agent.raising = Some(write),
                        None => {
                            // As it was: the order that brought the term is refused.
                            let agent = &mut self.node_mut(number).agent;
                            agent.fence = before.expect("a term that is new is above the highest");
                            agent.mailbox.pop_front();
                            let cause = "the disk is full".to_owned();
                            let refused = AgentReply::Refused(AgentRefusal::Failed { cause });
                            self.send(number, from, Message::Obeyed(call, refused));
                        }
                    }
                }
                Ok(None) | Err(_) => {
                    self.checks.followed(number, order.term);
                    self.obey(number, from, call, order);
                }
            }
        }
    }

    fn obey(&mut self, number: u16, from: u16, call: u64, order: AgentOrder) {
        let by = (order.term, order.version);
        let (overfills, leaks) = (self.has(Mutation::Overfill), self.has(Mutation::LeakFreed));
        let agent = &mut self.node_mut(number).agent;
        let reply = match order.request {
            AgentRequest::Encode(encode) => {
                encode.kept().for_each(|block| agent.fence.claim(encode.host, block, by));
                return self.encode(number, from, call, encode);
            }
            AgentRequest::Reserve { host, block, bytes, .. } => {
                agent.fence.claim(host, block, by);
                let host = &mut agent.host;
                let free_bytes = host.free();
                if host.held.contains_key(&block) {
                    AgentReply::Reserved { held: true }
                } else if host.promised.contains_key(&block) || host.copies.contains_key(&block) {
                    AgentReply::Reserved { held: false }
                } else if bytes > free_bytes && !overfills {
                    AgentReply::Refused(AgentRefusal::Full { needed_bytes: bytes, free_bytes })
                } else {
                    host.promised.insert(block, bytes);
                    AgentReply::Reserved { held: false }
                }
            }
            AgentRequest::Pull { block, from: source, .. } => {
                return self.pull(number, (from, call), block, source);
            }
            AgentRequest::Verify { host, block } => match agent.host.held.get(&block) {
                Some(held) => {
                    let checksum = held.claimed.unwrap_or_else(|| checksum(held.content));
                    AgentReply::Checksum { checksum, at: agent.moment() }
                }
                None => AgentReply::Refused(AgentRefusal::NoSuchBlock { host, block }),
            },
            AgentRequest::Free { host, blocks } => {
                let freed = agent.fence.freeable(host, &blocks, by);
                let held: Vec<_> =
                    freed.iter().filter(|id| agent.host.held.contains_key(id)).copied().collect();
                let ended = if leaks { Vec::new() } else { agent.host.release(&freed) };
                let at = agent.moment();
                self.answer_freed(number, ended);
                self.check_freed(from, &held);
                AgentReply::Freed { at }
            }
            AgentRequest::Inventory => {
                let inventory = self.inventory(number);
                return self.send(number, from, Message::Obeyed(call, AgentReply::Inventory(inventory)));
            }
        };
        self.send(number, from, Message::Obeyed(call, reply));
        self.check_room(number);
    }

    fn check_room(&mut self, number: u16) {
        let (used, capacity) = {
            let host = &self.node(number).agent.host;
            (host.used(), host.capacity)
        };
        self.checks.room(number, used, capacity);
    }

    /// Blocks were freed by order of a supervisor. If it could know that a context needs them, another host holds them.
    fn check_freed(&mut self, supervisor: u16, blocks: &[BlockId]) {
        let calm = |node: &Node| node.is_up && node.paused_at.is_none() && node.disturbed + CALM < self.now;
        // A copy counts from its commit on, and dies with its host like any other.
        let is_recent = |node: &Node| node.crashed.is_some_and(|at| at + CALM > self.now);
        let excused = self.nodes.iter().any(is_recent) || self.scenario.has_second_supervisor();
        if blocks.is_empty() || excused || !calm(self.node(supervisor)) {
            return;
        }
        let is_held = |block: &BlockId| {
            self.nodes.iter().any(|node| node.is_up && node.agent.host.held.contains_key(block))
        };
        let mut lost = None;
        for (number, node) in (0u16..).zip(&self.nodes).filter(|(_, node)| calm(node)) {
            let in_touch = !self.network.has_broken(number, supervisor, self.now.saturating_sub(CALM));
            let contexts = node.query.iter().flat_map(|query| query.contexts.values());
            // One that has just come here with a session is told of at the next beat.
            let is_told = |context: &Context| context.came.is_none_or(|at| at + 3 * BEAT < self.now);
            let contexts = contexts.filter(|context| context.is_made && !context.is_settling());
            for context in contexts.filter(|context| in_touch && is_told(context)) {
                let needed = context.manifest.blocks.iter().map(|block| block.id);
                lost = lost.or(needed.into_iter().find(|id| blocks.contains(id) && !is_held(id)));
            }
        }
        if let Some(block) = lost {
            let what = format!("{block:?} was freed by its last host by order of node {supervisor}");
            self.checks.fail("nothing that is needed is freed by all", what);
        }
    }

    /// Orders whose blocks were freed before they were there.
    fn answer_freed(&mut self, number: u16, ended: Vec<(u16, u64)>) {
        for (to, call) in ended {
            let cause = "the block was freed before it was there".to_owned();
            let refused = AgentReply::Refused(AgentRefusal::Failed { cause });
            self.send(number, to, Message::Obeyed(call, refused));
        }
    }

    fn encode(&mut self, number: u16, from: u16, call: u64, order: EncodeOrder) {
        let agent = &mut self.node_mut(number).agent;
        if let Some(copy) = agent.host.copies.get_mut(&order.block) {
            copy.waiting.push((from, call, order));
            return;
        }
        agent.jobs += 1;
        let job = Job { number: agent.jobs, order, from, call };
        agent.host.jobs.push_back(job);
        if agent.host.jobs.len() == 1 {
            self.begin_job(number);
        }
    }

    fn begin_job(&mut self, number: u16) {
        let host = &self.node(number).agent.host;
        if let Some(job) = host.jobs.front() {
            let (job, times) = (job.number, host.times);
            self.after(number, ENCODE * times, Timer::Device(job));
        }
    }

    /// The device has done a job.
    pub(crate) fn device_done(&mut self, number: u16, job: u64) {
        let overfills = self.has(Mutation::Overfill);
        let agent = &mut self.node_mut(number).agent;
        let host = &mut agent.host;
        // Another one if this was revoked meanwhile.
        if host.jobs.front().is_none_or(|front| front.number != job) {
            return self.begin_job(number);
        }
        let Job { order, from, call, .. } = host.jobs.pop_front().expect("just looked at");
        let reply = host.hold_encoded(&order, overfills);
        self.send(number, from, Message::Obeyed(call, reply));
        self.check_room(number);
        self.begin_job(number);
    }

    fn pull(&mut self, number: u16, order: (u16, u64), block: BlockId, from: HostId) {
        let host_id = self.node(number).host();
        let agent = &mut self.node_mut(number).agent;
        let host = &mut agent.host;
        if let Some(held) = host.held.get(&block) {
            let checksum = checksum(held.content);
            let at = agent.moment();
            return self.send(number, order.0, Message::Obeyed(order.1, AgentReply::Pulled { checksum, at }));
        }
        let promised = host.promised.remove(&block).filter(|_| !host.copies.contains_key(&block));
        let Some(bytes) = promised else {
            let refused = AgentReply::Refused(AgentRefusal::NoSuchBlock { host: host_id, block });
            return self.send(number, order.0, Message::Obeyed(order.1, refused));
        };
        host.copies.insert(block, Copy { bytes, from, tries: 0, order, waiting: Vec::new() });
        self.ask_for_copy(number, block, from);
    }

    fn ask_for_copy(&mut self, number: u16, block: BlockId, from: HostId) {
        let purpose = Purpose::Fetch(block);
        self.call(number, node_of(from), purpose, None, |call| Message::Fetch(call, block));
    }

    /// A block is asked for.
    pub(crate) fn fetch(&mut self, number: u16, from: u16, call: u64, block: BlockId) {
        let host = &self.node(number).agent.host;
        let held = host.held.get(&block).map(|held| (held.content, checksum(held.content)));
        let busy = if held.is_some() { COPY * host.times } else { Duration::ZERO };
        self.send_after(number, from, Message::Fetched(call, held), busy);
    }

    /// A copy has come, or does not come.
    pub(crate) fn fetched(&mut self, number: u16, block: BlockId, sent: Option<(u64, Checksum)>) {
        let seals_unchecked = self.has(Mutation::SealUnchecked);
        let host_id = self.node(number).host();
        let agent = &mut self.node_mut(number).agent;
        let host = &mut agent.host;
        let Some(copy) = host.copies.get_mut(&block) else { return };
        let landed = sent.map(|(content, named)| {
            let is_damaged = host.damages > 0;
            host.damages = host.damages.saturating_sub(1);
            (if is_damaged { digest([content]) } else { content }, named)
        });
        let is_other = |(content, named): (u64, Checksum)| checksum(content) != named && !seals_unchecked;
        if landed.is_some_and(is_other) && copy.tries < COPIES {
            copy.tries += 1;
            let from = copy.from;
            return self.ask_for_copy(number, block, from);
        }
        let copy = host.copies.remove(&block).expect("just looked at");
        let reply = match landed.filter(|&landed| !is_other(landed)) {
            Some((content, named)) => {
                let claimed = seals_unchecked.then_some(named);
                host.held.insert(block, Held { bytes: copy.bytes, content, claimed });
                AgentReply::Pulled { checksum: named, at: agent.moment() }
            }
            None => {
                // The room is kept for whoever comes next.
                host.promised.insert(block, copy.bytes);
                AgentReply::Refused(AgentRefusal::NoSuchBlock { host: host_id, block })
            }
        };
        self.send(number, copy.order.0, Message::Obeyed(copy.order.1, reply));
        for (from, call, order) in copy.waiting {
            self.encode(number, from, call, order);
        }
    }

    /// A step's query has come.
    pub(crate) fn attend(&mut self, number: u16, from: u16, call: u64, query: u64, blocks: &[BlockId]) {
        let host = &mut self.node_mut(number).agent.host;
        let mut reply: Result<Vec<_>, _> = blocks
            .iter()
            .map(|id| host.held.get(id).map(|held| (*id, part(query, held.content))).ok_or(*id))
            .collect();
        if let Ok(parts) = &mut reply
            && host.lies > 0
        {
            host.lies -= 1;
            match host.lies % 2 {
                0 => drop(parts.pop()),
                _ => parts.extend_from_within(..1),
            }
        }
        self.send(number, from, Message::Attended(call, reply));
    }
}

impl Host {
    /// Holds a block that was encoded, and its anchor.
    fn hold_encoded(&mut self, order: &EncodeOrder, overfills: bool) -> AgentReply {
        if self.held.contains_key(&order.block) {
            return AgentReply::Encoded { fresh: false };
        }
        let bytes_of = |ids: &[u32]| ids.len() as u64 * TOKEN_BYTES;
        let anchor = order.anchor.as_ref().filter(|anchor| anchor.is_kept);
        let anchor = anchor.map(|anchor| (anchor.id, bytes_of(&anchor.ids)));
        for (block, bytes) in anchor.into_iter().chain([(order.block, bytes_of(&order.ids))]) {
            if self.held.contains_key(&block) {
                continue;
            }
            let promised = self.promised.remove(&block);
            let free_bytes = self.free();
            if bytes > free_bytes && !overfills {
                if let Some(bytes) = promised {
                    self.promised.insert(block, bytes);
                }
                return AgentReply::Refused(AgentRefusal::Full { needed_bytes: bytes, free_bytes });
            }
            self.held.insert(block, Held { bytes, content: truth(&block), claimed: None });
        }
        AgentReply::Encoded { fresh: true }
    }

    /// Lets go of blocks, of room and of what is on its way: the orders that are answered that it will not come.
    fn release(&mut self, blocks: &[BlockId]) -> Vec<(u16, u64)> {
        let mut ended = Vec::new();
        for block in blocks {
            self.held.remove(block);
            self.promised.remove(block);
            if let Some(copy) = self.copies.remove(block) {
                ended.push(copy.order);
                ended.extend(copy.waiting.iter().map(|(from, call, _)| (*from, *call)));
            }
        }
        let revoked = |job: &Job| blocks.contains(&job.order.block);
        ended.extend(self.jobs.iter().filter(|job| revoked(job)).map(|job| (job.from, job.call)));
        self.jobs.retain(|job| !revoked(job));
        ended
    }
}
