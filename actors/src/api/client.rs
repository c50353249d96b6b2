//! The client's side: one connection to a node of another process, dialled again when it was lost, and a stream for each
//! request. Contexts and sessions over it are in `remote.rs`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use stellate_runtime::encoding;
use stellate_runtime::identity::{Credentials, Revocations};
use stellate_runtime::transport::{
    CloseCode, Connection, ConnectionClass, DialError, Endpoint, EndpointSetup, FrameReceiver, FrameSender,
    NetworkThread, PathStats, Payload, Peer, Target,
};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OnceCell};
use wincode::SchemaReadOwned;
use wincode::config::DefaultConfig;

use super::cluster::{Check, DrainRequest, IssuedToken, NodeInfo, RebalancePlan, SupervisorInfo, TokenInfo};
use super::convert;
use super::fault::{Fault, RemoteError};
use super::info::{About, ContextInfo, SessionInfo, SessionPlaceInfo, Status, TurnInfo};
use super::remote::{Moves, RemoteContext, RemoteSession};
use super::wire::{CANCELLED, EVENT, Event, REQUEST, Request};
use crate::error::{EncodeError, OpenError};
use crate::handle::{Context, Session};
use crate::manifest::ContextId;
use crate::node::Node;
use crate::progress::EncodeMeter;
use crate::prompt::{ContextSource, Prompting};
use crate::session::SessionId;
use stellate_model::block::Layout;

/// Nodes that are asked one after the other for a session that each says is on the next.
const HOPS: usize = 4;

/// A connection to a node of another process. Clones are the same connection. Contexts and sessions that are opened over it
/// stay when it ends; see [`Client::remove_context`] and [`Client::close_session`].
#[derive(Clone, Debug)]
pub struct Client(Arc<Shared>);

/// Its place on the network, which connections to several nodes share.
#[derive(Debug)]
struct Net {
    // Before the thread that drives it.
    endpoint: Endpoint,
    _network: NetworkThread,
    /// Where nodes of the cluster were, that one may be asked in place of another.
    known: std::sync::Mutex<Vec<SocketAddr>>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    net: Arc<Net>,
    /// Where answers are followed.
    runtime: Handle,
    live: Mutex<Option<Connection>>,
    /// The node that was there first: sessions are its own.
    peer: OnceCell<Peer>,
}

impl Node {
    /// The node of another process at `address`, which is asked in the name of `identity`. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError::Remote`] if it cannot be reached or one side refuses the other's certificate.
    pub async fn connect(address: SocketAddr, identity: Arc<Credentials>) -> Result<Self, OpenError> {
        Ok(Client::connect(address, identity).await?.node())
    }
}

impl Client {
    /// Connects to the node at `address` in the name of `identity`. Call it within a tokio runtime.
    pub async fn connect(address: SocketAddr, identity: Arc<Credentials>) -> Result<Self, RemoteError> {
        let local = |error: &dyn std::fmt::Display| RemoteError::Local(error.to_string());
        let revocations = Revocations::new(identity.ca()).map_err(|error| local(&error))?;
        let from: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        Self::connect_with(address, EndpointSetup::new(from, identity, revocations)).await
    }

    /// [`connect`](Self::connect) with options of the transport.
    pub async fn connect_with(address: SocketAddr, setup: EndpointSetup) -> Result<Self, RemoteError> {
        let local = |error: &dyn std::fmt::Display| RemoteError::Local(error.to_string());
        let network = NetworkThread::start("stellate-client").map_err(|error| local(&error))?;
        let (endpoint, _) = Endpoint::bind(&network.handle(), setup).map_err(|error| local(&error))?;
        let client = Self(Arc::new(Shared {
            address,
            net: Arc::new(Net { endpoint, _network: network, known: std::sync::Mutex::default() }),
            runtime: Handle::current(),
            live: Mutex::default(),
            peer: OnceCell::new(),
        }));
        client.connection().await?;
        Ok(client)
    }

