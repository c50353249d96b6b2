//! How a node becomes a member and how it is kept from it, over real QUIC on loopback; and identities on disk.

use std::time::Duration;

use stellate_runtime::clock::Clock;
use stellate_runtime::identity::{
    CaHash, CertificateAuthority, Credentials, IdentityFileError, IssuingStore, JoinRefusal, JoinToken,
    NodeKey, RevocationError, RevocationList, Revocations, Role,
};
use stellate_runtime::transport::{
    ConnectionClass, EndpointSetup, JoinError, Joined, ProtocolRange, Target, TransportOptions, join,
};

mod support;
use support::{Cluster, any_port, name, run};

const DAY: Duration = Duration::from_secs(86_400);

async fn try_join(
    cluster: &Cluster,
    address: std::net::SocketAddr,
    token: &JoinToken,
    text: &str,
) -> Result<Joined, JoinError> {
    join_with(cluster, address, token, text, NodeKey::generate().unwrap()).await
}

async fn join_with(
    cluster: &Cluster,
    address: std::net::SocketAddr,
    token: &JoinToken,
    text: &str,
    key: NodeKey,
) -> Result<Joined, JoinError> {
    let options = TransportOptions::default();
    join(&cluster.handle(), address, token, &name(text), key, &options, cluster.clock()).await
}

