//! Choosing the next token from logits: greedy, or at random with temperature, top-k, top-p, min-p and a repetition
//! penalty, in the order of Hugging Face transformers. No state but a step counter; decoding text is not done here.

#[cfg(test)]
mod tests;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// How tokens are chosen. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy (then `top_k`, `top_p`, `min_p` and `seed` change nothing).
    pub temperature: f32,
    /// Only the `k` best tokens (and any equal to the k-th) stay; at least 1.
    pub top_k: Option<usize>,
    /// The best tokens whose probabilities reach `p` together stay; in (0, 1].
    pub top_p: Option<f32>,
    /// Tokens below `p` times the best token's probability go; in [0, 1].
    pub min_p: Option<f32>,
    /// Logits of tokens in the history are divided by it when positive, multiplied when negative (CTRL, arXiv
    /// 1909.05858, section 4.1); 1 is off; above 0.
    pub repetition_penalty: f32,
    /// How many tokens at the history's end count as history; 0 is all of them.
    pub repetition_window_tokens: usize,
    /// Same seed, same logits, same tokens: on every machine and after a restore.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            repetition_window_tokens: 0,
            seed: 0,
        }
    }
}

/// Why no token could be chosen. The sampler is as it was before the call: its step has not moved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A parameter outside its range.
    #[error("{parameter} is {value}; it must be {range}")]
    OutOfRange {
        /// The field of [`SamplingParams`].
        parameter: &'static str,
        /// What was given.
        value: f64,
        /// What is allowed, in words.
        range: &'static str,
    },
    /// No logits at all.
    #[error("there are no logits to choose from; the model's vocabulary is empty")]
    Empty,
    /// The model gave a logit that is no finite number: its weights or its arithmetic are broken.
    #[error(
        "the logit of token {id} is {value}; the weights are damaged or overflow in their running format"
    )]
    NonFinite {
        /// The first such token.
        id: u32,
        /// Its logit.
        value: f32,
    },
    /// The history names a token that the logits do not have.
    #[error(
        "the history holds token {id}, but there are only {vocab_size} logits; it belongs to another model"
    )]
    UnknownToken {
        /// The token.
        id: u32,
        /// How many logits there are.
        vocab_size: usize,
    },
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability under the model's own distribution: before penalty, temperature and cuts.
    pub logprob: f32,
}

/// Chooses tokens for one session.
///
/// Step `n` draws one 64-bit number: the first of ChaCha8 keyed with the seed (8 bytes little-endian, then zeros) on
/// stream `n`. So a draw depends on (seed, step) alone, and [`Sampler::at_step`] continues a restored session exactly
/// where it stopped, without its earlier draws.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    step: u64,
    /// Scores of all tokens after the penalty; kept to spare an allocation per token.
    scores: Vec<f32>,
    /// Tokens that are still in the draw, with their weights.
    candidates: Vec<(u32, f32)>,
}

impl SamplingParams {
    /// Checks every parameter.
    ///
    /// # Errors
    /// [`SamplingError::OutOfRange`] with the first parameter outside its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |parameter, value: f32, ok: bool, range| match ok {
            true => Ok(()),
            false => Err(SamplingError::OutOfRange { parameter, value: f64::from(value), range }),
        };
        let t = self.temperature;
        check("temperature", t, t.is_finite() && t >= 0.0, "0 (greedy) or a positive number")?;
        if self.top_k == Some(0) {
            return Err(SamplingError::OutOfRange { parameter: "top_k", value: 0.0, range: "at least 1" });
        }
        if let Some(p) = self.top_p {
            check("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        }
        if let Some(p) = self.min_p {
            check("min_p", p, (0.0..=1.0).contains(&p), "from 0 to 1")?;
        }
        let r = self.repetition_penalty;
        check("repetition_penalty", r, r.is_finite() && r > 0.0, "a positive number (1 is off)")
    }
}

