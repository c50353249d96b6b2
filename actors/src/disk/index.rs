//! Which blocks are on a node's disk and what is to be done there next, as a state machine: no file, no clock and no memory of
//! blocks is here. Whoever drives it does one [`Step`] at a time and says how that ended.
//!
//! # What always holds
//!
//! The bytes of all files, of one that is being written and of one that is still to be removed, are counted, and never exceed
//! the bound: a block is written once there is room for the whole of its file. What was found damaged is not offered again,
//! whether or not its file could be removed. Of the blocks that are kept, the one that was used longest ago goes first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

/// Blocks that may wait to be written. They cost an entry each and none of their memory, and there are seldom more on a node.
pub const MAX_WAITING: usize = 65_536;

/// How long nothing is written or removed after the disk has failed: a full or broken disk is not mended in less.
pub const PAUSE: Duration = Duration::from_secs(10);

/// What is to be done on the disk. The next one is given out when the end of this one was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove what a write that failed has left, under whatever name; then tell [`DiskIndex::cleared`].
    Clear(BlockId),
    /// Remove the file of a block; then tell [`DiskIndex::removed`].
    Remove(BlockId),
    /// Write the file of a block; then tell [`DiskIndex::written`].
    Write(BlockId),
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was done.
    Done,
    /// There was nothing to do any more: the block that was to be written is not in memory.
    Moot,
    /// The disk refused.
    Failed,
}

/// The disk of a node, in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct DiskFigures {
    /// Bytes that files of blocks may take.
    pub bound_bytes: u64,
    /// Bytes that they take.
    pub used_bytes: u64,
    /// Blocks that can be read.
    pub blocks: u64,
    /// Blocks that wait to be written.
    pub waiting: u64,
    /// Blocks written since the node has started.
    pub written: u64,
    /// Blocks read, found whole and held again since then.
    pub hits: u64,
    /// Files found damaged since then, each of which was removed and never served.
    pub damaged: u64,
    /// Blocks that made room for others since then.
    pub evicted: u64,
    /// Blocks that were not written since then: too large, or too many waited.
    pub skipped: u64,
    /// Steps that the disk refused since then.
    pub failed: u64,
}

/// A file that can be read.
#[derive(Clone, Copy, Debug)]
struct Kept {
    bytes: u64,
    /// The number of its last use: later uses have higher ones.
    used: u64,
}

/// What a write that failed may have left.
#[derive(Clone, Copy, Debug)]
struct Leftover {
    id: BlockId,
    bytes: u64,
    /// When its removal is tried.
    at: Duration,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct DiskIndex {
    kept: BTreeMap<BlockId, Kept>,
    by_use: BTreeMap<u64, BlockId>,
    uses: u64,
    /// Not to be read any more, and not removed yet.
    doomed: BTreeMap<BlockId, u64>,
    /// In their order, and how large their files get.
    waiting: VecDeque<BlockId>,
    waiting_bytes: BTreeMap<BlockId, u64>,
    leftover: Option<Leftover>,
    under_way: Option<(Step, u64)>,
    resumes: Duration,
    figures: DiskFigures,
}

impl DiskIndex {
    /// An empty disk that may take `bound_bytes`.
    pub fn new(bound_bytes: u64) -> Self {
        Self { figures: DiskFigures { bound_bytes, ..DiskFigures::default() }, ..Self::default() }
    }

    /// A file was found when the node started. Those used longest ago are told first.
    pub fn found(&mut self, id: BlockId, bytes: u64) {
        assert!(!self.kept.contains_key(&id), "a folder has one file of a name");
        self.figures.used_bytes += bytes;
        self.keep(id, bytes);
    }

    /// A damaged file was found when the node started: it is removed.
    pub fn found_damaged(&mut self, id: BlockId, bytes: u64) {
        self.figures.used_bytes += bytes;
        self.figures.damaged += 1;
        self.doomed.insert(id, bytes);
    }

