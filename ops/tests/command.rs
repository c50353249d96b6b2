//! The `stellate` command around its subcommands: help, completions, logs, exit codes, Ctrl-C.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn stellate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stellate"));
    command.args(arguments).current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

fn output(arguments: &[&str]) -> Output {
    stellate(arguments).output().unwrap()
}

#[test]
fn help_documents_the_exit_codes_and_where_settings_come_from() {
    let text = String::from_utf8(output(&["--help"]).stdout).unwrap();
    for word in [
        "Exit codes:",
        "130",
        "STELLATE_",
        "demo",
        "run",
        "batch",
        "bench",
        "completions",
        "serve",
        "cluster",
        "node",
        "143",
    ] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
}

#[test]
fn every_shell_gets_completions_of_commands_and_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = output(&["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        assert!(script.contains("anchor-tokens") && script.contains("demo"), "{shell}");
    }
    assert_eq!(output(&["completions", "no-such-shell"]).status.code(), Some(2));
}

#[test]
fn a_wrong_variable_or_filter_is_named_and_ends_with_exit_code_2() {
    let wrong = stellate(&["demo"]).env("STELLATE_HOSTS__COUNTS", "2").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    let message = String::from_utf8(wrong.stderr).unwrap();
    assert!(message.contains("STELLATE_HOSTS__COUNTS") && message.contains("hosts.count"), "{message}");
    assert_eq!(output(&["demo", "--log-level", "info,="]).status.code(), Some(2));
    assert_eq!(output(&[]).status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_work_cleanly_with_exit_code_130() {
    let mut demo = stellate(&["demo", "--tokens", "120000", "--attention", "exact"]);
    let child = demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Long enough to be at work, and far from its end. An earlier signal would end the program by itself.
    std::thread::sleep(Duration::from_secs(3));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: interrupted\n");
}

#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    let mut child = stellate(&["completions", "bash"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
