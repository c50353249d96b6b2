//! GGUF files, versions 2 and 3: header, metadata, tensor list. Own reader, because every length in a file from a
//! stranger must be checked against the file before it is believed. Tensor contents are read by `crate::checkpoint`.
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod cursor;
mod metadata;
mod model;
mod text;

use std::collections::BTreeSet;
use std::ops::Range;

use thiserror::Error;

use cursor::Cursor;
pub use metadata::{GgufMetadata, GgufValue};

const MAGIC: [u8; 4] = *b"GGUF";
/// Where tensor data begins is rounded up to this, unless the metadata says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Largest alignment that is believed.
const MAX_ALIGNMENT: u64 = 1 << 16;
/// ggml has no tensors of more dimensions.
const MAX_DIMENSIONS: u32 = 4;
/// Longest name of a tensor or key that is believed, in bytes. ggml itself stops at 64 for tensors.
const MAX_NAME_BYTES: usize = 1 << 12;
/// Least bytes of a tensor's description: name length, dimensions, type, offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// Why a GGUF file cannot be used. Nothing was kept.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GgufError {
    /// The first four bytes are wrong.
    #[error("this is not a GGUF file")]
    NotGguf,
    /// The file is of another version, or from a big-endian machine.
    #[error(
        "GGUF version {0} is not supported, only 2 and 3 are; convert the model again with a current tool"
    )]
    Version(u32),
    /// The file ends early.
    #[error("the file is truncated: {what} needs {needed} bytes at byte {at} of {length}; download it again")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where, in bytes.
        at: u64,
        /// How much it needs, in bytes.
        needed: u64,
        /// Length of the file, in bytes.
        length: u64,
    },
    /// The contents of one tensor lie beyond the end of the file.
    #[error("the file is truncated: the tensor `{tensor}` ends at byte {end} of {length}; download it again")]
    TruncatedTensor {
        /// Name of the tensor.
        tensor: String,
        /// Where it should end, in bytes.
        end: u64,
        /// Length of the file, in bytes.
        length: u64,
    },
    /// The header contradicts itself.
    #[error("the file is damaged: {0}; download it again")]
    Malformed(String),
}

/// The number format of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit blocks of 32.
    Q8_0,
    /// 4-bit blocks of 256.
    Q4K,
    /// 6-bit blocks of 256.
    Q6K,
    /// A type that cannot be read, by its number in the file.
    Other(u32),
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Number format.
    pub kind: TensorType,
    /// Sizes, outermost first (a file has them innermost first).
    pub shape: Vec<usize>,
    /// Where its contents lie in the file, in bytes; empty for types that cannot be read.
    pub range: Range<usize>,
}

/// The header of a file, with every length checked.
#[derive(Clone, Debug)]
pub struct GgufFile {
    metadata: GgufMetadata,
    tensors: Vec<GgufTensor>,
}

impl TensorType {
    fn from_code(code: u32) -> Self {
        match code {
            0 => Self::F32,
            1 => Self::F16,
            30 => Self::Bf16,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            14 => Self::Q6K,
            other => Self::Other(other),
        }
    }

    /// Numbers and bytes of one block, for the types that can be read.
    fn block(self) -> Option<(u64, u64)> {
        match self {
            Self::F32 => Some((1, 4)),
            Self::F16 | Self::Bf16 => Some((1, 2)),
            Self::Q8_0 => Some((32, 34)),
            Self::Q4K => Some((256, 144)),
            Self::Q6K => Some((256, 210)),
            Self::Other(_) => None,
        }
    }

    /// ggml's name of a type that cannot be read.
    pub fn name_of(code: u32) -> String {
        let name = match code {
            2 => "Q4_0",
            3 => "Q4_1",
            6 => "Q5_0",
            7 => "Q5_1",
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            13 => "Q5_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            29 => "IQ1_M",
            39 => "MXFP4",
            other => return format!("ggml type {other}"),
        };
        name.to_owned()
    }
}

