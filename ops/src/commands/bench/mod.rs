//! `stellate bench`: how fast a model encodes contexts and answers over them, and in how much memory, over lengths and
//! block sizes, star and exact. What is measured is planned in `plan.rs` and done in `measure.rs`; here are the arguments and
//! what is told.

mod measure;
mod plan;

use std::io::{Write as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use stellate_actors::{Model, ModelSource, Node};
use stellate_kernels::KvShape;
use stellate_model::config::StoredFloat;
use stellate_model::random::RandomModel;
use stellate_runtime::config::{AnchorTokens, AttentionMode, Settings, WeightFormat};

use self::measure::{Bench, Measurement, Times};
use self::plan::{BlockLength, Case, Questions, weight_bytes};
use crate::app::App;
use crate::report::machine::{self, Machine};
use crate::report::plot::{self, Series};
use crate::report::table;
use crate::settings::{ModelArgs, NodeArgs, Overrides, words};
use crate::{human, open, output};

const AFTER_HELP: &str = "\
Contexts are random tokens, new ones for every repeat. For each length, block and attention the table has the time to \
encode the context, from a question to the first token of its answer, between two tokens, and from a second question \
of the same session to its first token; the bytes of keys and values; and the highest resident memory beside that of \
weights, keys and values. Times are the best of --repeat, with the median in parentheses.";

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    /// Tokens of the contexts
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "2048,4096,8192", value_parser = positive)]
    tokens: Vec<usize>,
    /// Tokens of the blocks: numbers, or "quarter" for a quarter of the context
    #[arg(long, value_name = "N|quarter,…", value_delimiter = ',', default_value = "quarter")]
    block_tokens: Vec<BlockLength>,
    /// Tokens of the anchor (star): 0 for none, up to the block; "block" for a whole block
    #[arg(long, value_name = "N|block", default_value = "block")]
    anchor_tokens: AnchorTokens,
    /// How contexts are encoded
    #[arg(long, value_delimiter = ',', default_value = "star,exact", value_parser = words(AttentionMode::ALL, AttentionMode::as_str))]
    attention: Vec<AttentionMode>,
    /// Tokens of each question
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive)]
    query_tokens: usize,
    /// Tokens of each answer, at least 2
    #[arg(long, value_name = "N", default_value = "32", value_parser = at_least_two)]
    max_tokens: usize,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    repeat: usize,
    /// Seed of the random tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Draw time to encode against length of context
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    node: NodeArgs,
}

impl BenchArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.model.override_settings(overrides);
        self.node.override_settings(overrides);
    }

    fn questions(&self) -> Questions {
        Questions { query_tokens: self.query_tokens, max_tokens: self.max_tokens }
    }
}

/// Everything that is told: the JSON document.
#[derive(Serialize)]
struct Report {
    machine: Machine,
    model: ModelFacts,
    node: NodeFacts,
    query_tokens: usize,
    max_tokens: usize,
    repeat: usize,
    seed: u64,
    measurements: Vec<Measurement>,
}

