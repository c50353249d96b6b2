//! What the paths reach: the model, the actors of the node, and the settings that both phases share.

use std::collections::BTreeMap;
use std::sync::Arc;

use ractor::ActorRef;
use stellate_kernels::KvShape;
use stellate_model::block::Addresser;
use stellate_model::decoder::Decoder;

use crate::context_host::ContextHostMsg;
use crate::link::HostId;
use crate::prompt::Prompter;
use crate::query_host::QueryHostMsg;
use crate::supervisor::SupervisorMsg;

/// The cast of a node.
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
    /// Places blocks.
    pub supervisor: ActorRef<SupervisorMsg>,
    /// Hold and encode blocks.
    pub hosts: BTreeMap<HostId, ActorRef<ContextHostMsg>>,
    /// Answers questions, and computes `exact` blocks.
    pub query: ActorRef<QueryHostMsg>,
    /// One `exact` context at a time: all of them are computed by the same query host.
    pub exact_gate: tokio::sync::Mutex<()>,
}
