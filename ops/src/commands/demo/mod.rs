//! `stellate demo`: the small model inside the program finds facts hidden in a long document, under star and exact
//! attention, over several turns. The document is made in the library's `document`, a mode is walked through in `walk.rs`, and
//! `tell.rs` puts it into words; with `--nodes` it is a cluster of processes that is asked (`cluster.rs`).

mod cluster;
mod tell;
mod tell_cluster;
mod walk;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use stellate_actors::{Model, ModelSource};
use stellate_ops::document::{Document, MAX_FACTS};
use stellate_runtime::config::{AnchorTokens, AttentionMode};

use self::walk::ModeReport;
use crate::app::App;
use crate::exit;
use crate::settings::{NodeArgs, Overrides};
use crate::{open, output};

/// Enough to show blocks that lie on several hosts.
const DEFAULT_HOSTS: usize = 4;

/// Keys and values of a node of a cluster (`--nodes`), for each token of the document: any one of them holds it four times, with star
/// and with exact attention.
const NODE_BYTES_PER_TOKEN: usize = 8 << 10;
/// At least.
const MIN_NODE_BYTES: usize = 16 << 20;

const AFTER_HELP: &str = "\
The document, the blocks and the number of hosts are the demo's own unless flags say otherwise; everything else is as \
in the settings. The model has 2 million parameters and knows nothing but this task: it errs now and then, and the \
exit code is 4 when it does.";

/// Arguments of `demo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DemoArgs {
    /// Tokens of the document
    #[arg(long, value_name = "N", default_value_t = 6144)]
    tokens: usize,
    /// Facts hidden in the document; each is asked for once
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = facts)]
    facts: usize,
    /// Seed of the document
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How the document is encoded
    #[arg(long, value_enum, default_value_t = Modes::Both)]
    attention: Modes,
    /// Tokens in a block
    #[arg(long, value_name = "N", default_value_t = 1024)]
    block_tokens: usize,
    /// Tokens of the anchor (star): 0 for none, up to the block; "block" for a whole block
    #[arg(long, value_name = "N|block", default_value = "block")]
    anchor_tokens: AnchorTokens,
    /// Ask a cluster of N processes on this machine instead, while a node joins, one is drained and one is killed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=16))]
    nodes: Option<u32>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: NodeArgs,
}

/// Which attention is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Modes {
    /// Each block sees the anchor and itself
    Star,
    /// Each block sees all earlier ones
    Exact,
    /// One beside the other
    Both,
}

/// All that the demo found out.
#[derive(Debug, Serialize)]
struct DemoReport {
    model: ModelReport,
    document: DocumentReport,
    hosts: usize,
    /// As set; the machine's cores bound what they bring.
    threads_per_host: usize,
    kv: &'static str,
    modes: Vec<ModeReport>,
    correct: usize,
    asked: usize,
}

#[derive(Debug, Serialize)]
struct ModelReport {
    name: &'static str,
    family: String,
    layers: usize,
    hidden_size: usize,
    weight_bytes: usize,
    fingerprint: String,
}

#[derive(Debug, Serialize)]
struct DocumentReport {
    seed: u64,
    characters: usize,
    /// Of the document alone; a mode's `context_tokens` are these and what the chat template puts before them.
    tokens: usize,
    facts: Vec<FactReport>,
}

#[derive(Debug, Serialize)]
struct FactReport {
    key: String,
    value: String,
    depth: f64,
}

impl DemoArgs {
    /// Hands on the settings that were given, and the demo's own.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        // In a cluster it is the nodes that blocks are spread over.
        overrides.set("hosts.count", Some(if self.nodes.is_some() { 1 } else { DEFAULT_HOSTS }));
        // On a large node, a document of the demo is too small for it to be worth moving.
        let room = || MIN_NODE_BYTES.max(self.tokens.saturating_mul(NODE_BYTES_PER_TOKEN));
        overrides.set("kv.capacity_bytes", self.nodes.map(|_| room()));
        self.node.override_settings(overrides);
        overrides.set("attention.block_tokens", Some(self.block_tokens));
        overrides.set("attention.anchor_tokens", Some(self.anchor_tokens));
    }

    fn modes(&self) -> &'static [AttentionMode] {
        match self.attention {
            Modes::Star => &[AttentionMode::Star],
            Modes::Exact => &[AttentionMode::Exact],
            Modes::Both => &[AttentionMode::Star, AttentionMode::Exact],
        }
    }
}

