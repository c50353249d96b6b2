//! A block as a file: its name, its head, and how it is told from anything else. The bytes behind the head are those that
//! copies between nodes consist of.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `STLB` |
//! | 4 | 2 | version of this form, 1 |
//! | 6 | 2 | zero |
//! | 8 | 32 | address of the block, which is the file's name in hexadecimal digits |
//! | 40 | 32 | fingerprint of the model |
//! | 72 | 16 | layers, key/value heads, head_dim, format (0 f32, 1 bf16, 2 q8), `u32` each |
//! | 88 | 8 | tokens |
//! | 96 | 8 | bytes behind the head |
//! | 104 | 16 | XXH3-128 of those |
//! | 120 | 16 | XXH3-128 of the 120 bytes before |
//!
//! Numbers are little-endian. A change of how keys and values lie in memory, or of what they are computed to be, is a new version
//! of this form: files of another one count as damaged.

use stellate_kernels::{KvFormat, KvShape};
use stellate_model::block::BlockId;

use crate::checksum::Checksum;

/// Bytes of a head.
pub const HEAD_BYTES: usize = 136;

const MAGIC: &[u8; 4] = b"STLB";
const VERSION: u16 = 1;
/// What the head's own checksum is over.
const SUMMED_BYTES: usize = HEAD_BYTES - 16;

/// Behind the name of a file that is not whole yet.
const PART: &str = ".part";

/// What a file says of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its address.
    pub id: BlockId,
    /// The fingerprint of the model.
    pub model: [u8; 32],
    /// Of what its size is made.
    pub shape: KvShape,
    /// Its tokens.
    pub tokens: u64,
    /// Bytes behind the head.
    pub bytes: u64,
    /// Of those.
    pub checksum: Checksum,
}

impl Head {
    /// As it stands in the file.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let KvShape { layers, kv_heads, head_dim, format } = self.shape;
        let format = KvFormat::ALL.iter().position(|known| *known == format).expect("all of them are there");
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(self.id.as_bytes());
        bytes.extend(self.model);
        for number in [layers, kv_heads, head_dim, format] {
            bytes.extend(u32::try_from(number).expect("sizes of models fit").to_le_bytes());
        }
        bytes.extend(self.tokens.to_le_bytes());
        bytes.extend(self.bytes.to_le_bytes());
        bytes.extend(self.checksum.0);
        bytes.extend(Checksum::of(&bytes).0);
        bytes.try_into().expect("a head has its length")
    }

    /// A head as it was written; none if this is not one.
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Option<Self> {
        let (summed, sum) = bytes.split_at(SUMMED_BYTES);
        if Checksum::of(summed).0 != sum || &bytes[..4] != MAGIC || bytes[4..6] != VERSION.to_le_bytes() {
            return None;
        }
        let small = |at: usize| u32::from_le_bytes(array(bytes, at)) as usize;
        let (layers, kv_heads, head_dim) = (small(72), small(76), small(80));
        let format = *KvFormat::ALL.get(small(84))?;
        Some(Self {
            id: BlockId::from_bytes(array(bytes, 8)),
            model: array(bytes, 40),
            shape: KvShape { layers, kv_heads, head_dim, format },
            tokens: u64::from_le_bytes(array(bytes, 88)),
            bytes: u64::from_le_bytes(array(bytes, 96)),
            checksum: Checksum(array(bytes, 104)),
        })
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        file_bytes(self.bytes)
    }
}

fn array<const N: usize>(bytes: &[u8; HEAD_BYTES], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("within the head")
}

/// Bytes of the file of a block that takes `bytes` in memory.
pub fn file_bytes(bytes: u64) -> u64 {
    bytes.saturating_add(HEAD_BYTES as u64)
}

/// What a file in the folder is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A block.
    Block(BlockId),
    /// A block that was not written to its end.
    Part,
    /// Nothing of this program's.
    Foreign,
}

impl Name {
    /// Reads a name.
    pub fn of(name: &str) -> Self {
        match (address(name), name.strip_suffix(PART).and_then(address)) {
            (Some(id), _) => Self::Block(id),
            (None, Some(_)) => Self::Part,
            (None, None) => Self::Foreign,
        }
    }
}

/// The name of a block's file: 64 hexadecimal digits.
pub fn name(id: &BlockId) -> String {
    id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name that it has until it is whole.
pub fn part_name(id: &BlockId) -> String {
    name(id) + PART
}

fn address(name: &str) -> Option<BlockId> {
    let digits = name.as_bytes();
    let is_own = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 64 || !digits.iter().all(is_own) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(BlockId::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_and_with_any_bit_changed_it_is_none() {
        let shape = KvShape { layers: 3, kv_heads: 2, head_dim: 64, format: KvFormat::Q8 };
        let (id, checksum) = (BlockId::from_bytes([7; 32]), Checksum([9; 16]));
        let head = Head { id, model: [1; 32], shape, tokens: 100, bytes: 12_345, checksum };
        let bytes = head.encode();
        assert_eq!((Head::decode(&bytes), head.file_bytes()), (Some(head), 12_345 + 136));
        for bit in 0..8 * HEAD_BYTES {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&other), None, "bit {bit}");
        }
    }

    #[test]
    fn only_the_names_that_this_program_gives_are_its_own() {
        let id = BlockId::from_bytes([0xab; 32]);
        assert_eq!(name(&id), "ab".repeat(32));
        assert_eq!((Name::of(&name(&id)), Name::of(&part_name(&id))), (Name::Block(id), Name::Part));
        for foreign in
            ["", "lock", "notes.part", &"AB".repeat(32), &"ab".repeat(31), &("ab".repeat(32) + "x")]
        {
            assert_eq!(Name::of(foreign), Name::Foreign, "{foreign}");
        }
    }
}
