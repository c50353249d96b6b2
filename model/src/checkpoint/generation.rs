//! `generation_config.json`: special ids and the sampling settings that a model's makers suggest. Where it is absent
//! or silent, the configuration's ids count. What is done with the settings is the sampler's business.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{ConfigError, Fields, ModelConfig};

/// Special ids and suggested sampling settings. A setting that is `None` is not suggested.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// Beginning-of-sequence id.
    pub bos_id: Option<u32>,
    /// Ids that end an answer, possibly none.
    pub eos_ids: Vec<u32>,
    /// Whether to sample at all; greedy otherwise.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Keeps the `top_k` likeliest tokens.
    pub top_k: Option<usize>,
    /// Keeps the likeliest tokens whose probabilities sum to this.
    pub top_p: Option<f32>,
    /// Keeps tokens at least this likely relative to the likeliest.
    pub min_p: Option<f32>,
    /// Lowers logits of tokens that were already there.
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// What the configuration alone says.
    pub fn from_config(config: &ModelConfig) -> Self {
        Self { bos_id: config.bos_id, eos_ids: config.eos_ids.clone(), ..Self::default() }
    }

    /// Reads the text of a `generation_config.json`; ids that it does not give are those of `fallback`.
    pub fn from_json(text: &str, fallback: Self) -> Result<Self, ConfigError> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| ConfigError::NotJson { reason: error.to_string() })?;
        let Some(object) = value.as_object() else {
            return Err(ConfigError::NotJson { reason: "the top level is not an object".into() });
        };
        let fields = Fields::new(object, "");
        let number = |name: &str| fields.number(name).map(|value| value.map(|v| v as f32));
        let eos_ids = fields.ids("eos_token_id")?;
        Ok(Self {
            bos_id: fields.ids("bos_token_id")?.first().copied().or(fallback.bos_id),
            eos_ids: if eos_ids.is_empty() { fallback.eos_ids } else { eos_ids },
            do_sample: fields.flag("do_sample")?,
            temperature: number("temperature")?,
            top_k: fields.count("top_k")?,
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
        })
    }
}
