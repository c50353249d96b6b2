//! `stellate session`: list, show and close sessions of a node.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use stellate_actors::api::SessionInfo;
use stellate_actors::session::SessionId;

use crate::app::App;
use crate::remote::RemoteArgs;
use crate::report::table;
use crate::{human, output};

/// Arguments of `session`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    command: SessionCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum SessionCommand {
    /// List the sessions
    Ls(ListArgs),
    /// Show what was asked and answered in a session
    Show(NamedArgs),
    /// Close sessions
    Rm(RemoveArgs),
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    /// Print one JSON document: a list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct NamedArgs {
    /// Its name, as in s-1
    session: SessionId,
    /// Print one JSON document: the list of turns
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct RemoveArgs {
    /// Their names, as in s-1
    #[arg(required = true)]
    sessions: Vec<SessionId>,
    /// Print one JSON document: the list of those removed
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Does what was asked.
///
/// # Errors
/// As [`RemoteArgs::connect`]; what the node refuses; Ctrl-C.
pub(crate) async fn run(args: SessionArgs, app: &App) -> anyhow::Result<ExitCode> {
    match args.command {
        SessionCommand::Ls(args) => {
            let client = args.remote.connect(app).await?;
            let sessions = app.interrupt.or(client.sessions()).await??;
            match args.json {
                true => output::json(&sessions)?,
                false => output::line(&list(&sessions))?,
            }
        }
        SessionCommand::Show(args) => {
            let client = args.remote.connect(app).await?;
            let turns = app.interrupt.or(client.turns(args.session)).await??;
            if args.json {
                output::json(&turns)?;
            } else {
                for turn in turns {
                    output::line(&format!(
                        "> {}\n{} [{}]",
                        turn.query.trim(),
                        turn.text.trim(),
                        turn.finish
                    ))?;
                }
            }
        }
        SessionCommand::Rm(args) => {
            let client = args.remote.connect(app).await?;
            let mut removed = Vec::new();
            for session in args.sessions {
                app.interrupt.or(client.close_session(session)).await??;
                match args.json {
                    true => removed.push(session.to_string()),
                    false => output::line(&format!("session {session} is removed"))?,
                }
            }
            if args.json {
                output::json(&removed)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(sessions: &[SessionInfo]) -> String {
    let row = |info: &SessionInfo| {
        let tokens = usize::try_from(info.tokens).unwrap_or(usize::MAX);
        vec![info.id.to_string(), info.context.to_string(), info.turns.to_string(), human::count(tokens)]
    };
    table::plain(&["SESSION", "CONTEXT", "TURNS", "TOKENS"], sessions.iter().map(row).collect(), 2)
}
