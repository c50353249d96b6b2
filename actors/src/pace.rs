//! How many tokens to guess in a step: as many as pay in expectation, by what steps were seen to take and by how many guesses
//! were seen to hold. No answer depends on it. How guesses are found is in [`crate::speculate`].

use std::time::Duration;

/// Guesses in a step at most: as many as any setting may ask for.
pub const MAX_GUESSES: usize = 64;

/// The weight of the newest measurement of a step: some ten steps are remembered.
const NEWEST_STEP: f64 = 0.25;

/// A measurement counts for at most so many times what was expected: a step that something else has held up says nothing of
/// the next one.
const MAX_SURPRISE: f64 = 2.0;

/// The chance that a guess holds, before any was made, and the weight of the newest guess: some twenty are remembered.
const FIRST_CHANCE: f64 = 0.5;
const NEWEST_GUESS: f64 = 0.125;

/// Steps without a guess after guesses that do not pay: this many at first, and twice as many each time until
/// [`MAX_PAUSE_STEPS`].
const FIRST_PAUSE_STEPS: usize = 4;

/// The longest such pause: what a step more costs is then below one in a hundred.
const MAX_PAUSE_STEPS: usize = 128;

/// What steps take, learned over all turns of a session.
#[derive(Clone, Debug)]
pub struct StepCosts {
    /// Seconds of a step without a guess.
    plain: Option<f64>,
    /// By number of guesses: how many times as long a step takes. The first is 1.
    ratios: [Option<f64>; MAX_GUESSES + 1],
}

impl Default for StepCosts {
    fn default() -> Self {
        let mut ratios = [None; MAX_GUESSES + 1];
        ratios[0] = Some(1.0);
        Self { plain: None, ratios }
    }
}

impl StepCosts {
    /// Learns what a step with `guesses` guesses took. A clock that stood still teaches nothing.
    pub fn learn(&mut self, guesses: usize, took: Duration) {
        let took = took.as_secs_f64();
        match (guesses, self.plain.filter(|&plain| plain > 0.0)) {
            (0, _) => smooth(&mut self.plain, took),
            (_, Some(plain)) if took > 0.0 => {
                smooth(&mut self.ratios[guesses.min(MAX_GUESSES)], took / plain)
            }
            _ => {}
        }
    }

    /// How many times as long as one without a guess a step with `guesses` guesses takes: as measured, or on the line
    /// between the nearest numbers of guesses that were measured, or through the greatest one. 1 before anything is known,
    /// so that it is tried.
    pub fn ratio(&self, guesses: usize) -> f64 {
        let guesses = guesses.min(MAX_GUESSES);
        let known = |at: usize| self.ratios[at].map(|ratio| (at, ratio));
        let (below, low) = (0..=guesses).rev().find_map(known).unwrap_or((0, 1.0));
        let (from, to) = match (guesses..=MAX_GUESSES).find_map(known) {
            Some(above) => ((below, low), above),
            None => ((0, 1.0), (below, low.max(1.0))),
        };
        if to.0 == from.0 {
            return to.1;
        }
        from.1 + (to.1 - from.1) * (guesses - from.0) as f64 / (to.0 - from.0) as f64
    }

    /// Whether a step without a guess was seen.
    fn has_plain(&self) -> bool {
        self.plain.is_some()
    }

    /// Whether steps with guesses were held against it.
    fn are_known(&self) -> bool {
        self.ratios[1..].iter().any(Option::is_some)
    }
}

fn smooth(known: &mut Option<f64>, sample: f64) {
    *known = Some(match *known {
        Some(known) if known > 0.0 => known + NEWEST_STEP * (sample.min(MAX_SURPRISE * known) - known),
        _ => sample,
    });
}

/// How many tokens to guess in the steps of one turn: more while guesses hold, fewer while they fail, never more than pay,
/// and none for a while where none pays.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    limit: usize,
    /// At most this many in the next step.
    next: usize,
    /// The chance that a guess holds whose predecessors do.
    chance: f64,
    pause: usize,
    next_pause: usize,
}

