//! One layer's fan-out over the context hosts and its fan-in: a request to each host that holds blocks of the context,
//! then the exact-cover check, then the merge in block order. Nothing is ever merged short.

use std::sync::Arc;

use stellate_kernels::{Partial, PartialShape};
use stellate_model::block::BlockId;

use crate::cover::{Cover, CoverError};
use crate::link::{AttendReply, AttendRequest, Fold, HostLink, LinkError};

/// Blocks whose partials are held at once when each comes apart: they bound the memory of a step, and are enough to
/// keep every host of a small cluster busy.
const BLOCKS_PER_ROUND: usize = 8;

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
    links: Vec<Box<dyn HostLink>>,
    rounds: Vec<Round>,
    fold: Fold,
    /// The layer and queries on their way.
    posted: Option<(usize, Arc<Vec<f32>>)>,
}

/// What is asked at once: links by index with their blocks, whose replies must cover `cover` exactly once.
#[derive(Debug)]
struct Round {
    asks: Vec<(usize, Arc<[BlockId]>)>,
    cover: Cover,
}

impl Fanout {
    /// A fan-out over `routes`, whose replies must cover `cover` exactly once: one partial from each host.
    pub fn new(routes: Vec<Route>, cover: Cover) -> Self {
        let (links, blocks): (Vec<_>, Vec<_>) =
            routes.into_iter().map(|route| (route.link, route.blocks)).unzip();
        let asks = blocks.into_iter().enumerate().collect();
        Self { links, rounds: vec![Round { asks, cover }], fold: Fold::ByHost, posted: None }
    }

    /// As [`new`](Self::new), with sums that are the same, bit for bit, wherever the blocks lie: the attention over each
    /// block is folded alone, in the order of the context. Costs a partial per block where several hosts hold them.
    pub fn in_block_order(routes: Vec<Route>, cover: Cover) -> Self {
        if routes.len() <= 1 {
            return Self { fold: Fold::ByBlock, ..Self::new(routes, cover) };
        }
        let round = |blocks: &[BlockId]| {
            let asked = |route: &Route| {
                let of_round = route.blocks.iter().copied().filter(|block| blocks.contains(block));
                of_round.collect::<Arc<[BlockId]>>()
            };
            let asks = routes.iter().map(asked).enumerate().filter(|(_, asked)| !asked.is_empty());
            Round { asks: asks.collect(), cover: Cover::new(blocks.iter().copied()) }
        };
        let rounds = cover.blocks().chunks(BLOCKS_PER_ROUND).map(round).collect();
        let links = routes.into_iter().map(|route| route.link).collect();
        Self { links, rounds, fold: Fold::Apart, posted: None }
    }

    /// Whether what is merged is the same, bit for bit, wherever the blocks lie.
    pub fn is_placement_free(&self) -> bool {
        self.fold.is_placement_free()
    }

    /// Sends one layer's queries, `[tokens, heads, head_dim]`, to every host.
    pub fn post(&mut self, layer: usize, queries: &[f32]) -> Result<(), FanoutError> {
        if self.links.is_empty() {
            return Ok(());
        }
        self.posted = Some((layer, Arc::new(queries.to_vec())));
        self.post_round(0)
    }

    /// Waits for every host and merges their attention, in block order, into `out`, which is empty and has the shape
    /// of the queries.
    pub fn collect(&mut self, out: &mut Partial) -> Result<(), FanoutError> {
        for round in 0..self.rounds.len() {
            if round > 0 {
                self.post_round(round)?;
            }
            let Round { asks, cover } = &self.rounds[round];
            let replies: Vec<AttendReply> =
                asks.iter().map(|&(link, _)| self.links[link].wait()).collect::<Result<_, _>>()?;
            for partial in in_order(&replies, cover, self.fold, out.shape())? {
                out.merge(partial);
            }
        }
        Ok(())
    }

    fn post_round(&mut self, round: usize) -> Result<(), FanoutError> {
        let Some((layer, queries)) = &self.posted else { return Ok(()) };
        for (link, blocks) in &self.rounds[round].asks {
            let (blocks, queries) = (Arc::clone(blocks), Arc::clone(queries));
            self.links[*link].post(AttendRequest { layer: *layer, blocks, fold: self.fold, queries })?;
        }
        Ok(())
    }
}

/// The partials of `replies` in the order in which they are merged, checked against `cover` and for their shape.
fn in_order<'a>(
    replies: &'a [AttendReply],
    cover: &Cover,
    fold: Fold,
    shape: PartialShape,
) -> Result<Vec<&'a Partial>, FanoutError> {
    for reply in replies {
        let wanted = if fold == Fold::Apart { reply.blocks.len() } else { 1 };
        if reply.partials.len() != wanted || reply.partials.iter().any(|partial| partial.shape() != shape) {
            return Err(FanoutError::Shape);
        }
    }
    let covered: Vec<&[BlockId]> = replies.iter().map(|reply| &*reply.blocks).collect();
    let order = cover.check(&covered)?;
    let replies = order.into_iter().map(|reply| &replies[reply]);
    let mut partials: Vec<(Option<usize>, &Partial)> = replies
        .flat_map(|reply| reply.blocks.iter().map(|&block| cover.index(block)).zip(&reply.partials))
        .collect();
    // One from each host: they are in the order of the first block of each already.
    partials.sort_by_key(|&(index, _)| index);
    Ok(partials.into_iter().map(|(_, partial)| partial).collect())
}
