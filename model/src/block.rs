//! Blocks: how a context is cut, and how each block is addressed by its content. A block's keys and values depend
//! on the model, the number format, what stands before the block and the block's own tokens; its address is a hash
//! of exactly these, so equal blocks are encoded once and a lost one can be rebuilt anywhere. Storage is elsewhere.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use stellate_kernels::KvFormat;
use wincode::{SchemaRead, SchemaWrite};

use crate::fingerprint::Fingerprint;

/// How the tokens of a context attend to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Attention {
    /// Star Attention (arXiv 2411.17116, section 2): every block but the first is encoded behind the context's
    /// first `anchor_tokens` tokens and sees no other block.
    Star {
        /// Length of the anchor, at most the block's.
        anchor_tokens: usize,
    },
    /// Every block sees all earlier ones: the answer of a dense decoder.
    Exact,
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Star { .. } => "star",
            Self::Exact => "exact",
        })
    }
}

/// The shape of a context: a property of the context, never of the cluster it lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// How its tokens attend to each other.
    pub attention: Attention,
    /// Tokens in every block but the last, which may be shorter.
    pub block_tokens: usize,
}

/// A layout that no context can have. Nothing was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Blocks of no tokens.
    #[error("block_tokens is 0; give a block at least one token")]
    EmptyBlocks,
    /// The anchor must be a part of the first block.
    #[error(
        "anchor_tokens is {anchor_tokens}, more than block_tokens ({block_tokens}); lower the anchor or raise the block"
    )]
    AnchorExceedsBlock {
        /// The anchor asked for.
        anchor_tokens: usize,
        /// The block it must fit into.
        block_tokens: usize,
    },
}

impl Layout {
    /// Star Attention with blocks of `block_tokens` behind the first `anchor_tokens`.
    pub fn star(block_tokens: usize, anchor_tokens: usize) -> Self {
        Self { attention: Attention::Star { anchor_tokens }, block_tokens }
    }

    /// Exact attention, held in blocks of `block_tokens`.
    pub fn exact(block_tokens: usize) -> Self {
        Self { attention: Attention::Exact, block_tokens }
    }

    /// Checks `0 < block_tokens` and `anchor_tokens <= block_tokens`.
    pub fn validate(&self) -> Result<(), LayoutError> {
        if self.block_tokens == 0 {
            return Err(LayoutError::EmptyBlocks);
        }
        match self.attention {
            Attention::Star { anchor_tokens } if anchor_tokens > self.block_tokens => {
                Err(LayoutError::AnchorExceedsBlock { anchor_tokens, block_tokens: self.block_tokens })
            }
            _ => Ok(()),
        }
    }

    /// The token ranges of the blocks of a context of `tokens` tokens, in order.
    pub fn cut(&self, tokens: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = self.block_tokens;
        (0..tokens).step_by(step).map(move |start| start..(start + step).min(tokens))
    }

    /// The anchor's length in a context of `tokens` tokens: 0 where no block stands behind one.
    pub fn anchor_tokens(&self, tokens: usize) -> usize {
        match self.attention {
            Attention::Star { anchor_tokens } if tokens > self.block_tokens => anchor_tokens,
            _ => 0,
        }
    }
}

/// The address of a block: a hash of all that its keys and values depend on.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
pub struct BlockId([u8; 32]);

impl BlockId {
    /// An address from its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockId({self})")
    }
}

/// What a block's tokens see besides themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before<'a> {
    /// The anchor's tokens, none for a block that is encoded alone.
    Anchor(&'a [u32]),
    /// Every earlier block; the address of the last one stands for the whole chain.
    Chain(BlockId),
}

/// Computes the addresses of blocks of one model in one KV format.
#[derive(Clone, Debug)]
pub struct Addresser {
    seed: [u8; 32],
}

impl Addresser {
    /// Addresses for the model with this fingerprint, its keys and values held in `format`.
    pub fn new(fingerprint: &Fingerprint, format: KvFormat) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("stellate 2026 block address v1");
        hasher.update(fingerprint.as_bytes());
        hasher.update(format.to_string().as_bytes());
        Self { seed: *hasher.finalize().as_bytes() }
    }

    /// The address of the block of tokens `ids` at position `start` behind `before`.
    pub fn address(&self, before: Before<'_>, ids: &[u32], start: usize) -> BlockId {
        let mut hasher = blake3::Hasher::new_keyed(&self.seed);
        match before {
            Before::Anchor(anchor) => {
                hasher.update(&(anchor.len() as u64).to_le_bytes());
                update_ids(&mut hasher, anchor);
            }
            Before::Chain(previous) => {
                hasher.update(&u64::MAX.to_le_bytes());
                hasher.update(&previous.0);
            }
        }
        hasher.update(&(start as u64).to_le_bytes());
        update_ids(&mut hasher, ids);
        BlockId(*hasher.finalize().as_bytes())
    }

    /// The addresses of all blocks of a context, in order. The first block stands alone in either mode, so that a
    /// context of one block is the same in both.
    pub fn address_all(&self, layout: &Layout, ids: &[u32]) -> Vec<BlockId> {
        let anchor = &ids[..layout.anchor_tokens(ids.len())];
        let mut previous = None;
        layout
            .cut(ids.len())
            .map(|range| {
                let before = match (previous, layout.attention) {
                    (None, _) => Before::Anchor(&[]),
                    (Some(_), Attention::Star { .. }) => Before::Anchor(anchor),
                    (Some(id), Attention::Exact) => Before::Chain(id),
                };
                let id = self.address(before, &ids[range.clone()], range.start);
                previous = Some(id);
                id
            })
            .collect()
    }
}

