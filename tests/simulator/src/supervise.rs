//! The supervisor on a node that supervises: the real state machine, started and ended as a member does it, with what must be
//! on the disk before anybody hears of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use stellate_actors::cluster::drain::DrainState;
use stellate_actors::cluster::intents::Intent;
use stellate_actors::cluster::mandate::Mandate;
use stellate_actors::cluster::messages::{
    AgentOrder, AgentRefusal, AgentReply, AgentRequest, NodeKey, Refusal, SupervisorReply, SupervisorRequest,
};
use stellate_actors::cluster::settings::ClusterSettings;
use stellate_actors::cluster::snapshot::ClusterSnapshot;
use stellate_actors::cluster::supervisor::{Action, Cluster};
use stellate_actors::cluster::term::Term;

use crate::disk::Write;
use crate::message::{Message, Purpose, Timer};
use crate::mutation::Mutation;
use crate::node::{Node, key_of, number_of};
use crate::world::World;

/// How long an agent may take for an order that computes and copies nothing.
const QUICK: Duration = Duration::from_secs(5);

/// How often it is looked whether another supervisor is still there.
const STAND_BY: Duration = Duration::from_secs(1);

/// So long after it was away a node has surely reported, or its supervisor has missed what it held.
const LATELY: Duration = Duration::from_secs(10);

/// What a node does as a supervisor.
#[derive(Debug)]
pub(crate) enum Supervising {
    /// Nothing.
    Not,
    /// It starts as soon as its term is on the disk.
    Raising { write: u64, term: Term },
    /// It runs.
    Running(Box<Running>),
    /// It was replaced by one of this term, and starts again once no other is there.
    StandingBy { highest: Term },
}

/// A supervisor that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) cluster: Cluster,
    /// No other supervisor has this number.
    pub(crate) instance: u64,
    /// Until when it may act.
    mandate: Mandate,
    mailbox: VecDeque<(u16, u64, SupervisorRequest)>,
    /// What is wanted of a node, on its way to the disk, and who waits for that.
    keeping: Option<Keeping>,
    has_reported: bool,
    reported: BTreeSet<NodeKey>,
    /// Nodes that membership took for dead, and when.
    gone: BTreeMap<NodeKey, Duration>,
    began: Duration,
}

#[derive(Debug)]
struct Keeping {
    /// On the disk of its node, if it is that which counts.
    write: Option<u64>,
    wish: (NodeKey, Option<Intent>),
    before: Option<Intent>,
    answer: Option<(u16, u64, SupervisorReply)>,
}

impl Supervising {
    pub(crate) fn running(&self) -> Option<&Running> {
        match self {
            Self::Running(running) => Some(running),
            _ => None,
        }
    }

    fn running_mut(&mut self) -> Option<&mut Running> {
        match self {
            Self::Running(running) => Some(running),
            _ => None,
        }
    }
}

impl World {
    /// A supervisor starts on a node, above `seen` and all that the node has seen.
    pub(crate) fn start_supervisor(&mut self, number: u16, seen: Term) {
        let (reuses, forgets) = (self.has(Mutation::ReuseTerm), self.has(Mutation::ForgetTerm));
        let node = self.node(number);
        let kept = node.disk.kept();
        let above = if forgets { seen } else { seen.max(kept.seen).max(kept.own).max(node.agent.seen()) };
        let term = if reuses && kept.own != Term::NONE { kept.own } else { above.next(node.key) };
        let supervising = match self.write(number, Write::Own(term)) {
            Some(write) => Supervising::Raising { write, term },
            None => {
                self.after(number, STAND_BY, Timer::StandBy);
                Supervising::StandingBy { highest: seen }
            }
        };
        self.node_mut(number).supervising = supervising;
    }

    /// A term or an intent may be on the disk now.
    pub(crate) fn supervisor_kept(&mut self, number: u16, write: u64) {
        let forgets = self.has(Mutation::ForgetIntents);
        let node = self.node_mut(number);
        match &mut node.supervising {
            Supervising::Raising { write: raising, term } if *raising <= write => {
                let intents = if forgets { Default::default() } else { node.disk.kept().intents.clone() };
                let term = *term;
                self.run_supervisor(number, term, Mandate::configured(), intents);
            }
            Supervising::Running(running)
                if running
                    .keeping
                    .as_ref()
                    .and_then(|keeping| keeping.write)
                    .is_some_and(|at| at <= write) =>
            {
                self.wish_kept(number);
            }
            _ => {}
        }
    }

