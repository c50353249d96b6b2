//! Who is who: nodes by the first bits of their ids, and the actors of the cluster by the node they are on. How they are
//! called so that no caller waits for ever.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{ActorCell, ActorRef, ActorStatus};
use stellate_runtime::control::{ControlEvent, Wire};
use stellate_runtime::identity::NodeId;
use stellate_runtime::membership::{NodeRecord, Standing};
use stellate_runtime::protocol::{OLDEST_WIRE_VERSION, WIRE_VERSION};
use stellate_runtime::substrate::SubstrateHandle;
use stellate_runtime::transport::ConnectionClass;
use tokio::time::{Instant, sleep, timeout};

use super::calls::{
    AGENTS, AgentCall, KEEPERS, QUERY_NODES, QueryCall, SUPERVISORS, SessionCall, SupervisorCall, VoterCall,
    VoterReply, VoterRequest,
};
use super::sessions::{SessionAnswer, SessionAsk};
use crate::cluster::messages::{
    AgentOrder, AgentReply, NodeKey, QueryNodeNotice, SupervisorReply, SupervisorRequest,
};

/// How long an actor of a node that is there is waited for: longer than a lost session takes to be opened again.
const LONGEST_SEARCH: Duration = Duration::from_secs(3);
/// How often it is looked for.
const SEARCH_POLL: Duration = Duration::from_millis(50);

/// The key of a node: what its hosts' ids begin with.
pub(super) fn key_of(node: NodeId) -> NodeKey {
    let [a, b, c, d, e, f, ..] = *node.as_bytes();
    NodeKey([a, b, c, d, e, f])
}

/// The nodes of the cluster and their actors. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    pub(super) substrate: SubstrateHandle,
    /// The actors of this node, by group.
    own: Arc<Mutex<BTreeMap<&'static str, ActorCell>>>,
}

impl Peers {
    pub(super) fn new(substrate: SubstrateHandle) -> Self {
        Self { substrate, own: Arc::default() }
    }

    /// This node's key.
    pub(super) fn own_key(&self) -> NodeKey {
        key_of(self.substrate.id())
    }

    /// Makes an actor of this node known to all.
    pub(super) fn join(&self, group: &'static str, actor: ActorCell) {
        if self.substrate.control().is_some() {
            ractor::pg::join(group.to_owned(), vec![actor.clone()]);
        }
        self.own.lock().unwrap_or_else(PoisonError::into_inner).insert(group, actor);
    }

