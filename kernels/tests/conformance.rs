//! One table of shapes over which every implementation must agree with the reference: all instruction sets of
//! this machine, all KV formats, all weight formats, one and three threads.

mod common;

use common::{assert_close, backends, bits, kv, matrix, random, rounded, rounds};
use stellate_kernels::*;

struct AttentionCase {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    /// Keys of each span, and what is visible of it.
    spans: &'static [(usize, Visible)],
}

const fn case(tokens: usize, heads: [usize; 3], spans: &'static [(usize, Visible)]) -> AttentionCase {
    let [heads, kv_heads, head_dim] = heads;
    AttentionCase { tokens, heads, kv_heads, head_dim, scale: 0.125, spans }
}

const fn causal(offset: i64) -> Visible {
    Visible::Causal { offset }
}

/// Blocks of few keys, the first of none.
const SHORT_SPANS: [(usize, Visible); 48] = {
    let mut spans = [(0, Visible::All); 48];
    let mut index = 0;
    while index < spans.len() {
        spans[index].0 = index * 37 % 101;
        index += 1;
    }
    spans
};

const ATTENTION: &[AttentionCase] = &[
    // Nothing to do.
    case(0, [4, 2, 16], &[(5, Visible::All)]),
    case(3, [4, 2, 16], &[]),
    case(3, [4, 2, 16], &[(0, Visible::All)]),
    case(2, [2, 1, 8], &[(9, causal(-100))]),
    // One query, one key, one head.
    case(1, [1, 1, 8], &[(1, Visible::All)]),
    // Offsets that hide keys from some tokens, from all, or reach past the keys.
    case(5, [4, 2, 16], &[(9, causal(-3))]),
    case(5, [4, 2, 24], &[(9, causal(2)), (7, causal(100)), (3, Visible::All)]),
    // Keys around the edges of tiles and segments; every ratio of heads.
    case(7, [6, 1, 40], &[(63, Visible::All), (64, causal(60)), (65, causal(58))]),
    case(1, [8, 8, 64], &[(1024, Visible::All), (1025, causal(1023))]),
    case(1, [8, 2, 128], &[(3 * 1024 + 77, causal(3 * 1024 + 76)), (1, Visible::All)]),
    case(3, [14, 2, 64], &[(2100, causal(2097))]),
    // Many rows: prefill, alone and behind an anchor.
    case(70, [8, 2, 64], &[(300, Visible::All), (70, causal(0))]),
    case(130, [4, 4, 80], &[(130, causal(0))]),
    case(40, [12, 4, 96], &[(1200, causal(1160))]),
    case(33, [3, 1, 256], &[(90, causal(57))]),
    case(50, [2, 1, 200], &[(1030, Visible::All)]),
    // Dimensions that are no multiple of a register.
    case(9, [4, 4, 12], &[(150, causal(141)), (5, Visible::All)]),
    case(1, [4, 2, 30], &[(1100, Visible::All)]),
    // As above in whole AMX strips, and with rows that see nothing of a tile.
    case(70, [4, 1, 128], &[(1100, causal(1000)), (150, causal(40))]),
    case(11, [12, 2, 64], &[(1027, causal(1016))]),
    // Many short spans, with so many rows that not all of their partials wait for each other.
    case(1, [8, 2, 64], &SHORT_SPANS),
    case(24, [8, 2, 256], &SHORT_SPANS),
    // Scores of thousands, where all weight falls on a few keys.
    AttentionCase { scale: 256.0, ..case(20, [4, 2, 64], &[(200, causal(180))]) },
];

#[test]
fn attention_agrees_with_the_reference() {
    let backends = backends();
    for (index, case) in ATTENTION.iter().enumerate() {
        for format in KvFormat::ALL {
            let seed = 100 + index as u64;
            let shape = PartialShape { tokens: case.tokens, heads: case.heads, head_dim: case.head_dim };
            // Scales are powers of two, so that scaled queries are bf16 numbers too.
            let data = rounded(&random(shape.rows() * shape.head_dim, seed));
            let AttentionCase { tokens, heads, head_dim, scale, .. } = *case;
            let q = Queries { data: &data, tokens, heads, head_dim, scale };
            let blocks: Vec<KvBlock> =
                case.spans.iter().map(|(keys, _)| kv(case.kv_heads, head_dim, format, *keys, seed)).collect();
            let spans: Vec<KvSpan<'_>> = blocks
                .iter()
                .zip(case.spans)
                .map(|(block, (keys, visible))| KvSpan { keys: block.view(0, *keys), visible: *visible })
                .collect();
            let mut wanted = Partial::empty(shape);
            Reference.attend(q, &spans, &mut wanted);
            for backend in &backends {
                let mut given = Partial::empty(shape);
                backend.attend(q, &spans, &mut given);
                let what = format!("case {index} (seed {seed}), {format}, {}", backend.name());
                // Rounding of scores in f32 moves the weights where scores are large.
                let tolerance = if scale > 1.0 { 2e-3 } else { 1e-5 };
                assert_close(&format!("{what}: lse"), &wanted.lse, &given.lse, tolerance);
                // Weights are rounded too; the values are below 1.
                let rounding = if format != KvFormat::F32 && rounds(backend) { 4e-3 } else { 0.0 };
                assert_close(&format!("{what}: out"), &wanted.out, &given.out, tolerance + rounding);
                assert!(
                    given == over_stale_outputs(backend, q, &spans, shape),
                    "{what}: not a blank partial's"
                );
            }
            assert!(
                wanted == over_stale_outputs(&Reference, q, &spans, shape),
                "case {index}: the reference"
            );
        }
    }
}

