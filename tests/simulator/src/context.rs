//! A context: its tokens, the blocks that it is cut into and what each merge must cover, by the code that runs in a cluster.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use stellate_actors::cluster::messages::{
    AnchorCopy, AnchorOrder, BlockNeed, ContextClaim, EncodeOrder, NodeKey, PlacedBlock,
};
use stellate_actors::cover::Cover;
use stellate_actors::manifest::{ContextId, Manifest};
use stellate_actors::whereabouts::Whereabouts;
use stellate_actors::{KvFormat, Layout};
use stellate_model::block::{Addresser, BlockId};
use stellate_model::fingerprint::Fingerprint;

use crate::query::Settle;

/// Tokens of a block of full length.
pub(crate) const BLOCK_TOKENS: usize = 4;
/// Tokens of an anchor.
const ANCHOR_TOKENS: usize = 2;
/// Bytes of a token's keys and values.
pub(crate) const TOKEN_BYTES: u64 = 25;
/// Bytes of a block of full length.
pub(crate) const BLOCK_BYTES: u64 = BLOCK_TOKENS as u64 * TOKEN_BYTES;

/// A turn as it is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TurnLog {
    pub(crate) question: u64,
    pub(crate) tokens: Vec<u64>,
}

impl TurnLog {
    /// As it is written down.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        std::iter::once(&self.question).chain(&self.tokens).flat_map(|word| word.to_le_bytes()).collect()
    }

    /// What was written down.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        Self { question: words.next().unwrap_or_default(), tokens: words.collect() }
    }
}

/// A context as it is kept.
#[derive(Clone)]
pub(crate) struct ContextSpec {
    pub(crate) id: ContextId,
    pub(crate) ids: Arc<[u32]>,
    pub(crate) replicas: u16,
}

impl fmt::Debug for ContextSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} tokens", self.id, self.ids.len())
    }
}

/// A context.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) spec: ContextSpec,
    pub(crate) manifest: Manifest,
    pub(crate) cover: Cover,
    pub(crate) whereabouts: Whereabouts,
    pub(crate) claim: ContextClaim,
    /// On its way to where it shall lie.
    pub(crate) settle: Option<Settle>,
    /// The manifest is on its way to the disk.
    pub(crate) writing: Option<u64>,
    /// Whether it was ever there.
    pub(crate) is_made: bool,
    /// When it came with a session that its node took over.
    pub(crate) came: Option<Duration>,
}

impl Context {
    pub(crate) fn new(node: NodeKey, spec: ContextSpec) -> Self {
        let layout = Layout::star(BLOCK_TOKENS, ANCHOR_TOKENS);
        let addresser = Addresser::new(&Fingerprint::of(b"simulated"), KvFormat::Bf16);
        let manifest = Manifest::new(&addresser, spec.id, layout, Arc::clone(&spec.ids));
        let needs = manifest.blocks.iter().map(|block| BlockNeed {
            id: block.id,
            bytes: block.range.len() as u64 * TOKEN_BYTES,
            tokens: block.range.len() as u32,
            anchored: manifest.anchor.is_some() && block.range.start > 0,
        });
        let anchor = manifest.anchor.map(|id| AnchorCopy {
            id,
            bytes: ANCHOR_TOKENS as u64 * TOKEN_BYTES,
            first_block: manifest.blocks[0].id,
        });
        let claim = ContextClaim {
            context: spec.id,
            query_node: node,
            needs: needs.collect(),
            anchor,
            replicas: spec.replicas,
        };
        Self {
            cover: manifest.cover(manifest.blocks.len()),
            manifest,
            whereabouts: Whereabouts::default(),
            claim,
            spec,
            settle: None,
            writing: None,
            is_made: false,
            came: None,
        }
    }

    /// The order to encode a block of it.
    pub(crate) fn encode(&self, block: &BlockId, placed: &PlacedBlock) -> Option<EncodeOrder> {
        let found = self.manifest.blocks.iter().find(|found| found.id == *block)?;
        let anchor = self.claim.anchor.filter(|_| found.range.start > 0).map(|anchor| AnchorOrder {
            id: anchor.id,
            ids: self.spec.ids[..ANCHOR_TOKENS].to_vec(),
            first_block: anchor.first_block,
            is_kept: placed.anchor_copy,
            from: placed.anchor_from,
        });
        Some(EncodeOrder {
            host: placed.host,
            block: *block,
            ids: self.spec.ids[found.range.clone()].to_vec(),
            position: found.range.start as u64,
            anchor,
            recompute_anchor: false,
        })
    }

    pub(crate) fn is_settling(&self) -> bool {
        self.settle.is_some()
    }
}
