//! What a node does for administrators, whichever node they ask: the supervisor is asked where it is, and only what takes the
//! CA's key is done on the node that has it. What takes more nodes than one is refused in words where there is one.

mod doctor;
mod issuing;
mod moves;
mod nodes;
mod sessions;
mod supervisor;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use stellate_actors::api::{
    Check, Claimed, ClusterAdmin, ClusterError, DrainRequest, IssuedToken, MoveEvent, NodeInfo,
    RebalancePlan, SessionPlaceInfo, Shelf, SupervisorInfo, TokenInfo,
};
use stellate_actors::cluster::messages::{Refusal, SupervisorReply, SupervisorRequest};
use stellate_actors::link::HostId;
use stellate_actors::session::SessionId;
use stellate_runtime::substrate::Roster;
use tokio::sync::{mpsc, watch};

use self::nodes::Named;
use super::place::Place;

pub(super) use self::nodes::{is_alone, key_of, wanted};

/// How long a list of nodes waits for what the supervisor knows of them.
const LISTING: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Administration {
    place: Arc<Place>,
    roster: watch::Receiver<Arc<Roster>>,
    shelf: Arc<Shelf>,
    /// Where the CA is, on the node that holds it.
    authority: PathBuf,
    /// Whether this node is there to run sessions.
    runs_sessions: bool,
    /// By which the tokens of a block are told from its bytes.
    kv_bytes_per_token: u64,
}

impl Administration {
    /// Over the contexts and sessions of `shelf`.
    pub(super) fn new(
        place: Arc<Place>,
        roster: watch::Receiver<Arc<Roster>>,
        shelf: Arc<Shelf>,
        authority: PathBuf,
        runs_sessions: bool,
        kv_bytes_per_token: u64,
    ) -> Self {
        Self { place, roster, shelf, authority, runs_sessions, kv_bytes_per_token }
    }

    fn roster(&self) -> Arc<Roster> {
        self.roster.borrow().clone()
    }

    async fn rows(&self) -> Result<Vec<NodeInfo>, ClusterError> {
        // A cluster without a supervisor is listed as well, without what that would know.
        let snapshot = tokio::time::timeout(LISTING, self.place.snapshot()).await;
        let snapshot = snapshot.ok().and_then(Result::ok);
        let seat = self.place.get().await?;
        let mut rows = nodes::rows(&seat.substrate, snapshot.as_deref());
        let own = seat.substrate.id().to_string();
        if let Some(row) = rows.iter_mut().find(|row| row.id == own) {
            row.sessions = Some(self.shelf.counts().1 as u64);
        }
        Ok(rows)
    }

    /// Refuses what a cluster of one cannot do.
    fn needs_another(&self, named: &Named, why: &str) -> Result<(), ClusterError> {
        if !named.is_own || !is_alone(&self.roster()) {
            return Ok(());
        }
        Err(ClusterError::Refused(format!(
            "`{}` is the only node of the cluster: {why}; join another node first",
            named.name
        )))
    }

    /// Asks the supervisor; a refusal comes in words.
    async fn ask(&self, request: SupervisorRequest) -> Result<SupervisorReply, ClusterError> {
        match self.place.ask(request).await? {
            SupervisorReply::Refused(refusal) => Err(self.refused(&refusal)),
            reply => Ok(reply),
        }
    }

    fn refused(&self, refusal: &Refusal) -> ClusterError {
        let roster = self.roster();
        match refusal {
            Refusal::NoSuchNode { node } => {
                let name = nodes::node_name(&roster, *node).map_or(node.to_string(), str::to_owned);
                ClusterError::Refused(format!(
                    "the supervisor knows no context hosts of node `{name}`: it has none, or has not reported yet"
                ))
            }
            refusal => ClusterError::Refused(nodes::with_names(&roster, &refusal.to_string())),
        }
    }

