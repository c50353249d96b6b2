//! Weights, packed once when they are loaded. Where they come from, and how products with them run, is decided
//! elsewhere.
//!
//! f32 is packed as `[rows/64][cols][64]`, bf16 as `[rows/64][cols/2][64][2]` (pairs along the columns side by
//! side, an odd last column paired with 0), rows padded with zeros to 64. Quantised formats: see `quantised`.

use std::fmt;
use std::str::FromStr;

use half::bf16;

use crate::KernelError;
use crate::buffer::Buffer;
use crate::kv::widen_half;
use crate::quantised::{self, block_bytes};

/// Output rows that are packed side by side: four 512-bit vectors.
pub const ROWS_PER_PANEL: usize = 64;

/// Columns that packing handles at once, so that the lines it writes stay in the first-level cache.
const PACKED_COLUMNS: usize = 64;

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8-bit integers, one scale per 32 values.
    Q8_0,
    /// 4-bit integers in super-blocks of 256 values.
    Q4K,
    /// 6-bit integers in super-blocks of 256 values.
    Q6K,
}

impl WeightFormat {
    /// Every format, in the order of the names in messages.
    pub const ALL: [WeightFormat; 5] =
        [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q8_0, WeightFormat::Q4K, WeightFormat::Q6K];

    /// Values that are stored together; a row is a whole number of them.
    pub fn block_len(self) -> usize {
        match self {
            WeightFormat::F32 | WeightFormat::Bf16 => 1,
            WeightFormat::Q8_0 => 32,
            WeightFormat::Q4K | WeightFormat::Q6K => 256,
        }
    }

    /// Bytes that a weight `[rows, cols]` takes in memory: those of its values or blocks, with rows padded to 64, in
    /// bf16 also columns to 2; saturates instead of overflowing.
    pub fn bytes_for(self, rows: usize, cols: usize) -> usize {
        self.checked_bytes(rows, cols).unwrap_or(usize::MAX)
    }

    /// Bytes of one row of `cols` values as files store it, without padding; `cols` is whole blocks.
    pub fn row_bytes(self, cols: usize) -> usize {
        (cols / self.block_len()).saturating_mul(block_bytes(self))
    }

    fn checked_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        let cols = if self == WeightFormat::Bf16 { cols.checked_next_multiple_of(2)? } else { cols };
        let row_bytes = (cols / self.block_len()).checked_mul(block_bytes(self))?;
        rows.checked_next_multiple_of(ROWS_PER_PANEL)?.checked_mul(row_bytes)
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Q8_0 => "q8_0",
            WeightFormat::Q4K => "q4_k",
            WeightFormat::Q6K => "q6_k",
        })
    }
}

impl FromStr for WeightFormat {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        let known = "f32, bf16, q8_0, q4_k, q6_k";
        let found = Self::ALL.into_iter().find(|format| format.to_string() == name);
        found.ok_or_else(|| KernelError::UnknownName { what: "weight format", name: name.into(), known })
    }
}

/// A weight `[rows (outputs), cols (inputs)]`.
pub struct Matrix {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    pub(crate) storage: Storage,
}

pub(crate) enum Storage {
    /// f32 values or bf16 pairs.
    Packed(Buffer),
    /// Regions of quantised blocks.
    Blocks(Buffer),
}

impl Matrix {
    /// Starts a weight `[rows, cols]` whose rows are pushed in order. Memory is reserved whole.
    ///
    /// Fails where `cols` is not a multiple of the format's block length, and where there is no such memory.
    pub fn builder(format: WeightFormat, rows: usize, cols: usize) -> Result<MatrixBuilder, KernelError> {
        let block_len = format.block_len();
        if !cols.is_multiple_of(block_len) {
            return Err(KernelError::Columns { format, cols, block_len });
        }
        let too_large = || KernelError::TooLarge { format, rows, cols };
        let bytes = format.checked_bytes(rows, cols).ok_or_else(too_large)?;
        let storage = Buffer::zeroed(bytes).ok_or_else(too_large)?;
        let storage = if block_len == 1 { Storage::Packed(storage) } else { Storage::Blocks(storage) };
        Ok(MatrixBuilder { matrix: Matrix { format, rows, cols, storage }, pushed: 0 })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How values are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.format.bytes_for(self.rows, self.cols)
    }

