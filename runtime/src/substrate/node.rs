//! The object that a daemon holds: how it is started, asked, told and ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::sleep;

use super::driver::{Driver, Input};
use super::handle::SubstrateHandle;
use super::issuing::DurableIssuing;
use super::links::{Forward, accept_all};
use super::memory::{Memory, MemoryError, Remembered};
use super::roster::Roster;
use super::setup::{Incoming, StartError, SubstrateSetup, reachable};
use super::upkeep::{remember_neighbours, renew_certificate, spread_revocations};
use crate::clock::Clock;
use crate::control::{ControlPlane, ControlSetup};
use crate::discovery::Discovery;
use crate::identity::{
    IssueError, IssuingStore, IssuingStoreError, JoinDesk, JoinToken, NodeId, NodeName, RevocationError,
    Role, TokenId, TokenRecord,
};
use crate::membership::{Event, Membership, NodeRecord, RecordError, Requirements, Roles, Start};
use crate::transport::{
    Connection, ConnectionClass, DialError, Endpoint, EndpointSetup, JoinServer, NetworkHandle, NetworkThread,
};

/// What may wait for the driver; datagrams beyond are dropped.
const INPUTS: usize = 4096;
/// Connections that may wait for the layer above, of each class.
const INCOMING: usize = 128;
/// Events that may wait for a slow reader.
const EVENTS: usize = 1024;
/// How long farewells may take to leave before connections are closed.
const FAREWELL: Duration = Duration::from_millis(100);

/// What the tasks on the network thread have in common.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) own: NodeId,
    pub(super) endpoint: Endpoint,
    pub(super) control: Option<ControlPlane>,
    pub(super) network: NetworkHandle,
    pub(super) memory: Memory,
    pub(super) desk: Option<Arc<JoinDesk>>,
    /// Where nodes join, on the node that holds the CA.
    pub(super) join: Option<JoinServer>,
    /// Held from reading the list of the revoked until a later one is stored and in force.
    pub(super) revoking: tokio::sync::Mutex<()>,
    pub(super) identity_folder: Option<PathBuf>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) forward: Forward,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) roster: watch::Sender<Arc<Roster>>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) ready: watch::Sender<bool>,
}

impl Context {
    /// Tells the driver, waiting while it has too much to do. Nothing happens once it has ended.
    pub(super) async fn tell(&self, input: Input) {
        let _ = self.inputs.send(input).await;
    }
}

/// There is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The roster has no such node.
    #[error("node {} is not known here; `stellate node ls` shows who is", .0.short())]
    Unknown(NodeId),
    /// It is known and was not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// What the node says of itself was not changed, or the change was not stored.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// It may not say so. Nothing has changed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The others hear it, and a restart would forget it.
    #[error("the state is published and was not stored: {0}")]
    Memory(#[from] MemoryError),
    /// The node is leaving. Nothing has changed.
    #[error("this node is leaving the network")]
    Stopped,
}

/// A token or a removal was not made.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// The CA's key is elsewhere. Nothing has changed.
    #[error(
        "this node does not hold the key of the cluster's CA; ask the one that was started by `cluster init`"
    )]
    NotIssuer,
    /// A node cannot remove itself. Nothing has changed.
    #[error("a node cannot remove itself; let it leave, or remove it from another node")]
    Ourselves,
    /// Tokens or names.
    #[error(transparent)]
    Issuing(#[from] IssuingStoreError),
    /// The list was not signed. Nothing has changed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The list was not put in force.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The list is in force and was not stored.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The node is leaving.
    #[error("this node is leaving the network")]
    Stopped,
}

/// A running node. Dropped without [`Self::leave`] or [`Self::stop`], it is as if its process had died.
#[derive(Debug)]
pub struct Substrate {
    context: Arc<Context>,
    issuing: Option<Arc<DurableIssuing>>,
    /// Ends with this object, and its tasks with it.
    network: NetworkThread,
}

