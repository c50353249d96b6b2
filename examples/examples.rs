//! The examples run, and say what they should.

use std::path::Path;
use std::process::Command;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the example starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints text")
}

#[test]
fn one_process_finds_the_fact() {
    let printed = run(env!("CARGO_BIN_EXE_one_process"), &[]);
    assert!(printed.contains("mentioned in the provided text is 1234567."), "{printed}");
}

#[test]
fn multi_turn_finds_both_facts_and_shares_blocks() {
    let printed = run(env!("CARGO_BIN_EXE_multi_turn"), &[]);
    assert_eq!(printed.matches("amber-falcon: 1234567 ").count(), 3, "{printed}");
    assert!(printed.contains("kind-jacket: 7654321 "), "{printed}");
}

#[test]
fn own_checkpoint_runs_a_directory_in_both_modes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (model, text) = (root.join("model/demo"), root.join("model/demo/README.md"));
    let arguments = [model.to_str().unwrap(), text.to_str().unwrap(), "What is it?"];
    let printed = run(env!("CARGO_BIN_EXE_own_checkpoint"), &arguments);
    assert!(printed.contains("star: ") && printed.contains("exact: "), "{printed}");
}
