//! The node's place in its cluster while it has one: whoever asks gets it, and the end of the daemon takes it away from all.

use stellate_actors::api::ClusterError;
use stellate_actors::cluster::messages::{SupervisorReply, SupervisorRequest};
use stellate_actors::cluster::snapshot::ClusterSnapshot;
use stellate_actors::member::Member;
use stellate_runtime::substrate::Substrate;
use tokio::sync::{RwLock, RwLockReadGuard};

/// What a member of a cluster has.
#[derive(Debug)]
pub(super) struct Seat {
    /// Its part in placing blocks.
    pub(super) member: Member,
    /// Its place on the network.
    pub(super) substrate: Substrate,
}

/// A seat that can be given up. Nobody else keeps the network or the store open.
#[derive(Debug)]
pub(super) struct Place(RwLock<Option<Seat>>);

impl Place {
    pub(super) fn new(seat: Seat) -> Self {
        Self(RwLock::new(Some(seat)))
    }

    /// The seat, for a moment: whoever takes it away waits for this guard.
    pub(super) async fn get(&self) -> Result<RwLockReadGuard<'_, Seat>, ClusterError> {
        RwLockReadGuard::try_map(self.0.read().await, Option::as_ref)
            .map_err(|_| ClusterError::NotHere("this node is leaving; ask another one".to_owned()))
    }

    /// Asks the supervisor, wherever it is.
    pub(super) async fn ask(&self, request: SupervisorRequest) -> Result<SupervisorReply, ClusterError> {
        let asked = self.get().await?.member.ask(request).await;
        asked.map_err(|failure| ClusterError::Failed(failure.to_string()))
    }

    /// What the supervisor knows.
    pub(super) async fn snapshot(&self) -> Result<Box<ClusterSnapshot>, ClusterError> {
        match self.ask(SupervisorRequest::Overview).await? {
            SupervisorReply::Snapshot(snapshot) => Ok(snapshot),
            SupervisorReply::Refused(refusal) => Err(ClusterError::Failed(refusal.to_string())),
            _ => Err(ClusterError::Failed("the supervisor answered something else".to_owned())),
        }
    }

    /// Leaves the cluster, once nobody asks any more.
    pub(super) async fn leave(&self) {
        let seat = self.0.write().await.take();
        if let Some(Seat { member, substrate }) = seat {
            member.stop().await;
            substrate.leave().await;
        }
    }
}
