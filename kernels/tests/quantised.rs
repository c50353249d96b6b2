//! Quantised weights hold the values that candle widens ggml's blocks to, and products with them are those of the
//! widened weights.

mod common;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use common::{assert_close, backends, bits, matrix, random, rounds};
use stellate_kernels::*;

const FORMATS: [(WeightFormat, GgmlDType); 3] = [
    (WeightFormat::Q8_0, GgmlDType::Q8_0),
    (WeightFormat::Q4K, GgmlDType::Q4K),
    (WeightFormat::Q6K, GgmlDType::Q6K),
];

/// More rows than a panel, and widths of one slice and of several.
const SHAPES: [(usize, usize); 2] = [(70, 256), (200, 1280)];

/// candle's blocks of `values`, and the weight that holds them, pushed in two pieces.
fn blocks(
    format: WeightFormat,
    dtype: GgmlDType,
    (rows, cols): (usize, usize),
    values: &[f32],
) -> (QTensor, Matrix) {
    let tensor = Tensor::from_slice(values, (rows, cols), &Device::Cpu).unwrap();
    let quantised = QTensor::quantize(&tensor, dtype).unwrap();
    let raw = quantised.data().unwrap().into_owned();
    let mut builder = Matrix::builder(format, rows, cols).unwrap();
    builder.push_raw(&raw[..raw.len() / rows * 3]).unwrap();
    builder.push_raw(&raw[raw.len() / rows * 3..]).unwrap();
    (quantised, builder.finish().unwrap())
}

fn widened(weight: &Matrix) -> Vec<f32> {
    let mut values = vec![0.0; weight.rows() * weight.cols()];
    for (index, row) in values.chunks_exact_mut(weight.cols()).enumerate() {
        weight.row(index, row);
    }
    values
}

#[test]
fn rows_have_the_bits_that_candle_widens_blocks_to() {
    for (format, dtype) in FORMATS {
        for shape in SHAPES {
            let values = random(shape.0 * shape.1, 1);
            let (candle, weight) = blocks(format, dtype, shape, &values);
            let wanted = candle.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            let wanted: Vec<f32> = wanted.to_vec1().unwrap();
            assert_eq!(bits(&wanted), bits(&widened(&weight)), "{format} {shape:?}");
            let converted = widened(&matrix(format, shape.0, shape.1, &values));
            assert_eq!(bits(&wanted), bits(&converted), "{format} {shape:?}, converted here");
        }
    }
}

#[test]
fn products_are_those_of_the_widened_weights_to_the_bit() {
    let few: &[usize] = &[1, 2, 3, 4, 5, 20, 150];
    // The last: two parts of the inputs, and several panels for each of three threads.
    let shapes = [(SHAPES[0], few), (SHAPES[1], few), ((1782, 512), &[560])];
    for (format, dtype) in FORMATS {
        for (shape, sizes) in shapes {
            let (rows, cols) = shape;
            let (_, weight) = blocks(format, dtype, shape, &random(rows * cols, 1));
            let widened = matrix(WeightFormat::F32, rows, cols, &widened(&weight));
            for &m in sizes {
                let x = random(m * cols, 2);
                for backend in backends() {
                    let (mut given, mut wanted) = (vec![0.0; m * rows], vec![0.0; m * rows]);
                    backend.matmul(&x, &weight, &mut given);
                    backend.matmul(&x, &widened, &mut wanted);
                    let what = format!("{format} {shape:?} {m} {}", backend.name());
                    if rounds(&backend) {
                        // Inputs and weights lose 16 of 24 bits; their errors mostly cancel.
                        let scale = (cols as f32).sqrt();
                        let scaled = |values: &[f32]| values.iter().map(|v| v / scale).collect::<Vec<_>>();
                        assert_close(&what, &scaled(&wanted), &scaled(&given), 1e-2);
                    } else {
                        assert_eq!(bits(&wanted), bits(&given), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn products_agree_with_candle_which_rounds_activations_to_eight_bits() {
    let (shape, m) = ((70, 512), 3);
    for (format, dtype) in FORMATS {
        let (candle, weight) = blocks(format, dtype, shape, &random(shape.0 * shape.1, 1));
        let x = random(m * shape.1, 2);
        let input = Tensor::from_slice(&x, (m, shape.1), &Device::Cpu).unwrap();
        let product = QMatMul::from_qtensor(candle).unwrap().forward(&input).unwrap();
        let wanted: Vec<f32> = product.flatten_all().unwrap().to_vec1().unwrap();
        for backend in backends() {
            let mut given = vec![0.0; m * shape.0];
            backend.matmul(&x, &weight, &mut given);
            // Products spread by 7; what candle rounds away of 512 inputs comes to 0.03 on average.
            assert_close(&format!("{format} {}", backend.name()), &wanted, &given, 0.2);
        }
    }
}

#[test]
fn weights_of_any_bits_are_widened_as_ggml_says() {
    for (format, dtype) in FORMATS {
        let (rows, cols) = (64, 256);
        let row_bytes = format.row_bytes(cols);
        // Every value of every byte, extreme scales among them; halves that are not finite are left out.
        let mut raw: Vec<u8> =
            random(rows * row_bytes, 9).iter().map(|value| ((value + 1.0) * 128.0) as u8).collect();
        let halves: &[usize] = match format {
            WeightFormat::Q8_0 => &[1, 35, 69, 103, 137, 171, 205, 239],
            WeightFormat::Q4K => &[1, 3],
            _ => &[209],
        };
        for row in raw.chunks_exact_mut(row_bytes) {
            for &high in halves {
                row[high] &= 0xbf;
            }
        }
        let mut builder = Matrix::builder(format, rows, cols).unwrap();
        builder.push_raw(&raw).unwrap();
        let weight = builder.finish().unwrap();
        let storage = candle_core::quantized::QStorage::from_data(raw.into(), &Device::Cpu, dtype).unwrap();
        let candle = QTensor::new(storage, (rows, cols)).unwrap();
        let wanted: Vec<f32> =
            candle.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let widened = widened(&weight);
        assert_eq!(bits(&wanted), bits(&widened), "{format}");
        // The unit vectors bring every weight out of the kernels alone.
        let mut x = vec![0.0; cols * cols];
        (0..cols).for_each(|col| x[col * cols + col] = 1.0);
        for backend in backends().into_iter().filter(|backend| !rounds(backend)) {
            let mut given = vec![0.0; cols * rows];
            for (x, given) in x.chunks(3 * cols).zip(given.chunks_mut(3 * rows)) {
                backend.matmul(x, &weight, given);
            }
            let mut at_once = vec![0.0; cols * rows];
            backend.matmul(&x, &weight, &mut at_once);
            for col in 0..cols {
                for row in 0..rows {
                    let (wanted, at) = (widened[row * cols + col], col * rows + row);
                    assert_eq!((wanted, wanted), (given[at], at_once[at]), "{format} {row} {col}");
                }
            }
        }
    }
}
