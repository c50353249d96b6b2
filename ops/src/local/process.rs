//! One process of a cluster of this machine: started, waited for, told to stop, killed, frozen. It never outlives its
//! [`Process`]. What its arguments are is the cluster's business.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, sink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::LocalError;

/// How often something is looked at that tells nobody when it changes.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Lines of a log that are shown when something went wrong.
const SHOWN_LINES: usize = 30;

/// What a node says once it can be asked, as `stellate serve --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Where it listens.
    pub address: String,
    /// Where nodes join; none where nobody can.
    pub join_address: Option<String>,
    /// Its name.
    pub name: String,
    /// Its id, in hexadecimal digits.
    pub id: String,
}

#[derive(Deserialize)]
struct ReadyLine {
    ready: Ready,
}

/// A running process. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    first_line: Option<oneshot::Receiver<String>>,
}

impl Process {
    /// Starts `command`; what it logs is added to the file `log`.
    pub(super) fn start(name: &str, mut command: Command, log: &Path) -> Result<Self, LocalError> {
        let open = || File::options().create(true).append(true).open(log);
        let file = open().map_err(LocalError::io(format!("write {}", log.display())))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt as _;
            // A Ctrl-C is for whoever started the cluster: it stops the nodes in its own order.
            command.process_group(0);
        }
        let mut child = command.spawn().map_err(LocalError::io(format!("start {name}")))?;
        let first_line = child.stdout.take().map(first_line);
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), first_line })
    }

    /// Its number on this machine.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the line in which it says that it can be asked. Call it once.
    pub(super) async fn ready(&mut self, patience: Duration) -> Result<Ready, LocalError> {
        let Some(line) = self.first_line.take() else { return Err(self.failed("was asked twice")) };
        match tokio::time::timeout(patience, line).await {
            Ok(Ok(line)) => {
                let parsed = serde_json::from_str::<ReadyLine>(&line);
                parsed
                    .map(|line| line.ready)
                    .map_err(|_| self.failed(&format!("said {line:?}, not that it is ready")))
            }
            Ok(Err(_)) => {
                let how = match self.ended(patience).await {
                    Some(status) => format!("ended with {status} before it was ready"),
                    None => "closed its standard output before it was ready".to_owned(),
                };
                Err(self.failed(&how))
            }
            Err(_) => Err(self.failed(&format!("was not ready after {patience:?}"))),
        }
    }

    /// How it ended, if it has.
    pub(super) fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end; none if it does not come.
    pub(super) async fn ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.status() {
                None if start.elapsed() < patience => tokio::time::sleep(LOOK_EVERY).await,
                status => return status,
            }
        }
    }

    /// Asks it to stop, frozen or not; where there are no signals it is killed.
    pub(super) fn terminate(&mut self) -> Result<(), LocalError> {
        #[cfg(unix)]
        return self.signal(rustix::process::Signal::TERM).and_then(|()| self.thaw());
        #[cfg(not(unix))]
        self.kill()
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) -> Result<(), LocalError> {
        self.child.kill().map_err(LocalError::io(format!("kill {}", self.name)))
    }

    /// Holds it where it is.
    pub(super) fn freeze(&mut self) -> Result<(), LocalError> {
        #[cfg(unix)]
        return self.signal(rustix::process::Signal::STOP);
        #[cfg(not(unix))]
        Err(self.cannot_hold())
    }

    /// Lets it go on.
    pub(super) fn thaw(&mut self) -> Result<(), LocalError> {
        #[cfg(unix)]
        return self.signal(rustix::process::Signal::CONT);
        #[cfg(not(unix))]
        Err(self.cannot_hold())
    }

    #[cfg(not(unix))]
    fn cannot_hold(&self) -> LocalError {
        LocalError::io(format!("hold {}: this system has no such signal", self.name))(
            std::io::ErrorKind::Unsupported.into(),
        )
    }

    #[cfg(unix)]
    fn signal(&mut self, signal: rustix::process::Signal) -> Result<(), LocalError> {
        // A process that was waited for has given its number back.
        if self.status().is_some() {
            return Ok(());
        }
        let sent = rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal);
        sent.map_err(|error| LocalError::io(format!("send a signal to {}", self.name))(error.into()))
    }

    /// This went wrong with it.
    pub(super) fn failed(&self, how: &str) -> LocalError {
        LocalError::Process { name: self.name.clone(), how: how.to_owned(), log: tail(&self.log) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and one that cannot be killed is not waited for.
        if self.child.kill().is_ok() {
            let _ = self.child.wait();
        }
    }
}

/// The first line of `stdout`; what comes behind it is read, so that nobody waits for its reader, and dropped.
fn first_line(stdout: ChildStdout) -> oneshot::Receiver<String> {
    let (told, line) = oneshot::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = String::new();
        if reader.read_line(&mut line).is_ok_and(|length| length > 0) {
            let _ = told.send(line);
            let _ = std::io::copy(&mut reader, &mut sink());
        }
    });
    line
}

/// The last lines of a log.
pub(super) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> (Process, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        (Process::start("node-1", command, &folder.path().join("log")).unwrap(), folder)
    }

    #[tokio::test]
    async fn a_process_is_ready_once_it_says_so_and_ends_when_it_is_told() {
        let line = r#"{"ready": {"address": "127.0.0.1:1", "join_address": null, "name": "a", "id": "b", "model": "demo"}}"#;
        let (mut process, _folder) = shell(&format!("echo '{line}'; echo more; cat"));
        let ready = process.ready(PATIENCE).await.unwrap();
        assert_eq!((&*ready.address, ready.join_address), ("127.0.0.1:1", None));
        assert!(process.status().is_none());
        process.freeze().unwrap();
        process.thaw().unwrap();
        process.terminate().unwrap();
        assert!(!process.ended(PATIENCE).await.unwrap().success());
    }

    #[tokio::test]
    async fn the_log_of_a_process_that_does_not_come_up_is_shown() {
        let (mut process, _folder) = shell("echo it is broken >&2; exit 3");
        let message = process.ready(PATIENCE).await.unwrap_err().to_string();
        assert!(message.contains("node-1") && message.contains("it is broken"), "{message}");
        assert!(message.contains('3'), "{message}");
    }

    #[tokio::test]
    async fn a_process_that_is_dropped_is_gone_even_if_it_is_frozen() {
        let (mut process, _folder) = shell("cat");
        process.freeze().unwrap();
        let pid = rustix::process::Pid::from_child(&process.child);
        drop(process);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
