//! A context host of another node as the paths see it. Attention goes over its decode channel, blocks over a bulk connection;
//! orders go over the control plane, which is behind a trait here.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use stellate_model::block::BlockId;

use super::blocks::{PutError, put_block};
use super::dial::Dialer;
use super::link::DecodeChannel;
use super::pace::Pacer;
use crate::budget::{BudgetedBlock, KvBudget};
use crate::cluster::messages::EncodeOrder;
use crate::context_host::{EncodeJob, Encoded, HostError, Reserved};
use crate::link::{HostId, HostLink};
use crate::port::HostPort;

/// What became of a request for room on another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomPromise {
    /// The host holds the block already.
    Held,
    /// There is room for it.
    Promised,
}

/// Calls to the context hosts of another node. Dropping a call's future gives it up: what it asked for ends when the context
/// that it was for is released, which frees its blocks.
pub trait ControlCalls: Send + Sync + fmt::Debug {
    /// Encodes a block, unless the host holds it.
    fn encode(&self, order: EncodeOrder) -> BoxFuture<'_, Result<Encoded, HostError>>;
    /// Promises room for a block of so many tokens, unless the host holds it.
    fn reserve(
        &self,
        host: HostId,
        id: BlockId,
        tokens: usize,
    ) -> BoxFuture<'_, Result<RoomPromise, HostError>>;
}

/// A context host of another node.
#[derive(Debug)]
pub struct RemoteHost {
    channel: DecodeChannel,
    control: Arc<dyn ControlCalls>,
    bulk: Arc<dyn Dialer>,
    scratch: Arc<KvBudget>,
    pacer: Pacer,
}

impl RemoteHost {
    /// The host at the other end of `channel`. Blocks that are computed here for it lie in `scratch` meanwhile and go over
    /// connections of `bulk`, at the pace of `pacer`.
    pub fn new(
        channel: DecodeChannel,
        control: Arc<dyn ControlCalls>,
        bulk: Arc<dyn Dialer>,
        scratch: Arc<KvBudget>,
        pacer: Pacer,
    ) -> Self {
        Self { channel, control, bulk, scratch, pacer }
    }

    fn unreachable(&self, cause: impl fmt::Display) -> HostError {
        HostError::Unreachable { host: self.host(), cause: cause.to_string() }
    }
}

impl HostPort for RemoteHost {
    fn host(&self) -> HostId {
        self.channel.host()
    }

    fn link(&self) -> Box<dyn HostLink> {
        Box::new(self.channel.link())
    }

    fn encode(&self, job: EncodeJob) -> BoxFuture<'_, Result<Encoded, HostError>> {
        Box::pin(async move {
            if job.cancel.is_cancelled() {
                return Err(HostError::Cancelled);
            }
            let encoded = self.control.encode(EncodeOrder::of(self.host(), &job)).await?;
            if encoded == Encoded::Fresh {
                job.meter.encoded(job.ids.len());
            }
            Ok(encoded)
        })
    }

    fn reserve(&self, id: BlockId, tokens: usize) -> BoxFuture<'_, Result<Reserved, HostError>> {
        Box::pin(async move {
            Ok(match self.control.reserve(self.host(), id, tokens).await? {
                RoomPromise::Held => Reserved::Held,
                RoomPromise::Promised => Reserved::Room(self.scratch.allocate(tokens)?),
            })
        })
    }

    fn seal(&self, id: BlockId, block: BudgetedBlock) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            let connection = self.bulk.connect().await.map_err(|error| self.unreachable(error))?;
            let put = put_block(&connection, self.host(), id, Arc::new(block), Some(&self.pacer)).await;
            put.map_err(|error| match error {
                PutError::Full(full) => HostError::Full(full),
                PutError::Interrupted(_) | PutError::Refused(_) => self.unreachable(error),
            })
        })
    }
}
