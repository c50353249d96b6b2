//! One table of shapes over which every implementation must agree with the reference: all instruction sets of
//! this machine, both KV formats, all weight formats, one and three threads.

mod common;

use common::{assert_close, backends, kv, matrix, random, rounded, rounds};
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
    // Scores of thousands, where all weight falls on a few keys.
    AttentionCase { scale: 256.0, ..case(20, [4, 2, 64], &[(200, causal(180))]) },
];

#[test]
fn attention_agrees_with_the_reference() {
    let backends = backends();
    for (index, case) in ATTENTION.iter().enumerate() {
        for format in [KvFormat::F32, KvFormat::Bf16] {
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
                let rounding = if format == KvFormat::Bf16 && rounds(backend) { 4e-3 } else { 0.0 };
                assert_close(&format!("{what}: out"), &wanted.out, &given.out, tolerance + rounding);
            }
        }
    }
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

#[test]
fn products_agree_with_the_reference() {
    let backends = backends();
    for &(m, rows, cols) in PRODUCTS {
        for format in WeightFormat::ALL {
            let cols = cols.next_multiple_of(format.block_len());
            let weight = matrix(format, rows, cols, &random(rows * cols, 7));
            // Quantised products round their inputs themselves.
            let x = random(m * cols, 8);
            let x = if format.block_len() > 1 { x } else { rounded(&x) };
            let mut wanted = vec![0.0; m * rows];
            Reference.matmul(&x, &weight, &mut wanted);
            for backend in &backends {
                let mut given = vec![f32::NAN; m * rows];
                backend.matmul(&x, &weight, &mut given);
                // Quantised products round their inputs to 8 bits, an error that grows with the sum's root.
                let rounding = if format.block_len() > 1 { 0.005 } else { 2e-6 };
                let what = format!("{m} x {rows} x {cols} {format} {}", backend.name());
                assert_close(&what, &wanted, &given, rounding * (cols as f32).sqrt());
            }
        }
    }
}

/// Inputs in several blocks, packed in two parts; quantised formats have no such cuts.
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
            assert_close(&what, &wanted, &given, 2e-6 * (cols as f32).sqrt());
        }
    }
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
