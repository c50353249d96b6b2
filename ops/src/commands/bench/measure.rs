//! One measurement: a context encoded, two turns asked over it. Every repeat has random tokens of its own, or those that
//! are given, and begins when the context before is freed, so that no block is found encoded already; what is reported of
//! them is in `mod.rs`.

use std::time::Duration;

use anyhow::ensure;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::Serialize;
use stellate_actors::{AskOptions, ContextSource, Node, QueryInput, Session, TurnReport};
use stellate_model::config::ModelConfig;

use super::count::{Anchors, Gflop, Work};
use super::plan::{Case, Questions, anchor_tokens};
use super::profile::{self, CaseProfile};
use crate::app::App;
use crate::open;
use crate::report::{memory, stores};

/// Guesses would measure what random tokens happen to repeat.
pub(super) const GUESS_TOKENS: usize = 0;

/// What may be resident beside weights, keys and values, whatever the length of the context: the program, its threads'
/// stacks, the activations of a chunk on each host, and the index of the context's tokens (at most 32 MiB).
const MEMORY_ALLOWANCE_BYTES: usize = 256 << 20;

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
    /// Operations of encoding, counted.
    pub(super) gflop: Gflop,
    /// The same, to count on with.
    #[serde(skip)]
    pub(super) work: Work,
    /// Of the best repeat.
    pub(super) encode_gflop_per_s: f64,
    /// From the first question to its answer's first token.
    pub(super) first_token_s: Times,
    /// Between two tokens of the first answer, which is made a token at a time: the cost of a step of decoding.
    pub(super) token_s: Times,
    /// From the second question of the session to its answer's first token.
    pub(super) second_turn_first_token_s: Times,
    /// Tokens that the second question feeds, the last of the first answer among them.
    pub(super) second_turn_query_tokens: usize,
    /// The first answer of the last repeat: with tokens that are given it can be compared with another engine's.
    pub(super) answer_ids: Vec<u32>,
    #[serde(flatten)]
    pub(super) memory: MemoryUse,
    /// With `--profile`, of the repeat that encoded fastest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) profile: Option<CaseProfile>,
}

/// Bytes that one case took, and whether they are what was reported and allowed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MemoryUse {
    /// Keys and values of the context's blocks.
    pub(super) kv_bytes: usize,
    pub(super) kv_bytes_per_token: f64,
    /// 2 × layers × KV heads × bytes of one key.
    pub(super) kv_bytes_per_token_formula: usize,
    /// Keys and values on all hosts: blocks and copies of the anchor.
    pub(super) kv_held_bytes: usize,
    /// What the context hosts hold of that, and what their stores may hold by the settings.
    pub(super) store_used_bytes: usize,
    pub(super) store_capacity_bytes: usize,
    /// Whether every store stayed within its settings.
    pub(super) within_store: bool,
    /// The highest resident memory while this was measured; of the whole process if `peak_is_own` is false.
    pub(super) peak_resident_bytes: Option<u64>,
    pub(super) peak_is_own: bool,
    /// Weights and all keys and values: what must be resident.
    pub(super) weights_and_kv_bytes: usize,
    /// What may be resident on top of that.
    pub(super) memory_allowance_bytes: usize,
    /// Whether the peak stayed within both together; unknown where the peak is.
    pub(super) within_memory: Option<bool>,
}

/// Seconds over the repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Times {
    pub(super) best: f64,
    pub(super) median: f64,
}

impl Times {
    /// Of at least one time; the median of an even number is the mean of the middle two.
    pub(super) fn of(mut seconds: Vec<f64>) -> Self {
        assert!(!seconds.is_empty(), "something was measured");
        seconds.sort_by(f64::total_cmp);
        let (low, high) = (seconds[(seconds.len() - 1) / 2], seconds[seconds.len() / 2]);
        Self { best: seconds[0], median: (low + high) / 2.0 }
    }
}

