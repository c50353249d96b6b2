//! Joining a cluster, as the new node does it: it believes the server by the pinned hash alone, proves the token, and comes
//! back with its certificate. The other side is `join_server`; what is decided there, `identity::join`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::close::{CloseCode, Closed, version_reason};
use super::dial::TLS_NAME;
use super::endpoint::EndpointError;
use super::frame::{FrameError, FrameKind, FrameLimits};
use super::options::TransportOptions;
use super::renewal::decode_revocations;
use super::sockets::open_socket;
use super::stream::{FrameReceiver, FrameSender, StreamError};
use super::thread::NetworkHandle;
use crate::clock::Clock;
use crate::identity::{
    CaHash, CertificateProblem, Credentials, JoinRefusal, JoinReply, JoinRequest, JoinToken, NodeKey,
    NodeName, Pinned, PinnedVerifier, Revocations, SignedRevocations, tls,
};
use crate::protocol::ProtocolRange;

/// Frames of the exchange: a request of some hundred bytes; an answer with two certificates and the list of the revoked.
pub(super) const JOIN_LIMITS: FrameLimits = FrameLimits { header_bytes: 16 << 10, payload_bytes: 4 << 20 };

/// Sets the keying material of this exchange apart from any other use of the same connection.
pub(super) const EXPORT_LABEL: &[u8] = b"EXPORTER-stellate-join";

/// A member of the cluster, from now on.
#[derive(Debug)]
pub struct Joined {
    /// Key, certificate and CA. To be saved, then used.
    pub credentials: Credentials,
    /// The list of the revoked, as the cluster has it.
    pub revocations: Revocations,
    /// Where the node that let it in is reached by the cluster's own protocol.
    pub nodes: Vec<SocketAddr>,
}

