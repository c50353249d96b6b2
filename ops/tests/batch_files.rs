//! The files of `stellate batch` as its user names them: input from pipes, outputs that are none or belong to another
//! batch, answers of other settings, and Ctrl-C while something waits. What answers say is checked in `batch.rs`.

#![cfg(unix)]

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A folder, and batches in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, lines: &[String]) {
        fs::write(self.path(name), lines.concat()).unwrap();
    }

    fn make_pipe(&self, name: &str) {
        assert!(Command::new("mkfifo").arg(self.path(name)).status().unwrap().success());
    }

    fn command(&self, input: &str, output: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stellate"));
        command
            .current_dir(self.0.path())
            .args(["batch", "--random-weights", "tiny", "--threads", "1", "--ignore-eos"])
            .args(["--input", input, "--output", output])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs to the end, with nothing on standard input, and expects `code`. Gives what was said on standard error.
    fn ends(&self, output: &str, arguments: &[&str], code: i32) -> String {
        self.command("in.jsonl", output, arguments).stdin(Stdio::null()).output().unwrap().expect(code)
    }

    fn answers(&self, output: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(output)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn wait_for_answers(&self, output: &str, count: usize) {
        let started = Instant::now();
        while self.answers(output).len() < count {
            assert!(started.elapsed() < PATIENCE, "no {count} answers");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

trait Expect {
    fn expect(self, code: i32) -> String;
}

impl Expect for Output {
    fn expect(self, code: i32) -> String {
        let said = String::from_utf8_lossy(&self.stderr).into_owned();
        assert_eq!(self.status.code(), Some(code), "{said}");
        said
    }
}

fn line(index: usize) -> String {
    let context: Vec<usize> = (0..300).map(|at| 2 + (at * 31 + index * 7) % 200).collect();
    format!("{}\n", json!({"index": index, "context_ids": context, "turns": [[5, 6]]}))
}

/// Starts a batch over standard input, with one line written and answered, and its standard input still open.
fn waiting(folder: &Folder, arguments: &[&str]) -> (Child, ChildStdin) {
    let mut child = folder.command("-", "out.jsonl", arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(line(0).as_bytes()).unwrap();
    folder.wait_for_answers("out.jsonl", 1);
    (child, stdin)
}

/// Sends Ctrl-C and gives what was said until the end.
fn interrupt(child: Child) -> String {
    let signal = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &signal]).status().unwrap().success());
    child.wait_with_output().unwrap().expect(130)
}

#[test]
fn standard_input_and_pipes_are_read_in_one_pass() {
    let folder = Folder::new();
    let (child, mut stdin) = waiting(&folder, &["--max-tokens", "2"]);
    stdin.write_all(line(1).as_bytes()).unwrap();
    drop(stdin);
    let said = child.wait_with_output().unwrap().expect(0);
    assert!(said.contains("2 answered"), "{said}");

    folder.make_pipe("pipe");
    let child = folder.command("pipe", "piped.jsonl", &["--max-tokens", "2"]).spawn().unwrap();
    // Editors on Windows begin a file so.
    fs::write(folder.path("pipe"), format!("\u{feff}{}{}", line(0), line(1))).unwrap();
    child.wait_with_output().unwrap().expect(0);
    assert_eq!(folder.answers("piped.jsonl"), folder.answers("out.jsonl"));
}

#[test]
fn ctrl_c_ends_a_batch_that_waits_for_its_input() {
    let folder = Folder::new();
    let (child, stdin) = waiting(&folder, &["--max-tokens", "2"]);
    let said = interrupt(child);
    assert!(said.contains("1 answered"), "{said}");
    drop(stdin);
    // A pipe that nobody writes to: it is not even open yet.
    folder.make_pipe("pipe");
    let child = folder.command("pipe", "none.jsonl", &[]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    interrupt(child);
    assert!(!folder.path("none.jsonl").exists());
}

#[test]
fn ctrl_c_within_an_answer_is_no_failure_in_the_log() {
    const LINES: usize = 200;
    let folder = Folder::new();
    folder.write("in.jsonl", &(0..LINES).map(line).collect::<Vec<_>>());
    let child = folder.command("in.jsonl", "out.jsonl", &["--max-tokens", "200"]).spawn().unwrap();
    folder.wait_for_answers("out.jsonl", 1);
    let said = interrupt(child);
    assert!(!said.contains("WARN") && !said.contains("closed"), "{said}");
    assert!(folder.answers("out.jsonl").len() < LINES);
}

#[test]
fn what_is_no_regular_file_is_refused_as_an_output() {
    let folder = Folder::new();
    folder.write("in.jsonl", &[line(0)]);
    folder.make_pipe("pipe");
    for output in ["pipe", "/dev/stdout", "."] {
        let said = folder.ends(output, &[], 2);
        assert!(said.contains(&format!("--output {output} is not a regular file")), "{said}");
    }
    let said = folder.ends("out.jsonl", &["--logits", "pipe"], 2);
    assert!(said.contains("--logits pipe is not a regular file"), "{said}");
    assert!(!folder.path("out.jsonl").exists());
}

#[test]
fn a_second_batch_on_the_same_output_or_logits_is_refused_and_the_first_goes_on() {
    let folder = Folder::new();
    folder.write("in.jsonl", &[line(0), line(1)]);
    // Begun with an error, so that a new file takes the place of the first.
    fs::write(folder.path("out.jsonl"), "{\"index\":1,\"error\":\"no\"}\n{\"index\":7,\"pred\":\"\"}\n")
        .unwrap();
    let mut child =
        folder.command("-", "out.jsonl", &["--max-tokens", "2", "--logits", "logits"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(line(0).as_bytes()).unwrap();
    let started = Instant::now();
    while !folder.answers("out.jsonl").iter().any(|answer| answer["index"] == 0) {
        assert!(started.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = folder.ends("out.jsonl", &[], 2);
    assert!(said.contains("another batch is writing out.jsonl; wait for it"), "{said}");
    let said = folder.ends("other.jsonl", &["--logits", "logits"], 2);
    assert!(said.contains("another batch is writing logits.spool"), "{said}");
    stdin.write_all(line(1).as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap().expect(0);
    assert!(folder.answers("out.jsonl").iter().filter(|answer| answer["pred_ids"].is_array()).count() == 2);
    assert!(folder.path("logits").exists() && !folder.path("logits.spool").exists());
}

#[test]
fn answers_made_with_other_settings_are_made_again() {
    let folder = Folder::new();
    let lines = [line(0), line(1)];
    folder.write("in.jsonl", &lines);
    folder.ends("out.jsonl", &["--max-tokens", "2"], 0);
    let first = folder.answers("out.jsonl");
    assert_eq!(first[0]["run"].as_str().unwrap().len(), 16);
    let again = |arguments: &[&str], count: usize| {
        let said = folder.ends("out.jsonl", arguments, 0);
        assert!(said.contains(&format!("{count} answered")), "{said}");
        let remark = format!("{count} answers of out.jsonl were made with other settings");
        assert_eq!(said.contains(&remark), count > 0, "{said}");
        let answers = folder.answers("out.jsonl");
        assert_eq!((answers.len(), &answers[0]["index"], &answers[1]["index"]), (2, &json!(0), &json!(1)));
        answers
    };
    assert_eq!(again(&["--max-tokens", "2", "--hosts", "2"], 0), first);
    let longer = again(&["--max-tokens", "3"], 2);
    assert_eq!(longer[0]["pred_ids"][0].as_array().unwrap().len(), 3);
    assert_ne!(longer[0]["run"], first[0]["run"]);
    let attention = again(&["--max-tokens", "3", "--attention", "exact", "--logprobs", "1"], 2);
    assert_ne!(attention[0]["run"], longer[0]["run"]);
    again(&["--max-tokens", "3", "--attention", "exact", "--logprobs", "2"], 2);
    again(&["--max-tokens", "3", "--attention", "exact", "--logprobs", "1"], 0);

    // Only the line that says something else of its context is another.
    let mut other: Value = serde_json::from_str(&lines[1]).unwrap();
    other["attention"] = json!("star");
    folder.write("in.jsonl", &[lines[0].clone(), other.to_string()]);
    let said = folder.ends("out.jsonl", &["--max-tokens", "3", "--attention", "exact"], 0);
    assert!(said.contains("1 answered, 1 answered by an earlier run"), "{said}");

    // Answers of a program that wrote no `run` count by their index.
    let old = "{\"index\":0,\"pred\":[\"\"]}\n{\"index\":1,\"pred\":[\"\"]}\n";
    fs::write(folder.path("out.jsonl"), old).unwrap();
    again(&["--max-tokens", "2"], 0);
    assert_eq!(fs::read_to_string(folder.path("out.jsonl")).unwrap(), old);
}

#[test]
fn an_index_too_long_for_the_logits_is_a_bad_line_and_the_next_is_answered() {
    let folder = Folder::new();
    let long = json!({"index": "i".repeat(2 << 20), "context_ids": [1], "turns": [[2]]});
    folder.write("in.jsonl", &[format!("{long}\n"), line(1)]);
    let said = folder.ends("out.jsonl", &["--max-tokens", "2", "--logits", "logits"], 4);
    assert!(said.contains("line 1: `index` has 2097152 bytes"), "{said}");
    assert!(said.contains("1 answered, 1 bad"), "{said}");
    assert_eq!(folder.answers("out.jsonl")[0]["index"], "0");
}
