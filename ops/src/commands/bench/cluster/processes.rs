//! Clusters of real processes on this machine: how fast two nodes answer and encode beside one, and how long it takes until an
//! answer goes on after a node was killed, and until a node that joins holds blocks. All nodes share the cores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use stellate_actors::api::{Client, Moves};
use stellate_actors::{
    AskOptions, Context, ContextSource, Layout, Model, ModelOptions, ModelSource, Session, TurnEvent,
};
use stellate_ops::document::Document;
use stellate_ops::local::LocalCluster;
use stellate_runtime::config::Settings;

use crate::commands::dev;
use crate::human;
use crate::progress;
use crate::report::table;
use crate::settings::ModelArgs;

const DOCUMENT_TOKENS: usize = 12_288;
const BLOCK_TOKENS: usize = 1024;
const ANSWER_TOKENS: usize = 128;
/// Answers of which the fastest counts.
const ANSWERS: usize = 3;
/// Tokens that are seen before a node is killed.
const TOKENS_BEFORE: usize = 20;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Processes {
    document_tokens: usize,
    block_tokens: usize,
    /// By nodes.
    speed: Vec<Speed>,
    /// Seconds from the end of a node that held blocks to the next token of an answer under way.
    kill_to_token_s: f64,
    /// Seconds from the start of a process to a member that takes blocks.
    start_to_member_s: f64,
    /// Seconds from there until it holds blocks, with a rebalancing that is asked for at once.
    member_to_use_s: f64,
}

/// How fast so many nodes are.
#[derive(Clone, Copy, Debug, Serialize)]
struct Speed {
    nodes: usize,
    /// Nodes that held blocks while tokens were decoded.
    nodes_with_blocks: usize,
    /// Until a context is encoded, seconds.
    encode_s: f64,
    /// Seconds of processor that all nodes together have spent on it; none where that cannot be read.
    encode_cpu_s: Option<f64>,
    tokens_per_s: f64,
}

impl Processes {
    pub(super) fn to_text(&self) -> String {
        let row = |speed: &Speed| {
            vec![
                speed.nodes.to_string(),
                speed.nodes_with_blocks.to_string(),
                human::seconds(speed.encode_s),
                speed.encode_cpu_s.map_or_else(|| "unknown".to_owned(), human::seconds),
                human::rate(speed.tokens_per_s),
            ]
        };
        let header = ["nodes", "with blocks", "encode", "processor time", "decode"];
        format!(
            "Processes, a context of {} tokens in blocks of {}:\n{}\n\nFrom kill to the next token {}; from the start of a \
             process to a member {}, and from there to its first block {}.",
            human::count(self.document_tokens),
            human::count(self.block_tokens),
            table::markdown(&header, self.speed.iter().map(row).collect(), 0),
            human::seconds(self.kill_to_token_s),
            human::seconds(self.start_to_member_s),
            human::seconds(self.member_to_use_s),
        )
    }
}

pub(super) async fn measure(model: &ModelArgs, settings: &Settings) -> anyhow::Result<Processes> {
    let (text, question) = tokio::task::spawn_blocking(document).await??;
    let asked = Asked { text, question, encoded: AtomicUsize::new(0) };
    let mut tell = |line: &str| progress::note(line);
    // As many threads for each as two have to share: one node alone is no faster for having the machine to itself.
    let cluster = LocalCluster::found(dev::options(model, settings, 2)?, &mut tell).await?;
    let mut speed = vec![asked.speed(&cluster, 1).await?];
    cluster.stop().await?;
    // Another cluster: what was forgotten is held for a while where it lies, and all that comes next would go to a new node.
    let mut cluster = LocalCluster::found(dev::options(model, settings, 2)?, &mut tell).await?;
    cluster.add(1, &mut tell).await?;
    cluster.until_whole().await?;
    speed.push(asked.speed(&cluster, 2).await?);
    cluster.add(1, &mut tell).await?;
    cluster.until_whole().await?;
    let kill_to_token_s = asked.kill(&mut cluster).await?;
    let start = Instant::now();
    cluster.add(1, &mut tell).await?;
    let start_to_member_s = start.elapsed().as_secs_f64();
    let member_to_use_s = asked.join(&cluster).await?;
    cluster.stop().await?;
    let (document_tokens, block_tokens) = (DOCUMENT_TOKENS, BLOCK_TOKENS);
    Ok(Processes {
        document_tokens,
        block_tokens,
        speed,
        kill_to_token_s,
        start_to_member_s,
        member_to_use_s,
    })
}

/// A document of the demo, and a question over it.
fn document() -> anyhow::Result<(String, String)> {
    let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {})?;
    let tokenizer = model.prompter.tokenizer()?;
    let count = |text: &str| tokenizer.encode(text, false).map_or(0, |ids| ids.len());
    let document = Document::generate(1, DOCUMENT_TOKENS, 6, count);
    let question = document.facts.first().context("the document has facts")?.question();
    Ok((document.text, question))
}

/// What every cluster is asked.
struct Asked {
    text: String,
    question: String,
    /// Contexts so far.
    encoded: AtomicUsize,
}

impl Asked {
    async fn encode(&self, client: &Client) -> anyhow::Result<Context> {
        // Another text each time: blocks of the one before are held for a while, where they lie.
        let number = self.encoded.fetch_add(1, Ordering::Relaxed);
        let source = ContextSource::Document(format!("{number}. {}", self.text));
        Ok(client.node().encode(source, Layout::star(BLOCK_TOKENS, BLOCK_TOKENS)).await?)
    }

