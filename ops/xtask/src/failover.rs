//! How long an answer under way waits when a node that holds blocks of its context dies or stands still, beside what it takes at
//! least: to encode as many blocks as were lost, on the same survivors and behind the same anchor.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use stellate_actors::api::{Client, NodeInfo, NodeState, RemoteError};
use stellate_actors::{
    Addition, AskOptions, Context, ContextSource, EncodeError, Layout, QueryInput, TurnEvent,
};

use crate::machine::Workshop;
use crate::oracle::Oracle;
use crate::stage::{NodeOptions, Stage};
use crate::tally::quantile;

const NODES: usize = 3;
const BLOCK_TOKENS: usize = 1024;
const BLOCKS: usize = 9;
const ANSWER_TOKENS: usize = 60;

/// Tokens that are heard before something happens.
const BEFORE: usize = 5;

/// How long a node stands still: longer than it takes to do without it.
const FROZEN: Duration = Duration::from_secs(20);

/// Longest that an answer may take.
const LIMIT: Duration = Duration::from_secs(180);

/// What a node says once it does without another one.
const NOTICED: &str = "a step is to be asked again";

/// What happens to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// `kill -9`.
    Killed,
    /// `SIGSTOP`.
    Frozen,
}

/// One loss.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recovery {
    /// What happened.
    pub loss: Loss,
    /// Tokens of the blocks that were lost.
    pub lost_tokens: usize,
    /// Until the node that answers did without the lost one, in seconds.
    pub detected_s: f64,
    /// Until the next token, in seconds.
    pub next_token_s: f64,
    /// What as many new blocks take on the survivors, in seconds. Measured after a kill; after a stall, or where blocks had to be
    /// placed anew meanwhile, it is what as many tokens took the time before.
    pub floor_s: Option<f64>,
}

/// All of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FailoverReport {
    /// Nodes of the cluster.
    pub nodes: usize,
    /// In their order.
    pub recoveries: Vec<Recovery>,
}

impl FailoverReport {
    /// A figure of those of one kind: p50, p99 and the most.
    pub fn three(&self, loss: Loss, figure: impl Fn(&Recovery) -> f64) -> [f64; 3] {
        let values: Vec<_> =
            self.recoveries.iter().filter(|recovery| recovery.loss == loss).map(figure).collect();
        let values: Vec<_> = values.into_iter().filter(|value| value.is_finite()).collect();
        [500, 990, 1000].map(|permille| quantile(&values, permille).unwrap_or(0.0))
    }
}

