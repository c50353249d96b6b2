//! `stellate demo --nodes`: the demo's questions to a cluster of processes that changes under them. A node joins, one is
//! drained, one is killed while it is needed; after each step every question is asked again, and the answers are compared, token for
//! token, with those of one process. How it is put into words is in `tell_cluster.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use stellate_actors::api::{Client, DrainRequest, MoveKind, Moves};
use stellate_actors::manifest::ContextId;
use stellate_actors::{AskOptions, Context, ContextSource, Layout, Model, Node};
use stellate_model::block::BlockId;
use stellate_ops::document::{Document, Fact};
use stellate_ops::local::LocalCluster;
use stellate_runtime::config::AttentionMode;

use super::{DemoArgs, walk};
use crate::app::App;
use crate::commands::dev;
use crate::settings::ModelArgs;
use crate::{open, progress};

/// The node that is asked: it founded the cluster, and stays.
const ASKED: usize = 0;
/// The node that is drained.
const DRAINED: usize = 1;

/// What the cluster came to.
#[derive(Debug, Serialize)]
pub(super) struct ClusterReport {
    /// Nodes at the start.
    pub(super) nodes: usize,
    pub(super) context_tokens: usize,
    /// Blocks of all contexts; those that they share count once.
    pub(super) blocks: usize,
    /// `star`, `exact`.
    pub(super) attention: Vec<String>,
    pub(super) steps: Vec<StepReport>,
    pub(super) asked: usize,
    pub(super) correct: usize,
    /// Answers with the tokens of one process.
    pub(super) same: usize,
    pub(super) took_s: f64,
}

/// One change, and the answers after it.
#[derive(Debug, Serialize)]
pub(super) struct StepReport {
    pub(super) what: String,
    /// Blocks on each node then.
    pub(super) blocks: BTreeMap<String, usize>,
    pub(super) asked: usize,
    pub(super) correct: usize,
    pub(super) same: usize,
    pub(super) took_s: f64,
    pub(super) astray: Vec<Astray>,
}

/// An answer that is wrong, or not that of one process.
#[derive(Debug, Serialize)]
pub(super) struct Astray {
    pub(super) attention: String,
    pub(super) question: String,
    pub(super) expected: String,
    pub(super) answer: String,
    pub(super) one_process: String,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
}

/// A context of the cluster, and what one process answers over it.
struct Asked {
    id: ContextId,
    attention: String,
    expected: Vec<Answer>,
}

/// Runs the whole of it; the cluster is gone when this returns.
pub(super) async fn run(
    args: &DemoArgs,
    nodes: usize,
    app: &App,
    model: &Model,
    document: &Document,
) -> anyhow::Result<ClusterReport> {
    progress::note("asking one process first");
    let layouts: Vec<_> = args.modes().iter().map(|&mode| layout(app, mode)).collect();
    let mut expected = Vec::new();
    for &layout in &layouts {
        expected.push(one_process(app, model, document, layout).await?);
    }
    let start = Instant::now();
    let options = dev::options(&ModelArgs::default(), &app.settings, nodes)?;
    let walked = async {
        let mut tell = |line: &str| progress::note(line);
        let mut cluster = LocalCluster::found(options, &mut tell).await?;
        cluster.add(nodes - 1, &mut tell).await?;
        let report =
            Walk::over(app, cluster, document, &layouts, expected).await?.steps(nodes, start).await?;
        anyhow::Ok(report)
    };
    app.interrupt.or(walked).await?
}

fn layout(app: &App, mode: AttentionMode) -> Layout {
    let mut settings = app.settings.clone();
    settings.attention.mode = mode;
    open::layout(&settings)
}

/// What one process answers to every question, as turns of one session.
async fn one_process(
    app: &App,
    model: &Model,
    document: &Document,
    layout: Layout,
) -> anyhow::Result<Vec<Answer>> {
    let node = open::open_node(&app.settings, model).await?;
    let answered = async {
        let (context, _) = open::encode(app, &node, source(document), layout).await?;
        app.interrupt.or(ask_all(&context, document, &open::ask_options(&app.settings, &[]))).await?
    };
    let answered = answered.await;
    node.close().await;
    answered
}