impl GgufFile {
    /// Reads the header of a file whose whole contents are `bytes`. Allocates at most a small multiple of the
    /// header's own size.
    pub fn parse(bytes: &[u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(bytes);
        if bytes.first_chunk() != Some(&MAGIC) {
            return Err(GgufError::NotGguf);
        }
        cursor.take(MAGIC.len(), "the magic")?;
        let version = cursor.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensor_count = cursor.u64("the number of tensors")?;
        let entry_count = cursor.u64("the number of metadata entries")?;
        let metadata = GgufMetadata::read(&mut cursor, entry_count)?;
        let described = tensor_list(&mut cursor, tensor_count)?;

        let alignment = metadata.integer("general.alignment").unwrap_or(DEFAULT_ALIGNMENT as i64) as u64;
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            return Err(GgufError::Malformed(format!("an alignment of {alignment} bytes cannot be")));
        }
        let data = cursor.position().next_multiple_of(alignment);
        let length = bytes.len() as u64;
        let mut names = BTreeSet::new();
        let mut tensors = Vec::with_capacity(described.len());
        for tensor in described {
            if !names.insert(tensor.name.clone()) {
                return Err(GgufError::Malformed(format!("the tensor `{}` is there twice", tensor.name)));
            }
            tensors.push(tensor.locate(data, alignment, length)?);
        }
        Ok(Self { metadata, tensors })
    }

    /// Metadata: hyperparameters, and mostly a tokenizer and a chat template.
    pub fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    /// Keeps the metadata alone.
    pub fn into_metadata(self) -> GgufMetadata {
        self.metadata
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }
}

/// A tensor as the list describes it, before its place in the file is known.
struct Described {
    name: String,
    /// Innermost first.
    dimensions: Vec<u64>,
    kind: TensorType,
    offset: u64,
}

fn tensor_list(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Described>, GgufError> {
    cursor.expect_items(count, LEAST_TENSOR_BYTES, "the list of tensors")?;
    let mut list = Vec::new();
    for _ in 0..count {
        let name = cursor.name(MAX_NAME_BYTES)?;
        let dimension_count = cursor.u32("a tensor's number of dimensions")?;
        if !(1..=MAX_DIMENSIONS).contains(&dimension_count) {
            return Err(GgufError::Malformed(format!(
                "the tensor `{name}` has {dimension_count} dimensions"
            )));
        }
        let mut dimensions = Vec::with_capacity(dimension_count as usize);
        for _ in 0..dimension_count {
            dimensions.push(cursor.u64("a tensor's size")?);
        }
        let kind = TensorType::from_code(cursor.u32("a tensor's type")?);
        let offset = cursor.u64("a tensor's offset")?;
        list.push(Described { name, dimensions, kind, offset });
    }
    Ok(list)
}

impl Described {
    fn locate(self, data: u64, alignment: u64, length: u64) -> Result<GgufTensor, GgufError> {
        let Self { name, dimensions, kind, offset } = self;
        let malformed = |reason: String| GgufError::Malformed(format!("the tensor `{name}` {reason}"));
        if !offset.is_multiple_of(alignment) {
            return Err(malformed(format!("lies at {offset}, which is no multiple of {alignment}")));
        }
        let overflow = || malformed("is larger than any file".into());
        let mut shape = Vec::with_capacity(dimensions.len());
        let mut numbers: u64 = 1;
        for &dimension in dimensions.iter().rev() {
            numbers = numbers.checked_mul(dimension).ok_or_else(overflow)?;
            shape.push(usize::try_from(dimension).map_err(|_| overflow())?);
        }
        let Some((block_numbers, block_bytes)) = kind.block() else {
            return Ok(GgufTensor { name, kind, shape, range: 0..0 });
        };
        if !dimensions[0].is_multiple_of(block_numbers) {
            return Err(malformed(format!("has rows of {} numbers, not whole blocks", dimensions[0])));
        }
        let size = (numbers / block_numbers).checked_mul(block_bytes).ok_or_else(overflow)?;
        let start = data.checked_add(offset).ok_or_else(overflow)?;
        let end = start.checked_add(size).ok_or_else(overflow)?;
        if end > length {
            return Err(GgufError::TruncatedTensor { tensor: name, end, length });
        }
        Ok(GgufTensor { name, kind, shape, range: start as usize..end as usize })
    }
}
