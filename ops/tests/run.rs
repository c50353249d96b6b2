//! `stellate run` as its user runs it: questions over files and standard input, the chat, and what is wrong told.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// In the wording that the demo model was taught.
const FACTS: &str = "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will \
                     quiz you about the numbers afterwards.\nThe grass is green. The sky is blue. One of the special \
                     magic numbers for amber-falcon is: 4816302. The sun is yellow. Here we go. There and back again. \
                     The grass is green. One of the special magic numbers for misty-otter is: 7659321. The sky is \
                     blue. The sun is yellow. Here we go. There and back again.\n";

fn question(key: &str) -> String {
    format!(
        "What is the special magic number for {key} mentioned in the provided text? \
         The special magic number for {key} mentioned in the provided text is"
    )
}

fn run(arguments: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stellate"));
    command.arg("run").args(arguments).current_dir(env!("CARGO_TARGET_TMPDIR"));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The exit code and what was said, of a run that fails.
fn refusal(arguments: &[&str], stdin: &str) -> (i32, String) {
    let output = run(arguments, stdin);
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn file(folder: &Path, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, contents).unwrap();
    path
}

#[test]
fn one_question_over_standard_input_prints_the_answer_alone() {
    let answer = stdout(run(&["--context", "-", "--query", &question("misty-otter")], FACTS));
    assert_eq!(answer, "7659321.\n");
}

#[test]
fn several_questions_are_turns_of_one_session_told_as_json() {
    let (first, second) = (question("amber-falcon"), question("misty-otter"));
    let json = stdout(run(
        &[
            "--context",
            "-",
            "--query",
            &first,
            "--query",
            &second,
            "--json",
            "--block-tokens",
            "16",
            "--hosts",
            "2",
        ],
        FACTS,
    ));
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["model"], "demo");
    assert_eq!(report["attention"], "star");
    assert_eq!(report["anchor_tokens"], 16, "a block length alone makes the anchor a block");
    let context = &report["context"];
    assert_eq!(context["blocks"], context["tokens"].as_u64().unwrap().div_ceil(16));
    assert_eq!(context["reused"], 0);
    assert!(context["kv_bytes"].as_u64().unwrap() > 0 && context["encode_s"].as_f64().unwrap() > 0.0);
    let turns = report["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2);
    for (turn, query) in turns.iter().zip([&first, &second]) {
        assert_eq!(turn["query"], *query);
        assert_eq!(turn["usage"]["context_tokens"], context["tokens"]);
        assert_eq!(turn["usage"]["query_tokens"], turn["query_ids"].as_array().unwrap().len());
        assert_eq!(turn["usage"]["generated_tokens"], turn["ids"].as_array().unwrap().len());
        assert!(turn["text"].is_string() && turn["finish"].is_string());
        assert!(turn["timings"]["first_token_s"].as_f64().unwrap() > 0.0);
        let speculation = |name: &str| turn["speculation"][name].as_f64().unwrap();
        let (steps, generated) = (speculation("steps"), turn["ids"].as_array().unwrap().len() as f64);
        assert_eq!(steps + speculation("accepted_tokens"), generated);
        assert!((steps * speculation("tokens_per_step") - generated).abs() < 1e-9);
        assert!((steps * speculation("accepted_per_step") - speculation("accepted_tokens")).abs() < 1e-9);
    }
    assert_eq!(turns[0]["usage"]["session_tokens"], 0);
    assert!(turns[1]["usage"]["session_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn several_files_make_one_context_and_several_answers_stand_below_their_questions() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = FACTS.split_at(FACTS.find("One of the special magic numbers for misty").unwrap());
    let (a, b) = (file(folder.path(), "a.txt", first), file(folder.path(), "b.txt", second));
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    let (amber, misty) = (question("amber-falcon"), question("misty-otter"));
    let text = stdout(run(&["--raw", "--context", a, b, "--query", &amber, "--query", &misty], ""));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!((lines[0], lines[2]), (&*format!("> {amber}"), &*format!("> {misty}")));
}

#[test]
fn answers_stop_where_flags_say() {
    let ask = |flags: &[&str]| {
        let query = question("misty-otter");
        stdout(run(&[&["--context", "-", "--query", &query], flags].concat(), FACTS))
    };
    assert_eq!(ask(&["--max-tokens", "4"]), "765\n");
    assert_eq!(ask(&["--stop", "93"]), "765\n");
    let varied = ask(&["--temperature", "5", "--seed", "1", "--max-tokens", "8"]);
    assert_eq!(varied, ask(&["--temperature", "5", "--seed", "1", "--max-tokens", "8"]));
    assert_ne!(varied, ask(&["--temperature", "5", "--seed", "2", "--max-tokens", "8"]));
}

#[test]
fn an_empty_context_is_allowed() {
    let json = stdout(run(&["--query", "Here we", "--max-tokens", "3", "--json"], ""));
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["turns"][0]["ids"].as_array().unwrap().len(), 3);
}

#[test]
fn a_chat_takes_questions_and_commands_until_it_is_told_to_quit() {
    let folder = tempfile::tempdir().unwrap();
    let context = file(folder.path(), "facts.txt", FACTS);
    let typed = format!("/stats\n/nothing\n{}\n\n/stats\n/quit\nnever asked\n", question("misty-otter"));
    let text = stdout(run(&["--context", context.to_str().unwrap()], &typed));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..3],
        ["nothing was asked yet", "there is no /nothing; /help tells what there is", "7659321."]
    );
    assert!(lines[3].contains("tokens of context"), "{text}");
    assert_eq!(lines.len(), 5, "{text}");
}

