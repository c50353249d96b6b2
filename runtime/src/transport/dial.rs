//! Dialling peers: handshake, a look at who is there, hello. Who dials again and when is the caller's business.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::timeout;

use super::close::{CertificateFault, CloseCode, Closed, version_reason};
use super::connection::{Connection, Peer, identity_of};
use super::endpoint::{Endpoint, Shared};
use super::frame::FrameError;
use super::hello::{ConnectionClass, HELLO_LIMITS, Hello, greet};
use super::registry::IncompatiblePeer;
use super::stream::{FrameReceiver, FrameSender, StreamError};
use crate::identity::{CertificateDetails, NodeId, NodeName};
use crate::protocol::ProtocolRange;

/// The name in the TLS handshake. Nodes are known by key and certificate, so it says nothing.
pub(super) const TLS_NAME: &str = "stellate";

/// Who must be at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Any node of the cluster: a seed, of which only the address is known.
    AnyNode,
    /// The node with this id.
    Id(NodeId),
    /// The node of this name.
    Name(NodeName),
}

/// Where to dial, and who must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// Who.
    pub expected: Expected,
}

impl Target {
    /// Whoever of the cluster is at `address`.
    pub fn seed(address: SocketAddr) -> Self {
        Self { address, expected: Expected::AnyNode }
    }

    /// The node `id` at `address`.
    pub fn node(id: NodeId, address: SocketAddr) -> Self {
        Self { address, expected: Expected::Id(id) }
    }
}

/// There is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The peer speaks another version; it was told so as well.
    #[error(
        "{address} speaks wire version {theirs} and this node {ours}; nodes that are one version apart work together: upgrade \
         the older one, one version at a time"
    )]
    VersionMismatch {
        /// Where.
        address: SocketAddr,
        /// What this node speaks.
        ours: ProtocolRange,
        /// What the peer speaks.
        theirs: ProtocolRange,
    },

    /// The peer did not accept this node's certificate.
    #[error("{address} refused this node's certificate: {fault}")]
    RefusedByPeer {
        /// Where.
        address: SocketAddr,
        /// What is wrong with it.
        fault: CertificateFault,
    },

    /// The peer's certificate is not to be believed.
    #[error(
        "the certificate of {address} was refused: {fault}; check that the address belongs to this cluster"
    )]
    PeerRefused {
        /// Where.
        address: SocketAddr,
        /// What is wrong with it.
        fault: CertificateFault,
    },

    /// Another node of the cluster is there.
    #[error("node `{found_name}` ({}) is at {address}, and another one was expected there", found.short())]
    UnexpectedPeer {
        /// Where.
        address: SocketAddr,
        /// Who is there.
        found: NodeId,
        /// Its name.
        found_name: NodeName,
    },

    /// The address is this node's own.
    #[error("{address} is this node itself")]
    Ourselves {
        /// Where.
        address: SocketAddr,
    },

    /// The peer closed the connection instead of answering the hello.
    #[error("{address} took no connection: {code}")]
    Rejected {
        /// Where.
        address: SocketAddr,
        /// Why.
        code: CloseCode,
    },

    /// Nothing was heard in time.
    #[error("{address} does not answer; check that the node runs and that UDP gets through")]
    Silent {
        /// Where.
        address: SocketAddr,
    },

    /// What came is not this protocol.
    #[error("{address} broke the protocol: {error}")]
    Protocol {
        /// Where.
        address: SocketAddr,
        /// What came.
        error: FrameError,
    },

    /// Something else went wrong on the way.
    #[error("no connection to {address}: {problem}")]
    Failed {
        /// Where.
        address: SocketAddr,
        /// What.
        problem: String,
    },

    /// The endpoint or its thread has ended.
    #[error("this node is leaving the network and dials no more")]
    Stopped,
}

impl DialError {
    /// Whether the same dial may work later, without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::Failed { .. } => true,
            Self::Rejected { code, .. } => {
                matches!(code, CloseCode::Busy | CloseCode::Superseded | CloseCode::TooSlow | CloseCode::Done)
            }
            _ => false,
        }
    }

    fn of(closed: Closed, address: SocketAddr, ours: ProtocolRange) -> Self {
        match closed {
            Closed::OtherVersion { theirs } => Self::VersionMismatch { address, ours, theirs },
            Closed::RefusedByPeer(fault) => Self::RefusedByPeer { address, fault },
            Closed::PeerRefused(fault) => Self::PeerRefused { address, fault },
            Closed::ByPeer { code } => Self::Rejected { address, code },
            Closed::Refused => Self::Rejected { address, code: CloseCode::Busy },
            Closed::TimedOut => Self::Silent { address },
            Closed::Here => Self::Stopped,
            Closed::Reset | Closed::Other(_) => Self::Failed { address, problem: closed.to_string() },
        }
    }
}

impl Endpoint {
    /// A connection of `class` to a node: the live one if there is one, else a new one.
    ///
    /// When both nodes dial at the same moment, one of the two connections is closed as superseded, on both ends; users
    /// that lose theirs ask [`Endpoint::connection`] or dial again.
    pub async fn dial(&self, target: Target, class: ConnectionClass) -> Result<Connection, DialError> {
        dial(&self.shared, target, class).await
    }
}

