//! Several nodes, each a process, over real QUIC: what is encoded and asked on one of them with its blocks on all gives the
//! answers of one process, whatever joins, goes or dies meanwhile. The nodes are this test's own program, started again with a
//! task in its environment.

mod node;
mod stuck;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use node::{BLOCK_TOKENS, MARK, Spec, ask_options, key_of, layout, model, options, question, text};
use stellate_actors::KvFormat;
use stellate_actors::Node;
use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::cluster::snapshot::ClusterSnapshot;
use stellate_runtime::clock::{Clock, SystemClock};
use stellate_runtime::identity::CertificateAuthority;
use tempfile::TempDir;

const SPEC: &str = "STELLATE_TEST_MEMBER";
const SELF: &str = "this_program_is_a_node_if_its_environment_says_so";
/// The folder that nodes write their logs to, with the level in `RUST_LOG`; else they write to standard error.
const LOGS: &str = "STELLATE_TEST_LOGS";
static STARTED: AtomicUsize = AtomicUsize::new(0);
/// Longest that a condition may take; only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);
const TOKENS: usize = 12;
const BLOCKS: usize = 9;
const PLENTY: usize = 64 << 20;

/// What a started process does: a node, until it is killed or its standard input ends.
#[test]
fn this_program_is_a_node_if_its_environment_says_so() {
    if let Ok(spec) = std::env::var(SPEC) {
        node::run(serde_json::from_str(&spec).unwrap());
    }
}

/// A cluster's nodes on disk, of which some run.
struct Cluster {
    folder: TempDir,
    authority: CertificateAuthority,
}

impl Cluster {
    fn new() -> Self {
        let authority = CertificateAuthority::create(SystemClock::new().wall()).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), authority }
    }

    /// A node that does everything but supervise, and looks for others at `seeds`.
    fn spec(&self, name: &str, seeds: &[&Running]) -> Spec {
        let folder = self.folder.path().join(name);
        if !folder.exists() {
            let credentials =
                self.authority.issue_node(&name.parse().unwrap(), SystemClock::new().wall()).unwrap();
            std::fs::create_dir(&folder).unwrap();
            credentials.save(&folder.join("identity")).unwrap();
        }
        let seeds = seeds.iter().map(|seed| seed.address.clone()).collect();
        Spec {
            folder,
            seeds,
            supervises: false,
            holds: true,
            asks: true,
            capacity_bytes: PLENTY,
            replicas: 1,
            recomputes: false,
            grace_ms: None,
            stuck_after_s: None,
            max_protocol: 0,
        }
    }

    fn supervisor(&self, name: &str, seeds: &[&Running]) -> Spec {
        Spec { supervises: true, ..self.spec(name, seeds) }
    }
}

/// A node that runs; killed with the test.
struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    address: String,
    key: NodeKey,
}

