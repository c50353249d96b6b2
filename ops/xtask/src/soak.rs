//! A cluster that is asked for long, now and then over a bad network or with a node that stands still: does any process grow, and
//! is anybody held for dead who is not?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use stellate_actors::api::NodeState;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::caller::{Caller, Pulse};
use crate::machine::Workshop;
use crate::oracle::Oracle;
use crate::schedule::{DOCUMENTS, FACTS, Work};
use crate::stage::{NodeOptions, Stage};
use crate::tally::Tally;
use crate::weather::Chances;

const NODES: usize = 3;
const CALLERS: usize = 3;

/// How often processes are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often something happens: a node stands still, or the network turns bad or good.
const HAPPENS_EVERY: Duration = Duration::from_secs(30);

/// The first part of a soak, in which caches and allocators fill, in thousandths: no growth is fitted to it.
const WARMING_PERMILLE: usize = 250;

/// Longest that a node stands still, in milliseconds: shorter than the suspicion of membership.
const MAX_STALL_MS: u64 = 8000;

/// A process at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Since the start, in seconds.
    pub at_s: f64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes of its data folder.
    pub disk_bytes: u64,
}

/// A process over time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Course {
    /// The node's name.
    pub node: String,
    /// What was seen of it.
    pub samples: Vec<Sample>,
    /// Growth once it was warm, by least squares, in KiB a minute.
    pub rss_kib_per_min: f64,
    /// The same of file descriptors, a minute.
    pub descriptors_per_min: f64,
    /// The same of its folder, in KiB a minute: logs of turns are kept until sessions are closed.
    pub disk_kib_per_min: f64,
}

/// What came of a soak.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SoakReport {
    /// How long, in minutes.
    pub minutes: f64,
    /// Each process.
    pub courses: Vec<Course>,
    /// Answers, all equal to those of one process.
    pub answers: u64,
    /// Operations that ended with a typed error.
    pub typed_errors: u64,
    /// Stalls, each of at most 8 s.
    pub stalls: u64,
    /// Nodes times hours.
    pub host_hours: f64,
    /// How often a node was held for dead by another while it was not.
    pub false_downs: u64,
    /// How often one was suspected.
    pub suspicions: u64,
    /// What is wrong, if anything.
    pub failure: Option<String>,
}