pub(super) async fn dial(
    shared: &Arc<Shared>,
    target: Target,
    class: ConnectionClass,
) -> Result<Connection, DialError> {
    if let Expected::Id(id) = target.expected
        && let Some(live) = shared.registry.get(id, class)
    {
        return Ok(live);
    }
    let address = target.address;
    let task = shared.clone();
    let dialled =
        async move { timeout(task.options.handshake_timeout, dial_now(&task, target, class)).await };
    match shared.network.run(dialled).await {
        None => Err(DialError::Stopped),
        Some(Err(_)) => Err(DialError::Silent { address }),
        Some(Ok(result)) => result,
    }
}

/// Dials in the newest version that this node speaks, and in the newest that both do if the peer refuses that. What was spoken
/// with the peer before says nothing: it may have been upgraded since.
async fn dial_now(
    shared: &Arc<Shared>,
    target: Target,
    class: ConnectionClass,
) -> Result<Connection, DialError> {
    let ours = shared.options.protocol;
    match dial_in(shared, &target, class, ours.newest).await {
        Err((DialError::VersionMismatch { theirs, .. }, _))
            if let Some(common) = ours.common(theirs).filter(|common| *common != ours.newest) =>
        {
            dial_in(shared, &target, class, common).await
        }
        result => result,
    }
    .map_err(|(error, peer)| {
        if let (DialError::VersionMismatch { address, theirs, .. }, Some(details)) = (&error, peer) {
            let CertificateDetails { id, name, .. } = *details;
            let (address, theirs) = (*address, *theirs);
            shared.registry.note_incompatible(IncompatiblePeer { id, name, address, theirs });
        }
        error
    })
}

/// Why there is no connection, and who is there, if that is known.
type Failed = (DialError, Option<Box<CertificateDetails>>);

async fn dial_in(
    shared: &Arc<Shared>,
    target: &Target,
    class: ConnectionClass,
    version: u16,
) -> Result<Connection, Failed> {
    let (address, limits, ours) = (target.address, HELLO_LIMITS, shared.options.protocol);
    let fail = |closed: Closed| DialError::of(closed, address, ours);
    let connecting =
        shared.quic.connect_with(shared.client_config(), address, TLS_NAME).map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => DialError::Stopped,
            error => DialError::Failed { address, problem: error.to_string() },
        });
    let connecting = connecting.map_err(|error| (error, None))?;
    let quic = connecting.await.map_err(|error| (fail(error.into()), None))?;
    let details = check_peer(shared, target, &quic).map_err(|error| (error, None))?;
    let (send, receive) = quic.open_bi().await.map_err(|error| (fail(error.into()), None))?;
    let mut sender = FrameSender::new(send, version, limits);
    let mut receiver = FrameReceiver::new(receive, version, limits);
    let hello = Hello { class, incarnation: shared.incarnation };
    let greeted = greet(&mut sender, &mut receiver, hello).await;
    let welcome = greeted
        .map_err(|error| (refuse_answer(error, &quic, address, ours), Some(Box::new(details.clone()))))?;
    let CertificateDetails { id, name, role, .. } = details;
    let peer = Peer { id, name, role, incarnation: welcome.incarnation };
    let connection = Connection::new(quic, peer, class, true, (version, &shared.options));
    match shared.registry.register(&connection) {
        Ok(()) => {
            shared.watch(connection.clone());
            Ok(connection)
        }
        Err(code) => {
            connection.close(code);
            // The peer's own dial may have come first.
            let live = (code == CloseCode::Superseded).then(|| shared.registry.get(id, class)).flatten();
            live.ok_or((DialError::Rejected { address, code }, None))
        }
    }
}

/// Who is there, if it is whom the target means. Nothing was sent to it yet.
fn check_peer(
    shared: &Shared,
    target: &Target,
    quic: &quinn::Connection,
) -> Result<CertificateDetails, DialError> {
    let address = target.address;
    let Some(details) = identity_of(quic) else {
        quic.close(CloseCode::ProtocolViolation.into(), b"");
        return Err(DialError::PeerRefused { address, fault: CertificateFault::Bad });
    };
    if details.id == shared.own() {
        quic.close(CloseCode::Done.into(), b"");
        return Err(DialError::Ourselves { address });
    }
    let expected = match &target.expected {
        Expected::AnyNode => true,
        Expected::Id(id) => *id == details.id,
        Expected::Name(name) => *name == details.name,
    };
    if !expected {
        quic.close(CloseCode::UnexpectedPeer.into(), b"");
        let (found, found_name) = (details.id, details.name);
        return Err(DialError::UnexpectedPeer { address, found, found_name });
    }
    Ok(details)
}

/// What a failed hello means; a peer that still listens is told.
fn refuse_answer(
    error: StreamError,
    quic: &quinn::Connection,
    address: SocketAddr,
    ours: ProtocolRange,
) -> DialError {
    // A close that arrives together with the end of the stream says more than that end.
    let closed = quic.close_reason().map(Closed::from);
    match (error, closed) {
        (StreamError::Closed(closed), _) | (_, Some(closed)) => DialError::of(closed, address, ours),
        (StreamError::Frame(FrameError::Version { theirs, .. }), None) => {
            quic.close(CloseCode::VersionMismatch.into(), &version_reason(ours));
            DialError::VersionMismatch { address, ours, theirs: ProtocolRange::only(theirs) }
        }
        (StreamError::Frame(error), None) => {
            quic.close(CloseCode::ProtocolViolation.into(), b"");
            DialError::Protocol { address, error }
        }
        (error, None) => {
            quic.close(CloseCode::ProtocolViolation.into(), b"");
            DialError::Failed { address, problem: error.to_string() }
        }
    }
}
