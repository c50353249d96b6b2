//! What the paths reach: the model, the hosts and the supervisor behind their seams, and the settings that both phases
//! share.

use std::sync::Arc;

use ractor::{ActorRef, ActorStatus};
use stellate_kernels::KvShape;
use stellate_model::block::Addresser;
use stellate_model::decoder::Decoder;
use stellate_runtime::clock::Clock;

use crate::catalogue::Catalogue;
use crate::directory::Directory;
use crate::journal::Journal;
use crate::port::SupervisorPort;
use crate::prompt::Prompter;
use crate::query_host::QueryHostMsg;

/// What a query node works with.
#[derive(Debug)]
pub struct Fleet {
    /// The model.
    pub decoder: Arc<Decoder>,
    /// Its tokenizer and chat template.
    pub prompter: Arc<Prompter>,
    /// Addresses blocks of this model in this node's KV format.
    pub addresser: Addresser,
    /// The shape of this node's keys and values.
    pub kv_shape: KvShape,
    /// Recomputes the anchor behind every block, as the paper does.
    pub recompute_anchor: bool,
    /// Times the pauses between tries.
    pub clock: Arc<dyn Clock>,
    /// Times that a context is placed at most before it is given up.
    pub heal_tries: u32,
    /// Places blocks.
    pub supervisor: Arc<dyn SupervisorPort>,
    /// Hold and encode blocks.
    pub hosts: Arc<Directory>,
    /// The contexts of this node.
    pub contexts: Arc<Catalogue>,
    /// Remembers contexts and sessions, if this node is to.
    pub journal: Option<Arc<dyn Journal>>,
    /// Answers questions, and computes `exact` blocks.
    pub query: ActorRef<QueryHostMsg>,
    /// One `exact` context at a time: all of them are computed by the same query host.
    pub exact_gate: tokio::sync::Mutex<()>,
}

impl Fleet {
    /// Whether the node is closing: nothing is worth another try.
    pub fn is_closing(&self) -> bool {
        matches!(
            self.query.get_status(),
            ActorStatus::Draining | ActorStatus::Stopping | ActorStatus::Stopped
        )
    }
}
