//! `stellate bench cluster`: what the network between nodes costs, on the loopback interface of this machine, each figure beside
//! the floor that it can be held against, measured in the same run. Nodes within this process are in `nodes.rs`; what is
//! measured on them in `fanout.rs` and `copies.rs`; gossip in `gossip.rs`; clusters of processes in `processes.rs`.

mod copies;
mod fanout;
mod gossip;
mod nodes;
mod processes;

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;

use self::copies::Copies;
use self::fanout::FanOut;
use self::gossip::Gossip;
use self::processes::Processes;
use crate::app::App;
use crate::report::machine::Machine;
use crate::settings::{ModelArgs, NodeArgs, Overrides};
use crate::{output, progress};

const AFTER_HELP: &str = "\
All nodes share this machine's cores and its loopback interface. A fan-out sends one token's queries in the shape of Llama 3.2 1B to \
context hosts of as many nodes, which attend one key, and collects their partials; the bare echo moves the same bytes over QUIC streams \
with the same settings, without threads of hosts. Copies are of one block of 64 MiB. Gossip is what members of a cluster in which \
nothing happens send each other, by a simulated clock. With --parts processes, real nodes are started, asked and killed.";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One layer's fan-out to 1, 2, 4 and 8 hosts beside a bare echo
    Fanout,
    /// A block's way to another node beside bare bytes
    Copies,
    /// What membership sends
    Gossip,
    /// Decode, encode, kill and join with processes
    Processes,
}

/// Arguments of `bench cluster`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchClusterArgs {
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_value = "fanout,copies,gossip,processes")]
    parts: Vec<Part>,
    /// Fan-outs of each kind, in each of three turns
    #[arg(long, value_name = "N", default_value = "1000", value_parser = super::positive)]
    rounds: usize,
    /// Copies of each kind
    #[arg(long, value_name = "N", default_value = "8", value_parser = super::positive)]
    copies: usize,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// All of it, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    fan_out: Option<Vec<FanOut>>,
    copies: Option<Copies>,
    gossip: Option<Vec<Gossip>>,
    processes: Option<Processes>,
}

impl BenchClusterArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.model.override_settings(overrides);
        self.node.override_settings(overrides);
    }

    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }
}

/// Measures and tells.
///
/// # Errors
/// What keeps a part from being measured; the parts before it are told.
pub(crate) async fn run(args: BenchClusterArgs, app: &App) -> anyhow::Result<ExitCode> {
    let machine = Machine::read(app.settings.query.threads)?;
    if !machine.optimised {
        progress::note("this is not an optimised build: its figures mean nothing");
    }
    let mut report = Report { machine, fan_out: None, copies: None, gossip: None, processes: None };
    let ended = app.interrupt.or(measure(&args, app, &mut report)).await;
    let told = match args.json {
        true => output::json(&report),
        false => output::line(&report.to_text()).map_err(Into::into),
    };
    ended??;
    told.map(|()| ExitCode::SUCCESS)
}

async fn measure(args: &BenchClusterArgs, app: &App, report: &mut Report) -> anyhow::Result<()> {
    if args.wants(Part::Fanout) {
        report.fan_out = Some(fanout::measure(args.rounds).await?);
    }
    if args.wants(Part::Copies) {
        report.copies = Some(copies::measure(args.copies).await?);
    }
    if args.wants(Part::Gossip) {
        report.gossip = Some(tokio::task::spawn_blocking(gossip::measure).await??);
    }
    if args.wants(Part::Processes) {
        report.processes = Some(processes::measure(&args.model, &app.settings).await?);
    }
    Ok(())
}

impl Report {
    fn to_text(&self) -> String {
        let machine = &self.machine;
        let head =
            format!("{}, {} cores, {}, {} UTC", machine.cpu, machine.cores, machine.backend, machine.date);
        let parts = [
            self.fan_out.as_deref().map(fanout::table),
            self.copies.as_ref().map(Copies::to_text),
            self.gossip.as_deref().map(gossip::table),
            self.processes.as_ref().map(Processes::to_text),
        ];
        std::iter::once(head).chain(parts.into_iter().flatten()).collect::<Vec<_>>().join("\n\n")
    }
}

/// The value below which a share of the sorted `values` lies; 0 of none.
fn quantile(values: &[f64], share: f64) -> f64 {
    let at = (values.len().saturating_sub(1) as f64 * share) as usize;
    values.get(at).copied().unwrap_or(0.0)
}