/// Runs the demo.
///
/// # Errors
/// Anything that keeps a question from being answered. A wrong answer is no error but an exit code.
pub(crate) async fn run(args: DemoArgs, app: &App) -> anyhow::Result<ExitCode> {
    let model = open::load_model(app, ModelSource::Demo).await?;
    let (document, tokens) = make_document(&args, &model)?;
    if let Some(nodes) = args.nodes {
        let report = cluster::run(&args, nodes as usize, app, &model, &document).await?;
        match args.json {
            true => output::json(&report)?,
            false => output::line(&tell_cluster::report(&report))?,
        }
        let is_right = report.correct == report.asked && report.same == report.asked;
        return Ok(ExitCode::from(if is_right { 0 } else { exit::PARTLY }));
    }
    let mut report = report_before(&args, app, &model, &document, tokens);
    if !args.json {
        output::line(&tell::opening(&report))?;
    }
    for &mode in args.modes() {
        let mut app = app.clone();
        app.settings.attention.mode = mode;
        let found = walk::walk(&app, &model, &document, open::layout(&app.settings)).await?;
        if !args.json {
            output::line(&tell::mode(&found, colours()))?;
        }
        report.asked += found.questions.len();
        report.correct += found.correct;
        report.modes.push(found);
    }
    if args.json {
        output::json(&report)?;
    } else {
        output::line(&tell::summary(&report))?;
    }
    Ok(ExitCode::from(if report.correct == report.asked { 0 } else { exit::PARTLY }))
}

fn make_document(args: &DemoArgs, model: &Model) -> anyhow::Result<(Document, usize)> {
    let tokenizer = model.prompter.tokenizer()?;
    // The demo's tokenizer refuses no text.
    let count = |text: &str| tokenizer.encode(text, false).map_or(0, |ids| ids.len());
    let document = Document::generate(args.seed, args.tokens, args.facts, count);
    let tokens = count(&document.text);
    Ok((document, tokens))
}

fn report_before(
    args: &DemoArgs,
    app: &App,
    model: &Model,
    document: &Document,
    tokens: usize,
) -> DemoReport {
    let (config, options) = (model.decoder.config(), open::node_options(&app.settings));
    let facts = document.facts.iter().map(|fact| FactReport {
        key: fact.key.clone(),
        value: fact.value.clone(),
        depth: fact.depth,
    });
    DemoReport {
        model: ModelReport {
            name: "demo",
            family: format!("{:?}", config.family).to_lowercase(),
            layers: config.layers,
            hidden_size: config.hidden_size,
            weight_bytes: model.decoder.weight_bytes(),
            fingerprint: model.decoder.fingerprint().to_string(),
        },
        document: DocumentReport {
            seed: args.seed,
            characters: document.text.chars().count(),
            tokens,
            facts: facts.collect(),
        },
        hosts: options.hosts.len(),
        threads_per_host: options.hosts.first().map_or(0, |host| host.threads),
        kv: app.settings.kv.format.as_str(),
        modes: Vec::new(),
        correct: 0,
        asked: 0,
    }
}

/// A number of facts that a document can hold.
fn facts(text: &str) -> Result<usize, String> {
    let range = 1..=MAX_FACTS;
    let facts = text.parse().ok().filter(|facts| range.contains(facts));
    facts.ok_or_else(|| format!("expected a whole number from 1 to {MAX_FACTS}"))
}

/// Whether standard output shows colours and its reader wants them (<https://no-color.org>).
fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