    async fn cordon(&self, node: String, cordoned: bool) -> Result<NodeInfo, ClusterError> {
        let named = nodes::named(&self.roster(), &node)?;
        if cordoned {
            self.needs_another(&named, "cordoned, the cluster could take no context at all")?;
        }
        let request = match cordoned {
            true => SupervisorRequest::Cordon(named.key()),
            false => SupervisorRequest::Uncordon(named.key()),
        };
        self.ask(request).await?;
        let id = named.id.to_string();
        let row = self.rows().await?.into_iter().find(|row| row.id == id);
        row.ok_or(ClusterError::UnknownNode { node })
    }
}

impl ClusterAdmin for Administration {
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeInfo>, ClusterError>> {
        self.rows().boxed()
    }

    fn runs_sessions(&self) -> Result<(), ClusterError> {
        let roster = self.roster();
        let misfit = nodes::misfit(&roster);
        let why = match (self.runs_sessions, misfit) {
            (false, _) => "this node does not run sessions (node.roles)".to_owned(),
            (true, Some(misfit)) => format!("this node does not fit its cluster: it {misfit}"),
            (true, None) => return Ok(()),
        };
        Err(ClusterError::NotHere(match nodes::query_node(&roster) {
            Some(other) => format!("{why}; ask node `{other}`"),
            None => format!("{why}, and no other that does is there"),
        }))
    }

    fn claim(&self, session: SessionId) -> BoxFuture<'_, Result<Claimed, ClusterError>> {
        self.claim_session(session).boxed()
    }

    fn hand_over(&self, session: SessionId, to: String) -> BoxFuture<'_, Result<(), ClusterError>> {
        self.move_session(session, to).boxed()
    }

    fn places(&self) -> BoxFuture<'_, Result<Vec<SessionPlaceInfo>, ClusterError>> {
        self.session_places().boxed()
    }

    fn namer(&self, name: u64) -> Option<String> {
        nodes::namer(&self.roster(), name)
    }

    fn host_name(&self, host: HostId) -> String {
        nodes::host_name(&self.roster(), host)
    }

    fn set_cordon(&self, node: String, cordoned: bool) -> BoxFuture<'_, Result<NodeInfo, ClusterError>> {
        self.cordon(node, cordoned).boxed()
    }

    fn drain(
        &self,
        request: DrainRequest,
        events: mpsc::Sender<MoveEvent>,
    ) -> BoxFuture<'_, Result<(), ClusterError>> {
        self.drain_node(request, events).boxed()
    }

    fn remove(&self, node: String, force: bool) -> BoxFuture<'_, Result<(), ClusterError>> {
        self.remove_node(node, force).boxed()
    }

    fn plan(&self) -> BoxFuture<'_, Result<RebalancePlan, ClusterError>> {
        self.rebalance_plan().boxed()
    }

    fn rebalance(&self, events: mpsc::Sender<MoveEvent>) -> BoxFuture<'_, Result<(), ClusterError>> {
        self.rebalance_now(events).boxed()
    }

    fn create_token(&self, ttl: Duration, uses: u32) -> BoxFuture<'_, Result<IssuedToken, ClusterError>> {
        self.issue(ttl, uses).boxed()
    }

    fn tokens(&self) -> BoxFuture<'_, Result<Vec<TokenInfo>, ClusterError>> {
        self.list_tokens().boxed()
    }

    fn revoke_token(&self, id: String) -> BoxFuture<'_, Result<(), ClusterError>> {
        self.call_back(id).boxed()
    }

    fn revoke_admin(&self, admin: String) -> BoxFuture<'_, Result<(), ClusterError>> {
        self.dismiss(admin).boxed()
    }

    fn supervisor(&self) -> BoxFuture<'_, Result<SupervisorInfo, ClusterError>> {
        supervisor::look(&self.place).boxed()
    }

    fn take_over(&self, node: Option<String>) -> BoxFuture<'_, Result<String, ClusterError>> {
        supervisor::take_over(&self.place, node).boxed()
    }

    fn doctor(&self, everywhere: bool) -> BoxFuture<'_, Result<Vec<Check>, ClusterError>> {
        doctor::check(&self.place, everywhere).boxed()
    }
}
