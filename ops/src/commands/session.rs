//! `stellate session`: list, show and close sessions of a node.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use stellate_actors::api::{SessionInfo, SessionPlaceInfo};
use stellate_actors::manifest::ContextId;
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
    /// Move a session to another node, once the turn under way has ended
    Move(MoveArgs),
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

#[derive(Args, Clone, Debug)]
struct MoveArgs {
    /// Its name, as in s-1
    session: SessionId,
    /// The node that shall run it, by name or id
    #[arg(long, value_name = "NODE")]
    to: String,
    /// Print one JSON document: the session and its node
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// A session as it is listed: figures of those that the node has, and where all of them are that it knows of.
#[derive(Debug, Serialize)]
struct Listed {
    session: String,
    context: String,
    /// The node that runs it.
    node: Option<String>,
    /// Turns answered; `null` where another node runs it.
    turns: Option<u64>,
    tokens: Option<u64>,
    /// Nodes that have all of it, its own among them, and nodes that shall; `null` where another node runs it.
    copies: Option<u64>,
    copies_wanted: Option<u64>,
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
            let places = app.interrupt.or(client.session_places()).await??;
            let listed = listed(&sessions, &places);
            match args.json {
                true => output::json(&listed)?,
                false => output::line(&table_of(&listed))?,
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
        SessionCommand::Move(MoveArgs { session, to, json, remote }) => {
            let client = remote.connect(app).await?;
            app.interrupt.or(client.move_session(session, &to)).await??;
            match json {
                true => output::json(&serde_json::json!({ "session": session.to_string(), "node": to }))?,
                false => output::line(&format!("session {session} is on node {to}"))?,
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

/// What is known of each session, in the order of their names: those of a node without a cluster have no place.
fn listed(sessions: &[SessionInfo], places: &[SessionPlaceInfo]) -> Vec<Listed> {
    let own = sessions.iter().map(|info| (info.id, info.context));
    let ids: BTreeMap<_, _> = own.chain(places.iter().map(|place| (place.id, place.context))).collect();
    let row = |(id, context)| {
        let place = places.iter().find(|place| place.id == id);
        let copies = place.and_then(|place| place.copies);
        // One that was lost just now may still be in the list of the node's own.
        let info = sessions.iter().find(|info| info.id == id);
        let info = info.filter(|_| copies.is_some() || place.is_none());
        Listed {
            session: id.to_string(),
            context: ContextId::to_string(&context),
            node: place.map(|place| place.node.clone()),
            turns: info.map(|info| info.turns),
            tokens: info.map(|info| info.tokens),
            copies: copies.map(|(have, _)| have),
            copies_wanted: copies.map(|(_, shall)| shall),
        }
    };
    ids.into_iter().map(row).collect()
}

fn table_of(sessions: &[Listed]) -> String {
    let number = |count: Option<u64>| match count {
        Some(count) => human::count(usize::try_from(count).unwrap_or(usize::MAX)),
        None => "-".to_owned(),
    };
    let row = |listed: &Listed| {
        let copies = match (listed.copies, listed.copies_wanted) {
            (Some(have), Some(shall)) => format!("{have}/{shall}"),
            _ => "-".to_owned(),
        };
        let node = listed.node.clone().unwrap_or_else(|| "-".to_owned());
        let (session, context) = (listed.session.clone(), listed.context.clone());
        vec![session, context, node, number(listed.turns), number(listed.tokens), copies]
    };
    let heads = ["SESSION", "CONTEXT", "NODE", "TURNS", "TOKENS", "COPIES"];
    table::plain(&heads, sessions.iter().map(row).collect(), 3)
}