impl Substrate {
    /// Opens the node's place on the network and starts to look for the others. Does not wait for them: [`Self::ready`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(setup: SubstrateSetup) -> Result<(Self, Incoming), StartError> {
        let own = setup.credentials.id();
        if setup.credentials.details().role != Role::Node {
            return Err(StartError::NotANode);
        }
        let memory = Memory::new(setup.store.clone());
        let is_refounded = memory.is_of_another(setup.credentials.ca_hash()).await?;
        if is_refounded {
            tracing::warn!(
                "the store is of another cluster: its revoked nodes, join tokens and names are forgotten"
            );
        }
        let remembered = memory.wake().await?;
        match remembered.revocations.as_ref().map(|list| setup.revocations.install(list)) {
            // Of stores that do not say whose they are.
            Some(Err(RevocationError::Forged)) => {
                tracing::warn!(
                    "the stored list of the revoked was not signed by this cluster's CA; it is not used"
                );
            }
            Some(installed) => _ = installed?,
            None => {}
        }
        if setup.revocations.contains(&own) {
            return Err(StartError::Removed);
        }
        Opening {
            own,
            memory,
            remembered,
            is_refounded,
            network: NetworkThread::start("network").map_err(StartError::Thread)?,
        }
        .open(setup)
        .await
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.context.own
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.context.endpoint.local_address()
    }

    /// Where nodes join, as others reach it, if they do here.
    pub fn join_address(&self) -> Option<SocketAddr> {
        let local = self.context.join.as_ref()?.local_address().ok()?;
        // The record's address is one that others reach; a socket that listens everywhere is behind it too.
        let known = self.roster().own.addresses.first().copied();
        let everywhere =
            known.filter(|known| local.ip().is_unspecified() && known.is_ipv4() == local.is_ipv4());
        Some(everywhere.map_or_else(|| reachable(local), |known| SocketAddr::new(known.ip(), local.port())))
    }

    /// Its place on the network, for measures and what else is asked of it.
    pub fn endpoint(&self) -> &Endpoint {
        &self.context.endpoint
    }

    /// Starts tasks on the network thread, where nothing may block.
    pub fn network(&self) -> NetworkHandle {
        self.context.network.clone()
    }

    /// Sessions of actors, unless the node was started without.
    pub fn control(&self) -> Option<&ControlPlane> {
        self.context.control.as_ref()
    }

    /// Who is there now.
    pub fn roster(&self) -> Arc<Roster> {
        self.context.roster.borrow().clone()
    }

    /// Who is there, with each change.
    pub fn watch(&self) -> watch::Receiver<Arc<Roster>> {
        self.context.roster.subscribe()
    }

    /// What happens to members, from now on. A reader that is too slow is told how much it has missed.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.context.events.subscribe()
    }

    /// What layers above hold of this node. It does not keep the network thread: that ends with this object.
    pub fn handle(&self) -> SubstrateHandle {
        SubstrateHandle { context: self.context.clone() }
    }

    /// Waits until the node has met another one, or knows that it starts alone: nowhere to look, or nobody there.
    pub async fn ready(&self) {
        self.handle().ready().await;
    }

    /// A connection of `class` to a node: the live one, else a new one. It may be closed as superseded when the other dials
    /// at the same moment: ask again. The peer may open streams on it as well, so it also comes in [`Incoming`], once.
    ///
    /// # Errors
    /// The node is not known, or not reached.
    pub async fn connect(&self, node: NodeId, class: ConnectionClass) -> Result<Connection, ConnectError> {
        self.handle().connect(node, class).await
    }

    /// Changes what this node says of itself. When it returns, [`Self::roster`] shows it; the others hear of it soon. A
    /// state that an operator chose is stored and comes back after a restart.
    ///
    /// # Errors
    /// See [`UpdateError`].
    pub async fn update_record(
        &self,
        change: impl FnOnce(&mut NodeRecord) + Send + 'static,
    ) -> Result<(), UpdateError> {
        let (done, result) = oneshot::channel();
        self.context.tell(Input::Update(Box::new(change), done)).await;
        result.await.map_err(|_| UpdateError::Stopped)?
    }

    /// Judges members by `requirements` from now on: those of the supervisor, once they are known.
    pub async fn require(&self, requirements: Requirements) {
        self.context.tell(Input::Require(requirements)).await;
    }

    /// A new join token, durable when it returns.
    ///
    /// # Errors
    /// This node does not hold the CA, or the store failed.
    pub async fn issue_token(&self, ttl: Duration, uses: u32) -> Result<JoinToken, ManageError> {
        let desk = self.context.desk.as_ref().ok_or(ManageError::NotIssuer)?;
        let (token, record) =
            JoinToken::create(desk.authority().hash(), self.context.clock.wall(), ttl, uses);
        self.issuing(move |issuing| issuing.add_token(record)).await?;
        Ok(token)
    }

    /// All join tokens that were made here, without what proves them.
    ///
    /// # Errors
    /// As [`Self::issue_token`].
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, ManageError> {
        self.issuing(|issuing| issuing.tokens()).await
    }

    /// The node to which a name was given, whether or not it is there now.
    ///
    /// # Errors
    /// As [`Self::issue_token`].
    pub async fn holder(&self, name: NodeName) -> Result<Option<NodeId>, ManageError> {
        self.issuing(move |issuing| issuing.holder(&name)).await
    }

    /// Calls a token back; whether there is such.
    ///
    /// # Errors
    /// As [`Self::issue_token`].
    pub async fn revoke_token(&self, id: TokenId) -> Result<bool, ManageError> {
        self.issuing(move |issuing| issuing.revoke_token(id)).await
    }

    /// Removes a node for good: its key is revoked everywhere, its connections are closed, its name is free again.
    ///
    /// # Errors
    /// This node does not hold the CA, or the list could not be made or stored.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), ManageError> {
        let context = &self.context;
        if node == context.own {
            return Err(ManageError::Ourselves);
        }
        self.revoke(node).await?;
        self.issuing(move |issuing| issuing.release_names(node)).await?;
        let (done, removed) = oneshot::channel();
        context.tell(Input::Remove(node, done)).await;
        removed.await.map_err(|_| ManageError::Stopped)
    }

    /// Puts the next list in force, with `node` on it.
    async fn revoke(&self, node: NodeId) -> Result<(), ManageError> {
        let context = &self.context;
        let desk = context.desk.clone().ok_or(ManageError::NotIssuer)?;
        // Of two at once, the second has to read what the first has made.
        let _turn = context.revoking.lock().await;
        let revocations = context.endpoint.revocations();
        if revocations.contains(&node) {
            return Ok(());
        }
        let list = revocations.list().with(node);
        let signing = tokio::task::spawn_blocking(move || desk.authority().sign_revocations(&list));
        let signed = signing.await.map_err(|_| ManageError::Stopped)??;
        // Stored first: a list that was in force and is forgotten could be signed again with another node on it.
        context.memory.keep_revocations(&signed).await?;
        revocations.install(&signed)?;
        Ok(())
    }

    /// Leaves the cluster by its own will: the others are told, and do not wait for it. Comes back with another start.
    pub async fn leave(self) {
        let (done, left) = oneshot::channel();
        self.context.tell(Input::Leave(done)).await;
        if left.await.is_ok() {
            // Datagrams that wait are dropped when a connection is closed.
            self.context.network.run(sleep(FAREWELL)).await;
        }
        self.stop().await;
    }

    /// Ends without leaving, as for a restart: the others keep its place and take it for dead after a while. The store may
    /// be closed after this.
    pub async fn stop(self) {
        let Self { context, issuing, network } = self;
        if let Some(join) = &context.join {
            join.close();
        }
        drop(issuing);
        if let Some(control) = &context.control {
            control.stop().await;
        }
        context.endpoint.close_connections().await;
        drop(context);
        // It waits for its tasks, which is no work for a thread of a runtime.
        let ended = tokio::task::spawn_blocking(move || drop(network)).await;
        if ended.is_err() {
            tracing::error!("the network thread did not end well");
        }
    }

    /// Asks the issuing side, which blocks.
    async fn issuing<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&DurableIssuing) -> Result<T, IssuingStoreError> + Send + 'static,
    ) -> Result<T, ManageError> {
        let issuing = self.issuing.clone().ok_or(ManageError::NotIssuer)?;
        let asked = tokio::task::spawn_blocking(move || ask(&issuing)).await;
        Ok(asked.map_err(|_| ManageError::Stopped)??)
    }
}

