//! A cluster of this machine: founded, grown, and harmed on purpose. Which processes there are and where their files lie;
//! what the nodes then do about it is theirs.
//!
//! The folder holds `admin/` (an administrator's identity), and for each node a data folder and a log.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use stellate_actors::api::Client;
use stellate_runtime::identity::Credentials;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::LocalError;
use super::ports::own_address;
use super::process::{LOOK_EVERY, Process, Ready, tail};

/// How long a token of such a cluster is good for.
const TOKEN_TTL: Duration = Duration::from_secs(60 * 60);

/// How long a node may take to leave once it was asked to.
const GOODBYE: Duration = Duration::from_secs(15);

/// How a cluster of this machine is made.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The `stellate` program.
    pub program: PathBuf,
    /// Arguments of every `stellate serve`, besides those that say who and where it is.
    pub serve: Vec<String>,
    /// Settings of every node, as environment variables.
    pub settings: Vec<(String, String)>,
    /// What every node logs.
    pub log_level: String,
    /// How long anything may take that is waited for.
    pub patience: Duration,
}

impl LocalOptions {
    /// Nodes of `program` as it is without settings, but that new ones get their share at once; with a minute for everything.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            serve: Vec::new(),
            // Whoever looks on wants to see a node used that has just joined.
            settings: vec![("STELLATE_CLUSTER__SLOW_START_S".to_owned(), "0".to_owned())],
            log_level: "info".to_owned(),
            patience: Duration::from_secs(60),
        }
    }
}

/// What one node has of its own.
#[derive(Clone, Debug, Default)]
pub struct NodeSetup {
    /// Where it listens; a free port of this machine if none. Where others reach it is a setting, `network.advertise`.
    pub listen: Option<SocketAddr>,
    /// Where others join through it; a free port of this machine if none.
    pub join_listen: Option<SocketAddr>,
    /// Its data folder; one in the cluster's folder if none.
    pub data: Option<PathBuf>,
    /// Environment variables, besides [`LocalOptions::settings`].
    pub environment: Vec<(String, String)>,
    /// What stands before the program on the command line, as in `ip netns exec NAME`; it must become the program (`exec`), which is
    /// frozen and killed by the number of its process.
    pub runner: Vec<String>,
}

/// A node of a cluster of this machine, whether it runs or not.
#[derive(Debug)]
pub struct LocalNode {
    name: String,
    setup: NodeSetup,
    data: PathBuf,
    log: PathBuf,
    /// As it was when it was ready last.
    ready: Option<Ready>,
    process: Option<Process>,
    client: OnceCell<Client>,
}

impl LocalNode {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens; empty before it was ready once.
    pub fn address(&self) -> &str {
        self.ready.as_ref().map_or("", |ready| &ready.address)
    }

    /// The number of its process, if one runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Whether it could be asked at least once: it has an identity then, and can be started again.
    pub fn was_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// The file that it logs to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What has become of its process since the last look, if it has ended by itself.
    pub fn take_ended(&mut self) -> Option<LocalError> {
        let status = self.process.as_mut()?.status()?;
        Some(self.process.take()?.failed(&format!("ended with {status}")))
    }