impl Running {
    fn start(spec: &Spec) -> Self {
        let stderr = std::env::var_os(LOGS).map_or_else(Stdio::inherit, |logs| {
            let name = spec.folder.file_name().unwrap().to_string_lossy();
            let count = STARTED.fetch_add(1, Ordering::Relaxed);
            File::create(Path::new(&logs).join(format!("{count}-{name}.log"))).unwrap().into()
        });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .stderr(stderr)
            .args([SELF, "--exact", "--nocapture"])
            .env(SPEC, serde_json::to_string(spec).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The harness of the tests writes before the first line.
                if let Some((_, said)) = line.split_once(MARK)
                    && sender.send(said.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        let stdin = child.stdin.take().unwrap();
        let (address, key) = (String::new(), NodeKey([0; 6]));
        let mut started = Self { child, stdin, lines, address, key };
        let line = started.hear();
        let words: Vec<&str> = line.split(' ').collect();
        let ["started", address, key] = words[..] else { panic!("{line}") };
        (started.address, started.key) = (address.to_owned(), key_of(key));
        started
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    fn hear(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the node says something")
    }

    fn call(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }

    /// Encodes a context; the keys of the nodes that its blocks are on.
    #[track_caller]
    fn encode(&mut self, mode: &str, blocks: usize, seed: u32) -> Vec<String> {
        let said = self.call(&format!("encode {mode} {blocks} {seed}"));
        let places = said.strip_prefix("encoded ").unwrap_or_else(|| panic!("{said}"));
        places.split(',').map(str::to_owned).collect()
    }

    /// Asks, and does `meanwhile` once a few tokens of the answer are there.
    #[track_caller]
    fn ask_and(&mut self, context: usize, seed: u32, tokens: usize, meanwhile: impl FnOnce()) -> String {
        self.tell(&format!("ask {context} {seed} {tokens}"));
        let (mut heard, mut meanwhile) = (0, Some(meanwhile));
        loop {
            let said = self.hear();
            if !said.starts_with("token") {
                return said;
            }
            heard += 1;
            if heard == 3 {
                meanwhile.take().unwrap()();
            }
        }
    }

    #[track_caller]
    fn ask(&mut self, context: usize, seed: u32) -> String {
        self.ask_and(context, seed, TOKENS, || {})
    }

    /// Waits until the supervisor's table is as wanted.
    #[track_caller]
    fn until(&mut self, wanted: impl Fn(&ClusterSnapshot) -> bool) -> ClusterSnapshot {
        let start = std::time::Instant::now();
        loop {
            let said = self.call("snapshot");
            let snapshot = said.strip_prefix("snapshot ").unwrap_or_else(|| panic!("{said}"));
            let snapshot: ClusterSnapshot = serde_json::from_str(snapshot).unwrap();
            if wanted(&snapshot) {
                return snapshot;
            }
            assert!(start.elapsed() < PATIENCE, "{snapshot:#?}");
        }
    }

    fn until_hosts(&mut self, count: usize) {
        self.until(|snapshot| snapshot.hosts.len() == count);
    }

    /// Kill -9.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn blocks_on(snapshot: &ClusterSnapshot, node: NodeKey) -> u64 {
    let hosts = snapshot.hosts.iter().filter(|row| NodeKey::of(row.host) == node);
    hosts.map(|row| row.blocks).sum()
}

/// What one process answers to each question of a session over a context, in order.
fn answers(mode: &str, seed: u32, asked: &[(u32, usize)]) -> Vec<String> {
    answers_over(BLOCKS, mode, seed, asked)
}

fn answers_over(blocks: usize, mode: &str, seed: u32, asked: &[(u32, usize)]) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let node = Node::open(&model(), options(PLENTY)).await.unwrap();
        let context = node.encode(text(blocks, seed), layout(mode)).await.unwrap();
        let session = context.session().await.unwrap();
        let mut answers = Vec::new();
        for (seed, tokens) in asked {
            let turn = session.ask(question(*seed), ask_options(*tokens));
            answers.push(format!("answer {:?}", turn.finish().await.unwrap().ids));
        }
        node.close().await;
        answers
    })
}

#[test]
fn blocks_on_three_nodes_answer_as_those_of_one_process_and_a_killed_node_changes_no_token() {
    let cluster = Cluster::new();
    let mut first = Running::start(&cluster.supervisor("first", &[]));
    let second = Running::start(&cluster.spec("second", &[&first]));
    let mut third = Running::start(&cluster.spec("third", &[&first, &second]));
    first.until_hosts(3);
    for (context, mode) in ["star", "exact"].into_iter().enumerate() {
        let mut places = third.encode(mode, BLOCKS, 1);
        places.sort();
        places.dedup();
        assert!(places.len() > 1, "{mode}: {places:?}");
        assert_eq!(third.ask(context, 0), answers(mode, 1, &[(0, TOKENS)])[0], "{mode}");
    }
    let mut victim = second;
    let killed = third.ask_and(0, 1, 40, || victim.kill());
    assert_eq!(killed, answers("star", 1, &[(0, TOKENS), (1, 40)])[1], "killed in the middle");
    // What nobody asks is brought back as well.
    first.until(|snapshot| snapshot.contexts.iter().all(|row| row.held_blocks == row.blocks));
    assert_eq!(third.ask(1, 2), answers("exact", 1, &[(0, TOKENS), (2, TOKENS)])[1], "killed before");
    let gone = victim.key.to_string();
    for context in 0..2 {
        assert!(
            !third.call(&format!("places {context}")).contains(&gone),
            "blocks lie on a node that is gone"
        );
    }
}

#[test]
fn a_node_that_joins_takes_blocks_and_one_that_is_drained_has_none_and_answers_stay_the_same() {
    for recomputes in [false, true] {
        join_and_drain(recomputes);
    }
}