/// Soaks a cluster for `time`. `tell` is told once a minute.
///
/// # Errors
/// The cluster does not come up.
pub async fn soak(
    options: &NodeOptions,
    time: Duration,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<SoakReport> {
    let workshop = Workshop::open()?;
    let oracle = Arc::new(Oracle::open().await?);
    let mut stage = Stage::open(options, &workshop, 1, NODES).await?;
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for index in 0..CALLERS {
        let caller = Caller::new(stage.door(index % NODES), oracle.clone(), Pulse::default());
        callers.spawn(keep_asking(caller, index as u64, start + time));
    }
    let mut watch = Watch::default();
    let mut chance = ChaCha8Rng::seed_from_u64(1);
    let mut courses: BTreeMap<usize, Vec<Sample>> = BTreeMap::new();
    let (mut stalls, mut happens, mut is_bad) = (0, HAPPENS_EVERY, false);
    while start.elapsed() < time {
        for node in 0..NODES {
            courses.entry(node).or_default().extend(sample(&mut stage, node, start.elapsed()));
        }
        watch.look(&stage).await;
        if start.elapsed() >= happens {
            happens += HAPPENS_EVERY;
            is_bad = !is_bad;
            let bad = Chances { lost_permille: 10, late_permille: 10, delay_us: 1000, ..Chances::default() };
            stage.network().set(if is_bad { bad } else { Chances::default() })?;
            if is_bad {
                stalls += 1;
                let stall = Duration::from_millis(chance.random_range(500..=MAX_STALL_MS));
                stage.freeze(chance.random_range(0..NODES), stall)?;
            }
            if !is_bad {
                tell(&told(start.elapsed(), &courses));
            }
        }
        sleep(LOOK_EVERY).await;
    }
    let mut tally = Tally::default();
    let mut failure = None;
    while let Some(ended) = callers.join_next().await {
        let (more, wrong) = ended??;
        tally.add(more);
        failure = failure.or(wrong);
    }
    failure = failure.or(stage.mend(true).await?.err().map(|wrong| wrong.to_string()));
    failure = failure.or(stage.look().err().map(|wrong| wrong.to_string()));
    if failure.is_some() {
        stage.keep_logs("target/faults/soak".as_ref())?;
    }
    failure = stage.close().await.err().map(|wrong| wrong.to_string()).or(failure);
    oracle.close().await;
    Ok(SoakReport {
        minutes: time.as_secs_f64() / 60.0,
        courses: courses.into_iter().map(|(node, samples)| course(node, samples)).collect(),
        answers: tally.answers,
        typed_errors: tally.typed_errors(),
        stalls,
        host_hours: NODES as f64 * start.elapsed().as_secs_f64() / 3600.0,
        false_downs: watch.downs,
        suspicions: watch.suspicions,
        failure,
    })
}

/// Encodes, asks and forgets again, until the time is over.
async fn keep_asking(
    mut caller: Caller,
    seed: u64,
    until: Instant,
) -> anyhow::Result<(Tally, Option<String>)> {
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    while Instant::now() < until {
        let mut work = vec![Work::Open {
            document: chance.random_range(0..DOCUMENTS),
            is_exact: chance.random_range(0..4) == 0,
        }];
        for turn in 0..4 {
            work.push(Work::Ask { fact: chance.random_range(0..FACTS), is_long: turn == 2 });
        }
        work.extend([Work::Append, Work::Ask { fact: 0, is_long: false }]);
        for done in [caller.work(&work).await?, caller.forget().await?] {
            if let Err(wrong) = done {
                return Ok((caller.tally, Some(wrong.to_string())));
            }
        }
    }
    Ok((caller.tally, None))
}

/// What nodes say of each other.
#[derive(Debug, Default)]
struct Watch {
    seen: BTreeSet<(usize, String, &'static str)>,
    downs: u64,
    suspicions: u64,
}

impl Watch {
    /// Asks every node for the states of the others. All of them live: none may be held for dead.
    async fn look(&mut self, stage: &Stage) {
        let mut seen = BTreeSet::new();
        for node in stage.cluster().running() {
            let asked = async { stage.door(node).client().await?.nodes().await };
            // One that stands still says nothing.
            let Ok(Ok(others)) = timeout(Duration::from_secs(1), asked).await else { continue };
            let states = others.into_iter().filter_map(|other| match other.state {
                NodeState::Down => Some((node, other.name, "down")),
                NodeState::Suspect => Some((node, other.name, "suspect")),
                _ => None,
            });
            seen.extend(states);
        }
        for (_, _, state) in seen.difference(&self.seen) {
            match *state {
                "down" => self.downs += 1,
                _ => self.suspicions += 1,
            }
        }
        self.seen = seen;
    }
}

/// What the system says of a node's process; nothing where it says nothing.
fn sample(stage: &mut Stage, node: usize, at: Duration) -> Option<Sample> {
    let pid = stage.cluster().nodes()[node].pid()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let figure = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Sample {
        at_s: at.as_secs_f64(),
        rss_bytes: figure("VmRSS:")? << 10,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        threads: figure("Threads:")?,
        disk_bytes: size_of(&stage.machine(node).data()),
    })
}

fn size_of(folder: &std::path::Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => size_of(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

fn course(node: usize, samples: Vec<Sample>) -> Course {
    let warm = &samples[samples.len() * WARMING_PERMILLE / 1000..];
    Course {
        node: format!("node-{}", node + 1),
        rss_kib_per_min: per_min(warm, |sample| sample.rss_bytes) / 1024.0,
        descriptors_per_min: per_min(warm, |sample| sample.descriptors),
        disk_kib_per_min: per_min(warm, |sample| sample.disk_bytes) / 1024.0,
        samples,
    }
}

/// By how much a figure grows a minute.
fn per_min(samples: &[Sample], figure: impl Fn(&Sample) -> u64) -> f64 {
    60.0 * slope(&samples.iter().map(|sample| (sample.at_s, figure(sample) as f64)).collect::<Vec<_>>())
}

/// Least squares: by how much the second grows while the first grows by one; 0 for fewer than two points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |values: f64| values / count.max(1.0);
    let (x, y) = (mean(points.iter().map(|p| p.0).sum()), mean(points.iter().map(|p| p.1).sum()));
    let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    let both: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    if spread > 0.0 { both / spread } else { 0.0 }
}

fn told(at: Duration, courses: &BTreeMap<usize, Vec<Sample>>) -> String {
    let last = courses.values().filter_map(|samples| samples.last());
    let each = last.map(|sample| {
        format!("{} MiB, {} fds, {} threads", sample.rss_bytes >> 20, sample.descriptors, sample.threads)
    });
    format!("{:.0} s: {}", at.as_secs_f64(), each.collect::<Vec<_>>().join("; "))
}

impl SoakReport {
    /// Resident memory of a process at the start of the fit and at its end, in MiB.
    ///
    /// # Errors
    /// There are no samples.
    pub fn ends(course: &Course) -> anyhow::Result<[f64; 2]> {
        let warm = &course.samples[course.samples.len() * WARMING_PERMILLE / 1000..];
        let mib = |sample: &Sample| sample.rss_bytes as f64 / f64::from(1 << 20);
        let (first, last) = warm.first().zip(warm.last()).context("a soak without samples")?;
        Ok([mib(first), mib(last)])
    }

    /// Growth of a process's resident memory over the second half alone, in KiB a minute: whether it levels off.
    pub fn late_rss_kib_per_min(course: &Course) -> f64 {
        per_min(&course.samples[course.samples.len() / 2..], |sample| sample.rss_bytes) / 1024.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_slope_and_noise_around_a_level_has_none() {
        let line: Vec<_> = (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 1.0)).collect();
        assert!((slope(&line) - 3.0).abs() < 1e-9);
        let level: Vec<_> =
            (0..10i32).map(|x| (f64::from(x), f64::from((x * x + 9 - 9 * x).pow(2)))).collect();
        assert!(slope(&level).abs() < 1e-9);
        assert!(slope(&[]).abs() < 1e-9 && slope(&[(1.0, 1.0)]).abs() < 1e-9);
    }
}
