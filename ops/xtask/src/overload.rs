//! Far more sessions than a cluster takes: who is refused, how, and when to come again; how long those that are let in wait; and
//! how soon all is as before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use stellate_actors::api::Client;
use stellate_actors::manifest::ContextId;
use stellate_actors::{AskError, SessionError, TurnEvent};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::door::Door;
use crate::machine::Workshop;
use crate::oracle::{Oracle, Question, Said, Text};
use crate::outcome::{of_ask, of_session};
use crate::schedule::FACTS;
use crate::stage::{NodeOptions, Stage};
use crate::tally::{Counts, quantile};

const NODES: usize = 2;

/// Questions of each session.
const QUESTIONS: usize = 3;

/// Sessions of one connection: as those of a gateway.
const SESSIONS_PER_CONNECTION: usize = 10;

/// Questions that are asked alone, before and after.
const ALONE: usize = 15;

/// Longest that anything may take.
const LIMIT: Duration = Duration::from_secs(600);

/// What came of it. Times are in seconds; three of them are p50, p99 and the most.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OverloadReport {
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Sessions that wanted in at once.
    pub sessions: usize,
    /// Answers, all equal to those of one process.
    pub answers: u64,
    /// Refusals, by kind, with the hint when to come again.
    pub refusals: Counts,
    /// Refusals without such a hint.
    pub without_hint: u64,
    /// How long a session waited to be let in.
    pub waited_s: [f64; 3],
    /// From question to the end of the answer, of those let in.
    pub answer_s: [f64; 3],
    /// The same with nobody else there.
    pub alone_s: [f64; 3],
    /// The most sessions that were open at once, on all nodes.
    pub most_open: u64,
    /// The most resident memory of a node before, and during.
    pub rss_mib: [f64; 2],
    /// From the end of the load until an answer took no longer than twice the median of before.
    pub recovered_s: f64,
    /// The whole load, from its first session to its last.
    pub load_s: f64,
}

