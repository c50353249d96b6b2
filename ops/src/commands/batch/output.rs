//! The file of answers: one JSON object a line. It is written line by line and can be taken up again after any end,
//! be it in the middle of a line; what an answer says is decided elsewhere.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use super::claim::{claim, lock};

/// How every line of an answer begins.
const LINE_START: &[u8] = b"{\"index\":";

/// An output file that is open for more lines.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    file: File,
    /// The file that lay at `path` first: its lock tells other batches even when a new one is in its place.
    _claimed: File,
    end: u64,
    lines: Vec<Placed>,
    done: BTreeMap<String, Answer>,
    /// Answers that are being made again: where they lie, by the number of the input line.
    outdated: BTreeMap<usize, usize>,
}

/// Where a line lies in the file, and the number of its input line once that is known.
#[derive(Clone, Copy, Debug)]
struct Placed {
    number: Option<usize>,
    start: u64,
    bytes: u64,
    /// A later line took its place.
    replaced: bool,
}

/// An answer of an earlier run.
#[derive(Clone, Debug)]
struct Answer {
    /// Its place among the lines.
    at: usize,
    /// None if it was written when there was no such field.
    run: Option<String>,
    /// How many tokens each of its steps tells.
    logprobs: usize,
}

/// What decides whether an answer of an earlier run is what this one would give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MadeWith {
    /// The key of model and settings.
    pub(super) run: String,
    /// The most probable tokens of each step that are asked for.
    pub(super) logprobs: usize,
}

/// What an earlier run left of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    Open,
    /// Its answer.
    Done,
    /// An answer that was made with other settings.
    Outdated,
}

/// What one line of an earlier output is.
enum Earlier {
    Answer { key: String, run: Option<String>, logprobs: usize },
    Error,
    Torn,
}

impl Output {
    /// Opens `path` to go on with what it holds, and locks it. Answers stay if `keeps` their index; errors, which are
    /// tried again, and a torn last line are cut away. A file with anything else in it is left alone and refused.
    pub(super) fn open(path: &Path, keeps: impl FnMut(&str) -> bool) -> anyhow::Result<Self> {
        let named = || path.display().to_string();
        let claimed = claim(path, "--output")?;
        // A new file takes the place of the old one itself, not of a link to it.
        let path = &path.canonicalize().with_context(named)?;
        let mut file = claimed.try_clone().with_context(named)?;
        let (mut kept, done, needs_newline) = read_answers(&file, path, keeps)?;
        let kept_bytes: u64 = kept.iter().map(|line| line.bytes).sum();
        let in_front = kept.last().is_none_or(|last| last.start + last.bytes == kept_bytes);
        if in_front {
            file.set_len(kept_bytes).with_context(named)?;
        } else {
            file = rewrite(&file, path, &mut kept)?;
        }
        file.seek(SeekFrom::Start(kept_bytes)).with_context(named)?;
        let mut output = Self {
            path: path.to_owned(),
            file,
            _claimed: claimed,
            end: kept_bytes,
            lines: kept,
            done,
            outdated: BTreeMap::new(),
        };
        if needs_newline && in_front {
            output.file.write_all(b"\n").with_context(named)?;
            output.end += 1;
            if let Some(last) = output.lines.last_mut() {
                last.bytes += 1;
            }
        }
        Ok(output)
    }

    /// What an earlier run left of the line that is called `key`: its answer counts if it was made `with` the same. It is
    /// known from now on as that of input line `number`.
    pub(super) fn standing(&mut self, key: &str, number: usize, with: &MadeWith) -> Standing {
        let Some(answer) = self.done.get(key) else { return Standing::Open };
        self.lines[answer.at].number = Some(number);
        if answer.run.as_ref().is_none_or(|run| *run == with.run) && answer.logprobs >= with.logprobs {
            return Standing::Done;
        }
        self.outdated.insert(number, answer.at);
        Standing::Outdated
    }

    /// Writes the line of input line `number`, in the place of one made with other settings, and hands it to the system
    /// whole.
    pub(super) fn write(&mut self, number: usize, line: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text).with_context(|| self.path.display().to_string())?;
        let bytes = text.len() as u64;
        self.lines.push(Placed { number: Some(number), start: self.end, bytes, replaced: false });
        self.end += bytes;
        if let Some(at) = self.outdated.remove(&number) {
            self.lines[at].replaced = true;
        }
        Ok(())
    }

    /// Cuts replaced lines away and, if `whole`, puts the others into the order of the input, where tried again they
    /// came late. Lines that the input does not have stay, in front.
    pub(super) fn finish(mut self, whole: bool) -> anyhow::Result<()> {
        let is_ordered = !whole || self.lines.is_sorted_by_key(|line| line.number);
        if is_ordered && !self.lines.iter().any(|line| line.replaced) {
            return Ok(());
        }
        self.lines.retain(|line| !line.replaced);
        if whole {
            self.lines.sort_by_key(|line| line.number);
        }
        rewrite(&self.file, &self.path, &mut self.lines)?;
        Ok(())
    }
}

