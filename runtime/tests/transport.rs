//! Connections between members over real QUIC on loopback: what passes, and each refusal told to both sides.

use std::sync::Arc;
use std::time::Duration;

use stellate_runtime::identity::{NodeKey, Revocations};
use stellate_runtime::transport::{
    CertificateFault, CloseCode, Closed, Connection, ConnectionClass, DatagramError, DialError, Endpoint,
    EndpointSetup, Expected, FrameError, FrameKind, FrameLimits, NetworkThread, ProtocolRange, StreamError,
    Target, TransportOptions,
};

mod support;
use support::{Cluster, any_port, name, run};

const KIND: FrameKind = FrameKind(100);

/// Answers every frame of every stream with itself, until the connection ends.
async fn echo(connection: Connection) {
    while let Ok((mut sender, mut receiver)) = connection.accept().await {
        tokio::spawn(async move {
            while let Ok(Some(frame)) = receiver.receive().await {
                let header: u64 = frame.header().unwrap();
                sender.send(frame.kind, &header, &[frame.payload.as_bytes()]).await.unwrap();
            }
        });
    }
}

#[test]
fn frames_go_to_a_peer_and_back_on_a_long_lived_stream() {
    let cluster = Cluster::new();
    run(async {
        let (server, mut accepted, address) = cluster.endpoint("server");
        let (client, _, _) = cluster.endpoint("client");
        let target = Target::node(server.credentials().id(), address);
        let connection = client.dial(target.clone(), ConnectionClass::Decode).await.unwrap();
        assert_eq!(connection.peer().name, name("server"));
        let taken = accepted.next().await.unwrap();
        assert_eq!((taken.peer().name.as_str(), taken.class()), ("client", ConnectionClass::Decode));
        cluster.handle().spawn(echo(taken));

        let (mut sender, mut receiver) = connection.open().await.unwrap();
        let values: Vec<f32> = (0..2048).map(|value| value as f32).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        assert_eq!(bytes.len(), 8192);
        for step in 0..20u64 {
            // In two parts, as an output and its log-sum-exp are.
            sender.send(KIND, &step, &[&bytes[..4096], &bytes[4096..]]).await.unwrap();
            let frame = receiver.expect().await.unwrap();
            assert_eq!(frame.expect::<u64>(KIND), Ok(step));
            assert_eq!(frame.payload.as_slice_of::<f32>().unwrap(), values);
            receiver.recycle(frame.payload);
        }
        sender.finish();
        assert!(receiver.receive().await.unwrap().is_none(), "the peer ends its half after ours");

        let again = client.dial(target, ConnectionClass::Decode).await.unwrap();
        assert_eq!(client.connections().len(), 1, "the live connection was used again");
        assert_eq!(again.remote_address(), address);
        assert!(server.connection(client.credentials().id(), ConnectionClass::Decode).is_some());
    });
}

#[test]
fn each_class_has_a_connection_of_its_own_and_datagrams_pass() {
    let cluster = Cluster::new();
    run(async {
        let (_server, mut accepted, address) = cluster.endpoint("server");
        let (client, _, _) = cluster.endpoint("client");
        for class in [ConnectionClass::Control, ConnectionClass::Decode, ConnectionClass::Bulk] {
            client.dial(Target::seed(address), class).await.unwrap();
            assert_eq!(accepted.next().await.unwrap().class(), class);
        }
        assert_eq!(client.connections().len(), 3);
        let [control, ..] = &client.connections()[..] else { panic!("there are three") };
        let (server_control, sent) = (_server.connections()[0].clone(), bytes::Bytes::from_static(b"gossip"));
        control.send_datagram(sent.clone()).unwrap();
        assert_eq!(server_control.receive_datagram().await.unwrap(), sent);
        let huge = control.send_datagram(vec![0; 60_000].into());
        assert!(
            matches!(huge, Err(DatagramError::TooLarge { bytes: 60_000, limit }) if limit >= 1000),
            "{huge:?}"
        );
    });
}

#[test]
fn a_stranger_of_another_cluster_is_refused_and_both_sides_know_why() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    run(async {
        let (_server, _accepted, address) = cluster.endpoint("server");
        // It believes its own cluster, and so does not believe the server …
        let (stranger, _, _) = other.endpoint("stranger");
        let error = stranger.dial(Target::seed(address), ConnectionClass::Control).await.unwrap_err();
        assert_eq!(error, DialError::PeerRefused { address, fault: CertificateFault::OtherCluster });
        assert!(!error.is_transient());
        // … and the server does not believe it, when it comes as a client that believes anyone.
        let error = raw_client(address, Some(&other.node("stranger"))).await;
        assert_eq!(error, Closed::RefusedByPeer(CertificateFault::OtherCluster));
    });
}

