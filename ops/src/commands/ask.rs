//! `stellate ask` and `stellate chat`: questions over a context of a node, in a session of their own or one that is open.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use stellate_actors::Session;
use stellate_actors::api::Client;
use stellate_actors::manifest::ContextId;
use stellate_actors::session::SessionId;

use super::run::answer::{self, TurnOutput};
use super::run::chat as chatting;
use crate::app::App;
use crate::exit::UsageError;
use crate::remote::RemoteArgs;
use crate::settings::{Overrides, SamplingArgs};
use crate::{open, output, progress};

/// Over what is asked.
#[derive(Args, Clone, Debug)]
struct OverArgs {
    /// The context, as in c-1, in a new session; without it, the node's only one
    #[arg(long, value_name = "CONTEXT", conflicts_with = "session")]
    context: Option<ContextId>,
    /// A session that is open, as in s-1: it sees what was asked before
    #[arg(long, value_name = "SESSION")]
    session: Option<SessionId>,
    /// Leave a new session open, and tell its name
    #[arg(long, conflicts_with = "session")]
    keep: bool,
}

/// Arguments of `ask`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AskArgs {
    /// The question; several are turns of one session
    #[arg(value_name = "QUESTION", required = true)]
    questions: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    over: OverArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Arguments of `chat`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    over: OverArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// What `ask --json` prints.
#[derive(Debug, Serialize)]
struct Asked {
    session: String,
    /// Whether the session is still open.
    kept: bool,
    turns: Vec<TurnOutput>,
}

impl AskArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.sampling.override_settings(overrides);
    }
}

impl ChatArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.sampling.override_settings(overrides);
    }
}

/// Asks.
///
/// # Errors
/// As [`RemoteArgs::connect`]; what the node refuses; Ctrl-C, which cancels the turn.
pub(crate) async fn ask(args: AskArgs, app: &App) -> anyhow::Result<ExitCode> {
    if args.questions.iter().any(|question| question.trim().is_empty()) {
        return Err(UsageError("a question is empty; ask something".to_owned()).into());
    }
    let client = args.remote.connect(app).await?;
    let session = app.interrupt.or(session(&client, &args.over)).await??;
    let asked = ask_all(&args, app, &session).await;
    let kept = leave(&args.over, &session).await;
    let turns = asked?;
    if args.json {
        output::json(&Asked { session: session.id().to_string(), kept, turns })?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask_all(args: &AskArgs, app: &App, session: &Session) -> anyhow::Result<Vec<TurnOutput>> {
    let options = open::ask_options(&app.settings, &args.sampling.stop);
    let mut turns = Vec::new();
    for question in &args.questions {
        if !args.json && args.questions.len() > 1 {
            output::line(&format!("> {question}"))?;
        }
        let turn = session.ask(question.as_str(), options.clone());
        // Dropping the turn cancels it.
        let report = app.interrupt.or(answer::follow(turn, !args.json)).await??;
        if !args.json {
            answer::remark(&report);
        }
        turns.push(TurnOutput::new(question, report));
    }
    Ok(turns)
}

/// Chats until the user leaves.
///
/// # Errors
/// As [`ask`].
pub(crate) async fn chat(args: ChatArgs, app: &App) -> anyhow::Result<ExitCode> {
    let client = args.remote.connect(app).await?;
    let session = app.interrupt.or(session(&client, &args.over)).await??;
    let ended = chatting::chat(app, &session, open::ask_options(&app.settings, &args.sampling.stop)).await;
    leave(&args.over, &session).await;
    ended
}

/// The session that was named, or a new one.
async fn session(client: &Client, over: &OverArgs) -> anyhow::Result<Session> {
    if let Some(id) = over.session {
        return Ok(client.session(id).await?);
    }
    let id = match over.context {
        Some(id) => id,
        None => match &client.contexts().await?[..] {
            [only] => only.id,
            contexts => {
                let message = match contexts.len() {
                    0 => "the node has no context; make one with `stellate context create`".to_owned(),
                    count => format!("the node has {count} contexts; name one with --context"),
                };
                return Err(UsageError(message).into());
            }
        },
    };
    Ok(client.context(id).await?.session().await?)
}

/// Closes a session that was opened for this command. Tells whether it stays.
async fn leave(over: &OverArgs, session: &Session) -> bool {
    if over.session.is_some() || over.keep {
        progress::note(&format!("session {} stays open", session.id()));
        return true;
    }
    // Wherever it is by now.
    if let Err(error) = session.remove().await {
        tracing::warn!(session = %session.id(), %error, "the session could not be closed");
    }
    false
}
