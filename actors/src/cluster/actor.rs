//! The actor over the supervisor's state machine: hands it requests with the time, and carries out what it has done.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use stellate_runtime::clock::Clock;

use super::drain::DrainProgress;
use super::messages::{
    AgentOrder, AgentReply, NodeKey, QueryNodeNotice, Refusal, SupervisorReply, SupervisorRequest,
};
use super::settings::ClusterSettings;
use super::supervisor::{Action, Cluster, Intent};

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
}

/// What a supervisor keeps on disk: its term, and what administrators want of nodes.
pub trait SupervisorStore: Send + Sync + fmt::Debug + 'static {
    /// Raises the term by one, and returns it when it is safe.
    ///
    /// # Errors
    /// In words; the supervisor does not start.
    fn raise_term(&mut self) -> Result<u64, String>;
    /// What is wanted of nodes.
    ///
    /// # Errors
    /// In words; the supervisor does not start.
    fn intents(&mut self) -> Result<BTreeMap<NodeKey, Intent>, String>;
    /// Keeps an intent, or forgets it.
    ///
    /// # Errors
    /// In words.
    fn keep(&mut self, node: NodeKey, intent: Option<Intent>) -> Result<(), String>;
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
        let ClusterArgs { settings, transport, mut store, clock } = args;
        let (term, intents) = (store.raise_term()?, store.intents()?);
        tracing::info!(term, "supervisor started");
        drop(myself.send_interval(TICK, || ClusterMsg::Tick));
        let cluster = Cluster::new(clock.now(), term, settings, intents);
        Ok(ClusterState { cluster, transport, store, clock })
    }

    async fn handle(
        &self,
        myself: ActorRef<ClusterMsg>,
        message: ClusterMsg,
        state: &mut ClusterState,
    ) -> Result<(), ActorProcessingErr> {
        let now = state.clock.now();
        match message {
            ClusterMsg::Ask(request, reply) => {
                let answer = state.cluster.ask(now, request);
                state.act(&myself);
                // Who asked may have given up.
                let _ = reply.send(answer);
            }
            ClusterMsg::Tell(request) => drop(state.cluster.ask(now, request)),
            ClusterMsg::Replied(order, reply) => state.cluster.agent_replied(now, order, reply),
            ClusterMsg::Tick => state.cluster.tick(now),
        }
        state.act(&myself);
        Ok(())
    }
}

impl ClusterState {
    /// Carries out what was done.
    fn act(&mut self, myself: &ActorRef<ClusterMsg>) {
        while let Some(action) = self.cluster.poll_action() {
            match action {
                Action::ToAgent { node, order } => {
                    let (number, answer, myself) = (order.order, self.transport.order(node, order), myself.clone());
                    // The actor may have stopped; then nobody wants the answer.
                    tokio::spawn(async move { drop(myself.cast(ClusterMsg::Replied(number, answer.await))) });
                }
                Action::ToQueryNode { node, notice } => self.transport.notify(node, notice),
                Action::Drain(progress) => self.transport.drained(progress),
                Action::Intent { node, intent } => {
                    if let Err(cause) = self.store.keep(node, intent) {
                        tracing::error!(%node, ?intent, %cause, "what is wanted of a node was not kept on disk");
                    }
                }
                Action::Replaced { highest } => {
                    myself.stop(Some(format!("a supervisor of term {highest} is there")));
                }
            }
        }
    }
}

impl Cluster {
    /// Does what is asked, by name: the way in for what has come over the network.
    pub fn ask(&mut self, now: Duration, request: SupervisorRequest) -> SupervisorReply {
        let done = |result: Result<(), Refusal>| result.map(|()| SupervisorReply::Done);
        let reply = match request {
            SupervisorRequest::Inventory(inventory) => Ok(done_with(self.inventory(now, &inventory))),
            SupervisorRequest::Renew { node, announced } => Ok(done_with(self.renew(now, node, announced))),
            SupervisorRequest::Hold(claim) => Ok(done_with(self.hold(now, claim))),
            SupervisorRequest::Place { claim, suspects } => {
                self.place(now, claim, &suspects).map(SupervisorReply::Placed)
            }
            SupervisorRequest::Release(context) => Ok(done_with(self.release(now, context))),
            SupervisorRequest::Switched { node, migration } => Ok(done_with(self.switched(now, node, migration))),
            SupervisorRequest::Recomputed { migration, done } => Ok(done_with(self.recomputed(now, migration, done))),
            SupervisorRequest::NodeGone(node) => Ok(done_with(self.node_gone(now, node))),
            SupervisorRequest::Cordon(node) => done(self.cordon(node)),
            SupervisorRequest::Uncordon(node) => done(self.uncordon(node)),
            SupervisorRequest::Drain { node, deadline_ms, dry_run } => {
                let deadline = deadline_ms.map(Duration::from_millis);
                self.drain(now, node, deadline, dry_run).map(SupervisorReply::Drain)
            }
            SupervisorRequest::Remove { node, force } => done(self.remove(now, node, force)),
            SupervisorRequest::Rebalance { apply } => self.rebalance(now, apply).map(SupervisorReply::Plan),
            SupervisorRequest::Snapshot => Ok(SupervisorReply::Snapshot(Box::new(self.snapshot(now)))),
        };
        reply.unwrap_or_else(SupervisorReply::Refused)
    }
}

fn done_with((): ()) -> SupervisorReply {
    SupervisorReply::Done
}
