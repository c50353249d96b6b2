//! Mistral (transformers `MistralConfig`): no biases; every layer slides unless `sliding_window` is null.

use super::{AttentionBias, FamilyRules};
use crate::config::{ConfigError, Fields};

/// What transformers assumes where the field is absent. Null is not absent: it turns the window off.
const DEFAULT_WINDOW_TOKENS: usize = 4096;

pub(super) const RULES: FamilyRules = FamilyRules {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    attention_bias: AttentionBias::Never,
    mlp_bias_as_configured: false,
    qk_norm: false,
    default_head_dim: None,
    default_kv_heads: Some(8),
    default_max_positions: 131_072,
    sliding_window,
};

fn sliding_window(fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
    if fields.mentions("sliding_window") {
        return fields.count("sliding_window");
    }
    Ok(Some(DEFAULT_WINDOW_TOKENS))
}
