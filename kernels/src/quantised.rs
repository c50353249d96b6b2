//! Quantised weights as they lie in memory: ggml's blocks, those of 64 rows side by side, in the order in which
//! vector registers want them; and the way from candle's blocks and back. What multiplies them is in
//! `cpu::quantised`.
//!
//! A panel of 64 rows is one stream of *regions*, one per column of blocks, each of as many bytes as its 64 blocks.
//! Lines of 64 values hold one for each row; words are 32 bits, little-endian.
//!
//! | format | columns | a region, in order                                                                  |
//! |--------|---------|-------------------------------------------------------------------------------------|
//! | q8_0   |      32 | line of f16 scales; 8 lines of words                                                |
//! | q4_k   |     256 | 32 lines of words; 3 of the 12 bytes of factors; line of f16 `d`; line of f16 `dmin` |
//! | q6_k   |     256 | line of f16 `d`; 16 lines of i8 scales; 16 times 3 lines of words                   |
//!
//! A word of q8_0 has the bytes of four columns, 128 added, rotated left by four bits; one of q4_k the nibbles of
//! eight, the first lowest. Three words of q6_k hold sixteen columns: word `w` has column `5w + i` in the six bits
//! from bit `15 + 2w + 6i` on, around its end, and in the two bits left free a piece of the last column, lowest
//! piece first. Why these places: see `cpu::quantised::formats`.
#![allow(unsafe_code)]

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{BlockQ4K, BlockQ6K, BlockQ8_0};

use crate::WeightFormat;
use crate::matrix::ROWS_PER_PANEL;

/// Bytes of a line of words, and of one of halves.
pub(crate) const WORD_LINE_BYTES: usize = ROWS_PER_PANEL * 4;
pub(crate) const HALF_LINE_BYTES: usize = ROWS_PER_PANEL * 2;

/// Where the parts of a region begin, in bytes.
pub(crate) const Q8_0_WORDS: usize = HALF_LINE_BYTES;
pub(crate) const Q4K_FACTORS: usize = 32 * WORD_LINE_BYTES;
pub(crate) const Q4K_D: usize = Q4K_FACTORS + 3 * WORD_LINE_BYTES;
pub(crate) const Q4K_DMIN: usize = Q4K_D + HALF_LINE_BYTES;
pub(crate) const Q6K_SCALES: usize = HALF_LINE_BYTES;
pub(crate) const Q6K_WORDS: usize = Q6K_SCALES + 16 * ROWS_PER_PANEL;

/// The largest block, in bytes.
const MOST_BLOCK_BYTES: usize = size_of::<BlockQ6K>();

/// A quantised block that is plain bytes.
///
/// # Safety
///
/// The type is `repr(C)` without padding, and every bit pattern of its size is a valid value.
unsafe trait PlainBlock: GgmlType {}

// SAFETY: two bytes of f16 and 32 of i8; candle asserts that the size is their sum.
unsafe impl PlainBlock for BlockQ8_0 {}
// SAFETY: two f16 and 140 bytes; candle asserts that the size is their sum.
unsafe impl PlainBlock for BlockQ4K {}
// SAFETY: 208 bytes and one f16; candle asserts that the size is their sum.
unsafe impl PlainBlock for BlockQ6K {}

/// Bytes of one of ggml's blocks; of one value, where the format has none.
pub(crate) fn block_bytes(format: WeightFormat) -> usize {
    match format {
        WeightFormat::F32 => 4,
        WeightFormat::Bf16 => 2,
        WeightFormat::Q8_0 => size_of::<BlockQ8_0>(),
        WeightFormat::Q4K => size_of::<BlockQ4K>(),
        WeightFormat::Q6K => size_of::<BlockQ6K>(),
    }
}

/// Whole rows quantised, as ggml lays them out.
pub(crate) fn quantise(format: WeightFormat, values: &[f32]) -> Vec<u8> {
    match format {
        WeightFormat::Q8_0 => to_blocks::<BlockQ8_0>(values),
        WeightFormat::Q4K => to_blocks::<BlockQ4K>(values),
        WeightFormat::Q6K => to_blocks::<BlockQ6K>(values),
        WeightFormat::F32 | WeightFormat::Bf16 => unreachable!("{format} has no blocks"),
    }
}

fn to_blocks<B: PlainBlock>(values: &[f32]) -> Vec<u8> {
    assert!(values.len().is_multiple_of(B::BLCK_SIZE), "whole blocks only");
    let mut blocks = vec![B::zeros(); values.len() / B::BLCK_SIZE];
    B::from_float(values, &mut blocks);
    let mut bytes = vec![0; size_of_val(blocks.as_slice())];
    // SAFETY: as many bytes as the blocks have, all initialised (`PlainBlock`: no padding), in two allocations.
    unsafe { std::ptr::copy_nonoverlapping(blocks.as_ptr().cast(), bytes.as_mut_ptr(), bytes.len()) }
    bytes
}

