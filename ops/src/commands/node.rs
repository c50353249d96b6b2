//! `stellate node` and `stellate rebalance`: which nodes there are, what they may be given, and moving blocks off and between
//! them. Ctrl-C ends the watching of moves, never the moves.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use stellate_actors::api::{DrainRequest, MoveEvent, MoveKind, Moves, Planned};

use crate::app::App;
use crate::interrupt::Interrupted;
use crate::remote::RemoteArgs;
use crate::report::table;
use crate::{exit, human, output, progress};

/// Arguments of `node`.
#[derive(Args, Clone, Debug)]
pub(crate) struct NodeCommandArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum NodeCommand {
    /// List the nodes
    Ls(ListArgs),
    /// Make this machine's node a member of a cluster, for `serve` to be started later (`serve --join` does both)
    Join(super::join::JoinArgs),
    /// Give a node no new blocks; it keeps what it has
    Cordon(NamedArgs),
    /// Give a node new blocks again
    Uncordon(NamedArgs),
    /// Move everything off a node, and watch it. Ctrl-C stops watching, not the drain
    Drain(DrainArgs),
    /// Remove a node for good: its key is refused from then on
    Remove(RemoveArgs),
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
    /// Its name or id
    node: String,
    /// Print one JSON document: the node
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct DrainArgs {
    /// Its name or id
    node: String,
    /// What is not moved by then is computed again elsewhere, as in 10m
    #[arg(long, value_name = "TIME", value_parser = super::token::duration)]
    deadline: Option<Duration>,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Print each event as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct RemoveArgs {
    /// Its name or id
    node: String,
    /// Even if it still holds blocks, which are then computed again elsewhere, or keeps contexts and sessions, which are lost
    /// with it
    #[arg(long)]
    force: bool,
    /// Print one JSON document: the name of the node that was removed
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Arguments of `rebalance`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RebalanceArgs {
    /// Only show what would be done, and why (the default)
    #[arg(long, conflicts_with = "apply")]
    plan: bool,
    /// Do it, and watch it. Ctrl-C stops watching, not the moves
    #[arg(long)]
    apply: bool,
    /// Print one JSON document: the plan; with --apply each event as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Does what was asked.
///
/// # Errors
/// As [`RemoteArgs::connect`]; what the cluster refuses; Ctrl-C, unless it ends a watch.
pub(crate) async fn run(args: NodeCommandArgs, app: &App) -> anyhow::Result<ExitCode> {
    match args.command {
        NodeCommand::Ls(args) => {
            let client = args.remote.connect(app).await?;
            let nodes = app.interrupt.or(client.nodes()).await??;
            match args.json {
                true => output::json(&nodes)?,
                false => output::line(&super::status::nodes(&nodes))?,
            }
        }
        NodeCommand::Join(args) => return super::join::run(args, app).await,
        NodeCommand::Cordon(args) => set_cordon(args, app, true).await?,
        NodeCommand::Uncordon(args) => set_cordon(args, app, false).await?,
        NodeCommand::Drain(args) => {
            let client = args.remote.connect(app).await?;
            let deadline_s = args.deadline.map(|deadline| deadline.as_secs());
            let request = DrainRequest { node: args.node, deadline_s, dry_run: args.dry_run };
            let moves = app.interrupt.or(client.drain(request)).await??;
            return watch(app, moves, args.dry_run, args.json).await;
        }
        NodeCommand::Remove(args) => {
            let client = args.remote.connect(app).await?;
            app.interrupt.or(client.remove_node(&args.node, args.force)).await??;
            match args.json {
                true => output::json(&serde_json::json!({ "removed": args.node }))?,
                false => output::line(&format!("{} is removed: its key is refused from now on", args.node))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn set_cordon(args: NamedArgs, app: &App, cordoned: bool) -> anyhow::Result<()> {
    let client = args.remote.connect(app).await?;
    let node = app.interrupt.or(client.set_cordon(&args.node, cordoned)).await??;
    match args.json {
        true => output::json(&node),
        false => Ok(output::line(&format!("{} is {}", node.name, node.state))?),
    }
}

/// Shows or does a rebalancing.
///
/// # Errors
/// As [`run`].
pub(crate) async fn rebalance(args: RebalanceArgs, app: &App) -> anyhow::Result<ExitCode> {
    let client = args.remote.connect(app).await?;
    if args.apply {
        let moves = app.interrupt.or(client.rebalance()).await??;
        return watch(app, moves, false, args.json).await;
    }
    let plan = app.interrupt.or(client.rebalance_plan()).await??;
    if args.json {
        output::json(&plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !plan.moves.is_empty() {
        let row = |step: &Planned| {
            let Planned { block, from, to, how, why, .. } = step.clone();
            vec![block, from, to, how, why, human::bytes(usize::try_from(step.bytes).unwrap_or(usize::MAX))]
        };
        let header = ["BLOCK", "FROM", "TO", "HOW", "WHY", "BYTES"];
        output::line(&table::plain(&header, plan.moves.iter().map(row).collect(), 5))?;
    }
    output::line(&plan.why)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows moves until they have ended, or what they would be.
async fn watch(app: &App, mut moves: Moves, dry_run: bool, json: bool) -> anyhow::Result<ExitCode> {
    let shown = async {
        while let Some(event) = moves.next().await? {
            match json {
                true => output::line(&serde_json::to_string(&event)?)?,
                false => output::line(&describe(&event, dry_run))?,
            }
        }
        anyhow::Ok(())
    };
    match app.interrupt.or(shown).await {
        Ok(ended) => ended.map(|()| ExitCode::SUCCESS),
        Err(Interrupted) => {
            progress::note("no longer watched; the moves go on, `stellate node ls` shows how far they are");
            Ok(ExitCode::from(exit::INTERRUPTED))
        }
    }
}

fn describe(event: &MoveEvent, dry_run: bool) -> String {
    let seconds = event.at_ms / 1000 % 86_400;
    let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let text = match &event.kind {
        MoveKind::Cordoned { node } => format!("{node} cordoned (Ctrl-C stops watching, not the moves)"),
        MoveKind::Block(Planned { block, context, tokens, bytes, from, to, how, .. }) => {
            let bytes = human::bytes(usize::try_from(*bytes).unwrap_or(usize::MAX));
            let context = context.as_ref().map(|context| format!(" of {context}")).unwrap_or_default();
            format!("block {block}{context} ({tokens} tokens, {bytes}) {from} -> {to}: {how}")
        }
        MoveKind::Progress { moved, recomputed, left, left_bytes } => {
            let bytes = human::bytes(usize::try_from(*left_bytes).unwrap_or(usize::MAX));
            format!("{moved} moved, {recomputed} recomputed, {left} left ({bytes})")
        }
        MoveKind::Session { session, effect } => format!("session {session}: {effect}"),
        MoveKind::Complete { moved, .. } if dry_run => format!("{moved} would be moved; nothing was done"),
        MoveKind::Complete { moved, recomputed } => {
            format!("complete: {moved} moved, {recomputed} recomputed")
        }
    };
    format!("{time} {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_with_its_time() {
        let event = MoveEvent { at_ms: 43_201_000, kind: MoveKind::Complete { moved: 1, recomputed: 0 } };
        assert_eq!(describe(&event, false), "12:00:01 complete: 1 moved, 0 recomputed");
        assert_eq!(describe(&event, true), "12:00:01 1 would be moved; nothing was done");
    }
}
