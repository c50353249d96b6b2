//! A cluster of real nodes, on machines and in a network that can be harmed: what is done to it, and how it is made whole again.
//! When that happens is the player's business ([`play`](crate::play)).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use stellate_ops::local::{LocalCluster, LocalError, LocalOptions, NodeSetup};
use stellate_runtime::identity::Credentials;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::door::Door;
use crate::machine::{Machine, Workshop};
use crate::network::{Network, NetworkKind, Place};
use crate::outcome::Wrong;

/// How long anything may take that is waited for, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// How nodes are started.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The `stellate` program.
    pub program: PathBuf,
    /// Settings of every node, as environment variables.
    pub settings: Vec<(String, String)>,
    /// What they log.
    pub log_level: String,
    /// What lies between them.
    pub network: NetworkKind,
}

impl NodeOptions {
    fn to_local(&self) -> LocalOptions {
        let serve = ["--hosts", "1", "--threads", "1", "--kv-capacity", "64MiB"];
        let mut options = LocalOptions::new(&self.program);
        options.serve = serve.map(str::to_owned).to_vec();
        options.settings.extend(self.settings.clone());
        options.log_level.clone_from(&self.log_level);
        options.patience = PATIENCE;
        options
    }
}

/// A cluster that can be harmed.
#[derive(Debug)]
pub struct Stage {
    // The processes end before their network and machines go.
    cluster: LocalCluster,
    thaws: JoinSet<()>,
    machines: Vec<Machine>,
    addresses: Vec<SocketAddr>,
    doors: Vec<Door>,
    network: Network,
    workshop: Workshop,
    admin: Arc<Credentials>,
    /// Killed, and not to be started again before this many rounds have ended.
    away: BTreeMap<usize, u32>,
    cordoned: BTreeSet<usize>,
}

