//! The store and whole processes: killed in the middle of writing, two on one folder, a folder that may not be written, a
//! file that may not grow. The processes are this test's own program, started again with a task in its environment.

#![allow(clippy::print_stdout, reason = "seeds and counts are told, and processes speak to each other")]
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stellate_runtime::store::{Condition, Kind, OpenError, Store, StoreOptions, Write};

const TASK: &str = "STELLATE_TEST_STORE_TASK";
const FOLDER: &str = "STELLATE_TEST_STORE_FOLDER";
const SELF: &str = "this_program_does_as_its_environment_says";
const LOG: &[u8] = b"log";

/// Held by each test that starts processes. Between its fork and its exec a new process has all open files of this one, and a
/// lock on a folder that another test has just let go of would then still be held for a moment.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    // Another test's failure is no concern of this one.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of entry `index`, of a length of its own.
fn entry(index: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(index);
    let length = if index.is_multiple_of(9) { 30_000 } else { rng.random_range(0..3_000) };
    (0..length).map(|_| rng.random()).collect()
}

/// What a started process does; the rest of the tests are the parents.
#[test]
fn this_program_does_as_its_environment_says() {
    let (Ok(task), Ok(folder)) = (std::env::var(TASK), std::env::var(FOLDER)) else { return };
    match (task.as_str(), Store::open(Path::new(&folder), StoreOptions::default())) {
        ("write", Ok(store)) => write_on(&store),
        (_, Ok(_)) => println!("opened"),
        (_, Err(error)) => println!("error {error:?}"),
    }
}

/// Appends for as long as the disk takes it, each time with a record of how many there are, and says so after each.
fn write_on(store: &Store) {
    let mut next = store.log(LOG).expect("read").map_or(0, |head| head.next);
    println!("ack {next}");
    loop {
        let writes = [
            Write::Append { log: LOG.to_vec(), epoch: 1, at: Some(next), entry: entry(next) },
            Write::Put {
                kind: Kind::Session,
                key: b"count".to_vec(),
                value: (next + 1).to_le_bytes().to_vec(),
                condition: Condition::Any,
            },
        ];
        match store.write(&writes) {
            Ok(outcomes) => assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}"),
            Err(error) => return println!("error {error:?}"),
        }
        next += 1;
        println!("ack {next}");
    }
}

fn command(task: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    arguments(&mut command, task, folder);
    command
}

fn arguments(command: &mut Command, task: &str, folder: &Path) {
    command.args(["--exact", SELF, "--nocapture", "--test-threads=1"]);
    command.env(TASK, task).env(FOLDER, folder).stdout(Stdio::piped());
}

fn start(mut command: Command) -> (Child, BufReader<ChildStdout>) {
    let mut child = command.spawn().expect("starts");
    let stdout = child.stdout.take().expect("piped");
    (child, BufReader::new(stdout))
}

