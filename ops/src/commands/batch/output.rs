//! The file of answers: one JSON object a line. It is written line by line and can be taken up again after any end,
//! be it in the middle of a line; what an answer says is decided elsewhere.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde_json::Value;

/// How every line of an answer begins.
const LINE_START: &[u8] = b"{\"index\":";

/// An output file that is open for more lines.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    file: File,
    end: u64,
    lines: Vec<Placed>,
    done: BTreeMap<String, usize>,
}

/// Where a line lies in the file, and the number of its input line once that is known.
#[derive(Clone, Copy, Debug)]
struct Placed {
    number: Option<usize>,
    start: u64,
    bytes: u64,
}

/// What one line of an earlier output is.
enum Earlier {
    Answer(String),
    Error,
    Torn,
}

impl Output {
    /// Opens `path` to go on with what it holds. Answers stay if `keeps` their index; errors, which are tried again,
    /// and a torn last line are cut away. A file with anything else in it is left alone and refused.
    pub(super) fn open(path: &Path, mut keeps: impl FnMut(&str) -> bool) -> anyhow::Result<Self> {
        let named = || path.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(named)?;
        let mut kept: Vec<Placed> = Vec::new();
        let mut done = BTreeMap::new();
        let mut reader = BufReader::new(&file);
        let (mut at, mut number, mut needs_newline) = (0, 0, false);
        let mut line = Vec::new();
        loop {
            line.clear();
            let bytes = reader.read_until(b'\n', &mut line).with_context(named)? as u64;
            if bytes == 0 {
                break;
            }
            number += 1;
            let earlier = read_earlier(&line).with_context(|| format!("{} line {number}", path.display()))?;
            match earlier {
                Some(Earlier::Answer(key)) if keeps(&key) && !done.contains_key(&key) => {
                    done.insert(key, kept.len());
                    kept.push(Placed { number: None, start: at, bytes });
                    needs_newline = !line.ends_with(b"\n");
                }
                _ => {}
            }
            at += bytes;
        }
        let kept_bytes: u64 = kept.iter().map(|line| line.bytes).sum();
        let in_front = kept.last().is_none_or(|last| last.start + last.bytes == kept_bytes);
        if in_front {
            file.set_len(kept_bytes).with_context(named)?;
        } else {
            file = rewrite(&file, path, &mut kept).with_context(named)?;
        }
        file.seek(SeekFrom::Start(kept_bytes)).with_context(named)?;
        let mut output = Self { path: path.to_owned(), file, end: kept_bytes, lines: kept, done };
        if needs_newline && in_front {
            output.file.write_all(b"\n").with_context(named)?;
            output.end += 1;
            if let Some(last) = output.lines.last_mut() {
                last.bytes += 1;
            }
        }
        Ok(output)
    }

    /// Whether an earlier run answered the line that is called `key`. If so, it is known from now on as that of input
    /// line `number`.
    pub(super) fn is_done(&mut self, key: &str, number: usize) -> bool {
        match self.done.get(key) {
            Some(&at) => {
                self.lines[at].number = Some(number);
                true
            }
            None => false,
        }
    }

    /// Writes the line of input line `number` and hands it to the system whole.
    pub(super) fn write(&mut self, number: usize, line: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text).with_context(|| self.path.display().to_string())?;
        let bytes = text.len() as u64;
        self.lines.push(Placed { number: Some(number), start: self.end, bytes });
        self.end += bytes;
        Ok(())
    }

    /// Puts the lines into the order of the input, where tried again they came late. Lines that the input does not
    /// have stay, in front.
    pub(super) fn into_input_order(mut self) -> anyhow::Result<()> {
        if self.lines.is_sorted_by_key(|line| line.number) {
            return Ok(());
        }
        self.lines.sort_by_key(|line| line.number);
        rewrite(&self.file, &self.path, &mut self.lines).with_context(|| self.path.display().to_string())?;
        Ok(())
    }
}

