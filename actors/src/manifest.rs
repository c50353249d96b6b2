//! A context as a list of blocks: its tokens, its layout, its addresses. Immutable; appending makes another one that
//! shares blocks with the first. Where the blocks lie is in [`crate::whereabouts`].

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stellate_model::block::{Addresser, Before, BlockId, Layout};
use wincode::{SchemaRead, SchemaWrite};

use crate::cover::Cover;
use crate::link::HostId;
use crate::whereabouts::Places;

/// The name of a context in its node.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
pub struct ContextId(pub u64);

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c-{}", self.0)
    }
}

/// One block of a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestBlock {
    /// Its address.
    pub id: BlockId,
    /// Its tokens, as a range of the context's.
    pub range: Range<usize>,
}

/// A context: its tokens, and the blocks that hold their keys and values.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its name.
    pub id: ContextId,
    /// Its shape.
    pub layout: Layout,
    /// Its tokens.
    pub ids: Arc<[u32]>,
    /// Its blocks, in order.
    pub blocks: Vec<ManifestBlock>,
    /// The address of its anchor, where its blocks stand behind one.
    pub anchor: Option<BlockId>,
}

impl Manifest {
    /// A context cut into addressed blocks.
    pub fn new(addresser: &Addresser, id: ContextId, layout: Layout, ids: Arc<[u32]>) -> Self {
        let blocks = addresser.address_all(&layout, &ids).into_iter().zip(layout.cut(ids.len()));
        let blocks = blocks.map(|(id, range)| ManifestBlock { id, range }).collect();
        let anchor = match layout.anchor_tokens(ids.len()) {
            0 => None,
            tokens => Some(addresser.address(Before::Anchor(&[]), &ids[..tokens], 0)),
        };
        Self { id, layout, ids, blocks, anchor }
    }

    /// Tokens in the context.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// What every merge must cover: the first `blocks` blocks.
    pub fn cover(&self, blocks: usize) -> Cover {
        Cover::new(self.blocks[..blocks].iter().map(|block| block.id))
    }

    /// The first `blocks` blocks by the host that holds them, each host's in the order of the context; nothing if they
    /// lie nowhere.
    pub fn by_host(&self, places: &Places, blocks: usize) -> Option<BTreeMap<HostId, Vec<BlockId>>> {
        let mut by_host: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let placed = places.placed.get(..blocks)?;
        for (block, placed) in self.blocks.iter().zip(placed) {
            by_host.entry(placed.host).or_default().push(block.id);
        }
        Some(by_host)
    }
}
