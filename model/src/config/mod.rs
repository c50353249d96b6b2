//! What a decoder must know about a model: sizes, norms, biases, positions and special ids.
//! Read from `config.json` in `json.rs` and from GGUF metadata in `crate::gguf`; every value here has been checked,
//! so the decoder can index with it. What differs between families lives in `crate::families`.

mod fields;
mod json;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::families::Family;
pub use crate::rope::{RopeConfig, RopeScaling};
pub(crate) use fields::Fields;

/// Largest vocabulary that is believed. Real ones end near 300 thousand.
pub const MAX_VOCAB: usize = 1 << 22;
/// Largest hidden size that is believed.
pub const MAX_HIDDEN: usize = 1 << 17;
/// Largest intermediate size that is believed.
pub const MAX_INTERMEDIATE: usize = 1 << 20;
/// Most layers that are believed.
pub const MAX_LAYERS: usize = 1 << 10;
/// Most attention heads that are believed.
pub const MAX_HEADS: usize = 1 << 10;
/// Widest attention head that the kernels compute.
pub const MAX_HEAD_DIM: usize = 256;
/// Most positions that are believed; positions must also be exact in the f32 that RoPE computes with.
pub const MAX_POSITIONS: usize = 1 << 31;

/// The number format a checkpoint says it is stored in. The tensors' own headers are what loading goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredFloat {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// Everything that shapes a decoder of one of the supported families. All sizes are positive and mutually consistent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Family, which decides defaults and tensor names.
    pub family: Family,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of one head, even; not always `hidden_size / heads`.
    pub head_dim: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Whether the embedding table is also the output matrix.
    pub tie_word_embeddings: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention output projection has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// Whether each query and key head is RMS-normalised before RoPE (Qwen3).
    pub qk_norm: bool,
    /// Positions the model was made for, in tokens. A longer context is allowed, with a warning.
    pub max_position_tokens: usize,
    /// The sliding window, in tokens, only where some layer really uses one.
    pub sliding_window_tokens: Option<usize>,
    /// Beginning-of-sequence id.
    pub bos_id: Option<u32>,
    /// Ids that end a generation, possibly none.
    pub eos_ids: Vec<u32>,
    /// The number format that the configuration names.
    pub dtype: Option<StoredFloat>,
}

/// Why a configuration cannot be used. Nothing has been loaded when one of these is returned.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ConfigError {
    /// The text is not a JSON object.
    #[error("the configuration is not a JSON object: {reason}; fetch the file again")]
    NotJson {
        /// What the parser said.
        reason: String,
    },
    /// A field that has no default is absent.
    #[error("the configuration lacks `{field}`; add it, or fetch the checkpoint's configuration again")]
    Missing {
        /// Name of the field.
        field: String,
    },
    /// A field has a value that cannot be used.
    #[error("`{field}` in the configuration cannot be used: {reason}")]
    Invalid {
        /// Name of the field.
        field: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The model is of none of the families that are implemented.
    #[error("`{found}` is not a supported architecture; supported are {}", Family::names())]
    UnknownArchitecture {
        /// What the configuration says.
        found: String,
    },
    /// The RoPE scaling is none of those that are implemented.
    #[error(
        "`{found}` is not a supported RoPE type; supported are default, linear, llama3 and yarn, so run this model \
         at its unscaled length with the RoPE settings removed, or choose another model"
    )]
    UnknownRopeType {
        /// What the configuration says.
        found: String,
    },
    /// The context does not fit into the active sliding window.
    #[error(
        "this model attends through a sliding window of {window_tokens} tokens, which distributed attention does not \
         reproduce, and the context needs {context_tokens}; shorten the context to {window_tokens} tokens, or use a \
         model without a sliding window"
    )]
    SlidingWindow {
        /// Size of the window, in tokens.
        window_tokens: usize,
        /// Size of what was asked for, in tokens.
        context_tokens: usize,
    },
}

impl ConfigError {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn missing(field: impl Into<String>) -> Self {
        Self::Missing { field: field.into() }
    }
}

impl ModelConfig {
    /// Reads and checks the text of a Hugging Face `config.json`, in the layout of transformers 4 or 5.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        json::parse(text)
    }

    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Refuses `context_tokens` (context and conversation together) where a sliding window would cut it.
    /// Positions beyond those the model was made for are allowed, with a warning: answers may get worse.
    pub fn check_context(&self, context_tokens: usize) -> Result<(), ConfigError> {
        if let Some(window_tokens) = self.sliding_window_tokens
            && context_tokens > window_tokens
        {
            return Err(ConfigError::SlidingWindow { window_tokens, context_tokens });
        }
        if context_tokens > self.max_position_tokens {
            tracing::warn!(
                context_tokens,
                max_position_tokens = self.max_position_tokens,
                "the context is longer than the model was made for"
            );
        }
        Ok(())
    }

    /// Checks every size against its limit and against the others. Both readers end with this.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("hidden_size", self.hidden_size, MAX_HIDDEN),
            ("intermediate_size", self.intermediate_size, MAX_INTERMEDIATE),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_HEADS),
            ("num_key_value_heads", self.kv_heads, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("max_position_embeddings", self.max_position_tokens, MAX_POSITIONS),
        ];
        for (field, value, limit) in sizes {
            if value == 0 || value > limit {
                return Err(ConfigError::invalid(field, format!("{value} is not between 1 and {limit}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let reason =
                format!("{} query heads cannot share {} key heads evenly", self.heads, self.kv_heads);
            return Err(ConfigError::invalid("num_key_value_heads", reason));
        }
        if !self.head_dim.is_multiple_of(2) {
            let reason = format!("{} is odd, and RoPE rotates pairs", self.head_dim);
            return Err(ConfigError::invalid("head_dim", reason));
        }
        if !(self.rms_norm_eps.is_finite() && (0.0..1.0).contains(&self.rms_norm_eps)) {
            let reason = format!("{} is not a small positive number", self.rms_norm_eps);
            return Err(ConfigError::invalid("rms_norm_eps", reason));
        }
        if self.sliding_window_tokens == Some(0) {
            return Err(ConfigError::invalid("sliding_window", "a window of 0 tokens sees nothing"));
        }
        if let Some(bos) = self.bos_id
            && bos as usize >= self.vocab_size
        {
            let reason = format!("{bos} is beyond the vocabulary of {}", self.vocab_size);
            return Err(ConfigError::invalid("bos_token_id", reason));
        }
        self.rope.validate(self.head_dim)
    }
}
