//! One mode of the demo, from an empty node to its last answer: encode the document, ask in the turns of one session,
//! then share the context with a second session. What is measured is measured by the session API.

use std::time::Instant;

use serde::Serialize;
use stellate_actors::{
    AskOptions, Attention, Context, ContextSource, FinishReason, Layout, Model, Node, Session,
};
use stellate_ops::document::{Document, Fact};

use crate::app::App;
use crate::open;
use crate::report::stores;

/// Questions of the second session, if there are that many beside the first one's.
const SECOND_SESSION_QUESTIONS: usize = 2;

/// What one mode came to.
#[derive(Debug, Serialize)]
pub(super) struct ModeReport {
    /// `star` or `exact`.
    pub(super) attention: String,
    pub(super) block_tokens: usize,
    /// As asked for; `null` for exact.
    pub(super) anchor_tokens: Option<usize>,
    /// Tokens of the context: the document's (`document.tokens`) and those that the chat template puts before them.
    pub(super) context_tokens: usize,
    pub(super) blocks: usize,
    pub(super) encode_s: f64,
    pub(super) encode_tokens_per_s: f64,
    /// Keys and values of the context's blocks.
    pub(super) kv_bytes: usize,
    /// What the context hosts hold for it: its blocks, and the copies of its anchor.
    pub(super) kv_held_bytes: usize,
    /// The same document, given once more.
    pub(super) encoded_again: AgainReport,
    /// From the first question of a session to the first token of its answer; the mean over sessions.
    pub(super) first_turn_time_to_first_token_s: f64,
    /// The same for later questions; `null` if there was none.
    pub(super) later_turns_time_to_first_token_s: Option<f64>,
    /// After the first token of each answer; the mean over answers.
    pub(super) tokens_per_s: f64,
    pub(super) correct: usize,
    pub(super) questions: Vec<QuestionReport>,
}

/// The second encoding of a document whose blocks are there.
#[derive(Debug, Serialize)]
pub(super) struct AgainReport {
    pub(super) blocks_encoded: usize,
    pub(super) blocks_shared: usize,
    pub(super) encode_s: f64,
}

/// A question and what became of it.
#[derive(Debug, Serialize)]
pub(super) struct QuestionReport {
    pub(super) question: String,
    pub(super) answer: String,
    pub(super) expected: String,
    pub(super) correct: bool,
    pub(super) key: String,
    /// Where in the document the fact stands, from 0 to 1.
    pub(super) depth: f64,
    /// From 1.
    pub(super) session: usize,
    /// From 1.
    pub(super) turn: usize,
    pub(super) query_tokens: usize,
    pub(super) generated_tokens: usize,
    pub(super) finish: FinishReason,
    pub(super) time_to_first_token_s: f64,
    pub(super) total_s: f64,
    pub(super) tokens_per_s: f64,
}

/// Opens a node, walks through the mode and closes it, whatever came of it.
pub(super) async fn walk(
    app: &App,
    model: &Model,
    document: &Document,
    layout: Layout,
) -> anyhow::Result<ModeReport> {
    let node = open::open_node(&app.settings, model).await?;
    let walked = walk_on(app, &node, document, layout).await;
    node.close().await;
    walked
}

async fn walk_on(app: &App, node: &Node, document: &Document, layout: Layout) -> anyhow::Result<ModeReport> {
    let source = || ContextSource::Document(document.text.clone());
    let (context, took) = open::encode(app, node, source(), layout).await?;
    let kv_held_bytes = stores::context_bytes(node);

    let [first, second] = sessions(document);
    let mut questions = ask_all(app, &context, 1, &first).await?;

    let again = Instant::now();
    let same = app.interrupt.or(node.encode(source(), layout)).await??;
    let progress = same.progress();
    let encoded_again = AgainReport {
        blocks_encoded: progress.blocks_total - progress.blocks_reused,
        blocks_shared: progress.blocks_reused,
        encode_s: again.elapsed().as_secs_f64(),
    };
    questions.extend(ask_all(app, &same, 2, &second).await?);

    let tokens = context.manifest().tokens();
    let encode_s = took.as_secs_f64();
    let first_tokens = |later: bool| {
        mean(questions.iter().filter(|q| (q.turn > 1) == later).map(|q| q.time_to_first_token_s))
    };
    Ok(ModeReport {
        attention: layout.attention.to_string(),
        block_tokens: layout.block_tokens,
        anchor_tokens: match layout.attention {
            Attention::Star { anchor_tokens } => Some(anchor_tokens),
            Attention::Exact => None,
        },
        context_tokens: tokens,
        blocks: context.manifest().blocks.len(),
        encode_s,
        encode_tokens_per_s: tokens as f64 / encode_s.max(f64::MIN_POSITIVE),
        kv_bytes: context.kv_bytes(),
        kv_held_bytes,
        encoded_again,
        first_turn_time_to_first_token_s: first_tokens(false).unwrap_or_default(),
        later_turns_time_to_first_token_s: first_tokens(true),
        tokens_per_s: mean(questions.iter().map(|q| q.tokens_per_s)).unwrap_or_default(),
        correct: questions.iter().filter(|q| q.correct).count(),
        questions,
    })
}

/// The facts in the order that they are asked for: not that of the text, and most of them in the first session.
pub(super) fn sessions(document: &Document) -> [Vec<&Fact>; 2] {
    let facts = &document.facts;
    // Every other fact from the end, then the rest: each turn jumps to another part of the document.
    let odd = facts.iter().rev().step_by(2);
    let even = facts.iter().rev().skip(1).step_by(2);
    let mut first: Vec<&Fact> = odd.chain(even).collect();
    let second = first.split_off(first.len().saturating_sub(SECOND_SESSION_QUESTIONS).max(1));
    [first, second]
}

/// Asks for `facts` in the turns of one session.
async fn ask_all(
    app: &App,
    context: &Context,
    session_number: usize,
    facts: &[&Fact],
) -> anyhow::Result<Vec<QuestionReport>> {
    let session = context.session().await?;
    let options = open::ask_options(&app.settings, &[]);
    let mut asked = Vec::new();
    for (index, fact) in facts.iter().enumerate() {
        // Dropping the turn cancels it.
        let answered = app.interrupt.or(ask(&session, fact, options.clone())).await??;
        asked.push(QuestionReport { session: session_number, turn: index + 1, ..answered });
    }
    Ok(asked)
}

async fn ask(session: &Session, fact: &Fact, options: AskOptions) -> anyhow::Result<QuestionReport> {
    let question = fact.question();
    let report = session.ask(question.as_str(), options).finish().await?;
    Ok(QuestionReport {
        question,
        correct: fact.is_answered_by(&report.text),
        answer: report.text,
        expected: fact.value.clone(),
        key: fact.key.clone(),
        depth: fact.depth,
        session: 0,
        turn: 0,
        query_tokens: report.usage.query_tokens,
        generated_tokens: report.usage.generated_tokens,
        finish: report.finish,
        time_to_first_token_s: report.timings.first_token_s,
        total_s: report.timings.total_s,
        tokens_per_s: report.timings.tokens_per_s,
    })
}

/// `None` for nothing.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}
