//! `stellate batch`: answers every line of a JSON Lines file, in order, and goes on where an earlier run stopped. Lines are
//! read in `lines.rs` and understood in `input.rs`, answered in `answer.rs`; what must survive a kill is in `output.rs` and
//! `logits.rs`.

mod answer;
mod claim;
mod input;
mod lines;
mod logits;
mod output;
mod run_key;

use std::collections::BTreeSet;
use std::io::{Write as _, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::Value;

use self::answer::{Answerer, Failure};
use self::claim::check_regular;
use self::input::{BadLine, Line};
use self::lines::Input;
use self::logits::LogitsFile;
use self::output::{Output, Standing};
use crate::app::App;
use crate::exit::{self, UsageError};
use crate::interrupt::Interrupted;
use crate::settings::{ContextArgs, ModelArgs, NodeArgs, Overrides, SamplingArgs};
use crate::{human, open, progress};

const AFTER_HELP: &str = "\
A line of INPUT is a JSON object, either text
  {\"index\": 0, \"input_context\": \"…\", \"input_query\": \"…\", \"output\": …}
which is fed as it is (or in the chat template with --chat), or tokens
  {\"index\": \"a\", \"context_ids\": [1, 2, …], \"turns\": [[3, 4], [5]]}
which are fed exactly as they are, turn after turn in one session. `index` is a text or a number; without one it is the \
line's number from 0. `attention` (star or exact), `block_tokens` and `anchor_tokens` of a line override the flags; \
other fields are passed over.

A line of OUTPUT, in the order of the input, is
  {\"index\", \"pred\", \"pred_ids\", \"output\", \"finish\", \"usage\", \"logprobs\", \"run\"}
For text, `pred` is the answer and `pred_ids` its tokens; for tokens, both are lists of one entry per turn (empty texts \
without a tokenizer). `finish`, `usage` and `logprobs` are lists of one entry per turn. `pred_ids` has the end-of-text \
token if the model gave one. `run` is a short hash of what made the answer: model, format of keys and values, attention, \
block and anchor, --max-tokens, --stop, --ignore-eos, sampling and chat template.

A bad line becomes {\"index\", \"line\", \"error\"} and the exit code is 4. Run again with the same OUTPUT to go on after \
an interruption: lines with an answer are skipped, bad ones tried again. Answers whose `run` is another than they would \
get now, or that lack the --logprobs or --logits asked for, are made again.";

/// Arguments of `batch`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BatchArgs {
    /// What to answer, one JSON object a line; - for standard input
    #[arg(long, short, value_name = "FILE")]
    input: PathBuf,
    /// Where the answers go, a regular file; what it holds already is kept and not answered again
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Put text lines into the model's chat template
    #[arg(long)]
    chat: bool,
    /// Go on after the model's end-of-text token, for exactly --max-tokens tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Write the N most probable tokens of each step, as [id, log-probability]
    #[arg(long, value_name = "N", default_value_t = 0)]
    logprobs: usize,
    /// Write logits: {index}.turn{t}.query_logits [query tokens, vocab] and {index}.turn{t}.step_logits [steps, vocab]
    #[arg(long, value_name = "FILE.safetensors")]
    logits: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    node: NodeArgs,
}

impl BatchArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.model.override_settings(overrides);
        self.context.override_settings(overrides);
        self.sampling.override_settings(overrides);
        self.node.override_settings(overrides);
    }

    /// Refuses files that are one and the same, as what is written would destroy what is read, and what is no file.
    fn check_paths(&self) -> Result<(), UsageError> {
        let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let logits = self.logits.as_deref().map(place);
        let (input, output) = (place(&self.input), place(&self.output));
        if input == output || logits.is_some_and(|logits| logits == input || logits == output) {
            return Err(UsageError("--input, --output and --logits must be different files".to_owned()));
        }
        check_regular(&self.output, "--output")?;
        self.logits.as_deref().map_or(Ok(()), |path| check_regular(path, "--logits"))
    }
}

/// What became of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    answered: usize,
    /// Of those, again, as an earlier run had other settings.
    again: usize,
    skipped: usize,
    bad: usize,
}

/// A bad line as the output tells it.
#[derive(Serialize)]
struct ErrorLine<'a> {
    index: &'a Value,
    line: usize,
    error: &'a str,
}

