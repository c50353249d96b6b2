//! A cluster on virtual time: nodes, what is under way between them, and what is due when.

use std::collections::BTreeMap;
use std::time::Duration;

use stellate_actors::cluster::term::Term;

use crate::chance::Chance;
use crate::checks::{Checks, Violation};
use crate::disk::Disk;
use crate::message::{Call, Message, Purpose, Timer};
use crate::mutation::Mutation;
use crate::network::Network;
use crate::node::Node;
use crate::scenario::{Scenario, Step};
use crate::trace::Trace;

/// How often it is looked whether a node that was called is still there.
const LOOK: Duration = Duration::from_secs(1);

/// How long an answer is waited for over a connection that loses what it carries.
const WILD: Duration = Duration::from_secs(8);

/// Silence after which a connection counts as broken.
pub(crate) const IDLE: Duration = Duration::from_millis(1500);

/// Events for each node after which something goes round in circles: more than a hundred times what runs have.
const MOST_EVENTS: u64 = 500_000;

/// Something that is due at a node.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Of the scenario.
    Step(usize),
    /// Something has come from a node.
    Arrive(u16, Message),
    /// Of the life in which it was set.
    Timer(u64, Timer),
    /// The node goes on.
    Resume,
}

/// A cluster.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) now: Duration,
    pub(crate) chance: Chance,
    pub(crate) network: Network,
    pub(crate) nodes: Vec<Node>,
    pub(crate) checks: Checks,
    pub(crate) trace: Trace,
    /// What is due, in the order of time and then of chance.
    queue: BTreeMap<(Duration, u64), (u16, Event)>,
    next_event: u64,
    /// What was due so far.
    dispatched: u64,
    next_call: u64,
    /// Names that were given to contexts, sessions and supervisors.
    next_name: u64,
}

impl World {
    pub(crate) fn new(scenario: Scenario, mutation: Option<Mutation>, trace: Trace) -> Self {
        let mut chance = Chance::new(scenario.seed ^ 0x0057_e11a);
        let shape = scenario.shape;
        let nodes = (0..shape.nodes).map(|number| Node::new(number, shape, &mut chance)).collect();
        let mut world = Self {
            network: Network::new(scenario.weather),
            mutation,
            now: Duration::ZERO,
            chance,
            nodes,
            checks: Checks::default(),
            trace,
            queue: BTreeMap::new(),
            next_event: 0,
            dispatched: 0,
            next_call: 0,
            next_name: 0,
            scenario,
        };
        if shape.had_supervisor
            && let Some(last) = world.nodes.last_mut()
        {
            last.disk = Disk::remembering(Term { counter: 5, node: last.key });
        }
        for (index, (at, _)) in world.scenario.steps.clone().into_iter().enumerate() {
            world.schedule(Duration::from_millis(at), 0, Event::Step(index));
        }
        for number in 0..shape.nodes {
            world.start(number);
        }
        world
    }

    /// Whether a bug is in.
    pub(crate) fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(crate) fn node(&self, number: u16) -> &Node {
        &self.nodes[usize::from(number)]
    }

    pub(crate) fn node_mut(&mut self, number: u16) -> &mut Node {
        &mut self.nodes[usize::from(number)]
    }

    /// A number that nothing else has.
    pub(crate) fn name(&mut self) -> u64 {
        self.next_name += 1;
        self.next_name
    }

    pub(crate) fn schedule(&mut self, at: Duration, node: u16, event: Event) {
        self.next_event += 1;
        self.queue.insert((at, self.next_event), (node, event));
    }

    /// Sets a timer of a node's life.
    pub(crate) fn after(&mut self, node: u16, delay: Duration, timer: Timer) {
        let life = self.node(node).life;
        self.schedule(self.now + delay, node, Event::Timer(life, timer));
    }

    /// Sends something; it may not arrive.
    pub(crate) fn send(&mut self, from: u16, to: u16, message: Message) {
        self.send_after(from, to, message, Duration::ZERO);
    }

    /// Sends something that takes a while to be sent.
    pub(crate) fn send_after(&mut self, from: u16, to: u16, message: Message, busy: Duration) {
        let arrivals = self.network.transit(self.now + busy, (from, to), message.class(), &mut self.chance);
        for at in arrivals {
            self.schedule(at, to, Event::Arrive(from, message.clone()));
        }
    }

    /// Calls a node: `message` is made from the call's number.
    pub(crate) fn call(
        &mut self,
        from: u16,
        to: u16,
        purpose: Purpose,
        limit: Option<Duration>,
        message: impl FnOnce(u64) -> Message,
    ) -> u64 {
        self.next_call += 1;
        let (call, life, since) = (self.next_call, self.node(to).life, self.now);
        // What waits as long as a connection stands must not wait where connections lose what they carry.
        let limit = limit.or(self.network.weather.is_wild.then_some(WILD)).map(|limit| self.now + limit);
        self.node_mut(from).calls.insert(call, Call { to, life, since, purpose, limit });
        self.send(from, to, message(call));
        let look = limit.map_or(LOOK, |limit| limit - self.now);
        self.after(from, look, Timer::Limit(call));
        call
    }

    /// Whether a node could have a connection to another now.
    pub(crate) fn reaches(&self, from: u16, to: u16) -> bool {
        let there = self.node(to);
        let is_still = there.paused_at.is_some_and(|since| self.now - since > IDLE);
        there.is_up && !is_still && (from == to || self.network.connects(from, to))
    }