impl Pace {
    /// Guesses of at most `limit` tokens; 0 guesses nothing.
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(MAX_GUESSES);
        Self { limit, next: limit.min(2), chance: FIRST_CHANCE, pause: 0, next_pause: FIRST_PAUSE_STEPS }
    }

    /// Tokens to guess in this step.
    pub fn tokens(&self, costs: &StepCosts) -> usize {
        match self.best(costs) {
            _ if self.pause > 0 => 0,
            // After a pause what did not pay is tried again.
            0 => self.next,
            best => best,
        }
    }

    /// Learns that of `guessed` tokens the first `held` were right. `costs` have learned of the step already.
    pub fn learn(&mut self, guessed: usize, held: usize, costs: &StepCosts) {
        if guessed == 0 {
            self.pause = self.pause.saturating_sub(1);
            return;
        }
        for holds in std::iter::repeat_n(1.0, held).chain((held < guessed).then_some(0.0)) {
            self.chance += NEWEST_GUESS * (holds - self.chance);
        }
        self.next = match held {
            held if held == guessed => self.next.max(2 * guessed),
            held => held.max(1),
        };
        self.next = self.next.min(self.limit);
        let pays = if costs.are_known() { self.best(costs) > 0 } else { held > 0 };
        if !pays {
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(MAX_PAUSE_STEPS);
            return;
        }
        self.next_pause = FIRST_PAUSE_STEPS;
        if held < guessed && !costs.has_plain() {
            // Before it goes on: what a step without guesses takes.
            self.pause = 1;
        }
    }

    /// The number of guesses for which a step is expected to give the most tokens for its time; 0 if that is none.
    fn best(&self, costs: &StepCosts) -> usize {
        let (mut best, mut most) = (0, 1.0);
        let (mut chance, mut tokens) = (1.0, 1.0);
        for guesses in 1..=self.next {
            chance *= self.chance;
            tokens += chance;
            let pace = tokens / costs.ratio(guesses);
            if pace > most {
                (best, most) = (guesses, pace);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Costs that have seen `ratio` of a plain step for each of these numbers of guesses.
    fn costs(seen: &[(usize, u32)]) -> StepCosts {
        let mut costs = StepCosts::default();
        costs.learn(0, 10 * MILLISECOND);
        for &(guesses, percent) in seen {
            costs.learn(guesses, percent * MILLISECOND / 10);
        }
        costs
    }

    fn assert_near(given: f64, wanted: f64) {
        assert!((given - wanted).abs() < 1e-9, "{given} and not {wanted}");
    }

    #[test]
    fn guesses_grow_while_they_hold_and_pause_while_they_fail_where_no_cost_is_known() {
        let costs = StepCosts::default();
        let mut pace = Pace::new(8);
        for expected in [2, 4, 8, 8] {
            assert_eq!(pace.tokens(&costs), expected);
            pace.learn(expected, expected, &costs);
        }
        pace.learn(8, 3, &costs);
        // A plain step, to compare with.
        assert_eq!(pace.tokens(&costs), 0);
        pace.learn(0, 0, &costs);
        assert_eq!(pace.tokens(&costs), 3);
        pace.learn(3, 0, &costs);
        for _ in 0..FIRST_PAUSE_STEPS {
            assert_eq!(pace.tokens(&costs), 0);
            pace.learn(0, 0, &costs);
        }
        assert_eq!(pace.tokens(&costs), 1);
        assert_eq!(Pace::new(0).tokens(&costs), 0);
        assert_eq!(Pace::new(usize::MAX).limit, MAX_GUESSES);
    }

    #[test]
    fn a_cost_is_measured_or_on_the_line_between_those_that_are() {
        let costs = costs(&[(2, 120), (6, 200)]);
        for (guesses, ratio) in [(0, 1.0), (1, 1.1), (2, 1.2), (4, 1.6), (6, 2.0), (12, 3.0)] {
            assert_near(costs.ratio(guesses), ratio);
        }
        assert_near(StepCosts::default().ratio(5), 1.0);
        // A measurement below a plain step's does not make more guesses cheaper still.
        assert_near(self::costs(&[(2, 80)]).ratio(8), 1.0);
    }

    #[test]
    fn one_step_that_was_held_up_hardly_counts_and_what_lasts_does() {
        let mut costs = costs(&[(4, 120)]);
        costs.learn(4, Duration::from_secs(60));
        assert!(costs.ratio(4) < 1.6, "{}", costs.ratio(4));
        for _ in 0..40 {
            costs.learn(4, 30 * MILLISECOND);
        }
        assert!((costs.ratio(4) - 3.0).abs() < 0.05, "{}", costs.ratio(4));
        // Where everything takes longer, guesses cost no more than before.
        for _ in 0..60 {
            costs.learn(0, 100 * MILLISECOND);
            costs.learn(4, 300 * MILLISECOND);
        }
        assert!((costs.ratio(4) - 3.0).abs() < 0.05, "{}", costs.ratio(4));
    }

    #[test]
    fn a_clock_that_stands_still_teaches_nothing() {
        let mut costs = StepCosts::default();
        for guesses in [0, 4, 0, 8] {
            costs.learn(guesses, Duration::ZERO);
        }
        assert!(costs.has_plain() && !costs.are_known());
        assert_near(costs.ratio(8), 1.0);
    }

    #[test]
    fn only_as_many_are_guessed_as_pay_and_none_for_longer_and_longer_where_none_does() {
        // Nearly free, as where the network takes the time: a guess in three that holds is worth it.
        let cheap = costs(&[(1, 101), (8, 105)]);
        let mut pace = Pace::new(8);
        for step in 0..60 {
            assert!(pace.tokens(&cheap) > 0);
            pace.learn(1, usize::from(step % 3 == 0), &cheap);
        }
        // As long as the steps that it saves, and longer: off.
        let dear = costs(&[(1, 200), (8, 900)]);
        let (mut pace, mut tried) = (Pace::new(8), Vec::new());
        for step in 0..400 {
            let tokens = pace.tokens(&dear);
            if tokens > 0 {
                tried.push(step);
            }
            pace.learn(tokens, tokens / 2, &dear);
        }
        assert!(tried.len() <= 8, "{tried:?}");
        assert!(tried.windows(3).all(|steps| steps[2] - steps[1] >= steps[1] - steps[0]), "{tried:?}");
    }

    #[test]
    fn the_number_is_the_one_that_gives_most_for_its_time() {
        // Up to four rows cost next to nothing, from there on each costs half a step.
        let costs = costs(&[(4, 110), (8, 310)]);
        let mut pace = Pace::new(8);
        (pace.next, pace.chance) = (8, 0.7);
        assert_eq!(pace.tokens(&costs), 4);
        pace.chance = 0.99;
        assert_eq!(pace.tokens(&costs), 4);
        let even = self::costs(&[(8, 180)]);
        assert_eq!(pace.tokens(&even), 8);
        pace.chance = 0.3;
        assert_eq!(pace.tokens(&even), 1, "more would cost more than they are likely to give");
    }
}
