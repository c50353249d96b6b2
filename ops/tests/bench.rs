//! `stellate bench` as its user runs it: what it prints, what it draws, and what it refuses before it computes anything.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_stellate"))
        .args(["bench", "--random-weights", "tiny", "--query-tokens", "4", "--max-tokens", "3"])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn every_length_is_measured_under_star_and_exact_and_plotted() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("plot.svg");
    let output = bench(&[
        "--json",
        "--tokens",
        "256,512",
        "--block-tokens",
        "64,quarter",
        "--hosts",
        "2",
        "--repeat",
        "2",
        "--svg",
        svg.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["machine"]["backend"].as_str().unwrap().starts_with("cpu"));
    let measurements = report["measurements"].as_array().unwrap();
    assert_eq!(measurements.len(), 8);
    for measured in measurements {
        let seconds = |name: &str| measured[name]["best"].as_f64().unwrap();
        for name in ["encode_s", "first_token_s", "token_s", "second_turn_first_token_s"] {
            assert!(seconds(name) > 0.0, "{name} of {measured}");
        }
        for (name, kind) in [("gflop", "products"), ("gflop", "attention"), ("gflop", "total")] {
            assert!(measured[name][kind].as_f64().unwrap() > 0.0, "{name} of {measured}");
        }
        assert!(measured["encode_gflop_per_s"].as_f64().unwrap() > 0.0);
        assert_eq!(measured["second_turn_query_tokens"], 5);
        assert!(measured["store_used_bytes"].as_u64() <= measured["store_capacity_bytes"].as_u64());
        assert_eq!(measured["within_store"], true);
        // Lengths of whole tiles: what is held per token is what the formula says.
        assert_eq!(measured["kv_bytes_per_token"].as_f64(), measured["kv_bytes_per_token_formula"].as_f64());
        assert!(measured["kv_held_bytes"].as_u64() >= measured["kv_bytes"].as_u64());
    }
    let (scaling, turns) = (&report["scaling"], report["scaling"]["second_turns"].as_array().unwrap());
    assert_eq!(scaling["exponents"].as_array().unwrap().len(), 4);
    assert!(scaling["exponents"][0]["all"]["measured"].as_f64().unwrap() > 0.0);
    assert_eq!(scaling["speedups"].as_array().unwrap().len(), 4);
    assert!(scaling["speedups"][3]["counted"].as_f64().unwrap() > 0.0);
    assert_eq!((turns.len(), &turns[0]["query_tokens"]), (8, &Value::from(5)));
    assert_eq!(scaling["independence"].as_array().unwrap().len(), 2);
    assert_eq!((&report["guess_tokens"], &report["error"]), (&Value::from(0), &Value::Null));
    let plot = std::fs::read_to_string(svg).unwrap();
    assert!(plot.contains("star, blocks of 64") && plot.contains("exact, blocks of a quarter"));
}