    /// Looks at a call that was not answered.
    pub(crate) fn look_at_call(&mut self, node: u16, number: u64) {
        let Some(call) = self.node(node).calls.get(&number) else { return };
        let is_broken = self.network.has_broken(node, call.to, call.since);
        let is_there = self.reaches(node, call.to) && self.node(call.to).life == call.life && !is_broken;
        if call.limit.map_or(is_there, |limit| self.now < limit) {
            return self.after(node, LOOK, Timer::Limit(number));
        }
        let call = self.node_mut(node).calls.remove(&number).expect("just looked at");
        self.call_failed(node, call);
    }

    /// Runs until `end`, or until something is wrong.
    pub(crate) fn run_until(&mut self, end: Duration) -> Result<(), Violation> {
        while let Some((&(at, _), _)) = self.queue.first_key_value()
            && at <= end
        {
            let ((at, _), (node, event)) = self.queue.pop_first().expect("just looked at");
            self.now = at;
            self.dispatched += 1;
            if self.dispatched > MOST_EVENTS * self.nodes.len() as u64 {
                self.checks.fail("a run ends", format!("{} events and more", self.dispatched));
            }
            self.dispatch(node, event);
            self.checks.verdict()?;
        }
        self.now = end;
        Ok(())
    }

    fn dispatch(&mut self, number: u16, event: Event) {
        let node = &mut self.nodes[usize::from(number)];
        match event {
            Event::Step(index) => {
                let step = self.scenario.steps[index].1;
                self.trace.note(self.now, number, &[100, index as u64], || format!("{step:?}"));
                self.step(step);
            }
            Event::Resume => self.resume(number),
            Event::Timer(life, _) if life != node.life || !node.is_up => {}
            Event::Arrive(..) if !node.is_up => {}
            event if node.paused_at.is_some() => node.backlog.push(event),
            Event::Timer(_, timer) => self.timer(number, timer),
            Event::Arrive(from, message) => self.arrive(number, from, message),
        }
    }

    fn resume(&mut self, number: u16) {
        // Not if it was paused again since.
        if self.node(number).paused_until.is_some_and(|until| until <= self.now) {
            self.wake(number);
        }
    }

    /// A node that stood still goes on: what was due fires first, then it reads what has come.
    pub(crate) fn wake(&mut self, number: u16) {
        let now = self.now;
        let node = self.node_mut(number);
        (node.paused_at, node.paused_until) = (None, None);
        node.disturbed = now;
        let backlog = std::mem::take(&mut node.backlog);
        let (timers, messages): (Vec<_>, Vec<_>) =
            backlog.into_iter().partition(|event| matches!(event, Event::Timer(..)));
        for event in timers.into_iter().chain(messages) {
            self.dispatch(number, event);
        }
    }

    fn timer(&mut self, number: u16, timer: Timer) {
        match timer {
            Timer::Beat => self.beat(number),
            Timer::Membership => self.membership_due(number),
            Timer::Written(write) => {
                self.node_mut(number).disk.synced(write);
                self.written(number, write);
            }
            Timer::Acknowledged(write) => self.written(number, write),
            Timer::Synced(write) => self.node_mut(number).disk.synced(write),
            Timer::Device(job) => self.device_done(number, job),
            Timer::Limit(call) => self.look_at_call(number, call),
            Timer::Settle(context, attempt) => self.settle_again(number, context, attempt),
            Timer::Tell(request, until) => self.tell(number, request, until),
            Timer::StandBy => self.stand_by(number),
            Timer::Vote => self.vote_due(number),
            Timer::Wish(version) => self.wish_due(number, version),
            Timer::Session(session) => self.advance(number, session),
        }
    }

    fn arrive(&mut self, number: u16, from: u16, message: Message) {
        self.trace.note(self.now, number, &message.words(), || format!("<- {from}: {message:?}"));
        match message {
            Message::Ask(call, request) => self.supervisor_asked(number, from, call, request),
            Message::Order(call, order) => self.ordered(number, from, call, order),
            Message::Notice(notice) => self.noticed(number, notice),
            Message::Attend(call, query, blocks) => self.attend(number, from, call, query, &blocks),
            Message::Fetch(call, block) => self.fetch(number, from, call, block),
            Message::Look(call, session) => self.look(number, from, call, session),
            Message::Keep(call, session, request, spec) => {
                self.keep_asked(number, (from, call), session, request, spec);
            }
            Message::FetchLog(call, session) => self.send_log(number, from, call, session),
            Message::Vote(word) => self.vote_heard(number, from, word),
            Message::Datagram(bytes) => self.membership_heard(number, from, &bytes, false),
            Message::Roster(bytes) => self.membership_heard(number, from, &bytes, true),
            Message::Contact => self.membership_contact(number, from),
            Message::Answer(call, _)
            | Message::Obeyed(call, _)
            | Message::Attended(call, _)
            | Message::Fetched(call, _)
            | Message::Looked(call, _)
            | Message::Kept(call, _)
            | Message::Logged(call, _) => {
                let Some(call) = self.take_call(number, call, &message) else { return };
                self.answered(number, call, message);
            }
        }
    }

    /// The call that an answer is to, unless it was given up.
    fn take_call(&mut self, number: u16, call: u64, answer: &Message) -> Option<Call> {
        if let Some(call) = self.node_mut(number).calls.remove(&call) {
            return Some(call);
        }
        if !self.has(Mutation::TakeLateReplies) || !matches!(answer, Message::Attended(..)) {
            return None;
        }
        // Whatever request of its kind is under way.
        let calls = &mut self.node_mut(number).calls;
        let key = *calls.iter().find(|(_, call)| matches!(call.purpose, Purpose::Attend(..)))?.0;
        calls.remove(&key)
    }

    fn step(&mut self, step: Step) {
        crate::steps::take(self, step);
    }
}
