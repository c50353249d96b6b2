//! Plays one schedule: faults and clients beside each other, round by round; then everything is mended, and looked at.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stellate_actors::api::{DrainRequest, Moves, RemoteError};
use tokio::task::JoinSet;

use crate::caller::{Caller, Pulse};
use crate::machine::Workshop;
use crate::oracle::Oracle;
use crate::outcome::{Wrong, of_remote};
use crate::schedule::{Fault, Round, Schedule, Step};
use crate::stage::{NodeOptions, Stage};
use crate::tally::{Tally, WELL};

/// Longest that what an operator asked for is watched; it may go on.
const WATCHED: Duration = Duration::from_secs(60);

/// What came of a schedule.
#[derive(Debug)]
pub struct Played {
    /// What was counted.
    pub tally: Tally,
    /// What is wrong with the product, if anything; the rest of the schedule was not played then.
    pub wrong: Option<Wrong>,
}

/// What schedules are played with.
#[derive(Clone, Debug)]
pub struct Troupe {
    /// How nodes are started.
    pub options: NodeOptions,
    /// What machines can do.
    pub workshop: Workshop,
    /// One process without faults.
    pub oracle: Arc<Oracle>,
}

impl Troupe {
    /// Plays a schedule. The nodes' logs are kept in `logs` if something is wrong.
    ///
    /// # Errors
    /// This program's own: the cluster cannot be started, a file cannot be written.
    pub async fn play(&self, schedule: &Schedule, logs: &Path) -> anyhow::Result<Played> {
        let start = Instant::now();
        let mut stage = Stage::open(&self.options, &self.workshop, schedule.seed, schedule.nodes).await?;
        let clients = schedule.rounds.first().map_or(0, |round| round.work.len());
        let pulse = Pulse::default();
        let caller =
            |index| Caller::new(stage.door(index % schedule.nodes), self.oracle.clone(), pulse.clone());
        let mut callers: Vec<_> = (0..clients).map(caller).collect();
        let mut tally = Tally { schedules: 1, nodes: schedule.nodes as u64, ..Tally::default() };
        let wrong = act(&mut stage, &pulse, schedule, &mut callers, &mut tally).await?.err();
        for caller in callers {
            tally.add(caller.tally);
        }
        tally.packets = stage.network().packets()?;
        let wrong = match wrong {
            Some(wrong) => {
                stage.keep_logs(logs)?;
                std::fs::write(logs.join("schedule.txt"), format!("{schedule}\n{wrong}\n"))?;
                // However the nodes end now.
                let _ = stage.close().await;
                Some(wrong)
            }
            None => stage.close().await.err(),
        };
        tally.seconds = start.elapsed().as_secs_f64();
        Ok(Played { tally, wrong })
    }
}

type Acted = anyhow::Result<Result<(), Wrong>>;

/// Unwraps what went well, or returns what is wrong.
macro_rules! or_wrong {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(wrong) => return Ok(Err(wrong)),
        }
    };
}

async fn act(
    stage: &mut Stage,
    pulse: &Pulse,
    schedule: &Schedule,
    callers: &mut Vec<Caller>,
    tally: &mut Tally,
) -> Acted {
    for round in &schedule.rounds {
        or_wrong!(play_round(stage, pulse, round, callers, tally).await?);
        or_wrong!(stage.look());
        or_wrong!(stage.mend(false).await?);
        tally.rounds += 1;
    }
    or_wrong!(stage.mend(true).await?);
    let whole = or_wrong!(stage.until_whole().await?);
    tally.whole_ms.push(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX));
    or_wrong!(stage.until_idle().await);
    for caller in callers {
        or_wrong!(caller.look_back().await?);
    }
    or_wrong!(stage.until_idle().await);
    Ok(stage.look())
}

async fn play_round(
    stage: &mut Stage,
    pulse: &Pulse,
    round: &Round,
    callers: &mut Vec<Caller>,
    tally: &mut Tally,
) -> Acted {
    let before = pulse.count();
    let mut working = JoinSet::new();
    for (index, (mut caller, work)) in callers.drain(..).zip(round.work.clone()).enumerate() {
        working.spawn(async move {
            let done = caller.work(&work).await;
            (index, caller, done)
        });
    }
    let mut ended = Vec::new();
    let mut orders = JoinSet::new();
    for Step { after, fault } in &round.steps {
        // Whichever comes first: enough has happened, or nothing more will.
        let enough = pulse.reaches(before + after);
        tokio::pin!(enough);
        loop {
            tokio::select! {
                () = &mut enough => break,
                next = working.join_next() => match next {
                    Some(one) => ended.push(one?),
                    None => break,
                },
            }
        }
        apply(stage, *fault, &mut orders, tally).await?;
    }
    while let Some(one) = working.join_next().await {
        ended.push(one?);
    }
    ended.sort_by_key(|(index, ..)| *index);
    let mut wrong = Ok(());
    for (_, caller, done) in ended {
        wrong = wrong.and(done?);
        callers.push(caller);
    }
    while let Some(order) = orders.join_next().await {
        let (what, ended) = order?;
        match ended {
            Ok(how) => tally.operator(what, &how),
            Err(error) => wrong = wrong.and(Err(error)),
        }
    }
    Ok(wrong)
}