/// Puts rows of `row_blocks` blocks each, as ggml lays them out, into panels, the first as row `first`.
pub(crate) fn pack(format: WeightFormat, panels: &mut [u8], first: usize, row_blocks: usize, rows: &[u8]) {
    let block_bytes = block_bytes(format);
    let (row_bytes, region_bytes) = (row_blocks * block_bytes, ROWS_PER_PANEL * block_bytes);
    let count = rows.len().checked_div(row_bytes).unwrap_or(0);
    let mut row = 0;
    while row < count {
        let (panel, lane) = ((first + row) / ROWS_PER_PANEL, (first + row) % ROWS_PER_PANEL);
        // Block after block, so that a region stays in the cache while its lanes are filled.
        let lanes = (ROWS_PER_PANEL - lane).min(count - row);
        for block in 0..row_blocks {
            let region = &mut panels[(panel * row_blocks + block) * region_bytes..][..region_bytes];
            for i in 0..lanes {
                let from = &rows[(row + i) * row_bytes + block * block_bytes..][..block_bytes];
                scatter(format, from, &mut Region { bytes: region, lane: lane + i });
            }
        }
        row += lanes;
    }
}

/// The values of row `row`, exactly as ggml widens them.
pub(crate) fn widen_row(format: WeightFormat, panels: &[u8], row: usize, out: &mut [f32]) {
    match format {
        WeightFormat::Q8_0 => widen_blocks::<BlockQ8_0>(format, panels, row, out),
        WeightFormat::Q4K => widen_blocks::<BlockQ4K>(format, panels, row, out),
        WeightFormat::Q6K => widen_blocks::<BlockQ6K>(format, panels, row, out),
        WeightFormat::F32 | WeightFormat::Bf16 => unreachable!("{format} has no blocks"),
    }
}

fn widen_blocks<B: PlainBlock>(format: WeightFormat, panels: &[u8], row: usize, out: &mut [f32]) {
    let region_bytes = ROWS_PER_PANEL * size_of::<B>();
    let (panel, lane) = (row / ROWS_PER_PANEL, row % ROWS_PER_PANEL);
    let row_blocks = out.len() / B::BLCK_SIZE;
    for (index, out) in out.chunks_exact_mut(B::BLCK_SIZE).enumerate() {
        let mut bytes = [0; MOST_BLOCK_BYTES];
        let region = &panels[(panel * row_blocks + index) * region_bytes..][..region_bytes];
        gather(format, region, lane, &mut bytes[..size_of::<B>()]);
        let mut block = B::zeros();
        // SAFETY: the array is at least as long as a block, and any bit pattern is a valid one (`PlainBlock`).
        unsafe {
            let to = std::ptr::from_mut(&mut block).cast();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, size_of::<B>());
        }
        B::to_float(std::slice::from_ref(&block), out);
    }
}

/// One row's part of a region.
struct Region<'a> {
    bytes: &'a mut [u8],
    lane: usize,
}

impl Region<'_> {
    fn put<const N: usize>(&mut self, line_start: usize, value: [u8; N]) {
        self.bytes[line_start + self.lane * N..][..N].copy_from_slice(&value);
    }

    fn put_word(&mut self, start: usize, line: usize, word: u32) {
        self.put(start + line * WORD_LINE_BYTES, word.to_le_bytes());
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("as many bytes as asked for")
}

/// Puts one of ggml's blocks into its row of a region.
fn scatter(format: WeightFormat, block: &[u8], region: &mut Region<'_>) {
    match format {
        WeightFormat::Q8_0 => {
            region.put(0, bytes_at::<2>(block, 0));
            for line in 0..8 {
                let word = u32::from_le_bytes(bytes_at(block, 2 + 4 * line)) ^ 0x8080_8080;
                region.put_word(Q8_0_WORDS, line, word.rotate_left(4));
            }
        }
        WeightFormat::Q4K => {
            region.put(Q4K_D, bytes_at::<2>(block, 0));
            region.put(Q4K_DMIN, bytes_at::<2>(block, 2));
            for line in 0..3 {
                region.put_word(Q4K_FACTORS, line, u32::from_le_bytes(bytes_at(block, 4 + 4 * line)));
            }
            // 32 bytes hold 64 columns: the first half of them in the low nibbles, the second in the high ones.
            for line in 0..32 {
                let (chunk, half, eight) = (line / 8, line % 8 / 4, line % 4);
                let bytes = u64::from_le_bytes(bytes_at(block, 16 + 32 * chunk + 8 * eight));
                region.put_word(0, line, squeeze_nibbles(bytes >> (4 * half)));
            }
        }
        WeightFormat::Q6K => {
            region.put(0, bytes_at::<2>(block, 208));
            for run in 0..16 {
                region.put(Q6K_SCALES + run * ROWS_PER_PANEL, [block[192 + run]]);
                let mut words = [0u32; 3];
                for column in 0..16 {
                    let (low, high) = q6k_places(16 * run + column);
                    let six = u32::from(block[low.0] >> low.1 & 15 | (block[high.0] >> high.1 & 3) << 4);
                    for piece in q6k_pieces(column) {
                        words[piece.word] |= (six >> piece.from & piece.mask).rotate_left(piece.at);
                    }
                }
                for (line, word) in words.into_iter().enumerate() {
                    region.put_word(Q6K_WORDS, 3 * run + line, word);
                }
            }
        }
        WeightFormat::F32 | WeightFormat::Bf16 => unreachable!("{format} has no blocks"),
    }
}

