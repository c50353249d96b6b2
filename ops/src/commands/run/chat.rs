//! The chat: questions from a prompt, answers as they are made, in one session. Ctrl-C ends the answer under way; at
//! the prompt a second one in a row leaves.

use std::process::ExitCode;

use anyhow::Context as _;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};
use stellate_actors::{AskOptions, FinishReason, Session, TurnReport};

use super::answer;
use crate::app::App;
use crate::interrupt::Interrupted;
use crate::{human, output, progress};

const PROMPT: &str = "> ";

/// Questions that the up key brings back.
const HISTORY_LINES: usize = 1000;

const HELP: &str = "\
Type a question; the session remembers earlier ones.
  /stats   tokens and times of the last answer
  /help    this
  /quit    leave (so does Ctrl-D)
Ctrl-C ends the answer under way; twice at the prompt, it leaves.";

type Prompt = Editor<(), MemHistory>;

/// What the user typed.
enum Typed {
    Line(String),
    End,
    Interrupt,
}

/// Chats until the user leaves.
///
/// # Errors
/// The terminal cannot be read; the node has stopped; `Interrupted` after Ctrl-C twice. A question that cannot be
/// answered is told and the chat goes on.
pub(crate) async fn chat(app: &App, session: &Session, options: AskOptions) -> anyhow::Result<ExitCode> {
    let config = Config::builder().max_history_size(HISTORY_LINES)?.auto_add_history(true).build();
    let history = MemHistory::with_config(&config);
    let mut prompt: Prompt = Editor::with_history(config, history)?;
    let mut last: Option<TurnReport> = None;
    let mut interrupted = false;
    progress::note("/help tells what there is, /quit leaves");
    loop {
        let typed;
        (prompt, typed) = read_line(app, prompt).await?;
        let was_interrupted = std::mem::take(&mut interrupted);
        match typed {
            Typed::End => return Ok(ExitCode::SUCCESS),
            Typed::Interrupt if was_interrupted => return Err(Interrupted.into()),
            Typed::Interrupt => {
                interrupted = true;
                progress::note("Ctrl-C again or /quit leaves");
            }
            Typed::Line(line) => match line.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(ExitCode::SUCCESS),
                "/help" => output::line(HELP)?,
                "/stats" => output::line(&stats(last.as_ref()))?,
                word if word.starts_with('/') && !word.contains(char::is_whitespace) => {
                    output::line(&format!("there is no {word}; /help tells what there is"))?;
                }
                question => {
                    let report = ask(app, session, question, options.clone()).await?;
                    interrupted = report.as_ref().is_some_and(|r| r.finish == FinishReason::Cancelled);
                    last = report.or(last);
                }
            },
        }
    }
}

/// Reads a line on a thread of its own. A Ctrl-C that reaches the process rather than the prompt leaves.
async fn read_line(app: &App, mut prompt: Prompt) -> anyhow::Result<(Prompt, Typed)> {
    let reading = tokio::task::spawn_blocking(move || {
        let line = prompt.readline(PROMPT);
        (prompt, line)
    });
    let (prompt, line) =
        app.interrupt.or(reading).await?.context("the thread that reads the prompt stopped")?;
    let typed = match line {
        Ok(line) => Typed::Line(line),
        Err(ReadlineError::Eof) => Typed::End,
        Err(ReadlineError::Interrupted) => Typed::Interrupt,
        Err(error) => return Err(error).context("cannot read the question"),
    };
    Ok((prompt, typed))
}

/// Asks and shows the answer. `None` if there was none: the user has been told why.
async fn ask(
    app: &App,
    session: &Session,
    question: &str,
    options: AskOptions,
) -> anyhow::Result<Option<TurnReport>> {
    let turn = session.ask(question, options);
    let cancel = turn.cancel_token();
    let answered = answer::follow(turn, true);
    tokio::pin!(answered);
    let report = tokio::select! {
        report = &mut answered => report,
        () = app.interrupt.pressed() => {
            // The turn ends by itself after the token under way; what was said stays in the session.
            cancel.cancel();
            let report = answered.await;
            app.interrupt.acknowledge();
            report
        }
    };
    match report {
        Ok(report) => Ok(Some(report)),
        Err(error) if is_fatal(&error) => Err(error),
        Err(error) => {
            output::line(&format!("no answer: {error}"))?;
            Ok(None)
        }
    }
}

/// Whether nothing can be asked any more, or nobody reads the answers.
fn is_fatal(error: &anyhow::Error) -> bool {
    use stellate_actors::AskError::{Closed, Stopped};
    !matches!(error.downcast_ref(), Some(error) if !matches!(error, Closed | Stopped))
}

fn stats(last: Option<&TurnReport>) -> String {
    let Some(TurnReport { usage, speculation, timings, .. }) = last else {
        return "nothing was asked yet".to_owned();
    };
    format!(
        "{} tokens of context and {} of earlier turns were there; {} were fed and {} generated\n\
         first token after {}, all after {}, {}; {}",
        human::count(usage.context_tokens),
        human::count(usage.session_tokens),
        human::count(usage.query_tokens),
        human::count(usage.generated_tokens),
        human::seconds(timings.first_token_s),
        human::seconds(timings.total_s),
        human::rate(timings.tokens_per_s),
        answer::steps(speculation),
    )
}
