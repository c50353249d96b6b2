//! The life of a query token (phase 2 of Star Attention, arXiv 2411.17116, section 2.2).
//!
//! 1. **render** the question into the tokens to feed: [`TurnRun::begin`];
//! 2. **embed** a chunk of them, or the token sampled last: [`forward`];
//! 3. for each layer **project** Q, K, V; **append** K, V to the session's own tail; **fan out** Q to the hosts that
//!    hold blocks; **attend** the tail meanwhile; **fan in**, check exact cover and **merge** in block order; **finish**
//!    the layer: [`forward`];
//! 4. **sample** from the last token's logits and **emit** the token; where guesses at the next tokens were fed behind it,
//!    as many as [pay](crate::pace), go on for as long as they hold: [`TurnRun::step`];
//! 5. **log** the turn in its session: [`TurnRun::finish`]; once the log is durable, tell the report:
//!    [`TurnRun::conclude`].
//!
//! A step whose attention is not to be had leaves the turn as it was before the step, to be asked again once the context
//! is [healed](crate::path::heal).

use std::ops::Range;
use std::time::Duration;

use stellate_kernels::KvSpan;
use stellate_model::decoder::Decoder;
use stellate_model::observe::{Operation, Phase, Work};
use stellate_model::sampler::{Sampler, top_logprobs};
use stellate_model::stream::{StopStrings, TokenStream};
use stellate_runtime::clock::Clock;
use tokio::sync::mpsc;

use crate::cancel::CancelToken;
use crate::engine::{Engine, recycle};
use crate::error::AskError;
use crate::fanout::{Fanout, FanoutError};
use crate::pace::Pace;
use crate::prompt::Prompter;
use crate::session::{SessionState, TurnRecord};
use crate::speculate::{RECENT_TOKENS, guess};
use crate::tail::Tail;
use crate::turn::{
    AskOptions, FinishReason, QueryInput, Speculation, Timings, TokenEvent, TurnEvent, TurnReport, Usage,
};

/// Runs `ids`, at `position` and after, through every layer. They attend to the blocks that `fanout` reaches, to the
/// tail and, causally, to themselves; their keys and values are appended to the tail, which must have room for them.
/// Gives the logits of the tokens in `rows`. On an error the tail is as it was.
pub fn forward(
    engine: &mut Engine,
    fanout: &mut Fanout,
    tail: &mut Tail,
    ids: &[u32],
    position: usize,
    rows: Range<usize>,
) -> Result<Vec<f32>, FanoutError> {
    let decoder: &Decoder = &engine.decoder;
    let (backend, phase) = match fanout.is_placement_free() {
        true => (engine.backend.encoding(), Phase::Encode),
        false => (&*engine.backend, Phase::Answer),
    };
    let (pass, own, merged) = (&mut engine.pass, &mut engine.attended, &mut engine.merged);
    let (all, last) = (0..ids.len(), decoder.config().layers - 1);
    let mut spans: Vec<KvSpan<'static>> = Vec::new();
    pass.begin(phase, None);
    decoder.start(backend, pass, ids, position);
    for layer in 0..=last {
        // Of the last layer nobody reads more than the rows that are asked for.
        let asked = if layer == last { rows.clone() } else { all.clone() };
        match asked == all {
            true => decoder.project(backend, layer, pass),
            false => decoder.project_keys(backend, layer, pass),
        }
        tail.write(backend, layer, pass.key(), pass.value());
        pass.done(Operation::KvWrite, Work::default);
        if asked.is_empty() {
            break;
        }
        if asked != all {
            decoder.project_queries_of(backend, layer, pass, asked.clone());
        }
        fanout.post(layer, pass.query_mut())?;
        pass.done(Operation::Post, Work::default);
        let shape = decoder.partial_shape(asked.len());
        let mut seen = recycle(spans);
        tail.add_spans(layer, asked.clone(), &mut seen);
        own.reset(shape);
        backend.attend(decoder.queries(fanout.queries()), &seen, own);
        pass.done(Operation::Attention, || decoder.attention_work(asked.len(), &seen));
        spans = recycle(seen);
        merged.reset(shape);
        let has_context = fanout.collect(backend, merged)?;
        pass.done(Operation::Wait, Work::default);
        match has_context {
            true => backend.merge(merged, own),
            false => std::mem::swap(merged, own),
        }
        pass.done(Operation::Merge, Work::default);
        decoder.finish(backend, layer, pass, merged);
    }
    tail.advance(ids.len());
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    Ok(decoder.logits(backend, pass))
}

