//! The query side of a node: its contexts, the claims that it keeps at the supervisor, and how a context is placed, encoded and
//! healed. Where blocks lie and what a merge must cover are the real code; the order of steps is that of `path::heal`. Sessions
//! are in [`crate::sessions`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use stellate_actors::cluster::messages::{
    AgentOrder, AgentRefusal, AgentReply, AgentRequest, ContextClaim, ContextKey, ContextPlaced, EncodeOrder,
    NodeKey, PlacedBlock, QueryNodeNotice, Refusal, SupervisorReply, SupervisorRequest,
};
use stellate_actors::cluster::term::Term;
use stellate_actors::link::HostId;
use stellate_actors::manifest::ContextId;
use stellate_actors::placement::Placed;
use stellate_actors::session::SessionId;
use stellate_actors::whereabouts::Moved;

use crate::chance::digest;
use crate::context::{BLOCK_TOKENS, Context, ContextSpec};
use crate::disk::{Kept, Write};
use crate::message::{Call, Message, Purpose, Timer};
use crate::mutation::Mutation;
use crate::node::node_of;
use crate::owning::Errand;
use crate::sessions::Session;
use crate::supervise::is_passing;
use crate::world::World;

/// How long a supervisor that is not there, or has just started, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const POLL: Duration = Duration::from_millis(200);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Times that a context is placed before it is given up.
const TRIES: u32 = 8;
/// The pause before the third try; each later one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What a host answers for a block, to a query.
pub(crate) fn part(query: u64, content: u64) -> u64 {
    digest([query, content])
}

/// How a context is brought to where it shall lie.
#[derive(Debug)]
pub(crate) struct Settle {
    /// What belongs to an earlier try has no effect.
    attempt: u64,
    suspects: Vec<HostId>,
    tries: u32,
    pause: Duration,
    /// When the supervisor is not waited for any longer.
    patience: Duration,
    placed: Option<ContextPlaced>,
    /// Blocks that are being encoded.
    waiting: usize,
    failure: Option<(HostId, Option<AgentRefusal>)>,
}

/// The query side of a node.
#[derive(Debug)]
pub(crate) struct QueryNode {
    pub(crate) key: NodeKey,
    pub(crate) contexts: BTreeMap<ContextId, Context>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    seen: Term,
    /// The term of the supervisor that knows of a context.
    told: BTreeMap<ContextId, Term>,
    /// Contexts whose end no supervisor knows of yet.
    released: BTreeSet<ContextId>,
    /// Moves that are followed as soon as no step is under way, and until when that is told.
    pub(crate) switches: Vec<(SupervisorRequest, Duration)>,
}

impl QueryNode {
    /// The query side of a node that has just been opened, with what it remembers.
    pub(crate) fn opened(key: NodeKey, kept: &Kept) -> Self {
        let context = |spec: &ContextSpec| {
            let context = Context { is_made: true, ..Context::new(key, spec.clone()) };
            (spec.id, context)
        };
        Self {
            key,
            contexts: kept.contexts.values().map(context).collect(),
            sessions: BTreeMap::new(),
            seen: Term::NONE,
            told: BTreeMap::new(),
            released: BTreeSet::new(),
            switches: Vec::new(),
        }
    }

    fn note(&mut self, term: Term) {
        self.seen = self.seen.max(term);
    }

    /// Contexts that the supervisor of the latest term does not know of: those that were placed once, also while they are
    /// encoded, and are not being placed, which tells of them.
    fn untold(&self) -> Vec<ContextClaim> {
        let is_placing = |settle: &Settle| settle.placed.is_none();
        let is_untold = |context: &&Context| {
            let told = self.told.get(&context.spec.id);
            let is_kept = context.is_made || told.is_some();
            is_kept && !context.settle.as_ref().is_some_and(is_placing) && told != Some(&self.seen)
        };
        self.contexts.values().filter(is_untold).map(|context| context.claim.clone()).collect()
    }
}