impl Stage {
    /// Starts a cluster of `nodes` nodes that see each other.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn open(
        options: &NodeOptions,
        workshop: &Workshop,
        seed: u64,
        nodes: usize,
    ) -> anyhow::Result<Self> {
        let mut network = Network::open(options.network, seed)?;
        let (address, machine, setup) = place(&mut network, workshop, 0).await?;
        let cluster = LocalCluster::found_with(options.to_local(), setup, &mut |_| {}).await?;
        let admin = Arc::new(Credentials::load(&cluster.identity())?);
        let doors = vec![Door::new(address, admin.clone())];
        let mut stage = Self {
            cluster,
            thaws: JoinSet::new(),
            machines: vec![machine],
            addresses: vec![address],
            doors,
            network,
            workshop: workshop.clone(),
            admin,
            away: BTreeMap::new(),
            cordoned: BTreeSet::new(),
        };
        for _ in 1..nodes {
            stage.join().await?;
        }
        stage.cluster.until_whole().await?;
        Ok(stage)
    }

    /// The cluster.
    pub fn cluster(&self) -> &LocalCluster {
        &self.cluster
    }

    /// The network between its nodes.
    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// The way in to a node.
    pub fn door(&self, node: usize) -> Door {
        self.doors[node].clone()
    }

    /// Another way in to a node, with a connection of its own.
    pub fn new_door(&self, node: usize) -> Door {
        Door::new(self.addresses[node], self.admin.clone())
    }

    /// Nodes, running or not.
    pub fn nodes(&self) -> usize {
        self.cluster.nodes().len()
    }

    /// What a node's machine does to it.
    pub fn machine(&mut self, node: usize) -> &mut Machine {
        &mut self.machines[node]
    }

    /// One node more.
    ///
    /// # Errors
    /// It does not come up, or is not let in.
    pub async fn join(&mut self) -> anyhow::Result<()> {
        let index = self.nodes();
        let (address, machine, setup) = place(&mut self.network, &self.workshop, index).await?;
        let before = self.nodes();
        let joined = self.cluster.join(vec![setup], &mut |_| {}).await;
        if self.nodes() > before {
            self.doors.push(Door::new(address, self.admin.clone()));
            self.addresses.push(address);
            self.machines.push(machine);
        }
        Ok(joined?)
    }

    /// `kill -9`; away for so many rounds besides this one.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self, node: usize, rounds: u32) -> anyhow::Result<()> {
        self.away.insert(node, rounds);
        Ok(self.cluster.kill(node)?)
    }

    /// `SIGSTOP`, and `SIGCONT` after `time`.
    ///
    /// # Errors
    /// It cannot be held.
    pub fn freeze(&mut self, node: usize, time: Duration) -> anyhow::Result<()> {
        let Some(pid) = self.cluster.nodes()[node].pid() else { return Ok(()) };
        self.cluster.freeze(node)?;
        self.thaws.spawn(async move {
            sleep(time).await;
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            // It may have been killed meanwhile; a process that is not held does not mind.
            let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::CONT));
        });
        Ok(())
    }

    /// A node is to take blocks again at the end of the round.
    pub fn uncordon_later(&mut self, node: usize) {
        self.cordoned.insert(node);
    }

    /// The end of a round: what was held goes on, ways and machines are mended, killed nodes are started again whose time has
    /// come; of all of them if `is_last`.
    ///
    /// # Errors
    /// A node that does not come up again, as [`Wrong::Node`]; the outer error is this program's.
    pub async fn mend(&mut self, is_last: bool) -> anyhow::Result<Result<(), Wrong>> {
        while self.thaws.join_next().await.is_some() {}
        self.network.clear().context("cannot mend the network")?;
        for machine in &mut self.machines {
            machine.mend().context("cannot mend a machine")?;
        }
        let back: Vec<_> =
            self.away.iter().filter(|(_, rounds)| is_last || **rounds == 0).map(|(node, _)| *node).collect();
        self.away.retain(|node, rounds| {
            *rounds = rounds.saturating_sub(1);
            !back.contains(node)
        });
        let back: Vec<_> = back.into_iter().filter(|node| self.cluster.nodes()[*node].was_ready()).collect();
        if let Err(error) = self.cluster.restart(&back).await {
            return Ok(Err(Wrong::Node(format!("it did not come up again: {error}"))));
        }
        for node in std::mem::take(&mut self.cordoned) {
            let name = format!("node-{}", node + 1);
            if let Ok(client) = self.doors[0].client().await
                && client.set_cordon(&name, false).await.is_ok()
            {
                continue;
            }
            self.cordoned.insert(node);
        }
        Ok(Ok(()))
    }

    /// Whether a process has ended by itself, or its log tells of a fault of the program.
    ///
    /// # Errors
    /// [`Wrong::Node`].
    pub fn look(&mut self) -> Result<(), Wrong> {
        for node in self.cluster.nodes_mut() {
            if let Some(error) = node.take_ended().filter(|_| node.was_ready()) {
                return Err(Wrong::Node(error.to_string()));
            }
            let log = std::fs::read_to_string(node.log()).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                return Err(Wrong::Node(format!("{}: {line}", node.name())));
            }
        }
        Ok(())
    }

    /// Waits until every node sees that all take part, and tells how long that took.
    ///
    /// # Errors
    /// [`Wrong::NotHealed`].
    pub async fn until_whole(&self) -> anyhow::Result<Result<Duration, Wrong>> {
        let start = Instant::now();
        match self.cluster.until_whole().await {
            Ok(()) => Ok(Ok(start.elapsed())),
            Err(LocalError::Patience { what, waited, seen, .. }) => {
                Ok(Err(Wrong::NotHealed(format!("{waited:?} in vain for {what}; at the end: {seen}"))))
            }
            Err(error) => Ok(Err(Wrong::NotHealed(error.to_string()))),
        }
    }

    /// Waits until no node has work under way.
    ///
    /// # Errors
    /// [`Wrong::NotHealed`].
    pub async fn until_idle(&self) -> Result<(), Wrong> {
        let start = Instant::now();
        loop {
            let mut busy = Vec::new();
            for node in self.cluster.running() {
                let status = match self.doors[node].client().await {
                    Ok(client) => client.status().await,
                    Err(error) => Err(error),
                };
                match status {
                    Ok(status) if status.running == 0 => {}
                    Ok(status) => busy.push(format!("node-{}: {} under way", node + 1, status.running)),
                    Err(error) => busy.push(format!("node-{}: {error}", node + 1)),
                }
            }
            if busy.is_empty() {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(Wrong::NotHealed(format!("work is left over: {}", busy.join(", "))));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the nodes.
    ///
    /// # Errors
    /// [`Wrong::Node`]: one that does not end well.
    pub async fn close(self) -> Result<(), Wrong> {
        // Machines and the network stay until the processes have ended.
        let Self { cluster, network, machines, .. } = self;
        let ended = cluster.stop().await;
        drop((network, machines));
        ended.map_err(|error| Wrong::Node(error.to_string()))
    }

    /// Copies the nodes' logs to `folder`.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn keep_logs(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)?;
        for node in self.cluster.nodes() {
            if node.log().exists() {
                std::fs::copy(node.log(), folder.join(format!("{}.log", node.name())))?;
            }
        }
        Ok(())
    }
}

/// Where the node of an index is to be, where it is reached, and what stands around it.
async fn place(
    network: &mut Network,
    workshop: &Workshop,
    index: usize,
) -> anyhow::Result<(SocketAddr, Machine, NodeSetup)> {
    let Place { listen, join_listen, address, runner } = network.place(index).await?;
    let machine = workshop.machine()?;
    let mut environment = machine.environment();
    environment.push(("STELLATE_NETWORK__ADVERTISE".to_owned(), format!("[\"{address}\"]")));
    let data = Some(machine.data());
    let setup = NodeSetup { listen: Some(listen), join_listen, data, environment, runner };
    Ok((address, machine, setup))
}
