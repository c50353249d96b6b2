//! What follows from the measurements of a run taken together, and whether it is as it should be: the exponents of encode
//! time against length, the speed-up of star over exact beside the counted one, and the cost of a second turn. The
//! measurements themselves are in `measure.rs`; here is arithmetic.

use serde::Serialize;

use super::measure::Measurement;
use super::pace::{Rates, Speed};
use crate::report::fit;

/// Star's encode time must not grow faster than this power of the length.
const MAX_STAR_EXPONENT: f64 = 1.03;
/// Star's speed-up over exact in percent of the counted one: at least this.
const MIN_SPEEDUP_PERCENT: f64 = 90.0;
/// A second turn's first token over its tokens times the cost of a step: at most this.
const MAX_SECOND_TURN_RATIO: f64 = 1.5;
/// The first block stands behind no anchor, so its tokens see fewer keys than all others. In contexts of as many blocks
/// that changes the work per token by less than 4 %, and growth is then that of the length.
const STEADY_BLOCKS: usize = 16;

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Scaling {
    pub(super) exponents: Vec<Exponent>,
    pub(super) speedups: Vec<Speedup>,
    pub(super) second_turns: Vec<SecondTurn>,
    pub(super) independence: Vec<Independence>,
    /// Of products and attention, where the cases tell them apart.
    pub(super) rates: Option<Rates>,
}

/// The power of the length that a series' encode time grows with.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Exponent {
    pub(super) series: String,
    /// Over all lengths of the series.
    pub(super) all: Growth,
    /// Over its contexts of at least 16 blocks, where there are two.
    pub(super) steady: Option<Growth>,
    /// Whether the steady exponent of a star series with blocks of one length is at most 1.03.
    pub(super) holds: Option<bool>,
}

/// Least-squares exponents over some lengths.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Growth {
    pub(super) from_tokens: usize,
    pub(super) to_tokens: usize,
    /// Of the best encode times.
    pub(super) measured: f64,
    /// Of the counted operations.
    pub(super) counted: f64,
}

/// Star beside exact at one length.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Speedup {
    pub(super) context_tokens: usize,
    pub(super) block_tokens: usize,
    pub(super) anchor_tokens: usize,
    pub(super) star_s: f64,
    pub(super) exact_s: f64,
    /// Exact's encode time over star's.
    pub(super) measured: f64,
    /// Exact's counted operations over star's.
    pub(super) counted: f64,
    /// The measured speed-up in percent of the counted one.
    pub(super) percent: f64,
    /// Whether that is at least 90.
    pub(super) holds: bool,
}

/// A question of a session that has been asked before.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SecondTurn {
    pub(super) series: String,
    pub(super) context_tokens: usize,
    /// One step of decoding after the same context, a token at a time, without guesses.
    pub(super) step_s: f64,
    /// Tokens that the question feeds, the last of the answer before it among them.
    pub(super) query_tokens: usize,
    /// Tokens fed times the cost of a step.
    pub(super) product_s: f64,
    /// From the question to its answer's first token.
    pub(super) first_token_s: f64,
    /// The latter over the former.
    pub(super) ratio: f64,
    /// The first token of a new session over the context just encoded, whose question has as many tokens or one fewer.
    pub(super) fresh_first_token_s: f64,
    /// Whether the ratio is at most 1.5.
    pub(super) holds: bool,
}

/// What contexts of one length cost to encode and then to ask: the first differs between layouts, the second must not.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Independence {
    pub(super) context_tokens: usize,
    /// The slowest encode time over the fastest.
    pub(super) encode_spread: f64,
    /// The slowest first token of a second turn over the fastest.
    pub(super) second_turn_spread: f64,
}

impl Scaling {
    pub(super) fn of(measurements: &[Measurement]) -> Self {
        let mut speed = Speed::default();
        for measured in measurements {
            speed.learn(measured.work, measured.encode_s.best);
        }
        Self {
            exponents: exponents(measurements),
            speedups: measurements.iter().filter_map(|star| speedup(star, measurements)).collect(),
            second_turns: measurements.iter().map(second_turn).collect(),
            independence: independence(measurements),
            rates: speed.rates().filter(|rates| rates.products_gflop_per_s != rates.attention_gflop_per_s),
        }
    }
}

