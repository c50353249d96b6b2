//! Which tensors a checkpoint's files hold, by name: format, shape and the range of bytes. Built from headers alone;
//! every range has been checked against its file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use stellate_kernels::WeightFormat;

use super::CheckpointError;
use crate::gguf::{GgufFile, TensorType};

/// Bytes before the header of a safetensors file: its length.
const SAFETENSORS_PREFIX_BYTES: u64 = 8;

/// How the numbers of a tensor are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of a quantised format.
    Blocks(WeightFormat),
    /// Anything else, by name: an error only if the tensor is needed.
    Other(String),
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which of the checkpoint's weight files holds it.
    pub file: usize,
    /// Where in the file, in bytes.
    pub range: Range<usize>,
    /// Number format.
    pub stored: Stored,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

/// All tensors of a checkpoint by name.
#[derive(Clone, Debug, Default)]
pub struct TensorTable {
    entries: BTreeMap<String, Entry>,
}

impl Stored {
    /// Name for messages and fingerprints.
    pub fn name(&self) -> String {
        match self {
            Stored::F32 => "F32".into(),
            Stored::F16 => "F16".into(),
            Stored::Bf16 => "BF16".into(),
            Stored::Blocks(format) => format.to_string().to_uppercase(),
            Stored::Other(name) => name.clone(),
        }
    }

    /// The format that keeps these numbers as they are, or nearly: f16 runs in bf16, with more range and fewer digits.
    pub fn own_format(&self) -> Option<WeightFormat> {
        match self {
            Stored::F32 => Some(WeightFormat::F32),
            Stored::F16 | Stored::Bf16 => Some(WeightFormat::Bf16),
            Stored::Blocks(format) => Some(*format),
            Stored::Other(_) => None,
        }
    }

    /// Bytes of one row of `cols` numbers, if rows are whole blocks.
    pub fn row_bytes(&self, cols: usize) -> Option<usize> {
        match self {
            Stored::F32 => cols.checked_mul(4),
            Stored::F16 | Stored::Bf16 => cols.checked_mul(2),
            Stored::Blocks(format) => cols.is_multiple_of(format.block_len()).then(|| format.row_bytes(cols)),
            Stored::Other(_) => None,
        }
    }
}

impl TensorTable {
    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Adds the tensors of a safetensors file whose whole contents are `bytes`; only the header is read.
    /// `file` becomes [`Entry::file`]; `path` serves error messages.
    pub fn add_safetensors(&mut self, file: usize, path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
        check_length(path, bytes)?;
        let malformed = |reason: String| CheckpointError::Malformed { path: path.to_owned(), reason };
        let (header_bytes, header) = match SafeTensors::read_metadata(bytes) {
            Ok(read) => read,
            Err(safetensors::SafeTensorError::MetadataIncompleteBuffer) => {
                return Err(wrong_length(path, bytes));
            }
            Err(error) => return Err(malformed(error.to_string())),
        };
        let data = header_bytes + SAFETENSORS_PREFIX_BYTES as usize;
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let stored = match info.dtype {
                Dtype::F32 => Stored::F32,
                Dtype::F16 => Stored::F16,
                Dtype::BF16 => Stored::Bf16,
                other => Stored::Other(format!("{other:?}")),
            };
            let entry = Entry { file, range: data + start..data + end, stored, shape: info.shape.clone() };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(malformed(format!("the tensor `{name}` is also in another shard")));
            }
        }
        Ok(())
    }

    /// The tensors of a GGUF file.
    pub fn from_gguf(gguf: &GgufFile) -> Self {
        let entries = gguf.tensors().iter().map(|tensor| {
            let stored = match tensor.kind {
                TensorType::F32 => Stored::F32,
                TensorType::F16 => Stored::F16,
                TensorType::Bf16 => Stored::Bf16,
                TensorType::Q8_0 => Stored::Blocks(WeightFormat::Q8_0),
                TensorType::Q4K => Stored::Blocks(WeightFormat::Q4K),
                TensorType::Q6K => Stored::Blocks(WeightFormat::Q6K),
                TensorType::Other(code) => Stored::Other(TensorType::name_of(code)),
            };
            let entry = Entry { file: 0, range: tensor.range.clone(), stored, shape: tensor.shape.clone() };
            (tensor.name.clone(), entry)
        });
        Self { entries: entries.collect() }
    }
}

/// A header longer than the file is a truncated file, the commonest damage, and deserves its own message.
fn check_length(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let found_bytes = bytes.len() as u64;
    let needed_bytes = match bytes.first_chunk::<8>() {
        Some(prefix) => u64::from_le_bytes(*prefix).saturating_add(SAFETENSORS_PREFIX_BYTES),
        None => SAFETENSORS_PREFIX_BYTES,
    };
    if needed_bytes > found_bytes {
        return Err(CheckpointError::Truncated { path: path.to_owned(), needed_bytes, found_bytes });
    }
    Ok(())
}

/// The header is sound and the data is longer or shorter than it says.
fn wrong_length(path: &Path, bytes: &[u8]) -> CheckpointError {
    let path = path.to_owned();
    let found_bytes = bytes.len() as u64;
    match data_end(bytes) {
        Some(needed_bytes) if needed_bytes > found_bytes => {
            CheckpointError::Truncated { path, needed_bytes, found_bytes }
        }
        _ => CheckpointError::Malformed { path, reason: "there are bytes after the last tensor".into() },
    }
}

/// Where the last tensor ends, read from the header without the checks that failed.
fn data_end(bytes: &[u8]) -> Option<u64> {
    let header_bytes = u64::from_le_bytes(*bytes.first_chunk::<8>()?);
    let end = usize::try_from(header_bytes).ok()?.checked_add(8)?;
    let header: serde_json::Value = serde_json::from_slice(bytes.get(8..end)?).ok()?;
    let ends = header.as_object()?.values().filter_map(|info| info.get("data_offsets")?.get(1)?.as_u64());
    ends.max()?.checked_add(end as u64)
}