#[test]
fn a_client_without_a_certificate_is_refused_by_tls_itself() {
    let cluster = Cluster::new();
    run(async {
        let (_server, _accepted, address) = cluster.endpoint("server");
        assert_eq!(raw_client(address, None).await, Closed::RefusedByPeer(CertificateFault::Missing));
    });
}

#[test]
fn an_expired_certificate_is_refused() {
    let cluster = Cluster::new();
    run(async {
        let (client, _, _) = cluster.endpoint("client");
        cluster.clock.advance(Duration::from_secs(31 * 86_400));
        let (_server, _accepted, address) = cluster.endpoint("server");
        let error = client.dial(Target::seed(address), ConnectionClass::Control).await.unwrap_err();
        assert_eq!(error, DialError::RefusedByPeer { address, fault: CertificateFault::Expired });
    });
}

#[test]
fn an_administrator_can_open_the_admin_class_only_and_cannot_serve() {
    let cluster = Cluster::new();
    run(async {
        let (_server, mut accepted, address) = cluster.endpoint("server");
        let (admin, _) = cluster.bind(cluster.setup(cluster.admin("alice")));
        let first = admin.dial(Target::seed(address), ConnectionClass::Admin).await.unwrap();
        assert_eq!(accepted.next().await.unwrap().peer().name, name("alice"));
        for class in ConnectionClass::ALL.into_iter().filter(|class| *class != ConnectionClass::Admin) {
            let error = admin.dial(Target::seed(address), class).await.unwrap_err();
            assert_eq!(error, DialError::Rejected { address, code: CloseCode::NotAllowed }, "{class}");
        }
        // A second terminal of the same person takes nothing from the first.
        let (second, _) = cluster.bind(cluster.setup(admin.credentials()));
        second.dial(Target::seed(address), ConnectionClass::Admin).await.unwrap();
        accepted.next().await.unwrap();
        assert!(first.is_open());

        let posing = raw_server(&cluster.admin("mallory"));
        let (client, _, _) = cluster.endpoint("client");
        let address = posing.local_addr().unwrap();
        let error = client.dial(Target::seed(address), ConnectionClass::Control).await.unwrap_err();
        assert_eq!(error, DialError::PeerRefused { address, fault: CertificateFault::WrongRole });
    });
}

#[test]
fn revocation_closes_live_connections_and_refuses_new_ones() {
    let cluster = Cluster::new();
    run(async {
        let (server, mut accepted, address) = cluster.endpoint("server");
        // The removed node has not heard of its removal.
        let mut setup = cluster.setup(cluster.node("removed"));
        setup.revocations = Revocations::new(cluster.desk.authority().certificate()).unwrap();
        let (removed, _keep) = cluster.bind(setup);
        let (other, _, _) = cluster.endpoint("other");
        let theirs = removed.dial(Target::seed(address), ConnectionClass::Control).await.unwrap();
        let kept = other.dial(Target::seed(address), ConnectionClass::Control).await.unwrap();
        let ours = [accepted.next().await.unwrap(), accepted.next().await.unwrap()];

        cluster.revoke(&removed.credentials());
        assert_eq!(theirs.closed().await, Closed::ByPeer { code: CloseCode::Revoked });
        let of_removed =
            ours.iter().find(|connection| connection.peer().id == removed.credentials().id()).unwrap();
        assert_eq!(of_removed.closed().await, Closed::Here);
        let error = removed.dial(Target::seed(address), ConnectionClass::Control).await.unwrap_err();
        assert_eq!(error, DialError::RefusedByPeer { address, fault: CertificateFault::Revoked });
        // Nor is it dialled.
        let there = removed.local_address().unwrap();
        let error = server.dial(Target::seed(there), ConnectionClass::Control).await.unwrap_err();
        assert_eq!(error, DialError::PeerRefused { address: there, fault: CertificateFault::Revoked });
        assert!(kept.is_open());
    });
}

