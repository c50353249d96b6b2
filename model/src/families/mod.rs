//! The model families and, as data, what differs between them. One decoder serves all: nothing here computes.
//! To add a family: a file with its `RULES`, a variant of `Family`, a line in each `match` below.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, Fields};

/// A supported model family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2, 3, 3.1 and 3.2, and models of the same architecture, such as SmolLM.
    Llama,
    /// Mistral 7B and models of the same architecture.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
}

/// Which attention projections have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttentionBias {
    /// None, whatever the configuration says.
    Never,
    /// Query, key and value, but not the output.
    QueryKeyValue,
    /// All four if `attention_bias` is true, else none.
    AsConfigured,
}

/// What differs between families; defaults are those of the family's configuration class in transformers.
pub(crate) struct FamilyRules {
    /// Entry of `architectures` in config.json.
    pub(crate) architecture: &'static str,
    /// `model_type` in config.json.
    pub(crate) model_type: &'static str,
    pub(crate) attention_bias: AttentionBias,
    /// Whether `mlp_bias` is honoured.
    pub(crate) mlp_bias_as_configured: bool,
    /// Whether query and key heads are normalised.
    pub(crate) qk_norm: bool,
    /// Head width where `head_dim` is absent; `None` means hidden size / heads.
    pub(crate) default_head_dim: Option<usize>,
    /// Key heads where `num_key_value_heads` is absent; `None` means as many as query heads.
    pub(crate) default_kv_heads: Option<usize>,
    /// Positions where `max_position_embeddings` is absent.
    pub(crate) default_max_positions: usize,
    /// The window, in tokens, if any layer of this configuration slides.
    pub(crate) sliding_window: fn(&Fields<'_>) -> Result<Option<usize>, ConfigError>,
}

impl Family {
    /// All families, in the order error messages name them.
    pub const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// Finds the family of an entry of `architectures`, such as `LlamaForCausalLM`.
    pub fn from_architecture(name: &str) -> Result<Self, ConfigError> {
        Self::ALL
            .into_iter()
            .find(|family| family.rules().architecture == name)
            .ok_or_else(|| ConfigError::UnknownArchitecture { found: name.to_owned() })
    }

    /// Finds the family of a `model_type`, such as `llama`.
    pub fn from_model_type(name: &str) -> Result<Self, ConfigError> {
        Self::ALL
            .into_iter()
            .find(|family| family.rules().model_type == name)
            .ok_or_else(|| ConfigError::UnknownArchitecture { found: name.to_owned() })
    }

    /// Architecture name, as in config.json.
    pub fn architecture(self) -> &'static str {
        self.rules().architecture
    }

    /// All architecture names, for error messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(Family::architecture).join(", ")
    }

    pub(crate) fn rules(self) -> &'static FamilyRules {
        match self {
            Family::Llama => &llama::RULES,
            Family::Mistral => &mistral::RULES,
            Family::Qwen2 => &qwen2::RULES,
            Family::Qwen3 => &qwen3::RULES,
        }
    }
}