fn exponents(measurements: &[Measurement]) -> Vec<Exponent> {
    let mut names: Vec<&str> = Vec::new();
    for measured in measurements {
        if !names.contains(&&*measured.series) {
            names.push(&measured.series);
        }
    }
    let series = names.into_iter().filter_map(|name| {
        let of_series: Vec<_> = measurements.iter().filter(|measured| measured.series == name).collect();
        let steady: Vec<_> = of_series.iter().copied().filter(|m| m.blocks >= STEADY_BLOCKS).collect();
        let steady = growth(&steady);
        let one_length = of_series.iter().all(|measured| measured.block_tokens == of_series[0].block_tokens);
        let judged = steady.filter(|_| one_length && is_star(of_series[0]));
        let holds = judged.map(|growth| growth.measured <= MAX_STAR_EXPONENT);
        Some(Exponent { series: name.to_owned(), all: growth(&of_series)?, steady, holds })
    });
    series.collect()
}

fn growth(measurements: &[&Measurement]) -> Option<Growth> {
    let exponent = |of: fn(&Measurement) -> f64| {
        let points: Vec<_> =
            measurements.iter().map(|measured| (measured.context_tokens as f64, of(measured))).collect();
        fit::exponent(&points)
    };
    let lengths = || measurements.iter().map(|measured| measured.context_tokens);
    Some(Growth {
        from_tokens: lengths().min()?,
        to_tokens: lengths().max()?,
        measured: exponent(|measured| measured.encode_s.best)?,
        counted: exponent(|measured| measured.gflop.total)?,
    })
}

/// Star beside the exact context of its length, that of its own block where there are several.
fn speedup(star: &Measurement, measurements: &[Measurement]) -> Option<Speedup> {
    if !is_star(star) {
        return None;
    }
    let exact =
        || measurements.iter().filter(|exact| !is_star(exact) && exact.context_tokens == star.context_tokens);
    let exact = exact().find(|exact| exact.block_tokens == star.block_tokens).or_else(|| exact().next())?;
    let measured = exact.encode_s.best / star.encode_s.best;
    let counted = exact.gflop.total / star.gflop.total;
    let percent = 100.0 * measured / counted;
    Some(Speedup {
        context_tokens: star.context_tokens,
        block_tokens: star.block_tokens,
        anchor_tokens: star.anchor_tokens,
        star_s: star.encode_s.best,
        exact_s: exact.encode_s.best,
        measured,
        counted,
        percent,
        holds: percent >= MIN_SPEEDUP_PERCENT,
    })
}

fn second_turn(measured: &Measurement) -> SecondTurn {
    let query_tokens = measured.second_turn_query_tokens;
    let product_s = query_tokens as f64 * measured.token_s.best;
    let ratio = measured.second_turn_first_token_s.best / product_s;
    SecondTurn {
        series: measured.series.clone(),
        context_tokens: measured.context_tokens,
        step_s: measured.token_s.best,
        query_tokens,
        product_s,
        first_token_s: measured.second_turn_first_token_s.best,
        ratio,
        fresh_first_token_s: measured.first_token_s.best,
        holds: ratio <= MAX_SECOND_TURN_RATIO,
    }
}

/// By length, where several layouts were measured.
fn independence(measurements: &[Measurement]) -> Vec<Independence> {
    let mut lengths: Vec<_> = measurements.iter().map(|measured| measured.context_tokens).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let of_length = |context_tokens| {
        let all: Vec<_> =
            measurements.iter().filter(|measured| measured.context_tokens == context_tokens).collect();
        let spread = |of: fn(&Measurement) -> f64| {
            let values = || all.iter().map(|measured| of(measured));
            values().fold(0.0, f64::max) / values().fold(f64::INFINITY, f64::min)
        };
        (all.len() > 1).then(|| Independence {
            context_tokens,
            encode_spread: spread(|measured| measured.encode_s.best),
            second_turn_spread: spread(|measured| measured.second_turn_first_token_s.best),
        })
    };
    lengths.into_iter().filter_map(of_length).collect()
}

fn is_star(measured: &Measurement) -> bool {
    measured.attention == "star"
}

#[cfg(test)]
mod tests {
    use stellate_actors::Layout;
    use stellate_model::random::RandomModel;

    use super::*;
    use crate::commands::bench::count::{Anchors, encode};
    use crate::commands::bench::measure::{MemoryUse, Times};

