//! Quantised products agree with candle's own on the same blocks, and raw bytes with converted values.

mod common;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use common::{assert_close, backends, bits, matrix, random};
use stellate_kernels::*;

const FORMATS: [(WeightFormat, GgmlDType); 3] = [
    (WeightFormat::Q8_0, GgmlDType::Q8_0),
    (WeightFormat::Q4K, GgmlDType::Q4K),
    (WeightFormat::Q6K, GgmlDType::Q6K),
];

#[test]
fn quantised_products_agree_with_candle() {
    let (rows, cols) = (70, 512);
    for (format, dtype) in FORMATS {
        let values = random(rows * cols, 1);
        let tensor = Tensor::from_vec(values.clone(), (rows, cols), &Device::Cpu).unwrap();
        let quantised = QTensor::quantize(&tensor, dtype).unwrap();
        let raw = quantised.data().unwrap().into_owned();
        let mut builder = Matrix::builder(format, rows, cols).unwrap();
        builder.push_raw(&raw[..raw.len() / rows * 3]).unwrap();
        builder.push_raw(&raw[raw.len() / rows * 3..]).unwrap();
        let weight = builder.finish().unwrap();
        let converted = matrix(format, rows, cols, &values);
        let candle = QMatMul::from_qtensor(quantised).unwrap();
        for m in [1, 3, 20] {
            let x = random(m * cols, 2);
            let product =
                candle.forward(&Tensor::from_vec(x.clone(), (m, cols), &Device::Cpu).unwrap()).unwrap();
            let wanted: Vec<f32> = product.flatten_all().unwrap().to_vec1().unwrap();
            for backend in backends() {
                let (mut given, mut same) = (vec![0.0; m * rows], vec![0.0; m * rows]);
                backend.matmul(&x, &weight, &mut given);
                assert_close(&format!("{format} {m} {}", backend.name()), &wanted, &given, 1e-4);
                backend.matmul(&x, &converted, &mut same);
                assert_eq!(bits(&given), bits(&same), "{format}: raw blocks and converted rows");
            }
        }
    }
}