/// Where tokens come from.
#[derive(Debug)]
pub(super) enum Tokens {
    /// Other ones of a vocabulary every time, the same for the same seed.
    Random { random: Box<ChaCha8Rng>, vocab_size: u32 },
    /// These, from the head again for every context; the number of those taken.
    Given { ids: Vec<u32>, taken: usize },
}

impl Tokens {
    /// Those given, else random ones.
    pub(super) fn new(config: &ModelConfig, given: Option<Vec<u32>>, seed: u64) -> Self {
        match given {
            Some(ids) => Self::Given { ids, taken: 0 },
            None => Self::Random {
                random: Box::new(ChaCha8Rng::seed_from_u64(seed)),
                vocab_size: config.vocab_size as u32,
            },
        }
    }

    /// The tokens of a context, with which a repeat begins.
    pub(super) fn begin(&mut self, count: usize) -> Vec<u32> {
        if let Self::Given { taken, .. } = self {
            *taken = 0;
        }
        self.take(count)
    }

    /// Those that follow.
    fn take(&mut self, count: usize) -> Vec<u32> {
        match self {
            Self::Random { random, vocab_size } => {
                (0..count).map(|_| random.random_range(0..*vocab_size)).collect()
            }
            Self::Given { ids, taken } => {
                let first = *taken;
                *taken += count;
                ids[first..first + count].to_vec()
            }
        }
    }
}

/// What is the same for all cases of a run.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) app: &'a App,
    pub(super) node: &'a Node,
    pub(super) questions: Questions,
    pub(super) repeat: usize,
    pub(super) anchors: Anchors,
    pub(super) tokens: Tokens,
}

/// One repeat.
struct Sample {
    encode: Duration,
    profile: Option<CaseProfile>,
    first: TurnReport,
    second: TurnReport,
    kv_bytes: usize,
    stored_bytes: usize,
    tail_bytes: usize,
}

