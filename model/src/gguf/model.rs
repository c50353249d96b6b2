//! The model that a GGUF file's metadata describes. Keys: llama.cpp's `gguf-py/gguf/constants.py`.

use super::{GgufFile, GgufMetadata, GgufValue, TensorType};
use crate::config::{ConfigError, ModelConfig, RopeConfig, RopeScaling, StoredFloat};
use crate::families::{AttentionBias, Family};

const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const DEFAULT_BETA_FAST: f64 = 32.0;
const DEFAULT_BETA_SLOW: f64 = 1.0;
/// Frequency factors of Llama 3.1, which llama.cpp keeps as a tensor.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Metadata under the prefix of the file's architecture.
struct Keys<'a> {
    metadata: &'a GgufMetadata,
    architecture: &'a str,
}

impl GgufFile {
    /// The configuration, and whether rows of the query and key projections interleave the halves of each head
    /// (`llama` does, the Qwen architectures do not). `bytes` are the file's.
    pub(crate) fn model_config(&self, bytes: &[u8]) -> Result<(ModelConfig, bool), ConfigError> {
        let metadata = self.metadata();
        let architecture = metadata
            .text("general.architecture")
            .ok_or_else(|| ConfigError::missing("general.architecture"))?;
        let family = match architecture {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            found => return Err(ConfigError::UnknownArchitecture { found: found.to_owned() }),
        };
        let keys = Keys { metadata, architecture };
        let config = self.build(&keys, family, bytes)?;
        config.validate()?;
        Ok((config, family == Family::Llama))
    }

