//! What administrators are told by a cluster of one node. What takes more nodes than one is refused in words.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use stellate_actors::Node;
use stellate_actors::api::{
    Api, Check, ClusterAdmin, ClusterError, DrainRequest, Finding, IssuedToken, MoveEvent, NodeInfo,
    NodeState, RebalancePlan,
};
use stellate_runtime::identity::{CertificateDetails, IssuingStore, JoinDesk, JoinToken};
use tokio::sync::mpsc;

/// Longest life of a token: beyond, it is a key under the doormat.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// A certificate that ends sooner deserves a word.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Who lets nodes in.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) desk: Arc<JoinDesk>,
    pub(super) store: Arc<dyn IssuingStore>,
    pub(super) join_address: SocketAddr,
}

/// A cluster of one.
#[derive(Debug)]
pub(super) struct OneNode {
    details: CertificateDetails,
    address: String,
    node: Node,
    issuer: Option<Arc<Issuer>>,
    /// What is served, once it is.
    api: OnceLock<Api>,
}

impl OneNode {
    pub(super) fn new(
        details: CertificateDetails,
        address: String,
        node: Node,
        issuer: Option<Issuer>,
    ) -> Self {
        Self { details, address, node, issuer: issuer.map(Arc::new), api: OnceLock::new() }
    }

    /// The API whose contexts and sessions are counted.
    pub(super) fn serve(&self, api: &Api) {
        let _ = self.api.set(api.clone());
    }

    fn info(&self) -> NodeInfo {
        let (capacity, used) = self.node.stores().fold((0, 0), |(capacity, used), (_, store)| {
            (capacity + store.capacity_bytes() as u64, used + store.used_bytes() as u64)
        });
        let contexts = self.api.get().map(|api| api.shelf().contexts()).unwrap_or_default();
        let blocks: BTreeSet<_> = contexts
            .iter()
            .flat_map(|(context, _)| {
                let (places, blocks) = (context.places(), &context.manifest().blocks);
                let held = blocks.iter().zip(&places.placed);
                held.map(|(block, placed)| (placed.host, block.id)).collect::<Vec<_>>()
            })
            .collect();
        NodeInfo {
            name: self.details.name.to_string(),
            id: self.details.id.to_string(),
            address: self.address.clone(),
            state: NodeState::Active,
            why: None,
            roles: ["context", "query", "supervisor"].map(str::to_owned).to_vec(),
            devices: format!("{}xCPU", self.node.stores().count()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity_bytes: capacity,
            used_bytes: used,
            blocks: blocks.len() as u64,
            sessions: self.api.get().map_or(0, |api| api.shelf().counts().1 as u64),
            rtt_us: None,
        }
    }

    /// What a change to the only node comes to.
    fn alone<T>(&self, node: &str, why: &str) -> Result<T, ClusterError> {
        if node != self.details.name.as_str() && node != self.details.id.to_string() {
            return Err(ClusterError::UnknownNode { node: node.chars().take(80).collect() });
        }
        Err(ClusterError::Refused(format!(
            "`{}` is the only node of the cluster: {why}; join another node first",
            self.details.name
        )))
    }

    fn certificate(&self) -> Check {
        let left = self.details.not_after.duration_since(SystemTime::now());
        let (finding, detail) = match left {
            Err(_) => (Finding::Bad, "it has ended; join again".to_owned()),
            Ok(left) => {
                let days = left.as_secs() / 86_400;
                let finding = if left < SOON { Finding::Warning } else { Finding::Good };
                (finding, format!("{days} days left"))
            }
        };
        let (node, what) = (self.details.name.to_string(), "certificate".to_owned());
        Check { node, what, finding, detail }
    }
}

impl ClusterAdmin for OneNode {
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeInfo>, ClusterError>> {
        async { Ok(vec![self.info()]) }.boxed()
    }

    fn set_cordon(&self, node: String, cordoned: bool) -> BoxFuture<'_, Result<NodeInfo, ClusterError>> {
        async move {
            let refused = self.alone(&node, "cordoned, the cluster could take no context at all");
            match refused {
                // It never was cordoned.
                Err(ClusterError::Refused(_)) if !cordoned => Ok(self.info()),
                refused => refused,
            }
        }
        .boxed()
    }

    fn drain(
        &self,
        request: DrainRequest,
        _: mpsc::Sender<MoveEvent>,
    ) -> BoxFuture<'_, Result<(), ClusterError>> {
        async move { self.alone(&request.node, "nothing could take its blocks") }.boxed()
    }

    fn remove(&self, node: String, _: bool) -> BoxFuture<'_, Result<(), ClusterError>> {
        async move { self.alone(&node, "without it there is no cluster") }.boxed()
    }

    fn plan(&self) -> BoxFuture<'_, Result<RebalancePlan, ClusterError>> {
        let why = "nothing to move: there is one node".to_owned();
        async move { Ok(RebalancePlan { moves: Vec::new(), why }) }.boxed()
    }

    fn rebalance(&self, _: mpsc::Sender<MoveEvent>) -> BoxFuture<'_, Result<(), ClusterError>> {
        async { Ok(()) }.boxed()
    }

    fn create_token(&self, ttl: Duration, uses: u32) -> BoxFuture<'_, Result<IssuedToken, ClusterError>> {
        async move {
            let Some(issuer) = self.issuer.clone() else {
                return Err(ClusterError::NotHere(
                    "nobody can join here: this node does not hold the CA, or network.join_listen is empty; ask the \
                     node that was founded with `stellate cluster init`"
                        .to_owned(),
                ));
            };
            if ttl > MAX_TTL || ttl.is_zero() {
                return Err(ClusterError::Refused("a token lasts a year at most, and some time; lower --ttl".to_owned()));
            }
            let issued = tokio::task::spawn_blocking(move || issue(&issuer, ttl, uses)).await;
            issued.map_err(|error| ClusterError::Failed(error.to_string()))?
        }
        .boxed()
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Check>, ClusterError>> {
        async { Ok(vec![self.certificate()]) }.boxed()
    }
}

/// Writes a new token to the store, which may wait for a disk.
fn issue(issuer: &Issuer, ttl: Duration, uses: u32) -> Result<IssuedToken, ClusterError> {
    let now = SystemTime::now();
    let (token, record) = JoinToken::create(issuer.desk.authority().hash(), now, ttl, uses);
    let expires = record.expires().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let issued = IssuedToken {
        id: token.id().to_string(),
        token: token.to_line(),
        expires_s: expires.as_secs(),
        uses: u64::from(record.uses_left()),
        join_address: issuer.join_address.to_string(),
    };
    issuer.store.add_token(record).map_err(|error| ClusterError::Failed(error.to_string()))?;
    tracing::info!(token = %issued.id, uses = issued.uses, expires_s = issued.expires_s, "a join token was made");
    Ok(issued)
}
