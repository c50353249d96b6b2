//! What nodes call each other by: thin actors in process groups, one for each part that a node plays. They read what has come
//! over the network, hand it on in the order it came, and always answer: a caller on another node is not told that an actor
//! has dropped its call.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use ractor::concurrency::oneshot;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorClusterMessage;
use stellate_runtime::control::Wire;
use tokio::sync::{Semaphore, mpsc};
use wincode::{SchemaRead, SchemaWrite};

use super::electorate::Electorate;

use super::sessions::{SessionAnswer, SessionAsk, Sessions};
use super::voting::VoterInput;
use crate::cluster::actor::ClusterMsg;
use crate::cluster::agent::AgentMsg;
use crate::cluster::election::{Message, Standing, Voter};
use crate::cluster::messages::{
    AgentOrder, AgentRefusal, AgentReply, NodeKey, QueryNodeNotice, Refusal, SupervisorReply,
    SupervisorRequest,
};

/// Questions about sessions that a node answers at once; each holds a few MB at most.
const MAX_SESSION_ASKS: usize = 64;

/// Supervisors: one, or two while one takes over from another.
pub(super) const SUPERVISORS: &str = "stellate.supervisor";
/// Agents: one on each node.
pub(super) const AGENTS: &str = "stellate.agent";
/// Query nodes.
pub(super) const QUERY_NODES: &str = "stellate.query";

/// Voters, on nodes that are some.
pub(super) const VOTERS: &str = "stellate.voter";

/// Messages of other voters that may wait: a few rounds of all of them. What is beyond is lost, as on a network.
pub(super) const VOTER_QUEUE: usize = 64;

/// Keepers of sessions: one on each node.
pub(super) const KEEPERS: &str = "stellate.sessions";

/// What a supervisor is asked over the network.
#[derive(Debug, RactorClusterMessage)]
pub(super) enum SupervisorCall {
    /// Something is asked.
    #[rpc]
    Ask(Wire<SupervisorRequest>, RpcReplyPort<Wire<SupervisorReply>>),
}

/// What an agent is asked over the network.
#[derive(Debug, RactorClusterMessage)]
pub(super) enum AgentCall {
    /// Follow an order.
    #[rpc]
    Order(Wire<AgentOrder>, RpcReplyPort<Wire<AgentReply>>),
}

/// What a query node is told over the network.
#[derive(Debug, RactorClusterMessage)]
pub(super) enum QueryCall {
    /// Something has happened.
    Notice(Wire<QueryNodeNotice>),
}

/// What a voter is told and asked over the network.
#[derive(Debug, RactorClusterMessage)]
pub(super) enum VoterCall {
    /// Another voter says something.
    Say(Wire<Envelope>),
    /// Something is asked for an administrator.
    #[rpc]
    Ask(Wire<VoterRequest>, RpcReplyPort<Wire<VoterReply>>),
}

/// A message between voters.
#[derive(Clone, Debug, SchemaRead, SchemaWrite)]
pub(super) struct Envelope {
    /// By which settings the sender is a voter.
    pub(super) electorate: u64,
    /// The sender.
    pub(super) from: Voter,
    /// Its node.
    pub(super) node: NodeKey,
    /// What it says.
    pub(super) message: Message,
}

/// What an administrator asks of a voter.
#[derive(Clone, Copy, Debug, SchemaRead, SchemaWrite)]
pub(super) enum VoterRequest {
    /// How it stands.
    Standing,
    /// Let another lead, if it leads.
    HandOver(Voter),
    /// Lead as soon as leases allow.
    Campaign,
}

/// What a voter answers.
#[derive(Clone, Copy, Debug, SchemaRead, SchemaWrite)]
pub(super) enum VoterReply {
    /// How it stands.
    Standing(Standing),
    /// It is begun.
    Begun,
    /// It does not lead.
    NotLeading,
}

/// The way in to the voter of this node.
#[derive(Debug)]
pub(super) struct VoterGate;

/// Where what has come goes: the settings by which senders are judged, the voter, and the nodes that were told of in the log.
pub(super) type VoterDoor = (Electorate, mpsc::Sender<VoterInput>, BTreeSet<NodeKey>);

/// Nodes that are told of as no voters: whoever says so again and again is told of once.
const TOLD_OF: usize = 64;

impl Actor for VoterGate {
    type Msg = VoterCall;
    type State = VoterDoor;
    type Arguments = VoterDoor;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        door: VoterDoor,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(door)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: VoterCall,
        (electorate, voter, told_of): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            VoterCall::Say(said) => match said.take() {
                Ok(envelope) => match electorate.sender(&envelope) {
                    // A voter that is behind loses messages, and is asked again.
                    Ok(from) => drop(voter.try_send(VoterInput::Said(from, envelope.message))),
                    Err(cause) if told_of.len() < TOLD_OF && told_of.insert(envelope.node) => {
                        tracing::warn!(node = %envelope.node, %cause, "a message of a voter was not heard");
                    }
                    Err(cause) => {
                        tracing::debug!(node = %envelope.node, %cause, "a message of a voter was not heard");
                    }
                },
                Err(error) => tracing::warn!(%error, "a message of a voter could not be read"),
            },
            VoterCall::Ask(asked, reply) => {
                if let Ok(request) = asked.take() {
                    // Dropped with the reply's port if the voter is behind: who asked is told so by its time-out.
                    drop(voter.try_send(VoterInput::Asked(request, reply)));
                }
            }
        }
        Ok(())
    }
}