/// The attention in place of what a partial held before.
fn over_stale_outputs(
    backend: &dyn Backend,
    q: Queries<'_>,
    spans: &[KvSpan<'_>],
    shape: PartialShape,
) -> Partial {
    let mut partial = Partial::empty(shape);
    partial.out.fill(f32::NAN);
    partial.lse.fill(1.0);
    partial.reset(shape);
    backend.attend(q, spans, &mut partial);
    partial
}

/// `(m, rows, cols)`
const PRODUCTS: &[(usize, usize, usize)] = &[
    (0, 8, 16),
    (1, 1, 1),
    (1, 64, 64),
    (1, 65, 127),
    (2, 130, 33),
    (5, 63, 129),
    (7, 64, 300),
    (13, 200, 257),
    (64, 128, 512),
    (200, 100, 131),
    (1, 1000, 512),
];

/// How far the products of `cols` values below 1 may be off, by an error that grows with the sum's root: that of f32, or where
/// quantised weights and what they meet are rounded to bf16, that of 2⁻⁹ twice.
fn tolerance(format: WeightFormat, backend: &Cpu, cols: usize) -> f32 {
    let each = if format.block_len() > 1 && rounds(backend) { 0.005 } else { 2e-6 };
    each * (cols as f32).sqrt()
}

#[test]
fn products_agree_with_the_reference() {
    let backends = backends();
    for &(m, rows, cols) in PRODUCTS {
        for format in WeightFormat::ALL {
            let cols = cols.next_multiple_of(format.block_len());
            let weight = matrix(format, rows, cols, &random(rows * cols, 7));
            // Weights in bf16 may meet inputs in bf16. Quantised ones lose bits there too, whatever the inputs are.
            let x = if format.block_len() > 1 { random(m * cols, 8) } else { rounded(&random(m * cols, 8)) };
            let mut wanted = vec![0.0; m * rows];
            Reference.matmul(&x, &weight, &mut wanted);
            for backend in &backends {
                let mut given = vec![f32::NAN; m * rows];
                backend.matmul(&x, &weight, &mut given);
                let what = format!("{m} x {rows} x {cols} {format} {}", backend.name());
                assert_close(&what, &wanted, &given, tolerance(format, backend, cols));
            }
        }
    }
}

/// Inputs in several blocks, packed in two parts.
#[test]
fn large_products_agree_with_the_reference() {
    let (m, rows, cols) = (790, 70, 700);
    let x = rounded(&random(m * cols, 8));
    for format in [WeightFormat::F32, WeightFormat::Bf16] {
        let weight = matrix(format, rows, cols, &random(rows * cols, 7));
        let mut wanted = vec![0.0; m * rows];
        Reference.matmul(&x, &weight, &mut wanted);
        for backend in backends() {
            let mut given = vec![f32::NAN; m * rows];
            backend.matmul(&x, &weight, &mut given);
            let what = format!("{format} {}", backend.name());
            assert_close(&what, &wanted, &given, tolerance(format, &backend, cols));
        }
    }
}

/// Inputs in two parts, and items of several panels, the last of which is not whole.
#[test]
fn large_quantised_products_agree_with_the_reference() {
    let (m, rows, cols) = (560, 1782, 512);
    let x = random(m * cols, 8);
    // The reference is slow: it is asked around the edges of strips, tiles and parts.
    let checked = [0, 5, 6, 15, 16, 279, 280, 287, 288, 289, m - 1];
    let picked = |values: &[f32], width: usize| -> Vec<f32> {
        checked.iter().flat_map(|row| &values[row * width..][..width]).copied().collect()
    };
    for format in WeightFormat::ALL.into_iter().filter(|format| format.block_len() > 1) {
        let weight = matrix(format, rows, cols, &random(rows * cols, 7));
        let mut wanted = vec![0.0; checked.len() * rows];
        Reference.matmul(&picked(&x, cols), &weight, &mut wanted);
        for backend in backends() {
            let mut given = vec![f32::NAN; m * rows];
            backend.matmul(&x, &weight, &mut given);
            let what = format!("{format} {}", backend.name());
            assert!(given.iter().all(|value| value.is_finite()), "{what}: every product is written");
            assert_close(&what, &wanted, &picked(&given, rows), tolerance(format, &backend, cols));
        }
    }
}

/// What the trait's own composition of plain operations gives, on whatever computes those.
#[derive(Debug)]
struct Composed<'a>(&'a dyn Backend);