fn join_and_drain(recomputes: bool) {
    let cluster = Cluster::new();
    // Some two contexts fill half of a node.
    let capacity_bytes = 4 * BLOCKS * model().decoder.kv_shape(KvFormat::F32).bytes_for(BLOCK_TOKENS);
    let mut first = Running::start(&Spec { capacity_bytes, recomputes, ..cluster.supervisor("first", &[]) });
    let expected: Vec<_> =
        ["star", "exact"].map(|mode| answers(mode, 2, &[(0, TOKENS), (1, TOKENS), (2, TOKENS)])).into();
    for (context, mode) in ["star", "exact"].into_iter().enumerate() {
        first.encode(mode, BLOCKS, 2);
        assert_eq!(first.ask(context, 0), expected[context][0], "{mode}, alone");
    }
    let second = Running::start(&Spec { capacity_bytes, ..cluster.spec("second", &[&first]) });
    // What has not been reported does not move.
    first.until(|snapshot| {
        snapshot.hosts.len() == 2 && snapshot.contexts.iter().all(|row| row.held_blocks == row.blocks)
    });
    assert!(first.call("rebalance").starts_with("planned"));
    first.until(|snapshot| {
        blocks_on(snapshot, second.key) > 1 && snapshot.moves.is_empty() && snapshot.queued_moves == 0
    });
    for (context, expected) in expected.iter().enumerate() {
        assert_eq!(first.ask(context, 1), expected[1], "after a node joined");
    }
    let key = first.key;
    assert!(first.call(&format!("drain {key}")).starts_with("planned"));
    first.until(|snapshot| blocks_on(snapshot, key) == 0 && snapshot.moves.is_empty());
    for (context, expected) in expected.iter().enumerate() {
        let places = first.call(&format!("places {context}"));
        assert!(!places.contains(&key.to_string()), "{places}");
        assert_eq!(first.ask(context, 2), expected[2], "after a node was drained");
    }
}

/// A supervisor that does nothing else, and two nodes that hold blocks, of which one is asked.
struct Apart {
    /// The supervisor's, to start it again.
    spec: Spec,
    supervisor: Running,
    asker: Running,
    other: Running,
}

impl Apart {
    fn start(cluster: &Cluster) -> Self {
        let spec = Spec { holds: false, asks: false, ..cluster.supervisor("supervisor", &[]) };
        let mut supervisor = Running::start(&spec);
        let asker = Running::start(&cluster.spec("asker", &[&supervisor]));
        let other = Running::start(&Spec { asks: false, ..cluster.spec("other", &[&supervisor, &asker]) });
        supervisor.until_hosts(2);
        Self { spec, supervisor, asker, other }
    }
}

#[test]
fn a_supervisor_that_is_stopped_and_started_again_learns_what_lies_where() {
    let cluster = Cluster::new();
    let Apart { spec, mut supervisor, mut asker, other } = Apart::start(&cluster);
    let places = asker.encode("star", BLOCKS, 3);
    let expected = answers("star", 3, &[(0, TOKENS), (1, 40), (2, TOKENS)]);
    assert_eq!(asker.ask(0, 0), expected[0]);
    let healed = asker.call("healed");
    // Nobody supervises, and answers go on.
    assert_eq!(asker.ask_and(0, 1, 40, || supervisor.kill()), expected[1]);
    let mut supervisor =
        Running::start(&Spec { seeds: vec![asker.address.clone(), other.address.clone()], ..spec });
    let snapshot =
        supervisor.until(|snapshot| snapshot.contexts.iter().any(|row| row.held_blocks == BLOCKS as u64));
    assert!(snapshot.term.counter > 1);
    // The first block is the anchor too: the other host keeps a copy of it, which is as good.
    let placed_again = asker.encode("star", BLOCKS, 3);
    assert_eq!(placed_again[1..], places[1..], "what is held stays where it is");
    assert_eq!(asker.call("healed"), healed, "nothing is encoded again");
    assert_eq!(asker.ask(0, 2), expected[2]);
    assert_eq!(asker.call("release"), "released");
    supervisor.until(|snapshot| {
        snapshot.contexts.is_empty() && snapshot.hosts.iter().all(|row| row.used_bytes == 0)
    });
}