    /// The actors of a group with their nodes, ordered by node.
    fn members(&self, group: &'static str) -> Vec<(NodeId, ActorCell)> {
        let own_id = self.substrate.id();
        let mut members = self.substrate.control().map(|control| control.members(group)).unwrap_or_default();
        members.retain(|(node, _)| *node != own_id);
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).get(group).cloned();
        let is_running = |actor: &ActorCell| actor.get_status() <= ActorStatus::Running;
        members.extend(own.filter(is_running).map(|actor| (own_id, actor)));
        members.sort_by_key(|(node, _)| *node);
        members
    }

    /// The supervisor, if one is known. Should there be two for a moment, that of the node `latest`, which was the last to be
    /// heard of, unless it is the one to `avoid`; else that of the lowest node.
    pub(super) fn supervisor(
        &self,
        latest: NodeKey,
        avoid: Option<NodeId>,
    ) -> Option<(NodeId, ActorRef<SupervisorCall>)> {
        let members = self.members(SUPERVISORS);
        let others = || members.iter().filter(|(node, _)| Some(*node) != avoid);
        let found = others().find(|(node, _)| key_of(*node) == latest);
        let (node, actor) = found.or_else(|| others().next()).or_else(|| members.first())?;
        Some((*node, actor.clone().into()))
    }

    /// Whether another node supervises.
    pub(super) fn is_supervised_elsewhere(&self) -> bool {
        self.members(SUPERVISORS).iter().any(|(node, _)| *node != self.substrate.id())
    }

    /// Whether a node can take part, and its name; in words why not. One that is not known yet can.
    pub(super) fn check(&self, key: NodeKey) -> Result<(), String> {
        let roster = self.substrate.roster();
        let mut named = roster.members.iter().filter(|member| key_of(member.id) == key);
        match (named.next(), named.next()) {
            (Some(one), Some(other)) => Err(alike(&one.record, &other.record)),
            (Some(one), None) if key == self.own_key() => Err(alike(&roster.own, &one.record)),
            (Some(member), None) => match &member.standing {
                Standing::Compatible => Ok(()),
                Standing::Incompatible(why) => {
                    Err(why.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
                }
            },
            _ => Ok(()),
        }
    }

    /// The node of this key that answers, as far as is known; this one too.
    pub(super) fn live(&self, key: NodeKey) -> Option<NodeId> {
        if key == self.own_key() {
            return Some(self.substrate.id());
        }
        self.check(key).ok()?;
        let roster = self.substrate.roster();
        let known = roster.members.iter().find(|member| key_of(member.id) == key);
        match known {
            Some(member) => member.is_up().then_some(member.id),
            // Its actors may be known before it is.
            None => {
                let control = self.substrate.control()?;
                control.ready_peers().into_iter().find(|node| key_of(*node) == key)
            }
        }
    }

    /// As [`live`](Self::live), for a node that others know already: waits a while until this one does.
    pub(super) async fn await_live(&self, key: NodeKey) -> Option<NodeId> {
        let found = async {
            loop {
                match self.live(key) {
                    Some(node) => return node,
                    None => sleep(SEARCH_POLL).await,
                }
            }
        };
        timeout(LONGEST_SEARCH, found).await.ok()
    }

    /// Whether the actors of a node can be called at the moment.
    pub(super) fn can_be_called(&self, key: NodeKey) -> bool {
        let control = self.substrate.control();
        key == self.own_key()
            || control.is_some_and(|control| control.ready_peers().iter().any(|node| key_of(*node) == key))
    }

    pub(super) fn find(&self, group: &'static str, key: NodeKey) -> Option<(NodeId, ActorCell)> {
        self.members(group).into_iter().find(|(node, _)| key_of(*node) == key)
    }

    /// The wire version that is spoken with a node: what is newer is not sent to it.
    pub(super) fn version(&self, node: NodeId) -> u16 {
        if node == self.substrate.id() {
            return WIRE_VERSION;
        }
        let connection = self.substrate.endpoint().connection(node, ConnectionClass::Control);
        connection.map_or(OLDEST_WIRE_VERSION, |connection| connection.version())
    }

    /// Asks the supervisor on a node once, in words that it knows.
    pub(super) async fn ask(
        &self,
        (node, supervisor): &(NodeId, ActorRef<SupervisorCall>),
        request: SupervisorRequest,
        limit: Duration,
    ) -> Result<SupervisorReply, String> {
        let request = request.lowered(self.version(*node));
        let asked = supervisor.call(|reply| SupervisorCall::Ask(Wire::new(request), reply), Some(limit));
        answer(asked.await)
    }

    /// Asks a voter once.
    pub(super) async fn ask_voter(
        &self,
        voter: &ActorRef<VoterCall>,
        request: VoterRequest,
        limit: Duration,
    ) -> Result<VoterReply, String> {
        answer(voter.call(|reply| VoterCall::Ask(Wire::new(request), reply), Some(limit)).await)
    }

    /// Gives an order to the agent of a node, and waits for the answer: as long as `limit`, or as long as the node is there.
    pub(super) async fn order(
        &self,
        key: NodeKey,
        order: AgentOrder,
        limit: Option<Duration>,
    ) -> Result<AgentReply, String> {
        self.order_if(key, order, limit, || true).await
    }

    /// As [`order`](Self::order), if it may still be given once the agent was found, which can take a while.
    pub(super) async fn order_if(
        &self,
        key: NodeKey,
        order: AgentOrder,
        limit: Option<Duration>,
        may_order: impl Fn() -> bool,
    ) -> Result<AgentReply, String> {
        let start = Instant::now();
        let (node, agent) = loop {
            match self.find(AGENTS, key) {
                Some(found) => break found,
                None if self.live(key).is_none() => return Err("its node is not there".to_owned()),
                None if start.elapsed() > LONGEST_SEARCH => {
                    return Err("its node cannot be called at the moment".to_owned());
                }
                None => sleep(SEARCH_POLL).await,
            }
        };
        let gone = self.gone(node);
        let agent = ActorRef::<AgentCall>::from(agent);
        if !may_order() {
            return Err("its supervisor may not order anything any more".to_owned());
        }
        let called = agent.call(|reply| AgentCall::Order(Wire::new(order), reply), limit);
        tokio::select! {
            called = called => answer(called),
            () = gone => Err("its node has gone".to_owned()),
        }
    }

    /// Asks a node about a session once, if it can be called at the moment.
    pub(super) async fn ask_about(
        &self,
        key: NodeKey,
        ask: SessionAsk,
        limit: Duration,
    ) -> Result<SessionAnswer, String> {
        let (node, keeper) = self.find(KEEPERS, key).ok_or("its node cannot be called at the moment")?;
        let gone = self.gone(node);
        let keeper = ActorRef::<SessionCall>::from(keeper);
        let called = keeper.call(|reply| SessionCall::Ask(Wire::new(ask), reply), Some(limit));
        let answered = tokio::select! {
            called = called => answer(called)?,
            () = gone => return Err("its node has gone".to_owned()),
        };
        match answered {
            SessionAnswer::Refused(why) => Err(why),
            answered => Ok(answered),
        }
    }

    /// The nodes whose sessions can be asked about at the moment, this one among them.
    pub(super) fn keepers(&self) -> Vec<NodeKey> {
        self.members(KEEPERS).into_iter().map(|(node, _)| key_of(node)).collect()
    }

    /// Waits until a node cannot be called any more. For this node that never is.
    fn gone(&self, node: NodeId) -> impl Future<Output = ()> + use<> {
        let control = self.substrate.control().filter(|_| node != self.substrate.id()).cloned();
        let events = control.as_ref().map(|control| control.events());
        async move {
            let (Some(control), Some(mut events)) = (control, events) else {
                return std::future::pending().await;
            };
            while control.ready_peers().contains(&node) {
                use tokio::sync::broadcast::error::RecvError;
                match events.recv().await {
                    Ok(ControlEvent::Gone(gone)) if gone == node => return,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }

    /// Tells a query node something, which may be lost.
    pub(super) fn notify(&self, key: NodeKey, notice: QueryNodeNotice) {
        let Some((_, actor)) = self.find(QUERY_NODES, key) else {
            tracing::debug!(node = %key, ?notice, "a query node that is not there was to be told something");
            return;
        };
        drop(ActorRef::<QueryCall>::from(actor).cast(QueryCall::Notice(Wire::new(notice))));
    }
}

fn alike(one: &NodeRecord, other: &NodeRecord) -> String {
    format!(
        "the ids of nodes {} and {} begin alike; remove one of them, delete its identity folder and join it again",
        one.name, other.name
    )
}

/// What came of a call.
fn answer<T, M>(called: Result<CallResult<Wire<T>>, ractor::MessagingErr<M>>) -> Result<T, String> {
    match called {
        Ok(CallResult::Success(answer)) => answer.take().map_err(|error| error.to_string()),
        Ok(CallResult::Timeout) => Err("no answer came in time".to_owned()),
        Ok(CallResult::SenderError) | Err(_) => Err("the way to it broke".to_owned()),
    }
}
