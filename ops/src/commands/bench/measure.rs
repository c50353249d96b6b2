//! One measurement: a context of random tokens encoded, two turns asked over it. Every repeat has tokens of its own, so
//! that no block is found encoded already, unless tokens are given, and begins when the context before is freed; what is reported of them is in `mod.rs`.

use std::time::Duration;

use anyhow::ensure;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::Serialize;
use stellate_actors::{AskOptions, ContextSource, Node, QueryInput, Session, TurnReport};

use super::plan::{Case, Questions, anchor_tokens};
use super::profile::{self, CaseProfile};
use crate::app::App;
use crate::open;
use crate::report::{memory, stores};

/// What came out for one case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measurement {
    pub(super) attention: String,
    /// The line of the plot.
    pub(super) series: String,
    pub(super) context_tokens: usize,
    pub(super) block_tokens: usize,
    pub(super) anchor_tokens: usize,
    pub(super) blocks: usize,
    pub(super) encode_s: Times,
    /// Of the best repeat.
    pub(super) encode_tokens_per_s: f64,
    /// From the first question to its answer's first token.
    pub(super) first_token_s: Times,
    /// Between two tokens of the first answer.
    pub(super) token_s: Times,
    /// From the second question of the session to its answer's first token.
    pub(super) second_turn_first_token_s: Times,
    /// The first answer of the last repeat: with tokens that are given it can be compared with another engine's.
    pub(super) answer_ids: Vec<u32>,
    /// Keys and values of the context's blocks.
    pub(super) kv_bytes: usize,
    pub(super) kv_bytes_per_token: f64,
    /// 2 × layers × KV heads × head dimension × bytes of a number.
    pub(super) kv_bytes_per_token_formula: usize,
    /// Keys and values on all hosts: blocks and copies of the anchor.
    pub(super) kv_held_bytes: usize,
    /// The highest resident memory while this was measured; of the whole process if `peak_is_own` is false.
    pub(super) peak_resident_bytes: Option<u64>,
    pub(super) peak_is_own: bool,
    /// Weights and all keys and values: what must be resident.
    pub(super) weights_and_kv_bytes: usize,
    /// With `--profile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) profile: Option<CaseProfile>,
}

/// Seconds over the repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Times {
    pub(super) best: f64,
    pub(super) median: f64,
}

impl Times {
    /// Of at least one time; the median of an even number is the mean of the middle two.
    fn of(mut seconds: Vec<f64>) -> Self {
        assert!(!seconds.is_empty(), "something was measured");
        seconds.sort_by(f64::total_cmp);
        let (low, high) = (seconds[(seconds.len() - 1) / 2], seconds[seconds.len() / 2]);
        Self { best: seconds[0], median: (low + high) / 2.0 }
    }
}

/// What is the same for all cases of a run.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) app: &'a App,
    pub(super) node: &'a Node,
    pub(super) questions: Questions,
    pub(super) repeat: usize,
    pub(super) tokens: Tokens,
}

/// Where tokens come from.
#[derive(Debug)]
pub(super) enum Tokens {
    /// Other ones every time.
    Random(Box<ChaCha8Rng>),
    /// These, from the head again for every repeat; the number of those taken.
    Given(Vec<u32>, usize),
}

impl Tokens {
    /// Those given, else random ones.
    pub(super) fn new(given: Option<Vec<u32>>, seed: u64) -> Self {
        given.map_or_else(
            || Self::Random(Box::new(ChaCha8Rng::seed_from_u64(seed))),
            |ids| Self::Given(ids, 0),
        )
    }

    fn begin(&mut self) {
        if let Self::Given(_, taken) = self {
            *taken = 0;
        }
    }

    fn take(&mut self, count: usize, vocab_size: usize) -> Vec<u32> {
        match self {
            Self::Random(random) => (0..count).map(|_| random.random_range(0..vocab_size as u32)).collect(),
            Self::Given(ids, taken) => {
                let first = *taken;
                *taken += count;
                ids[first..first + count].to_vec()
            }
        }
    }
}

