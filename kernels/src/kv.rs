//! Packed keys and values: the one layout that prefill, decode and transfers share. Which tokens they belong
//! to, and who holds them, is unknown here.
//!
//! Layout per layer: `[kv_head][tile of 64 keys][K tile | V tile]`, so that one head of one layer is one
//! sequential stream. In f32 a K tile is `[head_dim][64]` and a V tile `[64][head_dim]`; in bf16 pairs along the
//! summed axis lie side by side, as the dot-product instructions want them: K `[head_dim/2][64][2]`, V
//! `[32][head_dim][2]`. In 8 bits the numbers lie as in f32, and behind those of each tile its 64 scales in f32.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use half::bf16;

use crate::KernelError;
use crate::buffer::Buffer;

/// Keys of one tile: four 512-bit vectors of scores.
pub const KEYS_PER_TILE: usize = 64;

/// The greatest whole number of [`KvFormat::Q8`]. Its negative is the least: -128 is not used.
const Q8_LIMIT: f32 = 127.0;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// 32-bit floats: exact, for tests and oracles.
    F32,
    /// bfloat16: half the memory and traffic.
    Bf16,
    /// Whole numbers of 8 bits, and one f32 scale for each key and each value of each head: the scale is the largest
    /// magnitude of the `head_dim` numbers over 127, so that each is off by at most half of it. A little over half
    /// of bf16: `head_dim + 4` bytes in place of `2 * head_dim`. Logits of the golden models, whose scale is about 3,
    /// move by up to 0.087 (with bf16 by 0.024); of the demo model's 48 answers 46 stay the same, id for id.
    Q8,
}

impl KvFormat {
    /// All of them, largest first.
    pub const ALL: [KvFormat; 3] = [KvFormat::F32, KvFormat::Bf16, KvFormat::Q8];

    /// Bytes of one key, or of one value, of `values` numbers.
    pub fn bytes_per_vector(self, values: usize) -> usize {
        match self {
            KvFormat::F32 => values * size_of::<f32>(),
            KvFormat::Bf16 => values * size_of::<bf16>(),
            KvFormat::Q8 => values * size_of::<i8>() + size_of::<f32>(),
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KvFormat::F32 => "f32",
            KvFormat::Bf16 => "bf16",
            KvFormat::Q8 => "q8",
        })
    }
}

impl FromStr for KvFormat {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        match name {
            "f32" => Ok(KvFormat::F32),
            "bf16" => Ok(KvFormat::Bf16),
            "q8" => Ok(KvFormat::Q8),
            _ => {
                Err(KernelError::UnknownName { what: "KV format", name: name.into(), known: "f32, bf16, q8" })
            }
        }
    }
}

/// What determines the size of a token's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub layers: usize,
    /// Key/value heads per layer.
    pub kv_heads: usize,
    /// Values per head: even. Stored rounded up to a multiple of 8, the rest zero.
    pub head_dim: usize,
    /// How values are stored.
    pub format: KvFormat,
}

impl KvShape {
    /// Bytes of one token's keys and values in all layers: `2 * layers * kv_heads *` the bytes of one key, which are
    /// `4 * d` in f32, `2 * d` in bf16 and `d + 4` in q8, where `d` is [`KvShape::stored_dim`].
    pub fn bytes_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.format.bytes_per_vector(self.stored_dim())
    }

    /// Bytes of a block for `tokens` tokens: whole tiles.
    pub fn bytes_for(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(KEYS_PER_TILE) * self.bytes_per_token()
    }

    /// Values per head as they are stored.
    pub fn stored_dim(&self) -> usize {
        self.head_dim.next_multiple_of(8)
    }

    /// Bytes of one K tile, and of one V tile: whole cache lines.
    fn tile_bytes(&self) -> usize {
        KEYS_PER_TILE * self.format.bytes_per_vector(self.stored_dim())
    }
}

/// Packed keys and values of a run of tokens, all layers.
///
/// The memory is reserved whole at [`KvBlock::new`] and never grows; the operating system commits pages as
/// they are first written.
pub struct KvBlock {
    shape: KvShape,
    capacity_tokens: usize,
    len: usize,
    buffer: Buffer,
}