/// Takes one of ggml's blocks, all zeros before, out of its row of a region.
fn gather(format: WeightFormat, region: &[u8], lane: usize, block: &mut [u8]) {
    let half = |start: usize| bytes_at::<2>(region, start + lane * 2);
    let word = |start: usize, line: usize| {
        u32::from_le_bytes(bytes_at(region, start + line * WORD_LINE_BYTES + lane * 4))
    };
    match format {
        WeightFormat::Q8_0 => {
            block[..2].copy_from_slice(&half(0));
            for (line, bytes) in block[2..].chunks_exact_mut(4).enumerate() {
                let word = word(Q8_0_WORDS, line).rotate_right(4) ^ 0x8080_8080;
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        WeightFormat::Q4K => {
            block[..2].copy_from_slice(&half(Q4K_D));
            block[2..4].copy_from_slice(&half(Q4K_DMIN));
            for (line, bytes) in block[4..16].chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&word(Q4K_FACTORS, line).to_le_bytes());
            }
            for line in 0..32 {
                let (chunk, half, eight) = (line / 8, line % 8 / 4, line % 4);
                for (i, byte) in block[16 + 32 * chunk + 8 * eight..][..8].iter_mut().enumerate() {
                    *byte |= ((word(0, line) >> (4 * i) & 15) as u8) << (4 * half);
                }
            }
        }
        WeightFormat::Q6K => {
            block[208..].copy_from_slice(&half(0));
            for run in 0..16 {
                block[192 + run] = region[Q6K_SCALES + run * ROWS_PER_PANEL + lane];
                for column in 0..16 {
                    let six = q6k_pieces(column)
                        .map(|piece| {
                            let word = word(Q6K_WORDS, 3 * run + piece.word);
                            (word.rotate_right(piece.at) & piece.mask) << piece.from
                        })
                        .fold(0, |six, piece| six | piece) as u8;
                    let (low, high) = q6k_places(16 * run + column);
                    block[low.0] |= (six & 15) << low.1;
                    block[high.0] |= (six >> 4) << high.1;
                }
            }
        }
        WeightFormat::F32 | WeightFormat::Bf16 => unreachable!("{format} has no blocks"),
    }
}

/// The low nibbles of eight bytes, side by side.
fn squeeze_nibbles(bytes: u64) -> u32 {
    let x = bytes & 0x0f0f_0f0f_0f0f_0f0f;
    let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) as u32
}

/// Where ggml keeps the low four and the high two bits of a column: byte of the block, and bit.
fn q6k_places(column: usize) -> ((usize, usize), (usize, usize)) {
    let (half, quarter, at) = (column / 128, column % 128 / 32, column % 32);
    ((64 * half + 32 * (quarter % 2) + at, 4 * (quarter / 2)), (128 + 32 * half + at, 2 * quarter))
}

/// Bits `from..` of a column's six, under `mask`, at bit `at` of a word.
struct Piece {
    word: usize,
    at: u32,
    from: usize,
    mask: u32,
}

/// Where one of sixteen columns lies in three words.
fn q6k_pieces(column: usize) -> impl Iterator<Item = Piece> {
    let whole = (column < 15).then(|| {
        let (word, i) = (column / 5, column % 5);
        Piece { word, at: (15 + 2 * word + 6 * i) as u32 % 32, from: 0, mask: 63 }
    });
    let count = if column < 15 { 0 } else { 3 };
    let pieces = (0..count).map(|word| Piece { word, at: 13 + 2 * word as u32, from: 2 * word, mask: 3 });
    whole.into_iter().chain(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_out_of_a_panel_as_they_went_in() {
        for format in [WeightFormat::Q8_0, WeightFormat::Q4K, WeightFormat::Q6K] {
            let (size, row_blocks, count) = (block_bytes(format), 3, 70);
            let mut state = 7u32;
            let mut byte = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            let rows: Vec<u8> = (0..count * row_blocks * size).map(|_| byte()).collect();
            let mut panels = vec![0; 2 * ROWS_PER_PANEL * row_blocks * size];
            pack(format, &mut panels, 0, row_blocks, &rows[..10 * row_blocks * size]);
            pack(format, &mut panels, 10, row_blocks, &rows[10 * row_blocks * size..]);
            for (index, wanted) in rows.chunks_exact(size).enumerate() {
                let (row, block) = (index / row_blocks, index % row_blocks);
                let region = row / ROWS_PER_PANEL * row_blocks + block;
                let region = &panels[region * ROWS_PER_PANEL * size..][..ROWS_PER_PANEL * size];
                let mut given = vec![0; size];
                gather(format, region, row % ROWS_PER_PANEL, &mut given);
                assert_eq!(wanted, given, "{format}, row {row}, block {block}");
            }
        }
    }
}
