//! Where sockets come from: the system's, or those of a network that a test makes up.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use super::endpoint::EndpointError;
use super::options::TransportOptions;
use super::thread::NetworkHandle;

/// A network that is not the system's. QUIC runs over its sockets as it does over real ones.
pub trait Sockets: fmt::Debug + Send + Sync {
    /// Opens a UDP socket at `address`, within the network thread's runtime.
    ///
    /// # Errors
    /// The address cannot be had.
    fn open(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// What QUIC draws its random numbers from, in a run that can be repeated.
    fn seed(&self) -> [u8; 32];
}

/// A socket for QUIC on the network thread: one of `sockets`, or of the system.
pub(super) fn open_socket(
    network: &NetworkHandle,
    address: SocketAddr,
    options: &TransportOptions,
    server: Option<quinn::ServerConfig>,
    sockets: Option<&dyn Sockets>,
) -> Result<quinn::Endpoint, EndpointError> {
    let _on_network = network.enter();
    let (mut config, runtime) = (options.endpoint(), Arc::new(quinn::TokioRuntime));
    let opened = match sockets {
        Some(sockets) => {
            config.rng_seed(Some(sockets.seed()));
            sockets
                .open(address)
                .and_then(|socket| quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime))
        }
        None => UdpSocket::bind(address).and_then(|socket| {
            widen(&socket);
            quinn::Endpoint::new(config, server, socket, runtime)
        }),
    };
    opened.map_err(|source| EndpointError::Socket { address, source })
}

/// What the kernel may hold of packets that have come and were not read, and the same for those that leave. A copy of a block
/// comes in bursts of far more than the usual 208 KiB, and what does not fit is lost, frames of attention among it.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Asks for wide buffers. The system may grant less; then copies are slower, and attention beside them.
fn widen(socket: &UdpSocket) {
    let socket = socket2::SockRef::from(socket);
    let asked = socket
        .set_recv_buffer_size(SOCKET_BUFFER_BYTES)
        .and_then(|()| socket.set_send_buffer_size(SOCKET_BUFFER_BYTES))
        .and_then(|()| socket.recv_buffer_size());
    match asked {
        Ok(granted) if granted < SOCKET_BUFFER_BYTES => {
            tracing::info!(
                granted,
                "the system bounds the buffers of sockets; raise net.core.rmem_max to 4194304"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::info!(%error, "the buffers of a socket could not be widened"),
    }
}