impl KvBlock {
    /// Room for `capacity_tokens` tokens.
    ///
    /// Panics on an odd head dimension, or where the allocator refuses: callers bound
    /// their blocks by [`KvShape::bytes_for`] before.
    pub fn new(shape: KvShape, capacity_tokens: usize) -> Self {
        assert!(shape.head_dim > 0 && shape.head_dim.is_multiple_of(2), "head_dim is even");
        let bytes = shape.bytes_for(capacity_tokens);
        let buffer =
            Buffer::zeroed(bytes).unwrap_or_else(|| panic!("no memory for a KV block of {bytes} bytes"));
        Self { shape, capacity_tokens, len: 0, buffer }
    }

    /// The shape given at creation.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The number of tokens there is room for.
    pub fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    /// Tokens complete in all layers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is complete.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// The memory as it lies, all tiles of it: what a copy of the block on another machine needs. Lanes of a last tile past
    /// [`KvBlock::len`] hold anything.
    pub fn raw(&self) -> &[u8] {
        bytemuck::cast_slice(self.buffer.words())
    }

    /// The same memory, to be filled with the raw bytes of a block of the same shape and as many tokens. Any bytes are a
    /// block, though not always one of numbers. Does not change [`KvBlock::len`].
    pub fn raw_mut(&mut self) -> &mut [u8] {
        self.buffer.values_mut()
    }

    /// Declares the first `tokens` tokens complete in all layers; also truncates.
    pub fn set_len(&mut self, tokens: usize) {
        assert!(tokens <= self.capacity_tokens, "{tokens} tokens in room for {}", self.capacity_tokens);
        self.len = tokens;
    }

    /// Packs `k` and `v` `[tokens, kv_heads, head_dim]` of one layer at token offset `at`. Does not change
    /// [`KvBlock::len`].
    pub fn write(&mut self, layer: usize, at: usize, k: &[f32], v: &[f32]) {
        let KvShape { kv_heads, head_dim, format, .. } = self.shape;
        let tokens = self.check_write(layer, at, k, v);
        for token in 0..tokens {
            for kv_head in 0..kv_heads {
                let row = (token * kv_heads + kv_head) * head_dim;
                let tile = self.tile_start(layer, kv_head, at + token);
                let (k, v) = (&k[row..row + head_dim], &v[row..row + head_dim]);
                let tile = &mut self.buffer.values_mut::<u8>()[tile..tile + 2 * self.shape.tile_bytes()];
                let lane = (at + token) % KEYS_PER_TILE;
                match format {
                    KvFormat::F32 => write_f32(bytemuck::cast_slice_mut(tile), lane, k, v),
                    KvFormat::Bf16 => write_bf16(bytemuck::cast_slice_mut(tile), lane, k, v),
                    KvFormat::Q8 => write_q8(tile, lane, k, v),
                }
            }
        }
    }

    /// The number of tokens of `k` and `v`; panics unless they fit.
    pub(crate) fn check_write(&self, layer: usize, at: usize, k: &[f32], v: &[f32]) -> usize {
        let KvShape { layers, kv_heads, head_dim, .. } = self.shape;
        assert!(layer < layers, "layer {layer} of {layers}");
        assert_eq!(k.len(), v.len(), "as many keys as values");
        let tokens = k.len() / (kv_heads * head_dim).max(1);
        assert_eq!(k.len(), tokens * kv_heads * head_dim, "keys are [tokens, kv_heads, head_dim]");
        assert!(
            at + tokens <= self.capacity_tokens,
            "{at} + {tokens} tokens in room for {}",
            self.capacity_tokens
        );
        tokens
    }

    /// All memory, for tiles to be written apart from each other.
    pub(crate) fn words_mut(&mut self) -> &mut [f32] {
        self.buffer.values_mut()
    }

