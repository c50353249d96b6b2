//! How a block is made again where it is needed: copied from a host that holds it, or computed from its tokens. A pure
//! choice by measured figures, which it reports.

use std::fmt;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use super::messages::ContextKey;
use super::settings::RepairPolicy;
use super::supervisor::Cluster;
use crate::link::HostId;

/// How a block is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(rename_all = "snake_case")]
pub enum RepairWay {
    /// Copied from a host that holds it.
    Copy,
    /// Computed from its tokens.
    Recompute,
}

/// Why a choice fell as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(rename_all = "snake_case")]
pub enum RepairCause {
    /// No host holds it.
    NoHolder,
    /// A setting says so.
    Forced,
    /// Not enough is measured to compare.
    Unmeasured,
    /// It takes less time.
    Cheaper,
}

/// A choice, with the figures that led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct RepairChoice {
    /// What was chosen.
    pub way: RepairWay,
    /// Why.
    pub cause: RepairCause,
    /// Bytes / bandwidth, in microseconds, if that was measured.
    pub copy_us: Option<u64>,
    /// Tokens / rate of encoding, in microseconds, if that was measured.
    pub recompute_us: Option<u64>,
}

impl fmt::Display for RepairChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            RepairWay::Copy => "copied",
            RepairWay::Recompute => "computed again",
        };
        let cause = match self.cause {
            RepairCause::NoHolder => "no host holds it",
            RepairCause::Forced => "a setting says so",
            RepairCause::Unmeasured => "not enough was measured",
            RepairCause::Cheaper => "that takes less time",
        };
        let time =
            |us: Option<u64>| us.map_or("unknown".to_owned(), |us| format!("{} ms", us.div_ceil(1000)));
        write!(f, "{way}: {cause} (copy {}, compute {})", time(self.copy_us), time(self.recompute_us))
    }
}

impl Cluster {
    /// Where a host that is to keep the anchor of a context, and does not hold it, should copy it from: none where it is to
    /// compute it.
    pub(crate) fn anchor_source(
        &self,
        context: ContextKey,
        to: HostId,
        suspects: &[HostId],
    ) -> Option<HostId> {
        let claim = self.table.contexts.get(&context)?;
        let (anchor, first) = (claim.anchor?, claim.needs.first()?);
        let mut holders = self.table.holders(&anchor.id).into_iter();
        let from = holders.find(|host| *host != to && !suspects.contains(host))?;
        let (source, target) = (self.table.hosts.get(&from)?, self.table.hosts.get(&to)?);
        let bandwidth = match (source.copy_bytes_per_s, target.copy_bytes_per_s) {
            (0, known) | (known, 0) => known,
            (a, b) => a.min(b),
        };
        let tokens = u128::from(anchor.bytes) * u128::from(first.tokens) / u128::from(first.bytes.max(1));
        let rates = ((anchor.bytes, bandwidth), (tokens as u64, target.encode_tokens_per_s));
        let choice = choose(self.settings.repair, true, rates.0, rates.1);
        // As long as nothing was measured a host computes it, beside the blocks that it encodes anyway.
        let is_copied = choice.way == RepairWay::Copy && choice.cause != RepairCause::Unmeasured;
        tracing::info!(anchor = %anchor.id, %from, %to, %choice, is_copied, "an anchor is to be had elsewhere");
        is_copied.then_some(from)
    }
}

/// Chooses for a block of so many bytes and tokens. Rates of 0 are unknown; `has_holder` says whether a copy is possible.
pub fn choose(
    policy: RepairPolicy,
    has_holder: bool,
    (bytes, bytes_per_s): (u64, u64),
    (tokens, tokens_per_s): (u64, u64),
) -> RepairChoice {
    let micros = |amount: u64, rate: u64| {
        let us = u128::from(amount) * 1_000_000 / u128::from(rate.max(1));
        (rate > 0).then(|| us.min(u128::from(u64::MAX)) as u64)
    };
    let (copy_us, recompute_us) = (micros(bytes, bytes_per_s), micros(tokens, tokens_per_s));
    let (way, cause) = match (has_holder, policy, copy_us, recompute_us) {
        (false, ..) => (RepairWay::Recompute, RepairCause::NoHolder),
        (_, RepairPolicy::AlwaysCopy, ..) => (RepairWay::Copy, RepairCause::Forced),
        (_, RepairPolicy::AlwaysRecompute, ..) => (RepairWay::Recompute, RepairCause::Forced),
        (_, _, Some(copy), Some(recompute)) if recompute < copy => {
            (RepairWay::Recompute, RepairCause::Cheaper)
        }
        (_, _, Some(_), Some(_)) => (RepairWay::Copy, RepairCause::Cheaper),
        // A copy leaves the hosts' arithmetic to the sessions.
        _ => (RepairWay::Copy, RepairCause::Unmeasured),
    };
    RepairChoice { way, cause, copy_us, recompute_us }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quicker_way_is_chosen_and_the_figures_are_told() {
        let slow_wire = choose(RepairPolicy::Cheapest, true, (1_000_000, 1_000_000), (512, 1024));
        assert_eq!(
            slow_wire.to_string(),
            "computed again: that takes less time (copy 1000 ms, compute 500 ms)"
        );
        let fast_wire = choose(RepairPolicy::Cheapest, true, (1_000_000, 10_000_000), (512, 1024));
        assert_eq!((fast_wire.way, fast_wire.copy_us), (RepairWay::Copy, Some(100_000)));
    }

    #[test]
    fn a_setting_forces_either_way_but_none_copies_from_nobody() {
        let forced = |policy, has_holder| choose(policy, has_holder, (1, 1), (1, 1)).way;
        assert_eq!(forced(RepairPolicy::AlwaysCopy, true), RepairWay::Copy);
        assert_eq!(forced(RepairPolicy::AlwaysRecompute, true), RepairWay::Recompute);
        assert_eq!(forced(RepairPolicy::AlwaysCopy, false), RepairWay::Recompute);
    }

    #[test]
    fn what_was_not_measured_is_copied() {
        let choice = choose(RepairPolicy::Cheapest, true, (1_000_000, 0), (512, 1024));
        assert_eq!(
            (choice.way, choice.cause, choice.copy_us),
            (RepairWay::Copy, RepairCause::Unmeasured, None)
        );
    }
}