/// Feeds the next chunk of what the turns so far have fed and the session's tail lacks. On an error the tail is as it was.
pub fn restore(engine: &mut Engine, session: &mut SessionState) -> Result<(), AskError> {
    let chunk = session.lacking(engine.chunk_tokens);
    session.tail.reserve(chunk.len())?;
    let position = session.position();
    let fanout = session.fanout.as_mut().ok_or(FanoutError::Unplaced)?;
    forward(engine, fanout, &mut session.tail, &chunk, position, 0..0)?;
    Ok(())
}

/// What a step of a turn led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do.
    Again,
    /// The listener has not taken the last events yet: nothing was done.
    Waiting,
    /// The step's attention was not to be had, for a reason that can be mended: nothing was done.
    Faulted(FanoutError),
    /// The turn is over and logged in its session: time to [`TurnRun::conclude`] it.
    Finished,
    /// The turn has failed, and its listener was told.
    Ended,
}

/// A question to be answered, as the query host receives it.
#[derive(Debug)]
pub struct TurnRequest {
    /// What is asked.
    pub input: QueryInput,
    /// How the answer is made.
    pub options: AskOptions,
    /// When it was asked, by the node's clock.
    pub asked: Duration,
    /// Where the answer goes.
    pub events: mpsc::Sender<Result<TurnEvent, AskError>>,
    /// Ends the turn between two steps.
    pub cancel: CancelToken,
    /// A turn that is cancelled once this is set is taken back, whatever was said in it.
    pub abandoned: CancelToken,
}

/// A turn on its way. It advances by one chunk of the question or one token of the answer at a time, so that sessions
/// take turns on their query host.
#[derive(Debug)]
pub struct TurnRun {
    feed: Vec<u32>,
    fed: usize,
    /// The end of the conversation, where guesses are looked up.
    recent: Vec<u32>,
    pace: Pace,
    speculation: Speculation,
    /// Every token so far, where the sampler penalises repetition; else empty.
    history: Vec<u32>,
    options: AskOptions,
    sampler: Sampler,
    stops: StopStrings,
    words: Option<TokenStream>,
    events: mpsc::Sender<Result<TurnEvent, AskError>>,
    cancel: CancelToken,
    abandoned: CancelToken,
    before: Before,
    ids: Vec<u32>,
    text: String,
    query_tokens: usize,
    query_logits: Vec<f32>,
    first_token: Duration,
    /// What is told once the turn is over.
    report: Option<Box<TurnReport>>,
}

/// What a turn began with: what it goes back to when it fails.
#[derive(Clone, Copy, Debug)]
struct Before {
    tail_tokens: usize,
    pending: Option<u32>,
    asked: Duration,
}

impl TurnRun {
    /// Stage 1: renders the question and checks everything that can be wrong with it, before anything is computed.
    pub fn begin(
        request: TurnRequest,
        session: &SessionState,
        prompter: &Prompter,
        engine: &Engine,
    ) -> Result<Self, AskError> {
        let TurnRequest { input, options, asked, events, cancel, abandoned } = request;
        if options.max_tokens == 0 {
            return Err(AskError::NoTokens);
        }
        options.sampling.validate()?;
        let stops = StopStrings::new(options.stop.iter().cloned())?;
        let feed =
            prompter.query_ids(session.context.prompting, &input, session.is_new(), session.pending)?;
        if feed.is_empty() {
            return Err(AskError::Empty);
        }
        engine.decoder.check_ids(&feed)?;
        let position = session.context_tokens() + session.logged_tokens();
        engine.decoder.config().check_context(position + feed.len() + options.max_tokens)?;
        let history = match options.sampling.repetition_penalty {
            1.0 => Vec::new(),
            _ => session.history(&feed),
        };
        let before = Before { tail_tokens: session.logged_tokens(), pending: session.pending, asked };
        Ok(Self {
            query_tokens: feed.len(),
            recent: session.recent(&feed, RECENT_TOKENS),
            pace: Pace::new(options.guess_tokens),
            speculation: Speculation::default(),
            feed,
            fed: 0,
            history,
            sampler: Sampler::at_step(options.sampling.clone(), session.generated_tokens() as u64)?,
            stops,
            words: prompter.token_stream(),
            options,
            events,
            cancel,
            abandoned,
            before,
            ids: Vec::new(),
            text: String::new(),
            query_logits: Vec::new(),
            first_token: Duration::ZERO,
            report: None,
        })
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.events.is_closed()
    }

