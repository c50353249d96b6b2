//! Logits of a batch on their way to one safetensors file. They may be far larger than memory, and a run may end at any
//! time: rows are appended to a spool beside the file, a line's rows count once the line is committed, and the file is
//! put together from the spool, and from what the file held before, when the run ends.
//!
//! A spool is a sequence of records: the length of a JSON header in four bytes (little endian), the header, and the
//! bytes that it announces.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::claim::{check_regular, claim};
use super::input::MAX_INDEX_BYTES;
use super::output::{beside, copy_range};

/// The longest header of a record that is believed: an index is a short text.
const MAX_RECORD_HEADER_BYTES: u32 = 1 << 20;
// JSON writes a byte of an index in six at most, and the rest of a header is short.
const _: () = assert!(6 * MAX_INDEX_BYTES + 1024 <= MAX_RECORD_HEADER_BYTES as usize);
/// The longest header of a safetensors file that its readers take.
const MAX_FILE_HEADER_BYTES: u64 = 100 << 20;

/// One record of the spool.
#[derive(Debug, Serialize, Deserialize)]
enum Record {
    /// Rows of `columns` f32 each, behind earlier rows of the same tensor and line.
    Rows { name: String, columns: usize, bytes: u64 },
    /// A line begins: rows since the last `Done` belong to one that was broken off.
    Begin,
    /// The line that began last is complete.
    Done,
}

/// A tensor `[rows, columns]`, in pieces.
#[derive(Clone, Debug, Default)]
struct Tensor {
    columns: usize,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    source: Source,
    start: u64,
    bytes: u64,
}

/// The file that a piece lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Spool,
    Earlier,
}

/// The logits written so far.
#[derive(Debug)]
pub(super) struct LogitsFile {
    path: PathBuf,
    spool_path: PathBuf,
    spool: BufWriter<File>,
    earlier: Option<File>,
    end: u64,
    tensors: BTreeMap<String, Tensor>,
    /// Rows of the line under way.
    pending: BTreeMap<String, Tensor>,
}

/// The name of the logits of a turn's query tokens, `[query tokens, vocab]`.
pub(super) fn query_name(index: &str, turn: usize) -> String {
    format!("{index}.turn{turn}.query_logits")
}

/// The name of the logits of a turn's steps, `[steps, vocab]`.
pub(super) fn step_name(index: &str, turn: usize) -> String {
    format!("{index}.turn{turn}.step_logits")
}

