//! A cluster of one node as its operator runs it: found it, serve, encode, ask, restart, and what is refused.

mod daemons;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use daemons::{Daemon, FACTS, Home, json, question, refusal, stdout, stellate};
use serde_json::Value;

#[test]
fn a_founded_cluster_serves_a_context_and_answers_rightly() {
    let home = Home::new();
    let daemon = home.serve();
    assert_eq!(
        (daemon.ready["name"].as_str(), daemon.ready["model"].as_str()),
        (Some("first"), Some("demo"))
    );
    let facts = home.facts();
    let create = ["context", "create", facts.to_str().unwrap(), "--block-tokens", "64"];
    let context = stdout(&mut home.ask(&daemon, &create)).trim().to_owned();
    assert_eq!(context, "c-1");
    let answer = stdout(&mut home.ask(&daemon, &["ask", &question("misty-otter"), "--context", "c-1"]));
    assert_eq!(answer, "7659321.\n");

    let two = [question("amber-falcon"), question("misty-otter")];
    let asked = json(&mut home.ask(&daemon, &["ask", &two[0], &two[1], "--keep", "--json"]));
    assert!(asked["turns"][0]["text"].as_str().unwrap().contains("4816302"));
    let session = asked["session"].as_str().unwrap();
    let sessions = json(&mut home.ask(&daemon, &["session", "ls", "--json"]));
    assert_eq!((sessions[0]["session"].as_str(), sessions[0]["turns"].as_u64()), (Some(session), Some(2)));
    assert_eq!(sessions.as_array().unwrap().len(), 1, "the first question's session was closed");
    let turns = json(&mut home.ask(&daemon, &["session", "show", session, "--json"]));
    assert!(turns[1]["query"].as_str().unwrap().contains("misty-otter"));

    let contexts = json(&mut home.ask(&daemon, &["ps", "--json"]));
    assert_eq!((contexts[0]["context"].as_str(), contexts[0]["sessions"].as_u64()), (Some("c-1"), Some(1)));
    assert_eq!(contexts[0]["hosts"].as_array().unwrap().len(), 2);
    let (code, message) = refusal(&mut home.ask(&daemon, &["context", "rm", "c-1"]));
    assert_eq!(code, 1);
    assert!(message.contains(session) && message.contains("session rm"), "{message}");
    stdout(&mut home.ask(&daemon, &["session", "rm", session]));
    stdout(&mut home.ask(&daemon, &["context", "rm", "c-1"]));
    let (code, message) = refusal(&mut home.ask(&daemon, &["context", "show", "c-1"]));
    assert_eq!(code, 2);
    assert!(message.contains("c-1") && message.contains("context ls"), "{message}");
}

/// Blocks of 16 and 32 tokens cut sentences that the demo model needs whole: wrong answers must be the same as well.
#[test]
fn answers_are_those_of_one_process_whether_right_or_wrong() {
    let home = Home::new();
    let daemon = home.serve();
    let (facts, query) = (home.facts(), question("misty-otter"));
    let facts = facts.to_str().unwrap();
    for block in ["16", "32", "64"] {
        for attention in ["star", "exact"] {
            let how = ["--block-tokens", block, "--attention", attention];
            let create = [&["context", "create", facts], &how[..]].concat();
            let context = stdout(&mut home.ask(&daemon, &create));
            let there = stdout(&mut home.ask(&daemon, &["ask", &query, "--context", context.trim()]));
            let run = [&["run", "--context", facts, "--query", &query, "--hosts", "2"], &how[..]].concat();
            assert_eq!(there, stdout(&mut stellate(&run)), "{how:?}");
        }
    }
}

#[test]
fn a_chat_goes_over_the_network() {
    let home = Home::new();
    let daemon = home.serve();
    stdout(&mut home.ask(&daemon, &["context", "create", home.facts().to_str().unwrap()]));
    let mut chat = home.ask(&daemon, &["chat"]);
    let mut child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let typed = format!("{}\n/quit\n", question("misty-otter"));
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "7659321.\n");
    assert!(output.status.success());
}

