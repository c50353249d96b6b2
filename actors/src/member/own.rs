//! A context host of this node as its own query host reaches it: the agent is told before anything is encoded, so that an
//! order to free a block, given before it was placed anew, does not take it away again.

use futures_util::future::BoxFuture;
use ractor::{ActorRef, call};
use std::sync::Arc;
use stellate_model::block::BlockId;

use super::hosts::NodeHosts;
use super::way::Seen;
use crate::budget::BudgetedBlock;
use crate::cluster::agent::AgentMsg;
use crate::context_host::{ContextHostHandle, EncodeJob, Encoded, HostError, Reserved};
use crate::link::{HostId, HostLink};
use crate::port::HostPort;

/// A host of this node.
#[derive(Debug)]
pub(super) struct OwnHost {
    pub(super) host: ContextHostHandle,
    pub(super) agent: ActorRef<AgentMsg>,
    pub(super) hosts: NodeHosts,
    pub(super) seen: Arc<Seen>,
}

impl OwnHost {
    /// Returns once every earlier order to free one of the blocks was followed.
    async fn claim(&self, blocks: Vec<BlockId>) {
        let (host, by) = (self.host.host, self.seen.now());
        // An agent that has stopped frees nothing.
        let _ = call!(self.agent, AgentMsg::Claim, host, blocks, by);
    }
}

impl HostPort for OwnHost {
    fn host(&self) -> HostId {
        self.host.host
    }

    fn link(&self) -> Box<dyn HostLink> {
        HostPort::link(&self.host)
    }

    fn encode(&self, job: EncodeJob) -> BoxFuture<'_, Result<Encoded, HostError>> {
        Box::pin(async move {
            let anchor = job.anchor.as_ref().filter(|anchor| anchor.is_kept);
            self.claim(std::iter::once(job.id).chain(anchor.map(|anchor| anchor.id)).collect()).await;
            self.hosts.bring_anchor(self.host.host, &job).await;
            HostPort::encode(&self.host, job).await
        })
    }

    fn reserve(&self, id: BlockId, tokens: usize) -> BoxFuture<'_, Result<Reserved, HostError>> {
        Box::pin(async move {
            self.claim(vec![id]).await;
            HostPort::reserve(&self.host, id, tokens).await
        })
    }

    fn seal(&self, id: BlockId, block: BudgetedBlock) -> BoxFuture<'_, Result<(), HostError>> {
        HostPort::seal(&self.host, id, block)
    }
}
