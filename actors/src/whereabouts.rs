//! Where the blocks of one context lie: the part of a context that changes while it is used. Its sessions share it, and
//! compare its version before each step.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use stellate_model::block::BlockId;

use crate::cluster::term::Term;
use crate::link::HostId;
use crate::manifest::Manifest;
use crate::placement::Placed;

/// A block lies on another host from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The block.
    pub block: BlockId,
    /// The host that held it, and frees it once nobody asks for it there.
    pub from: HostId,
    /// The host that holds it.
    pub to: HostId,
    /// The term of the supervisor that has moved it, each of which begins its versions anew.
    pub term: Term,
    /// Rises with every move of a block in a term: a late message of an earlier move is not obeyed.
    pub version: u64,
}

/// Where the blocks of a context lie at a moment.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Rises with every change.
    pub version: u64,
    /// By block, in order; empty while the blocks lie nowhere, as after a restart.
    pub placed: Vec<Placed>,
}

/// Where the blocks of a context lie.
#[derive(Debug, Default)]
pub struct Whereabouts(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    now: Arc<Places>,
    moves: BTreeMap<BlockId, (Term, u64)>,
}

impl Whereabouts {
    /// Blocks that lie as they were placed.
    pub fn at(placed: Vec<Placed>) -> Self {
        let now = Arc::new(Places { version: 1, placed });
        Self(RwLock::new(Known { now, moves: BTreeMap::new() }))
    }

    /// Where the blocks lie now.
    pub fn now(&self) -> Arc<Places> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).now)
    }

    /// The version of [`now`](Self::now).
    pub fn version(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).now.version
    }

    /// The blocks lie as they were placed.
    pub fn set(&self, placed: Vec<Placed>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.now = Arc::new(Places { version: known.now.version + 1, placed });
    }

    /// One of the blocks of `manifest` has moved. Tells whether that changes anything: not if it is no block of this
    /// context, lies elsewhere by now, or has moved again since.
    pub fn moved(&self, manifest: &Manifest, moved: &Moved) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = manifest.blocks.iter().position(|block| block.id == moved.block) else {
            return false;
        };
        if known.moves.get(&moved.block).is_some_and(|&seen| seen >= (moved.term, moved.version)) {
            return false;
        }
        known.moves.insert(moved.block, (moved.term, moved.version));
        if known.now.placed.get(index).is_none_or(|placed| placed.host != moved.from) {
            return false;
        }
        let mut now = Places::clone(&known.now);
        now.version += 1;
        now.placed[index] = Placed { host: moved.to, held: true, anchor_copy: false, anchor_from: None };
        known.now = Arc::new(now);
        true
    }
}