    /// Which words the tile takes that holds token `token`.
    pub(crate) fn tile_words(&self, layer: usize, kv_head: usize, token: usize) -> Range<usize> {
        let start = self.tile_start(layer, kv_head, token) / size_of::<u32>();
        start..start + 2 * self.shape.tile_bytes() / size_of::<u32>()
    }

    /// The first `keys` tokens of one layer. While a chunk is being computed `keys` may exceed
    /// [`KvBlock::len`], never the capacity.
    pub fn view(&self, layer: usize, keys: usize) -> KvView<'_> {
        assert!(layer < self.shape.layers, "layer {layer} of {}", self.shape.layers);
        assert!(keys <= self.capacity_tokens, "{keys} keys in room for {}", self.capacity_tokens);
        let words_per_layer =
            self.shape.bytes_for(self.capacity_tokens) / self.shape.layers / size_of::<u32>();
        let words = &self.buffer.words()[layer * words_per_layer..(layer + 1) * words_per_layer];
        KvView { words, keys, shape: self.shape, tiles: self.capacity_tokens.div_ceil(KEYS_PER_TILE) }
    }

    /// Unpacks `tokens` tokens of one layer from offset `at`: keys and values `[tokens, kv_heads, head_dim]`.
    pub fn read(&self, layer: usize, at: usize, tokens: usize) -> (Vec<f32>, Vec<f32>) {
        let view = self.view(layer, at + tokens);
        let row = self.shape.head_dim;
        let mut k = vec![0.0; tokens * self.shape.kv_heads * row];
        let mut v = k.clone();
        for token in 0..tokens {
            for kv_head in 0..self.shape.kv_heads {
                let start = (token * self.shape.kv_heads + kv_head) * row;
                view.read_key(kv_head, at + token, &mut k[start..start + row], &mut v[start..start + row]);
            }
        }
        (k, v)
    }

    /// The first byte of the tile that holds token `token`.
    fn tile_start(&self, layer: usize, kv_head: usize, token: usize) -> usize {
        let tiles = self.capacity_tokens.div_ceil(KEYS_PER_TILE);
        let tile = (layer * self.shape.kv_heads + kv_head) * tiles + token / KEYS_PER_TILE;
        tile * 2 * self.shape.tile_bytes()
    }
}

impl fmt::Debug for KvBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvBlock")
            .field("shape", &self.shape)
            .field("capacity_tokens", &self.capacity_tokens)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

fn write_f32(tile: &mut [f32], lane: usize, k: &[f32], v: &[f32]) {
    let stored = k.len().next_multiple_of(8);
    let (k_tile, v_tile) = tile.split_at_mut(KEYS_PER_TILE * stored);
    for (line, value) in k_tile.chunks_exact_mut(KEYS_PER_TILE).zip(k) {
        line[lane] = *value;
    }
    v_tile[lane * stored..][..v.len()].copy_from_slice(v);
}

fn write_bf16(tile: &mut [bf16], lane: usize, k: &[f32], v: &[f32]) {
    let stored = k.len().next_multiple_of(8);
    let (k_tile, v_tile) = tile.split_at_mut(KEYS_PER_TILE * stored);
    for (line, pair) in k_tile.chunks_exact_mut(2 * KEYS_PER_TILE).zip(k.chunks_exact(2)) {
        line[2 * lane] = bf16::from_f32(pair[0]);
        line[2 * lane + 1] = bf16::from_f32(pair[1]);
    }
    let pairs = &mut v_tile[lane / 2 * 2 * stored..][..2 * v.len()];
    for (pair, value) in pairs.chunks_exact_mut(2).zip(v) {
        pair[lane % 2] = bf16::from_f32(*value);
    }
}