/// One repeat.
struct Sample {
    encode: Duration,
    first: TurnReport,
    second: TurnReport,
    kv_bytes: usize,
    held_bytes: usize,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        app: &'a App,
        node: &'a Node,
        questions: Questions,
        repeat: usize,
        tokens: Tokens,
    ) -> Self {
        Self { app, node, questions, repeat, tokens }
    }

    /// A short run that is thrown away: threads start, weights are touched.
    pub(super) async fn warm_up(&mut self, case: &Case) -> anyhow::Result<()> {
        let case = Case { context_tokens: case.context_tokens.min(256), ..case.clone() };
        self.sample(&case).await.map(drop)
    }

    /// Measures one case.
    pub(super) async fn measure(&mut self, case: &Case) -> anyhow::Result<Measurement> {
        ensure!(stores::until_empty(self.node).await, "the context before was not freed");
        let peak_is_own = memory::reset_peak();
        profile::take(self.node);
        let mut samples = Vec::new();
        for _ in 0..self.repeat {
            samples.push(self.sample(case).await?);
        }
        let times = |time: fn(&Sample) -> f64| Times::of(samples.iter().map(time).collect());
        let encode_s = times(|sample| sample.encode.as_secs_f64());
        let last = &samples[samples.len() - 1];
        let decoder = self.node.decoder();
        let (_, store) = self.node.stores().next().expect("a node has hosts");
        let shape = store.shape();
        let formula = 2 * shape.layers * shape.kv_heads * shape.format.bytes_per_vector(shape.head_dim);
        Ok(Measurement {
            attention: case.layout.attention.to_string(),
            series: case.series.clone(),
            context_tokens: case.context_tokens,
            block_tokens: case.layout.block_tokens,
            anchor_tokens: anchor_tokens(&case.layout),
            blocks: case.layout.cut(case.context_tokens).count(),
            encode_s,
            encode_tokens_per_s: case.context_tokens as f64 / encode_s.best,
            first_token_s: times(|sample| sample.first.timings.first_token_s),
            token_s: times(|sample| sample.first.timings.tokens_per_s.recip()),
            second_turn_first_token_s: times(|sample| sample.second.timings.first_token_s),
            answer_ids: last.first.ids.clone(),
            kv_bytes: last.kv_bytes,
            kv_bytes_per_token: last.kv_bytes as f64 / case.context_tokens as f64,
            kv_bytes_per_token_formula: formula,
            kv_held_bytes: last.held_bytes,
            peak_resident_bytes: memory::peak_bytes(),
            peak_is_own,
            weights_and_kv_bytes: decoder.weight_bytes() + last.held_bytes,
            profile: profile::take(self.node),
        })
    }

    async fn sample(&mut self, case: &Case) -> anyhow::Result<Sample> {
        ensure!(stores::until_empty(self.node).await, "the context before was not freed");
        self.tokens.begin();
        let source = ContextSource::Ids(self.tokens(case.context_tokens));
        let (context, encode) = open::encode(self.app, self.node, source, case.layout).await?;
        ensure!(context.progress().blocks_reused == 0, "a block was found encoded already");
        let session = context.session().await?;
        let query = self.tokens(self.questions.query_tokens);
        let first = self.ask(&session, query).await?;
        // The last token of an answer is sampled but not fed: the second question begins with it.
        let query = first.ids.last().copied().into_iter().chain(self.tokens(self.questions.query_tokens));
        let second = self.ask(&session, query.collect()).await?;
        let kv_bytes = context.kv_bytes();
        let held_bytes = stores::context_bytes(self.node) + self.node.session_store().used_bytes();
        Ok(Sample { encode, first, second, kv_bytes, held_bytes })
    }

    async fn ask(&self, session: &Session, query: Vec<u32>) -> anyhow::Result<TurnReport> {
        let options = AskOptions {
            max_tokens: self.questions.max_tokens,
            ignore_eos: true,
            // Guesses would measure what random tokens happen to repeat.
            guess_tokens: 0,
            ..AskOptions::default()
        };
        let turn = session.ask(QueryInput::Ids(query), options);
        Ok(self.app.interrupt.or(turn.finish()).await??)
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        self.tokens.take(count, self.node.decoder().config().vocab_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_best_and_the_middle() {
        assert_eq!(Times::of(vec![3.0, 1.0, 2.0]), Times { best: 1.0, median: 2.0 });
        assert_eq!(Times::of(vec![4.0, 1.0]), Times { best: 1.0, median: 2.5 });
    }
}
