//! What a bench tells: the JSON document, its lines, and the same as text. Figures come from `measure.rs`, `saving.rs` and
//! `scaling.rs`; their tables are in `tables.rs`.

use serde::Serialize;
use stellate_actors::{Model, ModelSource, NodeOptions};
use stellate_model::config::StoredFloat;
use stellate_runtime::config::{Settings, WeightFormat};

use super::course::Found;
use super::measure::Measurement;
use super::profile;
use super::saving::AnchorSaving;
use super::scaling::Scaling;
use super::tables;
use crate::human;
use crate::report::machine::Machine;
use crate::report::plot::Series;

/// Everything that is told: the JSON document.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) head: Head,
    pub(super) measurements: Vec<Measurement>,
    pub(super) anchor_savings: Vec<AnchorSaving>,
    /// Cases that were not measured, and why.
    pub(super) left_out: Vec<LeftOut>,
    pub(super) scaling: Scaling,
    /// What ended the run before its end.
    pub(super) error: Option<String>,
}

/// What is known before anything is measured.
#[derive(Clone, Serialize)]
pub(super) struct Head {
    pub(super) machine: Machine,
    pub(super) model: ModelFacts,
    pub(super) node: NodeFacts,
    pub(super) query_tokens: usize,
    pub(super) max_tokens: usize,
    /// Tokens guessed ahead in a step: none, for guesses would measure what random tokens happen to repeat.
    pub(super) guess_tokens: usize,
    pub(super) repeat: usize,
    pub(super) seed: u64,
}

/// A case that was not measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LeftOut {
    pub(super) series: String,
    pub(super) context_tokens: usize,
    pub(super) reason: String,
}

/// A line of `--json-lines`.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line<'a> {
    Run(&'a Head),
    Measurement(&'a Measurement),
    AnchorSaving(&'a AnchorSaving),
    LeftOut(&'a LeftOut),
    Scaling(&'a Scaling),
    Error(&'a str),
}

#[derive(Clone, Serialize)]
pub(super) struct ModelFacts {
    pub(super) name: String,
    pub(super) weights: String,
    pub(super) weight_bytes: usize,
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

#[derive(Clone, Serialize)]
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
    /// Of what was found until `error` ended it.
    pub(super) fn new(head: Head, found: Found, error: Option<&anyhow::Error>) -> Self {
        let Found { measurements, anchor_savings, left_out } = found;
        let scaling = Scaling::of(&measurements);
        Self {
            head,
            measurements,
            anchor_savings,
            left_out,
            scaling,
            error: error.map(|error| format!("{error:#}")),
        }
    }

    /// Of the plot.
    pub(super) fn title(&self) -> String {
        let Head { model, machine, node, .. } = &self.head;
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
        let mut parts = vec![self.head.to_text()];
        if !self.measurements.is_empty() {
            parts.push(tables::speed(&self.measurements, self.head.repeat));
            parts.push(tables::memory(&self.measurements));
            parts.extend(tables::scaling(&self.scaling));
        }
        for measured in &self.measurements {
            if let Some(profile) = &measured.profile {
                let tokens = human::count(measured.context_tokens);
                parts.extend(profile::tables(&format!("{} of {tokens} tokens", measured.series), profile));
            }
        }
        if !self.anchor_savings.is_empty() {
            parts.push(tables::anchor_savings(&self.anchor_savings, self.head.repeat));
        }
        for LeftOut { series, context_tokens, reason } in &self.left_out {
            parts.push(format!(
                "not measured: {series} of {} tokens: {reason}",
                human::count(*context_tokens)
            ));
        }
        if self.measurements.iter().any(|measured| !measured.memory.peak_is_own) {
            parts.push(
                "the system does not let the peak be reset: it is that of the whole run so far".to_owned(),
            );
        }
        parts.join("\n\n")
    }
}

impl Head {
    /// Where, what and how.
    pub(super) fn to_text(&self) -> String {
        let Self { machine, model, node, .. } = self;
        let memory =
            machine.memory_bytes.map_or_else(|| "unknown".to_owned(), |bytes| human::bytes(bytes as usize));
        let threads: Vec<_> = node.threads_per_host.iter().map(usize::to_string).collect();
        let anchor =
            if node.recompute_anchor { "computed behind every block" } else { "computed once per host" };
        format!(
            "machine: {}, {} cores, {memory} of memory, {}\n\
             program: stellate {}{}, {}, {} UTC\n\
             model:   {}: {} weights, {}; KV of {} layers × {} heads × {}\n\
             node:    context hosts: {} (threads: {}), query host: {} threads, {} KV, stores of {} each, \
             chunks of {} tokens, anchor {anchor}\n\
             asked:   {} question tokens, {} answer tokens without guesses, best of {} (median), seed {}",
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
        )
    }
}

/// What the model is called.
pub(super) fn name_of(source: &ModelSource) -> String {
    match source {
        ModelSource::Demo => "demo".to_owned(),
        ModelSource::Checkpoint(path) => path.display().to_string(),
        ModelSource::Random { shape, .. } => format!("{shape}, random weights"),
    }
}
