//! How fast a host works, as it was measured: by which the supervisor chooses between copying a block and computing it again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The rates of a host. 0 where nothing was measured yet.
#[derive(Debug, Default)]
pub struct Rates {
    /// Encoding, in tokens a second: the time of the chunks alone, not of the decode steps between them.
    pub encode: Rate,
    /// Copies that came in, in bytes a second.
    pub copy: Rate,
}

/// Something a second, averaged over the last few samples.
#[derive(Debug, Default)]
pub struct Rate(AtomicU64);

impl Rate {
    /// The weight of a new sample is one in so many.
    const SAMPLES: u64 = 4;

    /// The average, 0 where there is none.
    pub fn per_second(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds a sample. One writer at a time; of two, one sample may be lost.
    pub fn add(&self, amount: u64, took: Duration) {
        let nanoseconds = took.as_nanos().max(1);
        let sample = u128::from(amount) * 1_000_000_000 / nanoseconds;
        let sample = u64::try_from(sample).unwrap_or(u64::MAX >> 8).clamp(1, u64::MAX >> 8);
        let average = match self.per_second() {
            0 => sample,
            before => (before * (Self::SAMPLES - 1) + sample) / Self::SAMPLES,
        };
        self.0.store(average, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_follows_what_is_measured_and_is_never_none_again() {
        let rate = Rate::default();
        assert_eq!(rate.per_second(), 0);
        rate.add(100, Duration::from_millis(100));
        assert_eq!(rate.per_second(), 1000);
        rate.add(500, Duration::from_millis(100));
        assert_eq!(rate.per_second(), 2000);
        (0..100).for_each(|_| rate.add(0, Duration::from_secs(9)));
        assert_eq!(rate.per_second(), 1);
        rate.add(u64::MAX, Duration::ZERO);
        assert!(rate.per_second() > 1 << 50);
    }
}
