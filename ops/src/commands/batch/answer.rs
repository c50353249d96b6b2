//! How one line is answered: its context encoded (or found encoded), a session opened, every turn asked. Files are
//! written by the caller; logits go to theirs as they come, since a line's may not fit into memory.

use serde::Serialize;
use serde_json::Value;
use stellate_actors::{
    AskError, AskOptions, Context, ContextSource, EncodeError, FinishReason, Layout, Node, QueryInput,
    Session, SessionError, TurnEvent, TurnReport, Usage,
};
use stellate_runtime::config::{AttentionSettings, Settings};

use super::input::{Line, Work};
use super::logits::{LogitsFile, query_name, step_name};
use super::output::MadeWith;
use super::run_key::RunKeys;
use crate::interrupt::{Interrupt, Interrupted};
use crate::report::stores::until_empty;

/// The most probable tokens of every step of a turn, best first: `[id, log-probability]`.
type StepLogprobs = Vec<Vec<(u32, f32)>>;

/// The line of an answer in the output.
#[derive(Debug, Serialize)]
pub(super) struct AnswerLine {
    index: Value,
    pred: OneOrTurns<String>,
    pred_ids: OneOrTurns<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
    finish: Vec<FinishReason>,
    usage: Vec<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<StepLogprobs>>,
    run: String,
}

/// A text line has one turn and says so, as the reference code's output does; a line of tokens has a list.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum OneOrTurns<T> {
    One(T),
    Turns(Vec<T>),
}

impl<T> OneOrTurns<T> {
    fn new(mut turns: Vec<T>, is_text: bool) -> Self {
        match turns.pop_if(|_| is_text) {
            Some(one) => Self::One(one),
            None => Self::Turns(turns),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Something about this line; the next one may do.
    Line(anyhow::Error),
    /// Nothing more can be answered.
    Batch(anyhow::Error),
}

/// Answers lines on a node, one after the other.
#[derive(Debug)]
pub(super) struct Answerer {
    interrupt: Interrupt,
    node: Node,
    attention: AttentionSettings,
    ask: AskOptions,
    chat: bool,
    runs: RunKeys,
    /// The last line's context: the next one often has the same, and then encodes nothing.
    previous: Option<Context>,
}

impl Answerer {
    /// Answers on `node`, with contexts as `attention` says where a line says nothing else; text goes into the chat
    /// template if `chat`. Ctrl-C ends the line under way.
    pub(super) fn new(
        interrupt: Interrupt,
        node: Node,
        settings: &Settings,
        ask: AskOptions,
        chat: bool,
    ) -> Self {
        let runs = RunKeys::new(node.decoder().fingerprint(), settings, &ask, chat);
        Self { interrupt, node, attention: settings.attention.clone(), ask, chat, runs, previous: None }
    }

    /// What the answer to `line` is made with.
    pub(super) fn made_with(&self, line: &Line) -> MadeWith {
        let run = self.runs.key(line, &line.shape.layout(&self.attention));
        MadeWith { run, logprobs: self.ask.top_logprobs.min(self.node.decoder().config().vocab_size) }
    }

    /// Answers a line. Its logits are appended to `logits` and left to be committed.
    pub(super) async fn answer(
        &mut self,
        line: &Line,
        mut logits: Option<&mut LogitsFile>,
    ) -> Result<AnswerLine, Failure> {
        line.check_ids(self.node.decoder()).map_err(Failure::Line)?;
        let layout = line.shape.layout(&self.attention);
        let (source, turns, is_text) = match &line.work {
            Work::Text { context, query } => {
                let source = if self.chat { ContextSource::Document } else { ContextSource::Text };
                (source(context.clone()), vec![QueryInput::Text(query.clone())], true)
            }
            Work::Ids { context, turns } => {
                let turns = turns.iter().cloned().map(QueryInput::Ids).collect();
                (ContextSource::Ids(context.clone()), turns, false)
            }
        };
        let interrupt = self.interrupt.clone();
        let context = interrupt.or(self.encode(source, layout)).await??;
        let session = interrupt.or(context.session()).await??;
        self.previous = Some(context);
        if let Some(logits) = logits.as_deref_mut() {
            logits.begin_line().map_err(Failure::Batch)?;
        }
        let (mut reports, mut logprobs) = (Vec::new(), Vec::new());
        for (t, input) in turns.into_iter().enumerate() {
            let (report, steps) = self.turn(&session, input, &line.key, t, logits.as_deref_mut()).await?;
            reports.push(report);
            logprobs.push(steps);
        }
        Ok(AnswerLine {
            index: line.index.clone(),
            finish: reports.iter().map(|report| report.finish).collect(),
            usage: reports.iter().map(|report| report.usage).collect(),
            pred_ids: OneOrTurns::new(reports.iter().map(|report| report.ids.clone()).collect(), is_text),
            pred: OneOrTurns::new(reports.into_iter().map(|report| report.text).collect(), is_text),
            output: line.output.clone(),
            logprobs: (self.ask.top_logprobs > 0).then_some(logprobs),
            run: self.runs.key(line, &layout),
        })
    }

    /// Encodes a context. One that finds no room tries again without the one before it.
    async fn encode(&mut self, source: ContextSource, layout: Layout) -> Result<Context, EncodeError> {
        match self.node.encode(source.clone(), layout).await {
            Err(EncodeError::Full { .. }) if self.previous.take().is_some() => {
                until_empty(&self.node).await;
                self.node.encode(source, layout).await
            }
            encoded => encoded,
        }
    }

    /// Asks turn `t` of the line that is called `key`. Upon Ctrl-C it waits for the turn's end, after the token under way.
    async fn turn(
        &self,
        session: &Session,
        input: QueryInput,
        key: &str,
        t: usize,
        mut logits: Option<&mut LogitsFile>,
    ) -> Result<(TurnReport, StepLogprobs), Failure> {
        let vocab_size = self.node.decoder().config().vocab_size;
        let mut append = |name: String, rows: Option<&[f32]>| match (&mut logits, rows) {
            (Some(file), Some(rows)) => file.append(&name, vocab_size, rows).map_err(Failure::Batch),
            _ => Ok(()),
        };
        let mut steps = Vec::new();
        let mut asked = session.ask(input, self.ask.clone());
        loop {
            let event = match self.interrupt.or(asked.next()).await {
                Ok(event) => event.ok_or(AskError::Stopped)??,
                Err(interrupted) => {
                    asked.cancel();
                    // However it ends: nobody reads the answer.
                    let _ = asked.finish().await;
                    return Err(interrupted.into());
                }
            };
            match event {
                TurnEvent::Token(token) => {
                    append(step_name(key, t), token.logits.as_deref())?;
                    steps.push(token.top);
                }
                TurnEvent::Finished(report) => {
                    append(query_name(key, t), report.query_logits.as_deref())?;
                    return Ok((*report, steps));
                }
            }
        }
    }
}

impl From<Interrupted> for Failure {
    fn from(interrupted: Interrupted) -> Self {
        Self::Batch(interrupted.into())
    }
}

impl From<EncodeError> for Failure {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::Stopped => Self::Batch(error.into()),
            _ => Self::Line(error.into()),
        }
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Stopped => Self::Batch(error.into()),
            _ => Self::Line(error.into()),
        }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Stopped => Self::Batch(error.into()),
            // The flags say it for every line alike.
            AskError::NoTokens | AskError::StopString(_) => Self::Batch(error.into()),
            _ => Self::Line(error.into()),
        }
    }
}
