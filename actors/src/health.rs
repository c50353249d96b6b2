//! Whether a device thread makes progress. The thread shows a [`Pulse`]; [`Health`] judges what is seen of it, without a clock
//! or IO; [`Vitals`] looks at the one with the other wherever somebody wants to know. A host whose thread stands still is not
//! used, although its network answers: it is *stuck*.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stellate_runtime::clock::Clock;

use crate::link::HostId;

/// How often whoever waits for a device thread looks whether it still works: far less than any limit that can be set.
pub(crate) const LOOK: Duration = Duration::from_millis(200);

/// Time between two looks counts for so much at most. A process that was stopped (SIGSTOP, a suspended machine) finds much time
/// gone in which its device thread could do nothing either.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// What a device thread shows of itself: a count that grows with every piece of work, and is odd while it is at one. Clones are
/// the same.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Something was begun, by an idle thread.
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// What was begun goes on: a layer of it is done.
    pub(crate) fn beat(&self) {
        self.0.fetch_add(2, Ordering::Relaxed);
    }

    /// What was begun is done, and the thread is idle.
    pub(crate) fn end(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count now.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Judges a device thread by its pulse. An idle thread is never stuck; one that has been at the same piece of work for too long
/// is, until it goes on.
#[derive(Clone, Debug)]
pub struct Health {
    stuck_after: Duration,
    count: u64,
    looked: Duration,
    /// For how long it was seen to stand still.
    stood_still: Duration,
}

impl Health {
    /// A judge by whom a thread is stuck that has stood still for `stuck_after`, longer than any one piece of work takes.
    pub fn new(stuck_after: Duration) -> Self {
        Self { stuck_after, count: 0, looked: Duration::ZERO, stood_still: Duration::ZERO }
    }

    /// Whether the thread is stuck, whose pulse is `count` at `now`. Looked at less often than every two seconds, it is found
    /// out later, and never too early.
    pub fn is_stuck(&mut self, now: Duration, count: u64) -> bool {
        let is_working = count % 2 == 1;
        if count == self.count && is_working {
            self.stood_still += now.saturating_sub(self.looked).min(LONGEST_LOOK);
        } else {
            self.stood_still = Duration::ZERO;
        }
        (self.count, self.looked) = (count, now);
        is_working && self.stood_still >= self.stuck_after
    }
}

/// How the device thread of a host does.
pub struct Vitals {
    host: HostId,
    pulse: Pulse,
    clock: Arc<dyn Clock>,
    /// The judge, and what it said last.
    judged: Mutex<(Health, bool)>,
}

impl fmt::Debug for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals").field("host", &self.host).field("pulse", &self.pulse).finish_non_exhaustive()
    }
}

impl Vitals {
    /// Those of the thread of `host` that shows `pulse`: it is stuck once it has stood still for `stuck_after` by `clock`.
    pub fn new(host: HostId, pulse: Pulse, stuck_after: Duration, clock: Arc<dyn Clock>) -> Self {
        Self { host, pulse, clock, judged: Mutex::new((Health::new(stuck_after), false)) }
    }

    /// Whether the thread is stuck. Whoever asks looks, so that it is enough if anybody does.
    pub fn is_stuck(&self) -> bool {
        let host = self.host;
        let (is_stuck, has_changed) = {
            let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
            // Behind the lock: of two that look at once, the later look is the later time.
            let now = self.clock.now();
            let (health, said) = &mut *judged;
            let is_stuck = health.is_stuck(now, self.pulse.count());
            (is_stuck, std::mem::replace(said, is_stuck) != is_stuck)
        };
        match (has_changed, is_stuck) {
            (true, true) => tracing::error!(
                %host,
                "the device thread of a context host makes no progress; the host is not used until it does. Look at its \
                 device, and restart the node if it stays"
            ),
            (true, false) => {
                tracing::warn!(%host, "the device thread of a context host goes on; the host is used again");
            }
            (false, _) => {}
        }
        is_stuck
    }

    /// Waits until the thread is stuck.
    pub(crate) async fn stuck(&self) {
        while !self.is_stuck() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Looks every second, to the end of `until`; tells in which second it was first found stuck.
    fn first_stuck(health: &mut Health, count: u64, from: u64, until: u64) -> Option<u64> {
        (from..=until).find(|&second| health.is_stuck(at(second), count))
    }

    #[test]
    fn one_that_stands_still_at_work_is_stuck_after_the_limit_and_not_before() {
        let mut health = Health::new(LIMIT);
        // Seen at work first in second 100.
        assert_eq!(first_stuck(&mut health, 7, 100, 200), Some(130));
        assert!(health.is_stuck(at(131), 7), "it stays so");
        assert!(!health.is_stuck(at(132), 9), "one more layer, and it is not");
        assert_eq!(first_stuck(&mut health, 9, 132, 200), Some(162));
    }

    #[test]
    fn one_that_is_idle_is_never_stuck() {
        let mut health = Health::new(LIMIT);
        assert_eq!(first_stuck(&mut health, 8, 0, 1000), None);
        // What begins then has all its time.
        assert_eq!(first_stuck(&mut health, 9, 1001, 1100), Some(1031));
        assert!(!health.is_stuck(at(1100), 10), "it has ended");
    }

    #[test]
    fn one_that_goes_on_slowly_is_never_stuck() {
        let mut health = Health::new(LIMIT);
        for second in 0..600 {
            assert!(!health.is_stuck(at(second), 1 + 2 * (second / 29)), "in second {second}");
        }
    }

    #[test]
    fn time_in_which_nobody_looked_hardly_counts() {
        let mut health = Health::new(LIMIT);
        assert_eq!(first_stuck(&mut health, 3, 0, 20), None);
        // The process was stopped for an hour, and its device thread with it.
        assert!(!health.is_stuck(at(3620), 3));
        assert_eq!(first_stuck(&mut health, 3, 3621, 3700), Some(3628));
    }
}
