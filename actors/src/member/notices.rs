//! What the query side of a node does when the supervisor tells it something. All of it goes on beside: nothing waits here.

use std::sync::Arc;

use stellate_model::block::BlockId;
use tokio::runtime::Handle;
use tokio::time::{Duration, sleep};

use super::calls::Listener;
use super::way::Way;
use crate::cluster::messages::{QueryNodeNotice, SupervisorRequest};
use crate::cluster::term::Term;
use crate::link::HostId;
use crate::manifest::ContextId;
use crate::whereabouts::Moved;

/// Times that a busy query host is told of a move; the block's old place is freed only once it knows.
const TRIES: u32 = 50;
/// The pause between two.
const PAUSE: Duration = Duration::from_millis(100);

/// The query side.
#[derive(Debug)]
pub(super) struct Notices {
    way: Arc<Way>,
    runtime: Handle,
}

impl Notices {
    pub(super) fn new(way: Arc<Way>) -> Self {
        Self { way, runtime: Handle::current() }
    }
}

impl Listener for Notices {
    fn hear(&self, notice: QueryNodeNotice) {
        tracing::debug!(?notice, "the supervisor says");
        match notice {
            QueryNodeNotice::Announce { term } => self.way.announce(term),
            QueryNodeNotice::Moved { migration, term, version, block, from, to } => {
                let moved = Moved { block, from, to, term, version };
                self.runtime.spawn(switch(Arc::clone(&self.way), migration, moved));
            }
            QueryNodeNotice::Recompute { migration, term, version, context, block, at } => {
                self.way.seen.note(term, version);
                self.runtime.spawn(recompute(Arc::clone(&self.way), (term, migration), context, block, at));
            }
            QueryNodeNotice::Lost { context, suspects, .. } => {
                // One that is not open any more, or not yet, has no blocks to bring back.
                if let Some(node) = self.way.node() {
                    node.heal(context, suspects);
                }
            }
        }
    }
}

/// Routes to a block's new host, and says so.
async fn switch(way: Arc<Way>, migration: u64, moved: Moved) {
    way.seen.note(moved.term, moved.version);
    way.neighbours.reach(moved.to).await;
    for _ in 0..TRIES {
        // Without a query node no step goes anywhere.
        let Some(node) = way.node() else { break };
        if node.moved(moved).await.is_ok() {
            break;
        }
        drop(node);
        sleep(PAUSE).await;
    }
    let request = SupervisorRequest::Switched { node: way.peers.own_key(), term: moved.term, migration };
    if let Err(error) = way.ask(request).await {
        tracing::warn!(%error, block = %moved.block, "the supervisor does not know that a route was switched");
    }
}

/// Has a block encoded on another host, and says whether it is there.
async fn recompute(
    way: Arc<Way>,
    (term, migration): (Term, u64),
    context: ContextId,
    block: BlockId,
    at: HostId,
) {
    way.neighbours.reach(at).await;
    let done = match way.node() {
        None => false,
        Some(node) => match node.encode_again(context, block, at).await {
            Ok(is_known) => is_known,
            Err(error) => {
                tracing::warn!(%context, %block, %at, %error, "a block was not encoded again");
                false
            }
        },
    };
    if let Err(error) = way.ask(SupervisorRequest::Recomputed { term, migration, done }).await {
        tracing::warn!(%error, %block, "the supervisor does not know what became of a block");
    }
}
