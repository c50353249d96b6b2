//! The kernels between the products of a layer and its attention: rotary angles, and keys and values on their way into a
//! tile. Plain loops over fixed sizes, which the compiler turns into vectors where `isa` compiles them for a set; what they
//! leave is the same to the last bit in every set. The layouts are those of `kv`.

#![expect(clippy::needless_range_loop, reason = "indices over fixed sizes, unrolled by the compiler")]

use crate::kv::q8_scale;
use crate::{KEYS_PER_TILE, KvFormat};

/// Keys that are turned into columns together: a cache line of every row of the tile.
const KEYS: usize = 16;

/// Values of each that are turned at once.
const VALUES: usize = 64;

/// Keys and values of neighbouring tokens of one head, and the tile that they go into.
pub(super) struct PackTile<'a> {
    pub(super) format: KvFormat,
    /// Values per key.
    pub(super) head_dim: usize,
    /// The same as stored.
    pub(super) width: usize,
    /// Keys: that of token `t` starts at `t * stride`.
    pub(super) k: &'a [f32],
    /// Values, likewise.
    pub(super) v: &'a [f32],
    pub(super) stride: usize,
    pub(super) tokens: usize,
    /// The first token's place in the tile.
    pub(super) lane: usize,
    /// The words of the K tile, then of the V tile.
    pub(super) tile: &'a mut [u32],
}

/// Rotates some heads of one token by the angles of its position.
#[inline(always)]
pub(super) fn rotate(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    for head in heads.chunks_exact_mut(2 * cos.len()) {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Packs keys and values.
#[inline(always)]
pub(super) fn pack(job: PackTile<'_>) {
    let PackTile { format, head_dim, width, k, v, stride, tokens, lane, tile } = job;
    assert!(lane + tokens <= KEYS_PER_TILE, "{lane} + {tokens} keys of a tile");
    let (keys, values) = (Rows { data: k, stride, len: head_dim }, Rows { data: v, stride, len: head_dim });
    let half = tile.len() / 2;
    let (k_tile, v_tile) = tile.split_at_mut(half);
    match format {
        KvFormat::F32 => {
            turned::<Floats>(keys, &[], tokens, lane, k_tile);
            for token in 0..tokens {
                let line = &mut v_tile[(lane + token) * width..][..head_dim];
                line.copy_from_slice(bytemuck::cast_slice(values.row(token)));
            }
        }
        KvFormat::Bf16 => {
            turned::<Pairs>(keys, &[], tokens, lane, k_tile);
            pack_pairs(values, tokens, lane, width, v_tile);
        }
        KvFormat::Q8 => {
            let (k_tile, k_scales) = numbers(k_tile, width);
            let (v_tile, v_scales) = numbers(v_tile, width);
            let mut factors = [0.0; KEYS_PER_TILE];
            for token in 0..tokens {
                (k_scales[lane + token], factors[token]) = q8_scale(keys.row(token));
            }
            turned::<Bytes>(keys, &factors, tokens, lane, k_tile);
            for token in 0..tokens {
                let (scale, factor) = q8_scale(values.row(token));
                v_scales[lane + token] = scale;
                quantised(values.row(token), factor, &mut v_tile[(lane + token) * width..][..head_dim]);
            }
        }
    }
}

/// Keys or values of one head.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    len: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn row(self, token: usize) -> &'a [f32] {
        &self.data[token * self.stride..][..self.len]
    }
}

/// What keys are stored as. Types with an inlined method, not closures: these would be compiled for no instruction set.
trait Stored {
    type Element: Copy + Default;
    /// Values of one element.
    const VALUES: usize;
    fn convert(values: &[f32], factor: f32, to: &mut [Self::Element]);
}

/// The bits of f32.
struct Floats;

impl Stored for Floats {
    type Element = u32;
    const VALUES: usize = 1;

    #[inline(always)]
    fn convert(values: &[f32], _factor: f32, to: &mut [u32]) {
        to.copy_from_slice(bytemuck::cast_slice(values));
    }
}

