//! Llama 2, 3, 3.1, 3.2 (transformers `LlamaConfig`): optional biases, no norms on heads, no sliding window.

use super::{AttentionBias, FamilyRules};

pub(super) const RULES: FamilyRules = FamilyRules {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    attention_bias: AttentionBias::AsConfigured,
    mlp_bias_as_configured: true,
    qk_norm: false,
    default_head_dim: None,
    default_kv_heads: None,
    default_max_positions: 2048,
    sliding_window: |_| Ok(None),
};
