//! Reading config.json: both layouts, the rules of each family, and every value that must be refused.

#[path = "support/golden.rs"]
#[allow(dead_code)] // only the paths of the goldens are used here
mod golden;

use serde_json::{Value, json};
use stellate_model::config::{ConfigError, ModelConfig, RopeScaling, StoredFloat};
use stellate_model::families::Family;

fn read(name: &str) -> ModelConfig {
    let text = std::fs::read_to_string(golden::golden(name).join("config.json")).unwrap();
    ModelConfig::from_json(&text).unwrap()
}

/// A golden configuration with some fields replaced, or removed where the new value is null under "remove".
fn with(name: &str, changes: Value) -> Result<ModelConfig, ConfigError> {
    let text = std::fs::read_to_string(golden::golden(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (field, value) in changes.as_object().unwrap() {
        match value.as_str() {
            Some("REMOVED") => drop(config.as_object_mut().unwrap().remove(field)),
            _ => config[field] = value.clone(),
        }
    }
    ModelConfig::from_json(&config.to_string())
}

#[test]
fn the_transformers_4_layout_is_read() {
    let config = read("llama3");
    assert_eq!(config.family, Family::Llama);
    assert_eq!((config.hidden_size, config.intermediate_size, config.layers), (64, 176, 3));
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.vocab_size), (8, 2, 16, 320));
    assert_eq!(config.rope.theta, 500_000.0);
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 64,
    };
    assert_eq!(config.rope.scaling, scaling);
    assert_eq!((config.bos_id, config.eos_ids.as_slice()), (Some(1), [2].as_slice()));
    assert_eq!(config.dtype, Some(StoredFloat::F32));
    assert!(!config.tie_word_embeddings && !config.qkv_bias && !config.qk_norm);
}

#[test]
fn the_transformers_5_layout_is_read() {
    let config = read("qwen3");
    assert_eq!(config.family, Family::Qwen3);
    assert!(config.qk_norm && !config.qkv_bias);
    assert_eq!(config.head_dim, 32);
    assert_eq!(config.rope.theta, 1_000_000.0);
    let RopeScaling::Yarn { factor, original_max_position, beta_fast, truncate, .. } = config.rope.scaling
    else {
        panic!("{:?}", config.rope)
    };
    assert_eq!((factor, original_max_position, beta_fast, truncate), (4.0, 64, 32.0, true));
    assert!(config.eos_ids.is_empty() && config.bos_id.is_none());
}

#[test]
fn families_differ_in_biases_and_head_widths() {
    let qwen2 = read("qwen2");
    assert!(qwen2.qkv_bias && !qwen2.output_bias && qwen2.tie_word_embeddings);
    assert_eq!(qwen2.head_dim, 16, "hidden size / heads where head_dim is absent");
    assert_eq!(read("llama-tied").head_dim, 12);
    assert_eq!(read("mistral").kv_heads, 1);
    let biased = with("llama3", json!({ "attention_bias": true, "mlp_bias": true })).unwrap();
    assert!(biased.qkv_bias && biased.output_bias && biased.mlp_bias);
    assert_eq!(with("qwen3", json!({ "head_dim": "REMOVED" })).unwrap().head_dim, 128);
    assert_eq!(with("llama3", json!({ "num_key_value_heads": "REMOVED" })).unwrap().kv_heads, 8);
}

#[test]
fn both_names_of_the_rope_type_and_a_null_scaling_are_read() {
    let linear = with("qwen2", json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } })).unwrap();
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(read("qwen2").rope.scaling, RopeScaling::Default);
    let absent = with("qwen2", json!({ "rope_scaling": "REMOVED", "rope_theta": "REMOVED" })).unwrap();
    assert_eq!((absent.rope.theta, absent.rope.scaling), (10_000.0, RopeScaling::Default));
}