/// Words of two neighbours in bf16.
struct Pairs;

impl Stored for Pairs {
    type Element = u32;
    const VALUES: usize = 2;

    #[inline(always)]
    fn convert(values: &[f32], _factor: f32, to: &mut [u32]) {
        for (word, [low, high]) in to.iter_mut().zip(values.as_chunks::<2>().0) {
            *word = rounded(*low) | rounded(*high) << 16;
        }
    }
}

/// Whole numbers of 8 bits.
struct Bytes;

impl Stored for Bytes {
    type Element = i8;
    const VALUES: usize = 1;

    #[inline(always)]
    fn convert(values: &[f32], factor: f32, to: &mut [i8]) {
        quantised(values, factor, to);
    }
}

/// Rows of keys become columns of `tile` `[lines][64]` from column `lane` on, each with its factor if there are any.
#[inline(always)]
fn turned<S: Stored>(keys: Rows<'_>, factors: &[f32], tokens: usize, lane: usize, tile: &mut [S::Element]) {
    let mut rows = [[S::Element::default(); VALUES]; KEYS];
    let mut done = 0;
    while done < tokens {
        let count = (KEYS - (lane + done) % KEYS).min(tokens - done);
        for start in (0..keys.len).step_by(VALUES) {
            let end = keys.len.min(start + VALUES);
            let elements = (end - start) / S::VALUES;
            for token in 0..count {
                let factor = factors.get(done + token).copied().unwrap_or(1.0);
                S::convert(&keys.row(done + token)[start..end], factor, &mut rows[token][..elements]);
            }
            let first = start / S::VALUES * KEYS_PER_TILE + lane + done;
            let lines = &mut tile[first..first + (elements - 1) * KEYS_PER_TILE + count];
            for (at, line) in lines.chunks_mut(KEYS_PER_TILE).enumerate() {
                if let Some(line) = line.first_chunk_mut::<KEYS>().filter(|_| count == KEYS) {
                    for token in 0..KEYS {
                        line[token] = rows[token][at % VALUES];
                    }
                } else {
                    for token in 0..count {
                        line[token] = rows[token % KEYS][at % VALUES];
                    }
                }
            }
        }
        done += count;
    }
}

/// Values in pairs along the keys: `tile` is `[32][width]` words.
#[inline(always)]
fn pack_pairs(values: Rows<'_>, tokens: usize, lane: usize, width: usize, tile: &mut [u32]) {
    let mut token = 0;
    while token < tokens {
        let place = lane + token;
        let line = &mut tile[place / 2 * width..][..width];
        let own = values.row(token);
        if place.is_multiple_of(2) && token + 1 < tokens {
            for ((word, low), high) in line.iter_mut().zip(own).zip(values.row(token + 1)) {
                *word = rounded(*low) | rounded(*high) << 16;
            }
            token += 2;
            continue;
        }
        let (shift, others) = if place.is_multiple_of(2) { (0, 0xffff_0000) } else { (16, 0xffff) };
        for (word, value) in line.iter_mut().zip(own) {
            *word = *word & others | rounded(*value) << shift;
        }
        token += 1;
    }
}

/// The bits of `half::bf16::from_f32`, without a branch.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { bits >> 16 | 0x40 } else { nearest }
}

#[inline(always)]
fn quantised(values: &[f32], factor: f32, to: &mut [i8]) {
    for (number, value) in to.iter_mut().zip(values) {
        *number = (value * factor).round_ties_even() as i8;
    }
}

/// The numbers of a tile in 8 bits, and the scales behind them.
#[inline(always)]
fn numbers(tile: &mut [u32], width: usize) -> (&mut [i8], &mut [f32]) {
    let (numbers, scales) = tile.split_at_mut(KEYS_PER_TILE * width / size_of::<u32>());
    (bytemuck::cast_slice_mut(numbers), bytemuck::cast_slice_mut(scales))
}
