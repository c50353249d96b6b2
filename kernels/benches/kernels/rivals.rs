//! The same work done by candle and by the `gemm` crate, for the figures beside ours.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use half::bf16;
use stellate_kernels::{KvFormat, WeightFormat};

/// A repeated call, and the share of our work that it does.
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    pub(crate) share: f64,
    pub(crate) call: Box<dyn FnMut()>,
}

/// Causal attention over more tokens takes candle many seconds: it is timed over these, at the same rate.
const MOST_TOKENS: usize = 1024;

fn tensor(shape: &[usize], dtype: DType) -> Tensor {
    let values = crate::values(shape.iter().product());
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape says");
    tensor.to_dtype(dtype).expect("a format of candle's")
}

/// candle's product, and the `gemm` crate's in f32.
pub(crate) fn products(format: WeightFormat, m: usize, n: usize, threads: usize) -> Vec<Rival> {
    let dtype = if format == WeightFormat::Bf16 { DType::BF16 } else { DType::F32 };
    let (x, weight) = (tensor(&[m, n], dtype), tensor(&[n, n], dtype));
    let quantised = match format {
        WeightFormat::F32 | WeightFormat::Bf16 => None,
        WeightFormat::Q8_0 => Some(GgmlDType::Q8_0),
        WeightFormat::Q4K => Some(GgmlDType::Q4K),
        WeightFormat::Q6K => Some(GgmlDType::Q6K),
    };
    let call: Box<dyn FnMut()> = match quantised {
        Some(dtype) => {
            let weight = QTensor::quantize(&weight, dtype).and_then(QMatMul::from_qtensor);
            let weight = weight.expect("whole blocks");
            Box::new(move || drop(weight.forward(&x).expect("a product")))
        }
        None => {
            let weight = weight.t().expect("two dimensions");
            Box::new(move || drop(x.matmul(&weight).expect("a product")))
        }
    };
    let mut rivals = vec![Rival { name: "candle", share: 1.0, call }];
    if format == WeightFormat::F32 {
        rivals.push(Rival { name: "gemm", share: 1.0, call: gemm_f32(m, n, threads) });
    }
    rivals
}

fn gemm_f32(m: usize, n: usize, threads: usize) -> Box<dyn FnMut()> {
    let (x, weight, mut out) = (crate::values(m * n), crate::values(n * n), vec![0f32; m * n]);
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    let side = n as isize;
    Box::new(move || {
        // SAFETY: `out` and `x` are [m, n] and `weight` [n, n] by these strides (column, then row), row-major; the
        // weight is stored by inputs, the layout that suits the crate best.
        unsafe {
            gemm::gemm(
                m,
                n,
                n,
                out.as_mut_ptr(),
                1,
                side,
                false,
                x.as_ptr(),
                1,
                side,
                weight.as_ptr(),
                1,
                side,
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

/// candle's attention in the same number format, and in bf16 beside ours in 8 bits; `None` where there is nothing to compare.
pub(crate) fn attention(
    format: KvFormat,
    [heads, kv_heads, head_dim]: [usize; 3],
    tokens: usize,
    keys: usize,
) -> Option<Rival> {
    let dtype = match format {
        KvFormat::F32 => DType::F32,
        KvFormat::Bf16 | KvFormat::Q8 => DType::BF16,
    };
    let (used, used_keys) =
        if tokens > MOST_TOKENS { (MOST_TOKENS, keys - tokens + MOST_TOKENS) } else { (tokens, keys) };
    let seen = |tokens: usize, keys: usize| (0..tokens).map(|token| keys - tokens + token + 1).sum::<usize>();
    let q = tensor(&[1, used, heads, head_dim], dtype);
    let k = tensor(&[1, used_keys, kv_heads, head_dim], dtype);
    let v = k.copy().ok()?;
    let scale = (head_dim as f32).sqrt().recip();
    let mask = AttnMask::causal_with_offset(used_keys - used);
    let call: Box<dyn FnMut()> = match format {
        KvFormat::F32 => Box::new(move || {
            drop(flash_attn::<f32>(&q, &k, &v, scale, mask.clone(), None, None).expect("attention"));
        }),
        KvFormat::Bf16 | KvFormat::Q8 => Box::new(move || {
            drop(flash_attn::<bf16>(&q, &k, &v, scale, mask.clone(), None, None).expect("attention"));
        }),
    };
    let share = seen(used, used_keys) as f64 / seen(tokens, keys) as f64;
    Some(Rival { name: "candle", share, call })
}
