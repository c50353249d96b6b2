//! `stellate run`: questions over documents, given on the command line or typed in a chat, each a turn of one session.
//! Reading the documents is in `documents.rs`, printing an answer as it is made in `answer.rs`, the chat in `chat.rs`.

pub(crate) mod answer;
pub(crate) mod chat;
pub(crate) mod documents;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use stellate_actors::{AskOptions, Attention, Context, ContextSource, Node, OpenError};

use self::answer::TurnOutput;
use crate::app::App;
use crate::exit::UsageError;
use crate::settings::{ContextArgs, ModelArgs, NodeArgs, Overrides, SamplingArgs};
use crate::{human, open, output, progress};

const AFTER_HELP: &str = "\
The context is encoded once; every question is a turn of one session over it and sees the turns before. With one \
--query, standard output is the answer alone; with several, each answer stands below its question.

Examples:
  stellate run --model ./Llama-3.2-1B-Instruct --context report.txt --query 'What was decided?'
  git log -p | stellate run --model model.gguf --context - --query 'Who changed the parser?' --query 'And why?'
  stellate run --model org/name --context book.txt --block-tokens 4096     (a chat)";

/// Arguments of `run`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct RunArgs {
    /// Text files that make up the context, in order; - is standard input. None: an empty context
    #[arg(long, value_name = "FILE", num_args = 1..)]
    context: Vec<PathBuf>,
    /// A question; may be given several times. None: a chat
    #[arg(long, value_name = "TEXT")]
    query: Vec<String>,
    /// Feed context and questions as they are, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Print one JSON document (with --query)
    #[arg(long, requires = "query")]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    how: ContextArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// What a run came to.
#[derive(Debug, Serialize)]
struct RunReport {
    /// The path or hub id; `demo` for the model in the program.
    model: String,
    attention: String,
    block_tokens: usize,
    /// `null` for exact.
    anchor_tokens: Option<usize>,
    hosts: usize,
    context: ContextReport,
    turns: Vec<TurnOutput>,
}

/// The encoded context.
#[derive(Debug, Serialize)]
struct ContextReport {
    tokens: usize,
    blocks: usize,
    /// Blocks that were there already.
    reused: usize,
    kv_bytes: usize,
    encode_s: f64,
}

impl RunArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.model.override_settings(overrides);
        self.node.override_settings(overrides);
        self.how.override_settings(overrides);
        self.sampling.override_settings(overrides);
    }

    /// Finds what is wrong before anything is loaded.
    fn check(&self) -> Result<(), UsageError> {
        let usage = |message: &str| Err(UsageError(message.to_owned()));
        if self.query.iter().any(|query| query.trim().is_empty()) {
            return usage("a --query is empty; ask something, or leave --query out for a chat");
        }
        if self.model.random_weights.is_some() {
            return usage(
                "random weights come without a tokenizer, and their answers are noise; use --model here, or measure \
                 them with `stellate bench`",
            );
        }
        let from_stdin = self.context.iter().filter(|path| documents::is_stdin(path)).count();
        match (from_stdin, self.query.is_empty()) {
            (2.., _) => usage("standard input (--context -) can be read only once"),
            (1, true) => usage(
                "a chat reads questions from standard input, so the context cannot come from there; name a file, or \
                 give --query",
            ),
            _ => Ok(()),
        }
    }
}

/// Answers the questions, or chats.
///
/// # Errors
/// What is wrong with the command line, the files or the model; what keeps a question from being answered; Ctrl-C.
pub(crate) async fn run(args: RunArgs, app: &App) -> anyhow::Result<ExitCode> {
    args.check()?;
    let text = documents::read(app, &args.context, args.raw).await?;
    let model = open::load_model(app, open::model_source(&args.model, &app.settings)).await?;
    if let Err(error) = model.prompter.tokenizer() {
        return Err(OpenError::from(error))
            .context("`stellate run` asks in words; `stellate batch` also takes token ids");
    }
    let node = open::open_node(&app.settings, &model).await?;
    let ended = run_on(&args, app, &node, text).await;
    node.close().await;
    ended
}

async fn run_on(args: &RunArgs, app: &App, node: &Node, text: String) -> anyhow::Result<ExitCode> {
    let source = if args.raw { ContextSource::Text(text) } else { ContextSource::Document(text) };
    let (context, took) = open::encode(app, node, source, open::layout(&app.settings)).await?;
    let encoded = context_report(&context, took);
    progress::note(&format!(
        "{} tokens in {} block{}, encoded in {}",
        human::count(encoded.tokens),
        human::count(encoded.blocks),
        if encoded.blocks == 1 { "" } else { "s" },
        human::seconds(encoded.encode_s),
    ));
    let options = open::ask_options(&app.settings, &args.sampling.stop);
    if args.query.is_empty() {
        let session = context.session().await?;
        return chat::chat(app, &session, options).await;
    }
    let turns = ask_all(args, app, &context, options).await?;
    if args.json {
        output::json(&report(app, &context, encoded, turns))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask_all(
    args: &RunArgs,
    app: &App,
    context: &Context,
    options: AskOptions,
) -> anyhow::Result<Vec<TurnOutput>> {
    let session = context.session().await?;
    let mut turns = Vec::new();
    for query in &args.query {
        if !args.json && args.query.len() > 1 {
            output::line(&format!("> {query}"))?;
        }
        let turn = session.ask(query.as_str(), options.clone());
        // Dropping the turn cancels it.
        let report = app.interrupt.or(answer::follow(turn, !args.json)).await??;
        if !args.json {
            answer::remark(&report);
        }
        turns.push(TurnOutput::new(query, report));
    }
    Ok(turns)
}

fn context_report(context: &Context, took: Duration) -> ContextReport {
    ContextReport {
        tokens: context.manifest().tokens(),
        blocks: context.manifest().blocks.len(),
        reused: context.progress().blocks_reused,
        kv_bytes: context.kv_bytes(),
        encode_s: took.as_secs_f64(),
    }
}

fn report(app: &App, context: &Context, encoded: ContextReport, turns: Vec<TurnOutput>) -> RunReport {
    let layout = context.manifest().layout;
    let path = &app.settings.model.path;
    RunReport {
        model: if path.is_empty() { "demo".to_owned() } else { path.clone() },
        attention: layout.attention.to_string(),
        block_tokens: layout.block_tokens,
        anchor_tokens: match layout.attention {
            Attention::Star { anchor_tokens } => Some(anchor_tokens),
            Attention::Exact => None,
        },
        hosts: app.settings.hosts.count,
        context: encoded,
        turns,
    }
}
