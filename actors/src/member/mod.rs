//! A node's part in a cluster: what runs beside its query host so that blocks may lie on several nodes. Here the parts are put
//! together and ended; what each does is in its own file.
//!
//! * [`way`]: to the supervisor, wherever it is; [`claims`], the contexts that this node keeps there.
//! * [`neighbours`]: hosts of other nodes as the paths see them; [`own`], those of this node.
//! * [`hosts`]: those of this node as its agent orders them about; [`pull`], blocks that come from elsewhere.
//! * [`notices`]: what the supervisor tells the query side.
//! * [`supervision`]: the supervisor, on the node that supervises; [`transport`], its way to the others.
//! * [`voting`]: the voter of a node that is one, which starts and ends the supervisor; [`electorate`], who the voters are;
//!   [`council`], what administrators see of them.
//! * [`sessions`]: those of this node with their copies on others, and the copies that it keeps for others.
//! * [`calls`] and [`peers`]: how nodes call each other; [`store`]: what must not be forgotten.

mod calls;
mod claims;
mod council;
mod electorate;
mod neighbours;
mod notices;
mod own;
mod peers;
mod sessions;
mod supervision;
mod transport;
mod voting;
mod way;

pub mod hosts;
pub mod names;
pub mod pull;
pub mod store;

use std::fmt;
use std::sync::{Arc, PoisonError};

use ractor::{Actor, ActorCell, ActorRef};
use stellate_runtime::identity::NodeId;
use stellate_runtime::membership::Roles;
use stellate_runtime::store::StoreHandle;
use stellate_runtime::substrate::SubstrateHandle;
use stellate_runtime::transport::Connection;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use self::council::{Council, Seat, TakeOverError};
pub use self::electorate::VoterSetup;

use self::calls::{AGENTS, AgentGate, KEEPERS, Listener, QUERY_NODES, QueryGate, SessionGate};
use self::electorate::Electorate;
use self::hosts::NodeHosts;
use self::neighbours::Neighbours;
use self::notices::Notices;
use self::own::OwnHost;
use self::peers::{Peers, key_of};
pub use self::sessions::{ClaimError, CopiedJournal, SessionPlace, Sessions, Whose};
use self::store::{AgentRecords, SupervisorRecords, VoterRecords};
use self::supervision::{Running, Supervision, Watch};
use self::voting::VoterInput;
use self::way::{Reports, Seen, Way};
use crate::budget::KvBudget;
use crate::cluster::actor::SupervisorStore;
use crate::cluster::agent::{Agent, AgentArgs, AgentMsg};
use crate::cluster::drain::DrainProgress;
use crate::cluster::messages::{SupervisorReply, SupervisorRequest};
use crate::cluster::settings::ClusterSettings;
use crate::cluster::term::Term;
use crate::context_host::ContextHostHandle;
use crate::directory::Directory;
use crate::error::OpenError;
use crate::journal::kept::KeptSessions;
use crate::journal::{Journal, StoreJournal};
use crate::model::Model;
use crate::node::{Node, NodeOptions, Surroundings, held_by, start_hosts};
use crate::port::SupervisorPort;
use crate::remote::{AttendShape, BlockServer, LocalHosts, Pacer, serve_decode};

/// Events of drains that may wait for a slow reader.
const DRAINS: usize = 256;

/// How long a voter may take to tell the others that it leaves.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(1);

/// What a member of a cluster is started with.
#[derive(Debug)]
pub struct MemberSetup {
    /// Its place on the network.
    pub substrate: SubstrateHandle,
    /// What it must not forget.
    pub store: StoreHandle,
    /// What its hosts run.
    pub model: Model,
    /// How its hosts are built. Those are of the node that is opened among them, and end with it.
    pub options: NodeOptions,
    /// What it is there for.
    pub roles: Roles,
    /// Whether it is the one that supervises. Of no effect with `voters`.
    pub supervises: bool,
    /// The nodes of which one is elected to supervise, if one is.
    pub voters: Option<VoterSetup>,
    /// By which figures, if it does.
    pub settings: ClusterSettings,
    /// Nodes that shall hold each block of the contexts of this node; 0 counts as 1.
    pub replicas: u16,
    /// Nodes besides this one that shall keep each of its sessions; 0 keeps them here alone.
    pub copies: usize,
    /// What the names begin with that it gives to contexts and sessions; no other query node has the same.
    pub scope: u32,
    /// Bytes a second that copies of blocks may take, those that leave this node together and each that comes; none is no
    /// bound but that of attention.
    pub max_bulk_rate: Option<u64>,
}