    /// The node: contexts are encoded and questions asked as on a node of this process.
    pub fn node(&self) -> Node {
        Node::there(self.clone())
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Another node of the same cluster, asked in the same name. Nothing is dialled before it is asked.
    pub fn beside(&self, address: SocketAddr) -> Self {
        let (net, runtime) = (Arc::clone(&self.0.net), self.0.runtime.clone());
        Self(Arc::new(Shared { address, net, runtime, live: Mutex::default(), peer: OnceCell::new() }))
    }

    /// Where nodes of the cluster are, as far as was learnt, this one first.
    pub(super) fn known(&self) -> Vec<SocketAddr> {
        let known = self.0.net.known.lock().unwrap_or_else(PoisonError::into_inner);
        let others = known.iter().copied().filter(|address| *address != self.0.address);
        std::iter::once(self.0.address).chain(others).collect()
    }

    /// Learns where the other nodes are, so that sessions can be asked there when this one is gone; once is enough.
    pub async fn learn(&self) -> Result<(), RemoteError> {
        if self.known().len() > 1 {
            return Ok(());
        }
        let nodes = self.nodes().await?.into_iter();
        let addresses = nodes.filter_map(|node| node.address.parse().ok()).collect();
        *self.0.net.known.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        Ok(())
    }

    /// Asks where a session is, beginning here.
    async fn at_owner<T, F>(&self, ask: impl Fn(Self) -> F) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        let mut client = self.clone();
        for _ in 0..HOPS {
            match ask(client.clone()).await {
                Err(RemoteError::Elsewhere { address, message }) => match address.parse() {
                    Ok(address) => client = self.beside(address),
                    Err(_) => return Err(RemoteError::Elsewhere { address, message }),
                },
                answered => return answered,
            }
        }
        ask(client).await
    }

    /// Who is there, by its certificate.
    pub fn peer(&self) -> &Peer {
        self.0.peer.get().expect("a client is made once it has connected")
    }

    /// Measures of the connection's path.
    pub async fn path(&self) -> Result<PathStats, RemoteError> {
        Ok(self.connection().await?.stats())
    }

    /// Ends the connection, and waits until the node was told.
    pub async fn disconnect(&self) {
        if let Some(connection) = self.0.live.lock().await.take() {
            connection.close(CloseCode::Done);
            drop(connection);
            self.0.net.endpoint.idle().await;
        }
    }

    /// What runs there.
    pub async fn about(&self) -> Result<About, RemoteError> {
        self.body(Request::About).await
    }

    /// The cluster as the node sees it.
    pub async fn status(&self) -> Result<Status, RemoteError> {
        self.body(Request::Status).await
    }

    /// The contexts that the node keeps.
    pub async fn contexts(&self) -> Result<Vec<ContextInfo>, RemoteError> {
        self.body(Request::Contexts).await
    }

    /// A context by its name.
    pub async fn context(&self, id: ContextId) -> Result<Context, RemoteError> {
        let mut call = self.call(Request::Context(id), &[]).await?;
        match call.event().await? {
            (Event::Context(head), payload) => {
                call.end();
                let context = self.remote_context(&head, &payload)?;
                let meter = EncodeMeter::default();
                Ok(context.into_context(self.node(), Prompting::Chat, &meter))
            }
            (event, _) => Err(call.unexpected(event)),
        }
    }

    /// Removes a context. Refused while sessions over it are open.
    pub async fn remove_context(&self, id: ContextId) -> Result<(), RemoteError> {
        self.done(Request::RemoveContext(id)).await
    }

