//! Where the hosts of a node spend their time: seconds and work by phase, layer and operation, and for how long some host was
//! at what the time is meant for. Off unless a node is opened with one. How it is shown is the caller's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stellate_model::observe::{Observer, Operation, Phase, Work};

/// Stretches of time that a [`Union`] keeps apart: far more operations than end on one host while one of another is under
/// way, which are some dozen in a layer.
const RECENT_STRETCHES: usize = 256;

/// What all hosts of a node did.
#[derive(Debug, Default)]
pub struct Profile {
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    totals: Totals,
    covered: BTreeMap<Phase, Union>,
}

/// What was done over some time.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Sums of the device threads' time.
    pub totals: Totals,
    /// By phase, for how long at least one host was in a product with weights or in attention: unlike sums, to be held
    /// against the time that passed, whatever number of hosts computed side by side.
    pub covered: BTreeMap<Phase, Duration>,
}

/// By phase, layer (`None` outside of layers) and operation.
pub type Totals = BTreeMap<(Phase, Option<usize>, Operation), Total>;

/// Sums over all calls of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Time of the device thread that called it.
    pub time: Duration,
    /// Calls.
    pub calls: u64,
    /// What they had to do.
    pub work: Work,
}

impl Profile {
    /// What was done since the last call.
    pub fn take(&self) -> Record {
        let Counted { totals, covered } = std::mem::take(&mut *self.counted());
        let covered = covered.iter().map(|(&phase, union)| (phase, union.length())).collect();
        Record { totals, covered }
    }

    /// What tells this profile of one engine's runs.
    pub fn stopwatch(self: &Arc<Self>) -> Box<dyn Observer> {
        Box::new(Stopwatch { profile: Arc::clone(self), phase: Phase::Encode, last: Instant::now() })
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        // Sums are whole after every addition.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time that stretches cover together, which come in the order of their ends. What reaches behind the last
/// [`RECENT_STRETCHES`] is left out: it may have been counted.
#[derive(Debug, Default)]
struct Union {
    /// Apart from each other, in order.
    recent: VecDeque<(Instant, Instant)>,
    /// The length of those before, and the end of the last of them.
    past: Duration,
    past_end: Option<Instant>,
}

impl Union {
    fn add(&mut self, start: Instant, end: Instant) {
        let mut start = self.past_end.map_or(start, |past_end| start.max(past_end)).min(end);
        while let Some(&(earlier, earlier_end)) = self.recent.back()
            && earlier_end >= start
        {
            start = start.min(earlier);
            self.recent.pop_back();
        }
        self.recent.push_back((start, end));
        if self.recent.len() > RECENT_STRETCHES
            && let Some((start, end)) = self.recent.pop_front()
        {
            self.past += end - start;
            self.past_end = Some(end);
        }
    }

    fn length(&self) -> Duration {
        self.past + self.recent.iter().map(|(start, end)| *end - *start).sum::<Duration>()
    }
}

/// Adds the time since the operation before to the totals: some dozen locks per layer and chunk.
#[derive(Debug)]
struct Stopwatch {
    profile: Arc<Profile>,
    phase: Phase,
    last: Instant,
}

impl Observer for Stopwatch {
    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.last = Instant::now();
    }

    fn done(&mut self, layer: Option<usize>, operation: Operation, work: Work) {
        let mut counted = self.profile.counted();
        // Read under the lock: the next reading of any host is later.
        let now = Instant::now();
        let began = std::mem::replace(&mut self.last, now);
        if operation.is_product_or_attention() {
            counted.covered.entry(self.phase).or_default().add(began, now);
        }
        let total = counted.totals.entry((self.phase, layer, operation)).or_default();
        total.time += now - began;
        total.calls += 1;
        total.work.flops += work.flops;
        total.work.bytes += work.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_summed_by_phase_and_layer_until_they_are_taken() {
        let profile = Arc::new(Profile::default());
        let mut watch = profile.stopwatch();
        let work = Work { flops: 3, bytes: 2 };
        for phase in [Phase::Encode, Phase::Answer, Phase::Encode] {
            watch.begin(phase);
            watch.done(Some(1), Operation::Down, work);
        }
        let Record { totals, covered } = profile.take();
        assert_eq!(totals.len(), 2);
        let encode = totals[&(Phase::Encode, Some(1), Operation::Down)];
        assert_eq!((encode.calls, encode.work), (2, Work { flops: 6, bytes: 4 }));
        assert_eq!(covered[&Phase::Encode], encode.time, "one host: its own sum");
        assert!(profile.take().totals.is_empty());
    }

    #[test]
    fn what_is_not_a_product_or_attention_covers_nothing() {
        let profile = Arc::new(Profile::default());
        let mut watch = profile.stopwatch();
        watch.begin(Phase::Encode);
        watch.done(Some(0), Operation::Wait, Work::default());
        assert!(profile.take().covered.is_empty());
    }

    #[test]
    fn time_that_several_hosts_cover_at_once_counts_once() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let length = |stretches: &[(u64, u64)]| {
            let mut union = Union::default();
            stretches.iter().for_each(|&(from, to)| union.add(at(from), at(to)));
            union.length().as_millis()
        };
        assert_eq!(length(&[]), 0);
        assert_eq!(length(&[(0, 3), (5, 9)]), 7, "apart");
        assert_eq!(length(&[(0, 3), (3, 9)]), 9, "one after the other");
        assert_eq!(length(&[(0, 3), (2, 5), (4, 6)]), 6, "one into the other");
        assert_eq!(length(&[(2, 3), (5, 6), (0, 8), (8, 8)]), 8, "one around others");
        // Far more than are kept apart, and one that reaches behind all that are.
        let many: Vec<_> = (0..2 * RECENT_STRETCHES as u64).map(|i| (10 * i, 10 * i + 4)).collect();
        let end = 10 * many.len() as u64;
        assert_eq!(length(&many), 4 * many.len() as u128);
        let around = length(&[many, vec![(0, end)]].concat());
        assert!(around <= u128::from(end), "nothing counts twice");
        assert!(around >= u128::from(end) * 7 / 10, "what can be known is counted: {around} of {end}");
    }
}
