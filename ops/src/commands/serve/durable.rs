//! What a serving node keeps on disk: contexts, sessions and their turns, and what it has issued. What was
//! acknowledged is on the disk: nothing waits for it to close, and the end of the process frees the folder.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stellate_actors::api::Api;
use stellate_actors::{Journal, Node, StoreJournal};
use stellate_runtime::store::{Store, StoreHandle, StoreOptions};

/// How long the last users of the store may take to let it go.
const CLOSING: Duration = Duration::from_secs(5);

/// Within the data folder.
const STORE_FOLDER: &str = "store";

/// The store of a node's data folder.
#[derive(Debug)]
pub(super) struct Durable {
    store: StoreHandle,
}

impl Durable {
    /// Opens the store, or makes one.
    pub(super) async fn open(data: &Path) -> anyhow::Result<Self> {
        let folder = data.join(STORE_FOLDER);
        let opening = tokio::task::spawn_blocking(move || Store::open(&folder, StoreOptions::default()));
        let store = opening.await.context("the store was not opened")??;
        Ok(Self { store: StoreHandle::start(store).context("cannot start the threads of the store")? })
    }

    /// The store.
    pub(super) fn store(&self) -> StoreHandle {
        self.store.clone()
    }

    /// Closes it, once nobody uses it any more. What was acknowledged is on the disk in any case.
    pub(super) async fn close(self) {
        let closing = tokio::task::spawn_blocking(move || self.store.close());
        if tokio::time::timeout(CLOSING, closing).await.is_err() {
            tracing::warn!("the store is still in use; it ends with the process");
        }
    }

    /// The node's contexts and sessions in it, whose names begin with `scope`.
    pub(super) async fn journal(&self, scope: u32) -> anyhow::Result<Arc<dyn Journal>> {
        Ok(Arc::new(StoreJournal::open(self.store(), scope).await?))
    }
}

/// Gives clients back what the node kept over its last end. What cannot be taken up stays on disk and is named in the log.
pub(super) async fn take_up(api: &Api, node: &Node) -> anyhow::Result<()> {
    for id in node.contexts().await? {
        match node.context(id).await {
            Ok(context) => api.shelf().add_context(context),
            Err(error) => tracing::warn!(context = %id, %error, "a context was not taken up again"),
        }
    }
    for record in node.sessions().await? {
        match node.session(record.id).await {
            Ok(session) => api.shelf().add_session(record.context, session),
            Err(error) => tracing::warn!(session = %record.id, %error, "a session was not taken up again"),
        }
    }
    let (contexts, sessions) = api.shelf().counts();
    if contexts + sessions > 0 {
        tracing::info!(contexts, sessions, "taken up again; blocks are encoded when they are asked for");
    }
    Ok(())
}