#[test]
fn operators_see_the_node_and_what_one_node_cannot_do_is_refused_in_words() {
    let home = Home::new();
    let daemon = home.serve();
    let nodes = json(&mut home.ask(&daemon, &["node", "ls", "--json"]));
    assert_eq!((nodes[0]["name"].as_str(), nodes[0]["state"].as_str()), (Some("first"), Some("active")));
    assert_eq!(nodes[0]["capacity_bytes"].as_u64(), Some(128 << 20));
    let status = json(&mut home.ask(&daemon, &["status", "--json"]));
    assert_eq!((status["about"]["model"].as_str(), status["leaving"].as_bool()), (Some("demo"), Some(false)));
    let text = stdout(&mut home.ask(&daemon, &["status"]));
    assert!(text.contains("NODE") && text.contains("first") && text.contains("128 MiB"), "{text}");
    for command in
        [&["node", "drain", "first"][..], &["node", "cordon", "first"], &["node", "remove", "first"]]
    {
        let (code, message) = refusal(&mut home.ask(&daemon, command));
        assert_eq!(code, 1, "{command:?}");
        assert!(message.contains("only node"), "{message}");
    }
    let (code, message) = refusal(&mut home.ask(&daemon, &["node", "drain", "nobody"]));
    assert_eq!(code, 2);
    assert!(message.contains("nobody") && message.contains("node ls"), "{message}");
    assert!(stdout(&mut home.ask(&daemon, &["rebalance"])).contains("one node"));
    let checks = json(&mut home.ask(&daemon, &["doctor", "--json"]));
    let is_there = |what: &str| checks.as_array().unwrap().iter().any(|check| check["what"] == what);
    assert!(["certificate", "clock", "rtt", "mtu"].into_iter().all(is_there), "{checks}");
}