fn refusal(result: Result<Joined, JoinError>) -> JoinRefusal {
    match result {
        Err(JoinError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal: {other:?}"),
    }
}

#[test]
fn a_node_with_a_token_becomes_a_member_and_talks_to_others() {
    let cluster = Cluster::new();
    run(async {
        let (_server, address) = cluster.join_server(TransportOptions::default());
        let gone = cluster.node("gone");
        cluster.revoke(&gone);
        let token: JoinToken = cluster.token(DAY, 1).to_line().parse().unwrap();
        let key = NodeKey::generate().unwrap();
        let id = key.id();
        let joined = join_with(&cluster, address, &token, "new", key).await.unwrap();
        assert_eq!((joined.credentials.id(), joined.credentials.details().role), (id, Role::Node));
        assert_eq!(joined.credentials.ca_hash(), token.ca_hash());
        assert!(joined.revocations.contains(&gone.id()), "it knows from the start who was removed");
        assert_eq!(cluster.store.tokens().unwrap()[0].used_by(), [id]);

        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("identity");
        joined.credentials.save(&folder).unwrap();
        joined.revocations.save(&folder).unwrap();
        let credentials = Credentials::load(&folder).unwrap();
        let revocations = Revocations::load(&folder, credentials.ca()).unwrap();
        assert!(revocations.contains(&gone.id()));
        let setup = EndpointSetup {
            clock: cluster.clock(),
            ..EndpointSetup::new(any_port(), credentials.into(), revocations)
        };
        let (member, _accepted) = cluster.bind(setup);
        let (_other, _keep, there) = cluster.endpoint("other");
        let connection = member.dial(Target::seed(there), ConnectionClass::Control).await.unwrap();
        assert_eq!(connection.peer().name, name("other"));
    });
}

#[test]
fn a_token_that_is_over_used_up_called_back_or_unknown_is_refused_as_such() {
    let cluster = Cluster::new();
    run(async {
        let (_server, address) = cluster.join_server(TransportOptions::default());
        let once = cluster.token(2 * DAY, 1);
        let key = || NodeKey::load_or_create(&KEYS.with(|keys| keys.path().join("first"))).unwrap();
        join_with(&cluster, address, &once, "first", key()).await.unwrap();
        join_with(&cluster, address, &once, "first", key()).await.expect("the same node may come again");
        assert_eq!(refusal(try_join(&cluster, address, &once, "second").await), JoinRefusal::UsedUp);

        let recalled = cluster.token(DAY, 5);
        assert!(cluster.store.revoke_token(recalled.id()).unwrap());
        assert_eq!(refusal(try_join(&cluster, address, &recalled, "third").await), JoinRefusal::TokenRevoked);

        let (unknown, _) = JoinToken::create(cluster.desk.authority().hash(), cluster.clock.wall(), DAY, 1);
        assert_eq!(refusal(try_join(&cluster, address, &unknown, "fourth").await), JoinRefusal::UnknownToken);

        let short = cluster.token(DAY, 1);
        cluster.clock.advance(DAY);
        let error = try_join(&cluster, address, &short, "fifth").await.unwrap_err();
        assert!(matches!(error, JoinError::TokenExpired), "{error}");
        // A node whose clock is behind asks all the same.
        let behind = stellate_runtime::clock::ManualClock::new();
        behind.set_wall(cluster.clock.wall() - DAY / 2);
        let options = TransportOptions::default();
        let key = NodeKey::generate().unwrap();
        let (network, sixth) = (cluster.handle(), name("sixth"));
        let late = join(&network, address, &short, &sixth, key, &options, std::sync::Arc::new(behind)).await;
        assert_eq!(refusal(late), JoinRefusal::Expired);
    });
}

std::thread_local! {
    /// A folder for keys that live as long as the test.
    static KEYS: tempfile::TempDir = tempfile::tempdir().unwrap();
}

#[test]
fn a_forged_token_and_a_taken_name_and_a_removed_key_are_refused_as_such() {
    let cluster = Cluster::new();
    run(async {
        let (_server, address) = cluster.join_server(TransportOptions::default());
        let token = cluster.token(DAY, 5);
        // The right id with another secret: the line of one token with the id of the other, and a fitting checksum, is
        // made by a store that knows the id only.
        let (other, record) = JoinToken::create(token.ca_hash(), cluster.clock.wall(), DAY, 5);
        let forged = splice(&token, &other);
        assert_eq!(forged.id(), token.id());
        drop(record);
        assert_eq!(refusal(try_join(&cluster, address, &forged, "node").await), JoinRefusal::Forged);
        assert_eq!(cluster.store.tokens().unwrap()[0].uses_left(), 5);

        try_join(&cluster, address, &token, "node").await.unwrap();
        let taken = JoinRefusal::NameTaken { name: "node".to_owned() };
        assert_eq!(refusal(try_join(&cluster, address, &token, "node").await), taken);

        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("removed");
        let key = || NodeKey::load_or_create(&folder).unwrap();
        let joined = join_with(&cluster, address, &token, "removed", key()).await.unwrap();
        cluster.revoke(&joined.credentials);
        let refused = join_with(&cluster, address, &token, "removed", key()).await;
        assert_eq!(refusal(refused), JoinRefusal::NodeRevoked);
        assert_eq!(cluster.store.tokens().unwrap()[0].uses_left(), 3, "refusals cost nothing");
    });
}

/// A token with the id of `id` and the secret of `secret`.
fn splice(id: &JoinToken, secret: &JoinToken) -> JoinToken {
    let (id, secret) = (id.to_line(), secret.to_line());
    let start = "stellate1-".len();
    let digits = format!("{}{}", &id[start..start + 16], &secret[start + 16..secret.len() - 8]);
    let bytes: Vec<u8> =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    let sum = blake3::hash(&bytes).to_hex();
    format!("stellate1-{digits}{}", &sum[..8]).parse().unwrap()
}

#[test]
fn a_server_of_another_cluster_learns_nothing_of_the_token() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    run(async {
        let (_server, address) = other.join_server(TransportOptions::default());
        let token = cluster.token(DAY, 1);
        match try_join(&cluster, address, &token, "node").await {
            Err(JoinError::OtherCluster { pinned, found: Some(found), .. }) => {
                assert_eq!((pinned, found), (token.ca_hash(), other.desk.authority().hash()));
            }
            other => panic!("{other:?}"),
        }
        // Nor does a member's own socket, which asks for a certificate first.
        let (_member, _accepted, address) = cluster.endpoint("member");
        let error = try_join(&cluster, address, &token, "node").await.unwrap_err();
        assert!(
            matches!(
                error,
                JoinError::Failed { .. } | JoinError::BadServer { .. } | JoinError::OtherCluster { .. }
            ),
            "{error}"
        );
        assert_eq!(cluster.store.tokens().unwrap()[0].uses_left(), 1);
    });
}

#[test]
fn another_version_is_told_to_a_node_that_joins() {
    let cluster = Cluster::new();
    run(async {
        let protocol = ProtocolRange::only(3);
        let options = TransportOptions { protocol, ..TransportOptions::default() };
        let (_server, address) = cluster.join_server(options);
        let error = try_join(&cluster, address, &cluster.token(DAY, 1), "node").await.unwrap_err();
        let ours = ProtocolRange::SPOKEN;
        assert!(
            matches!(error, JoinError::VersionMismatch { ours: o, theirs, .. } if (o, theirs) == (ours, protocol)),
            "{error}"
        );
        assert_eq!(cluster.store.tokens().unwrap()[0].uses_left(), 1);
    });
}

#[test]
fn a_node_joins_a_cluster_that_speaks_the_version_before() {
    let cluster = Cluster::new();
    run(async {
        let options = TransportOptions { protocol: ProtocolRange::only(1), ..TransportOptions::default() };
        let (_server, address) = cluster.join_server(options);
        let joined = try_join(&cluster, address, &cluster.token(DAY, 1), "node").await.unwrap();
        assert_eq!(joined.credentials.details().name.to_string(), "node");
    });
}