    async fn speed(&self, cluster: &LocalCluster, nodes: usize) -> anyhow::Result<Speed> {
        let client = cluster.client(0).await?;
        let (start, before) = (Instant::now(), processor_s(cluster));
        let context = self.encode(&client).await?;
        let encode_s = start.elapsed().as_secs_f64();
        let encode_cpu_s = processor_s(cluster).zip(before).map(|(now, before)| now - before);
        let (context, nodes_with_blocks) = self.spread(cluster, &client, context, nodes).await?;
        let session = context.session().await?;
        let mut tokens_per_s = 0.0_f64;
        for _ in 0..ANSWERS {
            let report = session.ask(&*self.question, options(ANSWER_TOKENS)).finish().await?;
            tokens_per_s = tokens_per_s.max(report.timings.tokens_per_s);
        }
        self.forget(&client, &context, &session).await?;
        Ok(Speed { nodes, nodes_with_blocks, encode_s, encode_cpu_s, tokens_per_s })
    }

    /// Has blocks moved until so many nodes hold some: a node that has just joined gets few at first.
    async fn spread(
        &self,
        cluster: &LocalCluster,
        client: &Client,
        context: Context,
        nodes: usize,
    ) -> anyhow::Result<(Context, usize)> {
        let id = context.id();
        let spread = cluster.until("blocks to lie on several nodes", async || {
            let looked = async {
                let context = client.context(id).await?;
                let holders = cluster.blocks_of(&context, 0).await?.len();
                if holders < nodes {
                    follow(client.rebalance().await?).await?;
                }
                anyhow::Ok((context, holders))
            };
            match looked.await {
                Ok((context, holders)) if holders >= nodes => Ok((context, holders)),
                Ok((_, holders)) => Err(format!("they lie on {holders}")),
                Err(error) => Err(error.to_string()),
            }
        });
        Ok(spread.await?)
    }

    /// Seconds from the kill of a node that holds blocks to the next token.
    async fn kill(&self, cluster: &mut LocalCluster) -> anyhow::Result<f64> {
        let client = cluster.client(0).await?;
        let context = self.encode(&client).await?;
        let (context, _) = self.spread(cluster, &client, context, 2).await?;
        let there = cluster.blocks_of(&context, 0).await?;
        let victim = there.keys().filter_map(|name| cluster.named(name)).max().filter(|index| *index > 0);
        let victim = victim.context("no block lies on another node")?;
        let session = context.session().await?;
        let mut turn = session.ask(&*self.question, options(20 * ANSWER_TOKENS));
        for _ in 0..TOKENS_BEFORE {
            turn.next().await.context("the answer ended early")??;
        }
        cluster.kill(victim)?;
        let killed = Instant::now();
        // What was on its way still comes: the gap is the longest wait from then on.
        let (mut last, mut gap) = (killed, Duration::ZERO);
        while let Some(event) = turn.next().await {
            let now = Instant::now();
            gap = gap.max(now - last);
            last = now;
            if matches!(event?, TurnEvent::Finished(_)) {
                break;
            }
        }
        self.forget(&client, &context, &session).await?;
        Ok(gap.as_secs_f64())
    }

    /// Seconds until the node that has joined last holds blocks.
    async fn join(&self, cluster: &LocalCluster) -> anyhow::Result<f64> {
        let client = cluster.client(0).await?;
        let newest = cluster.nodes().last().context("there are nodes")?.name().to_owned();
        let context = self.encode(&client).await?;
        let start = Instant::now();
        cluster
            .until("the new node to hold blocks", async || {
                let held = async {
                    let nodes = client.nodes().await?;
                    let blocks = nodes
                        .iter()
                        .find(|node| node.name == newest)
                        .and_then(|node| node.blocks)
                        .unwrap_or(0);
                    if blocks == 0 {
                        follow(client.rebalance().await?).await?;
                    }
                    anyhow::Ok(blocks)
                };
                match held.await {
                    Ok(0) => Err(format!("{newest} holds none")),
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                }
            })
            .await?;
        let took = start.elapsed().as_secs_f64();
        client.remove_context(context.id()).await?;
        Ok(took)
    }

    async fn forget(&self, client: &Client, context: &Context, session: &Session) -> anyhow::Result<()> {
        client.close_session(session.id()).await?;
        Ok(client.remove_context(context.id()).await?)
    }
}

fn options(max_tokens: usize) -> AskOptions {
    AskOptions { max_tokens, ignore_eos: true, guess_tokens: 0, ..AskOptions::default() }
}

async fn follow(mut moves: Moves) -> anyhow::Result<()> {
    while moves.next().await?.is_some() {}
    Ok(())
}

/// Seconds of processor that the nodes have used so far.
fn processor_s(cluster: &LocalCluster) -> Option<f64> {
    /// Of Linux, in user space, whatever the kernel's own clock is.
    const TICKS_PER_S: f64 = 100.0;
    let ticks = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may hold anything: the state and ten numbers, then ticks in user mode and in the kernel.
        let (_, rest) = text.rsplit_once(')')?;
        let mut numbers = rest.split_ascii_whitespace().skip(11);
        Some(numbers.next()?.parse::<f64>().ok()? + numbers.next()?.parse::<f64>().ok()?)
    };
    let all: Option<Vec<f64>> = cluster.nodes().iter().filter_map(|node| node.pid()).map(ticks).collect();
    Some(all?.iter().sum::<f64>() / TICKS_PER_S)
}
