//! `stellate bench`: how fast a model encodes contexts and answers over them, and in how much memory, over lengths and
//! block sizes, star and exact. What is measured is planned in `plan.rs`, run in `course.rs` and done in `measure.rs` and
//! `saving.rs`; what follows from it is in `scaling.rs`, and where the time went in `profile.rs`; how it is told in
//! `tell.rs`; here are the arguments and the order of things.

mod cluster;
mod count;
mod course;
mod measure;
mod pace;
mod plan;
mod profile;
mod saving;
mod scaling;
mod tables;
mod tell;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use stellate_actors::{Model, ModelSource, NodeOptions};
use stellate_kernels::KvShape;
use stellate_model::random::RandomModel;
use stellate_runtime::config::{AnchorTokens, AttentionMode, Settings};

use self::cluster::BenchClusterArgs;
use self::count::Anchors;
use self::course::{Course, Found, Lines, Subject};
use self::measure::{Bench, Tokens};
use self::pace::{Limit, parse_duration};
use self::plan::{BlockLength, Case, Combinations, Questions, read_ids, saving_cases, weight_bytes};
use self::saving::Pair;
use self::tell::{Head, Line, ModelFacts, NodeFacts, Report, name_of};
use crate::app::App;
use crate::exit::UsageError;
use crate::report::machine::{self, Machine};
use crate::report::plot;
use crate::settings::{ModelArgs, NodeArgs, Overrides, words};
use crate::{open, output};

const AFTER_HELP: &str = "\
Contexts are random tokens, new ones for every repeat, or those of --ids. For each length, block, anchor and attention the tables have the \
time to encode the context, from a question to the first token of its answer, between two tokens, and from a second \
question of the same session to its first token; the operations of encoding, counted, and the rate they were done at; \
the bytes of keys and values; and the highest resident memory beside that of weights, keys and values. Nothing is \
guessed ahead. Times are the best of --repeat, with the median in parentheses.

From all of them follow the exponent of encode time against length, the speed-up of star over exact beside the one \
that counting operations predicts, and the cost of a second turn beside its tokens times that of a step.

Estimates of time are for encoding and come from the counted operations and what was measured so far. What was measured \
is told at the end, also after Ctrl-C or an error.";

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// Tokens of the contexts
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "2048,4096,8192", value_parser = positive)]
    tokens: Vec<usize>,
    /// Tokens of the blocks: numbers, or "quarter" for a quarter of the context
    #[arg(long, value_name = "N|quarter,…", value_delimiter = ',', default_value = "quarter")]
    block_tokens: Vec<BlockLength>,
    /// Tokens of the anchors (star): 0 for none, up to the block; "block" for a whole block. Each meets every block that is
    /// no shorter
    #[arg(long, value_name = "N|block,…", value_delimiter = ',', default_value = "block")]
    anchor_tokens: Vec<AnchorTokens>,
    /// How contexts are encoded
    #[arg(long, value_delimiter = ',', default_value = "star,exact", value_parser = words(AttentionMode::ALL, AttentionMode::as_str))]
    attention: Vec<AttentionMode>,
    /// Tokens of the exact contexts, if not those of --tokens
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = positive)]
    exact_tokens: Option<Vec<usize>>,
    /// Tokens of the blocks of exact contexts, if not those of --block-tokens: their time hardly depends on it
    #[arg(long, value_name = "N|quarter,…", value_delimiter = ',')]
    exact_block_tokens: Option<Vec<BlockLength>>,
    /// Measure the saving of the shared anchor instead: contexts of 8 blocks of each length, the anchor as long as a block,
    /// computed once and behind every block in turns
    #[arg(long, conflicts_with_all = ["tokens", "anchor_tokens", "exact_tokens", "exact_block_tokens", "attention", "recompute_anchor", "profile", "svg"])]
    anchor_saving: bool,
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
    /// Print the cases with their operations and about how long they take on this machine, and measure nothing
    #[arg(long)]
    plan: bool,
    /// Time for all of it, as in 90s, 40min or 2h: what would not end within it is left out
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    time_limit: Option<Duration>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Write a line of JSON to a file as soon as a case ends, and at the end one of what follows from all
    #[arg(long, value_name = "FILE")]
    json_lines: Option<PathBuf>,
    /// Tell where the time of the fastest repeat goes, by operation and by layer
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

/// What else can be measured.
#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Measure what the network between nodes costs, on this machine
    Cluster(BenchClusterArgs),
}

impl BenchArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        if let Some(What::Cluster(args)) = &self.what {
            return args.override_settings(overrides);
        }
        self.model.override_settings(overrides);
        self.node.override_settings(overrides);
    }

    fn questions(&self) -> Questions {
        Questions { query_tokens: self.query_tokens, max_tokens: self.max_tokens }
    }

    fn cases(&self) -> Result<Vec<Case>, UsageError> {
        if self.anchor_saving {
            return saving_cases(&self.block_tokens);
        }
        let combinations = Combinations {
            modes: &self.attention,
            tokens: &self.tokens,
            blocks: &self.block_tokens,
            anchors: &self.anchor_tokens,
            exact_tokens: self.exact_tokens.as_deref(),
            exact_blocks: self.exact_block_tokens.as_deref(),
        };
        combinations.cases()
    }
}

