//! Weights in the order a plan names them, put into the places where the decoder looks for them.

use stellate_kernels::Matrix;

use super::plan::{Part, Slot};
use crate::weights::{LayerWeights, Weights};

/// Weights as they come in, each in its place.
pub(crate) struct Placed {
    embedding: Option<Matrix>,
    final_norm: Option<Vec<f32>>,
    output: Option<Matrix>,
    layers: Vec<PlacedLayer>,
}

#[derive(Default)]
struct PlacedLayer {
    matrices: Vec<(Part, Matrix)>,
    vectors: Vec<(Part, Vec<f32>)>,
}

impl Placed {
    pub(crate) fn new(layers: usize) -> Self {
        let layers = (0..layers).map(|_| PlacedLayer::default()).collect();
        Self { embedding: None, final_norm: None, output: None, layers }
    }

    pub(crate) fn put_matrix(&mut self, slot: Slot, matrix: Matrix) {
        match slot {
            Slot::Embedding => self.embedding = Some(matrix),
            Slot::Output => self.output = Some(matrix),
            Slot::Layer(layer, part) => self.layers[layer].matrices.push((part, matrix)),
            Slot::FinalNorm => unreachable!("a norm is a vector"),
        }
    }

    pub(crate) fn put_vector(&mut self, slot: Slot, vector: Vec<f32>) {
        match slot {
            Slot::FinalNorm => self.final_norm = Some(vector),
            Slot::Layer(layer, part) => self.layers[layer].vectors.push((part, vector)),
            Slot::Embedding | Slot::Output => unreachable!("a table is a matrix"),
        }
    }

    /// Panics unless every weight of the plan was put.
    pub(crate) fn finish(self) -> Weights {
        Weights {
            embedding: self.embedding.expect("the plan calls for it"),
            final_norm: self.final_norm.expect("the plan calls for it"),
            output: self.output,
            layers: self.layers.into_iter().map(PlacedLayer::finish).collect(),
        }
    }
}

impl PlacedLayer {
    fn matrix(&mut self, part: Part) -> Matrix {
        let at = self.matrices.iter().position(|(found, _)| *found == part).expect("the plan calls for it");
        self.matrices.swap_remove(at).1
    }

    fn vector(&mut self, part: Part) -> Option<Vec<f32>> {
        let at = self.vectors.iter().position(|(found, _)| *found == part)?;
        Some(self.vectors.swap_remove(at).1)
    }

    fn finish(mut self) -> LayerWeights {
        LayerWeights {
            attention_norm: self.vector(Part::AttentionNorm).expect("the plan calls for it"),
            query: self.matrix(Part::Query),
            key: self.matrix(Part::Key),
            value: self.matrix(Part::Value),
            query_bias: self.vector(Part::QueryBias),
            key_bias: self.vector(Part::KeyBias),
            value_bias: self.vector(Part::ValueBias),
            query_norm: self.vector(Part::QueryNorm),
            key_norm: self.vector(Part::KeyNorm),
            output: self.matrix(Part::Output),
            output_bias: self.vector(Part::OutputBias),
            mlp_norm: self.vector(Part::MlpNorm).expect("the plan calls for it"),
            gate: self.matrix(Part::Gate),
            up: self.matrix(Part::Up),
            down: self.matrix(Part::Down),
            gate_bias: self.vector(Part::GateBias),
            up_bias: self.vector(Part::UpBias),
            down_bias: self.vector(Part::DownBias),
        }
    }
}
