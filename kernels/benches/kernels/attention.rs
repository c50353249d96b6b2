//! Attention, the writing of keys and values, and the merging of partials.

use stellate_kernels::*;

use crate::peaks::Bound;
use crate::report::Report;
use crate::{Sets, rivals, values};

const HEADS: usize = 32;
const KV_HEADS: usize = 8;

/// Query tokens, spans and the keys of each.
const SHAPES: [(usize, usize, usize); 6] =
    [(4096, 1, 4096), (64, 1, 8192), (8, 1, 8192), (2, 1, 8192), (1, 1, 8192), (1, 1, 65536)];

/// Contexts of many short blocks, for one format.
const MANY_SPANS: [(usize, usize, usize); 3] = [(1, 32, 256), (1, 512, 256), (8, 512, 256)];

/// Tokens that are written or merged at once: more than a large cache holds.
const TOKENS: usize = 8192;

pub(crate) fn all(sets: &Sets<'_>, report: &mut Report) {
    for format in [KvFormat::Bf16, KvFormat::Q8, KvFormat::F32] {
        for head_dim in [64, 128] {
            for shape in SHAPES {
                attend(format, head_dim, shape, sets, report);
            }
            write(format, head_dim, sets, report);
        }
    }
    for shape in MANY_SPANS {
        attend(KvFormat::Bf16, 128, shape, sets, report);
    }
    merge(sets, report);
}

fn attend(
    format: KvFormat,
    head_dim: usize,
    (tokens, count, keys): (usize, usize, usize),
    sets: &Sets<'_>,
    report: &mut Report,
) {
    let kind = if tokens > 1 { "prefill" } else { "decode" };
    let times = if count > 1 { format!("{count}x") } else { String::new() };
    let name = format!("{kind} {format} d={head_dim} {tokens} on {times}{keys}");
    if !report.wants(&name) {
        return;
    }
    let shape = KvShape { layers: 1, kv_heads: KV_HEADS, head_dim, format };
    let blocks: Vec<KvBlock> = (0..count).map(|_| filled(shape, keys)).collect();
    // The last span ends with the queries' own keys; the others are of earlier tokens.
    let visible = |index| match index + 1 == count {
        true => Visible::Causal { offset: (keys - tokens) as i64 },
        false => Visible::All,
    };
    let views = blocks.iter().enumerate();
    let spans: Vec<KvSpan<'_>> =
        views.map(|(index, block)| KvSpan { keys: block.view(0, keys), visible: visible(index) }).collect();
    let data = values(tokens * HEADS * head_dim);
    let q = Queries { data: &data, tokens, heads: HEADS, head_dim, scale: (head_dim as f32).sqrt().recip() };
    let out_shape = PartialShape { tokens, heads: HEADS, head_dim };
    let mut out = Partial::empty(out_shape);
    let seen = |token| -> usize { spans.iter().map(|span| span.visible.count(token, keys)).sum() };
    let flops = (4 * (0..tokens).map(seen).sum::<usize>() * HEADS * head_dim) as f64;
    let bytes: usize = blocks.iter().map(KvBlock::bytes).sum();
    let exact = format == KvFormat::F32;
    for set in sets.those(!exact && (tokens > 1 || format == KvFormat::Bf16)) {
        let (bound, work) =
            if tokens == 1 { (Bound::Memory, bytes as f64) } else { (set.arithmetic(exact), flops) };
        report.time(&name, set, bound, work, || {
            out.reset(out_shape);
            set.backend.attend(q, &spans, &mut out);
        });
    }
    let (bound, work) = if tokens == 1 { (Bound::Memory, bytes as f64) } else { (Bound::F32, flops) };
    // Another library has its keys in one tensor.
    let keys = keys * count;
    report.beside(&name, bound, work, move || {
        rivals::attention(format, [HEADS, KV_HEADS, head_dim], tokens, keys)
    });
}

fn filled(shape: KvShape, keys: usize) -> KvBlock {
    let mut block = KvBlock::new(shape, keys);
    let row = shape.kv_heads * shape.head_dim;
    for at in (0..keys).step_by(KEYS_PER_SEGMENT) {
        let chunk = values((keys - at).min(KEYS_PER_SEGMENT) * row);
        block.write(0, at, &chunk, &chunk);
    }
    block
}

/// Reads f32 and writes the format.
fn write(format: KvFormat, head_dim: usize, sets: &Sets<'_>, report: &mut Report) {
    let name = format!("write {format} d={head_dim} {TOKENS} tokens");
    if !report.wants(&name) {
        return;
    }
    let shape = KvShape { layers: 1, kv_heads: KV_HEADS, head_dim, format };
    let mut block = KvBlock::new(shape, TOKENS);
    let chunk = values(TOKENS * KV_HEADS * head_dim);
    let work = (2 * size_of_val(&chunk[..]) + block.bytes()) as f64;
    report.time(&name, sets.answers, Bound::Memory, work, || {
        sets.answers.backend.write(&mut block, 0, 0, &chunk, &chunk);
    });
}

/// Reads two partials and writes one.
fn merge(sets: &Sets<'_>, report: &mut Report) {
    let name = format!("merge {TOKENS}x{HEADS}x128");
    if !report.wants(&name) {
        return;
    }
    let shape = PartialShape { tokens: TOKENS, heads: HEADS, head_dim: 128 };
    let mut partial = Partial::empty(shape);
    partial.out = values(shape.rows() * shape.head_dim);
    partial.lse = values(shape.rows());
    let (mut merged, work) = (partial.clone(), 3.0 * size_of_val(&partial.out[..]) as f64);
    report.time(&name, sets.answers, Bound::Memory, work, || {
        // The log-sum-exps grow with the logarithm of the number of calls: far from any limit.
        sets.answers.backend.merge(&mut merged, &partial);
    });
}