/// The member did not start. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// Its hosts.
    #[error(transparent)]
    Hosts(#[from] OpenError),
    /// Another node has the same 48 first bits in its id, by which hosts and blocks would be taken for each other's.
    #[error(
        "the ids of this node and of node {name} begin alike ({key}); delete this node's identity folder and join again"
    )]
    SameKey {
        /// What both begin with.
        key: String,
        /// The other node's name.
        name: String,
    },
    /// What it must not forget could not be read or written.
    #[error("the store of this node failed: {0}")]
    Store(String),
    /// An actor.
    #[error("cannot start {what}: {reason}")]
    Start {
        /// What was to be started.
        what: &'static str,
        /// What was wrong.
        reason: String,
    },
}

/// The supervisor was not asked, or did not answer in time. It may have done what was asked; asking again does no harm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskFailure {
    /// There is none.
    #[error(
        "no supervisor was found within {waited_s} s; start the node that supervises (cluster.supervisor), and ask again"
    )]
    NoSupervisor {
        /// How long it was looked for, in seconds.
        waited_s: u64,
    },
    /// None is elected: too few voters can be reached from here.
    #[error(
        "no supervisor was elected within {waited_s} s: of the voters {}, {} cannot be reached from here, and {needed} of {} must \
         be; start them, and ask again. Sessions whose blocks are all there go on",
        voters.join(", "), missing.join(" and "), voters.len()
    )]
    NoMajority {
        /// How long it was looked for, in seconds.
        waited_s: u64,
        /// The voters, by name.
        voters: Vec<String>,
        /// Those that cannot be reached.
        missing: Vec<String>,
        /// How many must be.
        needed: usize,
    },
    /// It is there and does not answer.
    #[error("the supervisor on node {node} did not answer within {waited_s} s: {cause}; ask again")]
    Unanswered {
        /// Its node.
        node: String,
        /// How long it was asked, in seconds.
        waited_s: u64,
        /// What happened last.
        cause: String,
    },
}

/// A node's part in a cluster. Dropped without [`stop`](Self::stop), it ends at once.
pub struct Member {
    way: Arc<Way>,
    own: Vec<ContextHostHandle>,
    directory: Arc<Directory>,
    drains: broadcast::Sender<DrainProgress>,
    running: Running,
    voter: Option<mpsc::Sender<VoterInput>>,
    agent: Option<ActorRef<AgentMsg>>,
    sessions: Option<Arc<Sessions>>,
    gates: Vec<ActorCell>,
    tasks: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Member {
    /// Starts it: the context hosts if it has that role, their agent, the supervisor if it supervises. `decode` and `bulk`
    /// are the connections of [`stellate_runtime::substrate::Incoming`]. Call it within a tokio runtime of several threads.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn start(
        setup: MemberSetup,
        decode: mpsc::Receiver<Connection>,
        bulk: mpsc::Receiver<Connection>,
    ) -> Result<Self, MemberError> {
        let peers = Peers::new(setup.substrate.clone());
        check_key(&peers)?;
        let key = peers.own_key();
        let mut options = setup.options.clone();
        if !setup.roles.context {
            options.hosts.clear();
        }
        let own = start_hosts(&setup.model, &options, key.0).await?;
        if let Some(disk) = &options.disk {
            // Before anybody is told what there is.
            disk.bring_back(&held_by(&own));
        }
        let started = Self::start_with(&setup, peers, own.clone(), decode, bulk).await;
        if started.is_err() {
            own.iter().for_each(|host| host.actor.stop(None));
        }
        started
    }