#[derive(Serialize)]
struct ModelFacts {
    name: String,
    weights: String,
    weight_bytes: usize,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

#[derive(Serialize)]
struct NodeFacts {
    hosts: usize,
    threads_per_host: Vec<usize>,
    query_threads: usize,
    kv_format: String,
    kv_capacity_bytes: usize,
    chunk_tokens: usize,
    recompute_anchor: bool,
}

/// Measures and tells.
///
/// # Errors
/// `UsageError` for what does not fit, before anything is computed; what is wrong with the model; `Interrupted`.
pub(crate) async fn run(args: BenchArgs, app: &App) -> anyhow::Result<ExitCode> {
    let settings = &app.settings;
    let cases = plan::cases(&args.tokens, &args.block_tokens, &args.attention, args.anchor_tokens)?;
    let source = open::model_source(&args.model, settings);
    if let ModelSource::Random { shape, .. } = &source {
        // Made in memory, and large: whether it fits is known before.
        let config = RandomModel::named(shape)?;
        let format = open::node_options(settings).kv_format;
        let (layers, kv_heads, head_dim) = (config.layers, config.kv_heads, config.head_dim);
        let shape = KvShape { layers, kv_heads, head_dim, format };
        let weights = weight_bytes(&config, open::model_options(settings).weights);
        check(&cases, settings, args.questions(), shape, weights, machine::available_bytes())?;
    }
    let name = name_of(&source);
    let model = open::load_model(app, source).await?;
    let options = open::node_options(settings);
    let shape = model.decoder.kv_shape(options.kv_format);
    check(&cases, settings, args.questions(), shape, model.decoder.weight_bytes(), machine::memory_bytes())?;
    let node = open::open_node(settings, &model).await?;
    let measured = measure_all(&args, app, &node, &cases).await;
    node.close().await;
    let report = Report {
        machine: Machine::read(options.query.threads)?,
        model: model_facts(name, &model, settings),
        node: NodeFacts {
            hosts: options.hosts.len(),
            threads_per_host: options.hosts.iter().map(|host| host.threads).collect(),
            query_threads: options.query.threads,
            kv_format: settings.kv.format.to_string(),
            kv_capacity_bytes: options.capacity_bytes,
            chunk_tokens: options.chunk_tokens,
            recompute_anchor: options.recompute_anchor,
        },
        query_tokens: args.query_tokens,
        max_tokens: args.max_tokens,
        repeat: args.repeat,
        seed: args.seed,
        measurements: measured?,
    };
    if let Some(path) = &args.svg {
        plot::seconds_against_tokens(path, &report.title(), &report.series())?;
    }
    if args.json {
        output::json(&report)?
    } else {
        output::line(&report.to_text())?
    }
    Ok(ExitCode::SUCCESS)
}

fn check(
    cases: &[Case],
    settings: &Settings,
    questions: Questions,
    shape: KvShape,
    weight_bytes: usize,
    memory_bytes: Option<u64>,
) -> anyhow::Result<()> {
    let node = open::node_options(settings);
    for case in cases {
        case.check(shape, &node, questions, weight_bytes, memory_bytes)?;
    }
    Ok(())
}

async fn measure_all(
    args: &BenchArgs,
    app: &App,
    node: &Node,
    cases: &[Case],
) -> anyhow::Result<Vec<Measurement>> {
    let mut bench = Bench::new(app, node, args.questions(), args.repeat, args.seed);
    let mut measurements = Vec::new();
    if let Some(case) = cases.first() {
        bench.warm_up(case).await?;
    }
    for (index, case) in cases.iter().enumerate() {
        let measured = bench.measure(case).await?;
        let what = format!("{} of {} tokens", measured.series, human::count(case.context_tokens));
        let took = human::seconds(measured.encode_s.best);
        // A standard error that is closed leaves nobody to tell.
        let _ = writeln!(stderr(), "{}/{}: {what} encoded in {took}", index + 1, cases.len());
        measurements.push(measured);
    }
    Ok(measurements)
}

fn name_of(source: &ModelSource) -> String {
    match source {
        ModelSource::Demo => "demo".to_owned(),
        ModelSource::Checkpoint(path) => path.display().to_string(),
        ModelSource::Random { shape, .. } => format!("{shape}, random weights"),
    }
}

fn model_facts(name: String, model: &Model, settings: &Settings) -> ModelFacts {
    let config = model.decoder.config();
    let weights = match (settings.model.weights, config.dtype) {
        (WeightFormat::Auto, Some(StoredFloat::F32)) => "f32".to_owned(),
        (WeightFormat::Auto, Some(StoredFloat::F16 | StoredFloat::Bf16)) => "bf16".to_owned(),
        (WeightFormat::Auto, None) => "stored".to_owned(),
        (format, _) => format.to_string(),
    };
    ModelFacts {
        name,
        weights,
        weight_bytes: model.decoder.weight_bytes(),
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
    }
}

impl Report {
    fn title(&self) -> String {
        let Self { model, machine, node, .. } = self;
        let hosts = if node.hosts == 1 { "1 host".to_owned() } else { format!("{} hosts", node.hosts) };
        format!(
            "{}, {} weights, {} KV; {hosts}, {}",
            model.name, model.weights, node.kv_format, machine.backend
        )
    }

    /// The lines of the plot, in the order of measuring.
    fn series(&self) -> Vec<Series> {
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

    fn to_text(&self) -> String {
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

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "expected a number above 0".to_owned())
}

fn at_least_two(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 1).ok_or_else(|| "expected a number of at least 2".to_owned())
}