impl World {
    /// What the query side does once a second.
    pub(crate) fn query_beat(&mut self, number: u16) {
        let drops = self.has(Mutation::DropAnnouncement);
        let Some(supervisor) = self.supervisor_for(number) else { return };
        let Some(query) = &self.node(number).query else { return };
        let (node, seen, untold) = (query.key, query.seen, query.untold());
        let announced = if untold.is_empty() || drops { seen } else { Term::NONE };
        for context in query.released.iter().copied().collect::<Vec<_>>() {
            let request = SupervisorRequest::Release(ContextKey { query_node: node, context });
            self.ask(number, supervisor, Purpose::Release(context), request);
        }
        for claim in untold.into_iter().filter(|_| !drops) {
            let purpose = Purpose::Hold(claim.context);
            self.ask(number, supervisor, purpose, SupervisorRequest::Hold(claim));
        }
        self.ask(number, supervisor, Purpose::Renew, SupervisorRequest::Renew { node, announced, seen });
    }

    fn ask(&mut self, number: u16, supervisor: u16, purpose: Purpose, request: SupervisorRequest) {
        self.call(number, supervisor, purpose, Some(ANSWER), |call| Message::Ask(call, request));
    }

    /// Tells the supervisor what it must hear, until it has or it takes too long.
    pub(crate) fn tell(&mut self, number: u16, request: SupervisorRequest, until: Duration) {
        match self.supervisor_for(number) {
            Some(supervisor) => {
                self.ask(number, supervisor, Purpose::MustHear(request.clone(), until), request);
            }
            None if self.now < until => self.after(number, POLL, Timer::Tell(request, until)),
            None => {}
        }
    }

    /// A context is made.
    pub(crate) fn make_context(&mut self, number: u16, blocks: u64) {
        let name = self.name();
        let replicas = self.scenario.shape.replicas;
        let last = self.chance.between(1, BLOCK_TOKENS as u64);
        let tokens = (blocks - 1) * BLOCK_TOKENS as u64 + last;
        let ids: Arc<[u32]> = (0..tokens).map(|_| self.chance.word() as u32).collect();
        let Some(query) = &mut self.node_mut(number).query else { return };
        let spec = ContextSpec { id: ContextId(name), ids, replicas };
        query.contexts.insert(spec.id, Context::new(query.key, spec));
        self.settle(number, ContextId(name), Vec::new());
    }

