//! The contract of the crate's documentation: a row's bits do not depend on how many rows go along, on how
//! queries are chunked, or on the number of threads.

mod common;

use common::{bits, cpu, kv, matrix, random};
use stellate_kernels::*;

const TOKENS: usize = 40;
const HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const ROW: usize = HEADS * HEAD_DIM;
const SCALE: f32 = 0.125;

/// A long span, a short one and the tokens' own, as a query behind an anchor meets them.
const SPANS: [(usize, Visible); 3] =
    [(2500, Visible::All), (100, Visible::All), (1100, Visible::Causal { offset: 1060 })];

fn later(visible: Visible, tokens: usize) -> Visible {
    match visible {
        Visible::All => Visible::All,
        Visible::Causal { offset } => Visible::Causal { offset: offset + tokens as i64 },
    }
}

/// The attention of all tokens, `chunk` at a time.
fn attend_in_chunks(
    backend: &Cpu,
    queries: &[f32],
    blocks: &[KvBlock],
    chunk: usize,
) -> (Vec<u32>, Vec<u32>) {
    let (mut out, mut lse) = (vec![], vec![]);
    for first in (0..TOKENS).step_by(chunk) {
        let tokens = chunk.min(TOKENS - first);
        let data = &queries[first * ROW..(first + tokens) * ROW];
        let q = Queries { data, tokens, heads: HEADS, head_dim: HEAD_DIM, scale: SCALE };
        let spans: Vec<KvSpan<'_>> = blocks
            .iter()
            .zip(SPANS)
            .map(|(block, (keys, visible))| KvSpan {
                keys: block.view(0, keys),
                visible: later(visible, first),
            })
            .collect();
        let mut partial = Partial::empty(PartialShape { tokens, heads: HEADS, head_dim: HEAD_DIM });
        backend.attend(q, &spans, &mut partial);
        out.extend(bits(&partial.out));
        lse.extend(bits(&partial.lse));
    }
    (out, lse)
}

#[test]
fn attention_gives_the_same_bits_for_every_chunking_and_thread_count() {
    for isa in Isa::available() {
        for format in KvFormat::ALL {
            let queries = random(TOKENS * ROW, 1);
            let blocks: Vec<KvBlock> =
                SPANS.iter().zip(2..).map(|((keys, _), seed)| kv(2, HEAD_DIM, format, *keys, seed)).collect();
            let wanted = attend_in_chunks(&cpu(isa, 1), &queries, &blocks, TOKENS);
            for threads in [1, 2, 3] {
                let backend = cpu(isa, threads);
                for chunk in [1, 2, 7, 24, 25, TOKENS] {
                    let given = attend_in_chunks(&backend, &queries, &blocks, chunk);
                    assert!(wanted == given, "{format}, {}, chunks of {chunk}", backend.name());
                }
            }
        }
    }
}

#[test]
fn spans_in_one_call_or_in_several_give_the_same_bits() {
    for isa in Isa::available() {
        let backend = cpu(isa, 2);
        for tokens in [1, TOKENS] {
            let data = random(tokens * ROW, 1);
            let q = Queries { data: &data, tokens, heads: HEADS, head_dim: HEAD_DIM, scale: SCALE };
            let blocks: Vec<KvBlock> =
                SPANS.iter().map(|(keys, _)| kv(2, HEAD_DIM, KvFormat::Bf16, *keys, 5)).collect();
            let spans: Vec<KvSpan<'_>> = blocks
                .iter()
                .zip(SPANS)
                .map(|(block, (keys, visible))| KvSpan { keys: block.view(0, keys), visible })
                .collect();
            let shape = PartialShape { tokens, heads: HEADS, head_dim: HEAD_DIM };
            let (mut whole, mut pieces) = (Partial::empty(shape), Partial::empty(shape));
            backend.attend(q, &spans, &mut whole);
            for span in &spans {
                backend.attend(q, std::slice::from_ref(span), &mut pieces);
            }
            assert_eq!(whole, pieces, "{tokens} tokens, {}", backend.name());
        }
    }
}

