//! The input of a batch as lines, from a file, a pipe or standard input. It is read in one pass, on threads of its own:
//! a pipe may wait for ever, and Ctrl-C must not. What a line says is in `input.rs`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, stdin};
use std::path::Path;

use anyhow::Context as _;

use crate::exit::UsageError;
use crate::interrupt::Interrupt;

/// What some editors put in front of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line that is not blank, with its number from 1.
pub(super) type NumberedLine = (usize, Vec<u8>);

/// The input under way.
pub(super) struct Input {
    interrupt: Interrupt,
    name: String,
    /// None at the end.
    reader: Option<LineReader>,
    lines: Option<usize>,
}

impl Input {
    /// Opens `path`; `-` is standard input.
    ///
    /// # Errors
    /// `UsageError` if it cannot be read; `Interrupted`.
    pub(super) async fn open(interrupt: &Interrupt, path: &Path) -> anyhow::Result<Self> {
        let is_stdin = path == Path::new("-");
        let name = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
        let path = path.to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            if is_stdin { Ok((LineReader::new(stdin()), None)) } else { open_file(&path) }
        });
        let opened = interrupt.or(opening).await?.context("the thread that opens the input stopped")?;
        let (reader, lines) =
            opened.map_err(|error| UsageError(format!("cannot read {name}: {error}; name a file, or -")))?;
        Ok(Self { interrupt: interrupt.clone(), name, reader: Some(reader), lines })
    }

    /// Lines that are not blank, if that can be known: of a regular file.
    pub(super) fn lines(&self) -> Option<usize> {
        self.lines
    }

    /// The next line that is not blank.
    ///
    /// # Errors
    /// What is wrong with the file; `Interrupted`. Nothing more can be read then.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<NumberedLine>> {
        let Some(mut reader) = self.reader.take() else { return Ok(None) };
        let reading = tokio::task::spawn_blocking(move || {
            let line = reader.next();
            (reader, line)
        });
        let read = self.interrupt.or(reading).await?;
        let (reader, line) = read.context("the thread that reads the input stopped")?;
        let line = line.with_context(|| format!("cannot read {}", self.name))?;
        self.reader = line.is_some().then_some(reader);
        Ok(line)
    }
}

/// Reads lines, one at a time.
struct LineReader {
    from: BufReader<Box<dyn Read + Send>>,
    read: usize,
}

impl LineReader {
    fn new(from: impl Read + Send + 'static) -> Self {
        Self { from: BufReader::new(Box::new(from)), read: 0 }
    }

    fn next(&mut self) -> io::Result<Option<NumberedLine>> {
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            if self.from.read_until(b'\n', &mut buffer)? == 0 {
                return Ok(None);
            }
            self.read += 1;
            let line = match self.read {
                1 => buffer.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&buffer),
                _ => &buffer,
            };
            let line = line.trim_ascii();
            if !line.is_empty() {
                return Ok(Some((self.read, line.to_vec())));
            }
        }
    }
}

/// A file at its beginning, and its lines if it is a regular one: any other can be read only once.
fn open_file(path: &Path) -> io::Result<(LineReader, Option<usize>)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Ok((LineReader::new(file), None));
    }
    let mut reader = LineReader::new(file.try_clone()?);
    let mut lines = 0;
    while reader.next()?.is_some() {
        lines += 1;
    }
    file.rewind()?;
    Ok((LineReader::new(file), Some(lines)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &'static [u8]) -> Vec<(usize, String)> {
        let mut reader = LineReader::new(bytes);
        std::iter::from_fn(|| reader.next().unwrap())
            .map(|(number, line)| (number, String::from_utf8(line).unwrap()))
            .collect()
    }

    #[test]
    fn blank_lines_are_passed_over_and_counted() {
        assert_eq!(read(b"a\n\n \t\n b \r\nc"), [(1, "a".into()), (4, "b".into()), (5, "c".into())]);
    }

    #[test]
    fn a_byte_order_mark_in_front_is_no_part_of_the_first_line() {
        assert_eq!(read(b"\xef\xbb\xbf{}\n{}"), [(1, "{}".into()), (2, "{}".into())]);
        assert_eq!(read(b"\xef\xbb\xbf\n{}"), [(2, "{}".into())]);
    }

    #[test]
    fn a_regular_file_is_counted_and_then_read_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.jsonl");
        std::fs::write(&path, "a\n\nb").unwrap();
        let (mut reader, lines) = open_file(&path).unwrap();
        assert_eq!(lines, Some(2));
        assert_eq!(reader.next().unwrap(), Some((1, b"a".to_vec())));
        assert!(open_file(folder.path()).is_err());
    }
}
