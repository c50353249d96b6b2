//! `stellate dev` as its user runs it: a cluster that can be asked, and that leaves nothing behind.

#![cfg(unix)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

fn stellate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stellate"));
    command.args(arguments).current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A cluster that runs, and what it said when it was ready.
fn dev(arguments: &[&str]) -> (Child, Value) {
    let mut command = stellate(&["dev", "--json", "--threads", "1", "--kv-capacity", "64MiB"]);
    let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("it did not start: {line:?}"));
    (child, ready["ready"].clone())
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn pids(ready: &Value) -> Vec<Pid> {
    let pid = |node: &Value| Pid::from_raw(i32::try_from(node["pid"].as_i64().unwrap()).unwrap()).unwrap();
    ready["nodes"].as_array().unwrap().iter().map(pid).collect()
}

#[test]
fn a_cluster_for_trying_answers_and_ends_with_ctrl_c_leaving_nothing() {
    let (mut child, ready) = dev(&["--nodes", "2"]);
    let nodes = ready["nodes"].as_array().unwrap();
    for node in nodes {
        let mut command = stellate(&["node", "ls", "--json"]);
        command.env("STELLATE_IDENTITY", ready["identity"].as_str().unwrap());
        command.env("STELLATE_ADDRESS", node["address"].as_str().unwrap());
        let listed: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        let names: Vec<_> =
            listed.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["node-1", "node-2"], "as {} sees it", node["name"]);
    }
    let folder = Path::new(ready["folder"].as_str().unwrap());
    assert!(folder.join("admin").is_dir());
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!folder.exists());
    assert!(pids(&ready).into_iter().all(|pid| test_kill_process(pid).is_err()));
}

#[test]
fn what_it_kept_stays_if_asked_and_sigterm_ends_it_too() {
    let (mut child, ready) = dev(&["--nodes", "1", "--keep"]);
    let folder = Path::new(ready["folder"].as_str().unwrap());
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(folder.join("node-1/identity").is_dir() && folder.join("node-1.log").is_file());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn nodes_do_not_outlive_a_starter_that_is_killed() {
    let (mut child, ready) = dev(&["--nodes", "1"]);
    child.kill().unwrap();
    child.wait().unwrap();
    // They are nobody's children then: whether they are there is all that can be asked.
    while pids(&ready).into_iter().any(|pid| test_kill_process(pid).is_ok()) {
        std::thread::yield_now();
    }
    std::fs::remove_dir_all(ready["folder"].as_str().unwrap()).unwrap();
}

#[test]
fn a_cluster_of_no_nodes_is_refused() {
    let output = stellate(&["dev", "--nodes", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