    /// Stages 2 to 4: feeds the next chunk of the question, or the token sampled last; samples and emits. An error
    /// ends the turn, is told to its listener and leaves the session as it was before the turn.
    pub fn step(
        &mut self,
        engine: &mut Engine,
        session: &mut SessionState,
        prompter: &Prompter,
        clock: &dyn Clock,
    ) -> Step {
        // Room for a token and for the report that may follow it.
        if self.events.capacity() < 2 && !self.events.is_closed() {
            return Step::Waiting;
        }
        if self.is_cancelled() {
            return self.finish(session, FinishReason::Cancelled, clock);
        }
        match self.advance(engine, session, prompter, clock) {
            Ok(None) => Step::Again,
            Ok(Some(finish)) => self.finish(session, finish, clock),
            Err(AskError::Fanout(fault)) if fault.is_mendable() => Step::Faulted(fault),
            Err(error) => {
                self.fail(session, error);
                Step::Ended
            }
        }
    }

    /// Ends the turn with an error: the session is as it was before the question.
    pub fn fail(&mut self, session: &mut SessionState, error: AskError) {
        self.take_back(session);
        match error {
            // Its own session ended it.
            AskError::Closed => tracing::debug!(%error, "turn ended"),
            _ => tracing::warn!(%error, "turn failed"),
        }
        // A full or closed queue belongs to a listener that is gone or that will find the stream ended.
        let _ = self.events.try_send(Err(error));
    }

    /// Ends a turn that is logged, and not known to outlast its node, with an error.
    pub fn doubt(self, error: AskError) {
        tracing::warn!(%error, "a turn is in doubt");
        // A full or closed queue belongs to a listener that is gone or that will find the stream ended.
        let _ = self.events.try_send(Err(error));
    }

    /// The session's own keys and values are as they were before the question, or as far as they have been restored.
    fn take_back(&self, session: &mut SessionState) {
        session.tail.truncate(self.before.tail_tokens.min(session.tail.len()));
        session.pending = self.before.pending;
    }

    /// Feeds the next chunk and samples from it: one token, and one more behind every guess that holds. Tells whether
    /// the last of them was the answer's last.
    fn advance(
        &mut self,
        engine: &mut Engine,
        session: &mut SessionState,
        prompter: &Prompter,
        clock: &dyn Clock,
    ) -> Result<Option<FinishReason>, AskError> {
        let (is_of_answer, began) = (!self.ids.is_empty(), clock.now());
        let guesses = self.guess(engine, session);
        let Some(logits) = self.feed_chunk(engine, session, &guesses)? else { return Ok(None) };
        if is_of_answer {
            session.costs.learn(guesses.len(), clock.now().saturating_sub(began));
        }
        let certain = session.tail.len() - guesses.len();
        let (mut held, mut finish) = (0, None);
        for row in logits.chunks_exact(engine.decoder.config().vocab_size) {
            finish = self.emit(row, session, prompter, clock)?;
            if finish.is_some() || guesses.get(held) != self.ids.last() {
                break;
            }
            held += 1;
        }
        // What stands behind a wrong guess was never said.
        session.tail.truncate(certain + held);
        self.fed += held;
        if is_of_answer {
            self.pace.learn(guesses.len(), held, &session.costs);
        }
        self.speculation.steps += 1;
        self.speculation.guessed_tokens += guesses.len();
        self.speculation.accepted_tokens += held;
        Ok(finish)
    }

    /// Guesses at what follows the token sampled last, as far as there is room for it everywhere.
    fn guess(&self, engine: &Engine, session: &mut SessionState) -> Vec<u32> {
        if self.ids.is_empty() {
            return Vec::new();
        }
        let count = (self.pace.tokens(&session.costs))
            .min(self.options.max_tokens - self.ids.len() - 1)
            .min(self.events.capacity().saturating_sub(2))
            .min(engine.chunk_tokens - 1);
        if count == 0 || session.tail.reserve(1 + count).is_err() {
            return Vec::new();
        }
        let context = &session.context;
        guess(&context.index, &context.manifest.ids, &self.recent, count)
    }

    /// Feeds the next chunk of the question, or the token sampled last with guesses behind it. Gives the logits to sample
    /// from, one row for every token that they follow, once the question is fed.
    fn feed_chunk(
        &mut self,
        engine: &mut Engine,
        session: &mut SessionState,
        guesses: &[u32],
    ) -> Result<Option<Vec<f32>>, AskError> {
        let end = (self.fed + engine.chunk_tokens).min(self.feed.len());
        let chunk = [&self.feed[self.fed..end], guesses].concat();
        let is_last = end == self.feed.len();
        let all_rows = self.ids.is_empty() && self.options.logits;
        let rows = match (is_last, all_rows) {
            (_, true) => 0..chunk.len(),
            (true, false) => chunk.len() - 1 - guesses.len()..chunk.len(),
            (false, false) => 0..0,
        };
        session.tail.reserve(chunk.len())?;
        let position = session.position();
        let fanout = session.fanout.as_mut().ok_or(FanoutError::Unplaced)?;
        let mut logits = forward(engine, fanout, &mut session.tail, &chunk, position, rows)?;
        self.fed = end;
        if all_rows {
            self.query_logits.extend_from_slice(&logits);
            logits.drain(..logits.len() - engine.decoder.config().vocab_size);
        }
        Ok(is_last.then_some(logits))
    }

