//! What a bench tells: the JSON document, and the same as text. Figures come from `measure.rs`.

use serde::Serialize;
use stellate_actors::{Model, ModelSource, NodeOptions};
use stellate_model::config::StoredFloat;
use stellate_runtime::config::{Settings, WeightFormat};

use super::measure::{Measurement, Times};
use super::profile;
use crate::human;
use crate::report::machine::Machine;
use crate::report::plot::Series;
use crate::report::table;

/// Everything that is told: the JSON document.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) model: ModelFacts,
    pub(super) node: NodeFacts,
    pub(super) query_tokens: usize,
    pub(super) max_tokens: usize,
    pub(super) repeat: usize,
    pub(super) seed: u64,
    pub(super) measurements: Vec<Measurement>,
}

#[derive(Serialize)]
pub(super) struct ModelFacts {
    pub(super) name: String,
    pub(super) weights: String,
    pub(super) weight_bytes: usize,
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

#[derive(Serialize)]
pub(super) struct NodeFacts {
    pub(super) hosts: usize,
    pub(super) threads_per_host: Vec<usize>,
    pub(super) query_threads: usize,
    pub(super) kv_format: String,
    pub(super) kv_capacity_bytes: usize,
    pub(super) chunk_tokens: usize,
    pub(super) recompute_anchor: bool,
}

impl ModelFacts {
    pub(super) fn new(name: String, model: &Model, settings: &Settings) -> Self {
        let config = model.decoder.config();
        let weights = match (settings.model.weights, config.dtype) {
            (WeightFormat::Auto, Some(StoredFloat::F32)) => "f32".to_owned(),
            (WeightFormat::Auto, Some(StoredFloat::F16 | StoredFloat::Bf16)) => "bf16".to_owned(),
            (WeightFormat::Auto, None) => "stored".to_owned(),
            (format, _) => format.to_string(),
        };
        Self {
            name,
            weights,
            weight_bytes: model.decoder.weight_bytes(),
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        }
    }
}

impl NodeFacts {
    pub(super) fn new(options: &NodeOptions, settings: &Settings) -> Self {
        Self {
            hosts: options.hosts.len(),
            threads_per_host: options.hosts.iter().map(|host| host.threads).collect(),
            query_threads: options.query.threads,
            kv_format: settings.kv.format.to_string(),
            kv_capacity_bytes: options.capacity_bytes,
            chunk_tokens: options.chunk_tokens,
            recompute_anchor: options.recompute_anchor,
        }
    }
}

impl Report {
    /// Of the plot.
    pub(super) fn title(&self) -> String {
        let Self { model, machine, node, .. } = self;
        let hosts = if node.hosts == 1 { "1 host".to_owned() } else { format!("{} hosts", node.hosts) };
        format!(
            "{}, {} weights, {} KV; {hosts}, {}",
            model.name, model.weights, node.kv_format, machine.backend
        )
    }

    /// The lines of the plot, in the order of measuring.
    pub(super) fn series(&self) -> Vec<Series> {
        let mut lines: Vec<Series> = Vec::new();
        for measured in &self.measurements {
            let point = (measured.context_tokens as f64, measured.encode_s.best);
            match lines.iter_mut().find(|line| line.label == measured.series) {
                Some(line) => line.points.push(point),
                None => lines.push(Series { label: measured.series.clone(), points: vec![point] }),
            }
        }
        lines
    }

    /// For people: where, what and how, then the tables.
    pub(super) fn to_text(&self) -> String {
        let Self { machine, model, node, .. } = self;
        let memory =
            machine.memory_bytes.map_or_else(|| "unknown".to_owned(), |bytes| human::bytes(bytes as usize));
        let threads: Vec<_> = node.threads_per_host.iter().map(usize::to_string).collect();
        let anchor =
            if node.recompute_anchor { "computed behind every block" } else { "computed once per host" };
        let mut text = format!(
            "machine: {}, {} cores, {memory} of memory, {}\n\
             program: stellate {}{}, {}, {} UTC\n\
             model:   {}: {} weights, {}; KV of {} layers × {} heads × {}\n\
             node:    context hosts: {} (threads: {}), query host: {} threads, {} KV, stores of {} each, \
             chunks of {} tokens, anchor {anchor}\n\
             asked:   {} question tokens, {} answer tokens, best of {} (median), seed {}\n\n",
            machine.cpu,
            machine.cores,
            machine.system,
            machine.version,
            if machine.optimised { "" } else { " (DEBUG BUILD: these times mean nothing)" },
            machine.backend,
            machine.date,
            model.name,
            model.weights,
            human::bytes(model.weight_bytes),
            model.layers,
            model.kv_heads,
            model.head_dim,
            node.hosts,
            threads.join(", "),
            node.query_threads,
            node.kv_format,
            human::bytes(node.kv_capacity_bytes),
            node.chunk_tokens,
            self.query_tokens,
            self.max_tokens,
            self.repeat,
            self.seed,
        );
        text += &speed_table(&self.measurements, self.repeat);
        text += "\n\n";
        text += &memory_table(&self.measurements);
        for measured in &self.measurements {
            if let Some(profile) = &measured.profile {
                let what = format!("{} of {} tokens", measured.series, human::count(measured.context_tokens));
                text += &profile::tables(&what, profile);
            }
        }
        if self.measurements.iter().any(|measured| !measured.peak_is_own) {
            text += "\nthe system does not let the peak be reset: it is that of the whole run so far";
        }
        text
    }
}

fn speed_table(measurements: &[Measurement], repeat: usize) -> String {
    let times = |times: Times| match repeat {
        1 => human::seconds(times.best),
        _ => format!("{} ({})", human::seconds(times.best), human::seconds(times.median)),
    };
    let row = |m: &Measurement| {
        vec![
            m.attention.clone(),
            human::count(m.context_tokens),
            human::count(m.block_tokens),
            human::count(m.anchor_tokens),
            times(m.encode_s),
            human::count(m.encode_tokens_per_s.round() as usize),
            times(m.first_token_s),
            times(m.token_s),
            times(m.second_turn_first_token_s),
        ]
    };
    let header = [
        "attention",
        "context",
        "block",
        "anchor",
        "encode",
        "tokens/s",
        "first token",
        "per token",
        "2nd turn, first",
    ];
    table::markdown(&header, measurements.iter().map(row).collect(), 1)
}

fn memory_table(measurements: &[Measurement]) -> String {
    let row = |m: &Measurement| {
        let peak = m.peak_resident_bytes.map(|bytes| bytes as usize);
        let above = peak.map(|peak| human::bytes(peak.saturating_sub(m.weights_and_kv_bytes)));
        vec![
            m.attention.clone(),
            human::count(m.context_tokens),
            human::count(m.block_tokens),
            human::bytes(m.kv_bytes),
            format!("{:.0}", m.kv_bytes_per_token),
            m.kv_bytes_per_token_formula.to_string(),
            human::bytes(m.weights_and_kv_bytes),
            peak.map_or_else(|| "unknown".to_owned(), human::bytes),
            above.unwrap_or_default(),
        ]
    };
    let header = [
        "attention",
        "context",
        "block",
        "KV",
        "bytes/token",
        "formula",
        "weights + KV",
        "peak resident",
        "above",
    ];
    table::markdown(&header, measurements.iter().map(row).collect(), 1)
}

/// What the model is called.
pub(super) fn name_of(source: &ModelSource) -> String {
    match source {
        ModelSource::Demo => "demo".to_owned(),
        ModelSource::Checkpoint(path) => path.display().to_string(),
        ModelSource::Random { shape, .. } => format!("{shape}, random weights"),
    }
}