/// Measures and tells.
///
/// # Errors
/// `UsageError` for what does not fit, before anything is computed; what is wrong with the model; `Interrupted`.
pub(crate) async fn run(args: BenchArgs, app: &App) -> anyhow::Result<ExitCode> {
    if let Some(What::Cluster(args)) = args.what {
        return cluster::run(args, app).await;
    }
    let settings = &app.settings;
    let wrong = |flag: &str, path: &PathBuf, error| {
        UsageError(format!("cannot write {flag} {}: {error}", path.display()))
    };
    if let Some(path) = &args.svg {
        plot::check_writable(path).map_err(|error| wrong("--svg", path, error))?;
    }
    let cases = args.cases()?;
    let ids = args.ids.as_deref().map(|path| read_ids(path, &cases, args.questions())).transpose()?;
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
    let mut lines = Lines::create(args.json_lines.as_deref())
        .map_err(|error| wrong("--json-lines", args.json_lines.as_ref().unwrap_or(&PathBuf::new()), error))?;
    let model = open::load_model(app, source).await?;
    let options = open::node_options(settings);
    let shape = model.decoder.kv_shape(options.kv_format);
    check(&cases, settings, args.questions(), shape, model.decoder.weight_bytes(), machine::memory_bytes())?;
    if let Some(ids) = &ids {
        model.decoder.check_ids(ids).map_err(|error| UsageError(format!("--ids: {error}")))?;
    }
    let tokens = Tokens::new(model.decoder.config(), ids, args.seed);
    let head = Head {
        machine: Machine::read(options.query.threads)?,
        model: ModelFacts::new(name, &model, settings),
        node: NodeFacts::new(&options, settings),
        query_tokens: args.query_tokens,
        max_tokens: args.max_tokens,
        guess_tokens: measure::GUESS_TOKENS,
        repeat: args.repeat,
        seed: args.seed,
    };
    lines.write(&Line::Run(&head))?;
    let mut found = Found::default();
    let course =
        Course::new(model.decoder.config(), &cases, Limit::start(args.time_limit), &mut lines, &mut found);
    let ended = measure(&args, tokens, app, &model, &head, course).await;
    if args.plan {
        return ended.map(|()| ExitCode::SUCCESS);
    }
    // What was measured must not be lost for the sake of what was not.
    let report = Report::new(head, found, ended.as_ref().err());
    let told = tell(&args, &report, &mut lines);
    ended?;
    told.map(|()| ExitCode::SUCCESS)
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

/// Opens what the cases run on, and runs them or tells their plan.
async fn measure(
    args: &BenchArgs,
    tokens: Tokens,
    app: &App,
    model: &Model,
    head: &Head,
    mut course: Course<'_>,
) -> anyhow::Result<()> {
    let settings = &app.settings;
    if args.anchor_saving {
        let pair = Pair::open(settings, model).await?;
        let mut subject = Subject::Saving { pair: &pair, app, tokens, repeat: args.repeat };
        let ended = course.through(&mut subject, args.plan.then_some(head)).await;
        pair.close().await;
        return ended;
    }
    let profile = args.profile.then(Arc::default);
    let options = NodeOptions { profile, ..open::node_options(settings) };
    let node = open::open_node_with(options, model).await?;
    let anchors = match settings.attention.recompute_anchor {
        true => Anchors::BehindEveryBlock,
        false => Anchors::OncePerHost(node.stores().count()),
    };
    let (questions, repeat) = (args.questions(), args.repeat);
    let mut subject = Subject::Contexts(Bench { app, node: &node, questions, repeat, anchors, tokens });
    let ended = course.through(&mut subject, args.plan.then_some(head)).await;
    node.close().await;
    ended
}

fn tell(args: &BenchArgs, report: &Report, lines: &mut Lines) -> anyhow::Result<()> {
    let Report { measurements, anchor_savings, scaling, error, .. } = report;
    lines.write(&Line::Scaling(scaling))?;
    if let Some(error) = error {
        lines.write(&Line::Error(error))?;
        if measurements.is_empty() && anchor_savings.is_empty() {
            return Ok(());
        }
    }
    // The report first: what was measured must not be lost for the sake of a picture.
    let told = match args.json {
        true => output::json(report),
        false => output::line(&report.to_text()).map_err(Into::into),
    };
    if let Some(path) = args.svg.as_ref().filter(|_| !measurements.is_empty()) {
        plot::seconds_against_tokens(path, &report.title(), &report.series())?;
    }
    told
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "expected a number above 0".to_owned())
}

fn at_least_two(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 1).ok_or_else(|| "expected a number of at least 2".to_owned())
}
