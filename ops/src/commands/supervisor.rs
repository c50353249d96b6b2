//! `stellate supervisor`: who supervises the cluster, how the voters stand, and having another take over.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use stellate_actors::api::{Client, SupervisorInfo, VoterInfo};

use crate::app::App;
use crate::remote::RemoteArgs;
use crate::report::table;
use crate::{human, output, progress};

/// How often it is looked whether a voter has taken over.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What an election takes beside leases.
const ELECTING: Duration = Duration::from_secs(10);

/// Arguments of `supervisor`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SupervisorArgs {
    #[command(subcommand)]
    command: SupervisorCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum SupervisorCommand {
    /// Show who supervises, in which term, and how each voter stands
    Status(StatusArgs),
    /// Have a voter supervise: who does hands over; if nobody does, it leads as soon as leases allow
    Takeover(TakeoverArgs),
}

#[derive(Args, Clone, Debug)]
struct StatusArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct TakeoverArgs {
    /// The voter that shall supervise; else the node that is asked
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Print one JSON document: how it stands then
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Shows the supervisor, or has another take over.
///
/// # Errors
/// As [`RemoteArgs::connect`]; `RemoteError` where it is refused; Ctrl-C, which stops nothing; the voter was not elected.
pub(crate) async fn run(args: SupervisorArgs, app: &App) -> anyhow::Result<ExitCode> {
    match args.command {
        SupervisorCommand::Status(args) => {
            let client = args.remote.connect(app).await?;
            let info = app.interrupt.or(client.supervisor()).await??;
            match args.json {
                true => output::json(&info)?,
                false => output::line(&show(&info))?,
            }
        }
        SupervisorCommand::Takeover(args) => {
            let client = args.remote.connect(app).await?;
            let info = app.interrupt.or(take_over(&client, args.node.as_deref())).await??;
            match args.json {
                true => output::json(&info)?,
                false => output::line(&show(&info))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Has it begun, and waits until it is done.
async fn take_over(client: &Client, node: Option<&str>) -> anyhow::Result<SupervisorInfo> {
    let heir = client.take_over(node).await?;
    let (start, mut last) = (Instant::now(), String::new());
    loop {
        let info = client.supervisor().await?;
        if info.leader.as_deref() == Some(heir.as_str()) {
            return Ok(info);
        }
        let longest = Duration::from_millis(2 * info.lease_ms) + ELECTING;
        if start.elapsed() > longest {
            bail!(
                "`{heir}` was not elected within {}: {}; `stellate supervisor status` shows the voters",
                human::seconds(longest.as_secs_f64()),
                who(&info)
            );
        }
        let now = who(&info);
        if now != last {
            progress::note(&format!("waiting for `{heir}`: {now}"));
            last = now;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Who leads, or what is waited for, without what changes by the second.
fn who(info: &SupervisorInfo) -> String {
    let reachable = info.voters.iter().filter(|voter| voter.reachable).count();
    match &info.leader {
        Some(leader) => format!("`{leader}` leads"),
        None if info.voters.iter().any(|voter| voter.bound_ms.is_some()) => {
            format!(
                "nobody leads, and voters are still bound by a lease; {reachable} of {} answer",
                info.voters.len()
            )
        }
        None => format!("nobody leads; {reachable} of {} voters answer", info.voters.len()),
    }
}

fn show(info: &SupervisorInfo) -> String {
    let time = |ms: u64| human::seconds(ms as f64 / 1e3);
    let term = info.term.as_ref().map_or_else(String::new, |term| format!(" in term {term}"));
    if info.voters.is_empty() {
        let who = match &info.leader {
            Some(leader) => format!("`{leader}` supervises{term}"),
            None => "nobody supervises; start the node that does (cluster.supervisor)".to_owned(),
        };
        return format!("{who}\nNo supervisor is elected: cluster.voters is empty");
    }
    let head = match (&info.leader, info.lease_left_ms) {
        (Some(leader), Some(left)) => format!(
            "`{leader}` supervises{term}; its lease of {} lasts {} unless it is renewed",
            time(info.lease_ms),
            time(left)
        ),
        _ => format!("nobody supervises: {} of {} voters must agree", info.majority, info.voters.len()),
    };
    let row = |voter: &VoterInfo| {
        let unknown = || "-".to_owned();
        let state = match (&voter.why, voter.leads) {
            (Some(why), _) => format!("no answer ({why})"),
            (None, true) => "leads".to_owned(),
            (None, false) => "votes".to_owned(),
        };
        vec![
            voter.name.clone(),
            state,
            voter.promised.clone().unwrap_or_else(unknown),
            voter.bound_ms.map_or_else(unknown, time),
            voter.copy.clone().unwrap_or_else(unknown),
        ]
    };
    let header = ["VOTER", "STATE", "PROMISED", "BOUND FOR", "COPY"];
    format!("{head}\n\n{}", table::plain(&header, info.voters.iter().map(row).collect(), 5))
}
