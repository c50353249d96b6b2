//! A cluster of several nodes, each a process, as its operator runs it: nodes join, lie fallow, are emptied, leave and are removed,
//! and a context that lies on all of them answers as in one process.
#![cfg(unix)]

mod daemons;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use daemons::{Daemon, Home, are_active, json, question, refusal, row, stdout, stellate};
use serde_json::Value;

const BOTH: [&str; 2] = ["first", "second"];

/// A context in many blocks.
fn create(home: &Home, daemon: &Daemon) -> Value {
    let facts = home.facts();
    json(
        &mut home
            .ask(daemon, &["context", "create", facts.to_str().unwrap(), "--block-tokens", "16", "--json"]),
    )
}

/// The names of the nodes that blocks of a context lie on.
fn nodes_of(context: &Value) -> Vec<String> {
    let node = |host: &Value| host.as_str().unwrap().rsplit_once('.').unwrap().0.to_owned();
    let mut nodes: Vec<_> = context["hosts"].as_array().unwrap().iter().map(node).collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

fn show(home: &Home, daemon: &Daemon, context: &Value) -> Value {
    json(&mut home.ask(daemon, &["context", "show", context["context"].as_str().unwrap(), "--json"]))
}

/// What one process answers over the same context.
fn answer_of_one_process(facts: &Path, query: &str) -> String {
    let context = facts.to_str().unwrap();
    stdout(&mut stellate(&[
        "run",
        "--context",
        context,
        "--query",
        query,
        "--block-tokens",
        "16",
        "--hosts",
        "2",
    ]))
}

fn answer(home: &Home, daemon: &Daemon, context: &Value, query: &str) -> String {
    stdout(&mut home.ask(daemon, &["ask", query, "--context", context["context"].as_str().unwrap()]))
}

#[test]
fn two_nodes_hold_a_context_together_and_answer_as_one_process() {
    let home = Home::new();
    let first = home.serve();
    let second = home.join(&first, "second", &[], &[]);
    for daemon in [&first, &second] {
        let nodes = home.nodes_until(daemon, |nodes| are_active(nodes, &BOTH));
        assert_eq!(nodes.len(), 2, "{nodes:#?}");
        assert!(nodes.iter().all(|node| node["version"] == env!("CARGO_PKG_VERSION")));
        assert!(nodes.iter().any(|node| node["rtt_us"].is_u64()), "one of them is another node");
    }
    let query = question("misty-otter");
    let expected = answer_of_one_process(&home.facts(), &query);
    // Either can be asked: both keep contexts.
    for daemon in [&first, &second] {
        let context = create(&home, daemon);
        assert_eq!(nodes_of(&show(&home, daemon, &context)), BOTH);
        assert_eq!(answer(&home, daemon, &context, &query), expected);
    }
    // What is not here is elsewhere.
    let (code, message) = refusal(&mut home.ask(&second, &["context", "show", "c-1"]));
    assert_eq!(code, 2);
    assert!(message.contains("node `first` at 127.0.0.1:"), "{message}");
    let nodes = home.nodes_until(&second, |nodes| {
        nodes.iter().all(|node| node["blocks"].as_u64().is_some_and(|blocks| blocks > 0))
    });
    assert!(nodes.iter().all(|node| node["used_bytes"].as_u64().unwrap() > 0));
    let checks = json(&mut home.ask(&second, &["doctor", "--json"]));
    for pair in ["first -> second", "second -> first"] {
        for what in ["reachability", "rtt", "mtu", "clock", "bandwidth"] {
            let is_there =
                |check: &Value| check["node"] == pair && check["what"] == what && check["finding"] == "good";
            assert!(checks.as_array().unwrap().iter().any(is_there), "{pair} {what}: {checks:#}");
        }
    }
}

#[test]
fn a_node_whose_keys_and_values_have_another_format_is_a_member_without_work_and_says_why() {
    let home = Home::new();
    let first = home.serve();
    let second = home.join(&first, "second", &["--kv", "f32"], &[]);
    for daemon in [&first, &second] {
        let nodes = home.nodes_until(daemon, |nodes| {
            are_active(nodes, &["first"])
                && row(nodes, "second").is_some_and(|node| node["state"] == "incompatible")
        });
        let why = row(&nodes, "second").unwrap()["why"].as_str().unwrap();
        assert!(why.contains("f32") && why.contains("bf16"), "{why}");
    }
    let context = create(&home, &first);
    assert_eq!(nodes_of(&show(&home, &first, &context)), ["first"]);
    let facts = home.facts();
    let (code, message) = refusal(&mut home.ask(&second, &["context", "create", facts.to_str().unwrap()]));
    assert_eq!(code, 1);
    assert!(message.contains("f32") && message.contains("node `first`"), "{message}");
}

#[test]
fn roles_say_where_blocks_lie_and_where_sessions_run() {
    let home = Home::new();
    let roles = |roles| [("STELLATE_NODE__ROLES", roles)];
    let first = Daemon::start_with(&home.path("data"), &[], &roles(r#"["query", "supervisor"]"#));
    let facts = home.facts();
    let (code, message) = refusal(&mut home.ask(&first, &["context", "create", facts.to_str().unwrap()]));
    assert_eq!(code, 1);
    assert!(message.contains("context hosts: 0"), "nothing holds blocks yet: {message}");
    let second = home.join(&first, "second", &[], &roles(r#"["context"]"#));
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
    let context = create(&home, &first);
    assert_eq!(nodes_of(&show(&home, &first, &context)), ["second"]);
    let query = question("misty-otter");
    assert_eq!(answer(&home, &first, &context, &query), answer_of_one_process(&facts, &query));
    for command in [&["ps"][..], &["context", "create", facts.to_str().unwrap()], &["session", "ls"]] {
        let (code, message) = refusal(&mut home.ask(&second, command));
        assert_eq!(code, 1, "{command:?}");
        assert!(message.contains("node `first`"), "{message}");
    }
    let (_, message) = refusal(&mut home.ask(&second, &["node", "cordon", "first"]));
    assert!(message.contains("first") && message.contains("hosts"), "{message}");
}

#[test]
fn a_cordoned_node_gets_no_blocks_and_one_that_is_drained_keeps_none() {
    let home = Home::new();
    let first = home.serve();
    let second = home.join(&first, "second", &[], &[]);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
    // Asked of the node that does not supervise.
    let cordoned = json(&mut home.ask(&second, &["node", "cordon", "second", "--json"]));
    assert_eq!(cordoned["state"], "cordoned");
    let context = create(&home, &first);
    assert_eq!(nodes_of(&show(&home, &first, &context)), ["first"]);
    let open = json(&mut home.ask(&second, &["node", "uncordon", "second", "--json"]));
    assert_eq!(open["state"], "active");

    let blocks = context["blocks"].as_u64().unwrap();
    home.nodes_until(&first, |nodes| row(nodes, "first").unwrap()["blocks"].as_u64() >= Some(blocks));
    let planned = stdout(&mut home.ask(&second, &["node", "drain", "first", "--dry-run", "--json"]));
    let events: Vec<Value> = planned.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let moves = events.iter().filter(|event| event["event"] == "block").count() as u64;
    // Copies of the anchor are blocks too.
    assert!(moves >= blocks, "{planned}");
    assert!(events.iter().all(|event| event["event"] != "cordoned"), "nothing was done");
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
    let drained = stdout(&mut home.ask(&second, &["node", "drain", "first", "--json"]));
    let last: Value = serde_json::from_str(drained.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "complete", "{drained}");
    let done = last["moved"].as_u64().unwrap() + last["recomputed"].as_u64().unwrap();
    assert!(done >= blocks, "{drained}");
    let nodes = home.nodes_until(&second, |nodes| {
        row(nodes, "first").is_some_and(|node| node["state"] == "drained" && node["blocks"] == 0)
    });
    assert!(row(&nodes, "second").unwrap()["blocks"].as_u64().unwrap() >= blocks);
    let query = question("misty-otter");
    let expected = answer_of_one_process(&home.facts(), &query);
    assert_eq!(answer(&home, &first, &context, &query), expected);
    assert_eq!(nodes_of(&show(&home, &first, &context)), ["second"]);
    // Nothing takes the blocks of the last one that does.
    let (code, message) = refusal(&mut home.ask(&first, &["node", "drain", "second"]));
    assert_eq!(code, 1);
    assert!(message.contains("second") && message.contains("free"), "{message}");
    // A wish outlives the process that it was made of.
    drop(first);
    let first = home.serve();
    home.nodes_until(&second, |nodes| row(nodes, "first").is_some_and(|node| node["state"] == "drained"));
    stdout(&mut home.ask(&first, &["node", "uncordon", "first"]));
    home.nodes_until(&second, |nodes| are_active(nodes, &BOTH));
    assert_eq!(answer(&home, &first, &context, &query), expected);
}

#[test]
fn a_node_that_is_told_to_stop_leaves_its_blocks_to_the_others_and_is_itself_again_when_it_comes_back() {
    let home = Home::new();
    let first = home.serve();
    let second = home.join(&first, "second", &[], &[]);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
    let context = create(&home, &first);
    assert_eq!(nodes_of(&show(&home, &first, &context)), BOTH);
    let (id, dir) = (second.ready["id"].clone(), home.path("second"));
    assert_eq!(second.terminate(), Some(0));
    let nodes =
        home.nodes_until(&first, |nodes| row(nodes, "second").is_none_or(|node| node["state"] == "left"));
    let blocks = context["blocks"].as_u64().unwrap();
    assert!(row(&nodes, "first").unwrap()["blocks"].as_u64().unwrap() >= blocks, "{nodes:#?}");
    assert_eq!(nodes_of(&show(&home, &first, &context)), ["first"]);
    // Neither token nor address: it knows who let it in.
    let second = Daemon::start(&dir, &[]);
    assert_eq!(second.ready["id"], id);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
}

#[test]
fn a_node_can_join_first_and_serve_later_but_not_join_twice() {
    let home = Home::new();
    let first = home.serve();
    let token = json(&mut home.ask(&first, &["token", "create", "--uses", "2", "--json"]));
    let (file, dir) = (home.path("token"), home.path("second"));
    std::fs::write(&file, token["token"].as_str().unwrap()).unwrap();
    let address = token["join_address"].as_str().unwrap();
    let join = ["node", "join", address, "--token-file", &file, "--name", "second", "--dir", &dir, "--json"];
    let joined = json(&mut stellate(&join));
    let (code, message) = refusal(&mut stellate(&join));
    assert_eq!(code, 2);
    assert!(message.contains("node `second` already"), "{message}");
    let second = Daemon::start(&dir, &[]);
    assert_eq!(second.ready["id"], joined["id"]);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
}

#[test]
fn a_drain_goes_on_when_whoever_watched_it_is_gone() {
    let home = Home::new();
    let first = home.serve();
    let second = home.join(&first, "second", &[], &[]);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
    let context = create(&home, &second);
    assert_eq!(nodes_of(&show(&home, &second, &context)), BOTH);
    let mut drain = home.ask(&first, &["node", "drain", "second", "--json"]);
    let mut watcher = drain.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(watcher.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("cordoned"), "{line}");
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    home.nodes_until(&first, |nodes| {
        row(nodes, "second").is_some_and(|node| node["state"] == "drained" && node["blocks"] == 0)
    });
    let query = question("misty-otter");
    let expected = answer_of_one_process(&home.facts(), &query);
    assert_eq!(answer(&home, &second, &context, &query), expected);
    assert_eq!(nodes_of(&show(&home, &second, &context)), ["first"]);
}

#[test]
fn a_cordon_takes_a_drain_back_and_ends_it_for_whoever_watches() {
    let home = Home::new();
    let roles = [("STELLATE_NODE__ROLES", r#"["query", "supervisor"]"#)];
    let first = Daemon::start_with(&home.path("data"), &[], &roles);
    let second = home.join(&first, "second", &[], &[]);
    let third = home.join(&first, "third", &[], &[]);
    home.nodes_until(&first, |nodes| are_active(nodes, &["first", "second", "third"]));
    let context = create(&home, &first);
    assert_eq!(nodes_of(&show(&home, &first, &context)), ["second", "third"]);
    let signal = |signal: &str| {
        let sent = Command::new("kill").args([signal, &third.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    };
    // The only node that would take its blocks stands still. Where that is noticed before the drain is asked for, it is
    // refused: then it is asked for again once the node is back.
    let watcher = loop {
        signal("-STOP");
        let mut drain = home.ask(&first, &["node", "drain", "second", "--json"]);
        let mut watcher = drain.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(watcher.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line.contains("cordoned") {
            break watcher;
        }
        watcher.wait().unwrap();
        signal("-CONT");
        home.nodes_until(&first, |nodes| are_active(nodes, &["second", "third"]));
    };
    let cordoned = json(&mut home.ask(&first, &["node", "cordon", "second", "--json"]));
    assert_eq!(cordoned["state"], "cordoned");
    let ended = watcher.wait_with_output().unwrap();
    signal("-CONT");
    let message = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{message}");
    assert!(message.contains("second") && message.contains("taken back"), "{message}");
    drop(second);
}

#[test]
fn a_removed_node_is_refused_for_good_and_says_so() {
    let home = Home::new();
    let first = home.serve();
    let mut second = home.join(&first, "second", &[], &[]);
    home.nodes_until(&second, |nodes| are_active(nodes, &BOTH));
    let (code, message) = refusal(&mut home.ask(&second, &["node", "remove", "first"]));
    assert_eq!(code, 1);
    assert!(message.contains("CA") && message.contains("node `first`"), "{message}");
    stdout(&mut home.ask(&first, &["node", "remove", "second", "--force"]));
    home.nodes_until(&first, |nodes| row(nodes, "second").is_none());
    assert_eq!(second.child.wait().unwrap().code(), Some(6), "it ends by itself");
    let identity = format!("{}/identity", home.path("second"));
    let (code, message) = refusal(home.ask(&first, &["status"]).env("STELLATE_IDENTITY", identity));
    assert_eq!(code, 6);
    assert!(message.contains("removed"), "{message}");
    // Its name is free again.
    std::fs::remove_dir_all(home.path("second")).unwrap();
    let _second = home.join(&first, "second", &[], &[]);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
}

#[test]
fn a_name_in_the_settings_says_who_places_blocks() {
    let home = Home::new();
    let settings = [("STELLATE_CLUSTER__SUPERVISOR", "second"), ("STELLATE_NODE__NAME", "second")];
    let first = Daemon::start_with(&home.path("data"), &[], &settings[..1]);
    let second = home.join(&first, "second", &[], &settings);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
    let context = create(&home, &first);
    assert_eq!(nodes_of(&show(&home, &first, &context)), BOTH);
    let terminated = Command::new("kill").args(["-KILL", &second.child.id().to_string()]).status().unwrap();
    assert!(terminated.success());
    let facts = home.facts();
    let (code, message) = refusal(&mut home.ask(&first, &["context", "create", facts.to_str().unwrap()]));
    assert_eq!(code, 1);
    assert!(message.contains("supervisor"), "{message}");
    drop(second);
    let second = Daemon::start_with(&home.path("second"), &[], &settings);
    home.nodes_until(&second, |nodes| are_active(nodes, &BOTH));
    let query = question("misty-otter");
    assert_eq!(answer(&home, &first, &context, &query), answer_of_one_process(&facts, &query));
}
