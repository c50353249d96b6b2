//! The tables of a bench, for people. What stands in them is computed elsewhere.

use super::measure::{Measurement, Times};
use super::saving::AnchorSaving;
use super::scaling::{Exponent, Growth, Independence, Scaling, SecondTurn, Speedup};
use crate::human;
use crate::report::table;

/// Time to encode and to answer.
pub(super) fn speed(measurements: &[Measurement], repeat: usize) -> String {
    let row = |m: &Measurement| {
        vec![
            m.attention.clone(),
            human::count(m.context_tokens),
            human::count(m.block_tokens),
            human::count(m.anchor_tokens),
            times(m.encode_s, repeat),
            human::count(m.encode_tokens_per_s.round() as usize),
            human::operations(m.gflop.total),
            rate(m.encode_gflop_per_s),
            times(m.first_token_s, repeat),
            times(m.token_s, repeat),
            times(m.second_turn_first_token_s, repeat),
        ]
    };
    let header = [
        "attention",
        "context",
        "block",
        "anchor",
        "encode",
        "tokens/s",
        "counted",
        "GFLOP/s",
        "first token",
        "per token",
        "2nd turn, first",
    ];
    table::markdown(&header, measurements.iter().map(row).collect(), 1)
}

/// Keys and values, and what was resident.
pub(super) fn memory(measurements: &[Measurement]) -> String {
    let row = |m: &Measurement| {
        let memory = &m.memory;
        let peak = memory.peak_resident_bytes.map(|bytes| bytes as usize);
        let above = peak.map(|peak| human::bytes(peak.saturating_sub(memory.weights_and_kv_bytes)));
        vec![
            m.attention.clone(),
            human::count(m.context_tokens),
            human::count(m.block_tokens),
            human::bytes(memory.kv_bytes),
            format!("{:.0}", memory.kv_bytes_per_token),
            memory.kv_bytes_per_token_formula.to_string(),
            human::bytes(memory.store_capacity_bytes),
            human::bytes(memory.weights_and_kv_bytes),
            peak.map_or_else(|| "unknown".to_owned(), human::bytes),
            above.unwrap_or_default(),
            match memory.within_memory {
                Some(within) => verdict(within && memory.within_store),
                None => "unknown".to_owned(),
            },
        ]
    };
    let header = [
        "attention",
        "context",
        "block",
        "KV",
        "bytes/token",
        "formula",
        "store",
        "weights + KV",
        "peak resident",
        "above",
        "within",
    ];
    let table = table::markdown(&header, measurements.iter().map(row).collect(), 1);
    let allowance = measurements.iter().map(|m| m.memory.memory_allowance_bytes).max().unwrap_or(0);
    format!(
        "{table}\nwithin: the KV within its store, and the peak within weights + KV and {} more for all else",
        human::bytes(allowance)
    )
}

/// What follows from all measurements together: a table for each part that says something.
pub(super) fn scaling(scaling: &Scaling) -> Vec<String> {
    let Scaling { exponents, speedups, second_turns, independence, rates } = scaling;
    let mut parts = Vec::new();
    if !exponents.is_empty() {
        parts.push(exponent_table(exponents));
    }
    if !speedups.is_empty() {
        parts.push(speedup_table(speedups));
    }
    if let Some(rates) = rates {
        parts.push(format!(
            "rates that explain the times to encode best: products {} GFLOP/s, attention {} GFLOP/s (greatest error {:.0} %)",
            rate(rates.products_gflop_per_s),
            rate(rates.attention_gflop_per_s),
            rates.greatest_error_percent
        ));
    }
    parts.push(second_turn_table(second_turns));
    let told = |spread: &Independence| {
        format!(
            "of {} tokens: encode times differ by {:.2} x between layouts, first tokens of second turns by {:.2} x",
            human::count(spread.context_tokens),
            spread.encode_spread,
            spread.second_turn_spread
        )
    };
    if !independence.is_empty() {
        parts.push(independence.iter().map(told).collect::<Vec<_>>().join("\n"));
    }
    parts
}