#[test]
fn another_version_is_told_to_both_sides() {
    let cluster = Cluster::new();
    run(async {
        let (server, _accepted, address) = cluster.endpoint("server");
        let mut setup = cluster.setup(cluster.node("newer"));
        setup.options.protocol = ProtocolRange { oldest: 3, newest: 4 };
        let (newer, _keep) = cluster.bind(setup);
        let error = newer.dial(Target::seed(address), ConnectionClass::Control).await.unwrap_err();
        let (ours, theirs) = (ProtocolRange { oldest: 3, newest: 4 }, ProtocolRange::SPOKEN);
        assert_eq!(error, DialError::VersionMismatch { address, ours, theirs });
        assert!(!error.is_transient());
        let words = error.to_string();
        assert!(words.contains("speaks wire version 1 to 2 and this node 3 to 4"), "{words}");
        assert!(words.contains("one version at a time"), "{words}");
        let [known] = &server.incompatible_peers()[..] else { panic!("one peer is known") };
        assert_eq!((known.id, known.theirs), (newer.credentials().id(), ProtocolRange::only(4)));
        let [known] = &newer.incompatible_peers()[..] else { panic!("one peer is known") };
        assert_eq!((known.id, known.theirs), (server.credentials().id(), theirs));
        assert!(server.connections().is_empty() && newer.connections().is_empty());
    });
}

#[test]
fn neighbouring_versions_work_together_in_the_newest_that_both_speak_whoever_dials() {
    let cluster = Cluster::new();
    let held = ProtocolRange::only(1);
    run(async {
        for (dialer, acceptor, spoken) in [
            (held, ProtocolRange::SPOKEN, 1),
            (ProtocolRange::SPOKEN, held, 1),
            (ProtocolRange::SPOKEN, ProtocolRange::SPOKEN, 2),
            (ProtocolRange { oldest: 2, newest: 3 }, ProtocolRange::SPOKEN, 2),
        ] {
            let mut setup = cluster.setup(cluster.node("acceptor"));
            setup.options.protocol = acceptor;
            let (server, mut accepted) = cluster.bind(setup);
            let address = server.local_address().unwrap();
            let mut setup = cluster.setup(cluster.node("dialer"));
            setup.options.protocol = dialer;
            let (client, _keep) = cluster.bind(setup);
            let target = Target::node(server.credentials().id(), address);
            for class in [ConnectionClass::Control, ConnectionClass::Decode] {
                let ours = client.dial(target.clone(), class).await.unwrap();
                let theirs = accepted.next().await.unwrap();
                assert_eq!((ours.version(), theirs.version()), (spoken, spoken), "{dialer} dials {acceptor}");
                let (mut sender, _receiver) = ours.open().await.unwrap();
                sender.send(FrameKind::FIRST_FREE, &7_u32, &[]).await.unwrap();
                let (_sender, mut receiver) = theirs.accept().await.unwrap();
                let frame = receiver.expect().await.unwrap();
                assert_eq!(frame.expect(FrameKind::FIRST_FREE), Ok(7_u32));
            }
            // Who has come back with a version in common is a stranger no more.
            assert!(server.incompatible_peers().is_empty() && client.incompatible_peers().is_empty());
        }
    });
}

#[test]
fn another_node_than_the_expected_one_gets_nothing() {
    let cluster = Cluster::new();
    run(async {
        let (server, _accepted, address) = cluster.endpoint("server");
        let (client, _, own_address) = cluster.endpoint("client");
        let id = NodeKey::generate().unwrap().id();
        for expected in [Expected::Id(id), Expected::Name(name("elsewhere"))] {
            let error =
                client.dial(Target { address, expected }, ConnectionClass::Control).await.unwrap_err();
            let (found, found_name) = (server.credentials().id(), name("server"));
            assert_eq!(error, DialError::UnexpectedPeer { address, found, found_name });
        }
        let error = client.dial(Target::seed(own_address), ConnectionClass::Control).await.unwrap_err();
        assert_eq!(error, DialError::Ourselves { address: own_address });
        let expected = Expected::Name(name("server"));
        client.dial(Target { address, expected }, ConnectionClass::Control).await.unwrap();
    });
}

#[test]
fn a_frozen_peer_is_found_by_its_silence() {
    let cluster = Cluster::new();
    run(async {
        // On a thread of its own, which then stands still as a stopped process does.
        let frozen = NetworkThread::start("frozen").unwrap();
        let (server, mut accepted) =
            Endpoint::bind(&frozen.handle(), cluster.setup(cluster.node("server"))).unwrap();
        let (client, _, _) = cluster.endpoint("client");
        let target = Target::seed(server.local_address().unwrap());
        let connection = client.dial(target, ConnectionClass::Control).await.unwrap();
        accepted.next().await.unwrap();
        let (thaw, thawed) = std::sync::mpsc::channel::<()>();
        frozen.handle().spawn(async move { thawed.recv() });
        assert_eq!(connection.closed().await, Closed::TimedOut);
        assert!(client.connection(server.credentials().id(), ConnectionClass::Control).is_none());
        thaw.send(()).unwrap();
    });
}