/// What a process says until it has said `acks` times that it has written, or ends: the last number, and its error.
fn listen(lines: &mut BufReader<ChildStdout>, acks: usize) -> (Option<u64>, Option<String>) {
    let (mut last, mut count, mut line) = (None, 0, Vec::new());
    while count < acks {
        line.clear();
        // A process that was killed may leave half a line; it has not said it then.
        if lines.read_until(b'\n', &mut line).expect("read") == 0 || line.pop() != Some(b'\n') {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        // The test harness writes its own line's beginning before ours.
        if let Some((_, number)) = text.rsplit_once("ack ") {
            last = Some(number.parse().expect("a number"));
            count += 1;
        } else if let Some((_, error)) = text.split_once("error ") {
            return (last, Some(error.to_owned()));
        }
    }
    (last, None)
}

/// How many entries there are; each is whole and the record agrees.
fn check_whole(store: &Store, what: &str) -> u64 {
    let Some(page) = store.read_log(LOG, 0, usize::MAX).expect("read") else { return 0 };
    for found in &page.entries {
        assert_eq!(found.value, entry(found.index), "{what}: entry {}", found.index);
    }
    assert_eq!(page.entries.len() as u64, page.head.next, "{what}");
    let record = store.get(Kind::Session, b"count").expect("read").expect("written with the entries");
    assert_eq!(record.value, page.head.next.to_le_bytes(), "{what}: record and log are of one commit");
    page.head.next
}

#[test]
fn a_process_killed_at_any_moment_has_lost_no_acknowledged_write_and_left_none_half() {
    let _alone = alone();
    let seed: u64 = std::env::var("STELLATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut before, mut unacknowledged, mut early) = (0, 0, 0);
    for round in 0..80 {
        if round % 16 == 0 {
            // Among the moments are those of creating the store.
            fs::remove_dir_all(folder.path()).expect("removed");
            before = 0;
        }
        let (mut child, mut lines) = start(command("write", folder.path()));
        let acks = rng.random_range(0..30);
        let (seen, error) = listen(&mut lines, acks);
        assert_eq!(error, None, "round {round}");
        for _ in 0..rng.random_range(0..3_000) {
            std::thread::yield_now();
        }
        child.kill().expect("kill -9");
        child.wait().expect("ended");
        let (later, error) = listen(&mut lines, usize::MAX);
        assert_eq!(error, None, "round {round}");
        let acknowledged = later.or(seen).unwrap_or(before);
        early += u32::from(later.or(seen).is_none());
        let store = Store::open(folder.path(), StoreOptions::default()).expect("opens");
        let found = check_whole(&store, &format!("seed {seed} round {round}"));
        assert!(
            found == acknowledged || found == acknowledged + 1,
            "seed {seed} round {round}: {found} found, {acknowledged} acknowledged"
        );
        unacknowledged += found - acknowledged;
        before = found;
    }
    println!(
        "80 kills, {early} before the first write; {unacknowledged} writes were on the disk and not yet acknowledged"
    );
}

#[test]
fn a_second_process_on_the_folder_is_told_who_has_it() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(folder.path(), StoreOptions::default()).expect("opens");
    store.append(LOG, 1, &entry(0)).expect("written");
    let (mut child, mut lines) = start(command("open", folder.path()));
    let (_, error) = listen(&mut lines, usize::MAX);
    child.wait().expect("ended");
    let expected = OpenError::InUse { folder: folder.path().to_owned(), holder: Some(std::process::id()) };
    assert_eq!(error, Some(format!("{expected:?}")));
    store.append(LOG, 1, &entry(1)).expect("the first is unharmed");
}

#[test]
fn a_folder_that_may_not_be_written_is_a_typed_error_and_keeps_what_it_has() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let store = Store::open(&data, StoreOptions::default()).expect("opens");
    store.put(Kind::Intent, b"node", b"draining", Condition::Any).expect("written");
    drop(store);
    let allow = |mode_of_folder, mode_of_files| {
        for file in fs::read_dir(&data).expect("listed") {
            let file = file.expect("listed").path();
            fs::set_permissions(file, fs::Permissions::from_mode(mode_of_files)).expect("set");
        }
        fs::set_permissions(&data, fs::Permissions::from_mode(mode_of_folder)).expect("set");
    };
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("set");
    allow(0o555, 0o444);
    let mut command = command("open", &data);
    if Store::open(&data, StoreOptions::default()).is_ok() {
        // The superuser may write anywhere: the process must be somebody else.
        command.uid(65_534).gid(65_534);
    }
    match command.spawn() {
        Ok(mut child) => {
            let mut lines = BufReader::new(child.stdout.take().expect("piped"));
            let (_, error) = listen(&mut lines, usize::MAX);
            let status = child.wait().expect("ended");
            let error = error.unwrap_or_else(|| panic!("not refused, {status}"));
            assert!(error.starts_with("ReadOnly"), "{error}");
        }
        Err(error) => println!("SKIPPED: this program cannot be started by another user here: {error}"),
    }
    allow(0o755, 0o644);
    let store = Store::open(&data, StoreOptions::default()).expect("opens");
    let record = store.get(Kind::Intent, b"node").expect("read").expect("kept");
    assert_eq!(record.value, b"draining");
}

#[test]
fn a_file_that_may_not_grow_is_a_full_disk_and_keeps_every_acknowledged_write() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a temporary folder");
    drop(Store::open(folder.path(), StoreOptions::default()).expect("opens"));
    // A limit on the size of files, in blocks of 512 bytes or 1 KiB, of a shell's children; without the trap the system would
    // end the process instead of failing its write.
    let mut shell = Command::new("sh");
    let program = std::env::current_exe().expect("this program");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\""]).arg(program);
    arguments(&mut shell, "write", folder.path());
    let (mut child, mut lines) = start(shell);
    let (acknowledged, error) = listen(&mut lines, usize::MAX);
    child.wait().expect("ended");
    assert_eq!(error.as_deref(), Some("DiskFull"));
    let store = Store::open(folder.path(), StoreOptions::default()).expect("opens");
    let found = check_whole(&store, "after a full disk");
    println!("{found} writes");
    assert_eq!(Some(found), acknowledged);
    store.append(LOG, 1, &entry(found)).expect("with room it goes on");
}
