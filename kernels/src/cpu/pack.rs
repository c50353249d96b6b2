//! The kernels between the products of a layer and its attention: rotary angles, and keys and values on their way into a
//! tile. Plain loops over fixed sizes, which the compiler turns into vectors where `isa` compiles them for a set; what they
//! leave is the same to the last bit in every set. The layouts are those of `kv`.

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
    let key = |token: usize| &k[token * stride..][..head_dim];
    let value = |token: usize| &v[token * stride..][..head_dim];
    let half = tile.len() / 2;
    let (k_tile, v_tile) = tile.split_at_mut(half);
    match format {
        KvFormat::F32 => {
            turned(key, tokens, lane, head_dim, k_tile, |_, key, row: &mut [u32; VALUES]| {
                row.iter_mut().zip(key).for_each(|(bits, value)| *bits = value.to_bits());
            });
            for token in 0..tokens {
                let line = &mut v_tile[(lane + token) * width..][..head_dim];
                line.copy_from_slice(bytemuck::cast_slice(value(token)));
            }
        }
        KvFormat::Bf16 => {
            turned(key, tokens, lane, head_dim, k_tile, |_, key, row: &mut [u32; VALUES / 2]| {
                let pairs = row.iter_mut().zip(key.as_chunks::<2>().0);
                pairs.for_each(|(word, [low, high])| *word = rounded(*low) | rounded(*high) << 16);
            });
            pack_pairs(value, tokens, lane, width, v_tile);
        }
        KvFormat::Q8 => {
            let (k_tile, k_scales) = numbers(k_tile, width);
            let (v_tile, v_scales) = numbers(v_tile, width);
            let mut factors = [0.0; KEYS_PER_TILE];
            for (token, factor) in factors.iter_mut().enumerate().take(tokens) {
                (k_scales[lane + token], *factor) = q8_scale(key(token));
            }
            let row_of =
                |token: usize, key: &[f32], row: &mut [i8; VALUES]| quantised(key, factors[token], row);
            turned(key, tokens, lane, head_dim, k_tile, row_of);
            for token in 0..tokens {
                let (scale, factor) = q8_scale(value(token));
                v_scales[lane + token] = scale;
                quantised(value(token), factor, &mut v_tile[(lane + token) * width..][..head_dim]);
            }
        }
    }
}

/// Rows of keys become columns of `tile` `[lines][64]` from column `lane` on: 64 values at a time go through a row of
/// elements, to which `convert` brings those of a token.
#[inline(always)]
fn turned<'a, T: Copy + Default, const ROW: usize>(
    key: impl Fn(usize) -> &'a [f32],
    tokens: usize,
    lane: usize,
    head_dim: usize,
    tile: &mut [T],
    convert: impl Fn(usize, &[f32], &mut [T; ROW]),
) {
    let mut done = 0;
    while done < tokens {
        let count = (KEYS - (lane + done) % KEYS).min(tokens - done);
        for start in (0..head_dim).step_by(VALUES) {
            let values = start..head_dim.min(start + VALUES);
            let mut rows = [[T::default(); ROW]; KEYS];
            for (token, row) in rows.iter_mut().enumerate().take(count) {
                convert(done + token, &key(done + token)[values.clone()], row);
            }
            let (first, lines) = (start * ROW / VALUES, values.len() * ROW / VALUES);
            let lines = &mut tile[first * KEYS_PER_TILE..(first + lines) * KEYS_PER_TILE];
            for (at, line) in lines.as_chunks_mut::<KEYS_PER_TILE>().0.iter_mut().enumerate().take(ROW) {
                let line = &mut line[lane + done..][..count];
                if let Ok(line) = <&mut [T; KEYS]>::try_from(&mut *line) {
                    *line = std::array::from_fn(|token| rows[token][at]);
                } else {
                    line.iter_mut().zip(&rows).for_each(|(to, row)| *to = row[at]);
                }
            }
        }
        done += count;
    }
}

/// Values in pairs along the keys: `tile` is `[32][width]` words.
#[inline(always)]
fn pack_pairs<'a>(
    value: impl Fn(usize) -> &'a [f32],
    tokens: usize,
    lane: usize,
    width: usize,
    tile: &mut [u32],
) {
    let mut token = 0;
    while token < tokens {
        let place = lane + token;
        let line = &mut tile[place / 2 * width..][..width];
        let own = value(token);
        if place.is_multiple_of(2) && token + 1 < tokens {
            for ((word, low), high) in line.iter_mut().zip(own).zip(value(token + 1)) {
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
