//! Many schedules, several at once: what is told while they are played, and the report of all.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};

use crate::machine::Workshop;
use crate::network::NetworkKind;
use crate::oracle::Oracle;
use crate::play::{Played, Troupe};
use crate::schedule::{Means, Schedule};
use crate::stage::NodeOptions;
use crate::tally::{Tally, quantile};

/// Which schedules are played, and how.
#[derive(Clone, Debug)]
pub struct SchedulesOptions {
    /// How nodes are started.
    pub nodes: NodeOptions,
    /// Seeds.
    pub seeds: Range<u64>,
    /// Nodes at the start.
    pub sizes: RangeInclusive<usize>,
    /// Only so many faults of each.
    pub steps: Option<usize>,
    /// Schedules at the same time.
    pub jobs: usize,
    /// Where logs of those are kept in which something is wrong.
    pub keep: PathBuf,
}

/// Something wrong with the product.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Of the schedule.
    pub seed: u64,
    /// What.
    pub wrong: String,
    /// Where the nodes' logs are.
    pub logs: PathBuf,
}

/// What came of all of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SchedulesReport {
    /// The first seed.
    pub from: u64,
    /// The seed behind the last.
    pub to: u64,
    /// What lay between the nodes.
    #[serde(default)]
    pub network: NetworkKind,
    /// What could not be done on this machine or network, and why.
    pub lacks: Vec<String>,
    /// What was counted.
    pub tally: Tally,
    /// Answers under faults took, in milliseconds: p50, p99, most.
    pub answer_ms: [u64; 3],
    /// From the last mending until every node saw all others, in milliseconds: p50, p99, most.
    pub whole_ms: [u64; 3],
    /// Seconds by the clock.
    pub wall_s: f64,
    /// What is wrong.
    pub failures: Vec<Failure>,
    /// Schedules that could not be played, and why: this program's own failures.
    pub unplayed: Vec<String>,
}

/// Plays schedules. `tell` is told of each.
///
/// # Errors
/// The oracle, the machines or the network cannot be had.
pub async fn play_all(
    options: SchedulesOptions,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<SchedulesReport> {
    let start = Instant::now();
    let network = options.nodes.network;
    network.prepare()?;
    let workshop = Workshop::open()?;
    let oracle = Arc::new(Oracle::open().await?);
    let troupe =
        Troupe { options: options.nodes.clone(), workshop: workshop.clone(), oracle: oracle.clone() };
    let means = Means {
        min_nodes: *options.sizes.start(),
        max_nodes: *options.sizes.end(),
        has_shim: workshop.has_shim(),
        has_disks: workshop.has_disks(),
    };
    let mut report = SchedulesReport {
        from: options.seeds.start,
        to: options.seeds.end,
        network,
        lacks: workshop.lacks().into_iter().chain(network.lacks()).collect(),
        tally: Tally::default(),
        answer_ms: [0; 3],
        whole_ms: [0; 3],
        wall_s: 0.0,
        failures: Vec::new(),
        unplayed: Vec::new(),
    };
    let mut seeds = options.seeds.clone();
    let mut playing = FuturesUnordered::new();
    loop {
        while playing.len() < options.jobs.max(1)
            && let Some(seed) = seeds.next()
        {
            let (troupe, logs) = (troupe.clone(), options.keep.join(format!("seed-{seed}")));
            let schedule = Schedule::generate(seed, means).cut_to(options.steps.unwrap_or(usize::MAX));
            playing.push(async move {
                let played = troupe.play(&schedule, &logs).await;
                (seed, logs, played)
            });
        }
        let Some((seed, logs, played)) = playing.next().await else { break };
        tell(&report.take(seed, logs, played));
    }
    report.answer_ms = three(&report.tally.answer_ms);
    report.whole_ms = three(&report.tally.whole_ms);
    report.wall_s = start.elapsed().as_secs_f64();
    oracle.close().await;
    Ok(report)
}

impl SchedulesReport {
    /// Takes one in, and says what came of it.
    fn take(&mut self, seed: u64, logs: PathBuf, played: anyhow::Result<Played>) -> String {
        let Played { tally, wrong } = match played {
            Ok(played) => played,
            Err(error) => {
                let line = format!("seed {seed}: not played: {error:#}");
                self.unplayed.push(line.clone());
                return line;
            }
        };
        let line = format!(
            "seed {seed}: {} nodes, {} rounds, {} faults, {} answers as by one process, {} typed errors, {} turns found, \
             {:.1} s",
            tally.nodes,
            tally.rounds,
            tally.all_faults(),
            tally.answers,
            tally.typed_errors(),
            tally.turns_found,
            tally.seconds
        );
        self.tally.add(tally);
        match wrong {
            None => line,
            Some(wrong) => {
                let wrong = wrong.to_string();
                let shown = format!("{line}\nseed {seed} FAILED: {wrong}\n  logs: {}", logs.display());
                self.failures.push(Failure { seed, wrong, logs });
                shown
            }
        }
    }

    /// Whether nothing is wrong, and all was played.
    pub fn is_good(&self) -> bool {
        self.failures.is_empty() && self.unplayed.is_empty()
    }
}

/// p50, p99 and the most.
fn three(values: &[u64]) -> [u64; 3] {
    [500, 990, 1000].map(|permille| quantile(values, permille).unwrap_or(0))
}
