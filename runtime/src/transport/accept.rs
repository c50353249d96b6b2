//! Accepting peers: handshake, hello, then a registered connection; or a refusal that the peer is told and the log keeps.

use std::sync::Arc;

use quinn::Incoming;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, timeout_at};

use super::close::{CloseCode, Closed, version_reason};
use super::connection::{Connection, Peer, identity_of};
use super::endpoint::Shared;
use super::frame::FrameError;
use super::gate::{Gate, Proof};
use super::hello::{ConnectionClass, HELLO_LIMITS, code_of, hear, welcome};
use super::registry::IncompatiblePeer;
use super::renewal::serve_identity;
use super::stream::{FrameReceiver, FrameSender, StreamError};
use crate::identity::CertificateDetails;
use crate::protocol::ProtocolRange;

/// Takes what comes until the endpoint is closed.
pub(super) async fn accept_peers(shared: Arc<Shared>, accepted: Sender<Connection>) {
    let gate = Gate::new(shared.options.max_handshakes, Proof::WhenBusy);
    while let Some(incoming) = shared.quic.accept().await {
        let Some((incoming, permit)) = gate.admit(incoming) else { continue };
        let (shared, accepted) = (shared.clone(), accepted.clone());
        tokio::spawn(async move {
            accept_one(shared, incoming, accepted).await;
            drop(permit);
        });
    }
}

async fn accept_one(shared: Arc<Shared>, incoming: Incoming, accepted: Sender<Connection>) {
    let address = incoming.remote_address();
    let deadline = Instant::now() + shared.options.handshake_timeout;
    let quic = match timeout_at(deadline, incoming).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => {
            let reason = Closed::from(error);
            return shared.warn(|left_out| tracing::warn!(%address, %reason, left_out, "a handshake failed"));
        }
        Err(_) => {
            return shared.warn(|left_out| tracing::warn!(%address, left_out, "a handshake took too long"));
        }
    };
    // Mutual TLS has shown a certificate of this cluster, so there are details.
    let Some(details) = identity_of(&quic) else {
        return quic.close(CloseCode::ProtocolViolation.into(), b"");
    };
    match timeout_at(deadline, take_up(&shared, &quic, &details)).await {
        Ok(Ok(connection)) => hand_over(&shared, connection, accepted),
        Ok(Err(refusal)) => {
            let refusal = refusal.note(&shared, &quic, &details);
            quic.close(refusal.code.into(), &refusal.reason);
        }
        Err(_) => {
            tracing::warn!(%address, node = %details.id, "a peer said no hello in time");
            quic.close(CloseCode::TooSlow.into(), b"");
        }
    }
}

/// Hears the hello and answers it, once the connection is registered.
async fn take_up(
    shared: &Arc<Shared>,
    quic: &quinn::Connection,
    details: &CertificateDetails,
) -> Result<Connection, Refusal> {
    let (send, receive) = quic.accept_bi().await.map_err(Closed::from).map_err(StreamError::from)?;
    let mut receiver = FrameReceiver::any_of(receive, shared.options.protocol, HELLO_LIMITS);
    let (hello, version) = hear(&mut receiver).await?;
    let mut sender = FrameSender::new(send, version, HELLO_LIMITS);
    if !hello.class.allows(details.role) {
        return Err(Refusal::Code(CloseCode::NotAllowed));
    }
    if hello.class == ConnectionClass::Identity && shared.desk.is_none() {
        return Err(Refusal::Code(CloseCode::NotOffered));
    }
    let CertificateDetails { id, name, role, .. } = details.clone();
    let peer = Peer { id, name, role, incarnation: hello.incarnation };
    let connection = Connection::new(quic.clone(), peer, hello.class, false, (version, &shared.options));
    shared.registry.register(&connection).map_err(Refusal::Code)?;
    // From here on it is in the registry, whatever happens.
    shared.watch(connection.clone());
    welcome(&mut sender, shared.incarnation).await?;
    Ok(connection)
}

fn hand_over(shared: &Arc<Shared>, connection: Connection, accepted: Sender<Connection>) {
    let peer = connection.peer();
    tracing::debug!(node = %peer.id, name = %peer.name, class = %connection.class(), "a peer has connected");
    if connection.class() == ConnectionClass::Identity {
        shared.network.spawn(serve_identity(shared.clone(), connection));
    } else if let Err(error) = accepted.try_send(connection) {
        let connection = error.into_inner();
        tracing::warn!(node = %connection.peer().id, "a connection was closed: too many wait to be picked up");
        connection.close(CloseCode::Busy);
    }
}

/// Why a peer with a good certificate is not taken.
enum Refusal {
    Code(CloseCode),
    Stream(StreamError),
}

impl From<StreamError> for Refusal {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

/// How the connection is closed.
struct Closing {
    code: CloseCode,
    reason: Vec<u8>,
}

impl Refusal {
    /// Logs it, and keeps a peer of another version for `status`.
    fn note(self, shared: &Shared, quic: &quinn::Connection, details: &CertificateDetails) -> Closing {
        let (id, name, address) = (details.id, details.name.clone(), quic.remote_address());
        match self {
            Self::Code(code) => {
                tracing::warn!(node = %id, %name, %address, role = %details.role, reason = %code,
                    "a connection was refused");
                Closing { code, reason: Vec::new() }
            }
            Self::Stream(error) => {
                let code = code_of(&error);
                let StreamError::Frame(FrameError::Version { ours, theirs }) = error else {
                    tracing::warn!(node = %id, %name, %address, %error, "a hello was refused");
                    return Closing { code, reason: Vec::new() };
                };
                // One that speaks newer versions comes again with an older one, if it speaks any that this node does.
                tracing::info!(node = %id, %name, %address, %error, "a hello of another version was refused");
                let theirs = ProtocolRange::only(theirs);
                shared.registry.note_incompatible(IncompatiblePeer { id, name, address, theirs });
                Closing { code, reason: version_reason(ours) }
            }
        }
    }
}