#[test]
fn a_node_joins_with_a_token_once_and_keeps_its_identity() {
    let home = Home::new();
    let first = home.serve();
    let token = json(&mut home.ask(&first, &["token", "create", "--ttl", "1h", "--json"]));
    assert_eq!((token["uses"].as_u64(), &token["join_address"]), (Some(1), &first.ready["join_address"]));
    let file = home.path("token");
    fs::write(&file, token["token"].as_str().unwrap()).unwrap();
    let address = token["join_address"].as_str().unwrap();
    let (dir, join) = (home.path("second"), ["--join", address, "--token-file", &file, "--name", "second"]);
    let second = Daemon::start(&dir, &join);
    assert_eq!(second.ready["name"], "second");
    assert!(second.ready["join_address"].is_null(), "it does not hold the CA");
    let nodes = json(&mut home.ask(&second, &["node", "ls", "--json"]));
    let is_own = |node: &Value| node["id"] == second.ready["id"];
    assert!(nodes.as_array().unwrap().iter().any(is_own), "alice's identity is good for it too");
    let (code, message) = refusal(&mut home.ask(&second, &["token", "create"]));
    assert_eq!(code, 1);
    assert!(message.contains("CA"), "{message}");

    let id = second.ready["id"].clone();
    drop(second);
    let again = Daemon::start(&dir, &join);
    assert_eq!(again.ready["id"], id, "the token is used up, and not needed any more");

    let third = home.path("third");
    let mut command = stellate(&["serve", "--dir", &third, "--listen", "127.0.0.1:0"]);
    let (code, message) =
        refusal(command.args(["--join", address, "--token-file", &file, "--name", "third"]));
    assert_eq!(code, 6, "{message}");
    assert!(message.contains("used up"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_restart_keeps_the_identity_and_sigterm_ends_with_success() {
    let home = Home::new();
    let daemon = home.serve();
    let id = daemon.ready["id"].clone();
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = home.serve();
    assert_eq!(daemon.ready["id"], id);
}

#[test]
fn contexts_sessions_and_tokens_outlive_a_node_that_is_killed() {
    let home = Home::new();
    let daemon = home.serve();
    let facts = home.facts();
    let create = ["context", "create", facts.to_str().unwrap(), "--block-tokens", "64"];
    let context = stdout(&mut home.ask(&daemon, &create)).trim().to_owned();
    let asked = json(&mut home.ask(&daemon, &["ask", &question("misty-otter"), "--keep", "--json"]));
    let session = asked["session"].as_str().unwrap();
    let second = ["ask", &question("amber-falcon"), "--session", session, "--json"];
    let token = json(&mut home.ask(&daemon, &["token", "create", "--ttl", "1h", "--json"]));
    // Without a word: `Drop` kills it.
    drop(daemon);

    let daemon = home.serve();
    let contexts = json(&mut home.ask(&daemon, &["ps", "--json"]));
    assert_eq!(contexts[0]["context"].as_str(), Some(&*context));
    assert_eq!(
        contexts[0]["hosts"].as_array().unwrap().len(),
        0,
        "no block is encoded before it is asked for"
    );
    let turns = json(&mut home.ask(&daemon, &["session", "show", session, "--json"]));
    assert_eq!(turns[0]["ids"], asked["turns"][0]["ids"]);
    let again = json(&mut home.ask(&daemon, &second));

    let unbroken = Home::new();
    let never_stopped = unbroken.serve();
    unbroken.facts();
    stdout(&mut unbroken.ask(&never_stopped, &create));
    let asked =
        json(&mut unbroken.ask(&never_stopped, &["ask", &question("misty-otter"), "--keep", "--json"]));
    let over = ["ask", &question("amber-falcon"), "--session", asked["session"].as_str().unwrap(), "--json"];
    let expected = json(&mut unbroken.ask(&never_stopped, &over));
    assert_eq!(again["turns"][0]["ids"], expected["turns"][0]["ids"]);
    assert!(again["turns"][0]["text"].as_str().unwrap().contains("4816302"));

    let file = home.path("token");
    fs::write(&file, token["token"].as_str().unwrap()).unwrap();
    let address = daemon.ready["join_address"].as_str().unwrap();
    let join = ["--join", address, "--token-file", &file, "--name", "second"];
    assert_eq!(Daemon::start(&home.path("second"), &join).ready["name"], "second");

    stdout(&mut home.ask(&daemon, &["session", "rm", session]));
    stdout(&mut home.ask(&daemon, &["context", "rm", &context]));
    drop(daemon);
    let daemon = home.serve();
    assert_eq!(
        json(&mut home.ask(&daemon, &["ps", "--json"])),
        Value::Array(Vec::new()),
        "what was removed stays so"
    );
}

#[cfg(unix)]
#[test]
fn what_runs_ends_before_the_node_leaves_and_a_second_sigterm_does_not_wait_for_it() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home.path("data"), &["--kv-capacity", "2GiB"]);
    stdout(&mut home.ask(&daemon, &["context", "create", home.facts().to_str().unwrap()]));
    // Far from its end when the signals come, on any machine.
    let long = home.path("long.txt");
    fs::write(&long, FACTS.repeat(1200)).unwrap();
    let create = ["context", "create", &long, "--attention", "exact"];
    let encoding = home.ask(&daemon, &create).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = || json(&mut home.ask(&daemon, &["status", "--json"]));
    while status()["running"] == 0 {}
    let id = daemon.child.id().to_string();
    let terminate = || Command::new("kill").args(["-TERM", &id]).status().unwrap();
    assert!(terminate().success());
    while status()["leaving"] == false {}
    let (code, message) = refusal(&mut home.ask(&daemon, &["ask", "anything"]));
    assert!(code == 1 && message.contains("leaving"), "{code}: {message}");
    assert_eq!(status()["running"], 1, "it waits for the encoding");
    assert!(terminate().success());
    let encoding = encoding.wait_with_output().unwrap();
    assert_eq!(encoding.status.code(), Some(5), "{}", String::from_utf8_lossy(&encoding.stderr));
    assert!(String::from_utf8_lossy(&encoding.stderr).contains("lost"));
    assert_eq!(daemon.child.wait().unwrap().code(), Some(143));
}

#[test]
fn whoever_asks_again_and_again_is_not_locked_out_by_connections_that_were_not_heard_to_close() {
    let home = Home::new();
    let daemon = home.serve();
    for _ in 0..40 {
        stdout(&mut home.ask(&daemon, &["node", "ls"]));
    }
}

#[test]
fn identities_that_are_wrong_missing_or_exposed_end_with_exit_code_6() {
    let (home, other) = (Home::new(), Home::new());
    let daemon = home.serve();
    let (code, message) =
        refusal(home.ask(&daemon, &["status"]).env("STELLATE_IDENTITY", other.path("alice")));
    assert_eq!(code, 6, "{message}");
    assert!(message.contains("not of this cluster"), "{message}");
    let (code, message) = refusal(home.ask(&daemon, &["status"]).env("STELLATE_IDENTITY", home.path("none")));
    assert_eq!(code, 6, "{message}");
    assert!(message.contains("admin create"), "{message}");
    let (code, message) =
        refusal(&mut stellate(&["serve", "--dir", &home.path("none"), "--listen", "127.0.0.1:0"]));
    assert_eq!(code, 6, "{message}");
    assert!(message.contains("cluster init") && message.contains("--join"), "{message}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let key = Path::new(&home.path("data")).join("identity/node.key.der");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let mut serve = stellate(&["serve", "--dir", &home.path("data"), "--listen", "127.0.0.1:0"]);
        let (code, message) = refusal(&mut serve);
        assert_eq!(code, 6, "{message}");
        assert!(message.contains("chmod 600"), "{message}");
    }
}

#[test]
fn what_is_wrong_on_the_command_line_is_named() {
    let home = Home::new();
    let dir = home.path("data");
    let (code, message) = refusal(&mut stellate(&["cluster", "init", "--name", "first", "--dir", &dir]));
    assert_eq!(code, 2);
    assert!(message.contains("exists already"), "{message}");
    let alice = home.path("alice");
    let named = |arguments: &[&str]| refusal(stellate(arguments).env("STELLATE_IDENTITY", &alice));
    for (arguments, word) in [
        (&["status", "--address", "nowhere"][..], "nowhere"),
        (&["context", "show", "7"], "c-"),
        (&["session", "show", "c-1"], "s-"),
        (&["ask", " "], "empty"),
        (&["token", "create", "--ttl", "1w"], "24h"),
        (&["token", "create", "--uses", "0"], "uses"),
        (&["admin", "create", "Alice!"], "Alice!"),
        (&["serve", "--join", "127.0.0.1:1"], "--token-file"),
        (&["serve", "--listen", "everywhere"], "network.listen"),
        (&["serve", "--dir", "x", "--join", "127.0.0.1:1", "--token-file", "no-such-file"], "no-such-file"),
    ] {
        let (code, message) = named(arguments);
        assert_eq!(code, 2, "{arguments:?}: {message}");
        assert!(message.contains(word), "{arguments:?}: {message}");
    }
    let (code, message) = named(&["status", "--address", "127.0.0.1:9"]);
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("127.0.0.1:9"), "{message}");
}

#[test]
fn what_is_deployed_uses_settings_and_flags_that_exist() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let help = stdout(&mut stellate(&["serve", "--help"]));
    for file in ["stellate.service", "Containerfile", "kubernetes/stellate.yaml"] {
        let text = fs::read_to_string(deploy.join(file)).unwrap();
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        let words: Vec<&str> = text.split(|c: char| !is_word(c)).collect();
        // Any value will do: an unknown name is refused first, and completions take no setting.
        let settings: Vec<_> =
            words.iter().filter(|w| w.starts_with("STELLATE_") && w.contains("__")).collect();
        assert!(!settings.is_empty(), "{file}");
        for name in settings {
            let output = stellate(&["completions", "bash"]).env(name, "1").output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!message.contains("unknown setting"), "{file}: {message}");
        }
        for line in text.lines().filter(|line| line.contains("stellate serve")) {
            for flag in line.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2) {
                assert!(help.contains(flag), "{file}: {flag} is not a flag of serve");
            }
        }
    }
}