impl Sampler {
    /// A sampler at step 0.
    ///
    /// # Errors
    /// As [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Self, SamplingError> {
        Self::at_step(params, 0)
    }

    /// A sampler that has chosen `step` tokens already, for a session that is restored.
    ///
    /// # Errors
    /// As [`SamplingParams::validate`].
    pub fn at_step(params: SamplingParams, step: u64) -> Result<Self, SamplingError> {
        params.validate()?;
        Ok(Self { params, step, scores: Vec::new(), candidates: Vec::new() })
    }

    /// How many tokens have been chosen.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Chooses the next token from `logits` (`[vocabulary]`) and moves on by one step. `history` is what the
    /// repetition penalty looks at, oldest first. Greedy ties go to the lowest id.
    ///
    /// # Errors
    /// [`SamplingError::Empty`], [`SamplingError::NonFinite`] or [`SamplingError::UnknownToken`].
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<Sampled, SamplingError> {
        check_logits(logits)?;
        self.penalise(logits, history)?;
        let id = if self.params.temperature == 0.0 {
            best(&self.scores)
        } else {
            self.fill_candidates();
            self.draw()
        };
        self.step += 1;
        Ok(Sampled { id, logprob: (f64::from(logits[id as usize]) - log_sum_exp(logits)) as f32 })
    }

    fn penalise(&mut self, logits: &[f32], history: &[u32]) -> Result<(), SamplingError> {
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        let penalty = self.params.repetition_penalty;
        if penalty == 1.0 {
            return Ok(());
        }
        let window = match self.params.repetition_window_tokens {
            0 => history.len(),
            tokens => tokens.min(history.len()),
        };
        for &id in &history[history.len() - window..] {
            let Some(&logit) = logits.get(id as usize) else {
                return Err(SamplingError::UnknownToken { id, vocab_size: logits.len() });
            };
            // Computed from the logit, not from the score, so that a token seen twice is penalised once.
            self.scores[id as usize] = if logit < 0.0 { logit * penalty } else { logit / penalty };
        }
        Ok(())
    }

    /// Applies temperature and cuts; leaves the tokens still in the draw with weights relative to the best one's 1.
    fn fill_candidates(&mut self) {
        let top = self.scores[best(&self.scores) as usize];
        // Shifted before dividing, so that a tiny temperature cannot overflow.
        let temperature = self.params.temperature;
        let mut scaled: Vec<(u32, f32)> = std::mem::take(&mut self.candidates);
        scaled.clear();
        scaled.extend(self.scores.iter().zip(0u32..).map(|(&score, id)| (id, (score - top) / temperature)));
        if let Some(k) = self.params.top_k.filter(|&k| k < scaled.len()) {
            let (_, &mut (_, kth), _) = scaled.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1));
            scaled.retain(|&(_, score)| score >= kth);
        }
        for (_, weight) in &mut scaled {
            *weight = weight.exp();
        }
        if let Some(p) = self.params.top_p.filter(|&p| p < 1.0) {
            keep_nucleus(&mut scaled, f64::from(p));
        }
        if let Some(p) = self.params.min_p {
            // The best token's weight is 1 whatever was cut.
            scaled.retain(|&(_, weight)| weight >= p);
        }
        // By id: the draw must not depend on how the cuts left the order.
        scaled.sort_unstable_by_key(|&(id, _)| id);
        self.candidates = scaled;
    }

    fn draw(&self) -> u32 {
        let total: f64 = self.candidates.iter().map(|&(_, weight)| f64::from(weight)).sum();
        let target = uniform(self.params.seed, self.step) * total;
        let mut reached = 0.0;
        let mut last = None;
        for &(id, weight) in self.candidates.iter().filter(|&&(_, weight)| weight > 0.0) {
            reached += f64::from(weight);
            if target < reached {
                return id;
            }
            last = Some(id);
        }
        last.expect("the best token has weight 1 and no cut removes it")
    }
}

/// The `n` most probable tokens of the model's own distribution with natural-log probabilities, the best first, ties
/// by the lowest id. Fewer if there are fewer logits.
pub fn top_logprobs(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut ranked: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
    if n == 0 || ranked.is_empty() {
        return Vec::new();
    }
    if n < ranked.len() {
        ranked.select_nth_unstable_by(n - 1, order);
        ranked.truncate(n);
    }
    ranked.sort_unstable_by(order);
    let norm = log_sum_exp(logits);
    ranked.into_iter().map(|(id, logit)| (id, (f64::from(logit) - norm) as f32)).collect()
}

fn check_logits(logits: &[f32]) -> Result<(), SamplingError> {
    match (0u32..).zip(logits).find(|(_, logit)| !logit.is_finite()) {
        Some((id, &value)) => Err(SamplingError::NonFinite { id, value }),
        None if logits.is_empty() => Err(SamplingError::Empty),
        None => Ok(()),
    }
}

/// Index of the largest value, the lowest of equal ones.
fn best(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (index, &score) in scores.iter().enumerate() {
        if score > scores[best] {
            best = index;
        }
    }
    best as u32
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    top + logits.iter().map(|&logit| (f64::from(logit) - top).exp()).sum::<f64>().ln()
}

/// Keeps the heaviest tokens until their share reaches `p`; a token stays if those before it have less than `p`.
fn keep_nucleus(weighted: &mut Vec<(u32, f32)>, p: f64) {
    let total: f64 = weighted.iter().map(|&(_, weight)| f64::from(weight)).sum();
    // All tokens under this weight have less than 1 - p together, so none is in the nucleus: no need to sort them.
    let floor = ((1.0 - p) * total / weighted.len() as f64) as f32;
    let heaviest = weighted.iter().map(|&(_, weight)| weight).fold(0.0, f32::max);
    weighted.retain(|&(_, weight)| weight >= floor.min(heaviest));
    weighted.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut before = 0.0;
    let kept = weighted.iter().take_while(|&&(_, weight)| {
        let stays = before < p * total;
        before += f64::from(weight);
        stays
    });
    let kept = kept.count();
    weighted.truncate(kept);
}

/// The draw of one step, in [0, 1).
fn uniform(seed: u64, step: u64) -> f64 {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(step);
    // The upper 53 bits are the fraction of an f64.
    (rng.next_u64() >> 11) as f64 * (-53f64).exp2()
}
