//! A turn as its user sees it: what can be asked for, the events of the answer, the report at its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};
use stellate_model::sampler::SamplingParams;
use tokio::sync::mpsc;

use crate::cancel::CancelToken;
use crate::error::AskError;

/// What is asked.
#[derive(Clone, Debug)]
pub enum QueryInput {
    /// A question in words, put into the context's chat template (or fed as it is, if the context is raw text).
    Text(String),
    /// Tokens, fed exactly as they are. The last token of an earlier answer was sampled but never fed: begin with it
    /// to keep it in the conversation.
    Ids(Vec<u32>),
    /// Nothing new: the answer that was cut off goes on.
    Continue,
}

impl From<&str> for QueryInput {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for QueryInput {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// How an answer is made.
#[derive(Clone, Debug)]
pub struct AskOptions {
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Tokens to generate at most; at least 1.
    pub max_tokens: usize,
    /// Strings that end the answer; they are no part of it.
    pub stop: Vec<String>,
    /// Goes on after the model's end-of-text tokens.
    pub ignore_eos: bool,
    /// The most probable tokens to report with every step.
    pub top_logprobs: usize,
    /// Reports the logits of every query token and of every step.
    pub logits: bool,
    /// Tokens to guess at most in a step, by prompt lookup; 0 guesses nothing. The answer is the same.
    pub guess_tokens: usize,
}

impl Default for AskOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingParams::default(),
            max_tokens: 256,
            stop: Vec::new(),
            ignore_eos: false,
            top_logprobs: 0,
            logits: false,
            guess_tokens: 8,
        }
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// Its id.
    pub id: u32,
    /// The text that became certain with it: whole characters, often empty for a part of one.
    pub text: String,
    /// Natural log of the probability the model gave it.
    pub logprob: f32,
    /// The most probable tokens of this step, best first.
    pub top: Vec<(u32, f32)>,
    /// This step's logits, `[vocab_size]`, if asked for.
    pub logits: Option<Arc<[f32]>>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// It was cancelled. What had been said stays in the conversation.
    Cancelled,
}

/// Tokens that went into a turn and came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the context, whose keys and values were there already.
    pub context_tokens: usize,
    /// Tokens of earlier turns, likewise.
    pub session_tokens: usize,
    /// Tokens fed for this question.
    pub query_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
}

/// What guessing ahead came to: a step gives one token, and one more for every guess that held. As JSON it has its two rates
/// beside the counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Steps of the answer.
    pub steps: usize,
    /// Tokens guessed.
    pub guessed_tokens: usize,
    /// Guesses that held.
    pub accepted_tokens: usize,
}

impl Speculation {
    /// Guesses that held, for each step of the answer; 0 without a step.
    pub fn accepted_per_step(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.accepted_tokens as f64 / self.steps as f64 }
    }

    /// Tokens of the answer for each step: 1 where no guess held.
    pub fn tokens_per_step(&self) -> f64 {
        1.0 + self.accepted_per_step()
    }
}

impl Serialize for Speculation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Speculation", 5)?;
        fields.serialize_field("steps", &self.steps)?;
        fields.serialize_field("guessed_tokens", &self.guessed_tokens)?;
        fields.serialize_field("accepted_tokens", &self.accepted_tokens)?;
        fields.serialize_field("accepted_per_step", &self.accepted_per_step())?;
        fields.serialize_field("tokens_per_step", &self.tokens_per_step())?;
        fields.end()
    }
}

/// How long a turn took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// From the question to the first token of the answer, in seconds.
    pub first_token_s: f64,
    /// From the question to the end, in seconds.
    pub total_s: f64,
    /// Tokens per second after the first token; 0 for an answer of one token.
    pub tokens_per_s: f64,
}

impl Timings {
    pub(crate) fn new(first_token: Duration, total: Duration, generated: usize) -> Self {
        let rest = total.saturating_sub(first_token).as_secs_f64();
        let tokens_per_s = if generated > 1 && rest > 0.0 { (generated - 1) as f64 / rest } else { 0.0 };
        Self { first_token_s: first_token.as_secs_f64(), total_s: total.as_secs_f64(), tokens_per_s }
    }
}

/// A turn that has ended.
#[derive(Clone, Debug)]
pub struct TurnReport {
    /// The whole answer.
    pub text: String,
    /// Its tokens, with the end-of-text token if the model gave one.
    pub ids: Vec<u32>,
    /// The tokens that were fed.
    pub query_ids: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens in and out.
    pub usage: Usage,
    /// What guessing ahead came to.
    pub speculation: Speculation,
    /// How long it took.
    pub timings: Timings,
    /// Logits of the query tokens, `[query_tokens, vocab_size]`, if asked for.
    pub query_logits: Option<Arc<[f32]>>,
}

/// What an answer is made of.
#[derive(Clone, Debug)]
pub enum TurnEvent {
    /// One more token.
    Token(TokenEvent),
    /// The end.
    Finished(Box<TurnReport>),
}

/// An answer under way: a stream of [`TurnEvent`]s whose last is [`TurnEvent::Finished`] or an error. Dropping it
/// cancels the turn; the session can be asked again.
#[derive(Debug)]
pub struct Turn {
    pub(crate) events: mpsc::Receiver<Result<TurnEvent, AskError>>,
    pub(crate) cancel: CancelToken,
    pub(crate) abandoned: CancelToken,
}

impl Turn {
    /// The next event, or `None` after the last.
    pub async fn next(&mut self) -> Option<Result<TurnEvent, AskError>> {
        self.events.recv().await
    }

    /// Asks for the end: after the token under way the stream ends with [`FinishReason::Cancelled`].
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Ends the turn as if it had never been asked: whoever asked is gone, and may ask again elsewhere.
    pub(crate) fn abandon(&self) {
        self.abandoned.cancel();
    }

    /// The handle that [`cancel`](Self::cancel) uses, for another task.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// Waits for the end.
    pub async fn finish(mut self) -> Result<TurnReport, AskError> {
        while let Some(event) = self.next().await {
            if let TurnEvent::Finished(report) = event? {
                return Ok(*report);
            }
        }
        Err(AskError::Stopped)
    }
}

impl Stream for Turn {
    type Item = Result<TurnEvent, AskError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
