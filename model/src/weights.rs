//! The weights of a decoder in their running formats, and the choice of those formats.
//! Where weights come from is in `crate::checkpoint` and `crate::random`; what is done with them in `crate::decoder`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use stellate_kernels::{Matrix, WeightFormat};

/// All weights of a model. Matrices are `[outputs, inputs]`.
#[derive(Debug)]
pub struct Weights {
    /// `[vocab_size, hidden_size]`
    pub embedding: Matrix,
    /// One per decoder layer, in order.
    pub layers: Vec<LayerWeights>,
    /// `[hidden_size]`
    pub final_norm: Vec<f32>,
    /// `[vocab_size, hidden_size]`; `None` where the embedding is also the output matrix.
    pub output: Option<Matrix>,
}

/// Weights of one decoder layer. `query_size` is heads × head_dim, `kv_size` is kv_heads × head_dim.
#[derive(Debug)]
pub struct LayerWeights {
    /// `[hidden_size]`, before attention.
    pub attention_norm: Vec<f32>,
    /// `[query_size, hidden_size]`
    pub query: Matrix,
    /// `[kv_size, hidden_size]`
    pub key: Matrix,
    /// `[kv_size, hidden_size]`
    pub value: Matrix,
    /// `[query_size]`
    pub query_bias: Option<Vec<f32>>,
    /// `[kv_size]`
    pub key_bias: Option<Vec<f32>>,
    /// `[kv_size]`
    pub value_bias: Option<Vec<f32>>,
    /// `[head_dim]`, the norm of every query head.
    pub query_norm: Option<Vec<f32>>,
    /// `[head_dim]`, the norm of every key head.
    pub key_norm: Option<Vec<f32>>,
    /// `[hidden_size, query_size]`
    pub output: Matrix,
    /// `[hidden_size]`
    pub output_bias: Option<Vec<f32>>,
    /// `[hidden_size]`, before the feed-forward layer.
    pub mlp_norm: Vec<f32>,
    /// `[intermediate_size, hidden_size]`
    pub gate: Matrix,
    /// `[intermediate_size, hidden_size]`
    pub up: Matrix,
    /// `[hidden_size, intermediate_size]`
    pub down: Matrix,
    /// `[intermediate_size]`
    pub gate_bias: Option<Vec<f32>>,
    /// `[intermediate_size]`
    pub up_bias: Option<Vec<f32>>,
    /// `[hidden_size]`
    pub down_bias: Option<Vec<f32>>,
}

impl Weights {
    /// Bytes of all weights in their running formats.
    pub fn bytes(&self) -> usize {
        let output = self.output.as_ref().map_or(0, Matrix::bytes);
        let layers: usize = self.layers.iter().map(LayerWeights::bytes).sum();
        self.embedding.bytes() + layers + std::mem::size_of_val(self.final_norm.as_slice()) + output
    }
}

impl LayerWeights {
    /// Bytes of this layer's weights in their running formats.
    pub fn bytes(&self) -> usize {
        let matrices = [&self.query, &self.key, &self.value, &self.output, &self.gate, &self.up, &self.down];
        let optional = [
            &self.query_bias,
            &self.key_bias,
            &self.value_bias,
            &self.query_norm,
            &self.key_norm,
            &self.output_bias,
            &self.gate_bias,
            &self.up_bias,
            &self.down_bias,
        ];
        let vectors = optional.into_iter().flatten().chain([&self.attention_norm, &self.mlp_norm]);
        let floats: usize = vectors.map(Vec::len).sum();
        matrices.into_iter().map(Matrix::bytes).sum::<usize>() + floats * size_of::<f32>()
    }
}

/// The format a user asks matrices to run in. Norms and biases always run in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WeightChoice {
    /// The checkpoint's own: f32 as f32, f16 and bf16 as bf16, a GGUF file's quantised tensors as they are.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Single precision.
    #[serde(rename = "f32")]
    F32,
    /// bfloat16.
    #[serde(rename = "bf16")]
    Bf16,
    /// 8-bit blocks of 32; bf16 where the number of inputs is not a multiple of 32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4-bit blocks of 256; q8_0 or bf16 where the number of inputs is not a multiple of 256.
    #[serde(rename = "q4_k")]
    Q4K,
}

