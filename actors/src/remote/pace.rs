//! How fast this node sends copies of blocks, so that attention over the same link and cores keeps its latency. One bucket
//! for all transfers that leave the node, asked before each piece; what a peer asks for beside it is its own transfer's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stellate_runtime::clock::{Clock, SystemClock};

use crate::context_host::rate::Rate;

/// How long after a step of attention copies hold back: longer than a step of a large model takes, far shorter than a copy.
const DECODE_QUIET: Duration = Duration::from_millis(100);

/// What copies may take meanwhile, in parts of what they were measured to take: one in four.
const DECODE_PART: u64 = 4;

/// Bytes a second that copies may take however slow they were measured, so that each ends: eight transfers that share them
/// send a piece each within a second, of the fifteen after which a silent one is given up.
const LEAST: u64 = 8 << 20;

/// The pace of all copies that leave a node. Clones are the same.
#[derive(Clone, Debug)]
pub struct Pacer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    limit: Option<u64>,
    /// Of transfers that nothing has held back.
    measured: Rate,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bucket: Bucket,
    decoded: Option<Duration>,
}

/// Gives out bytes at a rate. It holds one piece: who comes after a pause sends one at once, and no more.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    next: Duration,
}

impl Bucket {
    /// How long a piece of so many bytes waits before it is sent; the one after it waits for as long as it takes.
    pub(super) fn take(&mut self, now: Duration, bytes: usize, rate: u64) -> Duration {
        let at = self.next.max(now);
        self.next = at + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        at - now
    }
}

impl Pacer {
    /// A pace of at most `limit` bytes a second, if there is a limit.
    pub fn new(clock: Arc<dyn Clock>, limit: Option<u64>) -> Self {
        Self(Arc::new(Shared { clock, limit, measured: Rate::default(), state: Mutex::default() }))
    }

    /// A step of attention is served: copies hold back for a while.
    pub fn decoded(&self) {
        self.state().decoded = Some(self.0.clock.now());
    }

    /// How long a piece of so many bytes waits.
    pub fn take(&self, bytes: usize) -> Duration {
        let (now, mut state) = (self.0.clock.now(), self.state());
        let is_decoding = state.decoded.is_some_and(|at| now.saturating_sub(at) < DECODE_QUIET);
        let held_back = is_decoding.then(|| (self.0.measured.per_second() / DECODE_PART).max(LEAST));
        match self.0.limit.into_iter().chain(held_back).min() {
            Some(rate) => state.bucket.take(now, bytes, rate),
            None => Duration::ZERO,
        }
    }

    /// A transfer that was held back by nothing has sent so many bytes in this time.
    pub fn measured(&self, bytes: usize, took: Duration) {
        self.0.measured.add(bytes as u64, took);
    }

    pub(super) fn now(&self) -> Duration {
        self.0.clock.now()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Pacer {
    /// No limit but that of attention.
    fn default() -> Self {
        Self::new(Arc::new(SystemClock::new()), None)
    }
}

#[cfg(test)]
mod tests {
    use stellate_runtime::clock::ManualClock;

    use super::*;

    const PIECE: usize = 1 << 20;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn all_transfers_share_the_limit_from_the_first_piece_on_and_a_pause_saves_up_one_piece_only() {
        let clock = ManualClock::new();
        let pacer = Pacer::new(Arc::new(clock.clone()), Some(4 << 20));
        let of_another = pacer.clone();
        assert_eq!(pacer.take(PIECE), Duration::ZERO);
        assert_eq!(
            of_another.take(PIECE),
            milliseconds(250),
            "the first piece of a second transfer waits too"
        );
        assert_eq!(pacer.take(PIECE / 2), milliseconds(500));
        clock.advance(milliseconds(10_000));
        assert_eq!(of_another.take(PIECE), Duration::ZERO);
        assert_eq!(pacer.take(PIECE), milliseconds(250));
    }

    #[test]
    fn while_attention_is_served_copies_take_a_quarter_of_what_they_were_measured_to_take() {
        let clock = ManualClock::new();
        let pacer = Pacer::new(Arc::new(clock.clone()), None);
        pacer.measured(400 << 20, milliseconds(1000));
        assert!((0..100).all(|_| pacer.take(PIECE) == Duration::ZERO), "no limit while nobody asks");
        pacer.decoded();
        assert_eq!((pacer.take(PIECE), pacer.take(PIECE)), (Duration::ZERO, milliseconds(10)));
        clock.advance(DECODE_QUIET);
        assert_eq!((pacer.take(PIECE), pacer.take(PIECE)), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn copies_go_on_while_attention_is_served_although_none_was_measured() {
        let clock = ManualClock::new();
        let pacer = Pacer::new(Arc::new(clock), None);
        pacer.decoded();
        let waits: Vec<_> = (0..8).map(|_| pacer.take(PIECE)).collect();
        assert_eq!((waits[0], waits[7]), (Duration::ZERO, milliseconds(875)));
    }
}