type Order = (&'static str, Result<String, Wrong>);

/// Lets a fault happen; what takes its time goes on in `orders`.
async fn apply(
    stage: &mut Stage,
    fault: Fault,
    orders: &mut JoinSet<Order>,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    tally.fault(fault.kind());
    match fault {
        Fault::Kill { node } => stage.kill(at(stage, node), 0)?,
        Fault::KillForLong { node } => stage.kill(at(stage, node), 1)?,
        Fault::KillAll => {
            for node in 0..stage.nodes() {
                stage.kill(node, 0)?;
            }
        }
        Fault::Freeze { node, ms } => stage.freeze(at(stage, node), Duration::from_millis(ms))?,
        Fault::Weather(chances) => stage.network().set(chances)?,
        Fault::CutOneWay { from, to } => stage.network().cut(&[(from, to)])?,
        Fault::CutOff { node, is_mute } => {
            let others = (0..stage.nodes()).filter(|other| *other != node);
            let ways = others.map(|other| if is_mute { (node, other) } else { (other, node) });
            let ways: Vec<_> = ways.collect();
            stage.network().cut(&ways)?;
        }
        Fault::FullDisk { node } => {
            let node = at(stage, node);
            stage.machine(node).fill_disk(true)?;
        }
        Fault::SlowDisk { node, ms } => {
            let node = at(stage, node);
            stage.machine(node).slow_syncs(ms)?;
        }
        Fault::Clock { node, ms } => {
            let node = at(stage, node);
            stage.machine(node).skew_clock(ms)?;
        }
        Fault::Join => match stage.join().await {
            Ok(()) => tally.operator("join", WELL),
            Err(error) => tally.operator("join", &refusal(&error)),
        },
        Fault::Drain { node } => {
            let node = at(stage, node);
            stage.uncordon_later(node);
            order(stage, orders, "drain", Some(node));
        }
        Fault::Cordon { node } => {
            let node = at(stage, node);
            stage.uncordon_later(node);
            order(stage, orders, "cordon", Some(node));
        }
        Fault::Rebalance => order(stage, orders, "rebalance", None),
    }
    Ok(())
}

/// The node that is meant: one that should have joined and did not is another one.
fn at(stage: &Stage, node: usize) -> usize {
    node % stage.nodes()
}

/// Why a node did not join.
fn refusal(error: &anyhow::Error) -> String {
    match error.downcast_ref::<stellate_ops::local::LocalError>() {
        Some(stellate_ops::local::LocalError::Process { .. }) => {
            "the node ended, or was not ready in time".to_owned()
        }
        Some(stellate_ops::local::LocalError::Remote { .. }) => {
            "no token: the founder is not reached".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Has an operator ask for something, and watch it for a while.
fn order(stage: &Stage, orders: &mut JoinSet<Order>, what: &'static str, node: Option<usize>) {
    let door = stage.door(0);
    let name = node.map(|node| format!("node-{}", node + 1)).unwrap_or_default();
    orders.spawn(async move {
        let asked = async {
            let client = door.client().await?;
            match what {
                "cordon" => client.set_cordon(&name, true).await.map(drop),
                "drain" => {
                    let request = DrainRequest { node: name, deadline_s: Some(30), dry_run: false };
                    follow(client.drain(request).await?).await
                }
                _ => follow(client.rebalance().await?).await,
            }
        };
        let ended = match tokio::time::timeout(WATCHED, asked).await {
            Err(_) => Ok("still going on".to_owned()),
            Ok(Ok(())) => Ok(WELL.to_owned()),
            Ok(Err(error)) => of_remote(&error),
        };
        (what, ended)
    });
}

async fn follow(mut moves: Moves) -> Result<(), RemoteError> {
    while moves.next().await?.is_some() {}
    Ok(())
}
