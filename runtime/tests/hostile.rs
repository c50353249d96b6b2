//! Hostile peers over real QUIC on loopback: strangers on every class of connection, bytes that are no frames from members and
//! from nobody, and thousands of handshakes that are begun and never ended. Nothing crashes, others go on, memory stays bounded.

#![allow(clippy::print_stdout, reason = "seeds and figures are told")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stellate_runtime::identity::{Credentials, IssuingStore as _};
use stellate_runtime::transport::{
    CertificateFault, CloseCode, Closed, ConnectionClass, FrameKind, FrameLimits, JoinError, Target,
    TransportOptions, WIRE_VERSION, encode_head, join,
};

mod support;
use support::anyone::{BelieveAnyone, key_of};
use support::{Cluster, any_port, name, run};

const HELLO: FrameKind = FrameKind(1);
const JOIN: FrameKind = FrameKind(3);

/// A frame as bytes.
fn frame(kind: FrameKind, header: &(u32, u64), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_head(WIRE_VERSION, kind, header, payload.len(), &FrameLimits::default(), &mut bytes).unwrap();
    bytes.extend_from_slice(payload);
    bytes
}

/// A bare QUIC client that believes any server and shows `credentials`.
fn raw_config(credentials: Option<&Credentials>, alpn: &str) -> quinn::ClientConfig {
    let builder =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BelieveAnyone));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(shown) => {
            builder.with_client_auth_cert(vec![shown.certificate().clone()], key_of(shown)).unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    quinn::ClientConfig::new(Arc::new(config))
}

/// Connects, sends `bytes` on a stream if it comes so far, and tells how it ends.
async fn send_raw(config: quinn::ClientConfig, address: SocketAddr, bytes: &[u8]) -> Closed {
    let socket = quinn::Endpoint::client(any_port()).unwrap();
    let sent = async {
        let connection = socket.connect_with(config, address, "any").unwrap().await?;
        if let Ok((mut send, _receive)) = connection.open_bi().await {
            let _ = send.write_all(bytes).await;
            let _ = send.finish();
        }
        Err::<(), _>(connection.closed().await)
    };
    sent.await.unwrap_err().into()
}

#[test]
fn no_class_of_connection_is_open_to_a_stranger_to_nobody_or_to_the_removed() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    run(async {
        let (server, _accepted, address) = cluster.endpoint("server");
        let (stranger, removed) = (other.node("stranger"), cluster.node("removed"));
        cluster.revoke(&removed);
        for (tag, class) in ConnectionClass::ALL.into_iter().enumerate() {
            let hello = frame(HELLO, &(tag as u32, 1), &[]);
            for (shown, fault) in [
                (Some(&*stranger), CertificateFault::OtherCluster),
                (None, CertificateFault::Missing),
                (Some(&*removed), CertificateFault::Revoked),
            ] {
                let closed = send_raw(raw_config(shown, "stellate/1"), address, &hello).await;
                assert_eq!(closed, Closed::RefusedByPeer(fault), "{class}");
            }
        }
        assert!(server.connections().is_empty());
    });
}

#[test]
fn a_member_whose_first_frame_is_oversized_cut_short_or_of_another_kind_is_sent_away() {
    let cluster = Cluster::new();
    run(async {
        let (server, mut accepted, address) = cluster.endpoint("server");
        let member = cluster.node("member");
        let hello = frame(HELLO, &(1, 1), &[]);
        let mut oversized = hello.clone();
        oversized[8..12].copy_from_slice(&1024_u32.to_le_bytes());
        let mut with_payload = hello.clone();
        with_payload[16..24].copy_from_slice(&1_u64.to_le_bytes());
        let other_class = frame(HELLO, &(99, 1), &[]);
        let cases = [
            oversized,
            with_payload,
            hello[..hello.len() - 3].to_vec(),
            frame(FrameKind(2), &(1, 1), &[]),
            other_class,
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            Vec::new(),
        ];
        for (case, bytes) in cases.iter().enumerate() {
            let closed = send_raw(raw_config(Some(&member), "stellate/1"), address, bytes).await;
            assert_eq!(closed, Closed::ByPeer { code: CloseCode::ProtocolViolation }, "case {case}");
        }
        assert!(server.connections().is_empty());
        let (honest, _, _) = cluster.endpoint("honest");
        honest.dial(Target::seed(address), ConnectionClass::Control).await.unwrap();
        assert_eq!(accepted.next().await.unwrap().peer().name, name("honest"));
    });
}

