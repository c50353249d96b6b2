//! `cargo xtask`: parse, run one command, end with its exit code. What is done is in the library.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's results and progress")]

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs, thread};

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stellate_xtask::failover::{self, FailoverReport};
use stellate_xtask::fuzz::fuzz;
use stellate_xtask::namespaces::permitted;
use stellate_xtask::network::NetworkKind;
use stellate_xtask::overload::{OverloadReport, overload};
use stellate_xtask::reliability::Reports;
use stellate_xtask::schedules::{SchedulesOptions, SchedulesReport, play_all};
use stellate_xtask::simulate::simulate;
use stellate_xtask::soak::{SoakReport, soak};
use stellate_xtask::stage::NodeOptions;

/// How many schedules, losses, minutes and sessions are published.
const SCHEDULES: u64 = 300;
const IN_NAMESPACES: u64 = 40;
const LOSSES: usize = 40;
const SOAK_MINUTES: f64 = 20.0;
const SESSIONS: usize = 200;

/// How long seeds of the simulator are run.
const SIMULATED_MINUTES: f64 = 60.0;
const PUBLISHED_MINUTES: f64 = 2.0;

/// How long each target is fuzzed.
const FUZZ_MINUTES: f64 = 10.0;

/// The exit code if something is wrong with what was looked at, and nothing with the looking.
const WRONG: u8 = 4;

/// What is done to Stellate to publish how it behaves under faults.
#[derive(Debug, Parser)]
#[command(name = "xtask", max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

/// Of all commands.
#[derive(Args, Debug)]
struct CommonArgs {
    /// The `stellate` program; without it, the one beside this program
    #[arg(long, global = true, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// A setting of all nodes, as in cluster.replicas=2
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// What nodes log
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    node_log: String,
    /// Write what was found to this file too
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play random schedules of faults on clusters of real processes
    Schedules(SchedulesArgs),
    /// Kill and freeze nodes under an answer, and measure how long it waits
    Failover {
        /// How often, killed and frozen in turn
        #[arg(long, default_value_t = LOSSES)]
        losses: usize,
    },
    /// Ask a cluster for long, and see whether its processes grow
    Soak {
        /// For how long
        #[arg(long, default_value_t = SOAK_MINUTES)]
        minutes: f64,
    },
    /// Run the simulator for long, seed after seed
    Simulate {
        /// For how long
        #[arg(long, default_value_t = SIMULATED_MINUTES)]
        minutes: f64,
        /// The first seed
        #[arg(long, value_name = "SEED", default_value_t = 1)]
        from: u64,
    },
    /// Ask a small cluster for far more sessions than it takes
    Overload {
        /// How many at once
        #[arg(long, default_value_t = SESSIONS)]
        sessions: usize,
    },
    /// Fuzz what comes from outside, and keep the inputs that reach new code
    Fuzz {
        /// For how long each target
        #[arg(long, default_value_t = FUZZ_MINUTES)]
        minutes: f64,
        /// This target alone
        #[arg(long)]
        target: Option<String>,
    },
    /// Write ops/docs/reliability.md: measure all of it, or take what was written with --json before
    Reliability(ReliabilityArgs),
}

#[derive(Args, Debug)]
struct SchedulesArgs {
    /// How many, one seed each
    #[arg(long, default_value_t = SCHEDULES)]
    seeds: u64,
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    from: u64,
    /// This seed alone
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Only the first so many faults of each schedule
    #[arg(long, value_name = "COUNT")]
    steps: Option<usize>,
    /// Nodes at the start: a number, or a range as in 3..6 (both ends)
    #[arg(long, default_value = "3..6", value_parser = range)]
    nodes: RangeInclusive<usize>,
    /// Put nodes into network namespaces, with rules of nft that lose packets, in place of relays; Linux and root only
    #[arg(long)]
    namespaces: bool,
    /// Schedules at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Where logs are kept of schedules in which something is wrong
    #[arg(long, value_name = "FOLDER", default_value = "target/faults")]
    keep: PathBuf,
}