    /// A context is given up, and the sessions over it.
    pub(crate) fn release_context(&mut self, number: u16, context: ContextId) {
        if self.write(number, Write::Gone(context)).is_none() {
            return self.checks.refused("the disk is full");
        }
        let Some(query) = &mut self.node_mut(number).query else { return };
        query.contexts.remove(&context);
        query.told.remove(&context);
        query.released.insert(context);
        query.sessions.retain(|_, session| session.context != context);
        let owned = self.node(number).copies.owned.iter();
        let of_it = owned.filter(|(_, owned)| owned.is_taken() && owned.owner.head().context == context);
        for session in of_it.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.checks.forgotten(session);
            self.errand(number, session, Errand::Remove);
        }
    }

    /// Sees to it that a context is here, which a session is over that was elsewhere. False if it cannot be.
    pub(crate) fn adopt(&mut self, number: u16, spec: &ContextSpec) -> bool {
        let now = self.now;
        let Some(query) = &self.node(number).query else { return false };
        if query.contexts.contains_key(&spec.id) {
            return true;
        }
        if self.write(number, Write::Context(spec.clone())).is_none() {
            return false;
        }
        let Some(query) = &mut self.node_mut(number).query else { return false };
        let context = Context { is_made: true, came: Some(now), ..Context::new(query.key, spec.clone()) };
        query.contexts.insert(spec.id, context);
        query.released.remove(&spec.id);
        query.told.remove(&spec.id);
        true
    }

    /// Brings a context to where it shall lie, unless that is being done.
    pub(crate) fn settle(&mut self, number: u16, id: ContextId, suspects: Vec<HostId>) {
        let (attempt, patience) = (self.name(), self.now + PATIENCE);
        let Some(context) = self.context(number, id).filter(|context| context.settle.is_none()) else {
            return;
        };
        let (tries, pause) = (TRIES, Duration::ZERO);
        context.settle = Some(Settle {
            attempt,
            suspects,
            tries,
            pause,
            patience,
            placed: None,
            waiting: 0,
            failure: None,
        });
        self.place(number, id);
    }

    pub(crate) fn context(&mut self, number: u16, id: ContextId) -> Option<&mut Context> {
        self.node_mut(number).query.as_mut()?.contexts.get_mut(&id)
    }

    /// Asks the supervisor where a context shall lie.
    fn place(&mut self, number: u16, id: ContextId) {
        let now = self.now;
        let supervisor = self.supervisor_for(number);
        let Some(context) = self.context(number, id) else { return };
        let Some(settle) = &mut context.settle else { return };
        (settle.placed, settle.waiting, settle.failure) = (None, 0, None);
        let (attempt, claim, suspects) = (settle.attempt, context.claim.clone(), settle.suspects.clone());
        let is_over = settle.patience <= now;
        match supervisor {
            Some(supervisor) => {
                let request = SupervisorRequest::Place { claim, suspects };
                self.ask(number, supervisor, Purpose::Place(id, attempt), request);
            }
            None if is_over => self.settled(number, id, Err("no supervisor")),
            None => self.after(number, POLL, Timer::Settle(id, attempt)),
        }
    }

    /// Another try, or another look for a supervisor.
    pub(crate) fn settle_again(&mut self, number: u16, id: ContextId, attempt: u64) {
        let Some(context) = self.context(number, id) else { return };
        if context.settle.as_ref().is_some_and(|settle| settle.attempt == attempt && settle.waiting == 0) {
            self.place(number, id);
        }
    }

    fn placed(&mut self, number: u16, id: ContextId, reply: Option<SupervisorReply>) {
        let now = self.now;
        let Some(context) = self.context(number, id) else { return };
        let Some(settle) = &mut context.settle else { return };
        let (attempt, is_over) = (settle.attempt, settle.patience <= now);
        match reply {
            Some(SupervisorReply::Placed(placed)) => self.encode_missing(number, id, placed),
            Some(SupervisorReply::Refused(refusal)) if is_passing(&refusal) && !is_over => {
                self.after(number, POLL, Timer::Settle(id, attempt));
            }
            // Without the hosts that did not answer there is no room: they may be back by now.
            Some(SupervisorReply::Refused(Refusal::NoRoom { .. })) if !settle.suspects.is_empty() => {
                settle.suspects.clear();
                self.try_again(number, id, "no room");
            }
            Some(SupervisorReply::Refused(Refusal::NoRoom { .. })) => {
                self.settled(number, id, Err("no room"));
            }
            None if !is_over => self.after(number, POLL, Timer::Settle(id, attempt)),
            Some(_) | None => self.settled(number, id, Err("the supervisor refused")),
        }
    }

    /// Has every block encoded that is not there, where it was placed.
    fn encode_missing(&mut self, number: u16, id: ContextId, placed: ContextPlaced) {
        let Some(query) = &mut self.node_mut(number).query else { return };
        query.note(placed.term);
        query.told.insert(id, placed.term);
        let Some(context) = query.contexts.get_mut(&id) else { return };
        let orders: Vec<_> = context
            .manifest
            .blocks
            .iter()
            .zip(&placed.placed)
            .filter_map(|(block, at)| context.encode(&block.id, at))
            .collect();
        let settle = context.settle.as_mut().expect("it is being placed");
        let (attempt, by) = (settle.attempt, (placed.term, placed.version));
        (settle.placed, settle.waiting) = (Some(placed), orders.len());
        for order in orders {
            let host = order.host;
            self.order_encode(number, by, order, Purpose::Encode(id, attempt, host));
        }
    }

    fn order_encode(&mut self, number: u16, by: (Term, u64), order: EncodeOrder, purpose: Purpose) {
        let name = self.name();
        let to = node_of(order.host);
        let request = AgentRequest::Encode(order);
        let order = AgentOrder { term: by.0, version: by.1, order: name, request };
        self.call(number, to, purpose, None, |call| Message::Order(call, order));
    }

    /// A block was encoded, or was not.
    fn encoded(
        &mut self,
        number: u16,
        (id, attempt, host): (ContextId, u64, HostId),
        reply: Option<AgentReply>,
    ) {
        let Some(context) = self.context(number, id) else { return };
        let Some(settle) = context.settle.as_mut().filter(|settle| settle.attempt == attempt) else { return };
        settle.waiting = settle.waiting.saturating_sub(1);
        match reply {
            Some(AgentReply::Encoded { .. }) => {}
            Some(AgentReply::Refused(refusal)) => settle.failure = Some((host, Some(refusal))),
            Some(_) | None => settle.failure = Some((host, None)),
        }
        if settle.waiting > 0 {
            return;
        }
        match settle.failure.take() {
            None => self.settled(number, id, Ok(())),
            Some((host, None)) => {
                settle.suspects.retain(|known| *known != host);
                settle.suspects.push(host);
                self.try_again(number, id, "a host does not answer");
            }
            // Of a supervisor that was replaced, freed on the way, or full for a moment.
            Some((_, Some(_))) => self.try_again(number, id, "a host refused"),
        }
    }

    fn try_again(&mut self, number: u16, id: ContextId, cause: &'static str) {
        let (name, patience) = (self.name(), self.now + PATIENCE);
        let Some(settle) = self.context(number, id).and_then(|context| context.settle.as_mut()) else {
            return;
        };
        (settle.attempt, settle.patience, settle.tries) = (name, patience, settle.tries - 1);
        (settle.waiting, settle.failure) = (0, None);
        let (tries, pause) = (settle.tries, settle.pause);
        settle.pause = (2 * pause).max(FIRST_PAUSE);
        match tries {
            0 => self.settled(number, id, Err(cause)),
            _ => self.after(number, pause, Timer::Settle(id, name)),
        }
    }

    /// A context lies where it shall, or was given up.
    fn settled(&mut self, number: u16, id: ContextId, outcome: Result<(), &'static str>) {
        let Some(context) = self.context(number, id) else { return };
        let Some(settle) = context.settle.take() else { return };
        let is_made = context.is_made;
        if outcome.is_ok() {
            let placed = settle.placed.expect("it was placed");
            let lies = placed.placed.iter().map(|at| Placed {
                host: at.host,
                held: at.held,
                anchor_copy: at.anchor_copy,
                anchor_from: at.anchor_from,
            });
            context.whereabouts.set(&context.manifest, lies.collect(), (placed.term, placed.version));
        }
        match outcome {
            _ if is_made => self.healed(number, id, outcome),
            Ok(()) => {
                let spec = context.spec.clone();
                match self.write(number, Write::Context(spec)) {
                    write @ Some(_) => self.context(number, id).expect("just looked at").writing = write,
                    None => self.give_up(number, id, "the disk is full"),
                }
            }
            Err(cause) => self.give_up(number, id, cause),
        }
    }

    /// A context that is new is not made.
    fn give_up(&mut self, number: u16, id: ContextId, cause: &'static str) {
        self.checks.refused(cause);
        let Some(query) = &mut self.node_mut(number).query else { return };
        query.contexts.remove(&id);
        query.told.remove(&id);
        query.released.insert(id);
    }

    /// Manifests may be on the disk now.
    pub(crate) fn query_kept(&mut self, number: u16, write: u64) {
        let Some(query) = &mut self.node_mut(number).query else { return };
        let mut made = Vec::new();
        for (id, context) in &mut query.contexts {
            if context.writing.take_if(|writing| *writing <= write).is_some() {
                context.is_made = true;
                made.push(*id);
            }
        }
        for id in made {
            self.checks.made_context();
            self.open_sessions(number, id);
        }
    }

    /// A supervisor says something.
    pub(crate) fn noticed(&mut self, number: u16, notice: QueryNodeNotice) {
        let until = self.now + PATIENCE;
        let Some(query) = &mut self.node_mut(number).query else { return };
        match notice {
            QueryNodeNotice::Announce { term } => query.note(term),
            QueryNodeNotice::Moved { migration, term, version, block, from, to } => {
                query.note(term);
                let moved = Moved { block, from, to, term, version };
                for context in query.contexts.values() {
                    context.whereabouts.moved(&context.manifest, &moved);
                }
                let request = SupervisorRequest::Switched { node: query.key, term, migration };
                self.tell_between_steps(number, request, until);
            }
            QueryNodeNotice::Lost { context, suspects, .. } => {
                if query.contexts.get(&context).is_some_and(|context| context.is_made) {
                    self.settle(number, context, suspects);
                }
            }
            QueryNodeNotice::Recompute { migration, term, version, context, block, at } => {
                query.note(term);
                let placed = PlacedBlock { host: at, held: false, anchor_copy: false, anchor_from: None };
                let order = query.contexts.get(&context).and_then(|context| context.encode(&block, &placed));
                let told = |done| SupervisorRequest::Recomputed { term, migration, done };
                match order {
                    Some(order) => {
                        self.order_encode(number, (term, version), order, Purpose::Recompute(told(true)))
                    }
                    None => self.tell(number, told(false), until),
                }
            }
        }
    }

    /// Something was answered.
    pub(crate) fn answered(&mut self, number: u16, call: Call, answer: Message) {
        match (call.purpose, answer) {
            (Purpose::Order { instance, order }, Message::Obeyed(_, reply)) => {
                self.order_answered(number, instance, order, Some(reply));
            }
            (Purpose::Place(context, attempt), Message::Answer(_, reply)) => {
                let context_of = self.context(number, context);
                let is_current = context_of
                    .and_then(|context| context.settle.as_ref())
                    .is_some_and(|settle| settle.attempt == attempt && settle.placed.is_none());
                if is_current {
                    self.placed(number, context, Some(reply));
                }
            }
            (Purpose::Encode(context, attempt, host), Message::Obeyed(_, reply)) => {
                self.encoded(number, (context, attempt, host), Some(reply));
            }
            (Purpose::Recompute(told), Message::Obeyed(_, reply)) => {
                let is_there = matches!(reply, AgentReply::Encoded { .. });
                self.tell(number, with_outcome(told, is_there), self.now + PATIENCE);
            }
            (Purpose::MustHear(request, until), Message::Answer(_, SupervisorReply::Refused(refusal)))
                if is_passing(&refusal) =>
            {
                self.after(number, POLL, Timer::Tell(request, until));
            }
            (Purpose::Attend(session, step, host), Message::Attended(_, reply)) => {
                self.attended(number, (session, step, host), Some(reply));
            }
            (Purpose::Fetch(block), Message::Fetched(_, sent)) => self.fetched(number, block, sent),
            (Purpose::Store(name, id, to), Message::Kept(_, reply)) => {
                self.stored(number, (name, id, to), reply)
            }
            (Purpose::Fence(name, id, to), Message::Kept(_, reply)) => {
                self.fenced(number, (name, id, to), reply)
            }
            (Purpose::Look(name, id, to), Message::Looked(_, copy)) => {
                self.looked(number, (name, id, to), Some(copy));
            }
            (Purpose::Log(name, id), Message::Logged(_, log)) => self.log_fetched(number, (name, id), log),
            (purpose, Message::Answer(_, reply)) => self.noted(number, purpose, reply),
            _ => {}
        }
    }

    /// The supervisor has noted something.
    fn noted(&mut self, number: u16, purpose: Purpose, reply: SupervisorReply) {
        let Some(query) = &mut self.node_mut(number).query else { return };
        match (purpose, reply) {
            (Purpose::Renew, SupervisorReply::Noted(term)) => query.note(term),
            (Purpose::Hold(context), SupervisorReply::Noted(term))
                if query.contexts.contains_key(&context) =>
            {
                query.told.insert(context, term);
            }
            (Purpose::Release(context), SupervisorReply::Done) => drop(query.released.remove(&context)),
            _ => {}
        }
    }

    /// A call was given up.
    pub(crate) fn call_failed(&mut self, number: u16, call: Call) {
        match call.purpose {
            Purpose::Order { instance, order } => self.order_answered(number, instance, order, None),
            Purpose::Place(context, attempt) => {
                let settle = self.context(number, context).and_then(|context| context.settle.as_ref());
                if settle.is_some_and(|settle| settle.attempt == attempt && settle.placed.is_none()) {
                    self.placed(number, context, None);
                }
            }
            Purpose::Encode(context, attempt, host) => self.encoded(number, (context, attempt, host), None),
            Purpose::Recompute(told) => {
                self.tell(number, with_outcome(told, false), self.now + PATIENCE);
            }
            Purpose::MustHear(request, until) if self.now < until => {
                self.after(number, POLL, Timer::Tell(request, until));
            }
            Purpose::Attend(session, step, host) => self.attended(number, (session, step, host), None),
            Purpose::Fetch(block) => self.fetched(number, block, None),
            Purpose::Store(name, id, to) => self.stored(number, (name, id, to), None),
            Purpose::Fence(name, id, to) => self.fenced(number, (name, id, to), None),
            Purpose::Look(name, id, to) => self.looked(number, (name, id, to), None),
            Purpose::Log(name, id) => self.log_fetched(number, (name, id), None),
            _ => {}
        }
    }
}

fn with_outcome(told: SupervisorRequest, is_there: bool) -> SupervisorRequest {
    match told {
        SupervisorRequest::Recomputed { term, migration, .. } => {
            SupervisorRequest::Recomputed { term, migration, done: is_there }
        }
        other => other,
    }
}
