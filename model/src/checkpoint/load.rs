//! Streams tensors from mapped files into the kernels' packed matrices, a few MiB at a time, releasing the mapped
//! pages behind: so that the peak of memory is the weights in their running format and little more.

use std::ops::Range;

use half::f16;
use stellate_kernels::{KernelError, Matrix, WeightFormat};

use super::file::WeightFile;
use super::placed::Placed;
use super::plan::{self, Naming, Slot};
use super::{CheckpointError, Entry, LoadProgress, Loaded, Stored, TensorTable};
use crate::config::ModelConfig;
use crate::fingerprint::{Fingerprint, Hasher};
use crate::weights::WeightChoice;

/// Widened numbers held at a time, in bytes: large enough to amortise a call, small beside any weights.
const CHUNK_BYTES: usize = 4 << 20;

/// More than any page, so that releasing chunk after chunk leaves no page behind.
const RELEASE_OVERLAP_BYTES: usize = 128 << 10;

/// Where the weights of one model lie and how they are to run.
pub(super) struct Source<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) naming: Naming,
    pub(super) table: &'a TensorTable,
    pub(super) files: &'a [WeightFile],
    pub(super) choice: WeightChoice,
}

/// Loads weights one after another, hashing what it reads.
struct Loader<'a> {
    source: &'a Source<'a>,
    hasher: Hasher,
    scratch: Vec<f32>,
    /// The format of each matrix so far.
    formats: Vec<WeightFormat>,
    done_bytes: u64,
    total_bytes: u64,
    progress: &'a mut dyn FnMut(LoadProgress<'_>),
}

/// Loads all weights. The source has been checked by `plan::check`.
pub(super) fn load(
    source: &Source<'_>,
    progress: &mut dyn FnMut(LoadProgress<'_>),
) -> Result<Loaded, CheckpointError> {
    let total_bytes = stored_bytes(source)?;
    let hasher = Hasher::new(source.config);
    let (scratch, formats) = (Vec::new(), Vec::new());
    let mut loader = Loader { source, hasher, scratch, formats, done_bytes: 0, total_bytes, progress };
    let mut placed = Placed::new(source.config.layers);
    for slot in plan::slots(source.config) {
        match slot.shape(source.config).len() {
            1 => placed.put_vector(slot, loader.vector(slot)?),
            _ => placed.put_matrix(slot, loader.matrix(slot)?),
        }
    }
    if let Some(fallbacks) = source.choice.fallbacks(loader.formats) {
        tracing::warn!("{fallbacks}");
    }
    let weights = placed.finish();
    Ok(Loaded { weights, fingerprint: loader.hasher.finish(), format: source.choice })
}

/// The fingerprint that `load` would return, by reading everything and keeping nothing.
pub(super) fn fingerprint(source: &Source<'_>) -> Result<Fingerprint, CheckpointError> {
    let mut hasher = Hasher::new(source.config);
    for slot in plan::slots(source.config) {
        let entry = source.entry(slot)?;
        source.announce(&mut hasher, slot, entry);
        let file = &source.files[entry.file];
        for start in entry.range.clone().step_by(CHUNK_BYTES) {
            let end = entry.range.end.min(start + CHUNK_BYTES);
            hasher.contents(&file.bytes()[start..end]);
            file.release(start.saturating_sub(RELEASE_OVERLAP_BYTES)..end);
        }
    }
    Ok(hasher.finish())
}

fn stored_bytes(source: &Source<'_>) -> Result<u64, CheckpointError> {
    let mut total = 0;
    for slot in plan::slots(source.config) {
        total += source.entry(slot)?.range.len() as u64;
    }
    Ok(total)
}

impl Source<'_> {
    fn entry(&self, slot: Slot) -> Result<&Entry, CheckpointError> {
        plan::entry(self.config, self.naming, self.table, slot)
    }

    /// The format a tensor runs in. Norms and biases always run in f32.
    fn running(&self, entry: &Entry) -> WeightFormat {
        match (entry.shape.as_slice(), entry.stored.own_format()) {
            (&[_, cols], Some(own)) => self.choice.resolve(own, cols),
            _ => WeightFormat::F32,
        }
    }

    fn announce(&self, hasher: &mut Hasher, slot: Slot, entry: &Entry) {
        let name = slot.name(self.naming);
        hasher.tensor(&name, &entry.stored.name(), &entry.shape, self.running(entry));
    }
}