/// The files of a run.
struct Files {
    input: Input,
    output: Output,
    logits: Option<LogitsFile>,
}

/// Answers every line.
///
/// # Errors
/// What is wrong with the files or the model; `Interrupted`, with everything written so that a later run goes on.
pub(crate) async fn run(args: BatchArgs, app: &App) -> anyhow::Result<ExitCode> {
    args.check_paths()?;
    let input = Input::open(&app.interrupt, &args.input).await?;
    let bar = progress::items("answering", "lines");
    match input.lines() {
        Some(lines) => bar.set_length(lines as u64),
        None => bar.unset_length(),
    }
    let logits = args.logits.as_deref().map(LogitsFile::open).transpose()?;
    // An answer whose logits are asked for now, and were not kept then, is made again.
    let keeps = |key: &str| logits.as_ref().is_none_or(|logits| logits.has(key));
    let output = Output::open(&args.output, keeps)?;
    let mut files = Files { input, output, logits };

    let model = open::load_model(app, open::model_source(&args.model, &app.settings)).await?;
    let node = open::open_node(&app.settings, &model).await?;
    let mut ask = open::ask_options(&app.settings, &args.sampling.stop);
    ask.ignore_eos = args.ignore_eos;
    ask.top_logprobs = args.logprobs;
    ask.logits = args.logits.is_some();
    let mut answerer = Answerer::new(app.interrupt.clone(), node.clone(), &app.settings, ask, args.chat);

    let mut tally = Tally::default();
    let worked = answer_all(app, &mut answerer, &mut files, &bar, &mut tally).await;
    bar.finish_and_clear();
    drop(answerer);
    node.close().await;

    // Whatever ended the work, what was answered is kept.
    if let Some(logits) = files.logits {
        logits.finish()?;
    }
    files.output.finish(worked.is_ok())?;
    if tally.again > 0 {
        let (again, output) = (human::count(tally.again), args.output.display());
        tell(
            &bar,
            &format!("{again} answers of {output} were made with other settings; they were made again"),
        );
    }
    tell(&bar, &tally.to_string());
    worked?;
    Ok(ExitCode::from(if tally.bad > 0 { exit::PARTLY } else { 0 }))
}

async fn answer_all(
    app: &App,
    answerer: &mut Answerer,
    files: &mut Files,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let Files { input, output, logits } = files;
    let mut seen = BTreeSet::new();
    while let Some((number, bytes)) = input.next().await? {
        let line = Line::parse(&bytes, number).and_then(|line| match seen.insert(line.key.clone()) {
            true => Ok(line),
            false => {
                let reason = format!("an earlier line has the index {} too; give each its own", line.index);
                Err(line.into_bad(reason))
            }
        });
        let failed = match line {
            Ok(line) => match output.standing(&line.key, number, &answerer.made_with(&line)) {
                Standing::Done => {
                    tally.skipped += 1;
                    None
                }
                standing => match answerer.answer(&line, logits.as_mut()).await {
                    Ok(answer) => {
                        // Logits first: an answer in the output promises that its logits are kept.
                        logits.as_mut().map_or(Ok(()), LogitsFile::commit)?;
                        output.write(number, &answer)?;
                        tally.answered += 1;
                        tally.again += usize::from(standing == Standing::Outdated);
                        None
                    }
                    Err(Failure::Batch(error)) => return Err(error),
                    Err(Failure::Line(error)) => Some(line.into_bad(format!("{error:#}"))),
                },
            },
            Err(bad) => Some(bad),
        };
        if let Some(BadLine { index, reason, .. }) = failed {
            tell(bar, &format!("line {number}: {reason}"));
            output.write(number, &ErrorLine { index: &index, line: number, error: &reason })?;
            tally.bad += 1;
        }
        bar.inc(1);
        if app.interrupt.is_pressed() {
            return Err(Interrupted.into());
        }
    }
    Ok(())
}

/// A line on standard error, clear of the bar.
fn tell(bar: &ProgressBar, message: &str) {
    // A standard error that is closed leaves nobody to tell.
    bar.suspend(|| drop(writeln!(stderr(), "{message}")));
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} answered", human::count(self.answered))?;
        if self.skipped > 0 {
            write!(f, ", {} answered by an earlier run", human::count(self.skipped))?;
        }
        if self.bad > 0 {
            write!(f, ", {} bad", human::count(self.bad))?;
        }
        Ok(())
    }
}
