//! The bounded store of keys and values of one host: every block is allocated whole, against a fixed number of bytes,
//! before anything is computed into it, and gives its bytes back when it is dropped. Which block lies where is
//! decided elsewhere.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stellate_kernels::{KvBlock, KvShape};

/// The store has no room. Nothing was allocated and every block in it is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the KV store is full: {needed_tokens} tokens were needed and {free_tokens} are free; \
     raise kv.capacity_bytes, add a host, or close a context"
)]
pub struct StoreFull {
    /// Tokens that were asked for.
    pub needed_tokens: usize,
    /// Tokens that there is room for.
    pub free_tokens: usize,
}

/// The KV store of one host: a fixed number of bytes, shared by all that allocate from it.
#[derive(Debug)]
pub struct KvBudget {
    shape: KvShape,
    capacity_bytes: usize,
    used_bytes: AtomicUsize,
}

impl KvBudget {
    /// A store of `capacity_bytes` for keys and values of `shape`.
    pub fn new(shape: KvShape, capacity_bytes: usize) -> Arc<Self> {
        Arc::new(Self { shape, capacity_bytes, used_bytes: AtomicUsize::new(0) })
    }

    /// The shape of its blocks.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Bytes it may hold.
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// Bytes of the blocks it holds.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Acquire)
    }

    /// Tokens that there is room for.
    pub fn free_tokens(&self) -> usize {
        free_tokens(self.shape, self.capacity_bytes - self.used_bytes())
    }

    /// A block with room for `tokens` tokens, or the numbers that say why not.
    pub fn allocate(self: &Arc<Self>, tokens: usize) -> Result<BudgetedBlock, StoreFull> {
        let bytes = self.shape.bytes_for(tokens);
        let taken = self.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(bytes).filter(|&total| total <= self.capacity_bytes)
        });
        match taken {
            Ok(_) => Ok(BudgetedBlock {
                block: KvBlock::new(self.shape, tokens),
                lease: Lease { bytes, budget: Arc::clone(self) },
            }),
            Err(used) => Err(StoreFull {
                needed_tokens: tokens,
                free_tokens: free_tokens(self.shape, self.capacity_bytes - used),
            }),
        }
    }
}

/// Whole tiles of tokens that fit into `bytes`.
pub(crate) fn free_tokens(shape: KvShape, bytes: usize) -> usize {
    let tile = stellate_kernels::KEYS_PER_TILE;
    bytes / shape.bytes_for(tile).max(1) * tile
}

/// A block whose bytes are counted in a [`KvBudget`] for as long as it lives.
#[derive(Debug)]
pub struct BudgetedBlock {
    block: KvBlock,
    // Declared after the block: the bytes are given back once its memory is.
    #[expect(dead_code, reason = "held for its Drop")]
    lease: Lease,
}

impl Deref for BudgetedBlock {
    type Target = KvBlock;

    fn deref(&self) -> &KvBlock {
        &self.block
    }
}

impl DerefMut for BudgetedBlock {
    fn deref_mut(&mut self) -> &mut KvBlock {
        &mut self.block
    }
}

#[derive(Debug)]
struct Lease {
    bytes: usize,
    budget: Arc<KvBudget>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use stellate_kernels::KvFormat;

    use super::*;

    fn shape() -> KvShape {
        KvShape { layers: 2, kv_heads: 1, head_dim: 8, format: KvFormat::F32 }
    }

    #[test]
    fn a_full_store_says_how_much_was_needed_and_how_much_is_free() {
        let budget = KvBudget::new(shape(), shape().bytes_for(192));
        let first = budget.allocate(100).unwrap();
        assert_eq!(budget.used_bytes(), shape().bytes_for(128));
        let refused = budget.allocate(65).unwrap_err();
        assert_eq!(refused, StoreFull { needed_tokens: 65, free_tokens: 64 });
        assert_eq!((first.capacity_tokens(), budget.used_bytes()), (100, shape().bytes_for(128)));
        drop(first);
        assert_eq!(budget.used_bytes(), 0);
        assert!(budget.allocate(192).is_ok());
    }
}