    /// The bytes of a block's file, if it can be read.
    pub fn file_bytes(&self, id: &BlockId) -> Option<u64> {
        self.kept.get(id).map(|kept| kept.bytes)
    }

    /// The blocks that can be read with the bytes of their files, the latest used first.
    pub fn latest_first(&self) -> impl Iterator<Item = (BlockId, u64)> + '_ {
        self.by_use.values().rev().map(|id| (*id, self.kept[id].bytes))
    }

    /// Notes that a block is used, if it is kept.
    pub fn touch(&mut self, id: &BlockId) {
        if let Some(kept) = self.kept.get_mut(id) {
            self.by_use.remove(&kept.used);
            self.uses += 1;
            kept.used = self.uses;
            self.by_use.insert(self.uses, *id);
        }
    }

    /// A block is there whose file would take `bytes`. Tells whether it waits to be written.
    pub fn offer(&mut self, id: BlockId, bytes: u64) -> bool {
        self.touch(&id);
        let is_written = matches!(self.under_way, Some((Step::Write(written), _)) if written == id);
        if self.kept.contains_key(&id) || is_written || self.waiting_bytes.contains_key(&id) {
            return self.waiting_bytes.contains_key(&id);
        }
        if bytes > self.figures.bound_bytes || self.waiting.len() >= MAX_WAITING {
            self.figures.skipped += 1;
            return false;
        }
        self.waiting.push_back(id);
        self.waiting_bytes.insert(id, bytes);
        true
    }

    /// Whether a block waits to be written.
    pub fn is_waiting(&self, id: &BlockId) -> bool {
        self.waiting_bytes.contains_key(id)
    }

