//! Models with random weights, for benchmarks and tests: nothing need be downloaded, and the answers are noise.
//! Well-known shapes by name are in `shapes.rs`; here are the weights, for any configuration.

mod shapes;

use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stellate_kernels::{KernelError, Matrix, WeightFormat};

use crate::checkpoint::Loaded;
use crate::checkpoint::placed::Placed;
use crate::checkpoint::plan::{self, Naming, Part, Slot};
use crate::config::ModelConfig;
use crate::fingerprint::Hasher;
use crate::weights::WeightChoice;
pub use shapes::{RandomModel, UnknownShape};

/// Numbers made at a time: large enough to amortise a call, small beside any weights.
const CHUNK_VALUES: usize = 1 << 20;
/// Standard deviation of embeddings and biases, as transformers initialises them.
const TABLE_STD: f32 = 0.02;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_weights_and_other_seeds_or_formats_others() {
        let config = RandomModel::named("tiny").unwrap();
        let row = |format, seed| {
            let loaded = random_weights(&config, format, seed).unwrap();
            let mut row = vec![0.0; config.hidden_size];
            loaded.weights.layers[1].gate.row(5, &mut row);
            (row, loaded.fingerprint)
        };
        assert_eq!(row(WeightChoice::F32, 1), row(WeightChoice::F32, 1));
        assert_ne!(row(WeightChoice::F32, 1).0, row(WeightChoice::F32, 2).0);
        assert_ne!(row(WeightChoice::F32, 1).1, row(WeightChoice::F32, 2).1);
        assert_ne!(row(WeightChoice::F32, 1).1, row(WeightChoice::Bf16, 1).1);
    }

    #[test]
    fn every_format_has_the_deviation_it_was_asked_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q8_0, WeightFormat::Q4K] {
            let matrix = random_matrix(&mut rng, format, 64, 512, 0.05).unwrap();
            let mut values = vec![0.0; 64 * 512];
            for (index, row) in values.chunks_exact_mut(512).enumerate() {
                matrix.row(index, row);
            }
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let variance = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
            assert!(mean.abs() < 0.002, "{format}: mean {mean}");
            assert!((variance.sqrt() - 0.05).abs() < 0.002, "{format}: deviation {}", variance.sqrt());
        }
    }
}