    /// The sessions that are open.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, RemoteError> {
        self.body(Request::Sessions).await
    }

    /// A session by its name.
    pub async fn session(&self, id: SessionId) -> Result<Session, RemoteError> {
        self.at_owner(|client| async move {
            let id = client.named_session(Request::Session(id)).await??;
            Ok(Session::there(client.node(), RemoteSession::new(client.clone(), id)))
        })
        .await
    }

    /// The turns of a session, in words.
    pub async fn turns(&self, id: SessionId) -> Result<Vec<TurnInfo>, RemoteError> {
        self.at_owner(|client| async move { client.body(Request::Turns(id)).await }).await
    }

    /// Closes a session.
    pub async fn close_session(&self, id: SessionId) -> Result<(), RemoteError> {
        self.at_owner(|client| async move { client.done(Request::CloseSession(id)).await }).await
    }

    /// Moves a session to the node of this name or id, once the turn under way has ended. Its context is then there too.
    pub async fn move_session(&self, id: SessionId, to: &str) -> Result<(), RemoteError> {
        let request = Request::MoveSession { session: id, to: to.to_owned() };
        self.at_owner(|client| {
            let request = request.clone();
            async move { client.done(request).await }
        })
        .await
    }

    /// The sessions that the node has or keeps copies of, and where they are.
    pub async fn session_places(&self) -> Result<Vec<SessionPlaceInfo>, RemoteError> {
        self.body(Request::SessionPlaces).await
    }

    /// The nodes of the cluster.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, RemoteError> {
        self.body(Request::Nodes).await
    }

    /// Lets a node take no new blocks, or take them again.
    pub async fn set_cordon(&self, node: &str, cordoned: bool) -> Result<NodeInfo, RemoteError> {
        self.body(Request::Cordon { node: node.to_owned(), cordoned }).await
    }

    /// Moves everything off a node, and tells of it. Dropping what is returned stops watching only.
    pub async fn drain(&self, request: DrainRequest) -> Result<Moves, RemoteError> {
        Ok(Moves::new(self.call(Request::Drain(request), &[]).await?))
    }

    /// Removes a node for good.
    pub async fn remove_node(&self, node: &str, force: bool) -> Result<(), RemoteError> {
        self.done(Request::Remove { node: node.to_owned(), force }).await
    }

    /// What a rebalancing would do now.
    pub async fn rebalance_plan(&self) -> Result<RebalancePlan, RemoteError> {
        self.body(Request::Plan).await
    }

    /// Rebalances; as [`drain`](Self::drain).
    pub async fn rebalance(&self) -> Result<Moves, RemoteError> {
        Ok(Moves::new(self.call(Request::Rebalance, &[]).await?))
    }

    /// Makes a join token.
    pub async fn create_token(&self, ttl: Duration, uses: u32) -> Result<IssuedToken, RemoteError> {
        self.body(Request::CreateToken { ttl_s: ttl.as_secs(), uses }).await
    }

    /// The join tokens that were made.
    pub async fn tokens(&self) -> Result<Vec<TokenInfo>, RemoteError> {
        self.body(Request::Tokens).await
    }

    /// Calls a join token back. Nodes that it has brought in stay.
    pub async fn revoke_token(&self, id: &str) -> Result<(), RemoteError> {
        self.done(Request::RevokeToken { id: id.to_owned() }).await
    }

    /// Revokes the certificates of an administrator, by name or by the id of one.
    pub async fn revoke_admin(&self, admin: &str) -> Result<(), RemoteError> {
        self.done(Request::RevokeAdmin { admin: admin.to_owned() }).await
    }

    /// Who supervises, and how the voters stand.
    pub async fn supervisor(&self) -> Result<SupervisorInfo, RemoteError> {
        self.body(Request::Supervisor).await
    }

    /// Has a voter supervise: the one of this name, else the node that is asked. Gives its name once that has begun;
    /// [`supervisor`](Self::supervisor) tells when it is done.
    pub async fn take_over(&self, node: Option<&str>) -> Result<String, RemoteError> {
        self.body(Request::TakeOver { node: node.map(str::to_owned) }).await
    }

    /// The cluster's own checks.
    pub async fn doctor(&self) -> Result<Vec<Check>, RemoteError> {
        self.body(Request::Doctor { everywhere: true }).await
    }

    pub(crate) async fn encode(
        &self,
        source: ContextSource,
        layout: Layout,
        meter: &EncodeMeter,
    ) -> Result<RemoteContext, EncodeError> {
        let (source, payload) = convert::source_parts(source);
        self.encoded(Request::Encode { source, layout: layout.into() }, &payload, meter).await
    }

    /// Follows an encoding to its end. Dropping the future cancels it.
    pub(super) async fn encoded(
        &self,
        request: Request,
        payload: &[u8],
        meter: &EncodeMeter,
    ) -> Result<RemoteContext, EncodeError> {
        let mut call = self.call(request, payload).await?;
        loop {
            match call.event().await? {
                (Event::Progress(progress), _) => meter.report(progress.into()),
                (Event::Context(head), payload) => {
                    call.end();
                    let context = self.remote_context(&head, &payload)?;
                    meter.report(head.progress.into());
                    return Ok(context);
                }
                (Event::Failed(fault), _) => {
                    call.end();
                    return Err(fault.into());
                }
                (event, _) => return Err(call.unexpected(event).into()),
            }
        }
    }

    fn remote_context(
        &self,
        head: &super::wire::ContextHead,
        payload: &Payload,
    ) -> Result<RemoteContext, RemoteError> {
        let (manifest, places) = convert::manifest(head, payload)?;
        Ok(RemoteContext::new(self.clone(), manifest, places, head.kv_bytes))
    }

    /// The session that a request names.
    pub(super) async fn named_session(
        &self,
        request: Request,
    ) -> Result<Result<SessionId, Fault>, RemoteError> {
        let mut call = self.call(request, &[]).await?;
        match call.event().await? {
            (Event::Session(id), _) => {
                call.end();
                Ok(Ok(id))
            }
            (Event::Failed(fault), _) => {
                call.end();
                Ok(Err(fault))
            }
            (event, _) => Err(call.unexpected(event)),
        }
    }

    pub(super) async fn body<T>(&self, request: Request) -> Result<T, RemoteError>
    where
        T: SchemaReadOwned<DefaultConfig, Dst = T>,
    {
        self.call(request, &[]).await?.body().await
    }

    pub(super) async fn done(&self, request: Request) -> Result<(), RemoteError> {
        self.call(request, &[]).await?.done().await
    }

    /// Sends a request on a stream of its own.
    pub(super) async fn call(&self, request: Request, payload: &[u8]) -> Result<Call, RemoteError> {
        Call::over(&self.connection().await?, request, payload).await
    }

    /// Where work goes that nobody waits for.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.runtime.spawn(work);
    }

    /// The live connection, dialled again if it was lost.
    async fn connection(&self) -> Result<Connection, RemoteError> {
        let mut live = self.0.live.lock().await;
        if let Some(connection) = live.as_ref().filter(|connection| connection.is_open()) {
            return Ok(connection.clone());
        }
        let target = Target::seed(self.0.address);
        let connection = self.0.net.endpoint.dial(target, ConnectionClass::Admin).await?;
        let first = self.0.peer.get_or_init(|| async { connection.peer().clone() }).await;
        if first.id != connection.peer().id {
            let Peer { id: found, name: found_name, .. } = connection.peer().clone();
            connection.close(CloseCode::UnexpectedPeer);
            return Err(DialError::UnexpectedPeer { address: self.0.address, found, found_name }.into());
        }
        *live = Some(connection.clone());
        Ok(connection)
    }
}

