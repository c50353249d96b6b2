//! `--profile`: where the time of a repeat went, by operation and by layer, and how much of the time to encode was spent in
//! products and attention. What is measured is decided in `measure.rs`, and counted by the hosts themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use stellate_actors::Node;
use stellate_actors::profile::{Record, Total, Totals};
use stellate_model::observe::{Operation, Phase};

use crate::human;
use crate::report::table;

/// What of the time to encode products and attention are to take at least.
const LEAST_PERCENT: f64 = 85.0;

/// Where the time of one repeat went.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CaseProfile {
    /// Encoding, on all hosts.
    pub(super) encode: EncodeProfile,
    /// Questions and answers on the query host.
    pub(super) answer: PhaseProfile,
    /// Questions and answers on the context hosts, most of it while the query host waits for them.
    pub(super) serve: PhaseProfile,
}

/// Where the time of encoding went. Under `exact` the query host waits while context hosts attend for it: what they do
/// stands among the operations, and the wait beside them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EncodeProfile {
    #[serde(flatten)]
    pub(super) phase: PhaseProfile,
    /// For how long the query host waited for context hosts, and folded what came.
    pub(super) waiting_seconds: f64,
    /// From the text to the context, by the clock: also what is no operation of any host.
    pub(super) wall_seconds: f64,
    /// Of that, for how long at least one host was in products with weights or in attention.
    pub(super) products_and_attention_wall_percent: f64,
    /// Whether that is at least 85.
    pub(super) holds: bool,
}

/// Where the time of one phase went: sums of the hosts' own time.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PhaseProfile {
    pub(super) seconds: f64,
    /// Of the time, what went into products with weights and attention.
    pub(super) products_and_attention_percent: f64,
    /// By operation, the longest first.
    pub(super) operations: Vec<Row>,
    /// By layer, those outside of layers first.
    pub(super) layers: Vec<Row>,
}

/// A part of a phase.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) calls: u64,
    pub(super) seconds: f64,
    pub(super) percent: f64,
    /// Of products and attention.
    pub(super) gflops_per_s: Option<f64>,
    /// Of weights, keys and values that were read.
    pub(super) gbytes_per_s: Option<f64>,
}

/// Forgets what the node did so far.
pub(super) fn forget(node: &Node) {
    if let Some(profile) = node.profile() {
        drop(profile.take());
    }
}

/// What the node did since the last call, a context that took `encode` among it; `None` if it does not count.
pub(super) fn take(node: &Node, encode: Duration) -> Option<CaseProfile> {
    let record = node.profile()?.take();
    let of = |phase| PhaseProfile::new(&record.totals, phase);
    let encode = EncodeProfile::new(&record, encode);
    Some(CaseProfile { encode, answer: of(Phase::Answer), serve: of(Phase::Serve) })
}

impl EncodeProfile {
    fn new(record: &Record, wall: Duration) -> Self {
        let mut totals = record.totals.clone();
        let mut waiting = Duration::ZERO;
        // Who is waited for counts the same time.
        totals.retain(|&(phase, _, operation), total| {
            let is_wait = (phase, operation) == (Phase::Encode, Operation::Wait);
            waiting += if is_wait { total.time } else { Duration::ZERO };
            !is_wait
        });
        let covered = record.covered.get(&Phase::Encode).copied().unwrap_or_default();
        let of_wall = percent(covered, wall);
        Self {
            phase: PhaseProfile::new(&totals, Phase::Encode),
            waiting_seconds: waiting.as_secs_f64(),
            wall_seconds: wall.as_secs_f64(),
            products_and_attention_wall_percent: of_wall,
            holds: of_wall >= LEAST_PERCENT,
        }
    }

    /// In words, for the head of its tables.
    fn told(&self) -> String {
        let waiting = match self.waiting_seconds > 0.0 {
            true => format!(" (and {} of waiting for each other)", human::seconds(self.waiting_seconds)),
            false => String::new(),
        };
        format!(
            "{}{waiting}; {} by the clock, {:.1} % of it with a host in products or attention (at least {LEAST_PERCENT} %: {})",
            self.phase.told(),
            human::seconds(self.wall_seconds),
            self.products_and_attention_wall_percent,
            if self.holds { "yes" } else { "NO" },
        )
    }
}

impl PhaseProfile {
    fn new(totals: &Totals, phase: Phase) -> Self {
        let of_phase = || totals.iter().filter(move |((of, ..), _)| *of == phase);
        let whole: Duration = of_phase().map(|(_, total)| total.time).sum();
        let counted = of_phase().filter(|((.., operation), _)| operation.is_product_or_attention());
        let counted: Duration = counted.map(|(_, total)| total.time).sum();
        let (mut by_operation, mut by_layer) = (BTreeMap::<_, Total>::new(), BTreeMap::<_, Total>::new());
        for (&(_, layer, operation), total) in of_phase() {
            add(by_operation.entry(operation).or_default(), total);
            add(by_layer.entry(layer).or_default(), total);
        }
        let row = |name: String, total: &Total| Row::new(name, total, whole);
        let mut operations: Vec<Row> =
            by_operation.iter().map(|(operation, total)| row(operation.as_str().to_owned(), total)).collect();
        operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let name = |layer: &Option<usize>| layer.map_or("none".to_owned(), |layer| layer.to_string());
        Self {
            seconds: whole.as_secs_f64(),
            products_and_attention_percent: percent(counted, whole),
            operations,
            layers: by_layer.iter().map(|(layer, total)| row(name(layer), total)).collect(),
        }
    }

