//! Context hosts of other nodes, reached when a block of ours is placed there, and let go when their node has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use stellate_model::block::BlockId;
use stellate_runtime::identity::NodeId;
use stellate_runtime::substrate::{ConnectError, Roster, SubstrateHandle};
use stellate_runtime::transport::{Connection, ConnectionClass};
use tokio::time::{Duration, timeout};

use super::peers::{Peers, key_of};
use super::pull::BlockSources;
use super::way::Seen;
use crate::budget::{KvBudget, StoreFull, free_tokens};
use crate::cluster::messages::{AgentOrder, AgentRefusal, AgentReply, AgentRequest, EncodeOrder, NodeKey};
use crate::context_host::{Encoded, HostError};
use crate::directory::Directory;
use crate::link::HostId;
use crate::remote::{
    AttendShape, ControlCalls, DecodeChannel, DecodeOptions, DialFailure, Dialer, Pacer, RemoteHost,
    RoomPromise,
};

/// How long a promise of room may take: nothing is computed for it.
const RESERVE: Duration = Duration::from_secs(5);

/// How long the roster may take to show a node that was named by the supervisor: news spread within one.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The ways to hosts of other nodes.
#[derive(Debug)]
pub(super) struct Neighbours {
    peers: Peers,
    seen: Arc<Seen>,
    directory: Arc<Directory>,
    shape: AttendShape,
    /// Where `exact` blocks lie while they are computed here for other nodes.
    scratch: Arc<KvBudget>,
    pacer: Pacer,
    /// Connections for attention and for blocks, by node: all hosts of a node share them.
    dialers: Mutex<BTreeMap<NodeId, [Arc<dyn Dialer>; 2]>>,
}

impl Neighbours {
    pub(super) fn new(
        peers: Peers,
        seen: Arc<Seen>,
        directory: Arc<Directory>,
        shape: AttendShape,
        scratch: Arc<KvBudget>,
        pacer: Pacer,
    ) -> Self {
        Self { peers, seen, directory, shape, scratch, pacer, dialers: Mutex::default() }
    }

    /// Sees to it that a host is in the directory, if its node is there. Nothing is dialled before the host is used.
    pub(super) async fn reach(&self, host: HostId) {
        let key = NodeKey::of(host);
        if key == self.peers.own_key() || self.directory.get(host).is_some() {
            return;
        }
        let Some(node) = self.peers.await_live(key).await else {
            tracing::warn!(%host, "blocks lie on a host whose node is not there");
            return;
        };
        let [decode, bulk] = self.dialers(node);
        let network = self.peers.substrate.network();
        let channel = DecodeChannel::new(&network, host, self.shape, decode, DecodeOptions::default());
        let control = Orders {
            peers: self.peers.clone(),
            seen: Arc::clone(&self.seen),
            scratch: Arc::clone(&self.scratch),
        };
        let (scratch, pacer) = (Arc::clone(&self.scratch), self.pacer.clone());
        let remote = RemoteHost::new(channel, Arc::new(control), bulk, scratch, pacer);
        tracing::debug!(%host, "a host of another node is used from now on");
        self.directory.join(Arc::new(remote));
    }

    /// `suspects`, and the other hosts of their nodes as far as those nodes cannot be called: a node dies as a whole.
    pub(super) fn with_others_of_their_nodes(&self, suspects: Vec<HostId>) -> Vec<HostId> {
        let mut nodes: BTreeSet<NodeKey> = suspects.iter().map(|host| NodeKey::of(*host)).collect();
        nodes.retain(|key| !self.peers.can_be_called(*key));
        let known = self.directory.snapshot();
        let others = known.keys().filter(|host| nodes.contains(&NodeKey::of(**host)));
        let all: BTreeSet<HostId> = suspects.iter().chain(others).copied().collect();
        all.into_iter().collect()
    }

    /// Lets go of the hosts of nodes that are not there any more.
    pub(super) fn leave(&self, roster: &Roster) {
        let is_up = |key: NodeKey| roster.members.iter().any(|m| key_of(m.id) == key && m.is_up());
        for &host in self.directory.snapshot().keys() {
            let key = NodeKey::of(host);
            if key != self.peers.own_key() && !is_up(key) {
                tracing::info!(%host, "the node of a host has gone");
                self.directory.remove(host);
            }
        }
        let mut dialers = self.dialers.lock().unwrap_or_else(PoisonError::into_inner);
        dialers.retain(|node, _| roster.member(*node).is_some_and(|member| member.is_up()));
    }

