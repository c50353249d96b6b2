//! Exact cover, the one safety invariant: every block of a context contributes exactly once to every merge. Checked
//! from what the replies name, before anything is merged.

use std::collections::HashMap;

use stellate_model::block::BlockId;

/// Replies that do not cover the context exactly once. Nothing was merged; the step can be asked again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CoverError {
    /// No reply attended a block of the context.
    #[error("block {block} (number {index} of the context) was attended by no host; nothing was merged")]
    Missing {
        /// The block.
        block: BlockId,
        /// Its place in the context.
        index: usize,
    },
    /// A block was attended more than once.
    #[error("block {block} (number {index} of the context) was attended twice; nothing was merged")]
    Twice {
        /// The block.
        block: BlockId,
        /// Its place in the context.
        index: usize,
    },
    /// A reply names a block that is no part of the context.
    #[error("a host attended block {block}, which is no part of the context; nothing was merged")]
    Foreign {
        /// The block.
        block: BlockId,
    },
}

/// The blocks of a context and their order, made once per context.
#[derive(Clone, Debug)]
pub struct Cover {
    order: Vec<BlockId>,
    index: HashMap<BlockId, usize>,
}

impl Cover {
    /// The cover that a merge over these blocks must have. The ids differ pairwise, since an id covers its position.
    pub fn new(blocks: impl IntoIterator<Item = BlockId>) -> Self {
        let order: Vec<_> = blocks.into_iter().collect();
        let index: HashMap<_, _> = order.iter().enumerate().map(|(index, &id)| (id, index)).collect();
        assert_eq!(index.len(), order.len(), "a context names each of its blocks once");
        Self { order, index }
    }

    /// Blocks to be covered.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is nothing to cover.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> &[BlockId] {
        &self.order
    }

    /// The place of `block` in the order.
    pub fn index(&self, block: BlockId) -> Option<usize> {
        self.index.get(&block).copied()
    }

    /// Checks that `replies`, each the list of the blocks it attended, cover every block exactly once. Gives the
    /// order in which to merge them: by the first block each attended.
    pub fn check(&self, replies: &[&[BlockId]]) -> Result<Vec<usize>, CoverError> {
        let mut checked = Checked::default();
        self.check_with(replies.iter().copied(), &mut checked)?;
        Ok(checked.order)
    }

    /// [`check`](Self::check) with the memory of an earlier one.
    pub fn check_with<'a, 'b>(
        &self,
        replies: impl Iterator<Item = &'a [BlockId]>,
        checked: &'b mut Checked,
    ) -> Result<&'b [usize], CoverError> {
        let Checked { seen, first, order } = checked;
        seen.clear();
        seen.resize(self.order.len(), false);
        first.clear();
        for blocks in replies {
            let mut earliest = usize::MAX;
            for &block in blocks {
                let index = *self.index.get(&block).ok_or(CoverError::Foreign { block })?;
                if std::mem::replace(&mut seen[index], true) {
                    return Err(CoverError::Twice { block, index });
                }
                earliest = earliest.min(index);
            }
            first.push(earliest);
        }
        if let Some(index) = seen.iter().position(|&seen| !seen) {
            return Err(CoverError::Missing { block: self.order[index], index });
        }
        order.clear();
        order.extend(0..first.len());
        // By number where replies attended nothing.
        order.sort_unstable_by_key(|&reply| (first[reply], reply));
        Ok(order)
    }
}

/// Memory for checks of covers.
#[derive(Debug, Default)]
pub struct Checked {
    seen: Vec<bool>,
    first: Vec<usize>,
    order: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stellate_kernels::KvFormat;
    use stellate_model::block::{Addresser, Layout};
    use stellate_model::fingerprint::Fingerprint;

    use super::*;

    fn blocks(count: usize) -> Vec<BlockId> {
        let ids: Vec<u32> = (0..count as u32 * 4).collect();
        Addresser::new(&Fingerprint::of(b"m"), KvFormat::F32).address_all(&Layout::star(4, 0), &ids)
    }

    #[test]
    fn replies_that_cover_every_block_once_are_merged_in_block_order() {
        let ids = blocks(5);
        let cover = Cover::new(ids.iter().copied());
        let (a, b, c) = ([ids[3]], [ids[1], ids[4]], [ids[0], ids[2]]);
        assert_eq!(cover.check(&[&a, &b, &c]), Ok(vec![2, 1, 0]));
    }

    #[test]
    fn a_foreign_block_is_refused() {
        let ids = blocks(3);
        let cover = Cover::new(ids[..2].iter().copied());
        assert_eq!(cover.check(&[&ids]), Err(CoverError::Foreign { block: ids[2] }));
    }

    proptest! {
        #[test]
        fn a_missing_or_doubled_block_is_never_merged(
            count in 1usize..12, hosts in 1usize..5, victim in 0usize..12, doubled: bool
        ) {
            let ids = blocks(count);
            let victim = victim % count;
            let cover = Cover::new(ids.iter().copied());
            let mut replies = vec![Vec::new(); hosts];
            for (index, &id) in ids.iter().enumerate() {
                replies[index % hosts].push(id);
            }
            let check = |replies: &[Vec<BlockId>]| {
                cover.check(&replies.iter().map(Vec::as_slice).collect::<Vec<_>>())
            };
            prop_assert!(check(&replies).is_ok());
            let (block, index) = (ids[victim], victim);
            if doubled {
                replies[(victim + 1) % hosts].push(block);
                prop_assert_eq!(check(&replies), Err(CoverError::Twice { block, index }));
            } else {
                replies[victim % hosts].retain(|&id| id != block);
                prop_assert_eq!(check(&replies), Err(CoverError::Missing { block, index }));
            }
        }
    }
}