    /// In words, for the head of its tables.
    fn told(&self) -> String {
        format!(
            "{} of the hosts' time, {:.1} % of it in products and attention",
            human::seconds(self.seconds),
            self.products_and_attention_percent,
        )
    }
}

impl Row {
    fn new(name: String, total: &Total, whole: Duration) -> Self {
        let seconds = total.time.as_secs_f64();
        let rate = |work: u64| (work > 0 && seconds > 0.0).then(|| work as f64 / seconds / 1e9);
        Self {
            name,
            calls: total.calls,
            seconds,
            percent: percent(total.time, whole),
            gflops_per_s: rate(total.work.flops),
            gbytes_per_s: rate(total.work.bytes),
        }
    }
}

fn add(sum: &mut Total, total: &Total) {
    sum.time += total.time;
    sum.calls += total.calls;
    sum.work.flops += total.work.flops;
    sum.work.bytes += total.work.bytes;
}

fn percent(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { 100.0 * part.as_secs_f64() / whole.as_secs_f64() }
}

/// The tables of one case, called `what`.
pub(super) fn tables(what: &str, profile: &CaseProfile) -> Vec<String> {
    let CaseProfile { encode, answer, serve } = profile;
    let phases = [
        ("encoding", &encode.phase, encode.told()),
        ("questions and answers, on the query host", answer, answer.told()),
        ("questions and answers, on the context hosts meanwhile", serve, serve.told()),
    ];
    let told = |(name, phase, told): (&str, &PhaseProfile, String)| {
        format!(
            "{what}: {name}: {told}\n{}\n\n{}",
            table_of("operation", &phase.operations),
            table_of("layer", &phase.layers),
        )
    };
    phases.into_iter().filter(|(_, phase, _)| phase.seconds > 0.0).map(told).collect()
}

fn table_of(first: &str, rows: &[Row]) -> String {
    let figure = |figure: Option<f64>| figure.map_or_else(String::new, |figure| format!("{figure:.1}"));
    let row = |row: &Row| {
        vec![
            row.name.clone(),
            human::count(row.calls as usize),
            human::seconds(row.seconds),
            format!("{:.1}", row.percent),
            figure(row.gflops_per_s),
            figure(row.gbytes_per_s),
        ]
    };
    let header = [first, "calls", "time", "%", "GFLOP/s", "GB/s"];
    table::markdown(&header, rows.iter().map(row).collect(), 1)
}

#[cfg(test)]
mod tests {
    use stellate_model::observe::{Operation, Work};

    use super::*;

    #[test]
    fn time_is_told_by_operation_and_by_layer() {
        let total = |millis, flops| Total {
            time: Duration::from_millis(millis),
            calls: 1,
            work: Work { flops, bytes: 0 },
        };
        let totals = Totals::from([
            ((Phase::Encode, None, Operation::Embed), total(10, 0)),
            ((Phase::Encode, Some(0), Operation::Down), total(50, 1_000_000_000)),
            ((Phase::Encode, Some(1), Operation::Down), total(40, 1_000_000_000)),
            ((Phase::Encode, Some(1), Operation::Wait), total(20, 0)),
            ((Phase::Answer, Some(1), Operation::Wait), total(7, 0)),
        ]);
        let covered = BTreeMap::from([(Phase::Encode, Duration::from_millis(85))]);
        let record = Record { totals, covered };
        let encode = EncodeProfile::new(&record, Duration::from_millis(100));
        assert_eq!((encode.wall_seconds, encode.waiting_seconds, encode.holds), (0.1, 0.02, true));
        assert!((encode.products_and_attention_wall_percent - 85.0).abs() < 1e-9);
        assert!(!EncodeProfile::new(&record, Duration::from_millis(101)).holds);
        let profile = &encode.phase;
        assert!((profile.products_and_attention_percent - 90.0).abs() < 1e-9);
        let down = &profile.operations[0];
        assert_eq!((down.name.as_str(), down.calls), ("product: down", 2));
        assert!((down.gflops_per_s.unwrap() - 2.0 / 0.09).abs() < 1e-9);
        let layers: Vec<&str> = profile.layers.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(layers, ["none", "0", "1"]);
        let answer = PhaseProfile::new(&record.totals, Phase::Answer);
        let serve = PhaseProfile::new(&record.totals, Phase::Serve);
        let text = tables("star", &CaseProfile { encode, answer, serve }).join("\n\n");
        assert!(text.contains("waiting for hosts") && !text.contains("meanwhile"), "{text}");
        assert!(text.contains("100 ms by the clock, 85.0 % of it"), "{text}");
    }
}
