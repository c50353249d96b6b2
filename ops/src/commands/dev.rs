//! `stellate dev`: a cluster of real nodes on this machine, to try things on, until Ctrl-C. How it is started and stopped is
//! the library's `local`; here it is shown.

use std::env::current_exe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use stellate_ops::local::{LocalCluster, LocalNode, LocalOptions};
use stellate_runtime::config::{ADDRESS_VARIABLE, IDENTITY_VARIABLE, Settings};

use crate::app::App;
use crate::exit::UsageError;
use crate::interrupt::Interrupt;
use crate::report::table;
use crate::settings::{ModelArgs, NodeArgs, Overrides};
use crate::{output, progress};

/// More are slower on one machine, and none is better to learn from.
const MAX_NODES: i64 = 32;

/// How often it is looked whether a node has ended by itself.
const WATCH_EVERY: Duration = Duration::from_millis(500);

const AFTER_HELP: &str = "\
The nodes listen on free ports of this machine, know each other by certificates of their own CA, and keep what they have in a temporary \
folder that goes with them. Kill them, stop them, add others: the commands to try are printed.";

/// Arguments of `dev`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DevArgs {
    /// Nodes of the cluster
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=MAX_NODES))]
    nodes: u32,
    /// Leave the cluster's folder, with identities, data and logs
    #[arg(long)]
    keep: bool,
    /// Print the line of readiness as JSON: {"ready": {"folder", "identity", "nodes"}}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// What is said once the cluster can be asked.
#[derive(Debug, Serialize)]
struct Ready {
    folder: PathBuf,
    /// The administrator's.
    identity: PathBuf,
    nodes: Vec<ReadyNode>,
}

#[derive(Debug, Serialize)]
struct ReadyNode {
    name: String,
    address: String,
    pid: Option<u32>,
    log: PathBuf,
}

impl DevArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.model.override_settings(overrides);
        self.node.override_settings(overrides);
    }
}

/// Runs the cluster until Ctrl-C.
///
/// # Errors
/// `LocalError`; `Interrupted` before the cluster was there.
pub(crate) async fn run(args: DevArgs, app: &App) -> anyhow::Result<ExitCode> {
    let count = args.nodes as usize;
    let options = options(&args.model, &app.settings, count)?;
    let mut tell = |line: &str| progress::note(line);
    let starting = async {
        let mut cluster = LocalCluster::found(options, &mut tell).await?;
        cluster.add(count - 1, &mut tell).await?;
        anyhow::Ok(cluster)
    };
    let mut cluster = app.interrupt.or(starting).await??;
    // Whoever is told that it is there may end it at once.
    let terminated = terminated()?;
    say_ready(&args, &cluster)?;
    watch(&app.interrupt, terminated, &mut cluster).await;
    progress::note("stopping the nodes; Ctrl-C ends them at once");
    if args.keep {
        let folder = app.interrupt.or(cluster.stop_and_keep()).await??;
        progress::note(&format!("all that they kept is in {}", folder.display()));
    } else {
        app.interrupt.or(cluster.stop()).await??;
    }
    Ok(ExitCode::SUCCESS)
}

/// Nodes of this program that run `model` as the settings have it, on an even share of the machine's cores.
///
/// # Errors
/// `UsageError` for a checkpoint whose folder cannot be named from elsewhere.
pub(crate) fn options(model: &ModelArgs, settings: &Settings, nodes: usize) -> anyhow::Result<LocalOptions> {
    let program = current_exe().context("this program does not know where it lies")?;
    let cores = available_parallelism().map_or(1, usize::from);
    let Settings { hosts, kv, .. } = settings;
    let threads = if hosts.threads == 0 { (cores / nodes.max(1)).max(1) } else { hosts.threads };
    let pairs = [
        ("--hosts", hosts.count.to_string()),
        ("--threads", threads.to_string()),
        ("--chunk-tokens", hosts.chunk_tokens.to_string()),
        ("--kv", kv.format.as_str().to_owned()),
        ("--kv-capacity", kv.capacity_bytes.get().to_string()),
        ("--weights", settings.model.weights.as_str().to_owned()),
    ];
    let mut serve: Vec<_> = pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
    match (&model.random_weights, settings.model.path.as_str()) {
        (Some(shape), _) => serve.extend(["--random-weights".to_owned(), shape.clone()]),
        (None, "") => {}
        // The nodes start elsewhere; what is no file here is the name of a checkpoint of the hub.
        (None, path) => {
            let path =
                std::path::absolute(path).ok().filter(|path| path.exists()).unwrap_or_else(|| path.into());
            let path = path.to_str().ok_or_else(|| UsageError("the model's path is no UTF-8".to_owned()))?;
            serve.extend(["--model".to_owned(), path.to_owned()]);
        }
    }
    Ok(LocalOptions { serve, ..LocalOptions::new(program) })
}

fn say_ready(args: &DevArgs, cluster: &LocalCluster) -> anyhow::Result<()> {
    let node = |node: &LocalNode| ReadyNode {
        name: node.name().to_owned(),
        address: node.address().to_owned(),
        pid: node.pid(),
        log: node.log().to_owned(),
    };
    let nodes: Vec<_> = cluster.nodes().iter().map(node).collect();
    let ready = Ready { folder: cluster.folder().to_owned(), identity: cluster.identity(), nodes };
    if args.json {
        let line = serde_json::to_string(&serde_json::json!({ "ready": ready }))?;
        return Ok(output::line(&line)?);
    }
    Ok(output::line(&describe(&ready))?)
}

fn describe(ready: &Ready) -> String {
    let row = |node: &ReadyNode| {
        let pid = node.pid.map_or("-".to_owned(), |pid| pid.to_string());
        vec![node.name.clone(), node.address.clone(), node.log.display().to_string(), pid]
    };
    let nodes = table::plain(&["NODE", "ADDRESS", "LOG", "PID"], ready.nodes.iter().map(row).collect(), 3);
    let first = &ready.nodes[0];
    let last = ready.nodes.last().unwrap_or(first);
    let mut lines = vec![
        nodes,
        String::new(),
        format!("{} founded the cluster and holds its CA. In another terminal:", first.name),
        format!(
            "  export {IDENTITY_VARIABLE}={} {ADDRESS_VARIABLE}={}",
            ready.identity.display(),
            first.address
        ),
        "  stellate status".to_owned(),
        "  stellate context create FILE".to_owned(),
        "  stellate ask 'QUESTION'".to_owned(),
    ];
    if ready.nodes.len() > 1 {
        lines.push(format!("  stellate node drain {}", last.name));
        if let Some(pid) = last.pid {
            lines.push(format!("  kill -9 {pid}        # {} is gone; ask again", last.name));
        }
    }
    lines.push("Ctrl-C stops the cluster.".to_owned());
    lines.join("\n")
}

/// Takes SIGTERM from now on, and waits for it.
fn terminated() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        #[cfg(unix)]
        signals.recv().await;
        #[cfg(not(unix))]
        std::future::pending::<()>().await;
    })
}

/// Waits for Ctrl-C or SIGTERM, and tells of nodes that end before.
async fn watch(interrupt: &Interrupt, terminated: impl Future<Output = ()>, cluster: &mut LocalCluster) {
    let watching = async {
        loop {
            for node in cluster.nodes_mut() {
                if let Some(ended) = node.take_ended() {
                    tracing::warn!("{ended}");
                }
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    };
    tokio::select! {
        () = interrupt.pressed() => interrupt.acknowledge(),
        () = terminated => {}
        () = watching => {}
    }
}