fn write_q8(tile: &mut [u8], lane: usize, k: &[f32], v: &[f32]) {
    let stored = k.len().next_multiple_of(8);
    let (k_tile, v_tile) = tile.split_at_mut(tile.len() / 2);
    let (k_tile, k_scales) = k_tile.split_at_mut(KEYS_PER_TILE * stored);
    let (v_tile, v_scales) = v_tile.split_at_mut(KEYS_PER_TILE * stored);
    let (k_tile, v_tile): (&mut [i8], &mut [i8]) =
        (bytemuck::cast_slice_mut(k_tile), bytemuck::cast_slice_mut(v_tile));
    let (k_scale, k_factor) = q8_scale(k);
    for (line, value) in k_tile.chunks_exact_mut(KEYS_PER_TILE).zip(k) {
        line[lane] = (value * k_factor).round_ties_even() as i8;
    }
    let (v_scale, v_factor) = q8_scale(v);
    for (number, value) in v_tile[lane * stored..].iter_mut().zip(v) {
        *number = (value * v_factor).round_ties_even() as i8;
    }
    bytemuck::cast_slice_mut::<u8, f32>(k_scales)[lane] = k_scale;
    bytemuck::cast_slice_mut::<u8, f32>(v_scales)[lane] = v_scale;
}

/// The scale of one key or value in 8 bits, and what its values are multiplied by before they are rounded.
#[inline(always)]
pub(crate) fn q8_scale(values: &[f32]) -> (f32, f32) {
    // As whole numbers magnitudes have the same order, and what is no number is beyond all of them.
    let greatest = values.iter().fold(0, |greatest, value| (value.to_bits() & 0x7fff_ffff).max(greatest));
    let greatest = f32::from_bits(greatest);
    if greatest < f32::MIN_POSITIVE { (0.0, 0.0) } else { (greatest / Q8_LIMIT, Q8_LIMIT / greatest) }
}

/// The first keys of one layer of a [`KvBlock`].
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    words: &'a [u32],
    keys: usize,
    shape: KvShape,
    /// Tiles per head, by capacity.
    tiles: usize,
}

/// One tile of 64 keys of one head; see the module's documentation for the layouts.
#[derive(Debug, Clone, Copy)]
pub enum Tile<'a> {
    /// f32 values.
    F32 {
        /// `[head_dim][64]`
        k: &'a [f32],
        /// `[64][head_dim]`
        v: &'a [f32],
    },
    /// Words of two bf16 values, the earlier one in the low half.
    Bf16 {
        /// `[head_dim/2][64]` words
        k: &'a [u32],
        /// `[32][head_dim]` words
        v: &'a [u32],
    },
    /// Whole numbers of 8 bits, and what they are to be multiplied by.
    Q8 {
        /// `[head_dim][64]`
        k: &'a [i8],
        /// For each key.
        k_scales: &'a [f32; KEYS_PER_TILE],
        /// `[64][head_dim]`
        v: &'a [i8],
        /// For each value.
        v_scales: &'a [f32; KEYS_PER_TILE],
    },
}

impl Tile<'_> {
    /// Where its keys start; the values follow, then the next tile of the head.
    pub(crate) fn start(&self) -> *const u8 {
        match self {
            Tile::F32 { k, .. } => k.as_ptr().cast(),
            Tile::Bf16 { k, .. } => k.as_ptr().cast(),
            Tile::Q8 { k, .. } => k.as_ptr().cast(),
        }
    }
}

impl<'a> KvView<'a> {
    /// The number of keys.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Key/value heads.
    pub fn kv_heads(&self) -> usize {
        self.shape.kv_heads
    }

    /// Values per head.
    pub fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// Values per head as they are stored: the stride of V tiles, and the rows of K tiles.
    pub fn stored_dim(&self) -> usize {
        self.shape.stored_dim()
    }

    /// How values are stored.
    pub fn format(&self) -> KvFormat {
        self.shape.format
    }

    /// Bytes of the keys and values of one tile.
    pub(crate) fn tile_bytes(&self) -> usize {
        2 * self.shape.tile_bytes()
    }

