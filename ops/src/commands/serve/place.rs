//! The node's place in its cluster while it has one: whoever asks gets it, and the end of the daemon takes it away from all.

use stellate_actors::api::ClusterError;
use stellate_runtime::substrate::Substrate;
use tokio::sync::{RwLock, RwLockReadGuard};

/// A place that can be taken. Nobody else keeps the network or the store open.
#[derive(Debug)]
pub(super) struct Place(RwLock<Option<Substrate>>);

impl Place {
    pub(super) fn new(substrate: Substrate) -> Self {
        Self(RwLock::new(Some(substrate)))
    }

    /// The place, for a moment: whoever takes it away waits for this guard.
    pub(super) async fn get(&self) -> Result<RwLockReadGuard<'_, Substrate>, ClusterError> {
        RwLockReadGuard::try_map(self.0.read().await, Option::as_ref)
            .map_err(|_| ClusterError::NotHere("this node is leaving; ask another one".to_owned()))
    }

    /// The place, once nobody asks it any more.
    pub(super) async fn take(&self) -> Option<Substrate> {
        self.0.write().await.take()
    }
}
