//! Qwen2 and Qwen2.5 (transformers `Qwen2Config`): biases on query, key and value; a sliding window only where
//! `use_sliding_window` is true and some layer is past `max_window_layers` or listed as `sliding_attention`.

use super::{AttentionBias, FamilyRules};
use crate::config::{ConfigError, Fields};

const DEFAULT_WINDOW_TOKENS: usize = 4096;
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

pub(super) const RULES: FamilyRules = FamilyRules {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    attention_bias: AttentionBias::QueryKeyValue,
    mlp_bias_as_configured: false,
    qk_norm: false,
    default_head_dim: None,
    default_kv_heads: Some(32),
    default_max_positions: 32_768,
    sliding_window,
};

/// Shared with Qwen3, whose configuration class has the same rule.
pub(super) fn sliding_window(fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
    if !fields.flag("use_sliding_window")?.unwrap_or(false) {
        return Ok(None);
    }
    let window = match fields.mentions("sliding_window") {
        true => fields.count("sliding_window")?,
        false => Some(DEFAULT_WINDOW_TOKENS),
    };
    let some_layer_slides = match fields.list("layer_types")? {
        Some(types) => types.iter().any(|kind| kind.as_str() == Some("sliding_attention")),
        None => {
            let first_sliding = fields.count("max_window_layers")?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
            first_sliding < fields.required("num_hidden_layers")?
        }
    };
    Ok(window.filter(|_| some_layer_slides))
}
