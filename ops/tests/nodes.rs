//! A cluster of several nodes, each a process, as its operator runs it: nodes join, lie fallow, are emptied, leave and are removed,
//! and a context that lies on all of them answers as in one process.
#![cfg(unix)]

mod daemons;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use daemons::{Daemon, Home, are_active, json, question, refusal, row, stdout, stellate};
use serde_json::Value;
use stellate_runtime::identity::{CertificateAuthority, Credentials, Role};

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

#[cfg(target_os = "linux")]
#[test]
fn whoever_started_a_node_is_told_when_it_can_be_asked_and_when_it_leaves() {
    let home = Home::new();
    let (file, socket) = (home.path("ready"), home.path("notify"));
    std::fs::write(&file, "of a process that was killed").unwrap();
    let systemd = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let heard = || {
        let mut word = [0; 64];
        let bytes = systemd.recv(&mut word).unwrap();
        String::from_utf8(word[..bytes].to_vec()).unwrap()
    };
    let daemon =
        Daemon::start_with(&home.path("data"), &["--ready-file", &file], &[("NOTIFY_SOCKET", &socket)]);
    assert_eq!(heard().trim(), "READY=1");
    let ready: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(ready["ready"], daemon.ready);
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(heard().trim(), "STOPPING=1");
    assert!(!Path::new(&file).exists());
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
    let context = create(&home, &second);
    let (code, message) = refusal(&mut home.ask(&first, &["node", "remove", "second"]));
    assert_eq!(code, 1);
    assert!(
        message.contains(context["context"].as_str().unwrap()) && message.contains("--force"),
        "{message}"
    );
    let removed = json(&mut home.ask(&first, &["node", "remove", "second", "--force", "--json"]));
    assert_eq!(removed["removed"], "second");
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
fn doctor_says_which_node_is_down() {
    let home = Home::new();
    let first = home.serve();
    let second = home.join(&first, "second", &[], &[]);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
    drop(second);
    home.nodes_until(&first, |nodes| row(nodes, "second").is_some_and(|node| node["state"] == "down"));
    let told = home.ask(&first, &["doctor", "--json"]).output().unwrap();
    assert_eq!(told.status.code(), Some(4));
    let checks: Value = serde_json::from_slice(&told.stdout).unwrap();
    let found = checks.as_array().unwrap().iter().find(|check| check["node"] == "second").unwrap();
    assert_eq!((&found["what"], &found["finding"]), (&"member".into(), &"bad".into()));
    assert!(found["detail"].as_str().unwrap().contains("stellate node remove second --force"), "{found}");
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

#[test]
fn a_lost_node_that_nobody_remembers_is_removed_by_name_and_refused_when_it_comes_back() {
    let home = Home::new();
    let first = home.serve();
    let second = home.join(&first, "second", &[], &[]);
    let third = home.join(&first, "third", &[], &[]);
    home.nodes_until(&first, |nodes| are_active(nodes, &["first", "second", "third"]));
    let id = third.ready["id"].as_str().unwrap().to_owned();
    drop((first, second, third));
    let first = home.serve();
    assert_eq!(home.nodes_until(&first, |nodes| are_active(nodes, &["first"])).len(), 1);
    let (code, message) = refusal(&mut home.ask(&first, &["node", "remove", "fourth"]));
    assert_eq!(code, 2);
    assert!(message.contains("`fourth`"), "{message}");
    stdout(&mut home.ask(&first, &["node", "remove", "second", "--force"]));
    stdout(&mut home.ask(&first, &["node", "remove", &id, "--force"]));
    let seeds = format!("[{}]", first.ready["address"]);
    for name in ["second", "third"] {
        let settings = [("STELLATE_NETWORK__SEEDS", seeds.as_str())];
        let mut back = Daemon::start_with(&home.path(name), &[], &settings);
        assert_eq!(back.child.wait().unwrap().code(), Some(6), "{name} ends by itself");
    }
    std::fs::remove_dir_all(home.path("second")).unwrap();
    let _second = home.join(&first, "second", &[], &[]);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
}

#[test]
fn tokens_are_listed_and_called_back_and_administrators_are_revoked_by_name() {
    let home = Home::new();
    let first = home.serve();
    let token = json(&mut home.ask(&first, &["token", "create", "--uses", "2", "--json"]));
    let id = token["id"].as_str().unwrap();
    let listed = json(&mut home.ask(&first, &["token", "ls", "--json"]));
    assert_eq!((&listed[0]["id"], &listed[0]["state"]), (&token["id"], &Value::from("open")));
    assert!(!listed.to_string().contains(token["token"].as_str().unwrap()));
    stdout(&mut home.ask(&first, &["token", "revoke", id]));
    assert!(stdout(&mut home.ask(&first, &["token", "ls"])).contains("revoked"));
    let (code, message) = refusal(&mut home.ask(&first, &["token", "revoke", "0011223344556677"]));
    assert_eq!(code, 2);
    assert!(message.contains("token ls"), "{message}");

    let (data, out) = (home.path("data"), home.path("bob"));
    stdout(&mut stellate(&["admin", "create", "bob", "--dir", &data, "--out", &out]));
    let ask_as_bob = || {
        let mut command = home.ask(&first, &["node", "ls", "--json"]);
        command.env("STELLATE_IDENTITY", &out);
        command
    };
    json(&mut ask_as_bob());
    stdout(&mut home.ask(&first, &["admin", "revoke", "bob"]));
    let (code, message) = refusal(&mut ask_as_bob());
    assert_eq!(code, 6);
    assert!(message.contains("removed"), "{message}");
    let (code, message) = refusal(&mut home.ask(&first, &["admin", "revoke", "carol"]));
    assert_eq!(code, 2);
    assert!(message.contains("`carol`"), "{message}");
    let (code, message) =
        refusal(&mut home.ask(&first, &["admin", "revoke", first.ready["id"].as_str().unwrap()]));
    assert_eq!(code, 1);
    assert!(message.contains("node remove"), "{message}");
}

/// Puts the certificate that a node had long ago in the place of its own.
fn expire(home: &Home, name: &str) {
    const DAY: Duration = Duration::from_secs(86_400);
    let identity = Path::new(&home.path(name)).join("identity");
    let authority = CertificateAuthority::load(&Path::new(&home.path("data")).join("ca")).unwrap();
    let found = Credentials::load(&identity).unwrap();
    let (name, key) = (&found.details().name, found.key().spki_der());
    let old = authority.issue(name, Role::Node, key, SystemTime::now() - 40 * DAY, 30 * DAY).unwrap();
    found.renewed(old).unwrap().save(&identity).unwrap();
}

#[test]
fn a_node_whose_certificate_is_over_joins_again_with_a_token_and_is_who_it_was() {
    let home = Home::new();
    let first = home.serve();
    let second = home.join(&first, "second", &[], &[]);
    let id = second.ready["id"].clone();
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
    drop(second);
    expire(&home, "second");
    let second = home.join(&first, "second", &[], &[]);
    assert_eq!(second.ready["id"], id);
    home.nodes_until(&first, |nodes| are_active(nodes, &BOTH));
    drop(second);
    expire(&home, "second");
    let token = json(&mut home.ask(&first, &["token", "create", "--json"]));
    let (file, dir) = (home.path("token"), home.path("second"));
    std::fs::write(&file, token["token"].as_str().unwrap()).unwrap();
    let address = token["join_address"].as_str().unwrap();
    let joined =
        json(&mut stellate(&["node", "join", address, "--token-file", &file, "--dir", &dir, "--json"]));
    assert_eq!((&joined["id"], joined["name"].as_str()), (&id, Some("second")));
}

#[test]
fn who_supervises_is_shown_and_a_takeover_is_refused_by_name_where_nobody_is_elected() {
    let home = Home::new();
    let first = home.serve();
    home.nodes_until(&first, |nodes| are_active(nodes, &["first"]));
    let shown = json(&mut home.ask(&first, &["supervisor", "status", "--json"]));
    assert_eq!((&shown["leader"], &shown["voters"]), (&"first".into(), &Value::Array(Vec::new())));
    let words = stdout(&mut home.ask(&first, &["supervisor", "status"]));
    assert!(words.contains("`first` supervises") && words.contains("cluster.voters is empty"), "{words}");
    let (code, message) = refusal(&mut home.ask(&first, &["supervisor", "takeover"]));
    assert_eq!(code, 1);
    assert!(message.contains("cluster.voters is empty"), "{message}");
    drop(first);

    // The same node, as the only voter of its cluster.
    let settings = [("STELLATE_CLUSTER__VOTERS", r#"["first"]"#), ("STELLATE_CLUSTER__LEASE_S", "2")];
    let first = Daemon::start_with(&home.path("data"), &[], &settings);
    let shown = json(&mut home.ask(&first, &["supervisor", "takeover", "--json"]));
    assert_eq!((&shown["leader"], &shown["majority"]), (&"first".into(), &1.into()));
    assert_eq!(shown["voters"][0]["leads"], true);
    let words = stdout(&mut home.ask(&first, &["supervisor", "status"]));
    assert!(words.contains("`first` supervises in term") && words.contains("leads"), "{words}");
    let (code, message) = refusal(&mut home.ask(&first, &["supervisor", "takeover", "--node", "second"]));
    assert_eq!(code, 1);
    assert!(message.contains("`second` is no voter; the voters are first"), "{message}");
    create(&home, &first);
}
