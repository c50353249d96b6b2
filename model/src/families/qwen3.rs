//! Qwen3, dense (transformers `Qwen3Config`): each query and key head is RMS-normalised before RoPE; heads are 128
//! wide unless `head_dim` says otherwise; biases only if `attention_bias`; the sliding window rule is Qwen2's.

use super::{AttentionBias, FamilyRules, qwen2};

pub(super) const RULES: FamilyRules = FamilyRules {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    attention_bias: AttentionBias::AsConfigured,
    mlp_bias_as_configured: false,
    qk_norm: true,
    default_head_dim: Some(128),
    default_kv_heads: Some(32),
    default_max_positions: 32_768,
    sliding_window: qwen2::sliding_window,
};