#[test]
fn hello_may_be_said_once_and_said_again_it_is_a_stream_like_any_other() {
    let cluster = Cluster::new();
    run(async {
        let (server, mut accepted, address) = cluster.endpoint("server");
        let (client, _, _) = cluster.endpoint("client");
        let connection = client.dial(Target::seed(address), ConnectionClass::Decode).await.unwrap();
        let taken = accepted.next().await.unwrap();
        // Replayed, as another class: the connection stays what it was.
        let (mut sender, _receiver) = connection.open().await.unwrap();
        sender.send(HELLO, &(0_u32, 99_u64), &[]).await.unwrap();
        let (_, mut receiver) = taken.accept().await.unwrap();
        assert_eq!(receiver.expect().await.unwrap().kind, HELLO);
        assert_eq!((taken.class(), taken.peer().incarnation), (ConnectionClass::Decode, 1));
        assert_eq!(server.connections().len(), 1);
    });
}

#[test]
fn garbage_at_the_join_address_is_refused_and_a_node_with_a_token_still_joins() {
    let seed = 0x5717_e11a_7e00_0006;
    println!("seed {seed:#x}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let cluster = Cluster::new();
    run(async {
        let options = TransportOptions {
            joins_per_minute_and_address: 1000,
            joins_per_minute: 1000,
            ..TransportOptions::default()
        };
        let (_server, address) = cluster.join_server(options.clone());
        let config = raw_config(None, "stellate-join/1");
        let honest = frame(JOIN, &(1, 1), &[]);
        for case in 0..40 {
            let bytes = match case % 4 {
                0 => (0..rng.random_range(1..200)).map(|_| rng.random()).collect(),
                // A header that is none, a payload where there is none, a length beyond the bound.
                1 => honest.clone(),
                2 => frame(JOIN, &(1, 1), &[1, 2, 3]),
                _ => {
                    let mut long = honest.clone();
                    long[8..12].copy_from_slice(&rng.random_range(16 * 1024 + 1..u32::MAX).to_le_bytes());
                    long
                }
            };
            let closed = send_raw(config.clone(), address, &bytes).await;
            assert_eq!(closed, Closed::ByPeer { code: CloseCode::ProtocolViolation }, "case {case}");
        }
        let token = cluster.token(Duration::from_secs(3600), 1);
        let key = stellate_runtime::identity::NodeKey::generate().unwrap();
        let joined =
            join(&cluster.handle(), address, &token, &name("node"), key, &options, cluster.clock()).await;
        assert!(joined.is_ok(), "{:?}", joined.err());
        assert_eq!(cluster.store.tokens().unwrap()[0].uses_left(), 0);
    });
}

/// First packets of handshakes, as a client of the cluster's protocol sends them to an address where nobody answers.
async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    const AT_ONCE: usize = 250;
    let config = raw_config(None, "stellate/1");
    let hole = UdpSocket::bind(any_port()).unwrap();
    hole.set_nonblocking(true).unwrap();
    let (hole, mut packets) = (tokio::net::UdpSocket::from_std(hole).unwrap(), Vec::new());
    let address = hole.local_addr().unwrap();
    let mut buffer = [0; 2048];
    while packets.len() < count {
        let socket = quinn::Endpoint::client(any_port()).unwrap();
        let began: Vec<_> =
            (0..AT_ONCE).map(|_| socket.connect_with(config.clone(), address, "any").unwrap()).collect();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < AT_ONCE {
            let length = hole.recv(&mut buffer).await.unwrap();
            // The connection's own id stands at the head; a packet that was repeated has the same.
            if length >= 1200 && seen.insert(buffer[6..14].to_vec()) {
                packets.push(buffer[..length].to_vec());
            }
        }
        drop(began);
    }
    packets
}

