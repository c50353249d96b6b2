//! Rows of candle's quantised blocks: reading them from bytes, converting, and their dot products. candle's own
//! product runs on a global spinning thread pool, so only its blocks and dot products are used here.
#![allow(unsafe_code)]

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{BlockQ4K, BlockQ6K, BlockQ8_0};

use crate::pool::Pool;

/// What rounding one input value is taken to cost when deciding whether threads are worth waking.
const FLOPS_PER_QUANTISED_VALUE: usize = 32;

/// A quantised block that is plain bytes.
///
/// # Safety
///
/// The type is `repr(C)` without padding, and every bit pattern of its size is a valid value.
pub(crate) unsafe trait PlainBlock: GgmlType {}

// SAFETY: two bytes of f16 and 32 of i8; candle asserts that the size is their sum.
unsafe impl PlainBlock for BlockQ8_0 {}
// SAFETY: two f16 and 140 bytes; candle asserts that the size is their sum.
unsafe impl PlainBlock for BlockQ4K {}
// SAFETY: 208 bytes and one f16; candle asserts that the size is their sum.
unsafe impl PlainBlock for BlockQ6K {}

/// Appends the blocks that `bytes` holds; the length is a whole number of blocks, or this panics.
pub(crate) fn extend_from_bytes<B: PlainBlock>(blocks: &mut Vec<B>, bytes: &[u8]) {
    assert!(bytes.len().is_multiple_of(size_of::<B>()), "whole blocks only");
    let (old, added) = (blocks.len(), bytes.len() / size_of::<B>());
    blocks.resize(old + added, B::zeros());
    let target = &mut blocks[old..];
    // SAFETY: the target is `added` initialised blocks, which are exactly `bytes.len()` bytes; the regions are
    // apart because the target is borrowed mutably; any bit pattern is a valid block (`PlainBlock`).
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target.as_mut_ptr().cast(), bytes.len()) }
}

/// Appends whole rows, quantised.
pub(crate) fn extend_from_values<B: PlainBlock>(blocks: &mut Vec<B>, values: &[f32]) {
    assert!(values.len().is_multiple_of(B::BLCK_SIZE), "whole blocks only");
    let old = blocks.len();
    blocks.resize(old + values.len() / B::BLCK_SIZE, B::zeros());
    B::from_float(values, &mut blocks[old..]);
}

/// Rows of activations `[m, cols]` in the format that the dot product with `B` wants.
pub(crate) fn quantise_input<B: PlainBlock>(pool: &Pool, x: &[f32], cols: usize) -> Vec<B::VecDotType> {
    let block_len = B::VecDotType::BLCK_SIZE;
    let row_blocks = cols / block_len;
    let mut blocks = vec![B::VecDotType::zeros(); x.len() / block_len];
    if row_blocks > 0 {
        let flops = FLOPS_PER_QUANTISED_VALUE * block_len;
        pool.run_rows(&mut blocks, row_blocks, row_blocks, flops, |at, blocks| {
            let start = at * block_len;
            B::VecDotType::from_float(&x[start..start + blocks.len() * block_len], blocks);
        });
    }
    blocks
}

/// The dot products of one input row with consecutive weight rows, one per value of `out`.
///
/// Weight rows go in fours from the first, the rest alone: callers start at a multiple of four, so that a row's
/// result never depends on how the rows were shared out.
pub(crate) fn dot_rows<B: PlainBlock>(weights: &[B], x: &[B::VecDotType], cols: usize, out: &mut [f32]) {
    let row_blocks = cols / B::BLCK_SIZE;
    assert_eq!(weights.len(), out.len() * row_blocks, "as many weight rows as outputs");
    let row = |index: usize| &weights[index * row_blocks..(index + 1) * row_blocks];
    let fours = out.len() / 4 * 4;
    for at in (0..fours).step_by(4) {
        let (a, b, c, d) = B::vec_dot_4(cols, row(at), row(at + 1), row(at + 2), row(at + 3), x);
        out[at..at + 4].copy_from_slice(&[a, b, c, d]);
    }
    for (at, out) in out.iter_mut().enumerate().skip(fours) {
        *out = B::vec_dot(cols, row(at), x);
    }
}
