//! What a serving node keeps on disk: contexts, sessions and their turns, and what it has issued. What was
//! acknowledged is on the disk: nothing waits for it to close, and the end of the process frees the folder.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use stellate_actors::Node;
use stellate_actors::api::Api;
use stellate_runtime::store::{Condition, Kind, Store, StoreHandle, StoreOptions, Write};

/// How long the last users of the store may take to let it go.
const CLOSING: Duration = Duration::from_secs(5);

/// The key of what the names begin with that this node gives.
const SCOPE: &[u8] = b"scope of names";

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

    /// What the names begin with that this node gives to contexts and sessions: the scope that it had at its first start,
    /// `scope` if this is it. It never changes: two nodes must not give the same names when the CA's key goes from one to the
    /// other.
    pub(super) async fn kept_scope(&self, scope: u32) -> anyhow::Result<u32> {
        let kept = self.store.read(|store| store.get(Kind::Node, SCOPE)).await?;
        if let Some(record) = kept {
            let bytes = record.value.try_into().ok().context("the scope of this node's names is damaged")?;
            return Ok(u32::from_le_bytes(bytes));
        }
        let (kind, key, condition) = (Kind::Node, SCOPE.to_vec(), Condition::Absent);
        self.store
            .write_one(Write::Put { kind, key, value: scope.to_le_bytes().to_vec(), condition })
            .await?;
        Ok(scope)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_scope_of_a_nodes_names_stays_what_it_was_at_its_first_start() {
        let folder = tempfile::tempdir().unwrap();
        for now in [0, 77, 0] {
            let durable = Durable::open(folder.path()).await.unwrap();
            assert_eq!(
                durable.kept_scope(now).await.unwrap(),
                0,
                "the CA's key moved to another node, and back"
            );
            durable.close().await;
        }
    }
}