/// What a line of an earlier output is; `None` for a blank one. Fails for what no batch has written.
fn read_earlier(line: &[u8]) -> anyhow::Result<Option<Earlier>> {
    let is_whole = line.ends_with(b"\n");
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let index = |value: &Value| match &value["index"] {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match serde_json::from_slice::<Value>(line) {
        Ok(value) => match (index(&value), value.get("pred"), value.get("error")) {
            (Some(key), Some(_), None) => Ok(Some(Earlier::Answer(key))),
            (_, _, Some(_)) => Ok(Some(Earlier::Error)),
            _ => bail!("it is neither an answer nor an error of a batch; give another --output"),
        },
        Err(_) => {
            let seen = line.len().min(LINE_START.len());
            ensure!(
                !is_whole && line[..seen] == LINE_START[..seen],
                "it is not JSON, so no batch has written it; give another --output"
            );
            Ok(Some(Earlier::Torn))
        }
    }
}

/// Writes `lines` of `from` to a new file in their order, puts it in the place of `path`, and tells where they lie now.
fn rewrite(from: &File, path: &Path, lines: &mut [Placed]) -> io::Result<File> {
    let part = beside(path, "part");
    let mut to = BufWriter::new(File::create(&part)?);
    let mut end = 0;
    for line in lines {
        copy_range(from, line.start, line.bytes, &mut to)?;
        line.start = end;
        end += line.bytes;
    }
    to.flush()?;
    to.get_ref().sync_all()?;
    fs::rename(&part, path)?;
    OpenOptions::new().read(true).write(true).open(path)
}

/// Copies `bytes` bytes at `start` of one file to the end of another, in bounded memory.
pub(super) fn copy_range(mut from: &File, start: u64, bytes: u64, to: &mut impl Write) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    let copied = io::copy(&mut from.take(bytes), to)?;
    if copied == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The file `NAME.extension` beside `path`, which is called NAME.
pub(super) fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_torn_line_and_errors_are_cut_away_and_answers_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        write(
            &path,
            "{\"index\":\"a\",\"pred\":\"1\"}\n{\"index\":3,\"error\":\"no\"}\n{\"index\":4,\"pred\":\"2\"}\n{\"index\":5,\"pr",
        );
        let mut output = Output::open(&path, |_| true).unwrap();
        assert!(output.is_done("a", 1) && output.is_done("4", 3));
        assert!(!output.is_done("3", 2) && !output.is_done("5", 4));
        output.write(2, &json!({"index": 3, "pred": "x"})).unwrap();
        output.write(4, &json!({"index": 5, "pred": "y"})).unwrap();
        output.into_input_order().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let indexes: Vec<_> = text.lines().map(|l| l.split([':', ',']).nth(1).unwrap().to_owned()).collect();
        assert_eq!(indexes, ["\"a\"", "3", "4", "5"]);
    }

    #[test]
    fn a_last_line_that_only_lacks_its_end_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        write(&path, "{\"index\":1,\"pred\":\"1\"}");
        let mut output = Output::open(&path, |_| true).unwrap();
        assert!(output.is_done("1", 1));
        output.write(2, &json!({"index": 2, "pred": "2"})).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn an_answer_that_is_not_to_be_kept_is_cut_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        write(&path, "{\"index\":1,\"pred\":\"1\"}\n{\"index\":2,\"pred\":\"1\"}\n");
        let mut output = Output::open(&path, |key| key == "2").unwrap();
        assert!(!output.is_done("1", 1) && output.is_done("2", 2));
        drop(output);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"index\":2,\"pred\":\"1\"}\n");
    }

    #[test]
    fn a_file_of_somebody_else_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        for text in ["my notes\n", "my notes", "{\"name\":1}\n", "{\"index\":1,\"pred\":\"\"}\nnotes\n"] {
            write(&path, text);
            let error = Output::open(&path, |_| true).unwrap_err();
            assert!(format!("{error:#}").contains("--output"), "{error:#}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