/// Ids in little-endian order, as they lie in memory: the kernels run on no other machine. All at once, which the hash is made
/// for.
fn update_ids(hasher: &mut blake3::Hasher, ids: &[u32]) {
    hasher.update(bytemuck::cast_slice(ids));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresser() -> Addresser {
        Addresser::new(&Fingerprint::of(b"a model"), KvFormat::F32)
    }

    fn ids(tokens: usize) -> Vec<u32> {
        (0..tokens as u32).map(|i| i * 7 % 101).collect()
    }

    #[test]
    fn a_context_is_cut_into_whole_blocks_and_a_short_last_one() {
        let ranges: Vec<_> = Layout::star(32, 8).cut(70).collect();
        assert_eq!(ranges, [0..32, 32..64, 64..70]);
        assert_eq!(Layout::exact(32).cut(0).count(), 0);
    }

    #[test]
    fn only_a_context_of_several_blocks_has_an_anchor() {
        assert_eq!(Layout::star(32, 8).anchor_tokens(32), 0);
        assert_eq!(Layout::star(32, 8).anchor_tokens(33), 8);
        assert_eq!(Layout::exact(32).anchor_tokens(33), 0);
    }

    #[test]
    fn layouts_that_no_context_can_have_are_refused() {
        assert_eq!(Layout::exact(0).validate(), Err(LayoutError::EmptyBlocks));
        assert_eq!(
            Layout::star(8, 9).validate(),
            Err(LayoutError::AnchorExceedsBlock { anchor_tokens: 9, block_tokens: 8 })
        );
        assert_eq!(Layout::star(8, 0).validate(), Ok(()));
    }

    #[test]
    fn an_address_depends_on_everything_that_the_keys_and_values_depend_on() {
        let (a, text) = (addresser(), ids(96));
        let base = a.address_all(&Layout::star(32, 8), &text);
        assert_eq!(base, a.address_all(&Layout::star(32, 8), &text));
        let other_format = Addresser::new(&Fingerprint::of(b"a model"), KvFormat::Bf16);
        let other_model = Addresser::new(&Fingerprint::of(b"another"), KvFormat::F32);
        for other in [&other_format, &other_model] {
            let ids = other.address_all(&Layout::star(32, 8), &text);
            assert!(base.iter().zip(&ids).all(|(x, y)| x != y));
        }
        let anchor16 = a.address_all(&Layout::star(32, 16), &text);
        assert_eq!(base[0], anchor16[0]);
        assert_ne!(base[1], anchor16[1]);
        let exact = a.address_all(&Layout::exact(32), &text);
        assert_eq!(base[0], exact[0]);
        assert_ne!(base[1], exact[1]);
    }

    #[test]
    fn an_address_is_the_hash_of_all_parts_with_ids_in_little_endian_order() {
        let (a, anchor, text) = (addresser(), ids(1000), ids(3000));
        let mut hasher = blake3::Hasher::new_keyed(&a.seed);
        hasher.update(&1000_u64.to_le_bytes());
        for id in &anchor {
            hasher.update(&id.to_le_bytes());
        }
        hasher.update(&77_u64.to_le_bytes());
        for id in &text {
            hasher.update(&id.to_le_bytes());
        }
        let expected = BlockId(*hasher.finalize().as_bytes());
        assert_eq!(a.address(Before::Anchor(&anchor), &text, 77), expected);
    }

    #[test]
    fn a_changed_token_changes_its_own_block_in_star_and_all_later_ones_in_exact() {
        let (a, text) = (addresser(), ids(128));
        let mut changed = text.clone();
        changed[40] += 1;
        let differs = |layout: Layout| -> Vec<bool> {
            let (x, y) = (a.address_all(&layout, &text), a.address_all(&layout, &changed));
            x.iter().zip(&y).map(|(x, y)| x != y).collect()
        };
        assert_eq!(differs(Layout::star(32, 8)), [false, true, false, false]);
        assert_eq!(differs(Layout::exact(32)), [false, true, true, true]);
    }

    #[test]
    fn the_same_tokens_at_another_position_are_another_block() {
        let a = addresser();
        let same = vec![5; 96];
        let all = a.address_all(&Layout::star(32, 0), &same);
        assert_ne!(all[1], all[2]);
    }
}