impl Backend for Composed<'_> {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn encoding(&self) -> &dyn Backend {
        self
    }
    fn attend(&self, q: Queries<'_>, spans: &[KvSpan<'_>], out: &mut Partial) {
        self.0.attend(q, spans, out);
    }
    fn matmul(&self, x: &[f32], weight: &Matrix, out: &mut [f32]) {
        self.0.matmul(x, weight, out);
    }
    fn add_bias(&self, x: &mut [f32], bias: &[f32]) {
        self.0.add_bias(x, bias);
    }
    fn add(&self, x: &mut [f32], y: &[f32]) {
        self.0.add(x, y);
    }
    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.0.rms_norm(x, weight, eps, out);
    }
    fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        self.0.swiglu(gate, up);
    }
    fn rope(&self, x: &mut [f32], heads: usize, angles: &RopeAngles) {
        self.0.rope(x, heads, angles);
    }
}

#[test]
fn fused_products_give_the_bits_of_their_parts() {
    for backend in backends() {
        let composed = Composed(&backend);
        let shapes =
            [(0, 64, 32usize), (1, 64, 64), (1, 130, 33), (5, 63, 129), (70, 200, 131), (540, 500, 256)];
        for (m, rows, cols) in shapes {
            for format in WeightFormat::ALL {
                let cols = cols.next_multiple_of(format.block_len());
                let [a, b] = [5, 6].map(|seed| matrix(format, rows, cols, &random(rows * cols, seed)));
                let third = matrix(WeightFormat::Bf16, rows / 2, cols, &random(rows / 2 * cols, 7));
                let x = random(m * cols, 8);
                let run = |backend: &dyn Backend| {
                    let mut outs = [rows, rows, rows / 2].map(|rows| vec![f32::NAN; m * rows]);
                    let [first, second, last] = &mut outs;
                    let product = |weight, out| Product { weight, out };
                    backend
                        .matmuls(&x, &mut [product(&a, first), product(&b, second), product(&third, last)]);
                    let mut gated = vec![f32::NAN; m * rows];
                    backend.gated(&x, &a, &b, &mut gated, &mut Vec::new());
                    (outs.map(|out| bits(&out)), bits(&gated))
                };
                assert!(run(&composed) == run(&backend), "{m} x {rows} x {cols} {format} {}", backend.name());
            }
        }
    }
}

#[test]
fn keys_and_values_are_packed_to_the_bits_of_the_plain_way() {
    for backend in backends() {
        for (kv_heads, head_dim) in [(1, 2), (3, 64), (2, 30), (8, 128), (2, 200)] {
            for format in KvFormat::ALL {
                let shape = KvShape { layers: 2, kv_heads, head_dim, format };
                let (mut wanted, mut given) = (KvBlock::new(shape, 300), KvBlock::new(shape, 300));
                for (at, tokens) in [(0, 1), (1, 1), (2, 0), (2, 61), (63, 150), (213, 5), (219, 81), (60, 7)]
                {
                    let row = kv_heads * head_dim;
                    let (mut k, mut v) = (random(tokens * row, 1 + at as u64), random(tokens * row, 2));
                    // What is too small, too large, and no number.
                    k.iter_mut().step_by(41).for_each(|value| *value *= 1e-41);
                    v.iter_mut().step_by(37).for_each(|value| *value *= f32::MAX);
                    v.iter_mut().skip(row / 2).step_by(501).for_each(|value| *value = f32::NAN);
                    for layer in 0..2 {
                        wanted.write(layer, at, &k, &v);
                        backend.write(&mut given, layer, at, &k, &v);
                    }
                }
                for layer in 0..2 {
                    let (wanted, given) = (wanted.read(layer, 0, 300), given.read(layer, 0, 300));
                    let same = bits(&wanted.0) == bits(&given.0) && bits(&wanted.1) == bits(&given.1);
                    assert!(same, "{kv_heads} heads of {head_dim} in {format}, {}", backend.name());
                }
            }
        }
    }
}

