//! Serving nodes as processes, with a cluster's folders and the commands that ask them. What is tested is elsewhere.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest that a condition may take; only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// In the wording that the demo model was taught.
pub(crate) const FACTS: &str = "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will \
                     quiz you about the numbers afterwards.\nThe grass is green. The sky is blue. One of the special \
                     magic numbers for amber-falcon is: 4816302. The sun is yellow. Here we go. There and back again. \
                     The grass is green. One of the special magic numbers for misty-otter is: 7659321. The sky is \
                     blue. The sun is yellow. Here we go. There and back again.\n";

pub(crate) fn question(key: &str) -> String {
    format!(
        "What is the special magic number for {key} mentioned in the provided text? \
         The special magic number for {key} mentioned in the provided text is"
    )
}

pub(crate) fn stellate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stellate"));
    command.args(arguments).current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

#[track_caller]
pub(crate) fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn json(command: &mut Command) -> Value {
    serde_json::from_str(&stdout(command)).unwrap()
}

/// The exit code and what was said.
pub(crate) fn refusal(command: &mut Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

/// A founded cluster, in folders of its own.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let dir = home.path("data");
        let founded = json(&mut stellate(&["cluster", "init", "--name", "first", "--dir", &dir, "--json"]));
        assert_eq!((founded["name"].as_str(), founded["id"].as_str().unwrap().len()), (Some("first"), 64));
        stdout(&mut stellate(&["admin", "create", "alice", "--dir", &dir, "--out", &home.path("alice")]));
        home
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// A node on free ports.
    pub(crate) fn serve(&self) -> Daemon {
        Daemon::start(&self.path("data"), &[])
    }

    /// A command of alice's.
    pub(crate) fn ask(&self, daemon: &Daemon, arguments: &[&str]) -> Command {
        let mut command = stellate(arguments);
        command.env("STELLATE_IDENTITY", self.path("alice"));
        command.env("STELLATE_ADDRESS", daemon.ready["address"].as_str().unwrap());
        command
    }

    /// A second node that joins through the first, with a token of its own.
    pub(crate) fn join(
        &self,
        first: &Daemon,
        name: &str,
        more: &[&str],
        settings: &[(&str, &str)],
    ) -> Daemon {
        let token = json(&mut self.ask(first, &["token", "create", "--ttl", "1h", "--json"]));
        let file = self.path(&format!("token-{name}"));
        fs::write(&file, token["token"].as_str().unwrap()).unwrap();
        let join = ["--join", token["join_address"].as_str().unwrap(), "--token-file", &file, "--name", name];
        Daemon::start_with(&self.path(name), &[&join, more].concat(), settings)
    }

    /// Asks again and again for the nodes, until they are as `wanted`.
    #[track_caller]
    pub(crate) fn nodes_until(&self, daemon: &Daemon, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let Value::Array(nodes) = json(&mut self.ask(daemon, &["node", "ls", "--json"])) else {
                panic!("`node ls` lists nodes")
            };
            if wanted(&nodes) {
                return nodes;
            }
            assert!(start.elapsed() < PATIENCE, "it never came to be: {nodes:#?}");
        }
    }

    pub(crate) fn facts(&self) -> PathBuf {
        let path = PathBuf::from(self.path("facts.txt"));
        fs::write(&path, FACTS).unwrap();
        path
    }
}

/// A running node; killed if a test leaves it behind.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) ready: Value,
}

impl Daemon {
    pub(crate) fn start(dir: &str, more: &[&str]) -> Self {
        Self::start_with(dir, more, &[])
    }

    /// With settings in the environment.
    pub(crate) fn start_with(dir: &str, more: &[&str], settings: &[(&str, &str)]) -> Self {
        let free = "127.0.0.1:0";
        let mut command =
            stellate(&["serve", "--dir", dir, "--listen", free, "--join-listen", free, "--json"]);
        command.args(["--hosts", "2"]).args(more);
        if !more.contains(&"--kv-capacity") {
            command.args(["--kv-capacity", "64MiB"]);
        }
        command.envs(settings.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("it did not start: {line:?}"));
        Self { child, ready: ready["ready"].clone() }
    }

    #[cfg(unix)]
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The row of the node with this name.
pub(crate) fn row<'a>(nodes: &'a [Value], name: &str) -> Option<&'a Value> {
    nodes.iter().find(|node| node["name"] == name)
}

/// Whether all of these nodes take blocks, and the supervisor knows their hosts.
pub(crate) fn are_active(nodes: &[Value], names: &[&str]) -> bool {
    let is_active = |node: &Value| node["state"] == "active" && node["blocks"].is_u64();
    names.iter().all(|name| row(nodes, name).is_some_and(is_active))
}
