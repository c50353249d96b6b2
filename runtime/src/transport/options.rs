//! Numbers of the transport, with defaults that were measured, and what QUIC makes of them.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::frame::FrameLimits;
use crate::protocol::ProtocolRange;

/// Smallest path MTU that QUIC allows to count on.
const MIN_MTU_BYTES: u16 = 1200;
/// Largest path MTU: ten packets of it, which quinn sends in one call, stay below the 64 KiB above which the kernel drops the
/// batch without an error.
pub const MAX_MTU_BYTES: u16 = 6500;

/// What may be on its way before the path is known. A probe of the largest MTU and an answer of some packets fit beside each
/// other: a connection that is closed while the window is full does not tell its peer (quinn-proto 0.11 holds the close back with
/// the data that it gives up, and a closed connection hears no acknowledgements).
const INITIAL_WINDOW_BYTES: u64 = 32 << 10;

/// How the transport behaves. Both ends of a connection should have the same idle time; the shorter one counts.
#[derive(Clone, Debug, PartialEq)]
pub struct TransportOptions {
    /// Largest UDP payload that is tried on a path, from 1200 to [`MAX_MTU_BYTES`]. A path that carries less is found out and
    /// used as it is.
    pub mtu_bytes: u16,
    /// A peer that is silent for so long is gone. Nothing that blocks may run on the network thread, or its own node is.
    pub idle: Duration,
    /// A silent connection shows that it lives so often; a third of `idle` or less, so that one lost packet is no death.
    pub keep_alive: Duration,
    /// Longest delay of an acknowledgement. It bounds how late the loss of the last packet of a reply is noticed.
    pub max_ack_delay: Duration,
    /// Packets that one acknowledgement may cover.
    pub ack_threshold: u32,
    /// Round-trip time that is assumed before one was measured; a lost first packet is repeated after three times that.
    pub initial_rtt: Duration,
    /// Longest handshake, from the first packet to the answered hello.
    pub handshake_timeout: Duration,
    /// Handshakes that may be under way at once. From half of it on, addresses have to prove that they are real.
    pub max_handshakes: usize,
    /// Connections that may be open at once, all peers together.
    pub max_connections: usize,
    /// Connections that were taken and not picked up by their user yet.
    pub max_accepted_waiting: usize,
    /// Streams that a peer may have open at once on one connection.
    pub max_streams: u32,
    /// Bytes that a peer may send on one stream before they are read.
    pub stream_window_bytes: u32,
    /// The same for all streams of a connection together, and for what is sent and not acknowledged yet.
    pub connection_window_bytes: u32,
    /// Bytes of datagrams that wait in either direction; beyond, the oldest are dropped.
    pub datagram_buffer_bytes: usize,
    /// Largest frames.
    pub frames: FrameLimits,
    /// Attempts to join per minute: from one address (an IPv6 network of 64 bits counts as one) …
    pub joins_per_minute_and_address: u32,
    /// … and from all together.
    pub joins_per_minute: u32,
    /// The wire versions to speak: those of the program, or fewer, for as long as a cluster has nodes that know only those.
    pub protocol: ProtocolRange,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            mtu_bytes: MAX_MTU_BYTES,
            idle: Duration::from_millis(1500),
            keep_alive: Duration::from_millis(400),
            max_ack_delay: Duration::from_millis(2),
            ack_threshold: 10,
            initial_rtt: Duration::from_millis(50),
            handshake_timeout: Duration::from_secs(5),
            max_handshakes: 128,
            max_connections: 4096,
            max_accepted_waiting: 128,
            max_streams: 256,
            stream_window_bytes: 8 << 20,
            connection_window_bytes: 32 << 20,
            datagram_buffer_bytes: 256 << 10,
            frames: FrameLimits::default(),
            joins_per_minute_and_address: 10,
            joins_per_minute: 120,
            protocol: ProtocolRange::SPOKEN,
        }
    }
}

/// An option is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("transport option `{option}` is out of range: {problem}")]
pub struct OptionsError {
    option: &'static str,
    problem: String,
}