    /// Whether the disk has nothing more to write, and is at it no more.
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_none()
    }

    /// Whether the next step makes room: blocks that are in use are to be [touched](Self::touch) before.
    pub fn is_short_of_room(&self) -> bool {
        let next = self.waiting.front().map_or(0, |id| self.waiting_bytes[id]);
        self.figures.used_bytes + next > self.figures.bound_bytes
    }

    /// Whether files take more than the bound, and some of them can be removed now.
    pub fn is_above_bound(&self, now: Duration) -> bool {
        self.figures.used_bytes > self.figures.bound_bytes
            && now >= self.resumes
            && self.leftover.is_none()
            && (!self.doomed.is_empty() || !self.by_use.is_empty())
    }

    /// What is to be done now, if anything.
    pub fn next(&mut self, now: Duration) -> Option<Step> {
        if self.under_way.is_some() {
            return None;
        }
        let (step, bytes) = self.choose(now)?;
        match step {
            Step::Clear(_) => {}
            Step::Remove(id) => {
                if let Some(kept) = self.kept.remove(&id) {
                    self.by_use.remove(&kept.used);
                    self.doomed.insert(id, kept.bytes);
                    self.figures.evicted += 1;
                }
            }
            Step::Write(id) => {
                self.waiting.pop_front();
                self.waiting_bytes.remove(&id);
                self.figures.used_bytes += bytes;
                assert!(
                    self.figures.used_bytes <= self.figures.bound_bytes,
                    "there is room for what is written"
                );
            }
        }
        self.under_way = Some((step, bytes));
        Some(step)
    }

    fn choose(&self, now: Duration) -> Option<(Step, u64)> {
        if let Some(left) = self.leftover {
            return (left.at <= now).then_some((Step::Clear(left.id), left.bytes));
        }
        if now < self.resumes {
            return None;
        }
        if let Some((&id, &bytes)) = self.doomed.first_key_value() {
            return Some((Step::Remove(id), bytes));
        }
        if self.is_short_of_room() {
            // What is waited for fits into the bound, so there is something to remove.
            let id = self.by_use.first_key_value().map(|(_, id)| *id)?;
            return Some((Step::Remove(id), self.kept[&id].bytes));
        }
        let id = *self.waiting.front()?;
        Some((Step::Write(id), self.waiting_bytes[&id]))
    }

    /// When there is something to do that is to wait now.
    pub fn resumes(&self) -> Option<Duration> {
        match self.leftover {
            Some(left) => Some(left.at),
            None => {
                let has_work = !self.doomed.is_empty() || !self.waiting.is_empty() || self.is_short_of_room();
                has_work.then_some(self.resumes)
            }
        }
    }

    /// How the write of a block ended, at `now`. One that the disk refused waits for another turn.
    pub fn written(&mut self, id: BlockId, ended: Ended, now: Duration) {
        let bytes = self.end(Step::Write(id));
        match ended {
            Ended::Done => {
                self.figures.written += 1;
                self.keep(id, bytes);
            }
            Ended::Moot => self.figures.used_bytes -= bytes,
            Ended::Failed => {
                self.leftover = Some(Leftover { id, bytes, at: now });
                self.fail(now);
                self.offer(id, bytes);
            }
        }
    }

    /// How the removal of a file ended, at `now`.
    pub fn removed(&mut self, id: BlockId, ended: Ended, now: Duration) {
        let bytes = self.end(Step::Remove(id));
        match ended {
            Ended::Done | Ended::Moot => {
                self.doomed.remove(&id);
                self.figures.used_bytes -= bytes;
            }
            Ended::Failed => self.fail(now),
        }
    }

    /// How the removal of what a write had left ended, at `now`.
    pub fn cleared(&mut self, id: BlockId, ended: Ended, now: Duration) {
        let bytes = self.end(Step::Clear(id));
        match ended {
            Ended::Done | Ended::Moot => {
                self.leftover = None;
                self.figures.used_bytes -= bytes;
            }
            Ended::Failed => {
                self.fail(now);
                self.leftover = Some(Leftover { id, bytes, at: self.resumes });
            }
        }
    }

    /// A block was read and found whole.
    pub fn hit(&mut self, id: &BlockId) {
        self.figures.hits += 1;
        self.touch(id);
    }

    /// A block was read and is not what was written: it is removed, and written again when it is offered again.
    pub fn damaged(&mut self, id: &BlockId) {
        if let Some(kept) = self.kept.remove(id) {
            self.by_use.remove(&kept.used);
            self.doomed.insert(*id, kept.bytes);
            self.figures.damaged += 1;
        }
    }

    /// The disk in figures.
    pub fn figures(&self) -> DiskFigures {
        let (blocks, waiting) = (self.kept.len() as u64, self.waiting.len() as u64);
        DiskFigures { blocks, waiting, ..self.figures }
    }

    /// Panics if bytes or uses do not add up.
    pub fn check(&self) {
        let kept: u64 = self.kept.values().map(|kept| kept.bytes).sum();
        let written = match self.under_way {
            Some((Step::Write(_), bytes)) => bytes,
            _ => 0,
        };
        let left = self.leftover.map_or(0, |left| left.bytes);
        let counted = kept + self.doomed.values().sum::<u64>() + written + left;
        assert_eq!(counted, self.figures.used_bytes, "bytes of files");
        let of_uses: BTreeSet<_> = self.by_use.values().collect();
        assert!(of_uses.into_iter().eq(self.kept.keys()) && self.by_use.len() == self.kept.len(), "uses");
        assert!(self.doomed.keys().all(|id| !self.kept.contains_key(id)), "what is to go is not read");
        assert!(self.waiting.iter().copied().collect::<BTreeSet<_>>().iter().eq(self.waiting_bytes.keys()));
    }

    fn keep(&mut self, id: BlockId, bytes: u64) {
        self.uses += 1;
        self.kept.insert(id, Kept { bytes, used: self.uses });
        self.by_use.insert(self.uses, id);
    }

    fn end(&mut self, step: Step) -> u64 {
        let (given, bytes) = self.under_way.take().expect("a step ends that was given out");
        assert_eq!(given, step, "the step that was given out ends");
        bytes
    }

    fn fail(&mut self, now: Duration) {
        self.figures.failed += 1;
        self.resumes = now + PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn id(byte: u8) -> BlockId {
        BlockId::from_bytes([byte; 32])
    }

    /// Does what the index wants until it wants nothing more; the files written and removed, in order.
    fn settle(index: &mut DiskIndex, now: Duration) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(step) = index.next(now) {
            index.check();
            match step {
                Step::Clear(id) => index.cleared(id, Ended::Done, now),
                Step::Remove(id) => index.removed(id, Ended::Done, now),
                Step::Write(id) => index.written(id, Ended::Done, now),
            }
            index.check();
            steps.push(step);
        }
        steps
    }

    fn kept(index: &DiskIndex) -> Vec<BlockId> {
        index.latest_first().map(|(id, _)| id).collect()
    }

    #[test]
    fn the_block_that_was_used_longest_ago_makes_room_and_the_bound_is_met_to_the_byte() {
        let mut index = DiskIndex::new(300);
        (1..=3).for_each(|byte| assert!(index.offer(id(byte), 100)));
        assert_eq!(settle(&mut index, NOW), [1, 2, 3].map(|byte| Step::Write(id(byte))));
        assert_eq!((index.figures().used_bytes, index.figures().evicted), (300, 0));
        index.hit(&id(1));
        assert!(index.offer(id(4), 1));
        assert_eq!(settle(&mut index, NOW), [Step::Remove(id(2)), Step::Write(id(4))]);
        assert_eq!(kept(&index), [4, 1, 3].map(id));
        // Two go for one that takes as much as both.
        assert!(index.offer(id(5), 200));
        assert_eq!(
            settle(&mut index, NOW),
            [Step::Remove(id(3)), Step::Remove(id(1)), Step::Write(id(5))],
            "99 bytes are free, then 199, then 299"
        );
        assert_eq!((index.figures().used_bytes, index.figures().evicted), (201, 3));
        assert!(!index.offer(id(6), 301), "it never fits");
        assert_eq!((index.figures().skipped, settle(&mut index, NOW)), (1, vec![]));
    }

    #[test]
    fn files_that_are_found_keep_their_order_and_give_way_to_a_lower_bound() {
        let mut index = DiskIndex::new(250);
        (1..=4).for_each(|byte| index.found(id(byte), 100));
        assert_eq!(kept(&index), [4, 3, 2, 1].map(id));
        assert_eq!(settle(&mut index, NOW), [Step::Remove(id(1)), Step::Remove(id(2))]);
        assert_eq!(index.figures().used_bytes, 200);
    }

    #[test]
    fn a_block_is_written_once_however_often_it_is_offered() {
        let mut index = DiskIndex::new(300);
        assert!(index.offer(id(1), 100) && index.offer(id(1), 100));
        assert_eq!(index.next(NOW), Some(Step::Write(id(1))));
        assert!(!index.offer(id(1), 100) && index.next(NOW).is_none(), "it is being written");
        index.written(id(1), Ended::Done, NOW);
        assert!(!index.offer(id(1), 100) && index.is_settled());
        assert_eq!(index.figures().written, 1);
        // One that is gone from memory before its turn takes no room.
        index.offer(id(2), 100);
        assert_eq!(index.next(NOW), Some(Step::Write(id(2))));
        index.written(id(2), Ended::Moot, NOW);
        assert_eq!((index.figures().used_bytes, index.figures().blocks, index.is_settled()), (100, 1, true));
    }

    #[test]
    fn a_disk_that_refuses_is_left_alone_for_a_while_and_what_it_kept_of_the_write_is_counted() {
        let mut index = DiskIndex::new(250);
        index.found(id(1), 100);
        index.offer(id(2), 100);
        assert_eq!(index.next(NOW), Some(Step::Write(id(2))));
        index.written(id(2), Ended::Failed, NOW);
        index.check();
        assert_eq!(
            (index.figures().used_bytes, index.figures().failed),
            (200, 1),
            "what is left of it counts"
        );
        assert_eq!(index.next(NOW), Some(Step::Clear(id(2))), "at once: the disk may be full of it");
        index.cleared(id(2), Ended::Failed, NOW);
        let later = NOW + PAUSE;
        assert_eq!((index.next(later - Duration::from_millis(1)), index.resumes()), (None, Some(later)));
        assert_eq!(index.next(later), Some(Step::Clear(id(2))));
        index.cleared(id(2), Ended::Done, later);
        assert_eq!(index.figures().used_bytes, 100);
        assert_eq!(settle(&mut index, later), [Step::Write(id(2))], "it waits for another turn");
        assert_eq!(kept(&index), [2, 1].map(id));
    }

    #[test]
    fn what_is_damaged_is_not_read_again_and_written_anew_once_it_is_gone() {
        let mut index = DiskIndex::new(300);
        index.found(id(1), 100);
        index.damaged(&id(1));
        assert_eq!((index.file_bytes(&id(1)), index.figures().used_bytes), (None, 100));
        index.offer(id(1), 100);
        assert_eq!(index.next(NOW), Some(Step::Remove(id(1))));
        index.removed(id(1), Ended::Failed, NOW);
        assert_eq!((index.next(NOW), index.file_bytes(&id(1))), (None, None));
        assert_eq!(settle(&mut index, NOW + PAUSE), [Step::Remove(id(1)), Step::Write(id(1))]);
        let figures = index.figures();
        assert_eq!((figures.damaged, figures.evicted, figures.used_bytes), (1, 0, 100));
    }

    #[test]
    fn more_blocks_than_may_wait_are_skipped_and_counted() {
        let mut index = DiskIndex::new(u64::MAX);
        let number = |count: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(count as u64).to_be_bytes());
            BlockId::from_bytes(bytes)
        };
        let taken = (0..MAX_WAITING + 3).filter(|&count| index.offer(number(count), 1)).count();
        assert_eq!(taken, MAX_WAITING);
        assert_eq!((index.figures().waiting, index.figures().skipped), (MAX_WAITING as u64, 3));
    }

    /// What happens to an index, by numbers that any test may pick.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Offer(u8, u64),
        Touch(u8),
        Damaged(u8),
        Step(Ended),
        Later(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..12u8, 1..120u64).prop_map(|(byte, bytes)| Event::Offer(byte, bytes)),
            (0..12u8).prop_map(Event::Touch),
            (0..12u8).prop_map(Event::Damaged),
            Just(Event::Step(Ended::Done)),
            Just(Event::Step(Ended::Done)),
            Just(Event::Step(Ended::Failed)),
            Just(Event::Step(Ended::Moot)),
            (0..12u64).prop_map(Event::Later),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_the_bytes_add_up_and_stay_within_the_bound(
            events in proptest::collection::vec(event(), 1..200)
        ) {
            let (mut index, mut now) = (DiskIndex::new(300), Duration::ZERO);
            for event in events {
                match event {
                    Event::Offer(byte, bytes) => _ = index.offer(id(byte), bytes),
                    Event::Touch(byte) => index.touch(&id(byte)),
                    Event::Damaged(byte) => index.damaged(&id(byte)),
                    Event::Later(seconds) => now += Duration::from_secs(seconds),
                    Event::Step(ended) => match index.next(now) {
                        Some(Step::Clear(id)) => index.cleared(id, ended, now),
                        Some(Step::Remove(id)) => index.removed(id, ended, now),
                        Some(Step::Write(id)) => index.written(id, ended, now),
                        None => {}
                    },
                }
                index.check();
                prop_assert!(index.figures().used_bytes <= 300);
            }
            // Once the disk works again, all that can be done is done.
            settle(&mut index, now + PAUSE);
            prop_assert!(index.is_settled() && index.resumes().is_none());
        }
    }
}