    /// Tile `tile` of one head: keys `64 * tile` and following. Lanes past [`KvView::keys`] hold anything.
    pub fn tile(&self, kv_head: usize, tile: usize) -> Tile<'a> {
        assert!(kv_head < self.shape.kv_heads && tile < self.tiles, "head {kv_head}, tile {tile}");
        let words = self.shape.tile_bytes() / size_of::<u32>();
        let start = (kv_head * self.tiles + tile) * 2 * words;
        let (k, v) = self.words[start..start + 2 * words].split_at(words);
        match self.shape.format {
            KvFormat::F32 => Tile::F32 { k: bytemuck::cast_slice(k), v: bytemuck::cast_slice(v) },
            KvFormat::Bf16 => Tile::Bf16 { k, v },
            KvFormat::Q8 => {
                let ((k, k_scales), (v, v_scales)) = (split_scales(k), split_scales(v));
                Tile::Q8 { k, k_scales, v, v_scales }
            }
        }
    }

    /// Unpacks one key and its value, each `[head_dim]`.
    pub fn read_key(&self, kv_head: usize, key: usize, k_out: &mut [f32], v_out: &mut [f32]) {
        assert!(key < self.keys, "key {key} of {}", self.keys);
        let (lane, stored) = (key % KEYS_PER_TILE, self.shape.stored_dim());
        match self.tile(kv_head, key / KEYS_PER_TILE) {
            Tile::F32 { k, v } => {
                for (value, line) in k_out.iter_mut().zip(k.chunks_exact(KEYS_PER_TILE)) {
                    *value = line[lane];
                }
                v_out.copy_from_slice(&v[lane * stored..][..v_out.len()]);
            }
            Tile::Bf16 { k, v } => {
                for (pair, line) in k_out.chunks_exact_mut(2).zip(k.chunks_exact(KEYS_PER_TILE)) {
                    pair[0] = widen_half(line[lane], 0);
                    pair[1] = widen_half(line[lane], 1);
                }
                let words = &v[lane / 2 * stored..(lane / 2 + 1) * stored];
                for (value, word) in v_out.iter_mut().zip(words) {
                    *value = widen_half(*word, lane % 2);
                }
            }
            Tile::Q8 { k, k_scales, v, v_scales } => {
                for (value, line) in k_out.iter_mut().zip(k.chunks_exact(KEYS_PER_TILE)) {
                    *value = f32::from(line[lane]) * k_scales[lane];
                }
                for (value, number) in v_out.iter_mut().zip(&v[lane * stored..]) {
                    *value = f32::from(*number) * v_scales[lane];
                }
            }
        }
    }
}

impl fmt::Debug for KvView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvView").field("keys", &self.keys).field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// The numbers of a tile in 8 bits, and the scales behind them.
fn split_scales(words: &[u32]) -> (&[i8], &[f32; KEYS_PER_TILE]) {
    let (numbers, scales) = words.split_last_chunk::<KEYS_PER_TILE>().expect("a tile holds its scales");
    (bytemuck::cast_slice(numbers), bytemuck::cast_ref(scales))
}

