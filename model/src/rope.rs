//! The frequencies of rotary position embeddings, exactly as transformers' `modeling_rope_utils` computes them:
//! in f32, step by step. Angles, cosines and the rotation itself belong to the kernels.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// Base and scaling of the rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How frequencies are stretched for contexts longer than those of pre-training.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All by the same factor (position interpolation, arXiv 2306.15595).
    Linear {
        /// Ratio of new to original length.
        factor: f64,
    },
    /// Long wavelengths by `factor`, short ones not at all, between them smoothly (Llama 3.1).
    Llama3 {
        /// Ratio of new to original length.
        factor: f64,
        /// Wavelengths longer than `original_max_position / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_max_position / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Positions of pre-training, in tokens.
        original_max_position: usize,
    },
    /// By parts, with a factor on attention (YaRN, arXiv 2309.00071).
    Yarn {
        /// Ratio of new to original length.
        factor: f64,
        /// Positions of pre-training, in tokens.
        original_max_position: usize,
        /// Dimensions that turn more often than this over the original length are kept.
        beta_fast: f64,
        /// Dimensions that turn less often than this are stretched in full.
        beta_slow: f64,
        /// Factor on cosines and sines; computed from `factor` if absent.
        attention_factor: Option<f64>,
        /// With `mscale_all_dim`, another way to give the attention factor (DeepSeek).
        mscale: Option<f64>,
        /// See `mscale`.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
    /// Each frequency divided by its own factor: what a GGUF file's `rope_freqs.weight` holds.
    PerFrequency {
        /// `[head_dim / 2]`
        factors: Vec<f32>,
    },
}

