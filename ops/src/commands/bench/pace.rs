//! How long a bench will take: seconds from counted operations and from what was measured so far, and the limit of time
//! that it was given. Nothing is measured here.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::count::{Gflop, Work};
use crate::report::fit;

/// How fast this machine works, learnt from what was encoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Speed {
    samples: Vec<([f64; 2], f64)>,
}

/// The rates of the two kinds of work that explain the times best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Rates {
    pub(super) products_gflop_per_s: f64,
    pub(super) attention_gflop_per_s: f64,
    /// Of a measured time from what the two rates make of its work, in percent of the measured time.
    pub(super) greatest_error_percent: f64,
}

impl Speed {
    pub(super) fn learn(&mut self, work: Work, seconds: f64) {
        let Gflop { products, attention, .. } = work.gflop();
        self.samples.push(([products, attention], seconds));
    }

    /// About how long `work` will take, once anything was learnt.
    pub(super) fn seconds(&self, work: Work) -> Option<f64> {
        let [products, attention] = fit::costs(&self.samples)?;
        let Gflop { products: of_products, attention: of_attention, .. } = work.gflop();
        Some(products * of_products + attention * of_attention)
    }

    /// The rates of all that was learnt.
    pub(super) fn rates(&self) -> Option<Rates> {
        let [products, attention] = fit::costs(&self.samples)?;
        let error = |&([a, b], seconds): &([f64; 2], f64)| {
            100.0 * (products * a + attention * b - seconds).abs() / seconds
        };
        Some(Rates {
            products_gflop_per_s: products.recip(),
            attention_gflop_per_s: attention.recip(),
            greatest_error_percent: self.samples.iter().map(error).fold(0.0, f64::max),
        })
    }
}

/// The time that a run may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    end: Option<Instant>,
}

impl Limit {
    /// From now on; `None` for no limit.
    pub(super) fn start(limit: Option<Duration>) -> Self {
        // A limit that no clock can hold is none.
        Self { end: limit.and_then(|limit| Instant::now().checked_add(limit)) }
    }

    /// What is left; `None` for no limit.
    pub(super) fn left(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Whether work of about so many seconds would end within what is left.
    pub(super) fn has_room_for(&self, seconds: Option<f64>) -> bool {
        match (self.left(), seconds) {
            (Some(left), Some(seconds)) => seconds <= left.as_secs_f64(),
            (Some(left), None) => !left.is_zero(),
            (None, _) => true,
        }
    }
}

/// A duration as it is written in a flag: `90s`, `40min`, `2h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("min", 60.0), ("h", 3600.0), ("s", 1.0)];
    let found = units.iter().find_map(|(unit, seconds)| {
        let number = text.strip_suffix(unit)?.trim().parse::<f64>().ok()?;
        Duration::try_from_secs_f64(number * seconds).ok()
    });
    found.filter(|time| !time.is_zero()).ok_or_else(|| "expected a time as in 90s, 40min or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_follow_what_was_measured() {
        let work = |products, attention| Work { products, attention };
        let mut speed = Speed::default();
        assert_eq!(speed.seconds(work(1, 1)), None);
        speed.learn(work(1_000_000_000, 0), 2.0);
        // Nothing is known of attention: it is taken to cost the same.
        assert!((speed.seconds(work(1_000_000_000, 1_000_000_000)).unwrap() - 4.0).abs() < 1e-9);
        speed.learn(work(1_000_000_000, 1_000_000_000), 5.0);
        assert!((speed.seconds(work(0, 2_000_000_000)).unwrap() - 6.0).abs() < 1e-9);
        let rates = speed.rates().unwrap();
        assert!((rates.products_gflop_per_s - 1.0).abs() < 1e-9, "{rates:?}");
        assert!(
            (rates.attention_gflop_per_s - 2.0 / 3.0).abs() < 1e-9 && rates.greatest_error_percent < 1e-6
        );
    }

    #[test]
    fn a_limit_has_room_for_what_ends_within_it() {
        let limit = Limit::start(Some(Duration::from_secs(3600)));
        assert!(limit.has_room_for(Some(60.0)) && limit.has_room_for(None));
        assert!(!limit.has_room_for(Some(3601.0)));
        assert!(!Limit::start(Some(Duration::ZERO)).has_room_for(None));
        assert!(Limit::start(None).has_room_for(Some(1e9)));
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5min"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2 h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "90", "min", "-1s", "0s", "1e40h", "nans"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