    async fn start_with(
        setup: &MemberSetup,
        peers: Peers,
        own: Vec<ContextHostHandle>,
        decode: mpsc::Receiver<Connection>,
        bulk: mpsc::Receiver<Connection>,
    ) -> Result<Self, MemberError> {
        let (decoder, options) = (&setup.model.decoder, &setup.options);
        let kv_shape = decoder.kv_shape(options.kv_format);
        let (seen, directory) = (Arc::new(Seen::default()), Arc::new(Directory::default()));
        // Of all copies that leave this node, whoever has asked for them.
        let pacer = Pacer::new(Arc::clone(&options.clock), setup.max_bulk_rate);
        let neighbours = Arc::new(Neighbours::new(
            peers.clone(),
            Arc::clone(&seen),
            Arc::clone(&directory),
            AttendShape::of(decoder),
            KvBudget::new(kv_shape, options.capacity_bytes),
            pacer.clone(),
        ));
        let electorate = setup.voters.as_ref().map(|voters| Electorate::new(voters, peers.clone()));
        let way = Arc::new(Way::new(
            peers.clone(),
            electorate,
            Arc::clone(&seen),
            Arc::clone(&neighbours),
            kv_shape,
            setup.replicas,
        ));
        let mut member = Self {
            way: Arc::clone(&way),
            own,
            directory,
            drains: broadcast::channel(DRAINS).0,
            running: Running::default(),
            voter: None,
            agent: None,
            sessions: None,
            gates: Vec::new(),
            tasks: Vec::new(),
        };
        // First: what reports finds it.
        member.supervise(setup).await?;
        let hosts = NodeHosts::new(
            member.own.iter().cloned(),
            Arc::clone(decoder),
            neighbours,
            Arc::clone(&options.clock),
            setup.max_bulk_rate,
        );
        let args = AgentArgs {
            node: peers.own_key(),
            hosts: Arc::new(hosts.clone()),
            store: Box::new(AgentRecords::new(setup.store.clone())),
            uplink: Arc::new(Reports(way)),
            clock: Arc::clone(&options.clock),
        };
        let (agent, _) = Actor::spawn(None, Agent, args).await.map_err(|e| not_started("the agent", e))?;
        for host in &member.own {
            let (host, agent, hosts, seen) = (host.clone(), agent.clone(), hosts.clone(), Arc::clone(&seen));
            member.directory.join(Arc::new(OwnHost { host, agent, hosts, seen }));
        }
        member.open(setup, agent).await?;
        member.serve_others(setup, pacer, decode, bulk);
        Ok(member)
    }

    /// Starts the supervisor, if this is its node; where one is elected, the voter, if this node is one.
    async fn supervise(&mut self, setup: &MemberSetup) -> Result<(), MemberError> {
        if let Some(electorate) = self.way.electorate.clone() {
            let Some(own) = electorate.own() else { return Ok(()) };
            if !setup.roles.supervisor {
                tracing::warn!(
                    "this node is a voter, and its roles do not include `supervisor`: it does not vote"
                );
                return Ok(());
            }
            let key = self.way.peers.own_key();
            let records = VoterRecords::new(setup.store.clone(), key);
            let supervision = self.supervision(setup);
            let ballots =
                voting::start(own, electorate, supervision, records, voting::chance_of(key)).await?;
            self.gates.push(ballots.gate);
            self.tasks.extend(ballots.tasks);
            self.voter = Some(ballots.inputs);
        } else if setup.supervises {
            let supervision = self.supervision(setup);
            let supervisor = supervision.start(Term::NONE).await?;
            self.tasks.push(tokio::spawn(supervision.keep_up(supervisor)));
        }
        Ok(())
    }