impl RopeConfig {
    /// The plain embedding with base `theta`.
    pub fn plain(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::Default }
    }

    /// Frequencies `[head_dim / 2]` in radians per token, and the factor on cosines and sines.
    pub fn inverse_frequencies(&self, head_dim: usize) -> (Vec<f32>, f32) {
        let positions = self.base_powers(head_dim);
        let plain: Vec<f32> = positions.iter().map(|&power| 1.0 / power).collect();
        match &self.scaling {
            RopeScaling::Default => (plain, 1.0),
            RopeScaling::Linear { factor } => {
                let factor = *factor as f32;
                (plain.iter().map(|&frequency| frequency / factor).collect(), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let stretch = |&frequency: &f32| {
                    llama3_frequency(
                        frequency,
                        *factor as f32,
                        *low_freq_factor,
                        *high_freq_factor,
                        *original_max_position as f64,
                    )
                };
                (plain.iter().map(stretch).collect(), 1.0)
            }
            RopeScaling::Yarn { .. } => self.yarn(head_dim, &positions),
            RopeScaling::PerFrequency { factors } => {
                (plain.iter().zip(factors).map(|(&frequency, &factor)| frequency / factor).collect(), 1.0)
            }
        }
    }

    /// `theta ^ (2i / head_dim)` in f32. The power is taken in f64 and rounded once, which is what a correctly
    /// rounded f32 power gives.
    fn base_powers(&self, head_dim: usize) -> Vec<f32> {
        let theta = f64::from(self.theta as f32);
        let exponent = |pair: usize| (2 * pair) as f32 / head_dim as f32;
        (0..head_dim / 2).map(|pair| theta.powf(f64::from(exponent(pair))) as f32).collect()
    }

    fn yarn(&self, head_dim: usize, powers: &[f32]) -> (Vec<f32>, f32) {
        let RopeScaling::Yarn {
            factor,
            original_max_position,
            beta_fast,
            beta_slow,
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        } = self.scaling
        else {
            unreachable!("called for YaRN alone")
        };
        let correction_dim = |rotations: f64| {
            head_dim as f64 * (original_max_position as f64 / (rotations * 2.0 * PI)).ln()
                / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (correction_dim(beta_fast), correction_dim(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let low = low.max(0.0);
        let mut high = high.min(head_dim as f64 - 1.0);
        if low == high {
            high += 0.001; // transformers' guard against a division by zero
        }
        let frequencies = powers
            .iter()
            .enumerate()
            .map(|(pair, &power)| {
                let ramp = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let (kept, stretched) = (1.0 / power, 1.0 / (factor as f32 * power));
                let keep = 1.0 - ramp;
                stretched * (1.0 - keep) + kept * keep
            })
            .collect();
        let attention = attention_factor.unwrap_or_else(|| match (mscale, mscale_all_dim) {
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
                yarn_mscale(factor, m) / yarn_mscale(factor, all)
            }
            _ => yarn_mscale(factor, 1.0),
        });
        (frequencies, attention as f32)
    }

    /// Refuses what would make a frequency zero, infinite or not a number.
    pub(crate) fn validate(&self, head_dim: usize) -> Result<(), ConfigError> {
        if !(self.theta.is_finite() && self.theta > 1.0 && self.theta < 1e15) {
            return Err(ConfigError::invalid("rope_theta", format!("{} is not a base above 1", self.theta)));
        }
        match &self.scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => check_factor("factor", *factor)?,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                check_factor("factor", *factor)?;
                check_factor("low_freq_factor", *low_freq_factor)?;
                check_factor("high_freq_factor", *high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    let reason = format!("{high_freq_factor} is not above low_freq_factor {low_freq_factor}");
                    return Err(ConfigError::invalid("high_freq_factor", reason));
                }
                check_original(*original_max_position)?;
            }
            RopeScaling::Yarn {
                factor,
                original_max_position,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => {
                check_factor("factor", *factor)?;
                check_factor("beta_fast", *beta_fast)?;
                check_factor("beta_slow", *beta_slow)?;
                check_factor("attention_factor", attention_factor.unwrap_or(1.0))?;
                check_original(*original_max_position)?;
            }
            RopeScaling::PerFrequency { factors } => {
                if factors.len() != head_dim / 2 {
                    let reason = format!("{} factors for heads of {head_dim}", factors.len());
                    return Err(ConfigError::invalid("rope_freqs.weight", reason));
                }
                factors
                    .iter()
                    .try_for_each(|&factor| check_factor("rope_freqs.weight", f64::from(factor)))?;
            }
        }
        let (frequencies, attention) = self.inverse_frequencies(head_dim);
        if !attention.is_finite() || frequencies.iter().any(|frequency| !frequency.is_finite()) {
            return Err(ConfigError::invalid("rope_scaling", "these settings give no finite frequencies"));
        }
        Ok(())
    }
}

fn llama3_frequency(frequency: f32, factor: f32, low: f64, high: f64, original: f64) -> f32 {
    let wavelength = (2.0 * PI) as f32 / frequency;
    if wavelength > (original / low) as f32 {
        return frequency / factor;
    }
    if wavelength < (original / high) as f32 {
        return frequency;
    }
    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * frequency / factor + smooth * frequency
}

fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

fn check_factor(field: &str, factor: f64) -> Result<(), ConfigError> {
    if factor.is_finite() && factor > 0.0 && factor < 1e9 {
        return Ok(());
    }
    Err(ConfigError::invalid(field, format!("{factor} is not a positive RoPE factor")))
}

fn check_original(tokens: usize) -> Result<(), ConfigError> {
    if (1..=crate::config::MAX_POSITIONS).contains(&tokens) {
        return Ok(());
    }
    Err(ConfigError::invalid("original_max_position_embeddings", format!("{tokens} positions cannot be")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of transformers' formulas, computed with numpy in f32.
    fn expect(rope: &RopeConfig, head_dim: usize, expected: &[(usize, f32)], attention: f32) {
        let (frequencies, found_attention) = rope.inverse_frequencies(head_dim);
        assert_eq!(frequencies.len(), head_dim / 2);
        for &(pair, value) in expected {
            let error = (frequencies[pair] - value).abs() / value;
            assert!(error < 3e-7, "pair {pair} is {} and should be {value}", frequencies[pair]);
        }
        assert!((found_attention - attention).abs() < 1e-7, "{found_attention} is not {attention}");
    }

    #[test]
    fn default_frequencies_are_a_geometric_series() {
        let rope = RopeConfig::plain(10_000.0);
        expect(&rope, 8, &[(0, 1.0), (1, 0.1), (2, 0.01), (3, 0.001)], 1.0);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let rope = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
        expect(&rope, 8, &[(0, 0.25), (1, 0.025), (2, 0.0025), (3, 0.00025)], 1.0);
    }

    #[test]
    fn llama3_scaling_keeps_short_wavelengths_and_blends_the_middle() {
        let scaling = |factor, original_max_position| RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position,
        };
        let golden = RopeConfig { theta: 500_000.0, scaling: scaling(8.0, 64) };
        let expected =
            [(0, 1.0), (1, 0.079_403_01), (2, 0.004_700_754), (3, 9.115_831e-4), (7, 1.289_173_2e-6)];
        expect(&golden, 16, &expected, 1.0);
        let published = RopeConfig { theta: 500_000.0, scaling: scaling(32.0, 8192) };
        let expected = [
            (12, 0.007_292_665),
            (15, 0.001_290_548),
            (16, 4.295_567e-4),
            (17, 9.708_286e-5),
            (18, 1.946_163_9e-5),
            (31, 9.418_307e-8),
        ];
        expect(&published, 64, &expected, 1.0);
    }

    fn yarn(original_max_position: usize, truncate: bool) -> RopeConfig {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_max_position,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            truncate,
        };
        RopeConfig { theta: 1_000_000.0, scaling }
    }

    #[test]
    fn yarn_blends_between_rounded_ends_and_raises_attention() {
        let expected =
            [(0, 1.0), (1, 0.316_272_38), (2, 0.088_913_97), (3, 0.018_747_354), (15, 5.928_434_3e-7)];
        expect(&yarn(64, true), 32, &expected, 1.138_629_4);
        let expected =
            [(20, 0.013_335_215), (24, 0.005_375_321_5), (30, 0.001_064_361_1), (39, 6.490_394e-5)];
        expect(&yarn(32_768, true), 128, &expected, 1.138_629_4);
        let unrounded =
            [(20, 0.013_335_215), (24, 0.005_517_270_4), (39, 6.187_807_6e-5), (40, 4.445_698_5e-5)];
        expect(&yarn(32_768, false), 128, &unrounded, 1.138_629_4);
    }

    #[test]
    fn yarn_takes_its_attention_factor_from_the_configuration_first() {
        let mut rope = yarn(64, true);
        let RopeScaling::Yarn { attention_factor, mscale, mscale_all_dim, .. } = &mut rope.scaling else {
            unreachable!()
        };
        (*mscale, *mscale_all_dim) = (Some(1.0), Some(0.5));
        let ratio = (0.1 * 4f64.ln() + 1.0) / (0.05 * 4f64.ln() + 1.0);
        *attention_factor = None;
        assert_eq!(rope.inverse_frequencies(32).1, ratio as f32);
        if let RopeScaling::Yarn { attention_factor, .. } = &mut rope.scaling {
            *attention_factor = Some(1.5);
        }
        assert_eq!(rope.inverse_frequencies(32).1, 1.5);
    }
}