#[test]
fn strangers_have_few_attempts_a_minute() {
    let cluster = Cluster::new();
    run(async {
        let options = TransportOptions { joins_per_minute_and_address: 3, ..TransportOptions::default() };
        let (_server, address) = cluster.join_server(options);
        let (guess, _) = JoinToken::create(cluster.desk.authority().hash(), cluster.clock.wall(), DAY, 1);
        for _ in 0..3 {
            assert_eq!(refusal(try_join(&cluster, address, &guess, "node").await), JoinRefusal::UnknownToken);
        }
        assert_eq!(refusal(try_join(&cluster, address, &guess, "node").await), JoinRefusal::TooMany);
        cluster.clock.advance(Duration::from_secs(60));
        assert_eq!(refusal(try_join(&cluster, address, &guess, "node").await), JoinRefusal::UnknownToken);
    });
}

#[test]
fn nobody_at_the_join_address_is_told_apart_from_a_refusal() {
    let cluster = Cluster::new();
    run(async {
        let nobody = std::net::UdpSocket::bind(any_port()).unwrap();
        let address = nobody.local_addr().unwrap();
        let error = try_join(&cluster, address, &cluster.token(DAY, 1), "node").await.unwrap_err();
        assert!(matches!(error, JoinError::Silent { .. }), "{error}");
    });
}

#[test]
fn a_ca_comes_back_from_its_folder_and_is_never_overwritten() {
    let cluster = Cluster::new();
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("ca");
    let authority = cluster.desk.authority();
    authority.save_new(&folder).unwrap();
    let loaded = CertificateAuthority::load(&folder).unwrap();
    assert_eq!(loaded.hash(), authority.hash());
    assert_eq!(loaded.hash().to_string().parse::<CaHash>(), Ok(authority.hash()));
    let credentials = loaded.issue_node(&name("node"), cluster.clock.wall()).unwrap();
    assert_eq!(credentials.ca_hash(), authority.hash());

    let other = CertificateAuthority::create(cluster.clock.wall()).unwrap();
    assert!(matches!(other.save_new(&folder), Err(IdentityFileError::Exists { .. })));
    std::fs::write(folder.join("ca.cert.der"), other.certificate()).unwrap();
    assert!(matches!(CertificateAuthority::load(&folder), Err(IdentityFileError::Corrupt { .. })));
    std::fs::write(folder.join("ca.key.der"), b"no key").unwrap();
    assert!(matches!(CertificateAuthority::load(&folder), Err(IdentityFileError::Corrupt { .. })));
}

#[test]
fn an_identity_comes_back_from_its_folder_and_a_damaged_one_is_named() {
    let cluster = Cluster::new();
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("identity");
    assert!(matches!(Credentials::load(&folder), Err(IdentityFileError::Missing { .. })));
    let credentials = cluster.node("node");
    credentials.save(&folder).unwrap();
    credentials.save(&folder).expect("the same identity is written again");
    let loaded = Credentials::load(&folder).unwrap();
    assert_eq!(loaded.details(), credentials.details());
    let other = cluster.node("other");
    assert!(matches!(other.save(&folder), Err(IdentityFileError::Exists { .. })), "a key is never replaced");
    std::fs::write(folder.join("node.cert.der"), other.certificate()).unwrap();
    let message = Credentials::load(&folder).unwrap_err().to_string();
    assert!(message.contains("node.cert.der") && message.contains("another key"), "{message}");
}

#[test]
fn a_revocation_list_is_believed_from_the_cas_hand_only_and_never_an_older_one() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let [one, two] = ["one", "two"].map(|text| cluster.node(text).id());
    let first = RevocationList::default().with(one);
    let second = first.with(two);
    let sign = |cluster: &Cluster, list| cluster.desk.authority().sign_revocations(list).unwrap();
    let revocations = &cluster.revocations;
    assert!(matches!(revocations.install(&sign(&other, &second)), Err(RevocationError::Forged)));
    assert!(revocations.install(&sign(&cluster, &second)).unwrap());
    assert!(!revocations.install(&sign(&cluster, &second)).unwrap(), "the same list");
    assert!(!revocations.install(&sign(&cluster, &first)).unwrap(), "an older one");
    assert!(revocations.contains(&one) && revocations.contains(&two));
    let conflicting = RevocationList { version: 2, ..RevocationList::default() };
    let error = revocations.install(&sign(&cluster, &conflicting)).unwrap_err();
    assert!(matches!(error, RevocationError::Conflict { version: 2 }));
}
