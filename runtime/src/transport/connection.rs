//! A connection to a peer whose certificate was verified and whose hello was heard: streams of frames, datagrams, and why
//! it ended. How it came about is in `endpoint`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::VarInt;

use super::close::{CloseCode, Closed};
use super::frame::FrameLimits;
use super::hello::ConnectionClass;
use super::stream::{FrameReceiver, FrameSender};
use crate::identity::{CertificateDetails, NodeId, NodeName, Role};

/// Who is at the other end, by its certificate; and in which life of its process, by its own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The hash of its key.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// What it may do.
    pub role: Role,
    /// Grows with each start of its process.
    pub incarnation: u64,
}

/// A datagram was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// It does not fit into a packet of this path.
    #[error("a datagram of {bytes} bytes does not fit into a packet of this path; at most {limit} do")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// What fits at the moment; 0 if the peer takes none.
        limit: usize,
    },
    /// The connection is gone.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Measures of a connection, for `status` and `doctor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStats {
    /// Round-trip time.
    pub rtt: Duration,
    /// Largest UDP payload that the path carries.
    pub mtu_bytes: u16,
    /// Packets that were lost on the way to the peer.
    pub lost_packets: u64,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
}

/// A live connection. Clones mean the same one; it stays open until someone closes it, even when all clones are gone.
#[derive(Clone, Debug)]
pub struct Connection {
    quic: quinn::Connection,
    peer: std::sync::Arc<Peer>,
    class: ConnectionClass,
    dialled: bool,
    version: u16,
    limits: FrameLimits,
}

impl Connection {
    pub(super) fn new(
        quic: quinn::Connection,
        peer: Peer,
        class: ConnectionClass,
        dialled: bool,
        (version, options): (u16, &super::TransportOptions),
    ) -> Self {
        // Only now: before the hello, a peer has one stream.
        quic.set_max_concurrent_bi_streams(VarInt::from_u32(options.max_streams));
        quic.set_max_concurrent_uni_streams(VarInt::from_u32(options.max_streams));
        let limits = options.frames;
        Self { quic, peer: peer.into(), class, dialled, version, limits }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What the connection is for.
    pub fn class(&self) -> ConnectionClass {
        self.class
    }

    /// The wire version that both sides speak on it.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Whether this side has dialled.
    pub fn is_dialled(&self) -> bool {
        self.dialled
    }

    /// Where the peer is.
    pub fn remote_address(&self) -> SocketAddr {
        self.quic.remote_address()
    }

    /// Opens a stream of frames in both directions. The peer learns of it with the first frame. Waits while the peer has as
    /// many open as it takes.
    pub async fn open(&self) -> Result<(FrameSender, FrameReceiver), Closed> {
        let (send, receive) = self.quic.open_bi().await?;
        Ok(self.framed(send, receive))
    }

    /// The next stream that the peer opens.
    pub async fn accept(&self) -> Result<(FrameSender, FrameReceiver), Closed> {
        let (send, receive) = self.quic.accept_bi().await?;
        Ok(self.framed(send, receive))
    }

    fn framed(&self, send: quinn::SendStream, receive: quinn::RecvStream) -> (FrameSender, FrameReceiver) {
        let sender = FrameSender::new(send, self.version, self.limits);
        (sender, FrameReceiver::new(receive, self.version, self.limits))
    }

    /// Sends a datagram, which arrives whole, late or never. Drops the oldest one that waits if too many do.
    pub fn send_datagram(&self, bytes: Bytes) -> Result<(), DatagramError> {
        let len = bytes.len();
        self.quic.send_datagram(bytes).map_err(|error| match error {
            quinn::SendDatagramError::ConnectionLost(error) => Closed::from(error).into(),
            _ => DatagramError::TooLarge { bytes: len, limit: self.max_datagram_bytes() },
        })
    }

    /// The next datagram.
    pub async fn receive_datagram(&self) -> Result<Bytes, Closed> {
        Ok(self.quic.read_datagram().await?)
    }

    /// Largest datagram that fits at the moment; 0 if the peer takes none.
    pub fn max_datagram_bytes(&self) -> usize {
        self.quic.max_datagram_size().unwrap_or(0)
    }

    /// Closes it at once, whatever is under way, and tells the peer why.
    pub fn close(&self, code: CloseCode) {
        self.quic.close(code.into(), b"");
    }

    /// Waits until it is gone.
    pub async fn closed(&self) -> Closed {
        self.quic.closed().await.into()
    }

    /// Why it is gone, if it is.
    pub fn close_reason(&self) -> Option<Closed> {
        self.quic.close_reason().map(Closed::from)
    }

    /// Whether it still lives, as far as this side knows.
    pub fn is_open(&self) -> bool {
        self.quic.close_reason().is_none()
    }

    /// Measures of its path.
    pub fn stats(&self) -> PathStats {
        let stats = self.quic.stats();
        PathStats {
            rtt: stats.path.rtt,
            mtu_bytes: stats.path.current_mtu,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
        }
    }

    /// Tells this connection from all others of the process.
    pub(crate) fn number(&self) -> usize {
        self.quic.stable_id()
    }

    /// The peer's certificate, as the handshake has verified it.
    pub(super) fn certificate(&self) -> Option<Vec<u8>> {
        certificate_of(&self.quic)
    }
}

/// The end-entity certificate that the peer has shown.
fn certificate_of(quic: &quinn::Connection) -> Option<Vec<u8>> {
    let chain = quic.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| certificate.to_vec())
}

/// Who the handshake says is there.
pub(super) fn identity_of(quic: &quinn::Connection) -> Option<CertificateDetails> {
    CertificateDetails::of(&certificate_of(quic)?).ok()
}