    /// As if every thousand million operations took `s_per_gflop` seconds.
    fn measurement(layout: Layout, tokens: usize, s_per_gflop: f64) -> Measurement {
        let config = RandomModel::named("tiny").unwrap();
        let work = encode(&config, &layout, tokens, Anchors::OncePerHost(1));
        let gflop = work.gflop();
        let times = |seconds| Times { best: seconds, median: seconds };
        Measurement {
            attention: layout.attention.to_string(),
            series: format!("{} of {}", layout.attention, layout.block_tokens),
            context_tokens: tokens,
            block_tokens: layout.block_tokens,
            anchor_tokens: layout.anchor_tokens(tokens),
            blocks: layout.cut(tokens).count(),
            encode_s: times(gflop.total * s_per_gflop),
            encode_tokens_per_s: 1.0,
            gflop,
            work,
            encode_gflop_per_s: s_per_gflop.recip(),
            first_token_s: times(0.3),
            token_s: times(0.1),
            second_turn_first_token_s: times(0.4),
            second_turn_query_tokens: 5,
            answer_ids: Vec::new(),
            memory: MemoryUse {
                kv_bytes: 0,
                kv_bytes_per_token: 0.0,
                kv_bytes_per_token_formula: 0,
                kv_held_bytes: 0,
                store_used_bytes: 0,
                store_capacity_bytes: 0,
                within_store: true,
                peak_resident_bytes: None,
                peak_is_own: false,
                weights_and_kv_bytes: 0,
                memory_allowance_bytes: 0,
                within_memory: None,
            },
            profile: None,
        }
    }

    #[test]
    fn star_grows_with_the_length_once_it_has_many_blocks_and_exact_grows_faster() {
        let lengths = [256, 1024, 4096, 16_384];
        let star = lengths.map(|tokens| measurement(Layout::star(64, 64), tokens, 1.0));
        let exact = lengths.map(|tokens| measurement(Layout::exact(64), tokens, 1.0));
        let found = Scaling::of(&[star, exact].concat()).exponents;
        let steady = found[0].steady.unwrap();
        assert_eq!((steady.from_tokens, steady.to_tokens, found[0].holds), (1024, 16_384, Some(true)));
        assert!(steady.measured > 1.0 && steady.measured < 1.02, "{found:?}");
        assert!((steady.measured - steady.counted).abs() < 1e-9 && found[0].all.measured > steady.measured);
        // Exact is not judged, and grows as counted.
        assert!(found[1].all.measured > 1.2 && found[1].holds.is_none(), "{found:?}");
    }

    #[test]
    fn short_series_and_blocks_that_grow_with_the_context_are_not_judged() {
        let short = [256, 512].map(|tokens| measurement(Layout::star(64, 64), tokens, 1.0));
        assert_eq!(Scaling::of(&short).exponents[0].holds, None);
        let growing = [1024, 2048].map(|tokens| Measurement {
            series: "blocks of a sixteenth".to_owned(),
            ..measurement(Layout::star(tokens / 16, tokens / 16), tokens, 1.0)
        });
        let found = Scaling::of(&growing).exponents;
        assert!(found[0].steady.is_some() && found[0].holds.is_none(), "{found:?}");
        assert!(Scaling::of(&short[..1]).exponents.is_empty());
    }

    #[test]
    fn a_speed_up_stands_beside_the_counted_one() {
        let all = [
            measurement(Layout::star(64, 64), 1024, 1.25),
            measurement(Layout::exact(256), 1024, 1.0),
            measurement(Layout::star(64, 64), 2048, 1.0),
        ];
        let found = Scaling::of(&all);
        assert_eq!(found.speedups.len(), 1);
        let speedup = &found.speedups[0];
        assert!(speedup.counted > 1.0 && (speedup.percent - 80.0).abs() < 1e-9 && !speedup.holds);
        assert!((found.independence[0].encode_spread - speedup.measured).abs() < 1e-9);
        assert_eq!(found.independence[0].second_turn_spread, 1.0);
    }

    #[test]
    fn a_second_turn_stands_beside_its_tokens_times_the_cost_of_a_step() {
        let found = Scaling::of(&[measurement(Layout::exact(64), 256, 1.0)]);
        let turn = &found.second_turns[0];
        assert!((turn.product_s - 0.5).abs() < 1e-9 && (turn.ratio - 0.8).abs() < 1e-9 && turn.holds);
        assert_eq!(turn.fresh_first_token_s, 0.3);
    }
}