/// A node that is being started.
struct Opening {
    own: NodeId,
    memory: Memory,
    remembered: Remembered,
    /// Whether the store was of another cluster before.
    is_refounded: bool,
    network: NetworkThread,
}

/// The issuing side, on the node that holds the CA.
type Issuing = (Option<Arc<JoinDesk>>, Option<Arc<DurableIssuing>>);

impl Opening {
    async fn open(self, mut setup: SubstrateSetup) -> Result<(Substrate, Incoming), StartError> {
        let handle = self.network.handle();
        let (desk, issuing) = self.issuing(&mut setup).await?;
        self.memory.keep_ca(setup.credentials.ca_hash()).await?;
        let mut endpoint =
            EndpointSetup::new(setup.listen, setup.credentials.clone(), setup.revocations.clone());
        endpoint.incarnation = u64::from(self.remembered.boot);
        endpoint.desk = desk.clone();
        endpoint.options = setup.transport.clone();
        endpoint.clock = setup.clock.clone();
        let (endpoint, accepted) = Endpoint::bind(&handle, endpoint)?;
        let local = endpoint.local_address().unwrap_or(setup.listen);
        let addresses =
            if setup.advertise.is_empty() { vec![reachable(local)] } else { setup.advertise.clone() };
        let join = match (&desk, setup.join_listen) {
            (Some(desk), Some(address)) => Some(JoinServer::bind(
                &handle,
                address,
                &setup.credentials,
                desk.clone(),
                addresses.clone(),
                setup.transport.clone(),
                setup.clock.clone(),
            )?),
            _ => None,
        };
        let membership = self.membership(&setup, addresses, desk.is_some())?;
        let own = Requirements { protocol: setup.transport.protocol, model: setup.profile.model.clone() };
        let requirements = setup.requirements.take().unwrap_or(own);
        let incarnation = u64::from(self.remembered.boot);
        let plane = ControlSetup { node: self.own, incarnation, ca: setup.credentials.ca_hash() };
        let control = match setup.control {
            true => Some(ControlPlane::start(&handle, plane).await?),
            false => None,
        };
        let options = setup.discovery.clone();
        let has_sources = !options.seeds.is_empty() || !options.dns.is_empty() || options.mdns.is_some();
        let discovery = handle.run(async move { Discovery::start(options) }).await;
        let discovery = discovery.ok_or(crate::control::ControlError::Stopped)??;
        let roster = Arc::new(Roster::of(&membership, &endpoint, &requirements, Vec::new()));
        let (forward, incoming) = forward();
        let (inputs, inputs_of_driver) = mpsc::channel(INPUTS);
        let context = Arc::new(Context {
            own: self.own,
            endpoint,
            control,
            network: handle.clone(),
            memory: self.memory,
            desk,
            join,
            revoking: tokio::sync::Mutex::default(),
            identity_folder: setup.identity_folder,
            clock: setup.clock,
            forward,
            inputs,
            roster: watch::Sender::new(roster),
            events: broadcast::Sender::new(EVENTS),
            ready: watch::Sender::new(false),
        });
        let neighbours = self.remembered.neighbours;
        let driver =
            Driver::new(context.clone(), membership, requirements, discovery, neighbours, has_sources);
        handle.spawn(driver.run(inputs_of_driver));
        handle.spawn(accept_all(context.clone(), accepted));
        handle.spawn(renew_certificate(context.clone()));
        handle.spawn(spread_revocations(context.clone()));
        handle.spawn(remember_neighbours(context.clone()));
        Ok((Substrate { context, issuing, network: self.network }, incoming))
    }