    /// A supervisor runs from now on.
    pub(crate) fn run_supervisor(
        &mut self,
        number: u16,
        term: Term,
        mandate: Mandate,
        intents: BTreeMap<NodeKey, Intent>,
    ) {
        let (now, instance) = (self.now, self.name());
        let node = self.node_mut(number);
        let (clock, wall) = (node.clock(now), node.wall(now));
        let mut cluster = Cluster::new(clock, wall, term, ClusterSettings::default(), intents);
        if mandate.is_elected() {
            cluster.fence_agents();
        }
        let running = Running {
            cluster,
            instance,
            mandate,
            mailbox: VecDeque::new(),
            keeping: None,
            has_reported: false,
            reported: BTreeSet::new(),
            gone: BTreeMap::new(),
            began: now,
        };
        node.supervising = Supervising::Running(Box::new(running));
    }

    /// Whether a supervisor can know what a node holds. One that cannot be reached, or that membership takes for dead, counts for
    /// nothing, and so does what it holds, until it has reported again; supervisors beside one another take each other's copies for further ones.
    fn knows(&self, number: u16, other: u16) -> bool {
        let is_new = self.node(other).disturbed + LATELY > self.now;
        let running = self.node(number).supervising.running();
        let gone = running.and_then(|running| running.gone.get(&key_of(other)));
        let is_gone = gone.is_some_and(|at| *at + LATELY > self.now);
        let was_away =
            is_new || is_gone || self.network.has_broken(number, other, self.now.saturating_sub(LATELY));
        self.reaches(number, other) && !was_away && !self.scenario.has_second_supervisor()
    }

    /// What is wanted of a node is kept: whoever wanted it is told.
    pub(crate) fn wish_kept(&mut self, number: u16) {
        let Some(running) = self.node_mut(number).supervising.running_mut() else { return };
        let Some(Keeping { wish: (node, intent), answer, .. }) = running.keeping.take() else { return };
        if let Some((to, call, reply)) = answer {
            self.checks.wished(node, intent);
            self.send(number, to, Message::Answer(call, reply));
        }
        self.supervisor_goes_on(number);
    }

    /// A supervisor that may not act any more does nothing of what it has in mind.
    fn look_at_mandate(&mut self, number: u16) {
        let (now, ignores) = (self.now, self.has(Mutation::IgnoreLease));
        let node = self.node_mut(number);
        let clock = node.clock(now);
        if let Some(running) = node.supervising.running_mut()
            && !running.mandate.holds(running.cluster.term(), clock)
            && !ignores
        {
            running.cluster.stand_down();
        }
    }

    /// The node whose supervisor a node would ask.
    pub(crate) fn supervisor_for(&self, number: u16) -> Option<u16> {
        self.supervisors().find(|&other| self.reaches(number, other))
    }