/// Value 0 (low) or 1 (high) of a bf16 pair.
#[inline(always)]
pub(crate) fn widen_half(word: u32, half: usize) -> f32 {
    f32::from_bits(if half == 0 { word << 16 } else { word & 0xffff_0000 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: [KvFormat; 2] = [KvFormat::F32, KvFormat::Bf16];

    /// Small integers, which bf16 holds exactly.
    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 127) as f32 - 63.0).collect()
    }

    #[test]
    fn a_token_takes_exactly_two_values_per_layer_head_and_dimension() {
        for (format, bytes) in [(KvFormat::F32, 4 * 128), (KvFormat::Bf16, 2 * 128), (KvFormat::Q8, 128 + 4)]
        {
            let shape = KvShape { layers: 28, kv_heads: 8, head_dim: 128, format };
            assert_eq!(shape.bytes_per_token(), 2 * 28 * 8 * bytes);
            assert_eq!(shape.bytes_for(64), 64 * shape.bytes_per_token());
            assert_eq!(shape.bytes_for(65), 128 * shape.bytes_per_token());
            assert_eq!(shape.bytes_for(0), 0);
            let small = KvShape { layers: 2, kv_heads: 3, head_dim: 8, format };
            assert_eq!(KvBlock::new(small, 100).bytes(), small.bytes_for(100));
        }
    }

    #[test]
    fn what_is_packed_in_chunks_is_read_back() {
        for format in EXACT {
            let shape = KvShape { layers: 2, kv_heads: 3, head_dim: 24, format };
            let mut block = KvBlock::new(shape, 150);
            for layer in 0..2 {
                for (at, tokens) in [(0, 1), (1, 66), (67, 0), (67, 83)] {
                    let count = tokens * 3 * 24;
                    let (k, v) = (values(count, at + layer), values(count, at + layer + 1000));
                    block.write(layer, at, &k, &v);
                    assert_eq!(block.read(layer, at, tokens), (k, v), "{format} layer {layer} at {at}");
                }
            }
            assert_eq!(
                block.read(0, 0, 1).0,
                values(72, 0),
                "later chunks and layers leave earlier ones alone"
            );
            assert!(block.is_empty());
            block.set_len(150);
            assert_eq!(block.len(), 150);
            block.set_len(70);
            assert_eq!(block.len(), 70);
        }
    }

    #[test]
    fn eight_bits_are_off_by_at_most_half_a_127th_of_the_largest_magnitude() {
        let shape = KvShape { layers: 1, kv_heads: 2, head_dim: 24, format: KvFormat::Q8 };
        let mut block = KvBlock::new(shape, 70);
        let row = 2 * 24;
        let k: Vec<f32> = (0..70 * row).map(|i| ((i * 7919) % 1009) as f32 / 13.0 - 30.0).collect();
        let mut v: Vec<f32> = k.iter().map(|value| value * 1e-6).collect();
        v[24..48].fill(0.0);
        block.write(0, 0, &k, &v);
        let (read_k, read_v) = block.read(0, 0, 70);
        for (wanted, given) in [(k, read_k), (v, read_v)] {
            for (wanted, given) in wanted.chunks(24).zip(given.chunks(24)) {
                let greatest = wanted.iter().fold(0.0f32, |greatest, value| greatest.max(value.abs()));
                for (wanted, given) in wanted.iter().zip(given) {
                    assert!((wanted - given).abs() <= greatest / 127.0 * 0.5001, "{given}, not {wanted}");
                }
            }
        }
    }

    #[test]
    fn a_block_filled_with_the_raw_bytes_of_another_is_the_same_block() {
        for format in KvFormat::ALL {
            let shape = KvShape { layers: 2, kv_heads: 2, head_dim: 24, format };
            let (mut block, mut copy) = (KvBlock::new(shape, 70), KvBlock::new(shape, 70));
            for layer in 0..2 {
                block.write(layer, 0, &values(70 * 48, layer), &values(70 * 48, layer + 9));
            }
            assert_eq!(block.raw().len(), shape.bytes_for(70));
            copy.raw_mut().copy_from_slice(block.raw());
            for layer in 0..2 {
                assert_eq!(copy.read(layer, 0, 70), block.read(layer, 0, 70), "{format}");
            }
        }
    }

    #[test]
    fn tiles_start_on_cache_lines() {
        let shape = KvShape { layers: 1, kv_heads: 2, head_dim: 8, format: KvFormat::Bf16 };
        let block = KvBlock::new(shape, 65);
        let Tile::Bf16 { k, v } = block.view(0, 65).tile(1, 1) else { panic!("a bf16 tile") };
        assert_eq!((k.as_ptr().align_offset(64), v.as_ptr().align_offset(64)), (0, 0));
        assert_eq!((k.len(), v.len()), (4 * 64, 32 * 8));
    }

    #[test]
    fn format_names_round_trip() {
        for format in KvFormat::ALL {
            assert_eq!(format.to_string().parse::<KvFormat>().unwrap(), format);
        }
        assert!("fp8".parse::<KvFormat>().unwrap_err().to_string().contains("f32, bf16, q8"));
    }

    #[test]
    #[should_panic(expected = "in room for")]
    fn writing_past_the_capacity_panics() {
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 8, format: KvFormat::F32 };
        KvBlock::new(shape, 3).write(0, 3, &[0.0; 8], &[0.0; 8]);
    }
}
