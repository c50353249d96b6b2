//! Nodes find each other, tell each other, leave and come back.

use super::*;
use crate::membership::{Liveness, Mismatch, ModelFormat, Standing};
use crate::transport::{CloseCode, ConnectionClass, FrameKind};

#[test]
fn nodes_meet_through_one_seed_and_all_know_all() {
    run(async {
        let cluster = Cluster::new();
        let (a, _a) = cluster.node("a", &[]).await;
        let (b, _b) = cluster.node("b", &[&a]).await;
        let (c, _c) = cluster.node("c", &[&a]).await;
        for (one, other) in [(&a, &b), (&b, &c), (&c, &a)] {
            met(one, other).await;
        }
        a.ready().await;
        let roster = b.roster();
        assert_eq!(roster.named("c").unwrap().id, c.id());
        assert!(roster.named("c").unwrap().is_usable());
        assert_eq!(roster.own.name, "b");
        assert_eq!(roster.member(a.id()).unwrap().record.addresses, [a.local_address().unwrap()]);
    });
}

#[test]
fn a_node_without_anywhere_to_look_is_ready_alone() {
    run(async {
        let cluster = Cluster::new();
        let (a, _a) = cluster.node("a", &[]).await;
        a.ready().await;
        assert!(a.roster().members.is_empty());
    });
}

#[test]
fn a_connection_is_opened_once_and_handed_to_both_sides() {
    run(async {
        let cluster = Cluster::new();
        let (a, mut of_a) = cluster.node("a", &[]).await;
        let (b, mut of_b) = cluster.node("b", &[&a]).await;
        met(&a, &b).await;
        let dialled = a.connect(b.id(), ConnectionClass::Decode).await.unwrap();
        let accepted = of_b.decode.recv().await.unwrap();
        assert_eq!(accepted.peer().id, a.id());
        assert_eq!(of_a.decode.recv().await.unwrap().peer().id, b.id());
        // The other side uses the same one.
        let again = b.connect(a.id(), ConnectionClass::Decode).await.unwrap();
        assert_eq!(again.number(), accepted.number());
        assert!(of_b.decode.try_recv().is_err());
        let (mut sender, _receiver) = again.open().await.unwrap();
        sender.send(FrameKind::FIRST_FREE, &7_u32, &[]).await.unwrap();
        let (_sender, mut receiver) = dialled.accept().await.unwrap();
        assert_eq!(receiver.expect().await.unwrap().header::<u32>().unwrap(), 7);
        dialled.close(CloseCode::Done);
        let nobody = crate::identity::NodeId::from_bytes([7; 32]);
        assert_eq!(
            a.connect(nobody, ConnectionClass::Bulk).await.unwrap_err(),
            ConnectError::Unknown(nobody)
        );
    });
}

#[test]
fn a_lost_control_connection_is_dialled_again() {
    run(async {
        let cluster = Cluster::new();
        let (a, _a) = cluster.node("a", &[]).await;
        let (b, _b) = cluster.node("b", &[&a]).await;
        met(&a, &b).await;
        let lost = a.connect(b.id(), ConnectionClass::Control).await.unwrap();
        lost.close(CloseCode::Busy);
        lost.closed().await;
        let id = b.id();
        until(&a, |roster| roster.member(id).is_some_and(|member| member.connection.is_none())).await;
        met(&a, &b).await;
    });
}