fn source(document: &Document) -> ContextSource {
    ContextSource::Document(document.text.clone())
}

/// Asks for every fact, in the sessions of the demo.
async fn ask_all(
    context: &Context,
    document: &Document,
    options: &AskOptions,
) -> anyhow::Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for facts in walk::sessions(document) {
        let session = context.session().await?;
        for fact in facts {
            let report = session.ask(fact.question(), options.clone()).finish().await?;
            answers.push(Answer { ids: report.ids, text: report.text });
        }
        session.close();
    }
    Ok(answers)
}

/// The facts in the order in which they are asked for.
fn in_order(document: &Document) -> Vec<&Fact> {
    walk::sessions(document).concat()
}

/// The walk through the steps.
struct Walk<'a> {
    cluster: LocalCluster,
    client: Client,
    document: &'a Document,
    options: AskOptions,
    contexts: Vec<Asked>,
    context_tokens: usize,
    blocks: usize,
    done: Vec<StepReport>,
}

impl<'a> Walk<'a> {
    /// Has the cluster encode the contexts.
    async fn over(
        app: &App,
        cluster: LocalCluster,
        document: &'a Document,
        layouts: &[Layout],
        expected: Vec<Vec<Answer>>,
    ) -> anyhow::Result<Self> {
        let client = cluster.client(ASKED).await?;
        let node: Node = client.node();
        let (mut contexts, mut context_tokens, mut blocks) = (Vec::new(), 0, BTreeSet::new());
        for (layout, expected) in layouts.iter().zip(expected) {
            progress::note(&format!("encoding on the cluster: {}", layout.attention));
            let context = node.encode(source(document), *layout).await?;
            context_tokens = context.manifest().tokens();
            blocks.extend(context.manifest().blocks.iter().map(|block| block.id));
            contexts.push(Asked { id: context.id(), attention: layout.attention.to_string(), expected });
        }
        let options = open::ask_options(&app.settings, &[]);
        let done = Vec::new();
        Ok(Self { cluster, client, document, options, contexts, context_tokens, blocks: blocks.len(), done })
    }

    /// Every step, and the end of the cluster.
    async fn steps(mut self, nodes: usize, start: Instant) -> anyhow::Result<ClusterReport> {
        self.ask_again(format!("{nodes} nodes encode the document")).await?;

        self.cluster.add(1, &mut |line| progress::note(line)).await?;
        let joined = self.name(nodes);
        let moved = self.rebalance().await?;
        self.ask_again(format!("{joined} joins, {moved} blocks move")).await?;

        let drained = self.name(DRAINED);
        let request = DrainRequest { node: drained.clone(), deadline_s: None, dry_run: false };
        let (moved, recomputed) = follow(self.client.drain(request).await?).await?;
        let again = if recomputed > 0 { format!(", {recomputed} encoded again") } else { String::new() };
        self.ask_again(format!("{drained} is drained: {moved} blocks move{again}")).await?;

        let victim = self.most_needed().await?;
        let killed = self.name(victim);
        self.answer_while_killed(victim).await?;
        self.ask_again(format!("{killed} is killed (-9) while it is asked")).await?;

        let sum = |of: fn(&StepReport) -> usize| self.done.iter().map(of).sum();
        let report = ClusterReport {
            nodes,
            context_tokens: self.context_tokens,
            blocks: self.blocks,
            attention: self.contexts.iter().map(|context| context.attention.clone()).collect(),
            asked: sum(|step| step.asked),
            correct: sum(|step| step.correct),
            same: sum(|step| step.same),
            took_s: start.elapsed().as_secs_f64(),
            steps: self.done,
        };
        self.cluster.stop().await?;
        Ok(report)
    }

    /// Round by round, until nothing more is to be moved.
    async fn rebalance(&self) -> anyhow::Result<u64> {
        let mut moved = 0;
        for _ in 0..self.blocks {
            let (round, again) = follow(self.client.rebalance().await?).await?;
            if round + again == 0 {
                break;
            }
            moved += round + again;
        }
        Ok(moved)
    }

