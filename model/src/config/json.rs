//! Reads Hugging Face's `config.json`: the layout of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`)
//! and that of transformers 5 (`rope_parameters`, `dtype`). Missing fields get the defaults of the family's
//! configuration class in transformers.

use serde_json::Value;

use super::{ConfigError, Fields, ModelConfig, RopeConfig, RopeScaling, StoredFloat};
use crate::families::{AttentionBias, Family};

/// What transformers assumes where a configuration does not say.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const DEFAULT_RMS_NORM_EPS: f64 = 1e-6;
const DEFAULT_BETA_FAST: f64 = 32.0;
const DEFAULT_BETA_SLOW: f64 = 1.0;

pub(super) fn parse(text: &str) -> Result<ModelConfig, ConfigError> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| ConfigError::NotJson { reason: error.to_string() })?;
    let Some(object) = value.as_object() else {
        return Err(ConfigError::NotJson { reason: "the top level is not an object".into() });
    };
    let fields = Fields::new(object, "");
    let family = family(&fields)?;
    refuse_what_is_not_implemented(&fields)?;

    let rules = family.rules();
    let heads = fields.required("num_attention_heads")?;
    let hidden_size = fields.required("hidden_size")?;
    let default_head_dim = rules.default_head_dim.or(hidden_size.checked_div(heads)).unwrap_or(0);
    let max_position_tokens = fields.count("max_position_embeddings")?.unwrap_or(rules.default_max_positions);
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    let config = ModelConfig {
        family,
        vocab_size: fields.required("vocab_size")?,
        hidden_size,
        intermediate_size: fields.required("intermediate_size")?,
        layers: fields.required("num_hidden_layers")?,
        heads,
        kv_heads: fields.count("num_key_value_heads")?.unwrap_or_else(|| {
            let absent = !fields.mentions("num_key_value_heads");
            rules.default_kv_heads.filter(|_| absent).unwrap_or(heads)
        }),
        head_dim: fields.count("head_dim")?.unwrap_or(default_head_dim),
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(DEFAULT_RMS_NORM_EPS) as f32,
        rope: rope(&fields, max_position_tokens)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: match rules.attention_bias {
            AttentionBias::Never => false,
            AttentionBias::QueryKeyValue => true,
            AttentionBias::AsConfigured => attention_bias,
        },
        output_bias: rules.attention_bias == AttentionBias::AsConfigured && attention_bias,
        mlp_bias: rules.mlp_bias_as_configured && fields.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: rules.qk_norm,
        max_position_tokens,
        sliding_window_tokens: (rules.sliding_window)(&fields)?,
        bos_id: fields.ids("bos_token_id")?.first().copied(),
        eos_ids: fields.ids("eos_token_id")?,
        dtype: dtype(&fields)?,
    };
    config.validate()?;
    Ok(config)
}

fn family(fields: &Fields<'_>) -> Result<Family, ConfigError> {
    if let Some(names) = fields.list("architectures")?
        && let Some(name) = names.first()
    {
        let name = name.as_str().ok_or_else(|| fields.invalid("architectures", "not a list of strings"))?;
        return Family::from_architecture(name);
    }
    match fields.text("model_type")? {
        Some(name) => Family::from_model_type(name),
        None => Err(fields.missing("architectures")),
    }
}

/// Settings that would change the arithmetic and that no supported family uses.
fn refuse_what_is_not_implemented(fields: &Fields<'_>) -> Result<(), ConfigError> {
    if let Some(activation) = fields.text("hidden_act")?
        && !matches!(activation, "silu" | "swish")
    {
        return Err(fields.invalid("hidden_act", format!("`{activation}` is not supported, only silu is")));
    }
    if fields.get("quantization_config").is_some() {
        let reason =
            "quantised Hugging Face checkpoints are not supported; use a GGUF file, or the original weights";
        return Err(fields.invalid("quantization_config", reason));
    }
    if fields.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(fields.invalid("partial_rotary_factor", "only 1.0 is supported"));
    }
    Ok(())
}

fn dtype(fields: &Fields<'_>) -> Result<Option<StoredFloat>, ConfigError> {
    let field = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    let Some(name) = fields.text(field)? else { return Ok(None) };
    match name.trim_start_matches("torch.") {
        "float32" | "float" => Ok(Some(StoredFloat::F32)),
        "float16" | "half" => Ok(Some(StoredFloat::F16)),
        "bfloat16" => Ok(Some(StoredFloat::Bf16)),
        "auto" => Ok(None),
        _ => Err(fields.invalid(field, format!("`{name}` is not one of float32, float16 and bfloat16"))),
    }
}

fn rope(fields: &Fields<'_>, max_position_tokens: usize) -> Result<RopeConfig, ConfigError> {
    // transformers 5 keeps theta beside the scaling; transformers 4 keeps it at the top.
    let (object, path) = match fields.object("rope_parameters")? {
        Some(object) => (Some(object), "rope_parameters."),
        None => (fields.object("rope_scaling")?, "rope_scaling."),
    };
    let top_theta = fields.number("rope_theta")?;
    let Some(object) = object else {
        return Ok(RopeConfig {
            theta: top_theta.unwrap_or(DEFAULT_ROPE_THETA),
            scaling: RopeScaling::Default,
        });
    };
    let inner = Fields::new(object, path);
    let theta = inner.number("rope_theta")?.or(top_theta).unwrap_or(DEFAULT_ROPE_THETA);
    if inner.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(inner.invalid("partial_rotary_factor", "only 1.0 is supported"));
    }
    let kind = match inner.text("rope_type")? {
        Some(kind) => kind,
        None => inner.text("type")?.unwrap_or("default"),
    };
    let original = |required: bool| match inner.count("original_max_position_embeddings")? {
        Some(tokens) => Ok(tokens),
        None if required => Err(inner.missing("original_max_position_embeddings")),
        None => Ok(fields.count("original_max_position_embeddings")?.unwrap_or(max_position_tokens)),
    };
    let needed = |name: &str| inner.number(name)?.ok_or_else(|| inner.missing(name));
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: needed("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_position: original(true)?,
        },
        "yarn" => {
            let original_max_position = original(false)?;
            RopeScaling::Yarn {
                factor: match inner.number("factor")? {
                    Some(factor) => factor,
                    None => max_position_tokens as f64 / original_max_position.max(1) as f64,
                },
                original_max_position,
                // transformers writes `get("beta_fast") or 32`, so 0 also means the default.
                beta_fast: inner.number("beta_fast")?.filter(|&b| b != 0.0).unwrap_or(DEFAULT_BETA_FAST),
                beta_slow: inner.number("beta_slow")?.filter(|&b| b != 0.0).unwrap_or(DEFAULT_BETA_SLOW),
                attention_factor: inner.number("attention_factor")?,
                mscale: inner.number("mscale")?,
                mscale_all_dim: inner.number("mscale_all_dim")?,
                truncate: inner.flag("truncate")?.unwrap_or(true),
            }
        }
        found => return Err(ConfigError::UnknownRopeType { found: found.to_owned() }),
    };
    Ok(RopeConfig { theta, scaling })
}
