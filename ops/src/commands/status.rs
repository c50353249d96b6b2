//! `stellate status` and `stellate ps`: the cluster at a glance, and what a node holds.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use stellate_actors::api::{NodeInfo, Status};
use stellate_actors::disk::index::DiskFigures;

use crate::app::App;
use crate::remote::RemoteArgs;
use crate::report::table;
use crate::{human, output};

/// How often a watched status is asked for.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Arguments of `status`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// Show it again every two seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Print one JSON document; with --watch one in each line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Arguments of `ps`.
#[derive(Args, Clone, Debug)]
pub(crate) struct PsArgs {
    /// Print one JSON document: a list of contexts
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Shows the cluster.
///
/// # Errors
/// As [`RemoteArgs::connect`]; Ctrl-C, unless it ends a watch.
pub(crate) async fn status(args: StatusArgs, app: &App) -> anyhow::Result<ExitCode> {
    let client = args.remote.connect(app).await?;
    if !args.watch {
        let status = app.interrupt.or(client.status()).await??;
        match args.json {
            true => output::json(&status)?,
            false => output::line(&show(&status))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let watch = async {
        loop {
            let status = client.status().await?;
            match args.json {
                true => output::line(&serde_json::to_string(&status)?)?,
                // Clears the terminal and begins at its top.
                false => output::text(&format!("\x1b[2J\x1b[H{}\n", show(&status)))?,
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    };
    let ended: Result<anyhow::Result<()>, _> = app.interrupt.or(watch).await;
    // Ctrl-C is how a watch ends.
    ended.unwrap_or(Ok(()))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows the contexts.
///
/// # Errors
/// As [`RemoteArgs::connect`]; Ctrl-C.
pub(crate) async fn ps(args: PsArgs, app: &App) -> anyhow::Result<ExitCode> {
    let client = args.remote.connect(app).await?;
    let contexts = app.interrupt.or(client.contexts()).await??;
    match args.json {
        true => output::json(&contexts)?,
        false => output::line(&super::context::list(&contexts))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(status: &Status) -> String {
    let about = &status.about;
    let leaving = if status.leaving { ", leaving" } else { "" };
    format!(
        "model {} ({}), keys and values in {}, version {}\n{} context(s), {} session(s), {} running{leaving}\n\n{}",
        about.model,
        about.fingerprint.get(..12).unwrap_or_default(),
        about.kv_format,
        about.version,
        status.contexts,
        status.sessions,
        status.running,
        nodes(&status.nodes),
    )
}

/// A line for each node.
pub(super) fn nodes(nodes: &[NodeInfo]) -> String {
    let has_disks = nodes.iter().any(|node| node.disk.is_some());
    let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let row = |node: &NodeInfo| {
        let unknown = || "-".to_owned();
        let used = node.used_bytes.map_or_else(unknown, |used| human::bytes(size(used)));
        let used = format!("{used} of {}", human::bytes(size(node.capacity_bytes)));
        let state = match &node.why {
            Some(why) => format!("{} ({why})", node.state),
            None => node.state.to_string(),
        };
        let mut row = vec![
            node.name.clone(),
            node.address.clone(),
            state,
            node.roles.join(","),
            node.devices.clone(),
            used,
            node.blocks.map_or_else(unknown, |blocks| blocks.to_string()),
            node.sessions.map_or_else(unknown, |sessions| sessions.to_string()),
            node.rtt_us.map_or_else(unknown, |us| human::seconds(us as f64 / 1e6)),
        ];
        row.extend(has_disks.then(|| node.disk.as_ref().map_or_else(unknown, disk)));
        row
    };
    let mut header =
        vec!["NODE", "ADDRESS", "STATE", "ROLES", "DEVICES", "KV USED", "BLOCKS", "SESSIONS", "RTT"];
    header.extend(has_disks.then_some("BLOCKS ON DISK"));
    table::plain(&header, nodes.iter().map(row).collect(), 5)
}

/// The disk of a node in words.
fn disk(figures: &DiskFigures) -> String {
    let DiskFigures { blocks, used_bytes, bound_bytes, hits, damaged, .. } = *figures;
    let bytes = |count: u64| human::bytes(usize::try_from(count).unwrap_or(usize::MAX));
    format!("{blocks} ({} of {}, {hits} read, {damaged} damaged)", bytes(used_bytes), bytes(bound_bytes))
}
