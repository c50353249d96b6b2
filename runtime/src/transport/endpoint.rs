//! A node's place on the network: one UDP socket on which it accepts its peers and from which it dials them, always with
//! mutual TLS. The two halves are in `accept` and `dial`.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::accept::accept_peers;
use super::close::CloseCode;
use super::connection::Connection;
use super::frame::FrameKind;
use super::hello::ConnectionClass;
use super::options::{OptionsError, TransportOptions};
use super::registry::{IncompatiblePeer, Registry};
use super::renewal::encode_revocations;
use super::sockets::{Sockets, open_socket};
use super::stream::StreamError;
use super::thinned::Thinned;
use super::thread::NetworkHandle;
use crate::clock::{Clock, SystemClock};
use crate::identity::{Credentials, JoinDesk, NodeId, Revocations, Role, TlsError, tls};

/// How long a removed node has to read the list that names it, before its last connection is closed.
const FAREWELL: Duration = Duration::from_millis(500);

/// A node could not take its place on the network. Nothing is open.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be had.
    #[error("cannot open UDP {address}: {source}; choose another address or port, or stop what uses it")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// TLS does not work with this identity.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// QUIC does not work with this cryptography; a fault of the program.
    #[error("QUIC does not work with this cryptographic provider: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// An option is out of its range.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

/// What a node needs to take its place on the network.
#[derive(Clone, Debug)]
pub struct EndpointSetup {
    /// Where to listen, or dial from; port 0 takes a free one.
    pub address: SocketAddr,
    /// Who the node is. An administrator's endpoint only dials.
    pub credentials: Arc<Credentials>,
    /// Who is no longer believed.
    pub revocations: Revocations,
    /// Grows with each start of the process; it tells peers that all earlier connections are void.
    pub incarnation: u64,
    /// The desk that renews certificates, on the node that holds the CA.
    pub desk: Option<Arc<JoinDesk>>,
    /// Numbers.
    pub options: TransportOptions,
    /// The time by which certificates are judged.
    pub clock: Arc<dyn Clock>,
    /// Where its socket comes from; none for the system.
    pub sockets: Option<Arc<dyn Sockets>>,
}

impl EndpointSetup {
    /// With default options and the machine's clock, which also gives the incarnation: microseconds since 1970.
    pub fn new(address: SocketAddr, credentials: Arc<Credentials>, revocations: Revocations) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let since_1970 = clock.wall().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
        let incarnation = u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX);
        let options = TransportOptions::default();
        Self { address, credentials, revocations, incarnation, desk: None, options, clock, sockets: None }
    }
}

/// A node on the network. When it is dropped, all its connections are closed.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) shared: Arc<Shared>,
}

/// What the endpoint and its tasks on the network thread have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) quic: quinn::Endpoint,
    pub(super) network: NetworkHandle,
    pub(super) registry: Registry,
    pub(super) options: TransportOptions,
    pub(super) incarnation: u64,
    pub(super) desk: Option<Arc<JoinDesk>>,
    pub(super) revocations: Revocations,
    own: NodeId,
    clock: Arc<dyn Clock>,
    /// Of handshakes that failed.
    warnings: Thinned,
    identity: RwLock<Identity>,
}

#[derive(Debug)]
struct Identity {
    credentials: Arc<Credentials>,
    client: quinn::ClientConfig,
}

/// The connections that peers open, as they come.
#[derive(Debug)]
pub struct Accepted(mpsc::Receiver<Connection>);

impl Accepted {
    /// The next one, or none once the endpoint is closed.
    pub async fn next(&mut self) -> Option<Connection> {
        self.0.recv().await
    }
}

impl Endpoint {
    /// Opens the socket and starts to accept peers, on the network thread.
    pub fn bind(network: &NetworkHandle, setup: EndpointSetup) -> Result<(Self, Accepted), EndpointError> {
        let EndpointSetup { address, credentials, revocations, incarnation, desk, options, clock, sockets } =
            setup;
        options.validate()?;
        let client = options.client(tls::client_config(&credentials, &revocations, &clock)?)?;
        let server = match credentials.details().role {
            Role::Node => Some(options.server(tls::server_config(&credentials, &revocations, &clock)?)?),
            Role::Admin => None,
        };
        let quic = open_socket(network, address, &options, server, sockets.as_deref())?;
        let own = credentials.id();
        let shared = Arc::new(Shared {
            quic,
            network: network.clone(),
            registry: Registry::new(own, options.max_connections, revocations.clone()),
            incarnation,
            desk,
            own,
            clock,
            warnings: Thinned::default(),
            identity: RwLock::new(Identity { credentials, client }),
            revocations,
            options,
        });
        let (sender, accepted) = mpsc::channel(shared.options.max_accepted_waiting);
        let task = shared.clone();
        network.spawn(async move {
            // Accepting ends when the endpoint is closed, and the other with it.
            tokio::select! {
                () = accept_peers(task.clone(), sender) => {}
                () = enforce_revocations(&task) => {}
            }
        });
        Ok((Self { shared }, Accepted(accepted)))
    }

