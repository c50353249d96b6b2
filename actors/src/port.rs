//! The seams between a query node and the rest of the cluster: a context host and the supervisor as the paths see them,
//! whether they run in this process or on another node. Attention goes another way: see [`crate::link`].

use std::fmt;

use futures_util::future::BoxFuture;
use stellate_model::block::BlockId;

use crate::budget::BudgetedBlock;
use crate::context_host::{EncodeJob, Encoded, HostError, Reserved};
use crate::error::EncodeError;
use crate::link::{HostId, HostLink};
use crate::manifest::ContextId;
use crate::supervisor::{PlaceRequest, Placement};

/// A context host, near or far.
pub trait HostPort: Send + Sync + fmt::Debug {
    /// The host.
    fn host(&self) -> HostId;
    /// A link of its own for attention over the host's blocks.
    fn link(&self) -> Box<dyn HostLink>;
    /// Encodes a block, unless the host holds it.
    fn encode(&self, job: EncodeJob) -> BoxFuture<'_, Result<Encoded, HostError>>;
    /// Makes room for a block of so many tokens that is computed elsewhere, unless the host holds it. The room of a host
    /// on another node is scratch on this one, and room promised there.
    fn reserve(&self, id: BlockId, tokens: usize) -> BoxFuture<'_, Result<Reserved, HostError>>;
    /// Gives the host a block that was computed into what [`reserve`](Self::reserve) gave.
    fn seal(&self, id: BlockId, block: BudgetedBlock) -> BoxFuture<'_, Result<(), HostError>>;
}

/// The supervisor, near or far.
pub trait SupervisorPort: Send + Sync + fmt::Debug {
    /// Finds room for a context and promises it. A block that a host holds stays there.
    fn place(&self, request: PlaceRequest) -> BoxFuture<'_, Result<Placement, EncodeError>>;
    /// A context is not needed any more.
    fn release(&self, context: ContextId);
}