impl TransportOptions {
    /// Whether the numbers are possible, alone and together.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let check = |fits: bool, option, problem: &str| {
            if fits { Ok(()) } else { Err(OptionsError { option, problem: problem.to_owned() }) }
        };
        let mtus = MIN_MTU_BYTES..=MAX_MTU_BYTES;
        check(mtus.contains(&self.mtu_bytes), "mtu_bytes", "it must be from 1200 to 6500")?;
        check(!self.keep_alive.is_zero(), "keep_alive", "it must be more than 0")?;
        check(self.keep_alive * 3 <= self.idle, "keep_alive", "it must be a third of `idle` or less")?;
        check(self.idle <= Duration::from_secs(3600), "idle", "it must be an hour or less")?;
        check(!self.max_ack_delay.is_zero(), "max_ack_delay", "it must be more than 0")?;
        check(self.max_ack_delay < Duration::from_secs(1), "max_ack_delay", "it must be less than a second")?;
        check(self.ack_threshold > 0, "ack_threshold", "it must be at least 1")?;
        check(!self.initial_rtt.is_zero(), "initial_rtt", "it must be more than 0")?;
        check(!self.handshake_timeout.is_zero(), "handshake_timeout", "it must be more than 0")?;
        check(self.max_handshakes > 0, "max_handshakes", "it must be at least 1")?;
        check(self.max_connections > 0, "max_connections", "it must be at least 1")?;
        check(self.max_accepted_waiting > 0, "max_accepted_waiting", "it must be at least 1")?;
        check(self.max_streams > 0, "max_streams", "it must be at least 1")?;
        check(self.stream_window_bytes >= 16 << 10, "stream_window_bytes", "it must be at least 16 KiB")?;
        let whole = self.connection_window_bytes >= self.stream_window_bytes;
        check(whole, "connection_window_bytes", "it must be at least `stream_window_bytes`")
    }

    /// For every connection, whoever dials.
    ///
    /// Only one stream may be open, and no datagram comes, until the hello has told who the peer is and what it wants.
    pub(super) fn transport(&self) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu_bytes);
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(self.ack_threshold.into()).max_ack_delay(Some(self.max_ack_delay));
        let idle = self.idle.try_into().expect("validate() has bounded it");
        let mut congestion = CubicConfig::default();
        congestion.initial_window(INITIAL_WINDOW_BYTES);
        config
            .congestion_controller_factory(Arc::new(congestion))
            .mtu_discovery_config(Some(discovery))
            .ack_frequency_config(Some(acks))
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(self.keep_alive))
            .initial_rtt(self.initial_rtt)
            .enable_segmentation_offload(true)
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(self.stream_window_bytes.into())
            .receive_window(self.connection_window_bytes.into())
            .send_window(self.connection_window_bytes.into())
            .datagram_receive_buffer_size(Some(self.datagram_buffer_bytes))
            .datagram_send_buffer_size(self.datagram_buffer_bytes);
        Arc::new(config)
    }

    /// For a socket.
    pub(super) fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        // What peers may send must be told to them; quinn's own default would keep paths at 1472.
        let largest = self.mtu_bytes.max(1472);
        config.max_udp_payload_size(largest).expect("validate() has bounded it");
        config
    }

    /// The server's part, over TLS `crypto`.
    pub(super) fn server(
        &self,
        crypto: rustls::ServerConfig,
    ) -> Result<quinn::ServerConfig, quinn::crypto::rustls::NoInitialCipherSuite> {
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(crypto)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(self.transport());
        // Attempts that wait to be looked at hold a packet or two each.
        config.max_incoming(self.max_handshakes * 2);
        config.incoming_buffer_size(16 << 10).incoming_buffer_size_total(4 << 20);
        // A member's address is where it was dialled: one that moves is dialled again.
        config.migration(false);
        Ok(config)
    }

    /// The dialer's part, over TLS `crypto`.
    pub(super) fn client(
        &self,
        crypto: rustls::ClientConfig,
    ) -> Result<quinn::ClientConfig, quinn::crypto::rustls::NoInitialCipherSuite> {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport());
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_possible_and_what_is_not_is_named() {
        assert_eq!(TransportOptions::default().validate(), Ok(()));
        let options = TransportOptions { mtu_bytes: 9000, ..TransportOptions::default() };
        assert!(options.validate().unwrap_err().to_string().contains("mtu_bytes"));
        let options = TransportOptions { keep_alive: Duration::from_secs(1), ..TransportOptions::default() };
        assert!(options.validate().unwrap_err().to_string().contains("third of `idle`"));
    }
}
