//! The join address: a socket of its own, on the node that holds the CA, for nodes that have no certificate yet. It is the
//! one place where strangers are heard, so every one of them has to prove its address, has few attempts, little time and
//! one small frame. The cluster's own socket never speaks to anyone without a certificate.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use quinn::{Incoming, VarInt};
use tokio::time::timeout;

use super::close::{CloseCode, Closed, version_reason};
use super::endpoint::EndpointError;
use super::frame::{FrameError, FrameKind, FrameLimits};
use super::gate::{Gate, Proof};
use super::hello::code_of;
use super::join::{EXPORT_LABEL, JOIN_LIMITS};
use super::limiter::Limiter;
use super::options::TransportOptions;
use super::renewal::encode_revocations;
use super::sockets::open_socket;
use super::stream::{FrameReceiver, FrameSender, StreamError};
use super::thinned::Thinned;
use super::thread::NetworkHandle;
use crate::clock::Clock;
use crate::identity::{Credentials, JoinDesk, JoinRefusal, JoinReply, JoinRequest, tls};

/// What a stranger may send: one request, with no payload.
const REQUEST_LIMITS: FrameLimits = FrameLimits { payload_bytes: 0, ..JOIN_LIMITS };

/// Answers nodes that join. When it is dropped, no more are.
#[derive(Debug)]
pub struct JoinServer {
    socket: quinn::Endpoint,
    options: TransportOptions,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Shared {
    desk: Arc<JoinDesk>,
    nodes: Vec<SocketAddr>,
    limiter: Mutex<Limiter>,
    clock: Arc<dyn Clock>,
    options: TransportOptions,
    /// Of joins that failed.
    warnings: Thinned,
}

impl JoinServer {
    /// Opens the join address, showing `credentials` of this cluster's CA. Who is let in is told to look for the cluster at
    /// `nodes`.
    pub fn bind(
        network: &NetworkHandle,
        address: SocketAddr,
        credentials: &Credentials,
        desk: Arc<JoinDesk>,
        nodes: Vec<SocketAddr>,
        options: TransportOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EndpointError> {
        options.validate()?;
        let config = server_config(credentials, &options, &clock)?;
        let socket = open_socket(network, address, &options, Some(config), None)?;
        let (each, all) = (options.joins_per_minute_and_address, options.joins_per_minute);
        let limiter = Mutex::new(Limiter::new(each, all, clock.now()));
        let (server, at) = (options.clone(), clock.clone());
        let shared = Arc::new(Shared { desk, nodes, limiter, clock, options, warnings: Thinned::default() });
        network.spawn(serve(socket.clone(), shared));
        Ok(Self { socket, options: server, clock: at })
    }

    /// Shows a newer certificate of this node from now on.
    ///
    /// # Errors
    /// TLS does not work with it; the one in use stays.
    pub fn use_credentials(&self, credentials: &Credentials) -> Result<(), EndpointError> {
        let config = server_config(credentials, &self.options, &self.clock)?;
        self.socket.set_server_config(Some(config));
        Ok(())
    }

    /// Lets nobody join any more.
    pub(crate) fn close(&self) {
        self.socket.close(CloseCode::Done.into(), b"");
    }

    /// Where it listens.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Drop for JoinServer {
    fn drop(&mut self) {
        self.close();
    }
}

/// What strangers meet: one stream, no datagrams, no more bytes in flight than a request takes.
fn server_config(
    credentials: &Credentials,
    options: &TransportOptions,
    clock: &Arc<dyn Clock>,
) -> Result<quinn::ServerConfig, EndpointError> {
    let mut config = options.server(tls::join_server_config(credentials, clock)?)?;
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(32 << 10))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(options.idle.try_into().expect("validate() has bounded it")))
        .initial_rtt(options.initial_rtt);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

impl Shared {
    fn grant(&self, address: IpAddr) -> bool {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.grant(address, self.clock.now())
    }

    fn warn(&self, write: impl FnOnce(u64)) {
        if let Some(left_out) = self.warnings.grant(self.clock.now()) {
            write(left_out);
        }
    }
}

async fn serve(socket: quinn::Endpoint, shared: Arc<Shared>) {
    let gate = Gate::new(shared.options.max_handshakes, Proof::Always);
    while let Some(incoming) = socket.accept().await {
        let Some((incoming, permit)) = gate.admit(incoming) else { continue };
        let address = incoming.remote_address();
        if !shared.grant(address.ip()) {
            shared
                .warn(|left_out| tracing::warn!(%address, left_out, "a join was refused: too many attempts"));
            incoming.refuse();
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            let limit = shared.options.handshake_timeout;
            match timeout(limit, answer(&shared, incoming)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    shared.warn(|left_out| tracing::warn!(%address, %error, left_out, "a join has failed"));
                }
                Err(_) => shared.warn(|left_out| tracing::warn!(%address, left_out, "a join took too long")),
            }
            drop(permit);
        });
    }
}

/// Hears one request and answers it.
async fn answer(shared: &Shared, incoming: Incoming) -> Result<(), StreamError> {
    let quic = incoming.await.map_err(Closed::from)?;
    let (send, receive) = quic.accept_bi().await.map_err(Closed::from)?;
    let mut receiver = FrameReceiver::any_of(receive, shared.options.protocol, REQUEST_LIMITS);
    let (request, version) = match hear(&mut receiver).await {
        Ok(request) => request,
        Err(error) => {
            let mut reason = Vec::new();
            if let StreamError::Frame(FrameError::Version { ours, .. }) = error {
                reason = version_reason(ours);
            }
            quic.close(code_of(&error).into(), &reason);
            return Err(error);
        }
    };
    let mut exported = [0; 32];
    if quic.export_keying_material(&mut exported, EXPORT_LABEL, b"").is_err() {
        return Err(StreamError::Ended);
    }
    // The desk waits for a disk and computes: not on this thread.
    let (desk, nodes) = (shared.desk.clone(), shared.nodes.clone());
    let decided = tokio::task::spawn_blocking(move || desk.admit(&request, &exported, &nodes)).await;
    let reply = decided.unwrap_or(JoinReply::Refused(JoinRefusal::Unavailable));
    let list = match reply {
        JoinReply::Accepted { .. } => encode_revocations(shared.desk.revocations().signed()),
        JoinReply::Refused(_) => Vec::new(),
    };
    let mut sender = FrameSender::new(send, version, JOIN_LIMITS);
    sender.send(FrameKind::JOIN_REPLY, &reply, &[&list]).await?;
    sender.finish();
    sender.delivered().await;
    Ok(())
}

/// The request, and the version that it is of.
async fn hear(receiver: &mut FrameReceiver) -> Result<(JoinRequest, u16), StreamError> {
    let request = receiver.expect().await?.expect(FrameKind::JOIN)?;
    Ok((request, receiver.version().expect("a frame has come")))
}
