//! How long to wait before dialling again: longer each time, up to a bound, and not at the same moment as everyone else.

use std::time::Duration;

/// The waits between attempts. Each is chosen at random between half of a span and all of it; the span doubles.
#[derive(Clone, Debug)]
pub struct Backoff {
    span: Duration,
    longest: Duration,
    random: u64,
}

impl Backoff {
    /// Starts with a span of `first` and never waits longer than `longest`. `seed` decides the random part: nodes should
    /// differ in it.
    pub fn new(first: Duration, longest: Duration, seed: u64) -> Self {
        Self { span: first.min(longest), longest, random: seed }
    }

    /// How long to wait now.
    pub fn next_wait(&mut self) -> Duration {
        let half = self.span / 2;
        let wait = half + half.mul_f64(self.fraction());
        self.span = (self.span * 2).min(self.longest);
        wait
    }

    /// From 0 to 1, by SplitMix64 (Steele, Lea and Flood, 2014), which is random enough to spread dials.
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_their_bounds_and_differ_between_nodes() {
        let waits = |seed| {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), seed);
            (0..20).map(|_| backoff.next_wait()).collect::<Vec<_>>()
        };
        let mut span = Duration::from_millis(100);
        for wait in waits(1) {
            assert!(wait >= span / 2 && wait <= span, "{wait:?} of {span:?}");
            span = (span * 2).min(Duration::from_secs(5));
        }
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }
}