#[derive(Args, Debug)]
struct ReliabilityArgs {
    /// What `schedules` wrote
    #[arg(long, value_name = "FILE")]
    schedules: Option<PathBuf>,
    /// What `schedules --namespaces` wrote; it is left out without
    #[arg(long, value_name = "FILE")]
    namespaces: Option<PathBuf>,
    /// What `failover` wrote
    #[arg(long, value_name = "FILE")]
    failover: Option<PathBuf>,
    /// What `soak` wrote
    #[arg(long, value_name = "FILE")]
    soak: Option<PathBuf>,
    /// What `overload` wrote
    #[arg(long, value_name = "FILE")]
    overload: Option<PathBuf>,
    /// Figures of the simulator: an object of names and values
    #[arg(long, value_name = "FILE")]
    simulator: Option<PathBuf>,
    /// What else is to be known of how it was measured, as a sentence
    #[arg(long, value_name = "TEXT")]
    remark: Option<String>,
    /// The document
    #[arg(long, value_name = "FILE", default_value = "ops/docs/reliability.md")]
    out: PathBuf,
}

fn range(text: &str) -> Result<RangeInclusive<usize>, String> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let number = |text: &str| text.parse::<usize>().map_err(|error| format!("`{text}`: {error}"));
    let range = number(from)?..=number(to)?;
    match range.is_empty() || *range.start() < 2 {
        true => Err(format!("`{text}` is no range of 2 or more nodes")),
        false => Ok(range),
    }
}

impl CommonArgs {
    fn nodes(&self) -> anyhow::Result<NodeOptions> {
        let program = match &self.binary {
            Some(binary) => binary.clone(),
            None => env::current_exe()?.with_file_name(format!("stellate{}", env::consts::EXE_SUFFIX)),
        };
        let program = program.canonicalize().with_context(|| {
            format!(
                "there is no {}; build it with `cargo build -p stellate`, or give --binary",
                program.display()
            )
        })?;
        let mut settings = Vec::new();
        for setting in &self.settings {
            let (key, value) = setting.split_once('=').context("--set takes KEY=VALUE")?;
            ensure!(key.contains('.'), "`{key}` is no key of cluster.toml, such as cluster.replicas");
            let name = format!("STELLATE_{}", key.replace('.', "__").to_uppercase());
            settings.push((name, value.to_owned()));
        }
        let (log_level, network) = (self.node_log.clone(), NetworkKind::Relays);
        Ok(NodeOptions { program, settings, log_level, network })
    }

    /// Prints a report, and writes it to the file.
    fn report(&self, report: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(report)?;
        if let Some(file) = &self.json {
            fs::write(file, format!("{text}\n"))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        println!("{text}");
        Ok(())
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        tokio::select! {
            done = run(&cli) => done,
            // What was started ends with what holds it.
            interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| ExitCode::from(130)).map_err(Into::into),
        }
    });
    drop(runtime);
    done
}

async fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    if let Command::Simulate { minutes, from } = &cli.command {
        let is_good = simulate(&root()?, *minutes, *from, cli.common.json.as_deref())?;
        return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(WRONG) });
    }
    if let Command::Fuzz { minutes, target } = &cli.command {
        let root = root()?;
        let reports = fuzz(&root, minutes_of(*minutes).as_secs(), target.as_deref(), say)?;
        cli.common.report(&reports)?;
        let is_good = reports.iter().all(|report| report.found.is_empty());
        return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(WRONG) });
    }
    let nodes = cli.common.nodes()?;
    let is_good = match &cli.command {
        Command::Fuzz { .. } | Command::Simulate { .. } => unreachable!("they need no nodes"),
        Command::Schedules(args) => {
            let report = play_all(args.options(nodes), say).await?;
            cli.common.report(&report)?;
            report.is_good()
        }
        Command::Failover { losses } => {
            cli.common.report(&failover::measure(&nodes, *losses, say).await?)?;
            true
        }
        Command::Soak { minutes } => {
            let report = soak(&nodes, minutes_of(*minutes), say).await?;
            cli.common.report(&report)?;
            report.failure.is_none()
        }
        Command::Overload { sessions } => {
            cli.common.report(&overload(&nodes, *sessions, say).await?)?;
            true
        }
        Command::Reliability(args) => {
            publish(args, nodes).await?;
            true
        }
    };
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}