    fn build(&self, keys: &Keys<'_>, family: Family, bytes: &[u8]) -> Result<ModelConfig, ConfigError> {
        if keys.metadata.integer(&keys.name("expert_count")).is_some_and(|experts| experts > 0) {
            return Err(ConfigError::invalid(
                keys.name("expert_count"),
                "mixtures of experts are not supported",
            ));
        }
        let hidden_size = keys.required("embedding_length")?;
        let heads = keys.required("attention.head_count")?;
        let head_dim = match keys.count("attention.key_length")? {
            Some(length) => length,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        };
        for (key, expected) in [("attention.value_length", head_dim), ("rope.dimension_count", head_dim)] {
            if let Some(found) = keys.count(key)?.filter(|&found| found != expected) {
                let reason = format!("{found} is not the head width of {expected}");
                return Err(ConfigError::invalid(keys.name(key), reason));
            }
        }
        let max_position_tokens = keys.required("context_length")?;
        let rules = family.rules();
        let has = |name: &str| self.tensor(name).is_some();
        let as_configured = rules.attention_bias == AttentionBias::AsConfigured;
        Ok(ModelConfig {
            family,
            vocab_size: self.vocab_size(keys)?,
            hidden_size,
            intermediate_size: keys.required("feed_forward_length")?,
            layers: keys.required("block_count")?,
            heads,
            kv_heads: keys.count("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            rms_norm_eps: keys
                .number("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| ConfigError::missing(keys.name("attention.layer_norm_rms_epsilon")))?
                as f32,
            rope: self.rope(keys, max_position_tokens, bytes)?,
            tie_word_embeddings: !has("output.weight"),
            // llama.cpp has no keys for biases: the tensors are there, or they are not.
            qkv_bias: rules.attention_bias == AttentionBias::QueryKeyValue
                || (as_configured && has("blk.0.attn_q.bias")),
            output_bias: as_configured && has("blk.0.attn_output.bias"),
            mlp_bias: rules.mlp_bias_as_configured && has("blk.0.ffn_gate.bias"),
            qk_norm: rules.qk_norm,
            max_position_tokens,
            sliding_window_tokens: keys.count("attention.sliding_window")?.filter(|&window| window > 0),
            bos_id: keys.metadata.id("tokenizer.ggml.bos_token_id"),
            eos_ids: eos_ids(keys.metadata),
            dtype: self.tensor("token_embd.weight").and_then(|tensor| match tensor.kind {
                TensorType::F32 => Some(StoredFloat::F32),
                TensorType::F16 => Some(StoredFloat::F16),
                TensorType::Bf16 => Some(StoredFloat::Bf16),
                _ => None,
            }),
        })
    }

    fn tensor(&self, name: &str) -> Option<&super::GgufTensor> {
        self.tensors().iter().find(|tensor| tensor.name == name)
    }

    /// The key is optional; the embedding table always tells.
    fn vocab_size(&self, keys: &Keys<'_>) -> Result<usize, ConfigError> {
        if let Some(size) = keys.count("vocab_size")? {
            return Ok(size);
        }
        let table = self.tensor("token_embd.weight").and_then(|tensor| tensor.shape.first());
        table.copied().ok_or_else(|| ConfigError::missing(keys.name("vocab_size")))
    }

    fn rope(&self, keys: &Keys<'_>, max_positions: usize, bytes: &[u8]) -> Result<RopeConfig, ConfigError> {
        let theta = keys.number("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA);
        if let Some(factors) = self.rope_factors(bytes)? {
            return Ok(RopeConfig { theta, scaling: RopeScaling::PerFrequency { factors } });
        }
        let factor_key = keys.name("rope.scaling.factor");
        let factor = match keys.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => keys.number("rope.scale_linear")?, // the key of old files
        };
        let kind = match keys.metadata.text(&keys.name("rope.scaling.type")) {
            Some(kind) => kind,
            None if factor.is_some_and(|factor| factor != 1.0) => "linear",
            None => "none",
        };
        let needed = || factor.ok_or_else(|| ConfigError::missing(factor_key));
        let scaling = match kind {
            "none" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: needed()? },
            "yarn" => RopeScaling::Yarn {
                factor: needed()?,
                original_max_position: keys
                    .count("rope.scaling.original_context_length")?
                    .unwrap_or(max_positions),
                beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(DEFAULT_BETA_FAST),
                beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(DEFAULT_BETA_SLOW),
                attention_factor: None,
                mscale: None,
                mscale_all_dim: None,
                truncate: true,
            },
            found => return Err(ConfigError::UnknownRopeType { found: found.to_owned() }),
        };
        Ok(RopeConfig { theta, scaling })
    }

    fn rope_factors(&self, bytes: &[u8]) -> Result<Option<Vec<f32>>, ConfigError> {
        let Some(tensor) = self.tensor(ROPE_FACTORS) else { return Ok(None) };
        if tensor.kind != TensorType::F32 || tensor.range.len() > 4 * crate::config::MAX_HEAD_DIM {
            return Err(ConfigError::invalid(ROPE_FACTORS, "not a short vector of F32"));
        }
        let words = bytes[tensor.range.clone()].as_chunks::<4>().0;
        Ok(Some(words.iter().map(|word| f32::from_le_bytes(*word)).collect()))
    }
}

/// The end-of-sequence id, and the end-of-turn id where it differs.
fn eos_ids(metadata: &GgufMetadata) -> Vec<u32> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        if let Some(id) = metadata.id(key).filter(|id| !ids.contains(id)) {
            ids.push(id);
        }
    }
    ids
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A size. An array of equal sizes, one per layer, counts as that size.
    fn count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let name = self.name(key);
        let value = match self.metadata.get(&name) {
            None => return Ok(None),
            Some(GgufValue::Integer(value)) => *value,
            Some(GgufValue::Integers(values))
                if !values.is_empty() && values.iter().all(|value| *value == values[0]) =>
            {
                values[0]
            }
            Some(_) => return Err(ConfigError::invalid(name, "not one size for all layers")),
        };
        match usize::try_from(value) {
            Ok(count) => Ok(Some(count)),
            Err(_) => Err(ConfigError::invalid(name, format!("{value} is no size"))),
        }
    }

    fn required(&self, key: &str) -> Result<usize, ConfigError> {
        self.count(key)?.ok_or_else(|| ConfigError::missing(self.name(key)))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let name = self.name(key);
        match (self.metadata.get(&name), self.metadata.number(&name)) {
            (None, _) => Ok(None),
            (_, Some(number)) if number.is_finite() => Ok(Some(number)),
            _ => Err(ConfigError::invalid(name, "not a finite number")),
        }
    }
}