impl Loader<'_> {
    fn vector(&mut self, slot: Slot) -> Result<Vec<f32>, CheckpointError> {
        let source = self.source;
        let entry = source.entry(slot)?;
        source.announce(&mut self.hasher, slot, entry);
        let bytes = &source.files[entry.file].bytes()[entry.range.clone()];
        self.hasher.contents(bytes);
        let mut values = vec![0.0; entry.shape[0]];
        widen(&entry.stored, 1, bytes, &mut values).map_err(|source| self.refused(slot, source))?;
        if slot.is_interleaved(source.naming) {
            let stored = values.clone();
            for (target, row) in
                values.iter_mut().zip(interleaved_rows(0..stored.len(), source.config.head_dim))
            {
                *target = stored[row];
            }
        }
        self.advance(slot, entry, entry.range.clone());
        Ok(values)
    }

    fn matrix(&mut self, slot: Slot) -> Result<Matrix, CheckpointError> {
        let source = self.source;
        let entry = source.entry(slot)?;
        source.announce(&mut self.hasher, slot, entry);
        let (rows, cols) = (entry.shape[0], entry.shape[1]);
        let format = source.running(entry);
        self.formats.push(format);
        let row_bytes = entry.range.len() / rows;
        let interleaved = slot.is_interleaved(source.naming);
        let unit = if interleaved { source.config.head_dim } else { 1 };
        let chunk_rows = (CHUNK_BYTES / (cols * size_of::<f32>()) / unit).max(1) * unit;

        let mut builder = Matrix::builder(format, rows, cols).map_err(|source| self.refused(slot, source))?;
        let mut reordered = Vec::new();
        for first in (0..rows).step_by(chunk_rows) {
            let chunk = first..rows.min(first + chunk_rows);
            let range =
                entry.range.start + chunk.start * row_bytes..entry.range.start + chunk.end * row_bytes;
            let mut bytes = &source.files[entry.file].bytes()[range.clone()];
            self.hasher.contents(bytes);
            if interleaved {
                reordered.clear();
                for row in interleaved_rows(0..chunk.len(), source.config.head_dim) {
                    reordered.extend_from_slice(&bytes[row * row_bytes..][..row_bytes]);
                }
                bytes = &reordered;
            }
            if entry.stored == Stored::Blocks(format) {
                builder.push_raw(bytes).map_err(|source| self.refused(slot, source))?;
            } else {
                self.scratch.resize(chunk.len() * cols, 0.0);
                widen(&entry.stored, chunk.len(), bytes, &mut self.scratch)
                    .map_err(|source| self.refused(slot, source))?;
                builder.push_rows(&self.scratch);
            }
            self.advance(slot, entry, range);
        }
        builder.finish().map_err(|source| self.refused(slot, source))
    }

    /// Gives the pages behind back to the system, and reports.
    fn advance(&mut self, slot: Slot, entry: &Entry, range: Range<usize>) {
        self.done_bytes += range.len() as u64;
        // Only whole pages are released, so each call also takes the rest that the one before had to leave.
        let start = range.start.saturating_sub(RELEASE_OVERLAP_BYTES);
        self.source.files[entry.file].release(start..range.end);
        let tensor = slot.name(self.source.naming);
        let progress =
            LoadProgress { tensor: &tensor, done_bytes: self.done_bytes, total_bytes: self.total_bytes };
        (self.progress)(progress);
    }

    fn refused(&self, slot: Slot, source: KernelError) -> CheckpointError {
        CheckpointError::Kernel { tensor: slot.name(self.source.naming), source }
    }
}

/// For each row of `rows` in transformers' order, the row of the file that holds it. llama.cpp stores heads for a
/// RoPE of neighbouring pairs: pair `j` of a head at rows `2j` and `2j + 1`, where transformers has `j` and `j + half`.
fn interleaved_rows(rows: Range<usize>, head_dim: usize) -> impl Iterator<Item = usize> {
    let half = head_dim / 2;
    rows.map(move |row| {
        let (head, within) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (within % half) + within / half
    })
}

/// Widens `rows` whole rows of stored numbers to f32.
fn widen(stored: &Stored, rows: usize, bytes: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    match stored {
        Stored::F32 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Stored::F16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        Stored::Bf16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        Stored::Blocks(format) => {
            // The kernels know the blocks: a small matrix of this chunk gives its rows back in f32.
            let cols = out.len() / rows;
            let mut builder = Matrix::builder(*format, rows, cols)?;
            builder.push_raw(bytes)?;
            let matrix = builder.finish()?;
            for (index, row) in out.chunks_exact_mut(cols).enumerate() {
                matrix.row(index, row);
            }
        }
        Stored::Other(name) => unreachable!("the plan refuses tensors stored as {name}"),
    }
    Ok(())
}