#[test]
fn fused_row_operations_give_the_bits_of_their_parts() {
    for backend in backends() {
        let composed = Composed(&backend);
        for (m, n) in [(0, 8), (1, 1), (3, 7), (2, 16), (40, 1536), (300, 257)] {
            let what = format!("{m} x {n} {}", backend.name());
            let (x, y, weight) = (random(m * n, 1), random(m * n, 2), random(n, 3));
            let run = |backend: &dyn Backend| {
                let (mut x, mut out) = (x.clone(), vec![f32::NAN; m * n]);
                backend.add_rms_norm(&mut x, &y, &weight, 1e-5, &mut out);
                (bits(&x), bits(&out))
            };
            assert!(run(&composed) == run(&backend), "add_rms_norm {what}");
            let table = matrix(WeightFormat::Bf16, 70, n, &random(70 * n, 4));
            let ids: Vec<u32> = (0..m as u32).map(|token| token * 37 % 70).collect();
            let run = |backend: &dyn Backend| {
                let mut out = vec![f32::NAN; m * n];
                backend.embed(&table, &ids, &mut out);
                bits(&out)
            };
            assert!(run(&composed) == run(&backend), "embed {what}");
            let shape = PartialShape { tokens: m, heads: 2, head_dim: 8 };
            let partial = |seed| {
                let mut partial = Partial::empty(shape);
                partial.out = random(shape.rows() * 8, seed);
                partial.lse = random(shape.rows(), seed + 1);
                partial.lse.iter_mut().step_by(5).for_each(|lse| *lse = f32::NEG_INFINITY);
                partial
            };
            let run = |backend: &dyn Backend| {
                let mut merged = partial(1);
                backend.merge(&mut merged, &partial(9));
                (bits(&merged.out), bits(&merged.lse))
            };
            assert!(run(&composed) == run(&backend), "merge {what}");
        }
    }
}

#[test]
fn angles_kept_for_some_tokens_are_those_of_these_tokens() {
    let inv_freq = [1.0, 0.1, 0.01];
    let mut angles = RopeAngles::new(&inv_freq, 1.1, 10..20);
    angles.keep(3..7);
    assert_eq!(angles, RopeAngles::new(&inv_freq, 1.1, 13..17));
}

#[test]
fn row_operations_agree_with_the_reference() {
    for backend in backends() {
        for (m, n) in [(0, 8), (1, 1), (3, 7), (2, 16), (5, 100), (40, 1536), (300, 257)] {
            let what = format!("{m} x {n} {}", backend.name());
            let (x, y, weight) = (random(m * n, 1), random(m * n, 2), random(n, 3));
            let run = |operation: &dyn Fn(&dyn Backend, &mut [f32])| {
                let (mut wanted, mut given) = (x.clone(), x.clone());
                operation(&Reference, &mut wanted);
                operation(&backend, &mut given);
                (wanted, given)
            };
            let (wanted, given) = run(&|b, out| b.rms_norm(&x, &weight, 1e-5, out));
            assert_close(&format!("rms_norm {what}"), &wanted, &given, 1e-6);
            let (wanted, given) = run(&|b, out| {
                out.iter_mut().for_each(|value| *value *= 60.0);
                b.swiglu(out, &y);
            });
            assert_close(&format!("swiglu {what}"), &wanted, &given, 1e-6);
            let (wanted, given) = run(&|b, out| {
                b.add(out, &y);
                b.add_bias(out, &weight);
            });
            assert_close(&format!("add {what}"), &wanted, &given, 0.0);
        }
    }
}

#[test]
fn rotations_agree_with_the_reference_at_explicit_positions() {
    for (tokens, heads, half) in [(0, 2, 4), (1, 1, 4), (3, 5, 12), (150, 8, 64)] {
        let inv_freq: Vec<f32> = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
        let positions = (0..tokens as u32).map(|token| token * 37 + 100_000);
        let angles = RopeAngles::new(&inv_freq, 1.1, positions);
        assert_eq!(angles.tokens(), tokens);
        let mut wanted = random(tokens * heads * 2 * half, 4);
        let start = wanted.clone();
        Reference.rope(&mut wanted, heads, &angles);
        for backend in backends() {
            let mut given = start.clone();
            backend.rope(&mut given, heads, &angles);
            assert_close(&format!("rope {tokens} {heads} {half}"), &wanted, &given, 0.0);
        }
    }
}

#[test]
fn extreme_gates_stay_finite() {
    for backend in backends() {
        let mut gate = vec![-1e30, -1000.0, -88.5, -87.3, 0.0, 87.3, 88.5, 1000.0, 1e30];
        let ones = vec![1.0; gate.len()];
        let wanted = [0.0, 0.0, 0.0, 0.0, 0.0, 87.3, 88.5, 1000.0, 1e30];
        backend.swiglu(&mut gate[1..], &ones[1..]);
        assert_close(backend.name(), &wanted[1..], &gate[1..], 1e-6);
        backend.swiglu(&mut gate[..1], &ones[..1]);
        assert!(gate[0].abs() < 1e-6, "{}", gate[0]);
    }
}
