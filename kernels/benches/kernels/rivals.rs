//! The same work done by candle and by the `gemm` crate, for the figures beside ours.

use std::borrow::Cow;

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use half::bf16;
use stellate_kernels::{KvFormat, WeightFormat};

use crate::products::{Case, ggml_type, raw_blocks};
use crate::{MANY_ROWS, values};

/// A repeated call, and the share of our work that it does.
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    pub(crate) share: f64,
    /// Calls until all that is read was read once: weights are repacked the first time.
    pub(crate) copies: usize,
    pub(crate) call: Box<dyn FnMut()>,
}

/// Causal attention over more tokens takes candle many seconds: it is timed over these, at the same rate.
const MOST_TOKENS: usize = 1024;

fn tensor(shape: &[usize], dtype: DType) -> Tensor {
    let values = values(shape.iter().product());
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape says");
    tensor.to_dtype(dtype).expect("a format of candle's")
}

/// candle, doing all of our work.
fn candle(mut call: impl FnMut() -> Result<Tensor> + 'static) -> Vec<Rival> {
    let call = Box::new(move || drop(call().expect("an operation of candle's")));
    vec![Rival { name: "candle", share: 1.0, copies: 1, call }]
}

/// candle's products, and the `gemm` crate's in f32. They have as many copies of the weights as ours.
pub(crate) fn products(case: Case, format: WeightFormat, m: usize, threads: usize) -> Vec<Rival> {
    let dtype = if format == WeightFormat::Bf16 { DType::BF16 } else { DType::F32 };
    let x = tensor(&[m, case.cols], dtype);
    // With many rows all arithmetic is done on what the caches hold.
    let copies = if m < MANY_ROWS { case.copies(format) } else { 1 };
    let weights: Vec<Vec<QMatMul>> = (0..copies)
        .map(|_| case.outputs.iter().map(|outputs| weight(format, *outputs, case.cols)).collect())
        .collect();
    let mut turn = 0;
    let mut rivals = candle(move || {
        turn += 1;
        let products = weights[turn % copies].iter().map(|weight| weight.forward(&x));
        let products = products.collect::<Result<Vec<_>>>()?;
        match &products[..] {
            [gate, up] => gate.silu()? * up,
            _ => Ok(products[0].clone()),
        }
    });
    rivals[0].copies = copies;
    if let (WeightFormat::F32, [outputs]) = (format, case.outputs) {
        let call = gemm_f32(m, *outputs, case.cols, copies, threads);
        rivals.push(Rival { name: "gemm", share: 1.0, copies, call });
    }
    rivals
}

fn weight(format: WeightFormat, outputs: usize, cols: usize) -> QMatMul {
    match ggml_type(format) {
        Some(dtype) => {
            let raw = Cow::Owned(raw_blocks(dtype, outputs, cols));
            let storage = QStorage::from_data(raw, &Device::Cpu, dtype).expect("blocks");
            let weight = QTensor::new(storage, (outputs, cols)).and_then(QMatMul::from_qtensor);
            weight.expect("whole blocks")
        }
        None => {
            let dtype = if format == WeightFormat::Bf16 { DType::BF16 } else { DType::F32 };
            QMatMul::Tensor(tensor(&[outputs, cols], dtype))
        }
    }
}

fn gemm_f32(m: usize, outputs: usize, cols: usize, copies: usize, threads: usize) -> Box<dyn FnMut()> {
    let (x, mut out) = (values(m * cols), vec![0f32; m * outputs]);
    let (weight, mut turn) = (values(copies * outputs * cols), 0);
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    Box::new(move || {
        turn += 1;
        let weight = &weight[turn % copies * outputs * cols..][..outputs * cols];
        // SAFETY: `out` is [m, outputs], `x` [m, cols] and `weight` [cols, outputs] by these strides (column, then row),
        // row-major: the weight is stored by inputs, the layout that suits the crate best.
        unsafe {
            gemm::gemm(
                m,
                outputs,
                cols,
                out.as_mut_ptr(),
                1,
                outputs as isize,
                false,
                x.as_ptr(),
                1,
                cols as isize,
                weight.as_ptr(),
                1,
                outputs as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            )
        }
    })
}

/// candle's attention in the same number format, and in bf16 beside ours in 8 bits.
pub(crate) fn attention(
    format: KvFormat,
    [heads, kv_heads, head_dim]: [usize; 3],
    tokens: usize,
    keys: usize,
) -> Vec<Rival> {
    let dtype = match format {
        KvFormat::F32 => DType::F32,
        KvFormat::Bf16 | KvFormat::Q8 => DType::BF16,
    };
    let (used, used_keys) =
        if tokens > MOST_TOKENS { (MOST_TOKENS, keys - tokens + MOST_TOKENS) } else { (tokens, keys) };
    let seen = |tokens: usize, keys: usize| (0..tokens).map(|token| keys - tokens + token + 1).sum::<usize>();
    let q = tensor(&[1, used, heads, head_dim], dtype);
    let k = tensor(&[1, used_keys, kv_heads, head_dim], dtype);
    let v = k.copy().expect("memory for values");
    let scale = (head_dim as f32).sqrt().recip();
    let mask = AttnMask::causal_with_offset(used_keys - used);
    let mut rivals = candle(move || match format {
        KvFormat::F32 => flash_attn::<f32>(&q, &k, &v, scale, mask.clone(), None, None),
        KvFormat::Bf16 | KvFormat::Q8 => flash_attn::<bf16>(&q, &k, &v, scale, mask.clone(), None, None),
    });
    rivals[0].share = seen(used, used_keys) as f64 / seen(tokens, keys) as f64;
    rivals
}

/// `rms_norm` of rows, after adding others to them where `adds`.
pub(crate) fn rms_norm(rows: usize, cols: usize, adds: bool) -> Vec<Rival> {
    let (x, y) = (tensor(&[rows, cols], DType::F32), tensor(&[rows, cols], DType::F32));
    let weight = tensor(&[cols], DType::F32);
    candle(move || {
        let sum = if adds { (&x + &y)? } else { x.clone() };
        candle_nn::ops::rms_norm(&sum, &weight, 1e-5)
    })
}

/// The sum of rows with as many others, or with one for all.
pub(crate) fn add(rows: usize, cols: usize, others: usize) -> Vec<Rival> {
    let (x, y) = (tensor(&[rows, cols], DType::F32), tensor(&[others, cols], DType::F32));
    candle(move || x.broadcast_add(&y))
}

pub(crate) fn swiglu(rows: usize, cols: usize) -> Vec<Rival> {
    let (gate, up) = (tensor(&[rows, cols], DType::F32), tensor(&[rows, cols], DType::F32));
    candle(move || gate.silu()? * &up)
}

pub(crate) fn rope(tokens: usize, heads: usize, head_dim: usize) -> Vec<Rival> {
    let x = tensor(&[1, tokens, heads, head_dim], DType::F32);
    let angles = tensor(&[tokens, head_dim / 2], DType::F32);
    candle(move || candle_nn::rotary_emb::rope_thd(&x, &angles, &angles))
}

/// Rows of a table in bf16, widened.
pub(crate) fn embed(vocabulary: usize, cols: usize, ids: Vec<u32>) -> Vec<Rival> {
    let table = tensor(&[vocabulary, cols], DType::BF16);
    let ids = Tensor::new(ids, &Device::Cpu).expect("a list of ids");
    candle(move || table.index_select(&ids, 0)?.to_dtype(DType::F32))
}
