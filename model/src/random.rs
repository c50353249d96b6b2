//! Models of well-known shapes with random weights, for benchmarks and tests: nothing need be downloaded.
//! The shapes are those of the published checkpoints; the answers are noise.

use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stellate_kernels::{KernelError, Matrix, WeightFormat};
use thiserror::Error;

use crate::checkpoint::Loaded;
use crate::checkpoint::placed::Placed;
use crate::checkpoint::plan::{self, Naming, Part, Slot};
use crate::config::{ModelConfig, RopeConfig, RopeScaling, StoredFloat};
use crate::families::Family;
use crate::fingerprint::Hasher;
use crate::weights::WeightChoice;

/// Numbers made at a time: large enough to amortise a call, small beside any weights.
const CHUNK_VALUES: usize = 1 << 20;
/// Standard deviation of embeddings and biases, as transformers initialises them.
const TABLE_STD: f32 = 0.02;

/// A name that stands for no shape.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{name}` is no known shape; choose one of {}", RandomModel::NAMES.join(", "))]
pub struct UnknownShape {
    /// The name as given.
    pub name: String,
}

/// The shapes that random models can take.
#[derive(Clone, Copy, Debug)]
pub struct RandomModel;

/// What the table below gives for each name.
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
    /// Factor of the llama3 scaling over 8,192 positions, or 0 for none.
    llama3_factor: f64,
    tied: bool,
    max_position_tokens: usize,
    special_ids: (u32, u32),
}

impl RandomModel {
    /// Names that [`named`](Self::named) knows.
    pub const NAMES: [&'static str; 8] = [
        "llama-3.2-1b",
        "llama-3.2-3b",
        "llama-3.1-8b",
        "qwen2.5-0.5b",
        "qwen3-0.6b",
        "smollm-135m",
        "mistral-7b",
        "tiny",
    ];

    /// The configuration of a published model; `tiny` is a Llama of 300 thousand parameters for tests.
    pub fn named(name: &str) -> Result<ModelConfig, UnknownShape> {
        let shape = Self::shape(name).ok_or_else(|| UnknownShape { name: name.to_owned() })?;
        Ok(shape.config())
    }

    fn shape(name: &str) -> Option<Shape> {
        let llama = Shape {
            family: Family::Llama,
            vocab_size: 128_256,
            hidden_size: 2048,
            intermediate_size: 8192,
            layers: 16,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            theta: 500_000.0,
            llama3_factor: 32.0,
            tied: true,
            max_position_tokens: 131_072,
            special_ids: (128_000, 128_001),
        };
        let plain = Shape { theta: 1_000_000.0, llama3_factor: 0.0, ..llama };
        let qwen = Shape { vocab_size: 151_936, head_dim: 64, special_ids: (151_643, 151_645), ..plain };
        let wide = Shape { hidden_size: 4096, intermediate_size: 14_336, layers: 32, head_dim: 128, ..llama };
        Some(match name {
            "llama-3.2-1b" => llama,
            "llama-3.2-3b" => Shape { hidden_size: 3072, layers: 28, heads: 24, head_dim: 128, ..llama },
            "llama-3.1-8b" => Shape { llama3_factor: 8.0, tied: false, ..wide },
            "qwen2.5-0.5b" => Shape {
                family: Family::Qwen2,
                hidden_size: 896,
                intermediate_size: 4864,
                layers: 24,
                heads: 14,
                kv_heads: 2,
                max_position_tokens: 32_768,
                ..qwen
            },
            "qwen3-0.6b" => Shape {
                family: Family::Qwen3,
                hidden_size: 1024,
                intermediate_size: 3072,
                layers: 28,
                heads: 16,
                head_dim: 128,
                max_position_tokens: 40_960,
                ..qwen
            },
            "smollm-135m" => Shape {
                vocab_size: 49_152,
                hidden_size: 576,
                intermediate_size: 1536,
                layers: 30,
                heads: 9,
                kv_heads: 3,
                theta: 10_000.0,
                max_position_tokens: 2048,
                special_ids: (0, 0),
                ..plain
            },
            "mistral-7b" => Shape {
                family: Family::Mistral,
                vocab_size: 32_768,
                theta: 1_000_000.0,
                llama3_factor: 0.0,
                tied: false,
                max_position_tokens: 32_768,
                special_ids: (1, 2),
                ..wide
            },
            "tiny" => Shape {
                vocab_size: 512,
                hidden_size: 128,
                intermediate_size: 256,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 32,
                theta: 10_000.0,
                special_ids: (1, 2),
                ..plain
            },
            _ => return None,
        })
    }
}