impl LogitsFile {
    /// Goes on with what `path` and its spool hold. Rows of lines that were not committed are cut away. The spool is
    /// locked until it is removed.
    ///
    /// # Errors
    /// What is wrong with the files; `UsageError` if one is no regular file or another batch writes to them.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        check_regular(path, "--logits")?;
        let spool_path = beside(path, "spool");
        let spool = claim(&spool_path, "--logits")?;
        Self::read(path, &spool_path, &spool).inspect_err(|_| {
            // One that was made just now is of no use to anybody.
            if spool.metadata().is_ok_and(|metadata| metadata.len() == 0) {
                let _ = fs::remove_file(&spool_path);
            }
        })
    }

    fn read(path: &Path, spool_path: &Path, spool: &File) -> anyhow::Result<Self> {
        let mut tensors = BTreeMap::new();
        let earlier = match File::open(path) {
            Ok(file) => {
                read_tensors(&file, &mut tensors).with_context(|| {
                    format!("{} is not a file of logits; give another --logits", path.display())
                })?;
                Some(file)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let end = read_spool(spool, &mut tensors).with_context(|| spool_path.display().to_string())?;
        spool.set_len(end)?;
        // The same open file, and so under the same lock.
        let mut spool = BufWriter::new(spool.try_clone()?);
        spool.seek(SeekFrom::Start(end))?;
        let (path, spool_path, pending) = (path.to_owned(), spool_path.to_owned(), BTreeMap::new());
        Ok(Self { path, spool_path, spool, earlier, end, tensors, pending })
    }

    /// Whether the logits of line `index` are there.
    pub(super) fn has(&self, index: &str) -> bool {
        self.tensors.contains_key(&query_name(index, 0))
    }

    /// Begins a line, and forgets what was appended for one that was not committed.
    pub(super) fn begin_line(&mut self) -> anyhow::Result<()> {
        self.pending.clear();
        self.record(&Record::Begin)?;
        Ok(())
    }

    /// Appends rows of `columns` to the tensor `name` of the line under way.
    pub(super) fn append(&mut self, name: &str, columns: usize, rows: &[f32]) -> anyhow::Result<()> {
        assert!(columns > 0 && rows.len().is_multiple_of(columns), "whole rows");
        let bytes = size_of_val(rows) as u64;
        let start = self.record(&Record::Rows { name: name.to_owned(), columns, bytes })?;
        for chunk in rows.chunks(4096) {
            let chunk: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.spool.write_all(&chunk).with_context(|| self.spool_path.display().to_string())?;
        }
        self.end = start + bytes;
        put(&mut self.pending, name, columns, Piece { source: Source::Spool, start, bytes });
        Ok(())
    }

    /// The line is complete: its tensors replace any of the same name. They are the system's when this returns.
    pub(super) fn commit(&mut self) -> anyhow::Result<()> {
        self.record(&Record::Done)?;
        self.spool.flush().with_context(|| self.spool_path.display().to_string())?;
        self.tensors.append(&mut self.pending);
        Ok(())
    }

    /// Puts the safetensors file together, in the place of the one before, and removes the spool.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.spool.flush()?;
        let part = beside(&self.path, "part");
        self.assemble(&part).with_context(|| part.display().to_string())?;
        fs::rename(&part, &self.path).with_context(|| self.path.display().to_string())?;
        // Everything in it is in the file now; one left over would only be read again.
        fs::remove_file(&self.spool_path).with_context(|| self.spool_path.display().to_string())
    }

    fn assemble(&self, part: &Path) -> anyhow::Result<()> {
        let mut entries = Map::new();
        let mut at = 0;
        for (name, tensor) in &self.tensors {
            let bytes: u64 = tensor.pieces.iter().map(|piece| piece.bytes).sum();
            let rows = bytes / (tensor.columns * size_of::<f32>()) as u64;
            let entry =
                json!({"dtype": "F32", "shape": [rows, tensor.columns], "data_offsets": [at, at + bytes]});
            entries.insert(name.clone(), entry);
            at += bytes;
        }
        let mut header = serde_json::to_vec(&entries)?;
        // The data begin at a multiple of 8, as the format asks.
        header.resize(header.len().next_multiple_of(8), b' ');
        ensure!(
            header.len() as u64 <= MAX_FILE_HEADER_BYTES,
            "too many tensors for one safetensors file; split the input"
        );
        let mut file = BufWriter::new(File::create(part)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for piece in self.tensors.values().flat_map(|tensor| &tensor.pieces) {
            let from = match (piece.source, &self.earlier) {
                (Source::Earlier, Some(earlier)) => earlier,
                _ => self.spool.get_ref(),
            };
            copy_range(from, piece.start, piece.bytes, &mut file)?;
        }
        file.flush()?;
        Ok(file.get_ref().sync_all()?)
    }

    /// Appends a record's header. Tells where its bytes go.
    fn record(&mut self, record: &Record) -> anyhow::Result<u64> {
        let header = serde_json::to_vec(record)?;
        let length = u32::try_from(header.len()).ok().filter(|&length| length <= MAX_RECORD_HEADER_BYTES);
        let length = length.context("the `index` is too long to name tensors by; shorten it")?;
        self.spool.write_all(&length.to_le_bytes()).and_then(|()| self.spool.write_all(&header))?;
        self.end += 4 + u64::from(length);
        Ok(self.end)
    }
}

fn put(tensors: &mut BTreeMap<String, Tensor>, name: &str, columns: usize, piece: Piece) {
    let tensor = tensors.entry(name.to_owned()).or_default();
    tensor.columns = columns;
    tensor.pieces.push(piece);
}

/// Reads the records of a spool up to the last commit. Gives the number of bytes that are whole and committed.
fn read_spool(file: &File, tensors: &mut BTreeMap<String, Tensor>) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let mut pending = BTreeMap::new();
    let (mut at, mut committed) = (0, 0);
    while let Some((record, header_bytes)) = read_record(&mut reader)? {
        at += header_bytes;
        match record {
            Record::Rows { name, columns, bytes } => {
                if bytes > length.saturating_sub(at) || columns == 0 {
                    break;
                }
                put(&mut pending, &name, columns, Piece { source: Source::Spool, start: at, bytes });
                at += bytes;
                reader.seek(SeekFrom::Start(at))?;
            }
            Record::Begin => pending.clear(),
            Record::Done => {
                tensors.append(&mut pending);
                committed = at;
            }
        }
    }
    Ok(committed)
}