impl Bench<'_> {
    /// A run that is thrown away.
    pub(super) async fn warm_up(&mut self, case: &Case) -> anyhow::Result<()> {
        self.sample(case).await.map(drop)
    }

    /// Seconds to encode a context, which is dropped.
    pub(super) async fn encode(&mut self, case: &Case) -> anyhow::Result<f64> {
        ensure!(stores::until_empty(self.node).await, "the context before was not freed");
        let source = ContextSource::Ids(self.tokens.begin(case.context_tokens));
        let (_, took) = open::encode(self.app, self.node, source, case.layout).await?;
        Ok(took.as_secs_f64())
    }

    /// Measures one case.
    pub(super) async fn measure(&mut self, case: &Case) -> anyhow::Result<Measurement> {
        ensure!(stores::until_empty(self.node).await, "the context before was not freed");
        let peak_is_own = memory::reset_peak();
        profile::forget(self.node);
        let mut samples = Vec::new();
        for _ in 0..self.repeat {
            samples.push(self.sample(case).await?);
        }
        let times = |time: fn(&Sample) -> f64| Times::of(samples.iter().map(time).collect());
        let encode_s = times(|sample| sample.encode.as_secs_f64());
        let last = &samples[samples.len() - 1];
        let fastest = samples.iter().min_by_key(|sample| sample.encode).unwrap_or(last);
        let work = case.work(self.node.decoder().config(), self.anchors);
        let gflop = work.gflop();
        Ok(Measurement {
            attention: case.layout.attention.to_string(),
            series: case.series.clone(),
            context_tokens: case.context_tokens,
            block_tokens: case.layout.block_tokens,
            anchor_tokens: anchor_tokens(&case.layout),
            blocks: case.layout.cut(case.context_tokens).count(),
            encode_s,
            encode_tokens_per_s: case.context_tokens as f64 / encode_s.best,
            gflop,
            work,
            encode_gflop_per_s: gflop.total / encode_s.best,
            first_token_s: times(|sample| sample.first.timings.first_token_s),
            token_s: times(|sample| sample.first.timings.tokens_per_s.recip()),
            second_turn_first_token_s: times(|sample| sample.second.timings.first_token_s),
            second_turn_query_tokens: last.second.usage.query_tokens,
            answer_ids: last.first.ids.clone(),
            memory: self.memory_use(case, last, peak_is_own),
            profile: fastest.profile.clone(),
        })
    }

    fn memory_use(&self, case: &Case, last: &Sample, peak_is_own: bool) -> MemoryUse {
        let (_, store) = self.node.stores().next().expect("a node has hosts");
        let shape = store.shape();
        let capacities = self.node.stores().map(|(_, store)| store.capacity_bytes());
        let store_capacity_bytes = capacities.fold(0, usize::saturating_add);
        let session_capacity_bytes = self.node.session_store().capacity_bytes();
        let kv_held_bytes = last.stored_bytes + last.tail_bytes;
        let weights_and_kv_bytes = self.node.decoder().weight_bytes() + kv_held_bytes;
        // An anchor that is computed again behind every block is scratch, outside the store.
        let scratch = match self.anchors {
            Anchors::BehindEveryBlock => shape.bytes_for(case.layout.anchor_tokens(case.context_tokens)),
            Anchors::OncePerHost(_) => 0,
        };
        let memory_allowance_bytes = MEMORY_ALLOWANCE_BYTES + scratch;
        let peak_resident_bytes = memory::peak_bytes();
        let within = |peak: u64| peak <= (weights_and_kv_bytes + memory_allowance_bytes) as u64;
        MemoryUse {
            kv_bytes: last.kv_bytes,
            kv_bytes_per_token: last.kv_bytes as f64 / case.context_tokens as f64,
            kv_bytes_per_token_formula: 2
                * shape.layers
                * shape.kv_heads
                * shape.format.bytes_per_vector(shape.head_dim),
            kv_held_bytes,
            store_used_bytes: last.stored_bytes,
            store_capacity_bytes,
            within_store: last.stored_bytes <= store_capacity_bytes
                && last.tail_bytes <= session_capacity_bytes,
            peak_resident_bytes,
            peak_is_own,
            weights_and_kv_bytes,
            memory_allowance_bytes,
            within_memory: peak_resident_bytes.map(within),
        }
    }

    async fn sample(&mut self, case: &Case) -> anyhow::Result<Sample> {
        ensure!(stores::until_empty(self.node).await, "the context before was not freed");
        let source = ContextSource::Ids(self.tokens.begin(case.context_tokens));
        let (context, encode) = open::encode(self.app, self.node, source, case.layout).await?;
        ensure!(context.progress().blocks_reused == 0, "a block was found encoded already");
        let session = context.session().await?;
        let query = self.tokens.take(self.questions.query_tokens);
        let first = self.ask(&session, query).await?;
        // The last token of an answer is sampled but not fed: the second question begins with it.
        let query =
            first.ids.last().copied().into_iter().chain(self.tokens.take(self.questions.query_tokens));
        let second = self.ask(&session, query.collect()).await?;
        let kv_bytes = context.kv_bytes();
        let stored_bytes = stores::context_bytes(self.node);
        let tail_bytes = self.node.session_store().used_bytes();
        let profile = profile::take(self.node, encode);
        Ok(Sample { encode, profile, first, second, kv_bytes, stored_bytes, tail_bytes })
    }

    async fn ask(&self, session: &Session, query: Vec<u32>) -> anyhow::Result<TurnReport> {
        let options = AskOptions {
            max_tokens: self.questions.max_tokens,
            ignore_eos: true,
            guess_tokens: GUESS_TOKENS,
            ..AskOptions::default()
        };
        let turn = session.ask(QueryInput::Ids(query), options);
        Ok(self.app.interrupt.or(turn.finish()).await??)
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