/// The node has not joined. The key is as good as before: the same join may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is over, by this machine's clock. Nothing was sent.
    #[error(
        "this join token has expired by this machine's clock; create a new one with `stellate token create`"
    )]
    TokenExpired,

    /// Whoever answered is not of the token's cluster. The token was not used.
    #[error(
        "{address} does not belong to the cluster of this token: the token pins CA {pinned}, {}; check the address, \
         and be suspicious if it is right", found.map_or("the server showed none".to_owned(), |found| format!("the server showed {found}"))
    )]
    OtherCluster {
        /// Where.
        address: SocketAddr,
        /// What the token says.
        pinned: CaHash,
        /// What the server showed.
        found: Option<CaHash>,
    },

    /// The server's own certificate is not good, though it showed the right CA. The token was not used.
    #[error("the certificate of {address} was refused: {problem}")]
    BadServer {
        /// Where.
        address: SocketAddr,
        /// What is wrong with it.
        problem: String,
    },

    /// The cluster refuses.
    #[error(transparent)]
    Refused(#[from] JoinRefusal),

    /// The cluster speaks another version.
    #[error(
        "{address} speaks wire version {theirs} and this node {ours}; install the version of `stellate` that the cluster runs, or \
         one that is one step newer"
    )]
    VersionMismatch {
        /// Where.
        address: SocketAddr,
        /// What this node speaks.
        ours: ProtocolRange,
        /// What the cluster speaks.
        theirs: ProtocolRange,
    },

    /// Nothing was heard in time.
    #[error(
        "{address} does not answer; check that it is the join address of the cluster and that UDP gets through"
    )]
    Silent {
        /// Where.
        address: SocketAddr,
    },

    /// The exchange was cut off. The token may have been used for this key, which may come again.
    #[error("the exchange with {address} failed: {problem}; try again with the same token")]
    Failed {
        /// Where.
        address: SocketAddr,
        /// How.
        problem: String,
    },

    /// What was issued does not fit. Nothing of it is kept.
    #[error("the cluster issued a certificate that does not fit: {0}")]
    BadCertificate(#[from] CertificateProblem),

    /// The key cannot sign.
    #[error("the node's key cannot sign a request: {0}")]
    Key(#[from] rcgen::Error),

    /// This node could not open a socket or set up TLS.
    #[error(transparent)]
    Local(#[from] EndpointError),

    /// The network thread has ended.
    #[error("this node is leaving the network and joins no more")]
    Stopped,
}

/// Joins the cluster of `token` as `name`, through the join address of the node that holds its CA.
pub async fn join(
    network: &NetworkHandle,
    address: SocketAddr,
    token: &JoinToken,
    name: &NodeName,
    key: NodeKey,
    options: &TransportOptions,
    clock: Arc<dyn Clock>,
) -> Result<Joined, JoinError> {
    options.validate().map_err(EndpointError::from)?;
    if token.is_expired(clock.wall()) {
        return Err(JoinError::TokenExpired);
    }
    let verifier = Arc::new(PinnedVerifier::new(token.ca_hash()));
    let crypto = tls::join_client_config(verifier.clone(), &clock).map_err(EndpointError::from)?;
    let config = options.client(crypto).map_err(EndpointError::from)?;
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = open_socket(network, local, options, None, None)?;
    let attempt = Attempt {
        address,
        token: token.clone(),
        name: name.clone(),
        request_der: key.certificate_request()?,
        protocol: options.protocol,
        verifier,
    };
    let limit = options.handshake_timeout;
    let exchanged = network.run(async move {
        let result = timeout(limit, attempt.run(&socket, config)).await;
        socket.close(CloseCode::Done.into(), b"");
        result.unwrap_or(Err(JoinError::Silent { address }))
    });
    let Issued { certificate, ca, list, mut nodes } = exchanged.await.ok_or(JoinError::Stopped)??;
    if CaHash::of(&ca) != token.ca_hash() {
        return Err(CertificateProblem::OtherCa.into());
    }
    let revocations = Revocations::new(&ca)?;
    if let Some(list) = list {
        let problem = |error: crate::identity::RevocationError| JoinError::Failed {
            address,
            problem: error.to_string(),
        };
        revocations.install(&list).map_err(problem)?;
    }
    let credentials = Credentials::new(key, certificate, ca)?;
    if credentials.details().name != *name {
        return Err(CertificateProblem::Name.into());
    }
    // What a node behind a translation of addresses says of itself may lead nowhere; this way there was one.
    let same_way = nodes.first().map(|node| SocketAddr::new(address.ip(), node.port()));
    nodes.extend(same_way.filter(|way| !nodes.contains(way)));
    Ok(Joined { credentials, revocations, nodes })
}

struct Attempt {
    address: SocketAddr,
    token: JoinToken,
    name: NodeName,
    request_der: Vec<u8>,
    protocol: ProtocolRange,
    verifier: Arc<PinnedVerifier>,
}

struct Issued {
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    list: Option<SignedRevocations>,
    nodes: Vec<SocketAddr>,
}

impl Attempt {
    /// In the newest version that this node speaks, and then in the newest that the server speaks as well.
    async fn run(self, socket: &quinn::Endpoint, config: quinn::ClientConfig) -> Result<Issued, JoinError> {
        let newest = self.protocol.newest;
        match self.exchange(socket, config.clone(), newest).await {
            Err(JoinError::VersionMismatch { theirs, .. })
                if let Some(common) = self.protocol.common(theirs).filter(|common| *common != newest) =>
            {
                self.exchange(socket, config, common).await
            }
            result => result,
        }
    }

    async fn exchange(
        &self,
        socket: &quinn::Endpoint,
        config: quinn::ClientConfig,
        version: u16,
    ) -> Result<Issued, JoinError> {
        let address = self.address;
        let connecting = socket
            .connect_with(config, address, TLS_NAME)
            .map_err(|error| JoinError::Failed { address, problem: error.to_string() })?;
        let quic = connecting.await.map_err(|error| self.explain(error.into()))?;
        let result = self.ask(&quic, version).await;
        result.map_err(|error| match (error, quic.close_reason()) {
            (StreamError::Closed(closed), _) => self.explain(closed),
            (_, Some(closed)) => self.explain(closed.into()),
            (StreamError::Frame(FrameError::Version { theirs, .. }), None) => {
                let (ours, theirs) = (self.protocol, ProtocolRange::only(theirs));
                quic.close(CloseCode::VersionMismatch.into(), &version_reason(ours));
                JoinError::VersionMismatch { address, ours, theirs }
            }
            (error, None) => JoinError::Failed { address, problem: error.to_string() },
        })?
    }

    /// Proves the token over this connection and reads the answer.
    async fn ask(
        &self,
        quic: &quinn::Connection,
        version: u16,
    ) -> Result<Result<Issued, JoinError>, StreamError> {
        let mut exported = [0; 32];
        if quic.export_keying_material(&mut exported, EXPORT_LABEL, b"").is_err() {
            return Err(StreamError::Ended);
        }
        let (send, receive) = quic.open_bi().await.map_err(Closed::from)?;
        let mut sender = FrameSender::new(send, version, JOIN_LIMITS);
        let mut receiver = FrameReceiver::new(receive, version, JOIN_LIMITS);
        let request = JoinRequest {
            token: self.token.id(),
            name: self.name.to_string(),
            request_der: self.request_der.clone(),
            proof: self.token.prove(&exported, self.name.as_str(), &self.request_der),
        };
        sender.send(FrameKind::JOIN, &request, &[]).await?;
        sender.finish();
        let frame = receiver.expect().await?;
        match frame.expect(FrameKind::JOIN_REPLY)? {
            JoinReply::Refused(refusal) => Ok(Err(refusal.into())),
            JoinReply::Accepted { certificate_der, ca_der, nodes } => {
                let list = decode_revocations(frame.payload.as_bytes());
                let list = list
                    .map_err(|error| JoinError::Failed { address: self.address, problem: error.to_string() });
                let (certificate, ca) = (certificate_der.into(), ca_der.into());
                Ok(list.map(|list| Issued { certificate, ca, list, nodes }))
            }
        }
    }

    fn explain(&self, closed: Closed) -> JoinError {
        let address = self.address;
        if let Some(Pinned::Mismatch { found }) = self.verifier.seen() {
            return JoinError::OtherCluster { address, pinned: self.token.ca_hash(), found };
        }
        match closed {
            Closed::OtherVersion { theirs } => {
                JoinError::VersionMismatch { address, ours: self.protocol, theirs }
            }
            Closed::PeerRefused(fault) => JoinError::BadServer { address, problem: fault.to_string() },
            Closed::Refused => JoinRefusal::TooMany.into(),
            Closed::TimedOut => JoinError::Silent { address },
            other => JoinError::Failed { address, problem: other.to_string() },
        }
    }
}
