//! The lists of blocks that both ends of a decode stream know by number: the asker's table, which says what must be told
//! first, and the host's, which checks what is told. Without IO.

use std::sync::Arc;

use stellate_model::block::BlockId;

use super::frames::{MAX_ROUTED_BLOCKS, MAX_ROUTES, digest, read_ids};

/// A list of blocks.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) blocks: Arc<[BlockId]>,
    pub(super) digest: [u8; 32],
}

impl Known {
    fn new(blocks: Arc<[BlockId]>) -> Self {
        let digest = digest(&blocks);
        Self { blocks, digest }
    }
}

/// Lists by number, bounded in number and in blocks.
#[derive(Debug, Default)]
pub(super) struct Routes {
    known: Vec<Known>,
    blocks: usize,
}

impl Routes {
    /// The number of a list, and whether it has to be told to the other side first. `None` if it is too long for any stream.
    pub(super) fn number_of(&mut self, blocks: &Arc<[BlockId]>) -> Option<(u32, bool)> {
        // Whoever asks holds on to its list, and the table holds another reference: the same place is the same list.
        if let Some(number) = self.known.iter().position(|known| Arc::ptr_eq(&known.blocks, blocks)) {
            return Some((number as u32, false));
        }
        if blocks.len() > MAX_ROUTED_BLOCKS {
            return None;
        }
        if !self.has_room_for(blocks.len()) {
            self.clear();
        }
        Some((self.push(Known::new(Arc::clone(blocks))), true))
    }

    pub(super) fn get(&self, number: u32) -> Option<&Known> {
        self.known.get(number as usize)
    }

    /// Takes a list that the other side has told. `None` if it breaks the rules.
    pub(super) fn take(&mut self, number: u32, payload: &[u8]) -> Option<()> {
        if number == 0 {
            self.clear();
        }
        let blocks = read_ids(payload)?;
        if number as usize != self.known.len() || !self.has_room_for(blocks.len()) {
            return None;
        }
        self.push(Known::new(blocks.into()));
        Some(())
    }

    fn has_room_for(&self, blocks: usize) -> bool {
        self.known.len() < MAX_ROUTES && self.blocks + blocks <= MAX_ROUTED_BLOCKS
    }

    fn clear(&mut self) {
        self.known.clear();
        self.blocks = 0;
    }

    fn push(&mut self, known: Known) -> u32 {
        self.blocks += known.blocks.len();
        self.known.push(known);
        self.known.len() as u32 - 1
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::write_ids;
    use super::*;

    fn list(seed: u16, len: usize) -> Arc<[BlockId]> {
        let id = |index: usize| {
            BlockId::from_bytes(*blake3::hash(&[seed as usize, index].map(|n| n as u8)).as_bytes())
        };
        (0..len).map(id).collect()
    }

    #[test]
    fn a_list_is_told_once_and_both_sides_then_mean_the_same() {
        let (mut ours, mut theirs) = (Routes::default(), Routes::default());
        let lists: Vec<_> = (0..MAX_ROUTES as u16 + 3).map(|seed| list(seed, 2)).collect();
        for blocks in &lists {
            let (number, is_new) = ours.number_of(blocks).unwrap();
            assert!(is_new);
            theirs.take(number, &write_ids(blocks)).unwrap();
            assert_eq!(ours.number_of(blocks), Some((number, false)));
            let (a, b) = (ours.get(number).unwrap(), theirs.get(number).unwrap());
            assert_eq!((&a.blocks, a.digest), (&b.blocks, b.digest));
        }
        assert_eq!(ours.known.len(), 3, "a full table begins anew");
        assert_eq!(theirs.known.len(), 3);
    }

    #[test]
    fn lists_out_of_turn_cut_short_or_beyond_the_bound_are_refused() {
        let mut theirs = Routes::default();
        let ids = write_ids(&list(1, 3));
        assert_eq!(theirs.take(1, &ids), None);
        assert_eq!(theirs.take(0, &ids[1..]), None);
        assert_eq!(theirs.take(0, &ids), Some(()));
        assert_eq!(theirs.take(2, &ids), None);
        assert_eq!(theirs.take(1, &vec![0; 32 * MAX_ROUTED_BLOCKS]), None);
        assert_eq!(theirs.take(0, &vec![0; 32 * MAX_ROUTED_BLOCKS]), Some(()));
        assert_eq!(theirs.take(1, &ids), None);
        let mut ours = Routes::default();
        assert_eq!(ours.number_of(&vec![list(0, 1)[0]; MAX_ROUTED_BLOCKS + 1].into()), None);
    }
}