#[test]
fn a_peer_that_is_not_there_yet_is_silent_and_can_be_dialled_later() {
    let cluster = Cluster::new();
    run(async {
        let setup = cluster.setup(cluster.node("late"));
        let (placeholder, _) = cluster.bind(EndpointSetup { address: any_port(), ..setup.clone() });
        let address = placeholder.local_address().unwrap();
        placeholder.close().await;
        let mut client_setup = cluster.setup(cluster.node("client"));
        client_setup.options.idle = Duration::from_millis(150);
        client_setup.options.keep_alive = Duration::from_millis(50);
        let (client, _keep) = cluster.bind(client_setup);
        let target = Target::seed(address);
        let error = client.dial(target.clone(), ConnectionClass::Control).await.unwrap_err();
        assert_eq!(error, DialError::Silent { address });
        assert!(error.is_transient());
        let (late, _accepted) = cluster.bind(EndpointSetup { address, ..setup });
        let connection = client.dial(target, ConnectionClass::Control).await.unwrap();
        assert_eq!(connection.peer().id, late.credentials().id());
    });
}

#[test]
fn two_nodes_that_dial_each_other_end_with_the_same_connection() {
    let cluster = Cluster::new();
    run(async {
        for _ in 0..10 {
            let (one, _a, at_one) = cluster.endpoint("one");
            let (two, _b, at_two) = cluster.endpoint("two");
            let ids = (one.credentials().id(), two.credentials().id());
            let dials = futures(
                one.dial(Target::seed(at_two), ConnectionClass::Control),
                two.dial(Target::seed(at_one), ConnectionClass::Control),
            );
            let _ = dials.await;
            // Both ends keep the connection that the lower id has dialled, or the only one.
            loop {
                let ends = (
                    one.connection(ids.1, ConnectionClass::Control),
                    two.connection(ids.0, ConnectionClass::Control),
                );
                if let (Some(from_one), Some(from_two)) = ends
                    && from_one.is_dialled() != from_two.is_dialled()
                {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    });
}

#[test]
fn a_restarted_peer_takes_the_place_of_its_earlier_life_and_never_the_other_way_round() {
    let cluster = Cluster::new();
    run(async {
        let (_server, mut accepted, address) = cluster.endpoint("server");
        let setup = cluster.setup(cluster.node("client"));
        let (old, _keep) = cluster.bind(setup.clone());
        let first = old.dial(Target::seed(address), ConnectionClass::Control).await.unwrap();
        accepted.next().await.unwrap();
        let (new, _keep_new) = cluster.bind(EndpointSetup { incarnation: 2, ..setup });
        new.dial(Target::seed(address), ConnectionClass::Control).await.unwrap();
        assert_eq!(first.closed().await, Closed::ByPeer { code: CloseCode::Superseded });
        let error = old.dial(Target::seed(address), ConnectionClass::Control).await.unwrap_err();
        assert_eq!(error, DialError::Rejected { address, code: CloseCode::Stale });
    });
}

#[test]
fn frames_beyond_the_limits_are_refused_on_both_ends() {
    let cluster = Cluster::new();
    run(async {
        let (_server, mut accepted, address) = cluster.endpoint("server");
        let mut setup = cluster.setup(cluster.node("client"));
        setup.options.frames = FrameLimits { payload_bytes: 1 << 30, ..FrameLimits::default() };
        let (client, _keep) = cluster.bind(setup);
        let connection = client.dial(Target::seed(address), ConnectionClass::Bulk).await.unwrap();
        let taken = accepted.next().await.unwrap();
        let (mut sender, _receiver) = connection.open().await.unwrap();
        let payload = bytes::Bytes::from(vec![0u8; (64 << 20) + 1]);
        let sending = cluster.handle().spawn(async move {
            let _ = sender.send_bytes(KIND, &0u64, payload).await;
            sender
        });
        let (_, mut receiver) = taken.accept().await.unwrap();
        let error = receiver.receive().await.unwrap_err();
        assert!(matches!(error, StreamError::Frame(FrameError::PayloadTooLong { .. })), "{error}");
        assert!(receiver.receive().await.is_err(), "nothing more is read from it");
        receiver.stop(CloseCode::ProtocolViolation);
        let mut sender = sending.await.unwrap();
        let error = sender.send(KIND, &0u64, &[]).await.unwrap_err();
        assert!(matches!(error, StreamError::Reset { code: 5 } | StreamError::Finished), "{error}");
        assert!(connection.is_open(), "other streams of the connection go on");
    });
}

#[test]
fn a_node_renews_its_certificate_and_learns_of_removals_over_its_own_connection() {
    let cluster = Cluster::new();
    run(async {
        let mut setup = cluster.setup(cluster.node("issuer"));
        setup.desk = Some(cluster.desk.clone());
        let (issuer, _accepted) = cluster.bind(setup);
        let target = Target::seed(issuer.local_address().unwrap());
        let mut setup = cluster.setup(cluster.node("node"));
        setup.revocations = Revocations::new(cluster.desk.authority().certificate()).unwrap();
        let (node, _keep, other) = {
            let (node, keep) = cluster.bind(setup);
            (node, keep, cluster.node("other"))
        };
        cluster.revoke(&other);
        let before = node.credentials();
        assert!(!before.details().is_due_for_renewal(cluster.clock_wall()));
        cluster.clock.advance(Duration::from_secs(21 * 86_400));
        assert!(before.details().is_due_for_renewal(cluster.clock_wall()));
        let renewed = node.renew(target.clone()).await.unwrap();
        assert_eq!(renewed.id(), before.id());
        assert!(renewed.details().not_after > before.details().not_after);
        assert!(node.revocations().contains(&other.id()));
        assert_eq!(node.credentials().details(), renewed.details());

        // Only the holder of the CA has a desk.
        let (plain, _accepted, address) = cluster.endpoint("plain");
        let error = node.renew(Target::seed(address)).await.unwrap_err();
        assert!(error.to_string().contains("does not offer this"), "{error}");
        drop(plain);
        // The old certificate is over by now; the new one serves.
        cluster.clock.advance(Duration::from_secs(15 * 86_400));
        let (late, _accepted, address) = cluster.endpoint("late");
        node.dial(Target::node(late.credentials().id(), address), ConnectionClass::Control).await.unwrap();
    });
}

#[test]
fn connections_beyond_the_bound_are_refused_as_busy() {
    let cluster = Cluster::new();
    run(async {
        let mut setup = cluster.setup(cluster.node("server"));
        setup.options = TransportOptions { max_connections: 1, ..TransportOptions::default() };
        let (server, _accepted) = cluster.bind(setup);
        let address = server.local_address().unwrap();
        let (one, _, _) = cluster.endpoint("one");
        let (two, _, _) = cluster.endpoint("two");
        one.dial(Target::seed(address), ConnectionClass::Control).await.unwrap();
        let error = two.dial(Target::seed(address), ConnectionClass::Control).await.unwrap_err();
        assert_eq!(error, DialError::Rejected { address, code: CloseCode::Busy });
        assert!(error.is_transient());
    });
}

/// Both results, run at the same time.
async fn futures<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    tokio::join!(a, b)
}

/// How a connection ends that a bare QUIC client opens, which believes any server.
async fn raw_client(
    address: std::net::SocketAddr,
    credentials: Option<&stellate_runtime::identity::Credentials>,
) -> Closed {
    let builder =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(support::anyone::BelieveAnyone));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(credentials) => builder
            .with_client_auth_cert(
                vec![credentials.certificate().clone()],
                support::anyone::key_of(credentials),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![b"stellate/1".to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let socket = quinn::Endpoint::client(any_port()).unwrap();
    let connecting = socket.connect_with(quinn::ClientConfig::new(Arc::new(config)), address, "any").unwrap();
    match connecting.await {
        Ok(connection) => connection.closed().await.into(),
        Err(error) => error.into(),
    }
}

/// A bare QUIC server that shows these credentials.
fn raw_server(credentials: &stellate_runtime::identity::Credentials) -> quinn::Endpoint {
    let mut config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![credentials.certificate().clone()], support::anyone::key_of(credentials))
            .unwrap();
    config.alpn_protocols = vec![b"stellate/1".to_vec()];
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
    let server =
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(config)), any_port()).unwrap();
    let accepting = server.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let _ = incoming.await;
        }
    });
    server
}