    async fn until_ready(&mut self, patience: Duration) -> Result<(), LocalError> {
        let process = self.process.as_mut().expect("it was started");
        match process.ready(patience).await {
            Ok(ready) => self.ready = Some(ready),
            Err(error) => {
                self.process = None;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// A cluster of processes on this machine. Dropped, all of them are killed and its folder is removed.
#[derive(Debug)]
pub struct LocalCluster {
    // The processes end before their folder goes.
    nodes: Vec<LocalNode>,
    options: LocalOptions,
    admin: Option<Arc<Credentials>>,
    folder: TempDir,
}

impl LocalCluster {
    /// Founds a cluster and starts its first node. `tell` is told what happens, a line at a time.
    ///
    /// # Errors
    /// [`LocalError`]; nothing is left behind.
    pub async fn found(options: LocalOptions, tell: &mut dyn FnMut(&str)) -> Result<Self, LocalError> {
        Self::found_with(options, NodeSetup::default(), tell).await
    }

    /// [`found`](Self::found) with a first node that has things of its own.
    ///
    /// # Errors
    /// [`LocalError`]; nothing is left behind.
    pub async fn found_with(
        options: LocalOptions,
        first: NodeSetup,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Self, LocalError> {
        let folder = tempfile::Builder::new().prefix("stellate-").tempdir();
        let folder = folder.map_err(LocalError::io("make a temporary folder"))?;
        let mut cluster = Self { nodes: Vec::new(), options, admin: None, folder };
        tell("founding a cluster");
        let mut node = cluster.new_node(first);
        let data = node.data.display().to_string();
        cluster.command(&["cluster", "init", "--name", &node.name, "--dir", &data]).await?;
        tell(&format!("starting {}", node.name));
        node.process = Some(cluster.spawn(&node, &[])?);
        node.until_ready(cluster.options.patience).await?;
        let out = cluster.identity();
        let (address, shown) = (node.address().to_owned(), out.display().to_string());
        cluster
            .command(&["admin", "create", "admin", "--dir", &data, "--out", &shown, "--address", &address])
            .await?;
        cluster.admin = Some(Arc::new(Credentials::load(&out)?));
        cluster.nodes.push(node);
        Ok(cluster)
    }

    /// The folder of the administrator's identity.
    pub fn identity(&self) -> PathBuf {
        self.folder.path().join("admin")
    }

    /// The folder of all of it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The nodes, in the order they were added; the first one founded the cluster and holds its CA.
    pub fn nodes(&self) -> &[LocalNode] {
        &self.nodes
    }

    /// The nodes, to look whether they have ended.
    pub fn nodes_mut(&mut self) -> &mut [LocalNode] {
        &mut self.nodes
    }

    /// Adds `count` nodes, and waits until every running node sees all that run.
    ///
    /// # Errors
    /// [`LocalError`]; the nodes that came up stay.
    pub async fn add(&mut self, count: usize, tell: &mut dyn FnMut(&str)) -> Result<(), LocalError> {
        self.join(vec![NodeSetup::default(); count], tell).await?;
        tell("waiting until the nodes see each other");
        self.until_whole().await
    }

    /// Adds a node for each of `setups`, and waits until these can be asked.
    ///
    /// # Errors
    /// [`LocalError`]; the nodes that came up stay, and the others are there without a process and were never ready.
    pub async fn join(
        &mut self,
        setups: Vec<NodeSetup>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(), LocalError> {
        if setups.is_empty() {
            return Ok(());
        }
        let founder = self.client(0).await?;
        let uses = u32::try_from(setups.len()).unwrap_or(u32::MAX);
        let token = founder.create_token(TOKEN_TTL, uses).await;
        let token = token.map_err(LocalError::remote("make a join token"))?;
        let file = self.folder.path().join("token");
        fs::write(&file, &token.token).map_err(LocalError::io("write the join token"))?;
        let file = file.display().to_string();
        let join = ["--join", &token.join_address, "--token-file", &file];
        let before = self.nodes.len();
        for setup in setups {
            let mut node = self.new_node(setup);
            tell(&format!("starting {}", node.name));
            node.process = Some(self.spawn(&node, &join)?);
            self.nodes.push(node);
        }
        for node in &mut self.nodes[before..] {
            node.until_ready(self.options.patience).await?;
        }
        Ok(())
    }

    /// A connection to a node in the administrator's name, the same one each time.
    ///
    /// # Errors
    /// [`LocalError::Remote`].
    pub async fn client(&self, index: usize) -> Result<Client, LocalError> {
        let node = &self.nodes[index];
        let connect = || async {
            let address: SocketAddr = node.address().parse().expect("a node that is ready has an address");
            let admin = self.admin.clone().expect("it is made before anyone is asked");
            Client::connect(address, admin).await.map_err(LocalError::remote(format!("reach {}", node.name)))
        };
        node.client.get_or_try_init(connect).await.cloned()
    }

    /// Which nodes have a process.
    pub fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|&index| self.nodes[index].process.is_some())
    }

    /// The index of the node of this name.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Asks a node to stop, and waits for its end.
    ///
    /// # Errors
    /// [`LocalError::Process`] if it did not end, or not with success; it is gone then as well.
    pub async fn terminate(&mut self, index: usize) -> Result<(), LocalError> {
        let Some(mut process) = self.nodes[index].process.take() else { return Ok(()) };
        process.terminate()?;
        Self::goodbye(process).await
    }

    async fn goodbye(mut process: Process) -> Result<(), LocalError> {
        match process.ended(GOODBYE).await {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(process.failed(&format!("was asked to stop and ended with {status}"))),
            None => Err(process.failed(&format!("was asked to stop and did not in {GOODBYE:?}"))),
        }
    }

    /// `kill -9`, frozen or not. It is gone when this returns.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    pub fn kill(&mut self, index: usize) -> Result<(), LocalError> {
        let Some(mut process) = self.nodes[index].process.take() else { return Ok(()) };
        // Dropping it waits for its end.
        process.kill()
    }

    /// Holds a node where it is: it answers nobody and does not know it.
    ///
    /// # Errors
    /// [`LocalError::Io`], also where processes cannot be held.
    pub fn freeze(&mut self, index: usize) -> Result<(), LocalError> {
        self.nodes[index].process.as_mut().map_or(Ok(()), Process::freeze)
    }

    /// Lets a frozen node go on.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub fn thaw(&mut self, index: usize) -> Result<(), LocalError> {
        self.nodes[index].process.as_mut().map_or(Ok(()), Process::thaw)
    }

    /// Starts nodes that have ended again, all at once, in their folders and at their addresses.
    ///
    /// # Errors
    /// [`LocalError`]; those that came up stay.
    pub async fn restart(&mut self, indexes: &[usize]) -> Result<(), LocalError> {
        for &index in indexes {
            self.nodes[index].process = Some(self.spawn(&self.nodes[index], &[])?);
        }
        for &index in indexes {
            self.nodes[index].until_ready(self.options.patience).await?;
        }
        Ok(())
    }

    /// A setting of every node that is started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.options.settings.retain(|(known, _)| known != name);
        self.options.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Stops every node, and removes the folder.
    ///
    /// # Errors
    /// The first node that did not end well; all are gone nevertheless.
    pub async fn stop(mut self) -> Result<(), LocalError> {
        self.end().await
    }

    /// Stops every node as [`stop`](Self::stop) does, and leaves the folder, whose path is returned.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub async fn stop_and_keep(mut self) -> Result<PathBuf, LocalError> {
        self.folder.disable_cleanup(true);
        self.end().await?;
        Ok(self.folder.path().to_owned())
    }

    async fn end(&mut self) -> Result<(), LocalError> {
        for node in &self.nodes {
            if let Some(client) = node.client.get() {
                // A node that is gone hears nothing, and nobody waits for it.
                let _ = tokio::time::timeout(LOOK_EVERY, client.disconnect()).await;
            }
        }
        // All at once: blocks need not move off a node if the others go as well.
        let mut leaving = Vec::new();
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                process.terminate()?;
                leaving.push(process);
            }
        }
        let mut ended = Ok(());
        for process in leaving {
            ended = ended.and(Self::goodbye(process).await);
        }
        ended
    }

    /// How long anything may take that is waited for.
    pub(super) fn patience(&self) -> Duration {
        self.options.patience
    }

    /// The last lines of every log.
    pub fn logs(&self) -> String {
        let logs = self.nodes.iter().map(|node| format!("--- {}\n{}", node.name, tail(&node.log)));
        logs.collect::<Vec<_>>().join("\n")
    }

    fn new_node(&self, setup: NodeSetup) -> LocalNode {
        let name = format!("node-{}", self.nodes.len() + 1);
        LocalNode {
            data: setup.data.clone().unwrap_or_else(|| self.folder.path().join(&name)),
            setup,
            log: self.folder.path().join(format!("{name}.log")),
            name,
            ready: None,
            process: None,
            client: OnceCell::new(),
        }
    }

    /// Starts the process of a node: on ports of its own the first time, at the same address later.
    fn spawn(&self, node: &LocalNode, more: &[&str]) -> Result<Process, LocalError> {
        let listen = node.setup.listen.map(|listen| listen.to_string());
        let listen = listen.or_else(|| node.ready.as_ref().map(|ready| ready.address.clone()));
        let join_listen = node.setup.join_listen.map(|listen| listen.to_string());
        let join_listen = join_listen.or_else(|| node.ready.as_ref()?.join_address.clone());
        let find = |known: Option<String>| match known {
            Some(address) => Ok(address),
            None => own_address().map(|own| own.to_string()).map_err(LocalError::io("find a free port")),
        };
        let (listen, join_listen) = (find(listen)?, find(join_listen)?);
        let mut command = self.stellate(&node.setup.runner);
        command.envs(node.setup.environment.iter().map(|(name, value)| (name, value)));
        command.args(["--log-level", &self.options.log_level, "serve", "--json", "--end-with-stdin"]);
        command.arg("--dir").arg(&node.data).args(["--listen", &listen, "--join-listen", &join_listen]);
        command.args(&self.options.serve).args(more);
        if !more.is_empty() {
            command.args(["--name", &node.name]);
        }
        Process::start(&node.name, command, &node.log)
    }

    /// Runs a command to its end.
    async fn command(&self, arguments: &[&str]) -> Result<(), LocalError> {
        let mut command = self.stellate(&[]);
        command.args(arguments).stdin(Stdio::null());
        let shown = arguments.join(" ");
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let output = output.map_err(LocalError::io(format!("run {}", self.options.program.display())))?;
        match output.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(LocalError::Command { command: shown, said })
            }
        }
    }

    /// The program behind its runner, with no settings but the defaults: neither a file in the current folder nor the environment
    /// has a say.
    fn stellate(&self, runner: &[String]) -> Command {
        let mut line = runner.iter().map(OsStr::new).chain([self.options.program.as_os_str()]);
        let mut command = Command::new(line.next().expect("there is the program at least"));
        command.args(line);
        command.current_dir(self.folder.path());
        for (name, _) in env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("STELLATE_") && name_text != "STELLATE_CPU_ISA" {
                command.env_remove(&name);
            }
        }
        command.envs(self.options.settings.iter().map(|(name, value)| (name, value)));
        command
    }
}
