//! Pending timers in the order in which they are due, and the time that we did not stand still.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

/// Timers of kind `T` and the clock they run on.
#[derive(Debug)]
pub(super) struct Timers<T> {
    /// By due time, then by order of setting, so that equal times fire in the order in which they were set.
    due: BinaryHeap<Reverse<(Duration, u64)>>,
    kinds: BTreeMap<u64, T>,
    next: u64,
    now: Duration,
    /// How long we have stood still in all: what the caller's clock is ahead of [`Self::now`].
    stood_still: Duration,
    stall: Duration,
}

impl<T> Timers<T> {
    pub(super) fn new(now: Duration, stall: Duration) -> Self {
        Self {
            due: BinaryHeap::new(),
            kinds: BTreeMap::new(),
            next: 0,
            now,
            stood_still: Duration::ZERO,
            stall,
        }
    }

    /// The time that we did not stand still.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// Takes the caller's time. If a timer is overdue by more than the stall, we were stopped or starved: what came for us
    /// meanwhile has not been read yet, so nobody may be judged by it, and the lost time counts as if it had not passed.
    pub(super) fn advance(&mut self, now: Duration) {
        let now = now.saturating_sub(self.stood_still).max(self.now);
        self.now = now;
        if let Some(Reverse((due, _))) = self.due.peek()
            && now > *due + self.stall
        {
            self.stood_still += now - *due;
            self.now = *due;
        }
    }

    pub(super) fn set(&mut self, after: Duration, kind: T) {
        self.due.push(Reverse((self.now + after, self.next)));
        self.kinds.insert(self.next, kind);
        self.next += 1;
    }

    /// The next timer that is due.
    pub(super) fn pop(&mut self) -> Option<T> {
        let Reverse((due, number)) = *self.due.peek()?;
        if due > self.now {
            return None;
        }
        self.due.pop();
        self.kinds.remove(&number)
    }

    /// When the next timer is due, on the caller's clock.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.peek().map(|Reverse((due, _))| *due + self.stood_still)
    }
}