impl Shape {
    fn config(self) -> ModelConfig {
        let scaling = match self.llama3_factor {
            0.0 => RopeScaling::Default,
            factor => RopeScaling::Llama3 {
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
            bos_id: Some(self.special_ids.0),
            eos_ids: vec![self.special_ids.1],
            dtype: Some(StoredFloat::Bf16),
        }
    }
}

/// Random weights for any configuration, the same for the same seed and format. `Auto` means bf16. They are scaled
/// so that activations keep their size from layer to layer and logits have a standard deviation near 1.
/// Quantised matrices are made as blocks, without quantising anything, and so differ from those of other formats.
pub fn random_weights(config: &ModelConfig, format: WeightChoice, seed: u64) -> Result<Loaded, KernelError> {
    let mut hasher = Hasher::new(config);
    hasher.text("random weights");
    hasher.number(seed);
    let mut placed = Placed::new(config.layers);
    for (index, slot) in plan::slots(config).enumerate() {
        // A stream per tensor: the contents do not depend on the order of generation.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index as u64);
        match slot.shape(config).as_slice() {
            &[rows, cols] => {
                let running = format.resolve(WeightFormat::Bf16, cols);
                hasher.tensor(&slot.name(Naming::HuggingFace), "random", &[rows, cols], running);
                let std = deviation(config, slot, cols);
                placed.put_matrix(slot, random_matrix(&mut rng, running, rows, cols, std)?);
            }
            other => placed.put_vector(slot, random_vector(&mut rng, slot, other[0])),
        }
    }
    Ok(Loaded { weights: placed.finish(), fingerprint: hasher.finish(), format })
}

/// Projections keep the size of what they are given; those that end a branch are smaller, so that the sum of all
/// branches stays near 1.
fn deviation(config: &ModelConfig, slot: Slot, cols: usize) -> f32 {
    let keeping = 1.0 / (cols as f32).sqrt();
    match slot {
        Slot::Embedding | Slot::Output | Slot::FinalNorm => TABLE_STD,
        Slot::Layer(_, Part::Output | Part::Down) => keeping / (2.0 * config.layers as f32).sqrt(),
        Slot::Layer(..) => keeping,
    }
}

fn random_vector(rng: &mut ChaCha8Rng, slot: Slot, len: usize) -> Vec<f32> {
    let norm = matches!(
        slot,
        Slot::FinalNorm
            | Slot::Layer(_, Part::AttentionNorm | Part::MlpNorm | Part::QueryNorm | Part::KeyNorm)
    );
    let mut values = vec![0.0; len];
    fill_uniform(rng, TABLE_STD, &mut values);
    if norm {
        values.iter_mut().for_each(|value| *value += 1.0);
    }
    values
}

fn random_matrix(
    rng: &mut ChaCha8Rng,
    format: WeightFormat,
    rows: usize,
    cols: usize,
    std: f32,
) -> Result<Matrix, KernelError> {
    let mut builder = Matrix::builder(format, rows, cols)?;
    let chunk_rows = (CHUNK_VALUES / cols).max(1);
    let mut values = Vec::new();
    let mut blocks = Vec::new();
    for first in (0..rows).step_by(chunk_rows) {
        let count = chunk_rows.min(rows - first) * cols;
        match format {
            WeightFormat::Q8_0 => {
                random_q8_0(rng, std, count, &mut blocks);
                builder.push_raw(&blocks)?;
            }
            WeightFormat::Q4K => {
                random_q4_k(rng, std, count, &mut blocks);
                builder.push_raw(&blocks)?;
            }
            WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::Q6K => {
                values.resize(count, 0.0);
                fill_uniform(rng, std, &mut values);
                builder.push_rows(&values);
            }
        }
    }
    builder.finish()
}

/// Uniform numbers of mean 0: 16 random bits each, which is more than bf16 keeps.
fn fill_uniform(rng: &mut ChaCha8Rng, std: f32, out: &mut [f32]) {
    let step = std * 3.0_f32.sqrt() / 32_768.0;
    let mut bytes = [0; 4096];
    for chunk in out.chunks_mut(bytes.len() / 2) {
        rng.fill_bytes(&mut bytes);
        for (value, word) in chunk.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *value = (f32::from(i16::from_le_bytes(*word)) + 0.5) * step;
        }
    }
}

/// Blocks of 32: an f16 scale and 32 random signed bytes.
fn random_q8_0(rng: &mut ChaCha8Rng, std: f32, values: usize, out: &mut Vec<u8>) {
    /// Standard deviation of a uniform signed byte.
    const BYTE_STD: f32 = 73.9;
    out.resize(values / 32 * 34, 0);
    rng.fill_bytes(out);
    let scale = f16::from_f32(std / BYTE_STD).to_le_bytes();
    out.chunks_exact_mut(34).for_each(|block| block[..2].copy_from_slice(&scale));
}

/// Blocks of 256: f16 scale and minimum, eight 6-bit pairs of factors on them, here all 1, and 256 random nibbles.
fn random_q4_k(rng: &mut ChaCha8Rng, std: f32, values: usize, out: &mut Vec<u8>) {
    /// Standard deviation and mean of a uniform nibble.
    const NIBBLE_STD: f32 = 4.61;
    const NIBBLE_MEAN: f32 = 7.5;
    /// Eight scales and eight minima of 1, packed as ggml packs them.
    const FACTORS_OF_ONE: [u8; 12] = [1, 1, 1, 1, 1, 1, 1, 1, 0x11, 0x11, 0x11, 0x11];
    out.resize(values / 256 * 144, 0);
    rng.fill_bytes(out);
    let scale = std / NIBBLE_STD;
    for block in out.chunks_exact_mut(144) {
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(scale * NIBBLE_MEAN).to_le_bytes());
        block[4..16].copy_from_slice(&FACTORS_OF_ONE);
    }
}
