//! The supervisor's way to agents and query nodes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use stellate_runtime::clock::Clock;
use tokio::sync::{broadcast, watch};

use super::peers::Peers;
use crate::cluster::actor::Transport;
use crate::cluster::drain::DrainProgress;
use crate::cluster::mandate::Mandate;
use crate::cluster::messages::{
    AgentOrder, AgentRefusal, AgentReply, AgentRequest, NodeKey, QueryNodeNotice,
};
use crate::cluster::term::Term;

/// How long an agent may take for an order that computes and copies nothing.
const QUICK: Duration = Duration::from_secs(5);

/// The way to the others.
#[derive(Debug)]
pub(super) struct Outward {
    pub(super) peers: Peers,
    /// Until when orders may be given, by this clock.
    pub(super) mandate: Mandate,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) drains: broadcast::Sender<DrainProgress>,
    /// The highest term that this supervisor was refused for.
    pub(super) replaced: watch::Sender<Term>,
}

impl Transport for Outward {
    fn order(&self, node: NodeKey, order: AgentOrder) -> BoxFuture<'static, AgentReply> {
        let (peers, mandate, clock) = (self.peers.clone(), self.mandate.clone(), Arc::clone(&self.clock));
        let term = order.term;
        Box::pin(async move {
            let may_order = || mandate.holds(term, clock.now());
            let limit = match order.request {
                AgentRequest::Reserve { .. } | AgentRequest::Free { .. } | AgentRequest::Inventory => {
                    Some(QUICK)
                }
                // As long as the node is there.
                AgentRequest::Encode(_) | AgentRequest::Pull { .. } | AgentRequest::Verify { .. } => None,
            };
            let failed = |cause| AgentReply::Refused(AgentRefusal::Failed { cause });
            peers.order_if(node, order, limit, may_order).await.unwrap_or_else(failed)
        })
    }

    fn notify(&self, node: NodeKey, notice: QueryNodeNotice) {
        self.peers.notify(node, notice);
    }

    fn drained(&self, progress: DrainProgress) {
        // Nobody may be watching.
        let _ = self.drains.send(progress);
    }

    fn replaced(&self, highest: Term) {
        self.replaced.send_replace(highest);
    }
}