/// Asks a small cluster for `sessions` sessions at once.
///
/// # Errors
/// A wrong answer, an untyped failure, or a cluster that does not come up.
pub async fn overload(
    options: &NodeOptions,
    sessions: usize,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<OverloadReport> {
    let workshop = Workshop::open()?;
    let oracle = Arc::new(Oracle::open().await?);
    let stage = Stage::open(options, &workshop, 2, NODES).await?;
    let mut contexts = Vec::new();
    for node in 0..NODES {
        let client = stage.door(node).client().await?;
        let context =
            client.node().encode(oracle.source(TEXT.document), oracle.layout(TEXT.is_exact)).await?;
        contexts.push(context.id());
    }
    let alone = alone(&stage.door(0), &oracle, contexts[0], ALONE).await?;
    let before = rss_mib(&stage);
    tell(&format!("alone an answer takes {:.3} s (p50)", three(&alone)[0]));

    let start = Instant::now();
    let Loaded { all, most_open, most_rss } = load(&stage, &oracle, &contexts, sessions).await?;
    let load_s = start.elapsed().as_secs_f64();
    tell(&format!(
        "{} answers in {load_s:.1} s, {} refusals",
        all.answer_s.len(),
        all.refusals.values().sum::<u64>()
    ));
    let ended = Instant::now();
    let usual = 2.0 * three(&alone)[0];
    let recovered_s = loop {
        let took = self::alone(&stage.door(0), &oracle, contexts[0], 1).await?[0];
        if took <= usual {
            break ended.elapsed().as_secs_f64();
        }
        ensure!(ended.elapsed() < LIMIT, "an answer still takes {took} s, {LIMIT:?} after the load");
    };
    stage.close().await?;
    oracle.close().await;
    Ok(OverloadReport {
        nodes: NODES,
        sessions,
        answers: all.answer_s.len() as u64,
        without_hint: all.without_hint,
        refusals: all.refusals,
        waited_s: three(&all.waited_s),
        answer_s: three(&all.answer_s),
        alone_s: three(&alone),
        most_open,
        rss_mib: [before, most_rss.max(before)],
        recovered_s,
        load_s,
    })
}

/// What was seen of all sessions together.
struct Loaded {
    all: Asked,
    most_open: u64,
    most_rss: f64,
}

/// All sessions at once, until the last has ended.
async fn load(
    stage: &Stage,
    oracle: &Arc<Oracle>,
    contexts: &[ContextId],
    sessions: usize,
) -> anyhow::Result<Loaded> {
    let mut asking = JoinSet::new();
    let mut clients = Vec::new();
    for number in 0..sessions {
        if number % SESSIONS_PER_CONNECTION == 0 {
            clients.push(stage.new_door((number / SESSIONS_PER_CONNECTION) % NODES).client().await?);
        }
        let connection = clients.len() - 1;
        let (client, context) = (clients[connection].clone(), contexts[connection % NODES]);
        let (oracle, fact) = (oracle.clone(), number % FACTS);
        asking.spawn(async move { converse(&client, &oracle, context, fact).await });
    }
    let (mut all, mut most_open, mut most_rss) = (Asked::default(), 0, 0.0_f64);
    loop {
        tokio::select! {
            next = asking.join_next() => match next {
                Some(asked) => all.add(asked??),
                None => break,
            },
            () = sleep(Duration::from_millis(200)) => {
                most_rss = most_rss.max(rss_mib(stage));
                most_open = most_open.max(open_sessions(stage).await);
            }
        }
    }
    Ok(Loaded { all, most_open, most_rss })
}

const TEXT: Text = Text { document: 0, additions: 0, is_exact: false };

/// What one session met.
#[derive(Debug, Default)]
struct Asked {
    waited_s: Vec<f64>,
    answer_s: Vec<f64>,
    refusals: Counts,
    without_hint: u64,
}

impl Asked {
    fn add(&mut self, more: Self) {
        self.waited_s.extend(more.waited_s);
        self.answer_s.extend(more.answer_s);
        for (kind, count) in more.refusals {
            *self.refusals.entry(kind).or_default() += count;
        }
        self.without_hint += more.without_hint;
    }

    /// Counts a refusal, and waits as long as it says.
    async fn refused(&mut self, kind: String, hint: Option<Duration>) {
        let shown =
            hint.map_or_else(|| "no hint".to_owned(), |hint| format!("again in {} s", hint.as_secs_f64()));
        *self.refusals.entry(format!("{kind}, {shown}")).or_default() += 1;
        self.without_hint += u64::from(hint.is_none());
        sleep(hint.unwrap_or(Duration::from_secs(1)).max(Duration::from_millis(10))).await;
    }
}

/// A session from its first wish to its end: asks some questions, and comes again where it is refused, when it is told to.
async fn converse(
    client: &Client,
    oracle: &Oracle,
    context: ContextId,
    fact: usize,
) -> anyhow::Result<Asked> {
    let mut met = Asked::default();
    let talking = async {
        let start = Instant::now();
        let session = loop {
            let opened = match client.context(context).await {
                Ok(context) => context.session().await,
                Err(error) => Err(SessionError::Remote(error)),
            };
            match opened {
                Ok(session) => break session,
                Err(error) => met.refused(of_session(&error)?, error.retry_after()).await,
            }
        };
        met.waited_s.push(start.elapsed().as_secs_f64());
        let mut said = Vec::new();
        while said.len() < QUESTIONS {
            let question = Question { fact: (fact + said.len()) % FACTS, is_long: false };
            let start = Instant::now();
            match ask(&session, oracle, question).await {
                Ok(ids) => {
                    met.answer_s.push(start.elapsed().as_secs_f64());
                    let expected = oracle.answer(TEXT, &said, question).await?;
                    ensure!(ids == expected, "{ids:?}, one process answers {expected:?}");
                    said.push(Said { question, tokens: ids.len() });
                }
                Err(error) => met.refused(of_ask(&error)?, error.retry_after()).await,
            }
        }
        client.close_session(session.id()).await?;
        anyhow::Ok(())
    };
    timeout(LIMIT, talking).await.context("a session was not served in time")??;
    Ok(met)
}

async fn ask(
    session: &stellate_actors::Session,
    oracle: &Oracle,
    question: Question,
) -> Result<Vec<u32>, AskError> {
    let mut turn = session.ask(oracle.words(TEXT.document, question), question.options(None));
    while let Some(event) = turn.next().await {
        if let TurnEvent::Finished(report) = event? {
            return Ok(report.ids);
        }
    }
    Err(AskError::Stopped)
}

/// Seconds of answers with nobody else there.
async fn alone(door: &Door, oracle: &Oracle, context: ContextId, count: usize) -> anyhow::Result<Vec<f64>> {
    let client = door.client().await?;
    let mut took = Vec::new();
    for number in 0..count {
        let session = client.context(context).await?.session().await?;
        let question = Question { fact: number % FACTS, is_long: false };
        let start = Instant::now();
        let ids = ask(&session, oracle, question).await?;
        took.push(start.elapsed().as_secs_f64());
        ensure!(ids == oracle.answer(TEXT, &[], question).await?, "a wrong answer: {ids:?}");
        client.close_session(session.id()).await?;
    }
    Ok(took)
}

async fn open_sessions(stage: &Stage) -> u64 {
    let mut open = 0;
    for node in stage.cluster().running() {
        let asked = async { stage.door(node).client().await?.status().await };
        if let Ok(Ok(status)) = timeout(Duration::from_secs(5), asked).await {
            open += status.sessions;
        }
    }
    open
}

/// The most resident memory of a node.
fn rss_mib(stage: &Stage) -> f64 {
    let pids = stage.cluster().nodes().iter().filter_map(stellate_ops::local::LocalNode::pid);
    let sizes = pids.filter_map(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    });
    sizes.fold(0.0, f64::max) / 1024.0
}

fn three(values: &[f64]) -> [f64; 3] {
    [500, 990, 1000].map(|permille| quantile(values, permille).unwrap_or(f64::NAN))
}