    fn dialers(&self, node: NodeId) -> [Arc<dyn Dialer>; 2] {
        let new = || {
            [ConnectionClass::Decode, ConnectionClass::Bulk].map(|class| {
                let substrate = self.peers.substrate.clone();
                Arc::new(RosterDialer { substrate, node, class, gate: tokio::sync::Mutex::new(()) })
                    as Arc<dyn Dialer>
            })
        };
        let mut dialers = self.dialers.lock().unwrap_or_else(PoisonError::into_inner);
        dialers.entry(node).or_insert_with(new).clone()
    }
}

/// Connections of one class to one node.
#[derive(Debug)]
struct RosterDialer {
    substrate: SubstrateHandle,
    node: NodeId,
    class: ConnectionClass,
    /// One dial at a time: of two connections to a node, the endpoint closes one.
    gate: tokio::sync::Mutex<()>,
}

impl Dialer for RosterDialer {
    fn connect(&self) -> BoxFuture<'_, Result<Connection, DialFailure>> {
        Box::pin(async move {
            let _one = self.gate.lock().await;
            // A node that has just joined may be called before the roster has it.
            let mut roster = self.substrate.watch();
            let is_known = roster.wait_for(|roster| roster.member(self.node).is_some());
            let _ = timeout(LONGEST_WAIT, is_known).await;
            self.substrate.connect(self.node, self.class).await.map_err(|error| match error {
                ConnectError::Unknown(_) => DialFailure::Gone,
                ConnectError::Dial(error) => DialFailure::Unreachable(error.to_string()),
            })
        })
    }
}

impl BlockSources for Neighbours {
    fn connect(&self, host: HostId) -> BoxFuture<'_, Result<Connection, DialFailure>> {
        Box::pin(async move {
            let node = self.peers.live(NodeKey::of(host)).ok_or(DialFailure::Gone)?;
            let [_, bulk] = self.dialers(node);
            bulk.connect().await
        })
    }
}

/// Orders of this query node to the agents of other nodes.
#[derive(Debug)]
struct Orders {
    peers: Peers,
    seen: Arc<Seen>,
    scratch: Arc<KvBudget>,
}

impl Orders {
    async fn order(
        &self,
        host: HostId,
        request: AgentRequest,
        limit: Option<Duration>,
    ) -> Result<AgentReply, HostError> {
        let (term, version) = self.seen.now();
        // Only supervisors number their orders.
        let order = AgentOrder { term, version, order: 0, request };
        let unreachable = |cause| HostError::Unreachable { host, cause };
        match self.peers.order(NodeKey::of(host), order, limit).await.map_err(unreachable)? {
            AgentReply::Refused(AgentRefusal::Full { needed_bytes, free_bytes }) => {
                let tokens = |bytes: u64| {
                    free_tokens(self.scratch.shape(), usize::try_from(bytes).unwrap_or(usize::MAX))
                };
                Err(HostError::Full(StoreFull {
                    needed_tokens: tokens(needed_bytes),
                    free_tokens: tokens(free_bytes),
                }))
            }
            AgentReply::Refused(refusal) => {
                if let AgentRefusal::Fenced { highest, .. } = refusal {
                    // What is placed anew is ordered in its name.
                    self.seen.note(highest, 0);
                }
                Err(unreachable(refusal.to_string()))
            }
            reply => Ok(reply),
        }
    }
}

impl ControlCalls for Orders {
    fn encode(&self, order: EncodeOrder) -> BoxFuture<'_, Result<Encoded, HostError>> {
        Box::pin(async move {
            let host = order.host;
            match self.order(host, AgentRequest::Encode(order), None).await? {
                AgentReply::Encoded { fresh: true } => Ok(Encoded::Fresh),
                AgentReply::Encoded { fresh: false } => Ok(Encoded::Held),
                _ => Err(nonsense(host)),
            }
        })
    }

    fn reserve(
        &self,
        host: HostId,
        id: BlockId,
        tokens: usize,
    ) -> BoxFuture<'_, Result<RoomPromise, HostError>> {
        Box::pin(async move {
            let bytes = self.scratch.shape().bytes_for(tokens) as u64;
            let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
            let request = AgentRequest::Reserve { host, block: id, bytes, tokens };
            match self.order(host, request, Some(RESERVE)).await? {
                AgentReply::Reserved { held: true } => Ok(RoomPromise::Held),
                AgentReply::Reserved { held: false } => Ok(RoomPromise::Promised),
                _ => Err(nonsense(host)),
            }
        })
    }
}

fn nonsense(host: HostId) -> HostError {
    HostError::Unreachable { host, cause: "its answer is none to what was asked".to_owned() }
}
