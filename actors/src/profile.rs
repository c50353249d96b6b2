//! Where the hosts of a node spend their time: seconds and work by phase, layer and operation. Off unless a node is opened
//! with one. How it is shown is the caller's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stellate_model::observe::{Observer, Operation, Phase, Work};

/// What all hosts of a node did, in sums of their device threads' time.
#[derive(Debug, Default)]
pub struct Profile {
    totals: Mutex<Totals>,
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
    pub fn take(&self) -> Totals {
        std::mem::take(&mut *self.totals())
    }

    /// What tells this profile of one engine's runs.
    pub fn stopwatch(self: &Arc<Self>) -> Box<dyn Observer> {
        Box::new(Stopwatch { profile: Arc::clone(self), phase: Phase::Encode, last: Instant::now() })
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        // Sums are whole after every addition.
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
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
        let now = Instant::now();
        let time = now - std::mem::replace(&mut self.last, now);
        let mut totals = self.profile.totals();
        let total = totals.entry((self.phase, layer, operation)).or_default();
        total.time += time;
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
        let totals = profile.take();
        assert_eq!(totals.len(), 2);
        let encode = totals[&(Phase::Encode, Some(1), Operation::Down)];
        assert_eq!((encode.calls, encode.work), (2, Work { flops: 6, bytes: 4 }));
        assert!(profile.take().is_empty());
    }
}
