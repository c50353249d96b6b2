//! The network between nodes: delay, loss, doubling, reordering, and cuts in one direction or both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::chance::Chance;
use crate::scenario::Weather;

/// What QUIC takes to send a lost packet again.
const AGAIN: Duration = Duration::from_millis(60);

/// How something travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// On a connection: in order, once; what is lost is sent again while there is a way.
    Stream,
    /// As a datagram: lost, doubled or overtaken.
    Datagram,
}

/// The network.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// Directions in which nothing goes.
    cuts: BTreeSet<(u16, u16)>,
    /// When the last of a stream arrives.
    arrivals: BTreeMap<(u16, u16), Duration>,
    /// When something was lost for good last, in one direction or the other: that breaks a connection.
    broken: BTreeMap<(u16, u16), Duration>,
}

impl Network {
    pub(crate) fn new(weather: Weather) -> Self {
        Self { weather, cuts: BTreeSet::new(), arrivals: BTreeMap::new(), broken: BTreeMap::new() }
    }

    /// Nothing goes from one node to another any more.
    pub(crate) fn cut(&mut self, from: u16, to: u16) {
        self.cuts.insert((from, to));
    }

    /// All cuts end.
    pub(crate) fn mend(&mut self) {
        self.cuts.clear();
    }

    /// Everything goes everywhere, and nothing is lost.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        (self.weather.loss_permille, self.weather.doubled_permille) = (0, 0);
        self.weather.is_wild = false;
    }

    /// Whether two nodes can have a connection: it takes both directions.
    pub(crate) fn connects(&self, one: u16, other: u16) -> bool {
        !self.cuts.contains(&(one, other)) && !self.cuts.contains(&(other, one))
    }

    /// Whether what was sent between two nodes since a moment may be lost for good.
    pub(crate) fn has_broken(&self, one: u16, other: u16, since: Duration) -> bool {
        self.broken.get(&(one.min(other), one.max(other))).is_some_and(|at| *at >= since)
    }

    /// When something that is sent now arrives: never, once or twice.
    pub(crate) fn transit(
        &mut self,
        now: Duration,
        (from, to): (u16, u16),
        class: Class,
        chance: &mut Chance,
    ) -> Vec<Duration> {
        let weather = self.weather;
        if from == to {
            return vec![now + Duration::from_micros(5)];
        }
        if self.cuts.contains(&(from, to)) {
            self.broken.insert((from.min(to), from.max(to)), now);
            return Vec::new();
        }
        let delay = |chance: &mut Chance| {
            let jitter = chance.below(weather.jitter_us + 1);
            Duration::from_micros(weather.delay_us + jitter)
        };
        let is_loose = class == Class::Datagram || weather.is_wild;
        let mut at = now + delay(chance);
        if is_loose {
            if chance.permille(weather.loss_permille) {
                return Vec::new();
            }
            let mut arrivals = vec![at];
            if chance.permille(weather.doubled_permille) {
                arrivals.push(at + delay(chance));
            }
            return arrivals;
        }
        while chance.permille(weather.loss_permille) {
            at += AGAIN;
        }
        let last = self.arrivals.entry((from, to)).or_default();
        at = at.max(*last + Duration::from_nanos(1));
        *last = at;
        vec![at]
    }
}