#[test]
fn a_cordoned_node_is_seen_as_such_and_stays_so_over_a_restart_that_needs_no_seed() {
    run(async {
        let cluster = Cluster::new();
        let (a, _a) = cluster.node("a", &[]).await;
        let (credentials, store) = (cluster.credentials("b"), cluster.store("b"));
        let mut setup = cluster.setup(&credentials, &store);
        seek(&mut setup, &[&a]);
        let (b, _b) = Substrate::start(setup).await.unwrap();
        met(&a, &b).await;
        b.update_record(|record| record.state = NodeState::Cordoned).await.unwrap();
        let id = b.id();
        let cordoned = |roster: &Roster| {
            roster
                .member(id)
                .is_some_and(|member| member.record.state == NodeState::Cordoned && member.is_up())
        };
        until(&a, cordoned).await;
        let error = b.update_record(|record| record.state = NodeState::Joining).await.unwrap_err();
        assert!(matches!(error, UpdateError::Record(_)), "{error}");
        b.stop().await;
        // No seeds: it remembers where the others were.
        let (b, _b) = Substrate::start(cluster.setup(&credentials, &store)).await.unwrap();
        met(&a, &b).await;
        assert_eq!(b.roster().own.state, NodeState::Cordoned);
        assert_eq!(b.roster().own.boot, 2);
        until(&a, |roster| cordoned(roster) && roster.member(id).unwrap().generation.boot == 2).await;
    });
}

#[test]
fn neighbours_of_an_earlier_life_are_looked_for_also_when_others_were_met() {
    run(async {
        let cluster = Cluster::new();
        let (of_a, store) = (cluster.credentials("a"), cluster.store("a"));
        let (a, _a) = Substrate::start(cluster.setup(&of_a, &store)).await.unwrap();
        let of_b = cluster.credentials("b");
        let mut setup = cluster.setup(&of_b, &cluster.store("b"));
        seek(&mut setup, &[&a]);
        let (b, _b) = Substrate::start(setup).await.unwrap();
        met(&a, &b).await;
        let address = b.local_address().unwrap();
        a.stop().await;
        b.stop().await;
        // Whoever is there meanwhile is of another cluster, so that nobody goes on dialling.
        let others = Cluster::new();
        let mut setup = others.setup(&others.credentials("d"), &others.store("d"));
        setup.listen = address;
        let (decoy, _decoy) = Substrate::start(setup).await.unwrap();
        let (c, _c) = cluster.node("c", &[]).await;
        let mut setup = cluster.setup(&of_a, &store);
        seek(&mut setup, &[&c]);
        let (a, _a) = Substrate::start(setup).await.unwrap();
        met(&a, &c).await;
        decoy.stop().await;
        // It knows nobody, and nobody but the first knows of it.
        let mut setup = cluster.setup(&of_b, &cluster.store("b, empty"));
        setup.listen = address;
        let (b, _b) = Substrate::start(setup).await.unwrap();
        met(&a, &b).await;
        met(&b, &c).await;
    });
}

#[test]
fn a_node_that_leaves_is_told_from_one_that_died() {
    run(async {
        let cluster = Cluster::new();
        let (a, _a) = cluster.node("a", &[]).await;
        let (b, _b) = cluster.node("b", &[&a]).await;
        met(&a, &b).await;
        let id = b.id();
        b.leave().await;
        until(&a, |roster| roster.member(id).is_some_and(|member| member.liveness == Liveness::Left)).await;
    });
}

#[test]
fn a_node_of_another_model_is_a_member_that_gets_no_work() {
    run(async {
        let cluster = Cluster::new();
        let model = |fingerprint: &str| {
            Some(ModelFormat { fingerprint: fingerprint.to_owned(), kv_format: "bf16".to_owned() })
        };
        let mut setup = cluster.setup(&cluster.credentials("a"), &cluster.store("a"));
        setup.profile.model = model("one");
        let (a, _a) = Substrate::start(setup).await.unwrap();
        let mut setup = cluster.setup(&cluster.credentials("b"), &cluster.store("b"));
        setup.profile.model = model("other");
        seek(&mut setup, &[&a]);
        let (b, _b) = Substrate::start(setup).await.unwrap();
        met(&a, &b).await;
        let roster = a.roster();
        let member = roster.member(b.id()).unwrap();
        assert!(!member.is_usable());
        let theirs = Mismatch::Model { theirs: "other".to_owned(), ours: "one".to_owned() };
        assert_eq!(member.standing, Standing::Incompatible(vec![theirs]));
    });
}
