//! One layer's fan-out over the context hosts and its fan-in: a request to each host that holds blocks of the context,
//! then the exact-cover check, then the merge in block order. Nothing is ever merged short.

use std::sync::Arc;

use stellate_kernels::Partial;
use stellate_model::block::BlockId;

use crate::cover::{Cover, CoverError};
use crate::link::{AttendReply, AttendRequest, HostLink, LinkError};

/// Why a layer's attention over the context is not to be had. Nothing was merged; the session is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FanoutError {
    /// A host gave no reply.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The replies do not cover the context exactly once.
    #[error(transparent)]
    Cover(#[from] CoverError),
    /// A reply of another shape than its question's: the host runs something else.
    #[error("a reply has another shape than its question; check that all hosts run the same model")]
    Shape,
}

/// A host and the blocks of the context that it is asked for.
#[derive(Debug)]
pub struct Route {
    /// The way to the host.
    pub link: Box<dyn HostLink>,
    /// The blocks, in the order of the context.
    pub blocks: Arc<[BlockId]>,
}

/// The routes to all blocks of a context.
#[derive(Debug)]
pub struct Fanout {
    routes: Vec<Route>,
    cover: Cover,
}

impl Fanout {
    /// A fan-out over `routes`, whose replies must cover `cover` exactly once.
    pub fn new(routes: Vec<Route>, cover: Cover) -> Self {
        Self { routes, cover }
    }

    /// Sends one layer's queries, `[tokens, heads, head_dim]`, to every host.
    pub fn post(&mut self, layer: usize, queries: &[f32]) -> Result<(), FanoutError> {
        if self.routes.is_empty() {
            return Ok(());
        }
        let queries = Arc::new(queries.to_vec());
        for Route { link, blocks } in &mut self.routes {
            let (blocks, queries) = (Arc::clone(blocks), Arc::clone(&queries));
            link.post(AttendRequest { layer, blocks, queries })?;
        }
        Ok(())
    }

    /// Waits for every host and merges their attention, in block order, into `out`, which is empty and has the shape
    /// of the queries.
    pub fn collect(&mut self, out: &mut Partial) -> Result<(), FanoutError> {
        let replies: Vec<AttendReply> =
            self.routes.iter_mut().map(|route| route.link.wait()).collect::<Result<_, _>>()?;
        if replies.iter().any(|reply| reply.partial.shape() != out.shape()) {
            return Err(FanoutError::Shape);
        }
        let covered: Vec<&[BlockId]> = replies.iter().map(|reply| &*reply.blocks).collect();
        for reply in self.cover.check(&covered)? {
            out.merge(&replies[reply].partial);
        }
        Ok(())
    }
}