/// The next record, or `None` where the spool ends or is torn.
fn read_record(reader: &mut impl Read) -> io::Result<Option<(Record, u64)>> {
    let mut length = [0; 4];
    if !read_whole(reader, &mut length)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_RECORD_HEADER_BYTES {
        return Ok(None);
    }
    let mut header = vec![0; length as usize];
    if !read_whole(reader, &mut header)? {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&header).ok().map(|record| (record, 4 + u64::from(length))))
}

fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The tensors of a safetensors file, by reading its header alone.
fn read_tensors(mut file: &File, tensors: &mut BTreeMap<String, Tensor>) -> anyhow::Result<()> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= MAX_FILE_HEADER_BYTES, "its header is too long");
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header)?;
    let mut bytes_expected = 8 + length;
    for (name, info) in metadata.tensors() {
        let &[_, columns] = info.shape.as_slice() else { bail!("{name} is not two-dimensional") };
        ensure!(info.dtype == Dtype::F32 && columns > 0, "{name} is not made of f32");
        let (start, end) = info.data_offsets;
        let (start, bytes) = (8 + length + start as u64, (end - start) as u64);
        bytes_expected = bytes_expected.max(start + bytes);
        put(tensors, &name, columns, Piece { source: Source::Earlier, start, bytes });
    }
    ensure!(file.metadata()?.len() == bytes_expected, "it is not of the length that its header says");
    Ok(())
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    fn read(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |data: &[u8]| data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            (name, (view.shape().to_vec(), floats(view.data())))
        };
        tensors.tensors().into_iter().map(read).collect()
    }

    fn line(file: &mut LogitsFile, index: &str, first: f32) {
        file.begin_line().unwrap();
        file.append(&step_name(index, 0), 2, &[first, 1.0]).unwrap();
        file.append(&query_name(index, 0), 2, &[5.0, 6.0, 7.0, 8.0]).unwrap();
        file.append(&step_name(index, 0), 2, &[2.0, 3.0]).unwrap();
        file.commit().unwrap();
    }

    #[test]
    fn rows_become_tensors_and_a_later_run_adds_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits.safetensors");
        let mut file = LogitsFile::open(&path).unwrap();
        line(&mut file, "b", 0.0);
        file.finish().unwrap();
        let mut file = LogitsFile::open(&path).unwrap();
        assert!(file.has("b") && !file.has("a"));
        line(&mut file, "a \"quoted\"", 9.0);
        line(&mut file, "b", 4.0);
        file.finish().unwrap();
        let tensors = read(&path);
        assert_eq!(tensors.len(), 4);
        assert_eq!(tensors["b.turn0.step_logits"], (vec![2, 2], vec![4.0, 1.0, 2.0, 3.0]));
        assert_eq!(tensors["a \"quoted\".turn0.query_logits"], (vec![2, 2], vec![5.0, 6.0, 7.0, 8.0]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the file itself is left");
    }

    #[test]
    fn what_a_killed_run_committed_is_there_and_what_it_broke_off_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits.safetensors");
        let mut file = LogitsFile::open(&path).unwrap();
        line(&mut file, "a", 0.0);
        file.begin_line().unwrap();
        file.append(&step_name("b", 0), 2, &[1.0, 1.0]).unwrap();
        line(&mut file, "c", 0.0);
        let committed = fs::metadata(beside(&path, "spool")).unwrap().len();
        file.begin_line().unwrap();
        file.append(&step_name("d", 0), 2, &[1.0, 1.0]).unwrap();
        file.spool.flush().unwrap();
        drop(file);
        // Torn anywhere behind the last commit, it is the same.
        let whole = fs::read(beside(&path, "spool")).unwrap();
        for length in committed as usize..=whole.len() {
            fs::write(beside(&path, "spool"), &whole[..length]).unwrap();
            let file = LogitsFile::open(&path).unwrap();
            assert!(file.has("a") && file.has("c"));
            assert_eq!(file.tensors.len(), 4, "torn at {length}");
            assert_eq!(file.end, committed);
        }
        LogitsFile::open(&path).unwrap().finish().unwrap();
        assert_eq!(read(&path).len(), 4);
    }

    #[test]
    fn two_batches_do_not_write_the_same_logits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits.safetensors");
        let file = LogitsFile::open(&path).unwrap();
        let error = LogitsFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("another batch is writing"), "{error}");
        file.finish().unwrap();
        LogitsFile::open(&path).unwrap();
    }

    #[test]
    fn a_file_of_somebody_else_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        fs::write(&path, "my notes").unwrap();
        let error = LogitsFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("--logits"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "my notes");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
