//! Nodes join with tokens and are removed, over restarts of the node that holds the CA.

use super::*;
use crate::clock::ManualClock;
use crate::identity::{JoinRefusal, JoinToken, NodeId, NodeKey};
use crate::membership::RefusalReason;
use crate::transport::{
    CloseCode, ConnectionClass, JoinError, Joined, NetworkThread, TransportOptions, join,
};

async fn try_join(issuer: &Substrate, token: &JoinToken, name: &str) -> Result<Joined, JoinError> {
    let network = NetworkThread::start("joining").unwrap();
    let (address, name) = (issuer.join_address().unwrap(), name.parse().unwrap());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let key = NodeKey::generate().unwrap();
    join(&network.handle(), address, token, &name, key, &TransportOptions::default(), clock).await
}

#[test]
fn tokens_names_and_removals_outlive_the_issuing_node() {
    run(async {
        let cluster = Cluster::new();
        let (credentials, store) = (cluster.credentials("a"), cluster.store("a"));
        let a = cluster.issuer(&credentials, &store).await;
        let token = a.issue_token(Duration::from_secs(3600), 2).await.unwrap();
        let joined = try_join(&a, &token, "b").await.unwrap();
        assert_eq!(a.tokens().await.unwrap()[0].used_by(), [joined.credentials.id()]);
        let (b_credentials, b_store) = (Arc::new(joined.credentials), cluster.store("b"));
        let mut setup = cluster.setup(&b_credentials, &b_store);
        setup.discovery.seeds = joined.nodes.iter().map(ToString::to_string).collect();
        let (b, _b) = Substrate::start(setup).await.unwrap();
        met(&a, &b).await;
        assert!(b.roster().member(a.id()).unwrap().record.roles.issuer);
        a.stop().await;

        let a = cluster.issuer(&credentials, &store).await;
        met(&a, &b).await;
        for (name, expected) in [("a", "a"), ("b", "b")] {
            let error = try_join(&a, &token, name).await.unwrap_err();
            let taken = JoinRefusal::NameTaken { name: expected.to_owned() };
            assert!(matches!(&error, JoinError::Refused(refusal) if *refusal == taken), "{error}");
        }
        try_join(&a, &token, "c").await.unwrap();
        let error = try_join(&a, &token, "d").await.unwrap_err();
        assert!(matches!(error, JoinError::Refused(JoinRefusal::UsedUp)), "{error}");

        let id = b.id();
        a.remove_node(id).await.unwrap();
        until(&a, |roster| roster.member(id).is_none()).await;
        a.stop().await;
        let a = cluster.issuer(&credentials, &store).await;
        assert!(a.endpoint().revocations().contains(&id));
        let token = a.issue_token(Duration::from_secs(3600), 1).await.unwrap();
        try_join(&a, &token, "b").await.expect("the name of a removed node is free again");
        assert!(a.revoke_token(token.id()).await.unwrap());
        let error = try_join(&a, &token, "e").await.unwrap_err();
        assert!(matches!(error, JoinError::Refused(JoinRefusal::TokenRevoked)), "{error}");
    });
}

#[test]
fn a_removal_reaches_all_nodes_and_the_removed_one_does_not_start_again() {
    run(async {
        let cluster = Cluster::new();
        let (credentials, store) = (cluster.credentials("a"), cluster.store("a"));
        let a = cluster.issuer(&credentials, &store).await;
        let (b, _b) = cluster.node("b", &[&a]).await;
        let (c_credentials, c_store) = (cluster.credentials("c"), cluster.store("c"));
        let mut setup = cluster.setup(&c_credentials, &c_store);
        seek(&mut setup, &[&a]);
        let (c, _c) = Substrate::start(setup).await.unwrap();
        for (one, other) in [(&a, &b), (&b, &c), (&c, &a)] {
            met(one, other).await;
        }
        let id = c.id();
        assert!(matches!(b.remove_node(id).await, Err(ManageError::NotIssuer)));
        assert!(matches!(a.remove_node(a.id()).await, Err(ManageError::Ourselves)));
        a.remove_node(id).await.unwrap();
        until(&b, |roster| roster.member(id).is_none()).await;
        let mut changes = b.endpoint().revocations().changes();
        while !b.endpoint().revocations().contains(&id) {
            assert!(changes.changed().await);
        }
        for open in b.endpoint().connections().into_iter().filter(|open| open.peer().id == id) {
            open.closed().await;
        }
        let is_removal = |(_, reason): &(_, RefusalReason)| *reason == RefusalReason::Removed;
        until(&c, |roster| roster.refusals.iter().any(is_removal)).await;
        c.stop().await;
        let mut setup = cluster.setup(&c_credentials, &c_store);
        setup.revocations = b.endpoint().revocations().clone();
        assert!(matches!(Substrate::start(setup).await, Err(StartError::Removed)));
    });
}