#[test]
fn a_sliding_window_counts_only_where_a_layer_uses_it() {
    assert_eq!(read("mistral").sliding_window_tokens, None);
    let mistral = with("mistral", json!({ "sliding_window": 4096 })).unwrap();
    assert_eq!(mistral.sliding_window_tokens, Some(4096));
    assert_eq!(mistral.check_context(4096), Ok(()));
    let refused = mistral.check_context(4097).unwrap_err();
    assert_eq!(refused, ConfigError::SlidingWindow { window_tokens: 4096, context_tokens: 4097 });
    assert!(refused.to_string().contains("sliding window of 4096 tokens"), "{refused}");
    let unsaid = with("mistral", json!({ "sliding_window": "REMOVED" })).unwrap();
    assert_eq!(unsaid.sliding_window_tokens, Some(4096), "transformers' default");

    let full = json!(["full_attention", "full_attention", "full_attention"]);
    let mixed = json!(["full_attention", "sliding_attention", "full_attention"]);
    for (changes, expected) in [
        (json!({ "sliding_window": 128 }), None),
        (json!({ "sliding_window": 128, "use_sliding_window": true, "layer_types": full }), None),
        (json!({ "sliding_window": 128, "use_sliding_window": true, "layer_types": mixed }), Some(128)),
        (json!({ "sliding_window": 128, "use_sliding_window": true, "layer_types": "REMOVED" }), None),
        (
            json!({ "sliding_window": 128, "use_sliding_window": true, "layer_types": "REMOVED", "max_window_layers": 2 }),
            Some(128),
        ),
    ] {
        for name in ["qwen2", "qwen3"] {
            let config = with(name, changes.clone()).unwrap();
            assert_eq!(config.sliding_window_tokens, expected, "{name} with {changes}");
        }
    }
}

#[test]
fn values_that_cannot_be_used_are_refused_by_name() {
    for (field, value) in [
        ("vocab_size", json!(0)),
        ("vocab_size", json!(1u64 << 40)),
        ("vocab_size", json!("many")),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-64)),
        ("intermediate_size", json!(1.5)),
        ("num_hidden_layers", json!(100_000)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(15)),
        ("head_dim", json!(512)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0.5)),
        ("max_position_embeddings", json!(0)),
        ("hidden_act", json!("gelu")),
        ("tie_word_embeddings", json!("yes")),
        ("bos_token_id", json!(320)),
        ("eos_token_id", json!("</s>")),
        ("torch_dtype", json!("float8")),
        ("quantization_config", json!({ "bits": 4 })),
    ] {
        match with("llama3", json!({ field: value })) {
            Err(ConfigError::Invalid { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field} = {value} gave {other:?}"),
        }
    }
}

#[test]
fn missing_fields_are_named() {
    for field in
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    {
        let found = with("llama3", json!({ field: "REMOVED" }));
        assert_eq!(found, Err(ConfigError::Missing { field: field.into() }));
    }
    let scaling = json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0 } });
    let field = "rope_scaling.high_freq_factor".to_owned();
    assert_eq!(with("llama3", scaling), Err(ConfigError::Missing { field }));
}

#[test]
fn unknown_rope_types_and_architectures_say_what_is_known() {
    let error = with("llama3", json!({ "rope_scaling": { "rope_type": "longrope" } })).unwrap_err();
    assert_eq!(error, ConfigError::UnknownRopeType { found: "longrope".into() });
    let error = with("llama3", json!({ "architectures": ["GPT2LMHeadModel"] })).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("GPT2LMHeadModel") && message.contains("Qwen3ForCausalLM"), "{message}");
    let by_type = with("llama3", json!({ "architectures": "REMOVED" })).unwrap();
    assert_eq!(by_type.family, Family::Llama);
}

#[test]
fn text_that_is_no_object_is_refused() {
    for text in ["", "[]", "null", "{", "{\"a\": }", "\u{0}"] {
        assert!(matches!(ModelConfig::from_json(text), Err(ConfigError::NotJson { .. })), "{text:?}");
    }
}