    fn name(&self, index: usize) -> String {
        self.cluster.nodes()[index].name().to_owned()
    }

    /// Asks everything, each context's questions in a session of their own, and takes down how it went.
    async fn ask_again(&mut self, what: String) -> anyhow::Result<()> {
        progress::note(&what);
        let start = Instant::now();
        let mut step = StepReport {
            what,
            blocks: BTreeMap::new(),
            asked: 0,
            correct: 0,
            same: 0,
            took_s: 0.0,
            astray: Vec::new(),
        };
        for context in &self.contexts {
            let there = self.client.context(context.id).await?;
            let answers = ask_all(&there, self.document, &self.options).await;
            let answers = answers.with_context(|| step.what.clone())?;
            judge(&mut step, context, &in_order(self.document), answers);
        }
        step.blocks = self.held().await?;
        step.took_s = start.elapsed().as_secs_f64();
        self.done.push(step);
        Ok(())
    }

    /// Blocks on each node: those that both contexts share count once.
    async fn held(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut held: BTreeMap<String, BTreeSet<BlockId>> = BTreeMap::new();
        for context in &self.contexts {
            let context = self.client.context(context.id).await?;
            for (node, blocks) in self.cluster.blocks_of(&context, ASKED).await? {
                held.entry(node).or_default().extend(blocks);
            }
        }
        Ok(held.into_iter().map(|(node, blocks)| (node, blocks.len())).collect())
    }

    /// The node that holds the most blocks, besides the one that is asked.
    async fn most_needed(&self) -> anyhow::Result<usize> {
        let mut held = self.held().await?;
        held.remove(self.cluster.nodes()[ASKED].name());
        let most = held.into_iter().max_by_key(|(_, blocks)| *blocks);
        let (name, _) = most.context("no other node holds a block; ask for more --tokens")?;
        self.cluster.named(&name).context("a node that nobody started")
    }

    /// Kills a node between a question and its answer: it is held before it can give its part, so that no answer comes without
    /// its death.
    async fn answer_while_killed(&mut self, victim: usize) -> anyhow::Result<()> {
        let session = self.client.context(self.contexts[0].id).await?.session().await?;
        let facts = in_order(self.document);
        self.cluster.freeze(victim)?;
        let turn = session.ask(facts[0].question(), self.options.clone());
        self.cluster.until_busy(ASKED).await?;
        self.cluster.kill(victim)?;
        let report = turn.finish().await.context("the question that was asked when the node died")?;
        let answer = Answer { ids: report.ids, text: report.text };
        self.client.close_session(session.id()).await?;
        let mut step = StepReport {
            what: format!("(asked for {} when it died)", facts[0].key),
            blocks: BTreeMap::new(),
            asked: 0,
            correct: 0,
            same: 0,
            took_s: report.timings.total_s,
            astray: Vec::new(),
        };
        judge(&mut step, &self.contexts[0], &facts[..1], vec![answer]);
        self.done.push(step);
        Ok(())
    }
}

/// Counts what is right and what one process answers as well.
fn judge(step: &mut StepReport, context: &Asked, facts: &[&Fact], answers: Vec<Answer>) {
    for ((fact, answer), expected) in facts.iter().zip(answers).zip(&context.expected) {
        let (is_right, is_same) = (fact.is_answered_by(&answer.text), answer.ids == expected.ids);
        step.asked += 1;
        step.correct += usize::from(is_right);
        step.same += usize::from(is_same);
        if !is_right || !is_same {
            step.astray.push(Astray {
                attention: context.attention.clone(),
                question: fact.question(),
                expected: fact.value.clone(),
                answer: answer.text,
                one_process: expected.text.clone(),
            });
        }
    }
}

/// Waits for the end of moves: blocks moved, and blocks encoded again.
async fn follow(mut moves: Moves) -> anyhow::Result<(u64, u64)> {
    let mut counted = (0, 0);
    while let Some(event) = moves.next().await? {
        if let MoveKind::Complete { moved, recomputed } = event.kind {
            counted = (moved, recomputed);
        }
    }
    Ok(counted)
}