#[test]
fn removals_at_the_same_time_are_all_in_force_and_outlive_the_issuing_node() {
    run(async {
        let cluster = Cluster::new();
        let (credentials, store) = (cluster.credentials("a"), cluster.store("a"));
        let a = cluster.issuer(&credentials, &store).await;
        let ids: Vec<_> = (1..=6).map(|byte| NodeId::from_bytes([byte; 32])).collect();
        let removals = ids.iter().map(|id| a.remove_node(*id));
        for removed in futures_util::future::join_all(removals).await {
            removed.unwrap();
        }
        let all = ids.iter().copied().collect();
        assert_eq!(a.endpoint().revocations().list().ids, all);
        a.stop().await;
        let a = cluster.issuer(&credentials, &store).await;
        assert_eq!(a.endpoint().revocations().list().ids, all);
    });
}

#[test]
fn nodes_join_by_the_renewed_certificate_once_the_first_one_is_over() {
    const DAY: Duration = Duration::from_secs(86_400);
    run(async {
        let cluster = Cluster::new();
        let (credentials, store) = (cluster.credentials("a"), cluster.store("a"));
        let clock = ManualClock::new();
        clock.set_wall(SystemClock::new().wall() + 21 * DAY);
        let mut setup = cluster.setup(&credentials, &store);
        setup.authority = Some(cluster.authority());
        setup.join_listen = Some(loopback());
        setup.clock = Arc::new(clock.clone());
        let (a, _a) = Substrate::start(setup).await.unwrap();
        let not_after = credentials.details().not_after;
        while a.endpoint().credentials().details().not_after == not_after {
            tokio::task::yield_now().await;
        }
        clock.advance(15 * DAY);
        let token = a.issue_token(Duration::from_secs(3600), 1).await.unwrap();
        let network = NetworkThread::start("joining").unwrap();
        let (address, name, key) =
            (a.join_address().unwrap(), "b".parse().unwrap(), NodeKey::generate().unwrap());
        let options = TransportOptions::default();
        join(&network.handle(), address, &token, &name, key, &options, Arc::new(clock)).await.unwrap();
    });
}

#[test]
fn what_a_member_says_of_removals_without_proof_ends_no_node_and_removes_none() {
    run(async {
        let cluster = Cluster::new();
        let (credentials, store) = (cluster.credentials("a"), cluster.store("a"));
        let a = cluster.issuer(&credentials, &store).await;
        let (liar, _liar) = cluster.node("liar", &[&a]).await;
        let (c, _c) = cluster.node("c", &[&a]).await;
        for (one, other) in [(&a, &liar), (&liar, &c), (&c, &a)] {
            met(one, other).await;
        }
        let control = |node: &Substrate, id| node.endpoint().connection(id, ConnectionClass::Control);
        let lies = [
            // News of one removal, and a refusal for the same reason.
            [&[1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..], a.id().as_bytes()].concat(),
            vec![1, 5, 0, 0, 0, 0],
        ];
        let connection = control(&liar, c.id()).unwrap();
        let before = control(&c, liar.id()).unwrap();
        for lie in lies {
            connection.send_datagram(lie.into()).unwrap();
        }
        connection.close(CloseCode::Revoked);
        while control(&c, liar.id()).is_none_or(|connection| connection.number() == before.number()) {
            tokio::task::yield_now().await;
        }
        // All that came before has been heard then.
        c.update_record(|record| record.capacity_bytes = 7).await.unwrap();
        let roster = c.roster();
        assert!(roster.member(a.id()).is_some_and(RosterMember::is_up));
        assert!(roster.refusals.is_empty(), "{:?}", roster.refusals);
        assert!(c.endpoint().revocations().list().ids.is_empty());
    });
}

#[test]
fn a_store_of_another_cluster_serves_a_new_one_without_its_revoked_nodes_tokens_and_names() {
    run(async {
        let (old, new) = (Cluster::new(), Cluster::new());
        let (credentials, store) = (old.credentials("a"), old.store("a"));
        let a = old.issuer(&credentials, &store).await;
        let token = a.issue_token(Duration::from_secs(3600), 1).await.unwrap();
        let b = try_join(&a, &token, "b").await.unwrap().credentials.id();
        assert_eq!(a.holder("b".parse().unwrap()).await.unwrap(), Some(b));
        a.remove_node(NodeId::from_bytes([7; 32])).await.unwrap();
        a.stop().await;

        let credentials = new.credentials("a");
        let a = new.issuer(&credentials, &store).await;
        assert!(a.endpoint().revocations().list().ids.is_empty());
        assert!(a.tokens().await.unwrap().is_empty());
        let token = a.issue_token(Duration::from_secs(3600), 1).await.unwrap();
        try_join(&a, &token, "b").await.expect("the name is of the old cluster");
        a.remove_node(NodeId::from_bytes([8; 32])).await.unwrap();
        a.stop().await;
        let a = new.issuer(&credentials, &store).await;
        assert_eq!(a.endpoint().revocations().list().ids, [NodeId::from_bytes([8; 32])].into());
    });
}