/// The anchor once and behind every block.
pub(super) fn anchor_savings(savings: &[AnchorSaving], repeat: usize) -> String {
    let row = |saving: &AnchorSaving| {
        vec![
            human::count(saving.context_tokens),
            human::count(saving.block_tokens),
            saving.blocks.to_string(),
            times(saving.shared_s, repeat),
            times(saving.recomputed_s, repeat),
            rate(saving.shared_gflop_per_s),
            rate(saving.recomputed_gflop_per_s),
            ratio(saving.measured),
            ratio(saving.counted),
            percent(saving.percent),
            saving.target.map(|target| format!("at least {target}")).unwrap_or_default(),
            saving.holds.map(verdict).unwrap_or_default(),
        ]
    };
    let header = [
        "context",
        "block",
        "blocks",
        "anchor once",
        "behind every block",
        "GFLOP/s, once",
        "every",
        "ratio",
        "counted",
        "measured / counted",
        "target",
        "holds",
    ];
    table::markdown(&header, savings.iter().map(row).collect(), 0)
}

fn exponent_table(exponents: &[Exponent]) -> String {
    let range = |growth: &Growth| {
        format!("{} to {}", human::count(growth.from_tokens), human::count(growth.to_tokens))
    };
    let row = |exponent: &Exponent| {
        let steady = |of: fn(&Growth) -> String| exponent.steady.as_ref().map(of).unwrap_or_default();
        vec![
            exponent.series.clone(),
            range(&exponent.all),
            format!("{:.3}", exponent.all.measured),
            format!("{:.3}", exponent.all.counted),
            exponent.steady.as_ref().map(range).unwrap_or_default(),
            steady(|growth| format!("{:.3}", growth.measured)),
            steady(|growth| format!("{:.3}", growth.counted)),
            exponent.holds.map(verdict).unwrap_or_default(),
        ]
    };
    let header = [
        "encode time against length",
        "contexts",
        "exponent",
        "counted",
        "of 16 blocks and more",
        "exponent",
        "counted",
        "at most 1.03",
    ];
    table::markdown(&header, exponents.iter().map(row).collect(), 1)
}

fn speedup_table(speedups: &[Speedup]) -> String {
    let row = |speedup: &Speedup| {
        vec![
            human::count(speedup.context_tokens),
            human::count(speedup.block_tokens),
            human::count(speedup.anchor_tokens),
            human::seconds(speedup.star_s),
            human::seconds(speedup.exact_s),
            ratio(speedup.measured),
            ratio(speedup.counted),
            percent(speedup.percent),
            verdict(speedup.holds),
        ]
    };
    let header = [
        "context",
        "block",
        "anchor",
        "star",
        "exact",
        "speed-up",
        "counted",
        "measured / counted",
        "at least 90 %",
    ];
    table::markdown(&header, speedups.iter().map(row).collect(), 0)
}

fn second_turn_table(turns: &[SecondTurn]) -> String {
    let row = |turn: &SecondTurn| {
        vec![
            turn.series.clone(),
            human::count(turn.context_tokens),
            human::seconds(turn.step_s),
            human::count(turn.query_tokens),
            human::seconds(turn.product_s),
            human::seconds(turn.first_token_s),
            format!("{:.2}", turn.ratio),
            verdict(turn.holds),
            human::seconds(turn.fresh_first_token_s),
        ]
    };
    let header = [
        "second turn",
        "context",
        "step",
        "tokens",
        "tokens x step",
        "first token",
        "ratio",
        "at most 1.5",
        "new session",
    ];
    table::markdown(&header, turns.iter().map(row).collect(), 1)
}

fn times(times: Times, repeat: usize) -> String {
    match repeat {
        1 => human::seconds(times.best),
        _ => format!("{} ({})", human::seconds(times.best), human::seconds(times.median)),
    }
}

fn rate(gflop_per_s: f64) -> String {
    match gflop_per_s {
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => human::count(rate.round() as usize),
    }
}

fn ratio(ratio: f64) -> String {
    format!("{ratio:.2} x")
}

fn percent(percent: f64) -> String {
    format!("{percent:.0} %")
}

fn verdict(holds: bool) -> String {
    if holds { "yes" } else { "NO" }.to_owned()
}