/// Lets nodes be lost `rounds` times, killed and frozen in turn. `tell` is told of each.
///
/// # Errors
/// A wrong answer, or a cluster that does not work.
pub async fn measure(
    options: &NodeOptions,
    rounds: usize,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<FailoverReport> {
    let workshop = Workshop::open()?;
    let oracle = Arc::new(Oracle::open().await?);
    let mut stage = Stage::open(options, &workshop, 0, NODES).await?;
    let mut report = FailoverReport { nodes: NODES, recoveries: Vec::new() };
    let mut pace_s = None;
    for round in 0..rounds {
        let loss = if round % 2 == 0 { Loss::Killed } else { Loss::Frozen };
        let recovery = lose(&mut stage, &oracle, round as u64, loss, pace_s).await?;
        pace_s = recovery.floor_s.map(|floor_s| floor_s / recovery.lost_tokens as f64);
        tell(&format!(
            "{loss:?}: {} tokens lost, noticed after {:.2} s, next token after {:.2} s; as many new ones take {:.2} s",
            recovery.lost_tokens,
            recovery.detected_s,
            recovery.next_token_s,
            recovery.floor_s.unwrap_or(f64::NAN)
        ));
        report.recoveries.push(recovery);
    }
    stage.close().await?;
    oracle.close().await;
    Ok(report)
}

async fn lose(
    stage: &mut Stage,
    oracle: &Oracle,
    round: u64,
    loss: Loss,
    pace_s: Option<f64>,
) -> anyhow::Result<Recovery> {
    let client = stage.door(0).client().await?;
    let ids = oracle.tokens(10_000 + round, BLOCKS * BLOCK_TOKENS)?;
    let layout = Layout::star(BLOCK_TOKENS, BLOCK_TOKENS);
    let first = client.node();
    let encode = || first.encode(ContextSource::Ids(ids.clone()), layout);
    let context = match encode().await {
        // On a busy machine the node may have given up a connection that was silent for too long, unheard.
        Err(EncodeError::Remote(RemoteError::Lost(_))) => encode().await?,
        encoded => encoded?,
    };
    let held = stage.cluster().blocks_of(&client.context(context.id()).await?, 0).await?;
    let victim = held.iter().filter(|(name, _)| *name != "node-1").max_by_key(|(_, blocks)| blocks.len());
    let (name, blocks) = victim.context("no node but the first holds blocks")?;
    let node = stage.cluster().named(name).context("it is of this cluster")?;
    let lost = blocks.len();
    let session = context.session().await?;
    let question = QueryInput::Ids(ids[..16].to_vec());
    let asked =
        AskOptions { max_tokens: ANSWER_TOKENS, ignore_eos: true, guess_tokens: 0, ..AskOptions::default() };
    let log = stage.cluster().nodes()[0].log().to_owned();
    let logged = std::fs::metadata(&log)?.len();
    let mut turn = session.ask(question.clone(), asked.clone());
    let (mut heard, mut happened, mut report) = (Vec::new(), None, None);
    let answering = async {
        while report.is_none() {
            match turn.next().await.context("an answer without an end")?? {
                TurnEvent::Token(_) => heard.push(Instant::now()),
                TurnEvent::Finished(finished) => report = Some(finished),
            }
            if heard.len() == BEFORE && happened.is_none() {
                happened = Some((Instant::now(), SystemTime::now()));
                match loss {
                    Loss::Killed => stage.kill(node, 0)?,
                    Loss::Frozen => stage.freeze(node, FROZEN)?,
                }
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, answering).await.context("no answer in time")??;
    let (start, wall) = happened.context("nothing happened: the answer was too short")?;
    let next_token_s = after_the_gap(&heard, start).as_secs_f64();
    let detected_s = noticed(&log, logged, wall)?;
    let expected = oracle.answer_to_ids(&ids, layout, question, asked).await?;
    let found = report.map(|report| report.ids).unwrap_or_default();
    ensure!(found == expected, "{found:?}, one process answers {expected:?}");

    // One that stands still is held for a holder of blocks until membership says otherwise: nothing is encoded beside it then.
    let floor_s = match loss {
        Loss::Killed => {
            until_down(stage, name).await?;
            floor(&client, oracle, &context, round, lost).await?
        }
        Loss::Frozen => None,
    };
    drop(session);
    stage.mend(true).await??;
    stage.until_whole().await??;
    release(&client).await?;
    let lost_tokens = lost * BLOCK_TOKENS;
    let floor_s = floor_s.or(pace_s.map(|pace_s| pace_s * lost_tokens as f64));
    Ok(Recovery { loss, lost_tokens, detected_s, next_token_s, floor_s })
}

/// From `start` to the token behind the longest silence: those on their way come first.
fn after_the_gap(heard: &[Instant], start: Instant) -> Duration {
    let gaps = heard.windows(2).filter(|pair| pair[1] > start);
    let longest = gaps.max_by_key(|pair| pair[1] - pair[0]);
    longest.map_or(Duration::ZERO, |pair| pair[1] - start)
}

/// Seconds from `start` to the first line behind `offset` that tells of a step without attention.
fn noticed(log: &Path, offset: u64, start: SystemTime) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(log)?;
    let line = text.get(usize::try_from(offset)?..).unwrap_or_default().lines();
    let line = line.into_iter().find(|line| line.contains(NOTICED));
    let line = line.with_context(|| format!("{} has no line `{NOTICED}`", log.display()))?;
    let of_day = seconds_of_day(line).with_context(|| format!("no time in `{line}`"))?;
    let start = start.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() % 86_400.0;
    Ok((of_day - start).rem_euclid(86_400.0))
}

/// The time of day in a line that begins with one as in `2026-01-01T12:34:56.789Z`.
fn seconds_of_day(line: &str) -> Option<f64> {
    let plain: String = line.chars().skip_while(|c| !c.is_ascii_digit()).collect();
    // Colours of a terminal begin with digits as well.
    let time = plain.split_once('T').map(|(_, rest)| rest.split('Z').next().unwrap_or_default())?;
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
}

/// Waits until the node that places blocks holds this one for dead: until then some are placed there, and placed again.
async fn until_down(stage: &Stage, name: &str) -> anyhow::Result<()> {
    let is_down =
        |nodes: &[NodeInfo]| nodes.iter().any(|node| node.name == name && node.state == NodeState::Down);
    stage.cluster().until_seen(0, &format!("{name} to be down"), is_down).await?;
    Ok(())
}

/// Seconds that `blocks` new blocks take on the survivors, behind the same anchor; none if others were encoded with them, or some
/// twice.
async fn floor(
    client: &Client,
    oracle: &Oracle,
    context: &Context,
    round: u64,
    blocks: usize,
) -> anyhow::Result<Option<f64>> {
    let more = oracle.tokens(20_000 + round, blocks * BLOCK_TOKENS)?;
    let context = client.context(context.id()).await?;
    let start = Instant::now();
    let longer = context.append(Addition::Ids(more)).await?;
    let took = start.elapsed().as_secs_f64();
    let encoded = longer.progress().blocks_total.saturating_sub(longer.progress().blocks_reused);
    Ok((encoded == blocks).then_some(took))
}

/// Forgets all sessions and contexts.
async fn release(client: &Client) -> anyhow::Result<()> {
    for session in client.sessions().await? {
        client.close_session(session.id).await?;
    }
    for context in client.contexts().await? {
        client.remove_context(context.id).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_read_from_a_line_of_the_log() {
        let line = "2026-11-28T01:02:03.500000Z  INFO stellate_actors: a step is to be asked again";
        assert_eq!(seconds_of_day(line), Some(3723.5));
        assert_eq!(seconds_of_day("\u{1b}[2m2026-11-28T01:02:03.500000Z\u{1b}[0m INFO"), Some(3723.5));
        assert_eq!(seconds_of_day("no time at all"), None);
    }

    #[test]
    fn recovery_ends_with_the_token_behind_the_longest_silence() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let heard = [at(0), at(10), at(20), at(520), at(530)];
        assert_eq!(after_the_gap(&heard, at(12)), Duration::from_millis(508));
    }
}
