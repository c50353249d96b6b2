//! `stellate bench` as its user runs it: what it prints, what it draws, and what it refuses before it computes anything.

use std::process::{Command, Output};

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
        // Lengths of whole tiles: what is held per token is what the formula says.
        assert_eq!(measured["kv_bytes_per_token"].as_f64(), measured["kv_bytes_per_token_formula"].as_f64());
        assert!(measured["kv_held_bytes"].as_u64() >= measured["kv_bytes"].as_u64());
    }
    let plot = std::fs::read_to_string(svg).unwrap();
    assert!(plot.contains("star, blocks of 64") && plot.contains("exact, blocks of a quarter"));
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
