//! The actor over the supervisor's state machine: hands it requests with the time, and carries out what it has done.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use stellate_runtime::clock::Clock;

use super::drain::DrainProgress;
use super::intents::Intent;
use super::mandate::Mandate;
use super::messages::{
    AgentOrder, AgentReply, NodeKey, QueryNodeNotice, Refusal, SupervisorReply, SupervisorRequest,
};
use super::settings::ClusterSettings;
use super::supervisor::{Action, Cluster};
use super::term::Term;

/// Time between two looks at what time has brought.
const TICK: Duration = Duration::from_millis(500);

/// The way from the supervisor to agents and query nodes.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Sends an order to a node's agent. What does not arrive is answered as refused, so that nothing waits for ever.
    fn order(&self, node: NodeKey, order: AgentOrder) -> BoxFuture<'static, AgentReply>;
    /// Tells a query node something, which may be lost.
    fn notify(&self, node: NodeKey, notice: QueryNodeNotice);
    /// Tells whoever watches how a drain stands.
    fn drained(&self, progress: DrainProgress);
    /// Notes that agents follow a supervisor of a higher term; this one stops.
    fn replaced(&self, highest: Term) {
        let _ = highest;
    }
}

/// What a supervisor keeps on disk: its term, and what administrators want of nodes.
pub trait SupervisorStore: Send + Sync + fmt::Debug + 'static {
    /// A term above all that this node has seen, and above `seen`, when it is safe.
    ///
    /// # Errors
    /// In words; the supervisor does not start.
    fn raise_term(&mut self, seen: Term) -> BoxFuture<'_, Result<Term, String>>;
    /// What is wanted of nodes.
    ///
    /// # Errors
    /// In words; the supervisor does not start.
    fn intents(&mut self) -> BoxFuture<'_, Result<BTreeMap<NodeKey, Intent>, String>>;
    /// Keeps an intent, or forgets it.
    ///
    /// # Errors
    /// It is not kept, or it is not known whether it is.
    fn keep(&mut self, node: NodeKey, intent: Option<Intent>) -> BoxFuture<'_, Result<(), NotKept>>;
}

/// An intent was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// The disk of the supervisor's node failed, in these words. It does not hold.
    Disk(String),
    /// Too few voters have it, in these words. A later supervisor may find it or not.
    Voters(String),
}

/// What a supervisor starts with.
#[derive(Debug)]
pub struct ClusterArgs {
    /// Its settings.
    pub settings: ClusterSettings,
    /// The way to the others.
    pub transport: Arc<dyn Transport>,
    /// What it keeps.
    pub store: Box<dyn SupervisorStore>,
    /// The highest term that it has been told of, if it was replaced before.
    pub seen: Term,
    /// Until when it may act.
    pub mandate: Mandate,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum ClusterMsg {
    /// Something is asked.
    Ask(SupervisorRequest, RpcReplyPort<SupervisorReply>),
    /// Something is told; nobody waits.
    Tell(SupervisorRequest),
    /// An agent has answered an order.
    Replied(u64, AgentReply),
    /// The hosts of the supervisor's own node have reported; `is_alone` if there is no other node.
    Reported {
        /// Whether nobody else can hold anything.
        is_alone: bool,
    },
    /// Nodes that are there have not reported yet.
    Awaiting,
    /// Time has passed; sent by itself.
    Tick,
}

/// The actor.
#[derive(Debug)]
pub struct ClusterSupervisor;

/// The state machine and its ways out.
#[derive(Debug)]
pub struct ClusterState {
    cluster: Cluster,
    transport: Arc<dyn Transport>,
    store: Box<dyn SupervisorStore>,
    mandate: Mandate,
    clock: Arc<dyn Clock>,
}

impl Actor for ClusterSupervisor {
    type Msg = ClusterMsg;
    type State = ClusterState;
    type Arguments = ClusterArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<ClusterMsg>,
        args: ClusterArgs,
    ) -> Result<ClusterState, ActorProcessingErr> {
        let ClusterArgs { settings, transport, mut store, seen, mandate, clock } = args;
        let (term, intents) = (store.raise_term(seen).await?, store.intents().await?);
        tracing::info!(%term, "supervisor started");
        drop(myself.send_interval(TICK, || ClusterMsg::Tick));
        let wall = clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut cluster = Cluster::new(clock.now(), wall, term, settings, intents);
        if mandate.is_elected() {
            cluster.fence_agents();
        }
        Ok(ClusterState { cluster, transport, store, mandate, clock })
    }

