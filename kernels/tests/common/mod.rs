//! What the kernel tests share: seeded values, every backend that this machine can run, keys with hostile rests.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::print_stdout, reason = "a skipped part is said aloud")]

use stellate_kernels::*;

/// Uniform values in `-1..1`, the same for the same seed.
pub(crate) fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Whether `backend` multiplies bf16 in bf16.
pub(crate) fn rounds(backend: &Cpu) -> bool {
    ["cpu amx", "cpu avx512bf16"].iter().any(|name| backend.name().starts_with(name))
}

pub(crate) fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::with_isa(&CpuOptions { name: "test".into(), threads, cpus: vec![] }, isa).unwrap()
}

/// Every instruction set of this machine, with 1 and 3 threads.
pub(crate) fn backends() -> Vec<Cpu> {
    let missing = Isa::ALL.len() - Isa::available().len();
    if missing > 0 {
        println!("SKIPPED: {missing} of {} instruction sets, which this machine lacks", Isa::ALL.len());
    }
    Isa::available().into_iter().flat_map(|isa| [cpu(isa, 1), cpu(isa, 3)]).collect()
}

pub(crate) fn matrix(format: WeightFormat, rows: usize, cols: usize, values: &[f32]) -> Matrix {
    let mut builder = Matrix::builder(format, rows, cols).unwrap();
    builder.push_rows(values);
    builder.finish().unwrap()
}

/// One layer of random keys and values, followed by tokens of NaN that no view of `keys` keys may look at.
pub(crate) fn kv(kv_heads: usize, head_dim: usize, format: KvFormat, keys: usize, seed: u64) -> KvBlock {
    let shape = KvShape { layers: 1, kv_heads, head_dim, format };
    let mut block = KvBlock::new(shape, keys + 70);
    let row = kv_heads * head_dim;
    block.write(0, 0, &random(keys * row, seed), &random(keys * row, seed + 1));
    let stale = vec![f32::NAN; 70 * row];
    block.write(0, keys, &stale, &stale);
    block.set_len(keys);
    block
}

/// Rounded to bf16, as backends may round what meets weights or keys in bf16: inputs that stay what they are.
pub(crate) fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Panics unless all values agree to `tolerance`, relative to 1 or the value; `-inf` agrees with itself.
pub(crate) fn assert_close(what: &str, wanted: &[f32], given: &[f32], tolerance: f32) {
    assert_eq!(wanted.len(), given.len(), "{what}: lengths");
    for (at, (wanted, given)) in wanted.iter().zip(given).enumerate() {
        let close = wanted == given || (wanted - given).abs() <= tolerance * wanted.abs().max(1.0);
        assert!(close, "{what}: value {at} is {given}, not {wanted}");
    }
}
