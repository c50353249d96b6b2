//! Which tensors a configuration calls for, under which names and in which shapes: for Hugging Face checkpoints and
//! for GGUF files. Checks them all against a table before anything is loaded.

use super::{CheckpointError, Entry, Stored, TensorTable};
use crate::config::ModelConfig;

/// How tensors are named, and whether rows of the query and key projections are permuted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// transformers: `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
    /// llama.cpp: `blk.0.attn_q.weight`.
    Gguf {
        /// Files of the architecture `llama` interleave the two halves of each head.
        interleaved_heads: bool,
    },
}

/// One weight of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Embedding,
    FinalNorm,
    Output,
    Layer(usize, Part),
}

/// One weight of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    AttentionNorm,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    Output,
    OutputBias,
    MlpNorm,
    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,
}

impl Part {
    const ALWAYS: [Part; 9] = [
        Part::AttentionNorm,
        Part::Query,
        Part::Key,
        Part::Value,
        Part::Output,
        Part::MlpNorm,
        Part::Gate,
        Part::Up,
        Part::Down,
    ];

    /// Names within a layer: transformers' and llama.cpp's.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Part::AttentionNorm => ("input_layernorm.weight", "attn_norm.weight"),
            Part::Query => ("self_attn.q_proj.weight", "attn_q.weight"),
            Part::Key => ("self_attn.k_proj.weight", "attn_k.weight"),
            Part::Value => ("self_attn.v_proj.weight", "attn_v.weight"),
            Part::QueryBias => ("self_attn.q_proj.bias", "attn_q.bias"),
            Part::KeyBias => ("self_attn.k_proj.bias", "attn_k.bias"),
            Part::ValueBias => ("self_attn.v_proj.bias", "attn_v.bias"),
            Part::QueryNorm => ("self_attn.q_norm.weight", "attn_q_norm.weight"),
            Part::KeyNorm => ("self_attn.k_norm.weight", "attn_k_norm.weight"),
            Part::Output => ("self_attn.o_proj.weight", "attn_output.weight"),
            Part::OutputBias => ("self_attn.o_proj.bias", "attn_output.bias"),
            Part::MlpNorm => ("post_attention_layernorm.weight", "ffn_norm.weight"),
            Part::Gate => ("mlp.gate_proj.weight", "ffn_gate.weight"),
            Part::Up => ("mlp.up_proj.weight", "ffn_up.weight"),
            Part::Down => ("mlp.down_proj.weight", "ffn_down.weight"),
            Part::GateBias => ("mlp.gate_proj.bias", "ffn_gate.bias"),
            Part::UpBias => ("mlp.up_proj.bias", "ffn_up.bias"),
            Part::DownBias => ("mlp.down_proj.bias", "ffn_down.bias"),
        }
    }
}

impl Slot {
    /// The tensor's name in a checkpoint.
    pub(crate) fn name(self, naming: Naming) -> String {
        let hugging_face = naming == Naming::HuggingFace;
        match self {
            Slot::Embedding if hugging_face => "model.embed_tokens.weight".into(),
            Slot::FinalNorm if hugging_face => "model.norm.weight".into(),
            Slot::Output if hugging_face => "lm_head.weight".into(),
            Slot::Embedding => "token_embd.weight".into(),
            Slot::FinalNorm => "output_norm.weight".into(),
            Slot::Output => "output.weight".into(),
            Slot::Layer(layer, part) if hugging_face => format!("model.layers.{layer}.{}", part.names().0),
            Slot::Layer(layer, part) => format!("blk.{layer}.{}", part.names().1),
        }
    }

    /// The tensor's shape, outermost size first.
    pub(crate) fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (query, kv) = (config.query_size(), config.kv_size());
        let Slot::Layer(_, part) = self else {
            return match self {
                Slot::FinalNorm => vec![hidden],
                _ => vec![config.vocab_size, hidden],
            };
        };
        match part {
            Part::AttentionNorm | Part::MlpNorm | Part::OutputBias | Part::DownBias => vec![hidden],
            Part::Query => vec![query, hidden],
            Part::Key | Part::Value => vec![kv, hidden],
            Part::QueryBias => vec![query],
            Part::KeyBias | Part::ValueBias => vec![kv],
            Part::QueryNorm | Part::KeyNorm => vec![config.head_dim],
            Part::Output => vec![hidden, query],
            Part::Gate | Part::Up => vec![inner, hidden],
            Part::Down => vec![hidden, inner],
            Part::GateBias | Part::UpBias => vec![inner],
        }
    }

    /// Whether the rows of this tensor are stored interleaved and must be put back in order, head by head.
    pub(crate) fn is_interleaved(self, naming: Naming) -> bool {
        let rotated =
            matches!(self, Slot::Layer(_, Part::Query | Part::Key | Part::QueryBias | Part::KeyBias));
        rotated && naming == Naming::Gguf { interleaved_heads: true }
    }
}

/// All weights that `config` calls for, in the order they are loaded and hashed.
pub(crate) fn slots(config: &ModelConfig) -> impl Iterator<Item = Slot> + use<> {
    let mut parts = Part::ALWAYS.to_vec();
    if config.qkv_bias {
        parts.extend([Part::QueryBias, Part::KeyBias, Part::ValueBias]);
    }
    if config.output_bias {
        parts.push(Part::OutputBias);
    }
    if config.qk_norm {
        parts.extend([Part::QueryNorm, Part::KeyNorm]);
    }
    if config.mlp_bias {
        parts.extend([Part::GateBias, Part::UpBias, Part::DownBias]);
    }
    let layers = (0..config.layers).flat_map(move |layer| {
        let parts = parts.clone();
        parts.into_iter().map(move |part| Slot::Layer(layer, part))
    });
    let output = (!config.tie_word_embeddings).then_some(Slot::Output);
    [Slot::Embedding].into_iter().chain(layers).chain([Slot::FinalNorm]).chain(output)
}

/// Checks that every weight that `config` calls for is in the table, in the right shape and a known format.
pub(crate) fn check(
    config: &ModelConfig,
    naming: Naming,
    table: &TensorTable,
) -> Result<(), CheckpointError> {
    slots(config).try_for_each(|slot| entry(config, naming, table, slot).map(drop))
}

/// The checked table entry of one weight.
pub(crate) fn entry<'t>(
    config: &ModelConfig,
    naming: Naming,
    table: &'t TensorTable,
    slot: Slot,
) -> Result<&'t Entry, CheckpointError> {
    let tensor = slot.name(naming);
    let Some(entry) = table.get(&tensor) else {
        return Err(CheckpointError::MissingTensor { tensor });
    };
    let expected = slot.shape(config);
    if entry.shape != expected {
        return Err(CheckpointError::WrongShape { tensor, expected, found: entry.shape.clone() });
    }
    // Rows of a quantised tensor are whole blocks, so that a chunk of rows is a range of bytes.
    let cols = *expected.last().expect("every weight has a size");
    let rows: usize = expected.iter().rev().skip(1).product();
    match entry.stored.row_bytes(cols) {
        Some(row_bytes) if row_bytes.checked_mul(rows) == Some(entry.range.len()) => Ok(entry),
        Some(_) => Err(CheckpointError::WrongShape { tensor, expected, found: entry.shape.clone() }),
        None => {
            let found = match &entry.stored {
                Stored::Blocks(format) => format!("{format} with {cols} columns, which are not whole blocks"),
                other => other.name(),
            };
            Err(CheckpointError::UnsupportedType { tensor, found })
        }
    }
}