    fn supervision(&self, setup: &MemberSetup) -> Supervision {
        let (store, key) = (setup.store.clone(), self.way.peers.own_key());
        Supervision {
            peers: self.way.peers.clone(),
            settings: setup.settings.clone(),
            clock: Arc::clone(&setup.options.clock),
            stores: Arc::new(move || {
                Box::new(SupervisorRecords::new(store.clone(), key)) as Box<dyn SupervisorStore>
            }),
            drains: self.drains.clone(),
            has_hosts: !self.own.is_empty(),
            running: Arc::clone(&self.running),
        }
    }

    /// Opens the ways in to the agent and to the query side, and starts what goes on by itself.
    async fn open(&mut self, setup: &MemberSetup, agent: ActorRef<AgentMsg>) -> Result<(), MemberError> {
        self.agent = Some(agent.clone());
        self.open_sessions(setup).await?;
        let gate = Actor::spawn(None, AgentGate, agent).await;
        let (gate, _) = gate.map_err(|error| not_started("the way in to the agent", error))?;
        self.join(AGENTS, gate.get_cell());
        if setup.roles.query {
            let listener: Arc<dyn Listener> = Arc::new(Notices::new(Arc::clone(&self.way)));
            let gate = Actor::spawn(None, QueryGate, listener).await;
            let (gate, _) = gate.map_err(|error| not_started("the way in to the query node", error))?;
            self.join(QUERY_NODES, gate.get_cell());
            self.tasks.push(tokio::spawn(Arc::clone(&self.way).keep_in_touch()));
        }
        self.tasks.push(tokio::spawn(watch_roster(Arc::clone(&self.way), Arc::clone(&self.running))));
        Ok(())
    }

    /// Opens the sessions of this node and those that it keeps for others, and the way in to them.
    async fn open_sessions(&mut self, setup: &MemberSetup) -> Result<(), MemberError> {
        let me = self.way.peers.own_key();
        let opened = async {
            let journal = StoreJournal::open(setup.store.clone(), setup.scope).await?;
            let kept = KeptSessions::open(journal, me).await?;
            Sessions::open(Arc::clone(&self.way), kept, setup.copies).await
        };
        let sessions = opened.await.map_err(|error| MemberError::Store(error.to_string()))?;
        self.sessions = Some(Arc::clone(&sessions));
        let gate = Actor::spawn(None, SessionGate, Arc::clone(&sessions)).await;
        let (gate, _) = gate.map_err(|error| not_started("the way in to the sessions", error))?;
        self.join(KEEPERS, gate.get_cell());
        self.tasks.push(tokio::spawn(sessions.keep_up()));
        Ok(())
    }

    /// The sessions of this node, with their copies.
    ///
    /// # Panics
    /// Never: a member that has started has them.
    pub fn sessions(&self) -> &Arc<Sessions> {
        self.sessions.as_ref().expect("they are opened with the member")
    }

    /// Where the query node of this process writes down what it must not forget.
    pub fn journal(&self) -> Arc<dyn Journal> {
        Arc::new(CopiedJournal(Arc::clone(self.sessions())))
    }

    /// Serves the connections of other nodes, on the network thread.
    fn serve_others(
        &mut self,
        setup: &MemberSetup,
        pacer: Pacer,
        mut decode: mpsc::Receiver<Connection>,
        mut bulk: mpsc::Receiver<Connection>,
    ) {
        let (decoder, network) = (&setup.model.decoder, self.way.peers.substrate.network());
        let kv_shape = decoder.kv_shape(setup.options.kv_format);
        let hosts = LocalHosts::new(self.own.iter().cloned(), decoder, kv_shape).paced(pacer);
        let blocks = BlockServer::new(hosts.clone());
        let spawner = network.clone();
        self.tasks.push(network.spawn(async move {
            while let Some(connection) = decode.recv().await {
                spawner.spawn(serve_decode(connection, hosts.clone()));
            }
        }));
        let spawner = network.clone();
        self.tasks.push(network.spawn(async move {
            while let Some(connection) = bulk.recv().await {
                spawner.spawn(blocks.clone().serve(connection));
            }
        }));
    }

