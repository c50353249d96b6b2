//! The KV stores of a node as they are read from outside: how full they are, and the wait until contexts that were let
//! go have given their bytes back.

use std::time::{Duration, Instant};

use stellate_actors::Node;

/// Contexts are freed by messages from actor to actor: far less than this.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// Bytes of keys and values that the context hosts hold, copies of anchors among them.
pub(crate) fn context_bytes(node: &Node) -> usize {
    node.stores().map(|(_, store)| store.used_bytes()).sum()
}

/// Waits until every context and session that was dropped is freed. Tells whether nothing is held any more.
pub(crate) async fn until_empty(node: &Node) -> bool {
    let started = Instant::now();
    while context_bytes(node) + node.session_store().used_bytes() > 0 {
        if started.elapsed() > PATIENCE {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}
