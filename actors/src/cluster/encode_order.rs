//! The order to encode a block as it travels, and the job of a context host that it comes to.

use serde::{Deserialize, Serialize};
use stellate_model::block::{Addresser, Before, BlockId};
use wincode::{SchemaRead, SchemaWrite};

use crate::cancel::CancelToken;
use crate::context_host::EncodeJob;
use crate::link::HostId;
use crate::path::context::Anchor;
use crate::progress::EncodeMeter;

/// A block to encode, as token ids. Progress and cancellation are the caller's matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct EncodeOrder {
    /// The host that is to encode.
    pub host: HostId,
    /// The block.
    pub block: BlockId,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The position of its first token in the context.
    pub position: u64,
    /// The anchor that it stands behind.
    pub anchor: Option<AnchorOrder>,
    /// Computes the anchor again.
    pub recompute_anchor: bool,
}

/// [`Anchor`] as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct AnchorOrder {
    /// Its address as a block of its own.
    pub id: BlockId,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The context's first block.
    pub first_block: BlockId,
    /// Whether the host keeps it.
    pub is_kept: bool,
    /// The host to copy it from, where that is cheaper than to compute it.
    pub from: Option<HostId>,
}

impl EncodeOrder {
    /// The order to `host` that `job` comes to.
    pub fn of(host: HostId, job: &EncodeJob) -> Self {
        let anchor = job.anchor.as_ref().map(|anchor| AnchorOrder {
            id: anchor.id,
            ids: anchor.ids.to_vec(),
            first_block: anchor.first_block,
            is_kept: anchor.is_kept,
            from: anchor.from,
        });
        Self {
            host,
            block: job.id,
            ids: job.ids.to_vec(),
            position: job.position as u64,
            anchor,
            recompute_anchor: job.recompute_anchor,
        }
    }

    /// Whether the block, and the anchor that it stands behind, have the addresses of their tokens: what is held under an address
    /// is given to whoever asks for it. That the first block of the context begins with the anchor cannot be seen from here.
    pub fn is_addressed(&self, addresser: &Addresser) -> bool {
        let Ok(position) = usize::try_from(self.position) else { return false };
        let anchor = self.anchor.as_ref().map_or(&[][..], |anchor| &anchor.ids);
        let has_anchor = self
            .anchor
            .as_ref()
            .is_none_or(|anchor| addresser.address(Before::Anchor(&[]), &anchor.ids, 0) == anchor.id);
        has_anchor && addresser.address(Before::Anchor(anchor), &self.ids, position) == self.block
    }

    /// The blocks that the host holds once it is done: the block, and the anchor if that is kept.
    pub fn kept(&self) -> impl Iterator<Item = BlockId> + '_ {
        let anchor = self.anchor.as_ref().filter(|anchor| anchor.is_kept);
        std::iter::once(self.block).chain(anchor.map(|anchor| anchor.id))
    }

    /// The job, counted by `meter` and ended by `cancel`. `None` if the order cannot be carried out: it names no token, or
    /// an anchor of none, or positions beyond what a number holds. Token ids are for the host's model to check.
    pub fn into_job(self, meter: EncodeMeter, cancel: CancelToken) -> Option<EncodeJob> {
        let position = usize::try_from(self.position).ok()?;
        position.checked_add(self.ids.len())?;
        let is_empty = |ids: &[u32]| ids.is_empty();
        if is_empty(&self.ids) || self.anchor.as_ref().is_some_and(|anchor| is_empty(&anchor.ids)) {
            return None;
        }
        let anchor = self.anchor.map(|anchor| Anchor {
            id: anchor.id,
            ids: anchor.ids.into(),
            first_block: anchor.first_block,
            is_kept: anchor.is_kept,
            from: anchor.from,
        });
        let (id, ids, recompute_anchor) = (self.block, self.ids.into(), self.recompute_anchor);
        Some(EncodeJob { id, ids, position, anchor, recompute_anchor, meter, cancel })
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use stellate_runtime::encoding::{decode, encode};

    use super::*;

    fn id(byte: u8) -> BlockId {
        BlockId::from_bytes([byte; 32])
    }

    fn order() -> EncodeOrder {
        let anchor = Anchor {
            id: id(2),
            ids: [1, 2].into(),
            first_block: id(3),
            is_kept: true,
            from: Some(HostId(7)),
        };
        let job = EncodeJob {
            id: id(1),
            ids: [5, 6, 7].into(),
            position: 40,
            anchor: Some(anchor),
            recompute_anchor: true,
            meter: EncodeMeter::default(),
            cancel: CancelToken::default(),
        };
        EncodeOrder::of(HostId(9), &job)
    }

    #[test]
    fn an_order_to_encode_comes_back_from_its_bytes_and_is_the_job_again() {
        let bytes = encode(&order()).unwrap();
        for length in 0..bytes.len() {
            assert!(decode::<EncodeOrder>(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
        let back: EncodeOrder = decode(&bytes).unwrap();
        assert_eq!((back.clone(), back.kept().collect::<Vec<_>>()), (order(), vec![id(1), id(2)]));
        let job = back.into_job(EncodeMeter::default(), CancelToken::default()).unwrap();
        assert_eq!(
            (job.id, &*job.ids, job.position, job.recompute_anchor),
            (id(1), &[5, 6, 7][..], 40, true)
        );
        let anchor = job.anchor.unwrap();
        assert_eq!(
            (anchor.id, &*anchor.ids, anchor.first_block, anchor.is_kept),
            (id(2), &[1, 2][..], id(3), true)
        );
    }

    #[test]
    fn an_order_that_cannot_be_carried_out_is_none() {
        let job = |order: EncodeOrder| order.into_job(EncodeMeter::default(), CancelToken::default());
        assert!(job(EncodeOrder { ids: Vec::new(), ..order() }).is_none());
        assert!(job(EncodeOrder { position: u64::MAX, ..order() }).is_none());
        let anchor = order().anchor.map(|anchor| AnchorOrder { ids: Vec::new(), ..anchor });
        assert!(job(EncodeOrder { anchor, ..order() }).is_none());
    }

    #[test]
    fn any_bytes_are_an_order_or_refused() {
        // Fixed, so that a failure is the same again.
        let seed = 0x5717_e11a_7e00_0005;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let sample = encode(&order()).unwrap();
        for _ in 0..10_000 {
            let mut bytes = sample.clone();
            for _ in 0..1 + rng.next_u32() % 6 {
                let at = rng.next_u32() as usize % bytes.len();
                bytes[at] = rng.next_u32() as u8;
            }
            if let Ok(order) = decode::<EncodeOrder>(&bytes) {
                let _ = order.into_job(EncodeMeter::default(), CancelToken::default());
            }
        }
    }
}