/// Spans of few keys, the first of none and one of several segments; with many rows in more items than wait to be folded at
/// once. Each span alone is folded before the next is looked at.
#[test]
fn many_short_spans_give_the_same_bits_on_all_threads_and_one_after_the_other() {
    let (heads, kv_heads, head_dim) = (8, 2, 256);
    let lengths = (0..48).map(|index| if index == 20 { 2100 } else { index * 37 % 101 });
    let blocks: Vec<KvBlock> =
        lengths.zip(1..).map(|(keys, seed)| kv(kv_heads, head_dim, KvFormat::Bf16, keys, seed)).collect();
    for tokens in [1, 24] {
        let spans: Vec<KvSpan<'_>> = blocks
            .iter()
            .zip(0i64..)
            // Some hide their last keys from the first tokens, and where they are short all of them.
            .map(|(block, index)| KvSpan {
                keys: block.view(0, block.len()),
                visible: if index % 5 == 4 { Visible::Causal { offset: 40 - index } } else { Visible::All },
            })
            .collect();
        let data = random(tokens * heads * head_dim, 1);
        let q = Queries { data: &data, tokens, heads, head_dim, scale: SCALE };
        for isa in Isa::available() {
            let run = |threads, at_once: usize| {
                let mut partial = Partial::empty(PartialShape { tokens, heads, head_dim });
                let backend = cpu(isa, threads);
                spans.chunks(at_once).for_each(|spans| backend.attend(q, spans, &mut partial));
                (bits(&partial.out), bits(&partial.lse))
            };
            let wanted = run(1, 1);
            for (threads, at_once) in [(1, spans.len()), (3, 1), (3, 7), (3, spans.len())] {
                let what = format!("{tokens} tokens, {isa}, {threads} threads, {at_once} spans at once");
                assert!(wanted == run(threads, at_once), "{what}");
            }
        }
    }
}

#[test]
fn products_give_the_same_bits_for_every_number_of_rows_and_threads() {
    let (m, rows, cols) = (30, 200, 512);
    let x = random(m * cols, 1);
    for isa in Isa::available() {
        for format in WeightFormat::ALL {
            let weight = matrix(format, rows, cols, &random(rows * cols, 2));
            let mut wanted = vec![0.0; m * rows];
            cpu(isa, 1).matmul(&x, &weight, &mut wanted);
            for threads in [1, 2, 3] {
                let backend = cpu(isa, threads);
                for chunk in [1, 4, 6, 13, m] {
                    let mut given = vec![0.0; m * rows];
                    for (x, out) in x.chunks(chunk * cols).zip(given.chunks_mut(chunk * rows)) {
                        backend.matmul(x, &weight, out);
                    }
                    assert_eq!(bits(&wanted), bits(&given), "{format}, {}, {chunk} rows", backend.name());
                }
            }
        }
    }
}

#[test]
fn large_products_give_the_same_bits_as_their_rows() {
    for isa in Isa::available() {
        for format in WeightFormat::ALL {
            // Inputs in two parts: packed ones, and those of items with several quantised panels.
            let (m, rows, cols) = if format.block_len() > 1 { (560, 1782, 512) } else { (790, 70, 700) };
            let x = random(m * cols, 1);
            let weight = matrix(format, rows, cols, &random(rows * cols, 2));
            let (one, three) = (cpu(isa, 1), cpu(isa, 3));
            let (mut wanted, mut given) = (vec![0.0; m * rows], vec![0.0; m * rows]);
            one.matmul(&x, &weight, &mut wanted);
            three.matmul(&x, &weight, &mut given);
            assert_eq!(bits(&wanted), bits(&given), "{format}, {isa}, 3 threads");
            for row in [0, 6, 333, m - 1] {
                let mut given = vec![0.0; rows];
                one.matmul(&x[row * cols..(row + 1) * cols], &weight, &mut given);
                assert_eq!(
                    bits(&wanted[row * rows..(row + 1) * rows]),
                    bits(&given),
                    "{format}, {isa}, row {row}"
                );
            }
        }
    }
}

#[test]
fn row_operations_give_the_same_bits_for_every_number_of_rows_and_threads() {
    let (m, n) = (123, 1001);
    let (x, weight) = (random(m * n, 1), random(n, 2));
    for isa in Isa::available() {
        let (one, three) = (cpu(isa, 1), cpu(isa, 3));
        let (mut whole, mut rows) = (vec![0.0; m * n], vec![0.0; m * n]);
        three.rms_norm(&x, &weight, 1e-5, &mut whole);
        for (x, out) in x.chunks(n).zip(rows.chunks_mut(n)) {
            one.rms_norm(x, &weight, 1e-5, out);
        }
        assert_eq!(bits(&whole), bits(&rows), "rms_norm {isa}");
        let (mut whole, mut rows) = (x.clone(), x.clone());
        three.swiglu(&mut whole, &x);
        for (gate, up) in rows.chunks_mut(n).zip(x.chunks(n)) {
            one.swiglu(gate, up);
        }
        assert_eq!(bits(&whole), bits(&rows), "swiglu {isa}");
    }
}
