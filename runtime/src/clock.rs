//! The one clock. Code that waits, times or stamps takes a [`Clock`], so that tests can drive time; `Instant::now` and
//! `SystemTime::now` are called here and nowhere else in the libraries.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Monotonic and wall time.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Time since this clock was started. Never goes back.
    fn now(&self) -> Duration;

    /// The time of day, to show to people and to write into logs. It may jump; never measure with it.
    fn wall(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Clone, Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that moves only when it is told to. Clones share the same time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    time: Arc<Mutex<ManualTime>>,
}

#[derive(Debug)]
struct ManualTime {
    now: Duration,
    wall: SystemTime,
}

impl ManualClock {
    /// A clock that stands at zero, on 1 January 1970.
    pub fn new() -> Self {
        Self { time: Arc::new(Mutex::new(ManualTime { now: Duration::ZERO, wall: SystemTime::UNIX_EPOCH })) }
    }

    /// Lets `step` pass, for the monotonic and the wall time alike.
    pub fn advance(&self, step: Duration) {
        self.with(|time| {
            time.now += step;
            time.wall += step;
        });
    }

    /// Sets the time of day, forward or back, as an operator or NTP may do; the monotonic time stays.
    pub fn set_wall(&self, wall: SystemTime) {
        self.with(|time| time.wall = wall);
    }

    /// A panic of another thread cannot leave the two numbers half written, so a poisoned lock is as good as any.
    fn with<T>(&self, act: impl FnOnce(&mut ManualTime) -> T) -> T {
        act(&mut self.time.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        self.with(|time| time.now)
    }

    fn wall(&self) -> SystemTime {
        self.with(|time| time.wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_never_goes_back() {
        let clock = SystemClock::new();
        let readings: Vec<_> = (0..100).map(|_| clock.now()).collect();
        assert!(readings.is_sorted());
    }

    #[test]
    fn a_manual_clock_moves_only_when_it_is_told_to_and_its_clones_with_it() {
        let clock = ManualClock::new();
        let seen: Arc<dyn Clock> = Arc::new(clock.clone());
        assert_eq!(seen.now(), Duration::ZERO);
        clock.advance(Duration::from_millis(1500));
        assert_eq!(seen.now(), Duration::from_millis(1500));
        assert_eq!(seen.wall(), SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
    }

    #[test]
    fn setting_the_time_of_day_back_leaves_the_monotonic_time() {
        let clock = ManualClock::new();
        clock.advance(Duration::from_secs(60));
        clock.set_wall(SystemTime::UNIX_EPOCH);
        assert_eq!((clock.now(), clock.wall()), (Duration::from_secs(60), SystemTime::UNIX_EPOCH));
    }
}
