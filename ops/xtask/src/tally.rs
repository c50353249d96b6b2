//! What is counted while schedules are played, and how it is added up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::weather::Packets;

/// How often something ended in which way.
pub type Counts = BTreeMap<String, u64>;

/// What came of one schedule, or of many.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Schedules played to their end.
    pub schedules: u64,
    /// Nodes started in them.
    pub nodes: u64,
    /// Rounds played.
    pub rounds: u64,
    /// Faults injected, by kind.
    pub faults: Counts,
    /// What operators asked for under faults, by what it was and how it ended.
    pub operators: BTreeMap<String, Counts>,
    /// Operations of clients, by what they were and how they ended.
    pub operations: BTreeMap<String, Counts>,
    /// Answers that were acknowledged, and equal to those of one process.
    pub answers: u64,
    /// Tokens compared, those of answers that were cut off included.
    pub tokens: u64,
    /// Acknowledged turns that were looked for at the end, and found.
    pub turns_found: u64,
    /// Turns whose acknowledgement did not arrive, and that were found: whole, or cut short.
    pub turns_unheard: u64,
    /// What became of packets.
    pub packets: Packets,
    /// Seconds of the schedules together.
    pub seconds: f64,
    /// How long answers took, in milliseconds.
    #[serde(skip)]
    pub answer_ms: Vec<u64>,
    /// From the end of the last round until every node saw all others, in milliseconds.
    #[serde(skip)]
    pub whole_ms: Vec<u64>,
}

impl Tally {
    /// Counts an operation.
    pub fn operation(&mut self, what: &str, ended: &str) {
        *self.operations.entry(what.to_owned()).or_default().entry(ended.to_owned()).or_default() += 1;
    }

    /// Counts what an operator asked for.
    pub fn operator(&mut self, what: &str, ended: &str) {
        *self.operators.entry(what.to_owned()).or_default().entry(ended.to_owned()).or_default() += 1;
    }

    /// Counts a fault.
    pub fn fault(&mut self, kind: &str) {
        *self.faults.entry(kind.to_owned()).or_default() += 1;
    }

    /// Adds another one.
    pub fn add(&mut self, more: Self) {
        self.schedules += more.schedules;
        self.nodes += more.nodes;
        self.rounds += more.rounds;
        add_counts(&mut self.faults, more.faults);
        for (what, counts) in more.operators {
            add_counts(self.operators.entry(what).or_default(), counts);
        }
        for (what, counts) in more.operations {
            add_counts(self.operations.entry(what).or_default(), counts);
        }
        self.answers += more.answers;
        self.tokens += more.tokens;
        self.turns_found += more.turns_found;
        self.turns_unheard += more.turns_unheard;
        self.packets.add(&more.packets);
        self.seconds += more.seconds;
        self.answer_ms.extend(more.answer_ms);
        self.whole_ms.extend(more.whole_ms);
    }

    /// All faults together.
    pub fn all_faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Operations of clients that ended with a typed error.
    pub fn typed_errors(&self) -> u64 {
        let ends = self.operations.values().flatten();
        ends.filter(|(ended, _)| *ended != WELL).map(|(_, count)| count).sum()
    }
}

/// The word for an operation that ended as it should.
pub const WELL: &str = "well";

fn add_counts(all: &mut Counts, more: Counts) {
    for (what, count) in more {
        *all.entry(what).or_default() += count;
    }
}

/// The value below which so many thousandths of `values` lie (nearest rank); none of no values.
pub fn quantile<T: Copy + PartialOrd>(values: &[T], permille: usize) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let rank = (sorted.len() * permille).div_ceil(1000).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(quantile(&values, 500), Some(50));
        assert_eq!(quantile(&values, 990), Some(99));
        assert_eq!(quantile(&values, 1000), Some(100));
        assert_eq!(quantile(&[7], 500), Some(7));
        assert_eq!(quantile::<u64>(&[], 500), None);
    }

    #[test]
    fn tallies_add_up_by_what_and_how() {
        let mut one = Tally { answers: 2, ..Tally::default() };
        one.operation("ask", WELL);
        one.operation("ask", "unreachable");
        let mut other = Tally { answers: 3, ..Tally::default() };
        other.operation("ask", "unreachable");
        other.fault("clock jump");
        one.add(other);
        assert_eq!(
            one.operations["ask"],
            Counts::from([(WELL.to_owned(), 1), ("unreachable".to_owned(), 2)])
        );
        assert_eq!((one.answers, one.all_faults(), one.typed_errors()), (5, 1, 2));
    }
}