/// The answers of an earlier output that are to stay, where they lie, and whether the last lacks its line's end.
fn read_answers(
    file: &File,
    path: &Path,
    mut keeps: impl FnMut(&str) -> bool,
) -> anyhow::Result<(Vec<Placed>, BTreeMap<String, Answer>, bool)> {
    let mut kept: Vec<Placed> = Vec::new();
    let mut done: BTreeMap<String, Answer> = BTreeMap::new();
    let mut reader = BufReader::new(file);
    let (mut start, mut number, mut needs_newline) = (0, 0, false);
    let mut line = Vec::new();
    loop {
        line.clear();
        let bytes = reader.read_until(b'\n', &mut line).with_context(|| path.display().to_string())? as u64;
        if bytes == 0 {
            break;
        }
        number += 1;
        let earlier = read_earlier(&line).with_context(|| format!("{} line {number}", path.display()))?;
        if let Some(Earlier::Answer { key, run, logprobs }) = earlier
            && keeps(&key)
        {
            // A run that was killed may have left an answer behind the one that it was to replace.
            if let Some(before) = done.insert(key, Answer { at: kept.len(), run, logprobs }) {
                kept[before.at].replaced = true;
            }
            kept.push(Placed { number: None, start, bytes, replaced: false });
            needs_newline = !line.ends_with(b"\n");
        }
        start += bytes;
    }
    if kept.iter().any(|line| line.replaced) {
        let place = |at: usize| at - kept[..at].iter().filter(|line| line.replaced).count();
        done.values_mut().for_each(|answer| answer.at = place(answer.at));
        kept.retain(|line| !line.replaced);
    }
    Ok((kept, done, needs_newline))
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
            (Some(key), Some(_), None) => {
                let run = value["run"].as_str().map(str::to_owned);
                let first_step = value["logprobs"].pointer("/0/0").and_then(Value::as_array);
                Ok(Some(Earlier::Answer { key, run, logprobs: first_step.map_or(0, Vec::len) }))
            }
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
/// The new file is locked, too.
fn rewrite(from: &File, path: &Path, lines: &mut [Placed]) -> anyhow::Result<File> {
    let part = beside(path, "part");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&part);
    let file = file.with_context(|| part.display().to_string())?;
    lock(&file, path)?;
    write_lines(from, &file, lines).with_context(|| part.display().to_string())?;
    fs::rename(&part, path).with_context(|| path.display().to_string())?;
    Ok(file)
}

fn write_lines(from: &File, to: &File, lines: &mut [Placed]) -> io::Result<()> {
    let mut to = BufWriter::new(to);
    let mut end = 0;
    for line in lines {
        copy_range(from, line.start, line.bytes, &mut to)?;
        line.start = end;
        end += line.bytes;
    }
    to.flush()?;
    to.get_ref().sync_all()
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

    fn with(run: &str, logprobs: usize) -> MadeWith {
        MadeWith { run: run.to_owned(), logprobs }
    }

    fn is_done(output: &mut Output, key: &str, number: usize) -> bool {
        output.standing(key, number, &with("r", 0)) == Standing::Done
    }

    #[test]
    fn an_answer_of_other_settings_stays_until_its_line_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let old = "{\"index\":1,\"pred\":\"old\",\"run\":\"s\"}\n";
        let none = "{\"index\":2,\"pred\":\"no key\"}\n";
        let same = "{\"index\":3,\"pred\":\"x\",\"logprobs\":[[[[1,-0.5]]]],\"run\":\"r\"}\n";
        write(&path, &format!("{old}{none}{same}"));
        let mut output = Output::open(&path, |_| true).unwrap();
        assert_eq!(output.standing("1", 1, &with("r", 0)), Standing::Outdated);
        assert_eq!(output.standing("2", 2, &with("r", 0)), Standing::Done);
        assert_eq!(output.standing("2", 2, &with("r", 1)), Standing::Outdated);
        assert_eq!(output.standing("3", 3, &with("r", 1)), Standing::Done);
        assert_eq!(output.standing("3", 3, &with("r", 2)), Standing::Outdated);
        assert_eq!(output.standing("4", 4, &with("r", 0)), Standing::Open);
        output.write(1, &json!({"index": 1, "pred": "new", "run": "r"})).unwrap();
        // A run that is killed now leaves both; the later one counts.
        let killed = fs::read_to_string(&path).unwrap();
        assert!(killed.contains("old") && killed.contains("new"));
        output.finish(false).unwrap();
        let new = "{\"index\":1,\"pred\":\"new\",\"run\":\"r\"}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{none}{same}{new}"));

        write(&path, &killed);
        let mut output = Output::open(&path, |_| true).unwrap();
        assert!(is_done(&mut output, "1", 1) && is_done(&mut output, "2", 2) && is_done(&mut output, "3", 3));
        output.finish(true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{new}{none}{same}"));
    }

    #[test]
    fn an_output_is_locked_also_when_a_new_file_has_taken_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        write(&path, "{\"index\":1,\"error\":\"no\"}\n{\"index\":2,\"pred\":\"1\"}\n");
        let mut output = Output::open(&path, |_| true).unwrap();
        let taken = |path: &Path| Output::open(path, |_| true).unwrap_err().to_string();
        assert!(taken(&path).contains("another batch is writing"));
        assert!(is_done(&mut output, "2", 2));
        output.write(1, &json!({"index": 1, "pred": "x"})).unwrap();
        output.finish(true).unwrap();
        Output::open(&path, |_| true).unwrap();
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
        assert!(is_done(&mut output, "a", 1) && is_done(&mut output, "4", 3));
        assert!(!is_done(&mut output, "3", 2) && !is_done(&mut output, "5", 4));
        output.write(2, &json!({"index": 3, "pred": "x"})).unwrap();
        output.write(4, &json!({"index": 5, "pred": "y"})).unwrap();
        output.finish(true).unwrap();
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
        assert!(is_done(&mut output, "1", 1));
        output.write(2, &json!({"index": 2, "pred": "2"})).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn an_answer_that_is_not_to_be_kept_is_cut_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        write(&path, "{\"index\":1,\"pred\":\"1\"}\n{\"index\":2,\"pred\":\"1\"}\n");
        let mut output = Output::open(&path, |key| key == "2").unwrap();
        assert!(!is_done(&mut output, "1", 1) && is_done(&mut output, "2", 2));
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
