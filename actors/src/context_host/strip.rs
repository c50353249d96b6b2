//! The memory that a block arrives in when it was computed elsewhere: filled from the front, and hashed as it fills. How the
//! bytes come is in [`crate::remote`].

use stellate_kernels::KvShape;

use crate::budget::BudgetedBlock;

/// Room for a block, of which the first bytes are there.
#[derive(Debug)]
pub struct Strip {
    block: BudgetedBlock,
    arrived: usize,
    /// Boxed: it is two thousand bytes of a value that is handed on.
    hasher: Box<blake3::Hasher>,
}

impl Strip {
    /// Room of which nothing is filled.
    pub fn new(room: BudgetedBlock) -> Self {
        Self { block: room, arrived: 0, hasher: Box::default() }
    }

    /// The shape of the block.
    pub fn shape(&self) -> KvShape {
        self.block.shape()
    }

    /// Tokens that there is room for.
    pub fn capacity_tokens(&self) -> usize {
        self.block.capacity_tokens()
    }

    /// Bytes of the block once it is whole.
    pub fn bytes(&self) -> usize {
        self.block.bytes()
    }

    /// Bytes that are there, from the first on.
    pub fn arrived_bytes(&self) -> usize {
        self.arrived
    }

    /// Takes the bytes that come next.
    ///
    /// # Panics
    /// If there are more than there is room for.
    pub fn fill(&mut self, bytes: &[u8]) {
        let end = self.arrived + bytes.len();
        self.block.raw_mut()[self.arrived..end].copy_from_slice(bytes);
        self.hasher.update(bytes);
        self.arrived = end;
    }

    /// Throws away what is there.
    pub fn restart(&mut self) {
        self.arrived = 0;
        self.hasher.reset();
    }

    /// BLAKE3 of the bytes that are there.
    pub fn hash(&self) -> blake3::Hash {
        self.hasher.finalize()
    }

    /// The block, of so many tokens.
    ///
    /// # Panics
    /// If it is not whole, or there is no room for so many tokens.
    pub fn into_block(self, tokens: usize) -> BudgetedBlock {
        assert_eq!(self.arrived, self.block.bytes(), "a block is sealed when its last byte is there");
        let mut block = self.block;
        block.set_len(tokens);
        block
    }
}
