//! One layer's fan-out over the context hosts and its fan-in: a request to each host that holds blocks of the context,
//! then the exact-cover check, then the merge in block order. Nothing is ever merged short.

use std::sync::Arc;

use stellate_kernels::{Backend, Partial, PartialShape};
use stellate_model::block::BlockId;

use crate::cover::{Checked, Cover, CoverError};
use crate::link::{AttendReply, AttendRequest, Fold, HostId, HostLink, LinkError};

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
    /// The blocks lie on no host: the context was not encoded since the node was opened.
    #[error("the context's blocks are on no host yet; ask again once they are encoded")]
    Unplaced,
    /// A reply of another shape than its question's: the host runs something else.
    #[error("a reply has another shape than its question; check that all hosts run the same model")]
    Shape,
}

impl FanoutError {
    /// Whether another placement of the context's blocks can mend it.
    pub fn is_mendable(&self) -> bool {
        !matches!(self, Self::Shape)
    }

    /// The host that lacks a block, if that is what failed.
    pub fn lacking_host(&self) -> Option<HostId> {
        match self {
            Self::Link(LinkError::NoSuchBlock { host, .. }) => Some(*host),
            _ => None,
        }
    }

    /// The host that did not answer, or not with attention, if that is what failed.
    pub fn silent_host(&self) -> Option<HostId> {
        match self {
            Self::Link(
                LinkError::HostGone { host }
                | LinkError::Interrupted { host, .. }
                | LinkError::Stuck { host }
                | LinkError::NotNumbers { host },
            ) => Some(*host),
            _ => None,
        }
    }
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
    /// The layer that is asked, or was.
    layer: usize,
    /// Its queries, which the hosts share.
    queries: Arc<Vec<f32>>,
    /// Replies of a round.
    replies: Vec<AttendReply>,
    /// For each link the memory for its next reply.
    spare: Vec<Vec<Partial>>,
    checked: Checked,
    /// Blocks of a round in the order of the context, by reply and place in it.
    order: Vec<(Option<usize>, usize, usize)>,
    /// The host whose reply was not what it was asked for.
    liar: Option<HostId>,
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
        Self::over(links, vec![Round { asks, cover }], Fold::ByHost)
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
        Self::over(links, rounds, Fold::Apart)
    }

    fn over(links: Vec<Box<dyn HostLink>>, rounds: Vec<Round>, fold: Fold) -> Self {
        let spare = links.iter().map(|_| Vec::new()).collect();
        let (queries, replies, checked, order) = (Arc::default(), Vec::new(), Checked::default(), Vec::new());
        Self { links, rounds, fold, layer: 0, queries, replies, spare, checked, order, liar: None }
    }

    /// Whether what is merged is the same, bit for bit, wherever the blocks lie.
    pub fn is_placement_free(&self) -> bool {
        self.fold.is_placement_free()
    }

    /// The host to blame for `fault`, the error that the last step ended with, if it is known.
    pub fn suspect(&self, fault: &FanoutError) -> Option<HostId> {
        fault.silent_host().or(self.liar.filter(|_| matches!(fault, FanoutError::Cover(_))))
    }

    /// Takes one layer's queries, `[tokens, heads, head_dim]`, and sends them to every host. They are in
    /// [`queries`](Self::queries) from here on; `queries` is left with memory for others.
    pub fn post(&mut self, layer: usize, queries: &mut Vec<f32>) -> Result<(), FanoutError> {
        match Arc::get_mut(&mut self.queries) {
            Some(before) => std::mem::swap(before, queries),
            // Of a step that was given up, and that a host still works at.
            None => self.queries = Arc::new(std::mem::take(queries)),
        }
        self.layer = layer;
        if self.rounds.is_empty() { Ok(()) } else { self.post_round(0) }
    }

    /// The queries that were posted last.
    pub fn queries(&self) -> &[f32] {
        &self.queries
    }

    /// Waits for every host and leaves their attention, merged on `backend` in block order, in `out`, which is empty or
    /// blank and has the shape of the queries. Tells whether there was any: without hosts `out` stays as it is.
    pub fn collect(&mut self, backend: &dyn Backend, out: &mut Partial) -> Result<bool, FanoutError> {
        let mut is_empty = true;
        for round in 0..self.rounds.len() {
            if round > 0 {
                self.post_round(round)?;
            }
            self.replies.clear();
            for &(link, _) in &self.rounds[round].asks {
                self.replies.push(self.links[link].wait()?);
            }
            self.put_in_order(round, out.shape())?;
            for &(_, reply, partial) in &self.order {
                let partial = &mut self.replies[reply].partials[partial];
                // Merged into nothing, the first is what it is.
                match std::mem::take(&mut is_empty) {
                    true => std::mem::swap(out, partial),
                    false => backend.merge(out, partial),
                }
            }
            for ((link, _), reply) in self.rounds[round].asks.iter().zip(self.replies.drain(..)) {
                self.spare[*link] = reply.partials;
            }
        }
        Ok(!is_empty)
    }

    fn post_round(&mut self, round: usize) -> Result<(), FanoutError> {
        for (link, blocks) in &self.rounds[round].asks {
            let (blocks, queries) = (Arc::clone(blocks), Arc::clone(&self.queries));
            let partials = std::mem::take(&mut self.spare[*link]);
            let request = AttendRequest { layer: self.layer, blocks, fold: self.fold, queries, partials };
            self.links[*link].post(request)?;
        }
        Ok(())
    }

    /// Checks the replies of a round against its cover and for their shape, and finds the order in which they are merged.
    fn put_in_order(&mut self, round: usize, shape: PartialShape) -> Result<(), FanoutError> {
        let (cover, replies) = (&self.rounds[round].cover, &self.replies);
        for reply in replies {
            let wanted = if self.fold == Fold::Apart { reply.blocks.len() } else { 1 };
            if reply.partials.len() != wanted || reply.partials.iter().any(|partial| partial.shape() != shape)
            {
                return Err(FanoutError::Shape);
            }
        }
        let checked = cover.check_with(replies.iter().map(|reply| &*reply.blocks), &mut self.checked);
        if checked.is_err() {
            let mut asked = self.rounds[round].asks.iter().zip(replies);
            let liar = asked.find(|((_, blocks), reply)| *blocks != reply.blocks);
            self.liar = liar.map(|((link, _), _)| self.links[*link].host());
        }
        let checked = checked?;
        self.order.clear();
        for &reply in checked {
            let partials = replies[reply].blocks.iter().take(replies[reply].partials.len());
            let of_blocks = partials.enumerate().map(|(at, &block)| (cover.index(block), reply, at));
            self.order.extend(of_blocks);
        }
        // One from each host: they are in the order of the first block of each already.
        if self.fold == Fold::Apart {
            self.order.sort_unstable();
        }
        Ok(())
    }
}