/// A text that names no choice of weight format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a weight format; choose one of auto, f32, bf16, q8_0 and q4_k")]
pub struct WeightChoiceError(String);

impl WeightChoice {
    /// All choices, in the order they are documented.
    pub const ALL: [WeightChoice; 5] =
        [WeightChoice::Auto, WeightChoice::F32, WeightChoice::Bf16, WeightChoice::Q8_0, WeightChoice::Q4K];

    /// The format in which a matrix of `cols` inputs runs, given what `Auto` would take.
    pub fn resolve(self, own: WeightFormat, cols: usize) -> WeightFormat {
        let preferences: &[WeightFormat] = match self {
            WeightChoice::Auto => &[own, WeightFormat::Bf16],
            WeightChoice::F32 => &[WeightFormat::F32],
            WeightChoice::Bf16 => &[WeightFormat::Bf16],
            WeightChoice::Q8_0 => &[WeightFormat::Q8_0, WeightFormat::Bf16],
            WeightChoice::Q4K => &[WeightFormat::Q4K, WeightFormat::Q8_0, WeightFormat::Bf16],
        };
        let fits = |format: &&WeightFormat| cols.is_multiple_of(format.block_len());
        *preferences.iter().find(fits).expect("the last of each list takes any number of columns")
    }

    /// The format asked for by name, which a matrix may not fit; `None` where each fits or none is asked for.
    fn asked_in_blocks(self) -> Option<WeightFormat> {
        match self {
            WeightChoice::Q8_0 => Some(WeightFormat::Q8_0),
            WeightChoice::Q4K => Some(WeightFormat::Q4K),
            WeightChoice::Auto | WeightChoice::F32 | WeightChoice::Bf16 => None,
        }
    }

    /// Which of the matrices, that run in `formats`, do not fit into the blocks of this choice: in words, or `None` if
    /// all do.
    pub(crate) fn fallbacks(self, formats: impl IntoIterator<Item = WeightFormat>) -> Option<String> {
        let asked = self.asked_in_blocks()?;
        let formats: Vec<WeightFormat> = formats.into_iter().collect();
        let in_format = |format: WeightFormat| formats.iter().filter(|&&found| found == format).count();
        let others: Vec<String> = WeightFormat::ALL
            .into_iter()
            .filter(|&format| format != asked && in_format(format) > 0)
            .map(|format| format!("{} in {format}", in_format(format)))
            .collect();
        let misfits = formats.len() - in_format(asked);
        (misfits > 0).then(|| {
            format!(
                "{asked} does not fit {misfits} of {} matrices, whose width is no multiple of {}; they run in other \
                 formats ({})",
                formats.len(),
                asked.block_len(),
                others.join(", "),
            )
        })
    }
}

impl fmt::Display for WeightChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WeightChoice::Auto => "auto",
            WeightChoice::F32 => "f32",
            WeightChoice::Bf16 => "bf16",
            WeightChoice::Q8_0 => "q8_0",
            WeightChoice::Q4K => "q4_k",
        })
    }
}

impl FromStr for WeightChoice {
    type Err = WeightChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|choice| choice.to_string() == text)
            .ok_or_else(|| WeightChoiceError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_that_do_not_fit_the_chosen_blocks_are_counted_by_the_format_they_run_in() {
        let say = |choice: WeightChoice, widths: &[usize]| {
            choice.fallbacks(widths.iter().map(|&cols| choice.resolve(WeightFormat::F32, cols)))
        };
        assert_eq!(
            say(WeightChoice::Q4K, &[256, 896, 896, 40]).unwrap(),
            "q4_k does not fit 3 of 4 matrices, whose width is no multiple of 256; they run in other formats \
             (1 in bf16, 2 in q8_0)"
        );
        assert_eq!(
            say(WeightChoice::Q8_0, &[64, 40]).unwrap(),
            "q8_0 does not fit 1 of 2 matrices, whose width is no multiple of 32; they run in other formats (1 in bf16)"
        );
        assert_eq!(say(WeightChoice::Q4K, &[256, 512]), None);
        for choice in [WeightChoice::Auto, WeightChoice::F32, WeightChoice::Bf16] {
            assert_eq!(say(choice, &[40, 256]), None, "{choice}");
        }
    }
}