#[test]
fn a_profile_is_of_one_repeat_and_stands_beside_the_time_that_encoding_took() {
    let shape = ["--tokens", "256", "--block-tokens", "64", "--hosts", "1", "--repeat", "2"];
    let output = bench(&[shape.as_slice(), &["--profile", "--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for measured in report["measurements"].as_array().unwrap() {
        let (profile, encode) = (&measured["profile"], &measured["profile"]["encode"]);
        assert_eq!(encode["wall_seconds"], measured["encode_s"]["best"]);
        let percent = encode["products_and_attention_wall_percent"].as_f64().unwrap();
        assert!(percent > 0.0 && percent <= 100.0, "{encode}");
        let calls = |name: &str| {
            let operations = encode["operations"].as_array().unwrap();
            operations.iter().find(|row| row["name"] == name).map_or(0, |row| row["calls"].as_u64().unwrap())
        };
        // Four blocks, of a chunk each, through two layers: of the last one only keys and values are made. Under exact three
        // of the blocks have earlier ones, which the context host attends to.
        let attention = if measured["attention"] == "exact" { 4 + 3 } else { 4 };
        assert_eq!((calls("product: down"), calls("attention")), (4, attention), "{encode}");
        assert_eq!(calls("waiting for hosts"), 0, "{encode}");
        let waiting = encode["waiting_seconds"].as_f64().unwrap();
        assert_eq!(waiting > 0.0, measured["attention"] == "exact", "{encode}");
        assert!(
            profile["serve"]["seconds"].as_f64() > Some(0.0) && profile["answer"]["operations"].is_array()
        );
    }
}

#[test]
fn tokens_that_are_given_are_the_ones_encoded_and_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids.json");
    std::fs::write(&file, serde_json::to_string(&(1..=72).collect::<Vec<_>>()).unwrap()).unwrap();
    let ids = file.to_str().unwrap();
    let exact = ["--attention", "exact", "--json", "--ids", ids, "--repeat", "2", "--tokens", "64"];
    let answers = ["16", "64"].map(|block| {
        let output = bench(&[exact.as_slice(), &["--block-tokens", block]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["measurements"][0]["answer_ids"].clone()
    });
    assert_eq!(answers[0].as_array().unwrap().len(), 3);
    assert_eq!(answers[0], answers[1]);

    let output = bench(&["--anchor-saving", "--block-tokens", "8", "--ids", ids, "--repeat", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let output = bench(&["--ids", ids, "--tokens", "65"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("72 tokens") && said.contains("take 73"), "{said}");
}

#[test]
fn the_table_says_where_and_how_it_was_measured() {
    let output = bench(&["--tokens", "64", "--block-tokens", "32", "--attention", "star"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for words in
        ["machine:", "stellate ", "tiny, random weights", "UTC", "| star ", "formula", "peak resident"]
    {
        assert!(text.contains(words), "{words} in {text}");
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_computed() {
    let output = bench(&["--tokens", "4096", "--kv-capacity", "1MiB"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("4,096 tokens") && said.contains("--kv-capacity"), "{said}");
    assert!(!said.contains("encoded in"), "{said}");
    assert!(output.stdout.is_empty());
    let output = Command::new(env!("CARGO_BIN_EXE_stellate"))
        .args(["bench", "--random-weights", "llama-3.1-8b", "--weights", "f32", "--tokens", "2000000"])
        .args(["--kv-capacity", "100TiB"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("more than the") && said.contains("GiB"), "{said}");
}

#[test]
fn a_plot_that_cannot_be_written_is_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("none").join("plot.svg");
    let output = bench(&["--tokens", "64", "--block-tokens", "32", "--svg", svg.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cannot write --svg") && said.contains("none/plot.svg"), "{said}");
    assert!(!said.contains("encoded in"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_measured_is_told_even_if_the_plot_cannot_be_drawn() {
    // A device that is there, may be opened, and is full.
    let output =
        bench(&["--tokens", "64", "--block-tokens", "32", "--attention", "star", "--svg", "/dev/full"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot draw /dev/full"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("| star "));
}

/// The lines of a file of `--json-lines`.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_demo_model_is_measured_with_several_anchors_and_told_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl");
    let output = Command::new(env!("CARGO_BIN_EXE_stellate"))
        .args(["bench", "--tokens", "128,256,2048", "--block-tokens", "64,128", "--anchor-tokens", "64,128"])
        .args(["--exact-tokens", "128,256", "--exact-block-tokens", "128", "--query-tokens", "4"])
        .args(["--max-tokens", "3", "--json-lines", path.to_str().unwrap()])
        .output()
        .unwrap();
    let (said, text) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{said}");
    for words in ["plan: 9 cases", "FLOP to encode", "9/9: star, blocks of 128 of 2,048 tokens"] {
        assert!(said.contains(words), "{words} in {said}");
    }
    for words in [
        "star, blocks of 128, anchors of 64",
        "of 16 blocks and more",
        "speed-up",
        "measured / counted",
        "tokens x step",
        "within: the KV within its store",
        "of 256 tokens: encode times differ by",
        "without guesses",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let lines = lines(&path);
    assert_eq!(lines.len(), 11);
    assert!(lines[0]["run"]["model"]["name"] == "demo" && lines[0]["run"]["guess_tokens"] == 0);
    assert!(lines[1..10].iter().all(|line| line["measurement"]["context_tokens"].is_u64()));
    let scaling = &lines[10]["scaling"];
    // Blocks of 64 reach 16 blocks and more at one length only.
    assert!(scaling["exponents"][0]["steady"].is_null() && scaling["exponents"][0]["holds"].is_null());
    assert_eq!(scaling["speedups"].as_array().unwrap().len(), 4);
}

#[test]
fn the_saving_of_the_shared_anchor_is_measured_in_turns_and_stands_beside_the_counted_one() {
    let output = bench(&["--json", "--anchor-saving", "--block-tokens", "128,64", "--repeat", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let savings = report["anchor_savings"].as_array().unwrap();
    assert_eq!((savings.len(), report["measurements"].as_array().unwrap().len()), (2, 0));
    for (saving, block) in savings.iter().zip([64, 128]) {
        assert_eq!(
            (&saving["block_tokens"], &saving["context_tokens"]),
            (&block.into(), &(8 * block).into())
        );
        let number = |name: &str| saving[name].as_f64().unwrap();
        // Seven anchors more over eight blocks, whose tokens see more keys than an anchor's.
        assert!(number("counted") > 1.6 && number("counted") < 1.9, "{saving}");
        assert!(saving["shared_s"]["best"].as_f64() > Some(0.0) && number("measured") > 0.0);
        assert!((number("percent") - 100.0 * number("measured") / number("counted")).abs() < 1e-6);
        assert!(saving["target"].is_null() && saving["holds"].is_null(), "there is none for this shape");
    }
    let output = bench(&["--anchor-saving", "--block-tokens", "64"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("| behind every block |") && text.contains("anchor once"), "{text}");
    assert!(text.contains("| target | holds |"), "{text}");
    assert_eq!(bench(&["--anchor-saving"]).status.code(), Some(2));
}

#[test]
fn the_plan_has_the_operations_of_every_case_and_measures_nothing() {
    let output = bench(&["--plan", "--tokens", "256,512", "--block-tokens", "64"]);
    let (said, text) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{said}");
    assert!(text.contains("plan: 4 cases") && text.contains("| exact, blocks of 64 |"), "{text}");
    assert!(!said.contains("encoded in") && !text.contains("peak resident"), "{said}{text}");
}

#[test]
fn what_would_not_end_within_the_limit_of_time_is_left_out_and_the_rest_is_told() {
    let output = bench(&["--json", "--tokens", "64,100000", "--block-tokens", "64", "--time-limit", "2s"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let left_out = report["left_out"].as_array().unwrap();
    assert!(left_out.iter().any(|case| case["context_tokens"] == 100_000), "{left_out:?}");
    assert!(said.contains("left out") || said.contains("was stopped"), "{said}");
}

#[cfg(unix)]
#[test]
fn what_was_measured_before_control_c_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl");
    let mut child = Command::new(env!("CARGO_BIN_EXE_stellate"))
        .args(["bench", "--random-weights", "tiny", "--attention", "exact", "--block-tokens", "64"])
        .args(["--tokens", "64,4000000", "--kv-capacity", "4GiB", "--json"])
        .args(["--json-lines", path.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The second case, which would take hours, begins.
    let said = BufReader::new(child.stderr.take().unwrap());
    let begun = said.lines().map(Result::unwrap).find(|line| line.starts_with("2/2: "));
    assert!(begun.is_some());
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["measurements"].as_array().unwrap().len(), 1);
    assert_eq!(report["error"], "interrupted");
    let lines = lines(&path);
    assert!(lines[1]["measurement"].is_object() && lines[lines.len() - 1]["error"] == "interrupted");
}

#[test]
fn what_the_network_costs_is_measured_beside_its_floors() {
    let arguments =
        ["cluster", "--parts", "fanout,copies,gossip", "--rounds", "20", "--copies", "1", "--json"];
    let output = Command::new(env!("CARGO_BIN_EXE_stellate")).arg("bench").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let fan_outs = report["fan_out"].as_array().unwrap();
    let hosts: Vec<_> = fan_outs.iter().map(|fan_out| fan_out["hosts"].as_u64().unwrap()).collect();
    assert_eq!(hosts, [1, 2, 4, 8]);
    for (fan_out, way) in
        fan_outs.iter().flat_map(|fan_out| ["bare", "memory", "network"].map(|way| (fan_out, way)))
    {
        assert!(fan_out[way]["p50_us"].as_f64() <= fan_out[way]["p99_us"].as_f64(), "{fan_out}");
    }
    // heads × (head_dim × 4) out, heads × (head_dim × 4 + 4) back, and less than 5 % around them.
    assert!(fan_outs[0]["request_bytes"].as_u64().unwrap() < 8192 * 105 / 100);
    assert!(fan_outs[0]["reply_bytes"].as_u64().unwrap() < 8320 * 105 / 100);
    assert_eq!(report["copies"]["block_bytes"], 64 << 20);
    assert!(report["copies"]["copy_bytes_per_s"].as_f64().unwrap() > 0.0);
    assert!(report["gossip"][0]["bytes_per_s_and_node"].as_f64().unwrap() > 0.0);
    assert!(report["processes"].is_null());
}