    async fn handle(
        &self,
        myself: ActorRef<ClusterMsg>,
        message: ClusterMsg,
        state: &mut ClusterState,
    ) -> Result<(), ActorProcessingErr> {
        let now = state.clock.now();
        if !state.may_act() {
            // What was asked is refused, and nothing that it has in mind is done.
            state.cluster.stand_down();
        }
        match message {
            ClusterMsg::Ask(request, reply) => {
                let answer = state.cluster.ask(now, request);
                let answer = state.act(&myself).await.map_or(answer, SupervisorReply::Refused);
                // Who asked may have given up.
                let _ = reply.send(answer);
            }
            ClusterMsg::Tell(request) => drop(state.cluster.ask(now, request)),
            ClusterMsg::Replied(order, reply) => state.cluster.agent_replied(now, order, reply),
            ClusterMsg::Reported { is_alone } => state.cluster.reported(now, is_alone),
            ClusterMsg::Awaiting => state.cluster.awaiting(now),
            ClusterMsg::Tick => state.cluster.tick(now),
        }
        // Nobody waits for what follows from this; what is wanted of nodes follows from what is asked alone.
        drop(state.act(&myself).await);
        Ok(())
    }
}

impl ClusterState {
    fn may_act(&self) -> bool {
        self.mandate.holds(self.cluster.term(), self.clock.now())
    }

    /// Carries out what was done. Some if what is wanted of a node could not be kept, and was taken back.
    async fn act(&mut self, myself: &ActorRef<ClusterMsg>) -> Option<Refusal> {
        let mut refusal = None;
        while let Some(action) = self.cluster.poll_action() {
            if !self.may_act() && !matches!(action, Action::Replaced { .. }) {
                if matches!(action, Action::Intent { .. }) {
                    // Nobody has noted it: whoever asked asks the next supervisor.
                    refusal = Some(Refusal::Replaced);
                }
                self.cluster.stand_down();
                continue;
            }
            match action {
                Action::ToAgent { node, order } => {
                    let (number, answer, myself) =
                        (order.order, self.transport.order(node, order), myself.clone());
                    // The actor may have stopped; then nobody wants the answer.
                    tokio::spawn(async move { drop(myself.cast(ClusterMsg::Replied(number, answer.await))) });
                }
                Action::ToQueryNode { node, notice } => self.transport.notify(node, notice),
                Action::Drain(progress) => self.transport.drained(progress),
                Action::Intent { node, intent, before } => {
                    if let Err(failure) = self.store.keep(node, intent).await {
                        tracing::error!(%node, ?intent, ?failure, "what is wanted of a node was not kept");
                        self.cluster.not_kept(self.clock.now(), node, before);
                        refusal = Some(match failure {
                            NotKept::Disk(cause) => Refusal::NotKept { node, cause },
                            NotKept::Voters(cause) => Refusal::NotReplicated { node, cause },
                        });
                    }
                }
                Action::Replaced { highest } => {
                    self.transport.replaced(highest);
                    myself.stop(Some(format!("a supervisor of term {highest} is there")));
                }
            }
        }
        refusal
    }
}

impl Cluster {
    /// Does what is asked, by name: the way in for what has come over the network.
    pub fn ask(&mut self, now: Duration, request: SupervisorRequest) -> SupervisorReply {
        self.answer(now, request).unwrap_or_else(SupervisorReply::Refused)
    }