/// A request under way. Dropped before its end, it is given up.
#[derive(Debug)]
pub(super) struct Call {
    sender: FrameSender,
    receiver: FrameReceiver,
    ended: bool,
}

impl Call {
    /// Sends a request on a stream of its own.
    pub(super) async fn over(
        connection: &Connection,
        request: Request,
        payload: &[u8],
    ) -> Result<Self, RemoteError> {
        let (sender, receiver) = connection.open().await.map_err(RemoteError::Lost)?;
        let mut call = Self { sender, receiver, ended: false };
        call.sender.send(REQUEST, &request, &[payload]).await?;
        Ok(call)
    }

    /// The answer, where it is one value.
    pub(super) async fn body<T>(mut self) -> Result<T, RemoteError>
    where
        T: SchemaReadOwned<DefaultConfig, Dst = T>,
    {
        match self.event().await? {
            (Event::Body, payload) => {
                self.end();
                let decoded = encoding::decode(payload.as_bytes());
                decoded.map_err(|error| RemoteError::Protocol(error.to_string()))
            }
            (event, _) => Err(self.unexpected(event)),
        }
    }

    /// The answer, where it is none.
    pub(super) async fn done(mut self) -> Result<(), RemoteError> {
        match self.event().await? {
            (Event::Done, _) => {
                self.end();
                Ok(())
            }
            (event, _) => Err(self.unexpected(event)),
        }
    }

    /// The next event. Cancelling the wait loses nothing.
    pub(super) async fn event(&mut self) -> Result<(Event, Payload), RemoteError> {
        let frame = self.receiver.expect().await?;
        let event = frame.expect(EVENT)?;
        Ok((event, frame.payload))
    }

    /// The last event has come.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Asks for the end; the last event is still to come.
    pub(super) fn cancel(&mut self) {
        self.sender.reset(CANCELLED);
    }

    /// What it means that `event` came where another one belongs: a refusal, as a rule.
    pub(super) fn unexpected(&mut self, event: Event) -> RemoteError {
        match event {
            Event::Failed(fault) => {
                self.ended = true;
                fault.into()
            }
            event => RemoteError::Protocol(format!("an event that has no place here: {event:.40?}")),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.ended {
            self.sender.finish();
        } else {
            self.sender.reset(CANCELLED);
            self.receiver.stop(CloseCode::Done);
        }
    }
}
