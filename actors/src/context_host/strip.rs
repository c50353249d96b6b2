//! The memory that a block arrives in when it was computed elsewhere: filled from the front, and summed as it fills. How the
//! bytes come is in [`crate::remote`].

use stellate_kernels::KvShape;

use crate::budget::BudgetedBlock;
use crate::checksum::{Checksum, Summing};

/// Room for a block, of which the first bytes are there.
#[derive(Debug)]
pub struct Strip {
    block: BudgetedBlock,
    arrived: usize,
    /// Boxed: it is hundreds of bytes of a value that is handed on.
    summing: Box<Summing>,
}

impl Strip {
    /// Room of which nothing is filled.
    pub fn new(room: BudgetedBlock) -> Self {
        Self { block: room, arrived: 0, summing: Box::default() }
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

    /// Takes the bytes that come next, in parts.
    ///
    /// # Panics
    /// If there are more than there is room for.
    pub fn fill(&mut self, parts: &[impl AsRef<[u8]>]) {
        let raw = self.block.raw_mut();
        let start = self.arrived;
        for part in parts.iter().map(AsRef::as_ref) {
            raw[self.arrived..self.arrived + part.len()].copy_from_slice(part);
            self.arrived += part.len();
        }
        // What lies in the block, in one go: parts may be small.
        self.summing.update(&raw[start..self.arrived]);
    }

    /// Throws away what is there.
    pub fn restart(&mut self) {
        self.arrived = 0;
        *self.summing = Summing::default();
    }

    /// The checksum of the bytes that are there.
    pub fn checksum(&self) -> Checksum {
        self.summing.sum()
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