    fn join(&mut self, group: &'static str, gate: ActorCell) {
        self.gates.push(gate.clone());
        self.way.peers.join(group, gate);
    }

    /// What a query node of this process finds around it.
    pub fn surroundings(&self) -> Surroundings {
        let supervisor = Arc::clone(&self.way) as Arc<dyn SupervisorPort>;
        Surroundings { own: self.own.clone(), hosts: Arc::clone(&self.directory), supervisor }
    }

    /// Tells `node` what the supervisor says from now on, and the supervisor of the contexts of `node`. The node is not kept
    /// open by this.
    pub fn serve(&self, node: &Node) {
        self.way.serve(node);
    }

    /// Asks the supervisor, wherever it is. Waits a while for one that is not there or has just started.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub async fn ask(&self, request: SupervisorRequest) -> Result<SupervisorReply, AskFailure> {
        self.way.ask(request).await
    }

    /// The node of the supervisor, if one is known.
    pub fn supervisor(&self) -> Option<NodeId> {
        self.way.supervisor(None).map(|(node, _)| node)
    }

    /// The voters, and how each stands; none where no supervisor is elected.
    pub async fn council(&self) -> Option<Council> {
        council::look(self.way.electorate.as_ref()?).await.into()
    }

    /// Has the voter of this name supervise: who does hands over, or, if nobody does, it leads as soon as leases allow. It has
    /// begun then; [`council`](Self::council) tells when it is done.
    ///
    /// # Errors
    /// [`TakeOverError`]; nothing has changed.
    pub async fn take_over(&self, name: &str) -> Result<(), TakeOverError> {
        let electorate = self.way.electorate.as_ref().ok_or(TakeOverError::NoElection)?;
        council::take_over(electorate, name).await
    }

    /// How drains go on, from now on. Only the supervisor's node is told; others ask for
    /// [`SupervisorRequest::Snapshot`].
    pub fn drains(&self) -> broadcast::Receiver<DrainProgress> {
        self.drains.subscribe()
    }

    /// Ends it, the supervisor first. The hosts end with their node.
    pub async fn stop(mut self) {
        if let Some(voter) = self.voter.take() {
            // Others need not wait for a lease to end.
            let (left, gone) = oneshot::channel();
            let told = async { (voter.send(VoterInput::Leave(left)).await.is_ok(), gone.await) };
            let _ = timeout(GOODBYE, told).await;
        }
        let supervisor = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.tasks.drain(..).for_each(|task| task.abort());
        if let Some(supervisor) = supervisor {
            supervisor.stop().await;
        }
        for gate in self.gates.drain(..) {
            // One that has stopped already has nothing to wait for.
            let _ = gate.stop_and_wait(None, None).await;
        }
        if let Some(agent) = self.agent.take() {
            let _ = agent.stop_and_wait(None, None).await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.gates.iter().for_each(|gate| gate.stop(None));
        self.agent.iter().for_each(|agent| agent.stop(None));
        if let Some(supervisor) = &*self.running.lock().unwrap_or_else(PoisonError::into_inner) {
            supervisor.end();
        }
    }
}

/// Two nodes whose hosts would have the same ids cannot be in one cluster: the second does not start.
fn check_key(peers: &Peers) -> Result<(), MemberError> {
    let (key, roster) = (peers.own_key(), peers.substrate.roster());
    match roster.members.iter().find(|member| key_of(member.id) == key) {
        None => Ok(()),
        Some(other) => {
            let (key, name) = (key.to_string(), other.record.name.clone());
            Err(MemberError::SameKey { key, name })
        }
    }
}

/// Lets go of what was on nodes that have gone.
async fn watch_roster(way: Arc<Way>, running: Running) {
    let (mut changes, mut watch) = (way.peers.substrate.watch(), Watch::default());
    loop {
        let roster = changes.borrow_and_update().clone();
        way.neighbours.leave(&roster);
        watch.look(&roster, &running);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn not_started(what: &'static str, error: impl fmt::Display) -> MemberError {
    MemberError::Start { what, reason: error.to_string() }
}