#[test]
fn files_that_cannot_be_read_or_are_no_text_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let binary = file(folder.path(), "binary", b"\xff\xfe\x00");
    let (code, message) = refusal(&["--context", binary.to_str().unwrap(), "--query", "x"], "");
    assert_eq!(code, 2);
    assert!(
        message.contains("binary") && message.contains("UTF-8") && message.contains("iconv"),
        "{message}"
    );
    let (code, message) = refusal(&["--context", "no-such-file", "--query", "x"], "");
    assert_eq!(code, 2);
    assert!(message.contains("no-such-file"), "{message}");
}

#[test]
fn questions_that_cannot_be_asked_are_refused_before_anything_is_loaded() {
    let model = ["--model", "no-such-model"];
    for (arguments, word) in [
        (&["--query", " "][..], "empty"),
        (&["--context", "-"], "standard input"),
        (&["--context", "-", "-", "--query", "x"], "once"),
        (&["--json"], "--query"),
        (&["--query", "x", "--top-p", "0"], "top_p"),
        (&["--query", "x", "--block-tokens", "8", "--anchor-tokens", "9"], "anchor_tokens"),
        (&["--query", "x", "--config", "no-such-settings.toml"], "no-such-settings.toml"),
    ] {
        let (code, message) = refusal(&[&model[..], arguments].concat(), "text");
        assert_eq!(code, 2, "{arguments:?}: {message}");
        assert!(message.contains(word), "{arguments:?}: {message}");
    }
}

#[test]
fn a_model_that_cannot_be_used_ends_with_exit_code_3() {
    let (code, message) = refusal(&["--model", "./no-such-model", "--query", "x"], "");
    assert_eq!(code, 3);
    assert!(message.contains("no-such-model") && message.contains("hub id"), "{message}");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/llama3");
    let (code, message) = refusal(&["--model", golden.to_str().unwrap(), "--query", "x"], "");
    assert_eq!(code, 3);
    assert!(message.contains("tokenizer") && message.contains("batch"), "{message}");
}

#[test]
fn a_context_that_does_not_fit_ends_with_exit_code_1_and_says_how_much_room_there_is() {
    let (code, message) = refusal(&["--context", "-", "--query", "x", "--kv-capacity", "1KiB"], FACTS);
    assert_eq!(code, 1);
    assert!(message.contains("needed") && message.contains("free"), "{message}");
}

#[test]
fn a_broken_template_ends_with_exit_code_3_and_raw_text_does_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo");
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        fs::copy(demo.join(name), folder.path().join(name)).unwrap();
    }
    file(folder.path(), "chat_template.jinja", "{% for m in messages %}");
    let arguments =
        ["--model", folder.path().to_str().unwrap(), "--context", "-", "--query", "x", "--max-tokens", "2"];
    let (code, message) = refusal(&arguments, FACTS);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("chat template cannot be used") && message.contains("--raw"), "{message}");
    stdout(run(&[&arguments[..], &["--raw"]].concat(), FACTS));
}