/// What a node is asked about sessions over the network.
#[derive(Debug, RactorClusterMessage)]
pub(super) enum SessionCall {
    /// Something is asked.
    #[rpc]
    Ask(Wire<SessionAsk>, RpcReplyPort<Wire<SessionAnswer>>),
}

/// The way in to the sessions of this node. Each question is answered by a task of its own.
#[derive(Debug)]
pub(super) struct SessionGate;

impl Actor for SessionGate {
    type Msg = SessionCall;
    type State = (Arc<Sessions>, Arc<Semaphore>);
    type Arguments = Arc<Sessions>;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        sessions: Arc<Sessions>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok((sessions, Arc::new(Semaphore::new(MAX_SESSION_ASKS))))
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: SessionCall,
        (sessions, room): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let SessionCall::Ask(ask, reply) = message;
        let refused = |why: String| SessionAnswer::Refused(why);
        let answer = match (ask.take(), Arc::clone(room).try_acquire_owned()) {
            (Err(error), _) => refused(error.to_string()),
            (Ok(_), Err(_)) => refused(format!("{MAX_SESSION_ASKS} questions wait already; ask again")),
            (Ok(ask), Ok(permit)) => {
                let sessions = Arc::clone(sessions);
                tokio::spawn(async move {
                    let answer = sessions.answer(ask).await;
                    drop(permit);
                    // Who asked may have given up.
                    let _ = reply.send(Wire::new(answer));
                });
                return Ok(());
            }
        };
        drop(reply.send(Wire::new(answer)));
        Ok(())
    }
}

/// Looks at what the supervisor is asked before it is.
pub(super) trait Doorkeeper: Send + Sync + Debug + 'static {
    /// `None` lets the request in; else that is the answer.
    fn answer(&self, request: &SupervisorRequest) -> Option<SupervisorReply>;
}

/// The way in to a supervisor of this node.
#[derive(Debug)]
pub(super) struct SupervisorGate;

impl Actor for SupervisorGate {
    type Msg = SupervisorCall;
    type State = (ActorRef<ClusterMsg>, Arc<dyn Doorkeeper>);
    type Arguments = Self::State;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        state: Self::State,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: SupervisorCall,
        (cluster, doorkeeper): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let SupervisorCall::Ask(request, reply) = message;
        let answer = match request.take() {
            Err(error) => Some(SupervisorReply::Refused(Refusal::Unreadable { cause: error.to_string() })),
            Ok(request) => match doorkeeper.answer(&request) {
                None => {
                    let (asked, answer) = oneshot();
                    // One that has stopped was replaced, or its node is closing: the asker looks for another.
                    drop(cluster.cast(ClusterMsg::Ask(request, asked.into())));
                    relay(reply, answer, || SupervisorReply::Refused(Refusal::Replaced));
                    return Ok(());
                }
                answer => answer,
            },
        };
        // Who asked may have given up.
        drop(answer.map(|answer| reply.send(Wire::new(answer))));
        Ok(())
    }
}

/// The way in to the agent of this node.
#[derive(Debug)]
pub(super) struct AgentGate;

impl Actor for AgentGate {
    type Msg = AgentCall;
    type State = ActorRef<AgentMsg>;
    type Arguments = ActorRef<AgentMsg>;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        agent: ActorRef<AgentMsg>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(agent)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: AgentCall,
        agent: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let AgentCall::Order(order, reply) = message;
        let failed = |cause: String| AgentReply::Refused(AgentRefusal::Failed { cause });
        match order.take() {
            Ok(order) => {
                let (asked, answer) = oneshot();
                drop(agent.cast(AgentMsg::Order(order, asked.into())));
                relay(reply, answer, move || failed("the agent has stopped".to_owned()));
            }
            Err(error) => drop(reply.send(Wire::new(failed(error.to_string())))),
        }
        Ok(())
    }
}

/// What a query node does with what it is told. Called on the actor: it must not wait.
pub(super) trait Listener: Send + Sync + Debug + 'static {
    /// The supervisor has said something.
    fn hear(&self, notice: QueryNodeNotice);
}

/// The way in to the query side of this node.
#[derive(Debug)]
pub(super) struct QueryGate;

impl Actor for QueryGate {
    type Msg = QueryCall;
    type State = Arc<dyn Listener>;
    type Arguments = Arc<dyn Listener>;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        listener: Arc<dyn Listener>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(listener)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: QueryCall,
        listener: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let QueryCall::Notice(notice) = message;
        match notice.take() {
            Ok(notice) => listener.hear(notice),
            Err(error) => tracing::warn!(%error, "a notice of the supervisor could not be read"),
        }
        Ok(())
    }
}

/// Passes an answer on once it is there, or what stands for none.
fn relay<T: Send + Debug + 'static>(
    reply: RpcReplyPort<Wire<T>>,
    answer: ractor::concurrency::OneshotReceiver<T>,
    none: impl FnOnce() -> T + Send + 'static,
) {
    tokio::spawn(async move {
        let answer = answer.await.unwrap_or_else(|_| none());
        // Who asked may have given up.
        let _ = reply.send(Wire::new(answer));
    });
}
