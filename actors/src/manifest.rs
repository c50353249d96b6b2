//! A context as a list of blocks: its tokens, its layout, and where each block lies. Immutable; appending makes
//! another one that shares blocks with the first.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stellate_model::block::{BlockId, Layout};
use wincode::{SchemaRead, SchemaWrite};

use crate::cover::Cover;
use crate::link::HostId;

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
    /// The host that holds it.
    pub host: HostId,
    /// Whether the host keeps a copy of the context's anchor for it.
    pub anchor_copy: bool,
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
    /// Tokens in the context.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// What every merge must cover: the first `blocks` blocks.
    pub fn cover(&self, blocks: usize) -> Cover {
        Cover::new(self.blocks[..blocks].iter().map(|block| block.id))
    }

    /// The first `blocks` blocks by the host that holds them, each host's in the order of the context.
    pub fn by_host(&self, blocks: usize) -> BTreeMap<HostId, Vec<BlockId>> {
        let mut by_host: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for block in &self.blocks[..blocks] {
            by_host.entry(block.host).or_default().push(block.id);
        }
        by_host
    }
}