    /// The nodes on which a supervisor runs.
    pub(crate) fn supervisors(&self) -> impl Iterator<Item = u16> + '_ {
        // Any node can be told by mistake to supervise; of voters only one of them does.
        let voters = usize::from(self.scenario.shape.voters);
        let among = if voters > 0 { voters.min(self.nodes.len()) } else { self.nodes.len() };
        let candidates = (0u16..).zip(&self.nodes[..among]);
        candidates.filter(|(_, node)| node.supervising.running().is_some()).map(|(number, _)| number)
    }

    /// What the supervisor of a node knows, if one runs there.
    pub(crate) fn snapshot(&self, number: u16) -> Option<ClusterSnapshot> {
        let node = self.node(number);
        Some(node.supervising.running()?.cluster.snapshot(node.clock(self.now)))
    }

    /// A supervisor was asked.
    pub(crate) fn supervisor_asked(&mut self, number: u16, from: u16, call: u64, request: SupervisorRequest) {
        let Some(running) = self.node_mut(number).supervising.running_mut() else { return };
        running.mailbox.push_back((from, call, request));
        self.supervisor_goes_on(number);
    }

    fn supervisor_goes_on(&mut self, number: u16) {
        self.act(number);
        loop {
            self.look_at_mandate(number);
            let now = self.node(number).clock(self.now);
            let Some(running) = self.node_mut(number).supervising.running_mut() else { return };
            if running.keeping.is_some() {
                return;
            }
            let Some((from, call, request)) = running.mailbox.pop_front() else { return };
            if let SupervisorRequest::Inventory(inventory) = &request {
                running.reported.insert(inventory.node);
            }
            let is_own = matches!(&request, SupervisorRequest::Inventory(inventory) if number_of(inventory.node) == number);
            let reply = running.cluster.ask(now, request);
            if is_own && !running.has_reported {
                running.has_reported = true;
                running.cluster.reported(now, false);
            }
            if let SupervisorReply::Placed(placed) = &reply {
                let instance = running.instance;
                self.checks.committed(placed.term, instance);
            }
            self.act(number);
            let running = self.node_mut(number).supervising.running_mut();
            match running.and_then(|running| running.keeping.as_mut()) {
                Some(keeping) => keeping.answer = Some((from, call, reply)),
                // What is told without a call is not answered.
                None if call != 0 => self.send(number, from, Message::Answer(call, reply)),
                None => {}
            }
        }
    }

    /// Carries out what a supervisor has done, until something must be on the disk first.
    fn act(&mut self, number: u16) {
        loop {
            self.look_at_mandate(number);
            let Some(running) = self.node_mut(number).supervising.running_mut() else { return };
            if running.keeping.is_some() {
                return;
            }
            let Some(action) = running.cluster.poll_action() else { return };
            let (instance, term) = (running.instance, running.cluster.term());
            match action {
                Action::ToAgent { node, order } => {
                    self.checks.committed(term, instance);
                    self.order(number, node, instance, order);
                }
                Action::ToQueryNode { node, notice } => {
                    self.send(number, number_of(node), Message::Notice(notice));
                }
                Action::Drain(progress) => {
                    // What a node took with it that nobody has missed yet is not known to be lost.
                    let missed = |node: &Node| node.crashed.is_none_or(|at| at + LATELY < self.now);
                    if progress.state == DrainState::Done
                        && self.knows(number, number_of(progress.node))
                        && self.nodes.iter().all(missed)
                    {
                        self.checks.drained(&self.nodes, progress.node);
                    }
                }
                Action::Intent { node, intent, before } => {
                    self.checks.wish(node, intent);
                    self.keep(number, (node, intent), before);
                }
                Action::Replaced { .. } if running.mandate.is_elected() => {
                    let Action::Replaced { highest } = action else { unreachable!("just looked at") };
                    self.node_mut(number).supervising = Supervising::Not;
                    self.elected_ended(number, term, highest);
                }
                Action::Replaced { highest } => {
                    self.node_mut(number).supervising = Supervising::StandingBy { highest };
                    self.after(number, STAND_BY, Timer::StandBy);
                }
            }
        }
    }

    /// Keeps what is wanted of a node: on this node's disk, or where a majority of voters has it.
    fn keep(&mut self, number: u16, wish: (NodeKey, Option<Intent>), before: Option<Intent>) {
        let Some(running) = self.node_mut(number).supervising.running_mut() else { return };
        let is_elected = running.mandate.is_elected();
        running.keeping = Some(Keeping { write: None, wish, before, answer: None });
        let is_proposed = match is_elected {
            true => self.propose(number, wish),
            false => match self.write(number, Write::Intent(wish.0, wish.1)) {
                None => false,
                write => {
                    let keeping = self.node_mut(number).supervising.running_mut();
                    if let Some(keeping) = keeping.and_then(|running| running.keeping.as_mut()) {
                        keeping.write = write;
                    }
                    true
                }
            },
        };
        if !is_proposed {
            self.not_kept(number);
        }
    }

    /// What is wanted of a node could not be kept: it does not hold, or it is not known whether it does.
    pub(crate) fn not_kept(&mut self, number: u16) {
        let now = self.node(number).clock(self.now);
        let Some(running) = self.node_mut(number).supervising.running_mut() else { return };
        let Some(keeping) = running.keeping.take() else { return };
        running.cluster.not_kept(now, keeping.wish.0, keeping.before);
        self.checks.refused("a wish was not kept");
    }

    fn order(&mut self, number: u16, node: NodeKey, instance: u64, order: AgentOrder) {
        let limit = match order.request {
            AgentRequest::Reserve { .. } | AgentRequest::Free { .. } | AgentRequest::Inventory => Some(QUICK),
            AgentRequest::Encode(_) | AgentRequest::Pull { .. } | AgentRequest::Verify { .. } => None,
        };
        let purpose = Purpose::Order { instance, order: order.order };
        self.call(number, number_of(node), purpose, limit, |call| Message::Order(call, order));
    }

    /// An agent has answered an order, or does not.
    pub(crate) fn order_answered(
        &mut self,
        number: u16,
        instance: u64,
        order: u64,
        reply: Option<AgentReply>,
    ) {
        let now = self.node(number).clock(self.now);
        let failed = || AgentReply::Refused(AgentRefusal::Failed { cause: "no answer".to_owned() });
        let running = self.node_mut(number).supervising.running_mut();
        if let Some(running) = running.filter(|running| running.instance == instance) {
            running.cluster.agent_replied(now, order, reply.unwrap_or_else(failed));
            self.supervisor_goes_on(number);
        }
    }

    /// What a supervisor does as time passes.
    pub(crate) fn supervisor_beat(&mut self, number: u16) {
        let now = self.node(number).clock(self.now);
        let missing = self.is_somebody_missing(number);
        if let Some(running) = self.node_mut(number).supervising.running_mut() {
            if missing {
                running.cluster.awaiting(now);
            }
            running.cluster.tick(now);
            if let Some(snapshot) = self.snapshot(number) {
                self.checks.looked(&snapshot);
            }
            self.supervisor_goes_on(number);
        }
    }

    /// Whether a node is there that has not reported to the supervisor of this node yet.
    fn is_somebody_missing(&self, number: u16) -> bool {
        let Some(running) = self.node(number).supervising.running() else { return false };
        let longest = ClusterSettings::default().host_timeout;
        let others = (0..self.nodes.len() as u16).filter(|&other| self.reaches(number, other));
        let is_missing = |other: u16| !running.reported.contains(&self.node(other).key);
        self.now - running.began < longest && others.into_iter().any(is_missing)
    }

    /// A node was seen to go.
    pub(crate) fn node_gone(&mut self, number: u16, node: NodeKey) {
        let at = self.now;
        let now = self.node(number).clock(self.now);
        if let Some(running) = self.node_mut(number).supervising.running_mut() {
            running.gone.insert(node, at);
            running.cluster.node_gone(now, node);
            self.supervisor_goes_on(number);
        }
    }

    /// A supervisor that was replaced starts again if no other is there.
    pub(crate) fn stand_by(&mut self, number: u16) {
        let Supervising::StandingBy { highest } = self.node(number).supervising else { return };
        if !self.node(number).supervises {
            self.node_mut(number).supervising = Supervising::Not;
        } else if self.supervisor_for(number).is_some() {
            self.after(number, STAND_BY, Timer::StandBy);
        } else {
            self.start_supervisor(number, highest);
        }
    }

    /// Asks the supervisor of a node, on that node, for an administrator.
    pub(crate) fn wish(&mut self, request: SupervisorRequest) {
        let alone = || self.supervisors().find(|&number| self.reaches(number, number));
        match self.supervisor_for(0).or_else(alone) {
            Some(supervisor) => {
                let call = self.name() | ADMINISTRATOR;
                self.supervisor_asked(supervisor, supervisor, call, request);
            }
            None => self.checks.refused("no supervisor"),
        }
    }

    /// Nodes that supervise by mistake are told not to.
    pub(crate) fn end_second_supervisors(&mut self) {
        let is_elected = self.scenario.shape.voters > 0;
        for node in &mut self.nodes {
            if !node.supervises && !is_elected {
                node.supervising = Supervising::Not;
            }
        }
    }
}

/// Calls of administrators have this bit.
const ADMINISTRATOR: u64 = 1 << 63;

/// Whether a refusal says that the supervisor will do what it is asked a little later.
pub(crate) fn is_passing(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Settling { .. } | Refusal::Replaced | Refusal::NoHosts)
}