    /// The desk, with this node's name claimed.
    async fn issuing(&self, setup: &mut SubstrateSetup) -> Result<Issuing, StartError> {
        let Some(authority) = setup.authority.take() else { return Ok((None, None)) };
        let (store, network) = (setup.store.clone(), self.network.handle());
        let issuing = Arc::new(DurableIssuing::new(store, network.runtime()));
        let (task, name, own) = (issuing.clone(), setup.credentials.details().name.clone(), self.own);
        let is_refounded = self.is_refounded;
        let claim = move || {
            if is_refounded {
                task.forget_all()?;
            }
            task.claim_name(&name, own)
        };
        let claimed = tokio::task::spawn_blocking(claim).await;
        claimed.map_err(|error| IssuingStoreError(Box::new(error)))??;
        let (revocations, clock) = (setup.revocations.clone(), setup.clock.clone());
        let desk = JoinDesk::new(authority, issuing.clone(), revocations, clock);
        Ok((Some(Arc::new(desk)), Some(issuing)))
    }

    fn membership(
        &self,
        setup: &SubstrateSetup,
        addresses: Vec<SocketAddr>,
        is_issuer: bool,
    ) -> Result<Membership, StartError> {
        let profile = setup.profile.clone();
        let record = NodeRecord {
            node: self.own,
            boot: self.remembered.boot,
            version: 1,
            name: setup.credentials.details().name.to_string(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            addresses,
            protocol: setup.transport.protocol,
            roles: Roles { issuer: is_issuer, ..profile.roles },
            state: self.remembered.state.unwrap_or(profile.state),
            model: profile.model,
            devices: profile.devices,
            capacity_bytes: profile.capacity_bytes,
        };
        let removed = setup.revocations.list().ids;
        let start = Start {
            record,
            removed: removed.into_iter().collect(),
            seed: u64::from_le_bytes(crate::identity::tls::random_bytes()),
            now: setup.clock.now(),
        };
        Ok(Membership::new(start, setup.membership.clone())?)
    }
}

fn forward() -> (Forward, Incoming) {
    let (decode, decode_of_layer) = mpsc::channel(INCOMING);
    let (bulk, bulk_of_layer) = mpsc::channel(INCOMING);
    let (admin, admin_of_layer) = mpsc::channel(INCOMING);
    let forward = Forward { decode, bulk, admin, handed: Mutex::default() };
    (forward, Incoming { decode: decode_of_layer, bulk: bulk_of_layer, admin: admin_of_layer })
}
