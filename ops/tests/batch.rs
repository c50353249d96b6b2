//! `stellate batch` as its user runs it: the program, its files, its exit codes. Every golden through it, on one, two and five
//! context hosts; lines that are bad; runs that were broken off; text; GGUF files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;
use serde_json::{Value, json};

const FAMILIES: [&str; 5] = ["llama3", "llama-tied", "mistral", "qwen2", "qwen3"];
/// Largest difference of logits allowed in f32, by the oracle's own statement.
const TOLERANCE: f32 = 1e-3;
const GENERATED: &str = "6";

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn golden_dir(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(family)
}

fn cases(family: &str) -> Vec<Value> {
    serde_json::from_str(&fs::read_to_string(golden_dir(family).join("cases.json")).unwrap()).unwrap()
}

fn tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let floats = |data: &[u8]| data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    tensors.into_iter().map(|(name, view)| (name, (view.shape().to_vec(), floats(view.data())))).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A folder with an input and an output, and the program over them.
struct Batch {
    folder: tempfile::TempDir,
}

impl Batch {
    fn new(lines: &[String]) -> Self {
        let batch = Self { folder: tempfile::tempdir().unwrap() };
        batch.write_input(lines);
        batch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_input(&self, lines: &[String]) {
        fs::write(self.path("in.jsonl"), lines.join("\n")).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stellate"));
        command
            .current_dir(self.folder.path())
            .args(["batch", "--input", "in.jsonl", "--output", "out.jsonl", "--threads", "1"])
            .args(arguments);
        command
    }

    /// Runs to the end and expects `code`. Gives what was said on standard error.
    fn ends(&self, arguments: &[&str], code: i32) -> String {
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    }

    fn answers(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("out.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A golden case as a line of a batch.
fn golden_line(case: &Value) -> String {
    let turns: Vec<_> = case["turns"].as_array().unwrap().iter().map(|turn| &turn["query"]).collect();
    json!({
        "index": case["case"],
        "context_ids": case["context"],
        "turns": turns,
        "attention": case["mode"],
        "block_tokens": case["block_tokens"],
        "anchor_tokens": case["anchor_tokens"],
    })
    .to_string()
}

fn generated(case: &Value) -> Value {
    case["turns"].as_array().unwrap().iter().map(|turn| turn["generated"].clone()).collect()
}

/// A model directory with the weights of a golden and no tokenizer.
fn model_dir(family: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden_dir(family).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn meets_the_goldens(family: &str, model: &Path, hosts: &str) {
    let cases = cases(family);
    let batch = Batch::new(&cases.iter().map(golden_line).collect::<Vec<_>>());
    let model = model.to_str().unwrap();
    let logits = ["--logits", "logits.safetensors", "--ignore-eos", "--max-tokens", GENERATED];
    let node = ["--model", model, "--weights", "f32", "--kv", "f32", "--hosts", hosts];
    batch.ends(&[&node[..], &logits[..]].concat(), 0);

    let answers = batch.answers();
    assert_eq!(answers.len(), cases.len());
    for (case, answer) in cases.iter().zip(&answers) {
        let place = format!("{family} {} on {hosts} hosts", case["case"]);
        assert_eq!(answer["index"], case["case"], "{place}");
        assert_eq!(answer["pred_ids"], generated(case), "{place}");
        assert_eq!(answer["pred"], json!(["", ""]), "{place}: without a tokenizer there are no words");
        assert_eq!(answer["finish"], json!(["length", "length"]), "{place}");
        assert_eq!(answer["usage"][0]["context_tokens"], case["context"].as_array().unwrap().len());
    }
    let (expected, found) = (
        tensors(&golden_dir(family).join("expected.safetensors")),
        tensors(&batch.path("logits.safetensors")),
    );
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{family}");
    for (name, (shape, values)) in &expected {
        assert_eq!(&found[name].0, shape, "{family} {name}");
        let off = largest_difference(values, &found[name].1);
        assert!(off < TOLERANCE, "{family} {name} on {hosts} hosts: off by {off}");
    }
}

#[test]
fn every_golden_is_met_on_one_two_and_five_hosts() {
    for family in FAMILIES {
        let model = model_dir(family);
        for hosts in ["1", "2", "5"] {
            meets_the_goldens(family, model.path(), hosts);
        }
    }
}

#[test]
fn gguf_files_meet_the_goldens_like_the_safetensors() {
    for family in ["llama-tied", "qwen3"] {
        meets_the_goldens(family, &golden_dir(family).join("model.gguf"), "2");
    }
}

#[test]
fn a_run_that_was_broken_off_goes_on_where_it_stopped() {
    let family = "llama-tied";
    let lines: Vec<_> = cases(family).iter().take(6).map(golden_line).collect();
    let model = golden_dir(family);
    let arguments =
        ["--model", model.to_str().unwrap(), "--max-tokens", "3", "--ignore-eos", "--logits", "logits"];
    let whole = Batch::new(&lines);
    whole.ends(&arguments, 0);
    let (text, logits) = (fs::read(whole.path("out.jsonl")).unwrap(), tensors(&whole.path("logits")));

    // The first run ends in the middle of its fourth line: the output is torn there.
    let broken = Batch::new(&lines[..4]);
    broken.ends(&arguments, 0);
    let written = fs::read(broken.path("out.jsonl")).unwrap();
    fs::write(broken.path("out.jsonl"), &written[..written.len() - 20]).unwrap();
    broken.write_input(&lines);
    let said = broken.ends(&arguments, 0);
    assert!(said.contains("3 answered, 3 answered by an earlier run"), "{said}");
    assert_eq!(fs::read(broken.path("out.jsonl")).unwrap(), text);
    assert_eq!(tensors(&broken.path("logits")), logits);
    assert!(!broken.path("logits.spool").exists());

    // Everything is there: nothing is done again, and nothing changes.
    let said = broken.ends(&arguments, 0);
    assert!(said.contains("0 answered, 6 answered by an earlier run"), "{said}");
    assert_eq!(fs::read(broken.path("out.jsonl")).unwrap(), text);

    // Answers whose logits are asked for only now are made again.
    fs::remove_file(broken.path("logits")).unwrap();
    let said = broken.ends(&arguments, 0);
    assert!(said.contains("6 answered"), "{said}");
    assert_eq!(tensors(&broken.path("logits")), logits);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_keeps_what_was_answered_and_goes_on_later() {
    use std::time::{Duration, Instant};
    const LINES: usize = 40;
    // Contexts of their own, so that every line takes its time.
    let line = |index: usize| {
        let context: Vec<usize> = (0..600).map(|at| 2 + (at * 31 + index * 7) % 4000).collect();
        json!({"index": index, "context_ids": context, "turns": [[5, 6]]}).to_string()
    };
    let batch = Batch::new(&(0..LINES).map(line).collect::<Vec<_>>());
    let arguments = ["--ignore-eos", "--max-tokens", "20", "--attention", "exact", "--logits", "logits"];
    let mut child = batch.command(&arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    let answered = || fs::read(batch.path("out.jsonl")).is_ok_and(|text| text.contains(&b'\n'));
    while !answered() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let signal = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &signal]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let first = batch.answers();
    assert!(!first.is_empty() && first.len() < LINES, "{} lines", first.len());
    assert_eq!(tensors(&batch.path("logits")).len(), 2 * first.len());

    batch.ends(&arguments, 0);
    let all = batch.answers();
    assert_eq!(all[..first.len()], first);
    let indexes: Vec<_> = all.iter().map(|answer| answer["index"].as_u64().unwrap() as usize).collect();
    assert_eq!(indexes, (0..LINES).collect::<Vec<_>>());
    assert_eq!(tensors(&batch.path("logits")).len(), 2 * LINES);
}

#[test]
fn bad_lines_are_told_with_their_number_and_tried_again_and_stop_nothing() {
    let case =
        |index: &str, rest: &str| format!(r#"{{"index": "{index}", "context_ids": [1, 2, 3], {rest}}}"#);
    let long: Vec<u32> = vec![1; 40_000];
    let lines = [
        case("good", r#""turns": [[4]]"#),
        "{\"index\": \"torn\", \"context_ids\": [1".to_owned(),
        String::new(),
        case("no turns", r#""output": 3"#),
        case("both", r#""turns": [[4]], "input_query": "q""#),
        case("types", r#""turns": [["four"]]"#),
        case("vocabulary", r#""turns": [[4], [99999999]]"#),
        case("anchor", r#""turns": [[4]], "block_tokens": 4, "anchor_tokens": 5"#),
        case("good", r#""turns": [[5]]"#),
        json!({"index": "too long", "context_ids": long, "turns": [[1]]}).to_string(),
        r#"{"index": "text", "input_context": "c", "input_query": "q"}"#.to_owned(),
        r#"{"context_ids": [1, 2, 3], "turns": [[4]]}"#.to_owned(),
    ];
    let batch = Batch::new(&lines);
    let model = golden_dir("llama-tied");
    let arguments = ["--model", model.to_str().unwrap(), "--max-tokens", "2", "--kv-capacity", "1MiB"];
    let said = batch.ends(&arguments, 4);
    let expected: [(usize, &str, &str); 9] = [
        (2, "1", "JSON"),
        (4, "no turns", "lacks `turns`"),
        (5, "both", "mixes"),
        (6, "types", "`turns`"),
        (7, "vocabulary", "99999999"),
        (8, "anchor", "anchor_tokens is 5"),
        (9, "good", "earlier line"),
        (10, "too long", "does not fit"),
        (11, "text", "tokenizer"),
    ];
    let answers = batch.answers();
    assert_eq!(answers.len(), 11, "{said}");
    for (line, index, reason) in expected {
        let error =
            answers.iter().find(|answer| answer["line"] == line).unwrap_or_else(|| panic!("line {line}"));
        assert_eq!(error["index"], index);
        assert!(error["error"].as_str().unwrap().contains(reason), "{error}");
        let told = said.lines().find(|told| told.starts_with(&format!("line {line}: "))).unwrap();
        assert!(told.contains(reason), "{told}");
    }
    assert!(answers[0]["pred_ids"][0].is_array());
    assert_eq!(answers[10]["index"], "11");
    assert!(said.contains("2 answered, 9 bad"), "{said}");

    // A line that was put right is answered now, in its place; the rest is as before.
    let mut lines = lines;
    lines[1] = case("1", r#""turns": [[4]]"#);
    batch.write_input(&lines);
    let said = batch.ends(&arguments, 4);
    assert!(said.contains("1 answered, 2 answered by an earlier run, 8 bad"), "{said}");
    let again = batch.answers();
    assert!(again[1]["pred_ids"].is_array());
    assert_eq!(again.len(), answers.len());
    assert_eq!([&again[..1], &again[2..]].concat(), [&answers[..1], &answers[2..]].concat());
}

/// Every question of the demo model's examples as a line of text, with `before` in front of the question.
fn example_lines(examples: &[Value], before: &str) -> Vec<String> {
    let line = |example: &Value, (number, question): (usize, &Value)| {
        json!({
            "index": format!("{}.{number}", example["index"].as_str().unwrap()),
            "input_context": example["context"],
            "input_query": format!("{before}{}", question["question"].as_str().unwrap()),
            "output": [question["expected"]],
        })
        .to_string()
    };
    let lines = |example| questions(example).iter().enumerate().map(move |question| line(example, question));
    examples.iter().flat_map(lines).collect()
}

fn questions(example: &Value) -> &[Value] {
    example["questions"].as_array().unwrap()
}

#[test]
fn text_is_answered_by_the_demo_model_as_it_is_and_in_its_chat_template() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo/examples.jsonl");
    let examples = fs::read_to_string(examples).unwrap();
    let examples: Vec<Value> =
        examples.lines().take(4).map(|line| serde_json::from_str(line).unwrap()).collect();
    let node = ["--weights", "f32", "--kv", "f32", "--block-tokens", "512", "--hosts", "2"];
    // Raw text brings its own space; the chat template writes one.
    let raw = Batch::new(&example_lines(&examples, " "));
    raw.ends(&[&node[..], &["--logprobs", "2"]].concat(), 0);
    let chat = Batch::new(&example_lines(&examples, ""));
    chat.ends(&[&node[..], &["--chat"]].concat(), 0);
    for batch in [raw, chat] {
        let answers = batch.answers();
        let asked: Vec<_> = examples.iter().flat_map(questions).collect();
        assert_eq!(answers.len(), asked.len());
        for (answer, question) in answers.iter().zip(asked) {
            assert_eq!(answer["pred"], question["star"]["text"]);
            assert_eq!(answer["pred_ids"], question["star"]["ids"]);
            assert_eq!(answer["output"][0], question["expected"]);
            assert_eq!(answer["finish"], json!(["stop"]));
            let Some(turns) = answer.get("logprobs") else { continue };
            let ids = answer["pred_ids"].as_array().unwrap();
            let steps = turns[0].as_array().unwrap();
            assert_eq!(steps.len(), ids.len());
            for (step, id) in steps.iter().zip(ids) {
                // Greedy: the first is the one that was taken.
                assert_eq!((step.as_array().unwrap().len(), &step[0][0]), (2, id));
                let logprob = |place: usize| step[place][1].as_f64().unwrap();
                assert!(logprob(1) <= logprob(0) && logprob(0) <= 0.0);
            }
        }
    }
}

#[test]
fn a_file_that_is_not_its_own_is_never_overwritten() {
    let batch = Batch::new(&[r#"{"context_ids": [1], "turns": [[2]]}"#.to_owned()]);
    fs::write(batch.path("out.jsonl"), "my notes\n").unwrap();
    let said = batch.ends(&[], 1);
    assert!(said.contains("out.jsonl") && said.contains("--output"), "{said}");
    assert_eq!(fs::read_to_string(batch.path("out.jsonl")).unwrap(), "my notes\n");
    let said = batch.ends(&["--logits", "in.jsonl"], 2);
    assert!(said.contains("different files"), "{said}");
}