    /// Where it listens.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.shared.quic.local_addr()
    }

    /// Who this node is, with the certificate in use.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.shared.credentials()
    }

    /// The live connection of a class to a node, whoever dialled it.
    pub fn connection(&self, id: NodeId, class: ConnectionClass) -> Option<Connection> {
        self.shared.registry.get(id, class)
    }

    /// All live connections, ordered by peer and class.
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.registry.all()
    }

    /// Peers that speak another version, until they come back with this one.
    pub fn incompatible_peers(&self) -> Vec<IncompatiblePeer> {
        self.shared.registry.incompatible()
    }

    /// The list of removed nodes that is in force here. A newer one that is installed in it closes live connections.
    pub fn revocations(&self) -> &Revocations {
        &self.shared.revocations
    }

    /// Uses a newer certificate of this node for all connections from now on. Those that live go on.
    ///
    /// # Errors
    /// TLS does not work with it; the one in use stays.
    pub fn use_credentials(&self, credentials: Arc<Credentials>) -> Result<(), EndpointError> {
        self.shared.replace_credentials(credentials)
    }

    /// Waits until the peers of all connections that were closed have been told, or have had the time. Meant for when none is
    /// open: it waits for those as well.
    pub async fn idle(&self) {
        let shared = self.shared.clone();
        let _ = self.shared.network.run(async move { shared.quic.wait_idle().await }).await;
    }

    /// Closes all connections and the socket, and waits until the peers have been told.
    pub async fn close(self) {
        self.close_connections().await;
    }

    /// Closes all connections, takes no new ones, and waits until the peers have been told. The socket is free for others
    /// once this object is gone.
    pub(crate) async fn close_connections(&self) {
        let shared = self.shared.clone();
        shared.quic.close(CloseCode::Done.into(), b"");
        // None: the network thread has ended, and with it the socket.
        let _ = self.shared.network.run(async move { shared.quic.wait_idle().await }).await;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.quic.close(CloseCode::Done.into(), b"");
    }
}

impl Shared {
    /// This node's id.
    pub(super) fn own(&self) -> NodeId {
        self.own
    }

    /// Warns of what strangers can cause, unless there was too much of it lately; `write` is told how much was left out.
    pub(super) fn warn(&self, write: impl FnOnce(u64)) {
        if let Some(left_out) = self.warnings.grant(self.clock.now()) {
            write(left_out);
        }
    }

    pub(super) fn credentials(&self) -> Arc<Credentials> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).credentials.clone()
    }

    pub(super) fn client_config(&self) -> quinn::ClientConfig {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).client.clone()
    }

    /// Uses a newer certificate for all connections from now on. Those that live go on.
    pub(super) fn replace_credentials(&self, credentials: Arc<Credentials>) -> Result<(), EndpointError> {
        let tls_client = tls::client_config(&credentials, &self.revocations, &self.clock)?;
        let client = self.options.client(tls_client)?;
        let server =
            self.options.server(tls::server_config(&credentials, &self.revocations, &self.clock)?)?;
        self.quic.set_server_config(Some(server));
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Identity { credentials, client };
        Ok(())
    }

    /// Keeps the registry free of connections that have ended, and logs how they did.
    pub(super) fn watch(self: &Arc<Self>, connection: Connection) {
        let shared = self.clone();
        self.network.spawn(async move {
            let reason = connection.closed().await;
            shared.registry.forget(&connection);
            let peer = connection.peer();
            tracing::debug!(node = %peer.id, name = %peer.name, class = %connection.class(), %reason,
                "a connection has ended");
        });
    }
}

/// Closes live connections of nodes that a newer list names.
async fn enforce_revocations(shared: &Shared) {
    let mut changes = shared.revocations.changes();
    loop {
        for connection in shared.registry.close_revoked() {
            shared.network.spawn(dismiss(connection, encode_revocations(shared.revocations.signed())));
        }
        if !changes.changed().await {
            // No list can come any more; connections still do.
            std::future::pending::<()>().await;
        }
    }
}

/// Shows a removed node the list that names it, which is the one thing that it believes, and closes its connection.
async fn dismiss(connection: Connection, list: Vec<u8>) {
    let shown = async {
        let (mut sender, _) = connection.open().await?;
        sender.send_bytes(FrameKind::REVOCATIONS, &(), list.into()).await?;
        sender.finish();
        // One that believes it goes by itself.
        connection.closed().await;
        Ok::<_, StreamError>(())
    };
    let _ = timeout(FAREWELL, shown).await;
    connection.close(CloseCode::Revoked);
}