    /// Widens one row to f32, `out` `[cols]`: the embedding lookup, also of tied output weights.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "a row has {} values", self.cols);
        let lane = index % ROWS_PER_PANEL;
        match &self.storage {
            Storage::Packed(_) if self.format == WeightFormat::F32 => {
                let lines = self.panel_words(index / ROWS_PER_PANEL).chunks_exact(ROWS_PER_PANEL);
                for (value, line) in out.iter_mut().zip(lines) {
                    *value = f32::from_bits(line[lane]);
                }
            }
            Storage::Packed(_) => {
                let lines = self.panel_words(index / ROWS_PER_PANEL).chunks_exact(ROWS_PER_PANEL);
                for (pair, line) in out.chunks_mut(2).zip(lines) {
                    for (half, value) in pair.iter_mut().enumerate() {
                        *value = widen_half(line[lane], half);
                    }
                }
            }
            Storage::Blocks(buffer) => {
                quantised::widen_row(self.format, bytemuck::cast_slice(buffer.words()), index, out);
            }
        }
    }

    /// The words of one panel of 64 rows of an f32 or bf16 weight.
    pub(crate) fn panel_words(&self, panel: usize) -> &[u32] {
        let Storage::Packed(buffer) = &self.storage else { panic!("{} weights have no panels", self.format) };
        let words = self.panel_len_words();
        &buffer.words()[panel * words..(panel + 1) * words]
    }

    /// The regions of one panel of 64 rows of a quantised weight.
    pub(crate) fn panel_regions(&self, panel: usize) -> &[u8] {
        let Storage::Blocks(buffer) = &self.storage else { panic!("{} weights have no blocks", self.format) };
        let bytes = self.format.bytes_for(ROWS_PER_PANEL, self.cols);
        &bytemuck::cast_slice(buffer.words())[panel * bytes..(panel + 1) * bytes]
    }

    fn panel_len_words(&self) -> usize {
        let lines = if self.format == WeightFormat::F32 { self.cols } else { self.cols.div_ceil(2) };
        lines * ROWS_PER_PANEL
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({} [{}, {}])", self.format, self.rows, self.cols)
    }
}

/// A weight whose rows are still coming.
#[derive(Debug)]
pub struct MatrixBuilder {
    matrix: Matrix,
    pushed: usize,
}

impl MatrixBuilder {
    /// Converts and packs the next rows, `rows` `[any number, cols]`.
    ///
    /// Panics on a part of a row or on more rows than announced.
    pub fn push_rows(&mut self, rows: &[f32]) {
        let Matrix { format, cols, .. } = self.matrix;
        let count = rows.len().checked_div(cols).unwrap_or(0);
        assert_eq!(rows.len(), count * cols, "whole rows of {cols} values");
        assert!(count <= self.missing(), "{count} rows pushed where {} are missing", self.missing());
        let panel_values = self.matrix.panel_len_words() * size_of::<u32>() / block_bytes(format);
        match &mut self.matrix.storage {
            Storage::Packed(buffer) if format == WeightFormat::F32 => {
                pack(buffer.values_mut(), panel_values, self.pushed, cols, rows, 1, |value| value);
            }
            Storage::Packed(buffer) => {
                pack(buffer.values_mut(), panel_values, self.pushed, cols, rows, 2, bf16::from_f32);
            }
            Storage::Blocks(buffer) => {
                // A panel at a time, which bounds the copy.
                for (index, rows) in rows.chunks((ROWS_PER_PANEL * cols).max(1)).enumerate() {
                    let first = self.pushed + index * ROWS_PER_PANEL;
                    let raw = quantised::quantise(format, rows);
                    quantised::pack(format, buffer.values_mut(), first, cols / format.block_len(), &raw);
                }
            }
        }
        self.pushed += count;
    }

    /// Appends whole rows that are in this quantised format already, as GGUF stores them.
    ///
    /// Fails on a format without blocks and on a length that is not whole missing rows; both leave the builder
    /// as it was.
    pub fn push_raw(&mut self, bytes: &[u8]) -> Result<(), KernelError> {
        let Matrix { format, cols, .. } = self.matrix;
        let row_bytes = format.row_bytes(cols);
        let count = bytes.len().checked_div(row_bytes).unwrap_or(0);
        let missing_rows = self.missing();
        if bytes.len() != count * row_bytes || count > missing_rows {
            return Err(KernelError::RawLength { bytes: bytes.len(), row_bytes, missing_rows });
        }
        match &mut self.matrix.storage {
            Storage::Packed(_) => return Err(KernelError::NotQuantised { format }),
            Storage::Blocks(buffer) => {
                let row_blocks = cols / format.block_len();
                quantised::pack(format, buffer.values_mut(), self.pushed, row_blocks, bytes);
            }
        }
        self.pushed += count;
        Ok(())
    }

    /// The finished weight.
    ///
    /// Fails where rows are missing; what was pushed is dropped.
    pub fn finish(self) -> Result<Matrix, KernelError> {
        // Rows of no columns hold nothing that could be pushed.
        if self.missing() > 0 && self.matrix.cols > 0 {
            return Err(KernelError::MissingRows { pushed: self.pushed, rows: self.matrix.rows });
        }
        Ok(self.matrix)
    }

