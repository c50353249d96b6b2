//! The shapes of published models, by name. Where a checkpoint's configuration lies on a hub, these are its values.

use thiserror::Error;

use crate::config::{ModelConfig, RopeConfig, RopeScaling, StoredFloat};
use crate::families::Family;

/// A name that stands for no shape.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{name}` is no known shape; choose one of {}, with `:N` behind it for N of its layers",
    RandomModel::NAMES.join(", ")
)]
pub struct UnknownShape {
    /// The name as given.
    pub name: String,
}

/// The shapes that random models can take.
#[derive(Clone, Copy, Debug)]
pub struct RandomModel;

/// What differs between the shapes.
#[derive(Clone, Copy)]
struct Shape {
    family: Family,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    theta: f64,
    /// Factor of the llama3 scaling over 8,192 positions; `None` for unscaled frequencies.
    llama3_factor: Option<f64>,
    tied: bool,
    max_position_tokens: usize,
    bos_id: u32,
    eos_id: u32,
}

const LLAMA_3_2_1B: Shape = Shape {
    family: Family::Llama,
    vocab_size: 128_256,
    hidden_size: 2048,
    intermediate_size: 8192,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    theta: 500_000.0,
    llama3_factor: Some(32.0),
    tied: true,
    max_position_tokens: 131_072,
    bos_id: 128_000,
    eos_id: 128_001,
};

const LLAMA_3_2_3B: Shape = Shape { hidden_size: 3072, layers: 28, heads: 24, head_dim: 128, ..LLAMA_3_2_1B };

const LLAMA_3_1_8B: Shape = Shape {
    hidden_size: 4096,
    intermediate_size: 14_336,
    layers: 32,
    head_dim: 128,
    llama3_factor: Some(8.0),
    tied: false,
    ..LLAMA_3_2_1B
};

const MISTRAL_7B: Shape = Shape {
    family: Family::Mistral,
    vocab_size: 32_768,
    theta: 1_000_000.0,
    llama3_factor: None,
    max_position_tokens: 32_768,
    bos_id: 1,
    eos_id: 2,
    ..LLAMA_3_1_8B
};

const QWEN3_0_6B: Shape = Shape {
    family: Family::Qwen3,
    vocab_size: 151_936,
    hidden_size: 1024,
    intermediate_size: 3072,
    layers: 28,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    theta: 1_000_000.0,
    llama3_factor: None,
    tied: true,
    max_position_tokens: 40_960,
    bos_id: 151_643,
    eos_id: 151_645,
};

const QWEN2_5_0_5B: Shape = Shape {
    family: Family::Qwen2,
    hidden_size: 896,
    intermediate_size: 4864,
    layers: 24,
    heads: 14,
    kv_heads: 2,
    head_dim: 64,
    max_position_tokens: 32_768,
    ..QWEN3_0_6B
};

const SMOLLM_135M: Shape = Shape {
    vocab_size: 49_152,
    hidden_size: 576,
    intermediate_size: 1536,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    theta: 10_000.0,
    llama3_factor: None,
    max_position_tokens: 2048,
    bos_id: 0,
    eos_id: 0,
    ..LLAMA_3_2_1B
};

/// No published model: 300 thousand parameters, for tests.
const TINY: Shape = Shape {
    vocab_size: 512,
    hidden_size: 128,
    intermediate_size: 256,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    theta: 10_000.0,
    llama3_factor: None,
    bos_id: 1,
    eos_id: 2,
    ..LLAMA_3_2_1B
};

const SHAPES: [(&str, Shape); 8] = [
    ("llama-3.2-1b", LLAMA_3_2_1B),
    ("llama-3.2-3b", LLAMA_3_2_3B),
    ("llama-3.1-8b", LLAMA_3_1_8B),
    ("qwen2.5-0.5b", QWEN2_5_0_5B),
    ("qwen3-0.6b", QWEN3_0_6B),
    ("smollm-135m", SMOLLM_135M),
    ("mistral-7b", MISTRAL_7B),
    ("tiny", TINY),
];

impl RandomModel {
    /// Names that [`named`](Self::named) knows.
    pub const NAMES: [&'static str; SHAPES.len()] = {
        let mut names = [""; SHAPES.len()];
        let mut index = 0;
        while index < names.len() {
            names[index] = SHAPES[index].0;
            index += 1;
        }
        names
    };

    /// The configuration of a published model; `tiny` is a Llama of 300 thousand parameters for tests. `name:N` is the same
    /// with only N of its layers: they are all alike, so measurements that compare need not run them all.
    pub fn named(name: &str) -> Result<ModelConfig, UnknownShape> {
        let unknown = || UnknownShape { name: name.to_owned() };
        let (shape, layers) = match name.split_once(':') {
            Some((shape, layers)) => (shape, Some(layers.parse::<usize>().map_err(|_| unknown())?)),
            None => (name, None),
        };
        let (_, shape) = SHAPES.iter().find(|(known, _)| *known == shape).ok_or_else(unknown)?;
        let layers = layers.unwrap_or(shape.layers);
        if !(1..=shape.layers).contains(&layers) {
            return Err(unknown());
        }
        Ok(ModelConfig { layers, ..shape.config() })
    }
}

impl Shape {
    fn config(&self) -> ModelConfig {
        let scaling = match self.llama3_factor {
            None => RopeScaling::Default,
            Some(factor) => RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position: 8192,
            },
        };
        ModelConfig {
            family: self.family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rms_norm_eps: if matches!(self.family, Family::Qwen2 | Family::Qwen3) { 1e-6 } else { 1e-5 },
            rope: RopeConfig { theta: self.theta, scaling },
            tie_word_embeddings: self.tied,
            qkv_bias: self.family == Family::Qwen2,
            output_bias: false,
            mlp_bias: false,
            qk_norm: self.family == Family::Qwen3,
            max_position_tokens: self.max_position_tokens,
            sliding_window_tokens: None,
            bos_id: Some(self.bos_id),
            eos_ids: vec![self.eos_id],
            dtype: Some(StoredFloat::Bf16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_for_a_valid_configuration() {
        for name in RandomModel::NAMES {
            RandomModel::named(name).unwrap().validate().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let part = RandomModel::named("llama-3.2-1b:4").unwrap();
        assert_eq!(ModelConfig { layers: 16, ..part.clone() }, RandomModel::named("llama-3.2-1b").unwrap());
        assert_eq!(part.layers, 4);
        for wrong in ["llama-3.2-1b:0", "llama-3.2-1b:17", "llama-3.2-1b:all", ":4"] {
            assert!(RandomModel::named(wrong).is_err(), "{wrong}");
        }
        let error = RandomModel::named("gpt-5").unwrap_err();
        assert!(error.to_string().contains("llama-3.2-1b"), "{error}");
    }
}