    /// Samples the next token, tells it, and says whether it was the last one.
    fn emit(
        &mut self,
        logits: &[f32],
        session: &mut SessionState,
        prompter: &Prompter,
        clock: &dyn Clock,
    ) -> Result<Option<FinishReason>, AskError> {
        let sampled = self.sampler.sample(logits, &self.history)?;
        if self.ids.is_empty() {
            self.first_token = clock.now().saturating_sub(self.before.asked);
        }
        self.ids.push(sampled.id);
        session.pending = Some(sampled.id);
        self.feed.push(sampled.id);
        self.recent.push(sampled.id);
        if self.options.sampling.repetition_penalty != 1.0 {
            self.history.push(sampled.id);
        }

        let is_eos = prompter.is_stop(sampled.id) && !self.options.ignore_eos;
        let piece = match &mut self.words {
            Some(words) if !is_eos => words.push(sampled.id),
            _ => String::new(),
        };
        let mut outcome = self.stops.push(&piece);
        let finish = if is_eos || outcome.matched.is_some() {
            Some(FinishReason::Stop)
        } else {
            (self.ids.len() == self.options.max_tokens).then_some(FinishReason::Length)
        };
        if finish.is_some() && outcome.matched.is_none() {
            outcome.text += &self.last_words();
        }
        self.text += &outcome.text;
        let event = TokenEvent {
            id: sampled.id,
            text: outcome.text,
            logprob: sampled.logprob,
            top: top_logprobs(logits, self.options.top_logprobs),
            logits: self.options.logits.then(|| logits.into()),
        };
        let _ = self.events.try_send(Ok(TurnEvent::Token(event)));
        Ok(finish)
    }

    /// The text held back until it was certain that no stop string or character needs it.
    fn last_words(&mut self) -> String {
        let rest = self.words.as_mut().map(TokenStream::finish).unwrap_or_default();
        let mut outcome = self.stops.push(&rest);
        if outcome.matched.is_none() {
            outcome.text += &self.stops.finish();
        }
        outcome.text
    }

    /// Stage 5: ends the turn and logs it in the session. A turn cancelled within its question never
    /// happened; one cancelled within its answer keeps what was said.
    fn finish(&mut self, session: &mut SessionState, finish: FinishReason, clock: &dyn Clock) -> Step {
        let query_ids = self.feed[..self.query_tokens].to_vec();
        if finish == FinishReason::Cancelled && self.abandoned.is_cancelled() {
            self.ids.clear();
        }
        if self.ids.is_empty() {
            self.take_back(session);
        } else {
            session.log(TurnRecord { query_ids: query_ids.clone(), ids: self.ids.clone(), finish });
        }
        let total = clock.now().saturating_sub(self.before.asked);
        let report = TurnReport {
            text: std::mem::take(&mut self.text),
            query_ids,
            finish,
            usage: Usage {
                context_tokens: session.context_tokens(),
                session_tokens: self.before.tail_tokens,
                query_tokens: self.query_tokens,
                generated_tokens: self.ids.len(),
            },
            speculation: self.speculation,
            timings: Timings::new(self.first_token, total, self.ids.len()),
            ids: std::mem::take(&mut self.ids),
            query_logits: self.options.logits.then(|| std::mem::take(&mut self.query_logits).into()),
        };
        self.report = Some(Box::new(report));
        Step::Finished
    }

    /// The turn's place in the log of its session and its entry there; none if it never happened.
    pub fn entry(&self, session: &SessionState) -> Option<(u64, TurnRecord)> {
        let is_logged = self.report.as_ref().is_some_and(|report| !report.ids.is_empty());
        let index = session.turns().len() as u64 - u64::from(is_logged);
        session.turns().last().filter(|_| is_logged).map(|turn| (index, turn.clone()))
    }

    /// Tells the report of a turn that is over.
    pub fn conclude(&mut self) {
        if let Some(report) = self.report.take() {
            // A full or closed queue belongs to a listener that is gone or that will find the stream ended.
            let _ = self.events.try_send(Ok(TurnEvent::Finished(report)));
        }
    }
}