#[test]
fn moves_of_a_supervisor_that_was_started_again_are_followed_without_a_repair() {
    let cluster = Cluster::new();
    let Apart { spec, mut supervisor, mut asker, other } = Apart::start(&cluster);
    asker.encode("star", BLOCKS, 8);
    let is_whole = |snapshot: &ClusterSnapshot| {
        snapshot.hosts.len() == 2
            && snapshot.moves.is_empty()
            && snapshot.contexts.iter().any(|row| row.held_blocks == BLOCKS as u64)
    };
    let drained = |snapshot: &ClusterSnapshot, key| is_whole(snapshot) && blocks_on(snapshot, key) == 0;
    supervisor.until(is_whole);
    // Each block moves with a version of the first term that is higher than any of the second.
    for _ in 0..2 {
        for (key, back) in [(asker.key, other.key), (other.key, asker.key)] {
            assert!(supervisor.call(&format!("uncordon {back}")).starts_with("Done"));
            assert!(supervisor.call(&format!("drain {key}")).starts_with("planned"));
            supervisor.until(|snapshot| drained(snapshot, key));
        }
    }
    assert_eq!(supervisor.call(&format!("uncordon {}", other.key)), "Done");
    supervisor.kill();
    let seeds = vec![asker.address.clone(), other.address.clone()];
    let mut supervisor = Running::start(&Spec { seeds, ..spec });
    supervisor.until(is_whole);
    assert!(supervisor.call(&format!("drain {}", asker.key)).starts_with("planned"));
    let key = asker.key;
    supervisor.until(|snapshot| drained(snapshot, key));
    assert!(!asker.call("places 0").contains(&key.to_string()), "the query side knows where blocks are");
    assert_eq!(asker.ask(0, 0), answers("star", 8, &[(0, TOKENS)])[0]);
    assert_eq!(asker.call("healed"), "healed 0 encoded 0");
}

#[test]
fn an_anchor_that_another_node_holds_is_copied_where_that_is_forced_and_answers_stay_the_same() {
    let cluster = Cluster::new();
    let mut first = Running::start(&cluster.supervisor("first", &[]));
    first.until_hosts(1);
    first.encode("star", BLOCKS, 11);
    first.until(|snapshot| snapshot.contexts.iter().any(|row| row.held_blocks == BLOCKS as u64));
    let mut second = Running::start(&cluster.spec("second", &[&first]));
    first.until_hosts(2);
    // It begins as the first one does.
    let places = first.encode("star", 3 * BLOCKS, 11);
    assert!(places.contains(&second.key.to_string()), "{places:?}");
    assert_eq!(second.call("anchors"), "anchors 1");
    assert_eq!(first.ask(1, 0), answers_over(3 * BLOCKS, "star", 11, &[(0, TOKENS)])[0]);
    assert_eq!(first.call("healed"), "healed 0 encoded 0");
}

#[test]
fn a_supervisor_that_moves_to_another_node_while_claims_stay_frees_nothing() {
    let cluster = Cluster::new();
    let mut first = Running::start(&cluster.supervisor("first", &[]));
    let second = cluster.spec("second", &[&first]);
    let mut running = Running::start(&second);
    let mut third = Running::start(&cluster.spec("third", &[&first, &running]));
    first.until_hosts(3);
    third.encode("star", BLOCKS, 9);
    // Blocks whose end shows that what nobody claims is freed by then.
    first.encode("star", 4 * BLOCKS, 10);
    first.kill();
    running.kill();
    let seeds = vec![third.address.clone()];
    let grace_ms = Some(4000);
    let mut second = Running::start(&Spec { supervises: true, grace_ms, seeds, ..second });
    let is_whole = |snapshot: &ClusterSnapshot| matches!(&snapshot.contexts[..], [row] if row.held_blocks == BLOCKS as u64);
    second.until(is_whole);
    let key = third.key;
    second.until(|snapshot| is_whole(snapshot) && blocks_on(snapshot, key) <= BLOCKS as u64);
    let healed = third.call("healed");
    assert_eq!(third.ask(0, 0), answers("star", 9, &[(0, TOKENS)])[0]);
    assert_eq!(third.call("healed"), healed, "what was claimed is where it was");
}

#[test]
fn a_context_that_does_not_fit_is_refused_with_numbers_until_a_node_joins() {
    let cluster = Cluster::new();
    let bytes = model().decoder.kv_shape(KvFormat::F32).bytes_for(BLOCK_TOKENS);
    let room = bytes * (BLOCKS - 2);
    let mut first = Running::start(&Spec { capacity_bytes: room, ..cluster.supervisor("first", &[]) });
    let refused = first.call(&format!("encode star {BLOCKS} 4"));
    assert!(refused.contains("tokens were needed and"), "{refused}");
    assert!(refused.contains("context hosts: 1"), "{refused}");
    let _second = Running::start(&Spec { capacity_bytes: room, ..cluster.spec("second", &[&first]) });
    first.until_hosts(2);
    first.encode("star", BLOCKS, 4);
    assert_eq!(first.ask(0, 0), answers("star", 4, &[(0, TOKENS)])[0]);
}

