//! What a node does for administrators, over its place in the cluster. What takes more nodes than one is refused in words
//! where there is one.

mod nodes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use stellate_actors::Node;
use stellate_actors::api::{
    Check, ClusterAdmin, ClusterError, DrainRequest, Finding, IssuedToken, MoveEvent, NodeInfo,
    RebalancePlan, Shelf,
};
use stellate_runtime::substrate::{ManageError, Roster};
use tokio::sync::mpsc;

use super::place::Place;

/// Longest life of a token: beyond, it is a key under the doormat.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// A certificate that ends sooner deserves a word.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// See the module.
#[derive(Debug)]
pub(super) struct Administration {
    place: Arc<Place>,
    node: Node,
    shelf: Arc<Shelf>,
}

impl Administration {
    /// Over the contexts and sessions of `shelf`.
    pub(super) fn new(place: Arc<Place>, node: Node, shelf: Arc<Shelf>) -> Self {
        Self { place, node, shelf }
    }

    async fn roster(&self) -> Result<Arc<Roster>, ClusterError> {
        Ok(self.place.get().await?.roster())
    }

    async fn rows(&self) -> Result<Vec<NodeInfo>, ClusterError> {
        let (mut rows, own) = {
            let substrate = self.place.get().await?;
            (nodes::rows(&substrate), substrate.id().to_string())
        };
        if let Some(row) = rows.iter_mut().find(|row| row.id == own) {
            self.fill_own(row);
        }
        Ok(rows)
    }

    /// What this node knows of itself.
    fn fill_own(&self, row: &mut NodeInfo) {
        let contexts = self.shelf.contexts();
        let blocks: BTreeSet<_> = contexts
            .iter()
            .flat_map(|(context, _)| {
                let (places, blocks) = (context.places(), &context.manifest().blocks);
                let held = blocks.iter().zip(&places.placed);
                held.map(|(block, placed)| (placed.host, block.id)).collect::<Vec<_>>()
            })
            .collect();
        row.blocks = blocks.len() as u64;
        row.used_bytes = self.node.stores().map(|(_, store)| store.used_bytes() as u64).sum();
        row.sessions = Some(self.shelf.counts().1 as u64);
    }

    /// What a change to the only node comes to.
    async fn alone(&self, node: &str, why: &str) -> Result<(), ClusterError> {
        let roster = self.roster().await?;
        let named = nodes::named(&roster, node)?;
        if !nodes::is_alone(&roster) {
            return Err(ClusterError::NotHere("blocks do not move between nodes yet".to_owned()));
        }
        Err(ClusterError::Refused(format!(
            "`{}` is the only node of the cluster: {why}; join another node first",
            named.name
        )))
    }
}

impl ClusterAdmin for Administration {
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeInfo>, ClusterError>> {
        self.rows().boxed()
    }

    fn set_cordon(&self, node: String, cordoned: bool) -> BoxFuture<'_, Result<NodeInfo, ClusterError>> {
        async move {
            match self.alone(&node, "cordoned, the cluster could take no context at all").await {
                // It never was cordoned.
                Err(ClusterError::Refused(_)) if !cordoned => {
                    let own = self.roster().await?.own.node.to_string();
                    let row = self.rows().await?.into_iter().find(|row| row.id == own);
                    row.ok_or(ClusterError::UnknownNode { node })
                }
                Err(refused) => Err(refused),
                Ok(()) => unreachable!("a cluster of one refuses"),
            }
        }
        .boxed()
    }

    fn drain(
        &self,
        request: DrainRequest,
        _: mpsc::Sender<MoveEvent>,
    ) -> BoxFuture<'_, Result<(), ClusterError>> {
        async move { self.alone(&request.node, "nothing could take its blocks").await }.boxed()
    }

    fn remove(&self, node: String, _: bool) -> BoxFuture<'_, Result<(), ClusterError>> {
        async move {
            let named = nodes::named(&*self.roster().await?, &node)?;
            if named.is_own {
                self.alone(&node, "without it there is no cluster").await?;
            }
            let substrate = self.place.get().await?;
            substrate.remove_node(named.id).await.map_err(|error| managed(&substrate.roster(), &error))
        }
        .boxed()
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
            if ttl > MAX_TTL || ttl.is_zero() {
                let words = "a token lasts a year at most, and some time; lower --ttl";
                return Err(ClusterError::Refused(words.to_owned()));
            }
            let substrate = self.place.get().await?;
            let issued = substrate.issue_token(ttl, uses).await;
            let token = issued.map_err(|error| managed(&substrate.roster(), &error))?;
            let join_address = substrate.join_address().ok_or_else(|| {
                ClusterError::Failed("the join address of this node is closed; restart it".to_owned())
            })?;
            let expires = SystemTime::now() + ttl;
            let expires = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            tracing::info!(token = %token.id(), uses, expires_s = expires.as_secs(), "a join token was made");
            Ok(IssuedToken {
                id: token.id().to_string(),
                token: token.to_line(),
                expires_s: expires.as_secs(),
                uses: u64::from(uses),
                join_address: join_address.to_string(),
            })
        }
        .boxed()
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Check>, ClusterError>> {
        async move {
            let substrate = self.place.get().await?;
            let credentials = substrate.endpoint().credentials();
            let details = credentials.details();
            let left = details.not_after.duration_since(SystemTime::now());
            let (finding, detail) = match left {
                Err(_) => (Finding::Bad, "it has ended; join again".to_owned()),
                Ok(left) => {
                    let days = left.as_secs() / 86_400;
                    let finding = if left < SOON { Finding::Warning } else { Finding::Good };
                    (finding, format!("{days} days left"))
                }
            };
            let (node, what) = (details.name.to_string(), "certificate".to_owned());
            Ok(vec![Check { node, what, finding, detail }])
        }
        .boxed()
    }
}

/// A refusal of the issuing side, in words that name who can do it.
fn managed(roster: &Roster, error: &ManageError) -> ClusterError {
    match (error, nodes::issuer(roster)) {
        (ManageError::NotIssuer, Some(issuer)) => ClusterError::NotHere(format!(
            "this node does not hold the key of the cluster's CA; ask node `{issuer}`"
        )),
        (ManageError::NotIssuer, None) => ClusterError::NotHere(error.to_string()),
        (ManageError::Ourselves, _) => ClusterError::Refused(error.to_string()),
        _ => ClusterError::Failed(error.to_string()),
    }
}