/// The folder of the workspace.
fn root() -> std::io::Result<PathBuf> {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()
}

fn say(line: &str) {
    eprintln!("{line}");
}

fn minutes_of(minutes: f64) -> Duration {
    Duration::from_secs_f64(60.0 * minutes.max(0.0))
}

impl SchedulesArgs {
    fn options(&self, mut nodes: NodeOptions) -> SchedulesOptions {
        if self.namespaces {
            nodes.network = NetworkKind::Namespaces;
        }
        let seeds = match self.seed {
            Some(seed) => seed..seed + 1,
            None => self.from..self.from + self.seeds,
        };
        let (sizes, keep) = (self.nodes.clone(), self.keep.clone());
        SchedulesOptions { nodes, seeds, sizes, steps: self.steps, jobs: self.jobs, keep }
    }
}

/// Takes a report from a file, if there is one.
fn taken<T: DeserializeOwned>(file: Option<&PathBuf>) -> anyhow::Result<Option<T>> {
    let Some(file) = file else { return Ok(None) };
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let report = serde_json::from_str(&text);
    report
        .map(Some)
        .with_context(|| format!("{} is no such report; write it anew with --json", file.display()))
}

async fn publish(args: &ReliabilityArgs, nodes: NodeOptions) -> anyhow::Result<()> {
    let all = |network, count| {
        let (nodes, keep) = (NodeOptions { network, ..nodes.clone() }, "target/faults".into());
        SchedulesOptions { nodes, seeds: 0..count, sizes: 3..=6, steps: None, jobs: 2, keep }
    };
    let given: Option<SchedulesReport> = taken(args.schedules.as_ref())?;
    let in_namespaces: Option<SchedulesReport> = taken(args.namespaces.as_ref())?;
    ensure!(
        given.as_ref().is_none_or(|report| report.network == NetworkKind::Relays),
        "--schedules takes a report that was played with relays; give this one as --namespaces"
    );
    ensure!(
        in_namespaces.as_ref().is_none_or(|report| report.network == NetworkKind::Namespaces),
        "--namespaces takes a report of `schedules --namespaces`; give this one as --schedules"
    );
    let schedules = match given {
        Some(report) => report,
        None => play_all(all(NetworkKind::Relays, SCHEDULES), say).await?,
    };
    let namespaces = match in_namespaces {
        Some(report) => Some(report),
        None => match permitted() {
            Ok(()) => Some(play_all(all(NetworkKind::Namespaces, IN_NAMESPACES), say).await?),
            Err(error) => {
                say(&format!("no schedules in namespaces: {error}"));
                None
            }
        },
    };
    let failover: FailoverReport = match taken(args.failover.as_ref())? {
        Some(report) => report,
        None => failover::measure(&nodes, LOSSES, say).await?,
    };
    let soak: SoakReport = match taken(args.soak.as_ref())? {
        Some(report) => report,
        None => soak(&nodes, minutes_of(SOAK_MINUTES), say).await?,
    };
    let overload: OverloadReport = match taken(args.overload.as_ref())? {
        Some(report) => report,
        None => overload(&nodes, SESSIONS, say).await?,
    };
    let simulator = match taken(args.simulator.as_ref())? {
        Some(figures) => figures,
        None => {
            let file = tempfile::NamedTempFile::new()?;
            // Seeds that fail are among the figures.
            simulate(&root()?, PUBLISHED_MINUTES, 1, Some(file.path()))?;
            serde_json::from_reader(file).context("the simulator did not end well")?
        }
    };
    let (machine, date, remark) = (machine(), date()?, args.remark.clone());
    let reports = Reports {
        machine,
        date,
        remark,
        schedules,
        namespaces,
        failover,
        soak,
        overload,
        simulator: Some(simulator),
    };
    fs::write(&args.out, reports.to_markdown())
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    say(&format!("{} is written", args.out.display()));
    Ok(())
}

/// The machine, in words.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let name = name.map_or(env::consts::ARCH, |(_, name)| name);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} threads of {name}, {}", env::consts::OS)
}

/// Today, as in 2026-01-31.
fn date() -> anyhow::Result<String> {
    let output =
        std::process::Command::new("date").args(["-u", "+%F"]).output().context("cannot run `date`")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