    fn answer(&mut self, now: Duration, request: SupervisorRequest) -> Result<SupervisorReply, Refusal> {
        if self.is_replaced {
            return Err(Refusal::Replaced);
        }
        match request {
            SupervisorRequest::Inventory(inventory) => self.inventory(now, &inventory),
            SupervisorRequest::StuckInventory { inventory, stuck } => {
                self.inventory_with_stuck(now, &inventory, &stuck);
            }
            SupervisorRequest::Renew { node, announced, seen } => {
                self.renew(now, node, announced, seen);
                return Ok(SupervisorReply::Noted(self.term()));
            }
            SupervisorRequest::Hold(claim) => {
                self.hold(now, claim);
                return Ok(SupervisorReply::Noted(self.term()));
            }
            SupervisorRequest::Place { claim, suspects } => {
                return self.place(now, claim, &suspects).map(SupervisorReply::Placed);
            }
            SupervisorRequest::Release(context) => self.release(now, context),
            SupervisorRequest::Switched { node, term, migration } if term == self.term() => {
                self.switched(now, node, migration);
            }
            SupervisorRequest::Recomputed { term, migration, done } if term == self.term() => {
                self.recomputed(now, migration, done);
            }
            // Of moves of an earlier supervisor, which nobody waits for.
            SupervisorRequest::Switched { .. } | SupervisorRequest::Recomputed { .. } => {}
            SupervisorRequest::NodeGone(node) => self.node_gone(now, node),
            SupervisorRequest::Cordon(node) => self.cordon(node)?,
            SupervisorRequest::Uncordon(node) => self.uncordon(node)?,
            SupervisorRequest::Drain { node, deadline_ms, dry_run } => {
                let deadline = deadline_ms.map(Duration::from_millis);
                return self.drain(now, node, deadline, dry_run).map(SupervisorReply::Drain);
            }
            SupervisorRequest::Remove { node, force } => self.remove(now, node, force)?,
            SupervisorRequest::Rebalance { apply } => {
                return self.rebalance(now, apply).map(SupervisorReply::Plan);
            }
            SupervisorRequest::Snapshot => {
                return Ok(SupervisorReply::Snapshot(Box::new(self.snapshot(now))));
            }
            SupervisorRequest::Overview => {
                return Ok(SupervisorReply::Snapshot(Box::new(self.overview(now))));
            }
        }
        Ok(SupervisorReply::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use stellate_model::block::BlockId;
    use stellate_runtime::clock::{ManualClock, SystemClock};
    use tokio::sync::mpsc;

    use super::super::agent::{Agent, AgentArgs, AgentHosts, AgentMsg, AgentStore, Uplink};
    use super::super::messages::{
        AgentRefusal, AgentRequest, EncodeOrder, HeldBlock, HostInventory, Inventory, Stamp,
    };
    use super::super::sim::{claim, host};
    use super::super::table::HostState;
    use super::*;
    use crate::checksum::Checksum;
    use crate::link::HostId;

    /// One host whose blocks are names.
    #[derive(Debug, Default)]
    struct Names(Arc<Mutex<BTreeMap<BlockId, u64>>>);

    impl AgentHosts for Names {
        fn encode(&self, order: EncodeOrder) -> BoxFuture<'static, Result<bool, AgentRefusal>> {
            let is_fresh = self.0.lock().unwrap().insert(order.block, 100).is_none();
            Box::pin(async move { Ok(is_fresh) })
        }
        fn reserve(
            &self,
            _: HostId,
            _: BlockId,
            _: u64,
            _: u32,
        ) -> BoxFuture<'static, Result<bool, AgentRefusal>> {
            Box::pin(async { Ok(false) })
        }
        fn pull(
            &self,
            _: HostId,
            _: BlockId,
            _: HostId,
        ) -> BoxFuture<'static, Result<Checksum, AgentRefusal>> {
            Box::pin(async { Ok(Checksum([0; 16])) })
        }
        fn verify(&self, _: HostId, _: BlockId) -> BoxFuture<'static, Result<Checksum, AgentRefusal>> {
            Box::pin(async { Ok(Checksum([0; 16])) })
        }
        fn free(&self, _: HostId, blocks: Vec<BlockId>) -> BoxFuture<'static, ()> {
            self.0.lock().unwrap().retain(|id, _| !blocks.contains(id));
            Box::pin(async {})
        }
        fn inventory(&self) -> BoxFuture<'static, Vec<HostInventory>> {
            let held = self.0.lock().unwrap();
            let inventory = HostInventory::of(
                host(0),
                1000,
                held.iter().map(|(&id, &bytes)| HeldBlock { id, bytes }).collect(),
            );
            Box::pin(async move { vec![inventory] })
        }
    }

    /// Everything that is kept or sent, in memory.
    #[derive(Clone, Debug)]
    struct Memory {
        agent: Arc<Mutex<Option<ActorRef<AgentMsg>>>>,
        reports: mpsc::UnboundedSender<SupervisorRequest>,
        is_disk_full: bool,
    }

    impl AgentStore for Memory {
        fn start(&mut self) -> BoxFuture<'_, Result<(Term, u64), String>> {
            Box::pin(async { Ok((Term::NONE, 1)) })
        }
        fn raise(&mut self, _: Term) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async { Ok(()) })
        }
    }

    impl SupervisorStore for Memory {
        fn raise_term(&mut self, seen: Term) -> BoxFuture<'_, Result<Term, String>> {
            Box::pin(async move { Ok(seen.next(NodeKey([1; 6]))) })
        }
        fn intents(&mut self) -> BoxFuture<'_, Result<BTreeMap<NodeKey, Intent>, String>> {
            Box::pin(async { Ok(BTreeMap::new()) })
        }
        fn keep(&mut self, _: NodeKey, _: Option<Intent>) -> BoxFuture<'_, Result<(), NotKept>> {
            let full = || NotKept::Disk("the disk is full".to_owned());
            let kept = if self.is_disk_full { Err(full()) } else { Ok(()) };
            Box::pin(async { kept })
        }
    }

    impl Uplink for Memory {
        fn send(&self, request: SupervisorRequest) {
            let _ = self.reports.send(request);
        }
    }

    impl Transport for Memory {
        fn order(&self, _: NodeKey, order: AgentOrder) -> BoxFuture<'static, AgentReply> {
            let agent = self.agent.lock().unwrap().clone().expect("the agent runs");
            Box::pin(async move { ractor::call!(agent, AgentMsg::Order, order).expect("the agent answers") })
        }
        fn notify(&self, _: NodeKey, _: QueryNodeNotice) {}
        fn drained(&self, _: DrainProgress) {}
    }

    async fn ask(supervisor: &ActorRef<ClusterMsg>, request: SupervisorRequest) -> SupervisorReply {
        ractor::call!(supervisor, ClusterMsg::Ask, request).expect("the supervisor answers")
    }

    #[tokio::test]
    async fn a_wish_that_cannot_be_written_down_is_refused_and_does_not_hold() {
        let (reports, _reported) = mpsc::unbounded_channel();
        let memory = Memory { agent: Arc::default(), reports, is_disk_full: true };
        let args = ClusterArgs {
            settings: ClusterSettings { settle: Duration::ZERO, ..ClusterSettings::default() },
            transport: Arc::new(memory.clone()),
            store: Box::new(memory),
            seen: Term::NONE,
            mandate: Mandate::configured(),
            clock: Arc::new(ManualClock::new()),
        };
        let (supervisor, _) = Actor::spawn(None, ClusterSupervisor, args).await.unwrap();
        let node = NodeKey::of(host(0));
        let at = Stamp { start: 1, count: 1 };
        let hosts = Names::default().inventory().await;
        let inventory = Inventory { node, at, up_ms: 0, seen: Term::NONE, hosts, disk: None };
        ask(&supervisor, SupervisorRequest::Inventory(inventory)).await;
        let cause = "the disk is full".to_owned();
        let not_kept = SupervisorReply::Refused(Refusal::NotKept { node, cause });
        let drain = SupervisorRequest::Drain { node, deadline_ms: None, dry_run: false };
        for wish in [SupervisorRequest::Cordon(node), drain] {
            assert_eq!(ask(&supervisor, wish).await, not_kept);
            let SupervisorReply::Snapshot(snapshot) = ask(&supervisor, SupervisorRequest::Snapshot).await
            else {
                panic!("a snapshot was asked for");
            };
            assert_eq!((snapshot.hosts[0].state, snapshot.drains), (HostState::Active, Vec::new()));
        }
        supervisor.stop(None);
    }

    #[tokio::test]
    async fn a_supervisor_whose_lease_has_ended_refuses_everything_orders_nothing_and_stops() {
        let (reports, _reported) = mpsc::unbounded_channel();
        // It has no agent: whoever orders something finds that out.
        let memory = Memory { agent: Arc::default(), reports, is_disk_full: false };
        let (clock, mandate) = (ManualClock::new(), Mandate::elected());
        let term = Term::NONE.next(NodeKey([1; 6]));
        mandate.renew(Some((term, clock.now() + Duration::from_secs(9))));
        let args = ClusterArgs {
            settings: ClusterSettings { settle: Duration::ZERO, ..ClusterSettings::default() },
            transport: Arc::new(memory.clone()),
            store: Box::new(memory),
            seen: Term::NONE,
            mandate: mandate.clone(),
            clock: Arc::new(clock.clone()),
        };
        let (supervisor, ended) = Actor::spawn(None, ClusterSupervisor, args).await.unwrap();
        let node = NodeKey::of(host(0));
        let hosts = Names::default().inventory().await;
        let at = Stamp { start: 1, count: 1 };
        let inventory = Inventory { node, at, up_ms: 0, seen: term, hosts, disk: None };
        assert_eq!(ask(&supervisor, SupervisorRequest::Inventory(inventory)).await, SupervisorReply::Done);
        assert_eq!(ask(&supervisor, SupervisorRequest::Cordon(node)).await, SupervisorReply::Done);
        clock.advance(Duration::from_secs(9));
        let refused = SupervisorReply::Refused(Refusal::Replaced);
        assert_eq!(ask(&supervisor, SupervisorRequest::Uncordon(node)).await, refused);
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn blocks_are_placed_encoded_reported_and_freed_from_actor_to_actor() {
        let (reports, mut reported) = mpsc::unbounded_channel();
        let memory = Memory { agent: Arc::default(), reports, is_disk_full: false };
        let names = Names::default();
        let held = Arc::clone(&names.0);
        let args = AgentArgs {
            node: NodeKey::of(host(0)),
            hosts: Arc::new(names),
            store: Box::new(memory.clone()),
            uplink: Arc::new(memory.clone()),
            clock: Arc::new(SystemClock::new()),
        };
        let (agent, _) = Actor::spawn(None, Agent, args).await.unwrap();
        *memory.agent.lock().unwrap() = Some(agent.clone());
        let clock = ManualClock::new();
        let args = ClusterArgs {
            settings: ClusterSettings::default(),
            transport: Arc::new(memory.clone()),
            store: Box::new(memory),
            seen: Term::NONE,
            mandate: Mandate::configured(),
            clock: Arc::new(clock.clone()),
        };
        let (supervisor, _) = Actor::spawn(None, ClusterSupervisor, args).await.unwrap();

        ask(&supervisor, reported.recv().await.unwrap()).await;
        clock.advance(Duration::from_secs(40));
        ask(&supervisor, reported.recv().await.unwrap()).await;
        let mut claim = claim(1, 3, 1);
        claim.anchor = None;
        let context = claim.key();
        let place = SupervisorRequest::Place { claim: claim.clone(), suspects: Vec::new() };
        let SupervisorReply::Placed(placed) = ask(&supervisor, place).await else { panic!("there is room") };
        for (order, need) in (100..).zip(&claim.needs) {
            let encode = EncodeOrder {
                host: host(0),
                block: need.id,
                ids: Vec::new(),
                position: 0,
                anchor: None,
                recompute_anchor: false,
            };
            let request = AgentRequest::Encode(encode);
            let order = AgentOrder { term: placed.term, version: placed.version, order, request };
            let reply = ractor::call!(agent, AgentMsg::Order, order).unwrap();
            assert_eq!(reply, AgentReply::Encoded { fresh: true });
        }
        loop {
            ask(&supervisor, reported.recv().await.unwrap()).await;
            let SupervisorReply::Snapshot(snapshot) = ask(&supervisor, SupervisorRequest::Snapshot).await
            else {
                panic!("a snapshot was asked for");
            };
            if snapshot.contexts[0].held_blocks == 3 {
                break;
            }
        }
        ask(&supervisor, SupervisorRequest::Release(context)).await;
        while !held.lock().unwrap().is_empty() {
            reported.recv().await.unwrap();
        }
        supervisor.stop(None);
        agent.stop(None);
    }
}
