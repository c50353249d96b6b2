//! `stellate doctor`: certificates, clocks and paths, seen from here and from the node that is asked.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use stellate_actors::api::{Check, Client, Finding, RemoteError};

use crate::app::App;
use crate::remote::RemoteArgs;
use crate::report::table;
use crate::{exit, human, output};

/// Clocks that differ by more than this make dates of certificates unsafe: they are backdated by ten minutes.
pub(crate) const CLOCK_LIMIT_S: f64 = 60.0;

/// Arguments of `doctor`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DoctorArgs {
    /// Print one JSON document: a list of checks
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Checks; exit code 4 if anything is bad.
///
/// # Errors
/// As [`RemoteArgs::connect`]; Ctrl-C.
pub(crate) async fn run(args: DoctorArgs, app: &App) -> anyhow::Result<ExitCode> {
    let client = args.remote.connect(app).await?;
    let mut checks = app.interrupt.or(from_here(&client)).await??;
    checks.extend(app.interrupt.or(client.doctor()).await??);
    if args.json {
        output::json(&checks)?;
    } else {
        let word = |finding| match finding {
            Finding::Good => "good",
            Finding::Warning => "WARNING",
            Finding::Bad => "BAD",
        };
        let row = |check: &Check| {
            vec![check.node.clone(), check.what.clone(), word(check.finding).to_owned(), check.detail.clone()]
        };
        let header = ["NODE", "CHECK", "FINDING", "DETAIL"];
        output::line(&table::plain(&header, checks.iter().map(row).collect(), 4))?;
    }
    let is_bad = checks.iter().any(|check| check.finding == Finding::Bad);
    Ok(if is_bad { ExitCode::from(exit::PARTLY) } else { ExitCode::SUCCESS })
}

/// How far clocks are apart, in words.
pub(crate) fn clock_detail(apart_s: f64) -> String {
    format!("{} apart", human::seconds(apart_s))
}

/// The path to the node, and its clock.
async fn from_here(client: &Client) -> Result<Vec<Check>, RemoteError> {
    let about = client.about().await?;
    let path = client.path().await?;
    let node = format!("here -> {}", client.peer().name);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let apart_s = (now.as_millis() as f64 - about.wall_ms as f64).abs() / 1e3;
    let check =
        |what: &str, finding, detail| Check { node: node.clone(), what: what.to_owned(), finding, detail };
    let clock = if apart_s > CLOCK_LIMIT_S { Finding::Bad } else { Finding::Good };
    Ok(vec![
        check("reachability", Finding::Good, format!("connected to {}", client.address())),
        check("rtt", Finding::Good, human::seconds(path.rtt.as_secs_f64())),
        check("mtu", Finding::Good, format!("{} bytes, {} packets lost", path.mtu_bytes, path.lost_packets)),
        check("clock", clock, clock_detail(apart_s)),
    ])
}