#[test]
fn with_two_copies_of_each_block_a_killed_node_changes_no_token_and_no_block_is_encoded_again() {
    let cluster = Cluster::new();
    let replicated = |spec: Spec| Spec { replicas: 2, ..spec };
    let mut first = Running::start(&replicated(cluster.supervisor("first", &[])));
    let second = Running::start(&replicated(cluster.spec("second", &[&first])));
    let mut third = Running::start(&replicated(cluster.spec("third", &[&first, &second])));
    first.until_hosts(3);
    let is_safe = |snapshot: &ClusterSnapshot| {
        snapshot.contexts.len() == 2 && snapshot.contexts.iter().all(|row| row.safe_blocks == BLOCKS as u64)
    };
    for (context, mode) in ["star", "exact"].into_iter().enumerate() {
        let places = third.encode(mode, BLOCKS, 5);
        assert!(places.contains(&second.key.to_string()), "{mode}: {places:?}");
        assert_eq!(third.ask(context, 0), answers(mode, 5, &[(0, TOKENS)])[0], "{mode}");
    }
    first.until(is_safe);
    assert_eq!(third.call("healed"), "healed 0 encoded 0");
    let mut victim = second;
    let killed = third.ask_and(0, 1, 40, || victim.kill());
    assert_eq!(killed, answers("star", 5, &[(0, TOKENS), (1, 40)])[1], "killed in the middle");
    assert_eq!(third.ask(1, 2), answers("exact", 5, &[(0, TOKENS), (2, TOKENS)])[1], "killed before");
    let gone = victim.key;
    let all_on_two = |snapshot: &ClusterSnapshot| is_safe(snapshot) && blocks_on(snapshot, gone) == 0;
    first.until(all_on_two);
    let healed = third.call("healed");
    assert!(healed.ends_with("encoded 0") && !healed.starts_with("healed 0 "), "{healed}");
    // What was copied is what was there: the one that is left answers alone.
    let key = first.key;
    assert!(third.call(&format!("drain {key}")).starts_with("planned"));
    first.until(|snapshot| blocks_on(snapshot, key) == 0);
    assert_eq!(third.ask(0, 2), answers("star", 5, &[(0, TOKENS), (1, 40), (2, TOKENS)])[2]);
    assert_eq!(third.ask(1, 3), answers("exact", 5, &[(0, TOKENS), (2, TOKENS), (3, TOKENS)])[2]);
    assert!(third.call("healed").ends_with("encoded 0"));
}

#[test]
fn an_encoding_that_is_given_up_leaves_nothing_on_any_node() {
    let cluster = Cluster::new();
    let mut first = Running::start(&cluster.supervisor("first", &[]));
    let mut second = Running::start(&cluster.spec("second", &[&first]));
    first.until_hosts(2);
    assert_eq!(second.call("give-up star 200 5"), "given up");
    let is_empty = |snapshot: &ClusterSnapshot| {
        snapshot.contexts.is_empty() && snapshot.hosts.iter().all(|row| row.used_bytes == 0)
    };
    first.until(is_empty);
    second.encode("star", BLOCKS, 5);
    assert_eq!(second.ask(0, 0), answers("star", 5, &[(0, TOKENS)])[0]);
}

#[test]
fn a_supervisor_on_a_node_that_is_new_takes_over_from_one_that_is_gone() {
    let cluster = Cluster::new();
    let spec = cluster.supervisor("first", &[]);
    Running::start(&spec).kill();
    let mut first = Running::start(&spec);
    let mut asker = Running::start(&cluster.spec("asker", &[&first]));
    first.until_hosts(2);
    // What is freed tells the agents of the term.
    asker.encode("star", BLOCKS, 6);
    assert_eq!(asker.call("release"), "released");
    let term = first.until(|snapshot| snapshot.hosts.iter().all(|row| row.used_bytes == 0)).term;
    assert!(term.counter > 1);
    first.kill();
    let second = Spec { holds: false, asks: false, ..cluster.supervisor("second", &[&asker]) };
    let mut second = Running::start(&second);
    asker.encode("star", BLOCKS, 6);
    assert_eq!(asker.ask(0, 0), answers("star", 6, &[(0, TOKENS)])[0]);
    assert_eq!(asker.call("release"), "released");
    second.until(|snapshot| {
        snapshot.term > term
            && snapshot.contexts.is_empty()
            && snapshot.hosts.iter().all(|row| row.used_bytes == 0)
    });
}
