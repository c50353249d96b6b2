//! Products: with one weight, with several that share their inputs, and the gated pair of a feed-forward layer.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use stellate_kernels::*;

use crate::peaks::{Bound, MEMORY_BYTES};
use crate::report::Report;
use crate::{MANY_ROWS, Set, Sets, rivals, values};

/// Rows of a weight that differ; the others repeat them.
const OWN_ROWS: usize = 64;

/// What is multiplied: weights of as many outputs, with numbers of input rows.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) operation: &'static str,
    /// Outputs of each weight.
    pub(crate) outputs: &'static [usize],
    pub(crate) cols: usize,
    sizes: &'static [usize],
}

/// Square weights, and the others of a decoder of width 2048.
const CASES: [Case; 4] = [
    Case { operation: "matmul", outputs: &[2048], cols: 2048, sizes: &[1, 4, 16, 64, 512] },
    Case { operation: "matmul", outputs: &[4096], cols: 4096, sizes: &[1, 4, 16, 64, 512] },
    Case { operation: "matmuls", outputs: &[2048, 512, 512], cols: 2048, sizes: &[1, 64, 512] },
    Case { operation: "gated", outputs: &[8192, 8192], cols: 2048, sizes: &[1, 64, 512] },
];

impl Case {
    /// Multiplies `x` `[m, cols]`; the second of two outputs is scratch.
    fn run(&self, backend: &dyn Backend, x: &[f32], weights: &[Matrix], outs: &mut [Vec<f32>]) {
        match (weights, outs) {
            ([weight], [out]) => backend.matmul(x, weight, out),
            ([gate, up], [out, scratch]) => backend.gated(x, gate, up, out, scratch),
            ([q, k, v], [q_out, k_out, v_out]) => {
                let product = |weight, out| Product { weight, out };
                backend.matmuls(x, &mut [product(q, q_out), product(k, k_out), product(v, v_out)]);
            }
            _ => unreachable!("one weight, a pair or three"),
        }
    }

    fn name(&self, format: WeightFormat, m: usize) -> String {
        let outputs: Vec<String> = self.outputs.iter().map(usize::to_string).collect();
        format!("{} {format} m={m} {}x{}", self.operation, outputs.join("+"), self.cols)
    }

    /// What bounds a product with `m` rows, and its bytes or operations.
    fn work(&self, set: Set<'_>, format: WeightFormat, m: usize) -> (Bound, f64) {
        let rows: usize = self.outputs.iter().sum();
        match m {
            1 => (Bound::Memory, self.bytes(format) as f64),
            _ => (set.arithmetic(format == WeightFormat::F32), 2.0 * (m * rows * self.cols) as f64),
        }
    }

    fn bytes(&self, format: WeightFormat) -> usize {
        self.outputs.iter().map(|rows| format.bytes_for(*rows, self.cols)).sum()
    }

    /// Copies of the weights, so that no cache holds what a decoder would stream.
    pub(crate) fn copies(&self, format: WeightFormat) -> usize {
        (MEMORY_BYTES / self.bytes(format)).max(1)
    }
}

pub(crate) fn ggml_type(format: WeightFormat) -> Option<GgmlDType> {
    match format {
        WeightFormat::F32 | WeightFormat::Bf16 => None,
        WeightFormat::Q8_0 => Some(GgmlDType::Q8_0),
        WeightFormat::Q4K => Some(GgmlDType::Q4K),
        WeightFormat::Q6K => Some(GgmlDType::Q6K),
    }
}

/// The blocks of a quantised weight of `outputs` rows, as they come from files.
pub(crate) fn raw_blocks(dtype: GgmlDType, outputs: usize, cols: usize) -> Vec<u8> {
    let tensor =
        Tensor::from_vec(values(OWN_ROWS * cols), (OWN_ROWS, cols), &Device::Cpu).expect("some rows");
    let quantised = QTensor::quantize(&tensor, dtype).expect("whole blocks");
    quantised.data().expect("blocks in memory").repeat(outputs / OWN_ROWS)
}

fn weight(format: WeightFormat, outputs: usize, cols: usize) -> impl Fn() -> Matrix {
    let (rows, raw) =
        (values(OWN_ROWS * cols), ggml_type(format).map(|dtype| raw_blocks(dtype, outputs, cols)));
    move || {
        let mut builder = Matrix::builder(format, outputs, cols).expect("a weight of this size");
        match &raw {
            Some(raw) => builder.push_raw(raw).expect("whole rows"),
            None => (0..outputs / OWN_ROWS).for_each(|_| builder.push_rows(&rows)),
        }
        builder.finish().expect("all rows")
    }
}

pub(crate) fn all(sets: &Sets<'_>, report: &mut Report) {
    for case in CASES {
        for format in WeightFormat::ALL {
            let sizes: Vec<usize> =
                case.sizes.iter().copied().filter(|m| report.wants(&case.name(format, *m))).collect();
            if !sizes.is_empty() {
                sized(case, format, &sizes, sets, report);
            }
        }
    }
}

fn sized(case: Case, format: WeightFormat, sizes: &[usize], sets: &Sets<'_>, report: &mut Report) {
    let copies = case.copies(format);
    let makers: Vec<_> = case.outputs.iter().map(|outputs| weight(format, *outputs, case.cols)).collect();
    let weights: Vec<Vec<Matrix>> = (0..copies).map(|_| makers.iter().map(|make| make()).collect()).collect();
    for &m in sizes {
        let (name, x) = (case.name(format, m), values(m * case.cols));
        let mut outs: Vec<Vec<f32>> = case.outputs.iter().map(|outputs| vec![0.0; m * outputs]).collect();
        let both = match format {
            WeightFormat::F32 => false,
            WeightFormat::Bf16 => m == 1 || m >= MANY_ROWS,
            WeightFormat::Q8_0 | WeightFormat::Q4K | WeightFormat::Q6K => m >= MANY_ROWS,
        };
        for set in sets.those(both) {
            let ((bound, work), mut turn) = (case.work(set, format, m), 0);
            report.time(&name, set, bound, work, || {
                turn += 1;
                case.run(set.backend, &x, &weights[turn % copies], &mut outs);
            });
        }
        let ((bound, work), threads) = (case.work(sets.answers, format, m), report.threads());
        report.beside(&name, bound, work, move || rivals::products(case, format, m, threads));
    }
}