    fn missing(&self) -> usize {
        self.matrix.rows - self.pushed
    }
}

/// Writes `rows` from row `first` on into panels of `[cols / group][64][group]` values.
fn pack<T>(
    packed: &mut [T],
    panel_values: usize,
    first: usize,
    cols: usize,
    rows: &[f32],
    group: usize,
    convert: impl Fn(f32) -> T,
) {
    let count = rows.len().checked_div(cols).unwrap_or(0);
    for start in (0..cols).step_by(PACKED_COLUMNS) {
        let columns = start..cols.min(start + PACKED_COLUMNS);
        for row in 0..count {
            let (panel, lane) = ((first + row) / ROWS_PER_PANEL, (first + row) % ROWS_PER_PANEL);
            let panel = &mut packed[panel * panel_values..(panel + 1) * panel_values];
            for col in columns.clone() {
                let at = (col / group * ROWS_PER_PANEL + lane) * group + col % group;
                panel[at] = convert(rows[row * cols + col]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37) % 127) as f32 - 63.0).collect()
    }

    #[test]
    fn rows_pushed_in_pieces_are_read_back() {
        for format in WeightFormat::ALL {
            let (rows, cols) = (130, if format.block_len() == 1 { 75 } else { 512 });
            let data = values(rows * cols);
            let mut builder = Matrix::builder(format, rows, cols).unwrap();
            for piece in [0..1, 1..1, 1..70, 70..130] {
                builder.push_rows(&data[piece.start * cols..piece.end * cols]);
            }
            let matrix = builder.finish().unwrap();
            assert_eq!(matrix.bytes(), format.bytes_for(rows, cols));
            let (mut row, tolerance) = (
                vec![0.0; cols],
                match format {
                    WeightFormat::F32 | WeightFormat::Bf16 => 0.0,
                    WeightFormat::Q8_0 => 0.5,
                    WeightFormat::Q6K => 4.0,
                    WeightFormat::Q4K => 9.0,
                },
            );
            for index in 0..rows {
                matrix.row(index, &mut row);
                for (col, value) in row.iter().enumerate() {
                    let wanted = data[index * cols + col];
                    assert!(
                        (value - wanted).abs() <= tolerance,
                        "{format} [{index}, {col}] {value} not {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn packed_sizes_are_exact() {
        assert_eq!(WeightFormat::F32.bytes_for(65, 3), 128 * 3 * 4);
        assert_eq!(WeightFormat::Bf16.bytes_for(65, 3), 128 * 4 * 2);
        assert_eq!(WeightFormat::Q8_0.bytes_for(65, 64), 128 * 2 * 34);
        assert_eq!(WeightFormat::Q4K.bytes_for(3, 512), 64 * 2 * 144);
        assert_eq!(WeightFormat::Q6K.row_bytes(512), 2 * 210);
        assert_eq!(WeightFormat::Q6K.bytes_for(3, 512), 64 * 2 * 210);
    }

    #[test]
    fn hostile_sizes_are_errors() {
        for format in WeightFormat::ALL {
            let error = Matrix::builder(format, usize::MAX / 2, 256).unwrap_err();
            assert!(matches!(error, KernelError::TooLarge { .. }), "{error}");
            let error = Matrix::builder(format, 1 << 50, 256).unwrap_err();
            assert!(matches!(error, KernelError::TooLarge { .. }), "{error}");
        }
        let error = Matrix::builder(WeightFormat::Q4K, 1, 128).unwrap_err();
        assert!(matches!(error, KernelError::Columns { block_len: 256, .. }));
        let mut builder = Matrix::builder(WeightFormat::Q8_0, 2, 32).unwrap();
        for bytes in [1, 33, 35, 67, 3 * 34] {
            assert!(
                matches!(builder.push_raw(&vec![0; bytes]), Err(KernelError::RawLength { .. })),
                "{bytes}"
            );
        }
        builder.push_raw(&[0; 34]).unwrap();
        assert!(matches!(builder.finish(), Err(KernelError::MissingRows { pushed: 1, rows: 2 })));
        let mut builder = Matrix::builder(WeightFormat::Bf16, 1, 2).unwrap();
        assert!(matches!(builder.push_raw(&[0; 4]), Err(KernelError::NotQuantised { .. })));
    }

    #[test]
    fn format_names_round_trip() {
        for format in WeightFormat::ALL {
            assert_eq!(format.to_string().parse::<WeightFormat>().unwrap(), format);
        }
        assert!("q5_0".parse::<WeightFormat>().is_err());
    }
}
