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

impl Moved {
    fn at(&self) -> (Term, u64) {
        (self.term, self.version)
    }

    fn placed(&self) -> Placed {
        Placed { host: self.to, held: true, anchor_copy: false, anchor_from: None }
    }
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
    /// The latest move of each block that has moved.
    moves: BTreeMap<BlockId, Moved>,
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

    /// The blocks of `manifest` lie as they were placed `at` a term and version of the supervisor, but for those that have
    /// moved since.
    pub fn set(&self, manifest: &Manifest, mut placed: Vec<Placed>, at: (Term, u64)) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (block, placed) in manifest.blocks.iter().zip(&mut placed) {
            if let Some(moved) = known.moves.get(&block.id).filter(|moved| moved.at() > at) {
                *placed = moved.placed();
            }
        }
        known.now = Arc::new(Places { version: known.now.version + 1, placed });
    }

    /// One of the blocks of `manifest` has moved. Tells whether that changes anything: not if it is no block of this
    /// context, lies elsewhere by now, or has moved again since.
    pub fn moved(&self, manifest: &Manifest, moved: &Moved) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = manifest.blocks.iter().position(|block| block.id == moved.block) else {
            return false;
        };
        if known.moves.get(&moved.block).is_some_and(|seen| seen.at() >= moved.at()) {
            return false;
        }
        known.moves.insert(moved.block, *moved);
        if known.now.placed.get(index).is_none_or(|placed| placed.host != moved.from) {
            return false;
        }
        let mut now = Places::clone(&known.now);
        now.version += 1;
        now.placed[index] = moved.placed();
        known.now = Arc::new(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use stellate_kernels::KvFormat;
    use stellate_model::block::{Addresser, Layout};
    use stellate_model::fingerprint::Fingerprint;

    use super::*;
    use crate::cluster::messages::NodeKey;
    use crate::manifest::ContextId;

    #[test]
    fn a_context_that_is_placed_again_keeps_the_moves_that_the_placement_does_not_know_of() {
        let addresser = Addresser::new(&Fingerprint::of(b"m"), KvFormat::F32);
        let manifest = Manifest::new(&addresser, ContextId(1), Layout::star(1, 0), vec![1, 2, 3].into());
        let on = |hosts: [u64; 3]| {
            let placed =
                |host| Placed { host: HostId(host), held: true, anchor_copy: false, anchor_from: None };
            hosts.map(placed).to_vec()
        };
        let term = |counter| Term { counter, node: NodeKey([1; 6]) };
        let moved = |index: usize, from, to, at: (u64, u64)| Moved {
            block: manifest.blocks[index].id,
            from: HostId(from),
            to: HostId(to),
            term: term(at.0),
            version: at.1,
        };
        let whereabouts = Whereabouts::at(on([1, 1, 1]));
        assert!(whereabouts.moved(&manifest, &moved(0, 1, 2, (1, 7))));
        assert!(!whereabouts.moved(&manifest, &moved(0, 2, 3, (1, 7))), "an old message");
        assert!(!whereabouts.moved(&manifest, &moved(1, 4, 5, (2, 3))), "it lies elsewhere");
        whereabouts.set(&manifest, on([1, 4, 4]), (term(1), 6));
        assert_eq!(whereabouts.now().placed, on([2, 5, 4]), "both moves are later");
        whereabouts.set(&manifest, on([1, 4, 4]), (term(1), 7));
        assert_eq!(whereabouts.now().placed, on([1, 5, 4]), "one of them is");
        whereabouts.set(&manifest, on([1, 4, 4]), (term(2), 3));
        assert_eq!(whereabouts.now().placed, on([1, 4, 4]), "neither is");
    }
}
