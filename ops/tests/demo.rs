//! `stellate demo` as its user runs it, on a small document: what it prints, as a table and as JSON, and its exit codes.

use std::process::{Command, Output};

use serde_json::Value;

fn demo(arguments: &[&str]) -> Output {
    demo_command(arguments).output().unwrap()
}

fn demo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stellate"));
    command.arg("demo").args(["--tokens", "600", "--block-tokens", "128"]);
    for (flag, value) in [("--hosts", "3"), ("--facts", "3")] {
        if !arguments.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.args(arguments).current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// The document on standard output, with the exit code.
fn demo_json(arguments: &[&str]) -> (Value, i32) {
    let output = demo(&[arguments, &["--json"]].concat());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code().unwrap())
}

fn questions(report: &Value) -> Vec<&Value> {
    report["modes"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|mode| mode["questions"].as_array().unwrap())
        .collect()
}

#[test]
fn each_fact_is_asked_for_once_per_mode_and_judged_by_its_digits() {
    let (report, code) = demo_json(&[]);
    let mut wrong = 0;
    for mode in report["modes"].as_array().unwrap() {
        let mut keys: Vec<_> =
            mode["questions"].as_array().unwrap().iter().map(|q| q["key"].as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 3);
    }
    for question in questions(&report) {
        let text = |key: &str| question[key].as_str().unwrap();
        let fact =
            report["document"]["facts"].as_array().unwrap().iter().find(|f| f["key"] == question["key"]);
        assert_eq!(fact.unwrap()["value"], question["expected"]);
        assert!(text("question").contains(text("key")));
        let digits: String = text("answer").chars().filter(char::is_ascii_digit).collect();
        assert_eq!(question["correct"].as_bool().unwrap(), digits == text("expected"), "{question}");
        wrong += usize::from(!question["correct"].as_bool().unwrap());
    }
    assert_eq!(report["asked"], 6);
    assert_eq!(report["correct"], 6 - wrong);
    assert_eq!(code, if wrong == 0 { 0 } else { 4 });
}

#[test]
fn most_facts_of_a_short_document_are_found() {
    let found: u64 =
        (1..=3).map(|seed| demo_json(&["--seed", &seed.to_string()]).0["correct"].as_u64().unwrap()).sum();
    assert!(found >= 15, "{found} of 18 answers right");
}

#[test]
fn star_and_exact_stand_side_by_side_with_their_blocks_and_shared_second_sessions() {
    let (report, _) = demo_json(&["--anchor-tokens", "64"]);
    let modes = report["modes"].as_array().unwrap();
    assert_eq!(modes[0]["attention"], "star");
    assert_eq!(modes[0]["anchor_tokens"], 64);
    assert_eq!(modes[1]["attention"], "exact");
    assert!(modes[1]["anchor_tokens"].is_null());
    assert_eq!(report["hosts"], 3);
    for mode in modes {
        let tokens = mode["context_tokens"].as_u64().unwrap();
        assert!((600..700).contains(&tokens), "{tokens}");
        assert_eq!(tokens, report["document"]["tokens"].as_u64().unwrap() + 1, "the begin token");
        assert_eq!(mode["blocks"], tokens.div_ceil(128));
        assert_eq!(mode["encoded_again"]["blocks_encoded"], 0);
        assert_eq!(mode["encoded_again"]["blocks_shared"], mode["blocks"]);
        let turns: Vec<_> =
            mode["questions"].as_array().unwrap().iter().map(|q| (&q["session"], &q["turn"])).collect();
        assert_eq!(turns.iter().map(|(session, _)| session.as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 2]);
        assert_eq!(turns.iter().map(|(_, turn)| turn.as_u64().unwrap()).collect::<Vec<_>>(), [1, 1, 2]);
        for figure in ["encode_s", "encode_tokens_per_s", "first_turn_time_to_first_token_s", "tokens_per_s"]
        {
            assert!(mode[figure].as_f64().unwrap() > 0.0, "{figure}");
        }
        assert!(mode["kv_held_bytes"].as_u64() >= mode["kv_bytes"].as_u64());
    }
}

#[test]
fn answers_do_not_depend_on_the_number_of_hosts() {
    let answers = |hosts: &str| {
        let (report, _) = demo_json(&["--hosts", hosts]);
        questions(&report).iter().map(|q| q["answer"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(answers("1"), answers("4"));
}

#[test]
fn a_reader_sees_questions_answers_and_figures() {
    let output = demo(&["--attention", "star"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for word in [
        "One of the special magic numbers for",
        "expected",
        "answers right",
        "tokens of the context",
        "encoded in",
        "keys and values",
    ] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    assert!(!text.contains("exact"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours where no terminal is");
    assert!(output.stderr.is_empty(), "no progress where no terminal is");
}

#[test]
fn what_cannot_be_is_refused_with_exit_code_2() {
    for arguments in
        [&["--facts", "0"][..], &["--facts", "1000"], &["--anchor-tokens", "129"], &["--hosts", "0"]]
    {
        let output = demo(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn a_core_an_instruction_set_or_a_number_of_threads_that_cannot_be_is_refused_with_exit_code_2() {
    for (name, value, word) in [
        ("STELLATE_QUERY__CPUS", "[99999]", "99999"),
        ("STELLATE_HOSTS__CPUS", "[[99999], [99999], [99999]]", "99999"),
        ("STELLATE_CPU_ISA", "no-such-isa", "instruction set \"no-such-isa\""),
        ("STELLATE_HOSTS__THREADS", "100000", "hosts.threads"),
    ] {
        let output = demo_command(&[]).env(name, value).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {message}");
        assert!(message.contains(word), "{name}: {message}");
    }
    assert_eq!(demo(&["--threads", "100000"]).status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn a_cluster_that_changes_answers_as_one_process() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stellate"));
    command.args([
        "demo",
        "--nodes",
        "2",
        "--tokens",
        "3000",
        "--block-tokens",
        "512",
        "--facts",
        "3",
        "--threads",
        "1",
    ]);
    let output = command.arg("--json").current_dir(env!("CARGO_TARGET_TMPDIR")).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["same"], report["asked"], "{report:#}");
    let is_right = report["correct"] == report["asked"];
    assert_eq!(output.status.code(), Some(if is_right { 0 } else { 4 }));
    let blocks = |step: usize, node: &str| report["steps"][step]["blocks"][node].as_u64().unwrap_or(0);
    assert!(blocks(0, "node-1") > 0 && blocks(0, "node-2") > 0, "{report:#}");
    assert!(blocks(1, "node-3") > 0, "a node that joins gets blocks: {report:#}");
    assert_eq!(blocks(2, "node-2"), 0, "a drained node has none: {report:#}");
    let last = report["steps"].as_array().unwrap().len() - 1;
    assert_eq!(blocks(last, "node-1"), report["blocks"].as_u64().unwrap(), "one node is left: {report:#}");
}