/// Bytes of memory that the process holds, where the system tells.
fn resident_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[test]
fn five_thousand_handshakes_that_are_never_ended_take_little_memory_and_keep_no_member_out() {
    const HALF_OPEN: usize = 5000;
    /// What is set aside for handshakes under way and for packets that wait is far below; the rest is the allocator's.
    const MOST_GROWTH_BYTES: usize = 64 << 20;
    let cluster = Cluster::new();
    run(async {
        let (server, mut accepted, address) = cluster.endpoint("server");
        let packets = Arc::new(first_packets(HALF_OPEN).await);
        let before = resident_bytes();
        let (enough, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(tokio::sync::Notify::new()));
        let flood = {
            let (packets, enough, sent) = (packets.clone(), enough.clone(), sent.clone());
            std::thread::spawn(move || {
                let mut rounds = 0;
                // Each from a port of its own, for as long as the member tries; at least all of them once.
                while rounds == 0 || !enough.load(Ordering::SeqCst) {
                    for packet in packets.iter() {
                        let socket = UdpSocket::bind(any_port()).unwrap();
                        // What does not fit into the link is lost, as anywhere.
                        let _ = socket.send_to(packet, address);
                    }
                    rounds += 1;
                    sent.notify_one();
                }
                rounds
            })
        };
        sent.notified().await;
        let (member, _, _) = cluster.endpoint("member");
        let connection = loop {
            match member.dial(Target::seed(address), ConnectionClass::Control).await {
                Ok(connection) => break connection,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        };
        enough.store(true, Ordering::SeqCst);
        assert_eq!(accepted.next().await.unwrap().peer().name, name("member"));
        assert_eq!(server.connections().len(), 1, "none of the others is a connection");
        let growth = resident_bytes().zip(before).map(|(now, before)| now.saturating_sub(before));
        let rounds = tokio::task::spawn_blocking(move || flood.join().unwrap()).await.unwrap();
        println!("{} first packets, resident memory grew by {growth:?} bytes", rounds * HALF_OPEN);
        assert!(growth.is_none_or(|growth| growth < MOST_GROWTH_BYTES), "{growth:?}");
        assert!(connection.is_open());
    });
}

#[test]
fn a_join_address_under_first_packets_still_lets_a_node_in() {
    let cluster = Cluster::new();
    run(async {
        let options = TransportOptions::default();
        let (_server, address) = cluster.join_server(options.clone());
        for packet in first_packets(500).await {
            let socket = UdpSocket::bind(any_port()).unwrap();
            let _ = socket.send_to(&packet, address);
        }
        let token = cluster.token(Duration::from_secs(3600), 1);
        loop {
            let key = stellate_runtime::identity::NodeKey::generate().unwrap();
            let (network, node) = (cluster.handle(), name("node"));
            match join(&network, address, &token, &node, key, &options, cluster.clock()).await {
                Ok(_) => break,
                Err(JoinError::Silent { .. } | JoinError::Refused(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    });
}

/// Passes on what a client sends, and of what the server answers nothing but retries: the client proves its address and then
/// seems to fall silent. Tells `answered` once the server has given it anything else.
async fn hush(client: tokio::net::UdpSocket, server: SocketAddr, answered: tokio::sync::mpsc::Sender<()>) {
    let out = tokio::net::UdpSocket::bind(any_port()).await.unwrap();
    out.connect(server).await.unwrap();
    let (mut up, mut down) = ([0; 2048], [0; 2048]);
    let mut from = None;
    loop {
        tokio::select! {
            got = client.recv_from(&mut up) => {
                let Ok((bytes, address)) = got else { return };
                from = Some(address);
                let _ = out.send(&up[..bytes]).await;
            }
            got = out.recv(&mut down) => {
                let Ok(bytes) = got else { return };
                // RFC 9000, section 17.2.5: a long header of type 3.
                match from {
                    Some(address) if down[0] & 0xf0 == 0xf0 => _ = client.send_to(&down[..bytes], address).await,
                    _ => _ = answered.try_send(()),
                }
            }
        }
    }
}

#[test]
fn an_address_that_proves_itself_and_falls_silent_again_and_again_keeps_no_other_out() {
    const SILENT: usize = 48;
    let cluster = Cluster::new();
    run(async {
        let slow = TransportOptions {
            max_handshakes: 32,
            idle: Duration::from_secs(25),
            handshake_timeout: Duration::from_secs(25),
            ..TransportOptions::default()
        };
        let mut setup = cluster.setup(cluster.node("server"));
        setup.options = slow.clone();
        let (server, _accepted) = cluster.bind(setup);
        let address = server.local_address().unwrap();
        let mut setup = cluster.setup(cluster.node("silent"));
        setup.options = slow.clone();
        let (silent, _) = cluster.bind(setup);
        let silent = Arc::new(silent);
        for _ in 0..SILENT {
            let relay = tokio::net::UdpSocket::bind(any_port()).await.unwrap();
            let target = Target::seed(relay.local_addr().unwrap());
            let (sender, mut answered) = tokio::sync::mpsc::channel(1);
            tokio::spawn(hush(relay, address, sender));
            let dialer = silent.clone();
            tokio::spawn(async move { dialer.dial(target, ConnectionClass::Control).await.map(drop) });
            answered.recv().await.expect("it was let in, or refused");
        }
        let mut setup = cluster.setup(cluster.node("member"));
        setup.address = ([127, 0, 0, 2], 0).into();
        setup.options = slow;
        let (member, _) = cluster.bind(setup);
        member.dial(Target::seed(address), ConnectionClass::Control).await.expect("there is room for others");
    });
}
