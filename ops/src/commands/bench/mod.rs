//! `stellate bench`: how fast a model encodes contexts and answers over them, and in how much memory, over lengths and
//! block sizes, star and exact. What is measured is planned in `plan.rs` and done in `measure.rs`; how it is told is in
//! `tell.rs`; here are the arguments and the order of things.

mod measure;
mod plan;
mod profile;
mod tell;

use std::io::{Write as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use stellate_actors::{ModelSource, Node, NodeOptions};
use stellate_kernels::KvShape;
use stellate_model::random::RandomModel;
use stellate_runtime::config::{AnchorTokens, AttentionMode, Settings};

use self::measure::{Bench, Measurement, Tokens};
use self::plan::{BlockLength, Case, Questions, weight_bytes};
use self::tell::{ModelFacts, NodeFacts, Report, name_of};
use crate::app::App;
use crate::exit::UsageError;
use crate::report::machine::{self, Machine};
use crate::report::plot;
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
    /// Take tokens from a JSON list of ids instead of random ones: the context's from its head, then the questions'
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    ids: Option<PathBuf>,
    /// Seed of the random tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Tell where the time goes, by operation and by layer, of all repeats together
    #[arg(long)]
    profile: bool,
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

/// Measures and tells.
///
/// # Errors
/// `UsageError` for what does not fit, before anything is computed; what is wrong with the model; `Interrupted`.
pub(crate) async fn run(args: BenchArgs, app: &App) -> anyhow::Result<ExitCode> {
    let settings = &app.settings;
    if let Some(path) = &args.svg {
        let wrong = |error| UsageError(format!("cannot write --svg {}: {error}", path.display()));
        plot::check_writable(path).map_err(wrong)?;
    }
    let cases = plan::cases(&args.tokens, &args.block_tokens, &args.attention, args.anchor_tokens)?;
    let ids = args.ids.as_deref().map(|path| plan::read_ids(path, &cases, args.questions())).transpose()?;
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
    if let Some(ids) = &ids {
        model.decoder.check_ids(ids).map_err(|error| UsageError(format!("--ids: {error}")))?;
    }
    let profile = args.profile.then(Arc::default);
    let node = open::open_node_with(NodeOptions { profile, ..options.clone() }, &model).await?;
    let measured = measure_all(&args, ids, app, &node, &cases).await;
    node.close().await;
    let report = Report {
        machine: Machine::read(options.query.threads)?,
        model: ModelFacts::new(name, &model, settings),
        node: NodeFacts::new(&options, settings),
        query_tokens: args.query_tokens,
        max_tokens: args.max_tokens,
        repeat: args.repeat,
        seed: args.seed,
        measurements: measured?,
    };
    // The report first: what was measured must not be lost for the sake of a picture.
    let told = match args.json {
        true => output::json(&report),
        false => output::line(&report.to_text()).map_err(Into::into),
    };
    if let Some(path) = &args.svg {
        plot::seconds_against_tokens(path, &report.title(), &report.series())?;
    }
    told?;
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
    ids: Option<Vec<u32>>,
    app: &App,
    node: &Node,
    cases: &[Case],
) -> anyhow::Result<Vec<Measurement>> {
    let mut bench = Bench::new(app, node, args.questions(), args.repeat, Tokens::new(ids, args.seed));
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

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "expected a number above 0".to_owned())
}

fn at_least_two(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 1).ok_or_else(|| "expected a number of at least 2".to_owned())
}
