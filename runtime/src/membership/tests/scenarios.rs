//! What a cluster promises while hosts come, go, stand still, and the network loses and parts. Times are virtual.

use std::collections::BTreeSet;

use super::cluster::{Cluster, up};
use super::*;

/// How soon a death is known everywhere: the probe finds it in a few seconds, suspicion takes 12 s, the news two more.
const DEATH_KNOWN: f64 = 25.0;

fn downs(cluster: &mut Cluster) -> Vec<(u16, NodeId)> {
    let happened = cluster.take_happened().into_iter();
    happened
        .filter_map(|(_, at, event)| match event {
            Event::Down(node) => Some((at, node)),
            _ => None,
        })
        .collect()
}

#[test]
fn two_hundred_nodes_that_start_at_once_all_learn_of_each_other() {
    let mut cluster = Cluster::formed(1, 200);
    let joined: BTreeSet<_> = cluster
        .take_happened()
        .into_iter()
        .filter_map(|(_, at, event)| match event {
            Event::Joined { node, .. } => Some((at, node)),
            Event::Down(node) => panic!("{at} took {node} for dead"),
            _ => None,
        })
        .collect();
    assert_eq!(joined.len(), 200 * 199, "everyone was told of everyone, once");
    assert_eq!(cluster.rejected, []);
    cluster.run(seconds(60.0));
    let before = cluster.bytes_sent;
    cluster.run(seconds(60.0));
    let rate = (cluster.bytes_sent - before) / 60 / 200;
    println!("{rate} bytes per second and host when nothing happens");
    assert!(rate < 400, "{rate} bytes per second and host");
    assert!(cluster.all_agree());
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let run = |seed| {
        let mut cluster = Cluster::formed(seed, 50);
        cluster.loss = 0.05;
        cluster.kill(7);
        cluster.run(seconds(30.0));
        cluster.start(7);
        cluster.run(seconds(30.0));
        let hash = cluster.trace();
        println!("seed {seed}: trace {hash}");
        hash
    };
    let first = run(11);
    assert_eq!(first, run(11));
    assert_ne!(first, run(12));
}

#[test]
fn a_death_is_known_everywhere_within_the_bound() {
    let mut worst = Duration::ZERO;
    for seed in 0..3 {
        let mut cluster = Cluster::formed(100 + seed, 100);
        cluster.kill(42);
        let took = cluster.run_until(seconds(DEATH_KNOWN), "a death is known everywhere", Cluster::all_agree);
        worst = worst.max(took);
        assert!(downs(&mut cluster).iter().all(|(_, dead)| *dead == node(42)));
    }
    println!("at worst {worst:?}");
}

#[test]
fn hosts_that_stand_still_for_eight_seconds_are_not_taken_for_dead_and_take_nobody_for_dead() {
    for seed in 0..4 {
        let mut cluster = Cluster::formed(200 + seed, 100);
        for round in 0..6_u16 {
            let still: Vec<_> = (0..5).map(|host| (round * 17 + host * 19) % 100).collect();
            still.iter().for_each(|host| cluster.pause(*host));
            cluster.run(seconds(8.0));
            still.iter().for_each(|host| cluster.resume(*host));
            cluster.run(seconds(5.0));
        }
        cluster.run_until(seconds(40.0), "all agree again", Cluster::all_agree);
        assert_eq!(downs(&mut cluster), [], "seed {}", cluster.seed);
    }
}

#[test]
fn a_host_that_stood_still_for_a_minute_was_taken_for_dead_and_comes_back_by_itself() {
    let mut cluster = Cluster::formed(300, 50);
    cluster.pause(9);
    cluster.run(seconds(60.0));
    assert!((0..50).filter(|host| *host != 9).all(|host| up(cluster.machine(host)) == 48));
    cluster.take_happened();
    cluster.resume(9);
    cluster.run_until(seconds(60.0), "all agree again", Cluster::all_agree);
    assert!(cluster.machine(9).identity().generation > Generation { boot: 1, renewal: 0 });
    assert_eq!(downs(&mut cluster), [], "it took nobody for dead when it woke");
}

#[test]
fn with_every_fifth_datagram_lost_everyone_learns_of_everyone_and_nobody_is_taken_for_dead_for_long() {
    let mut cluster = Cluster::new(400, 100);
    cluster.loss = 0.2;
    for number in 0..100 {
        cluster.start(number);
        cluster.run(seconds(0.02));
    }
    cluster.run_until(seconds(90.0), "everyone knows everyone under loss", |cluster| {
        (0..100).all(|host| up(cluster.machine(host)) == 99)
    });
    cluster.run(seconds(120.0));
    let falsely = downs(&mut cluster).len();
    println!("{falsely} times in two minutes a host took another for dead");
    assert_eq!(falsely, 0);
    cluster.loss = 0.0;
    cluster.run_until(seconds(60.0), "all agree once nothing is lost", Cluster::all_agree);
}

#[test]
fn a_cut_cluster_becomes_two_and_then_one_again() {
    for seed in 0..3 {
        let mut cluster = Cluster::formed(500 + seed, 60);
        cluster.cut(40..60);
        cluster.run_until(seconds(90.0), "each half holds the other for dead", |cluster| {
            (0..60).all(|host| up(cluster.machine(host)) == if host < 40 { 39 } else { 19 })
        });
        cluster.heal();
        cluster.run_until(seconds(120.0), "the halves are one again", Cluster::all_agree);
    }
}

#[test]
fn a_host_cut_off_alone_finds_its_way_back_by_seeds() {
    let mut cluster = Cluster::formed(600, 20);
    cluster.set_seeds(&[3, 4]);
    cluster.cut([11]);
    cluster.run(seconds(60.0));
    assert_eq!(up(cluster.machine(11)), 0);
    let alone = cluster.take_happened().into_iter().any(|(_, at, event)| at == 11 && event == Event::Alone);
    assert!(alone, "it was told that it is alone");
    cluster.heal();
    cluster.run_until(seconds(90.0), "it is back", Cluster::all_agree);
}

#[test]
fn a_host_that_was_cut_off_while_it_suspected_others_suspects_nobody_for_ever() {
    // Cut off for so long that it is taken for dead and not yet decides about all whom it suspects itself.
    for (seed, cut) in (0..24).map(|seed| (seed, 13.0 + (seed % 8) as f64)) {
        let mut cluster = Cluster::formed(650 + seed, 5);
        cluster.cut([1]);
        cluster.run(seconds(cut));
        cluster.heal();
        let suspects = |cluster: &Cluster| {
            let of =
                |host| cluster.machine(host).members().filter(|it| it.liveness == Liveness::Suspect).count();
            (0..5).map(of).sum::<usize>()
        };
        cluster.run_until(seconds(90.0), "nobody is suspected", |cluster| {
            suspects(cluster) == 0 && cluster.all_agree()
        });
        cluster.take_happened();
        cluster.run(seconds(60.0));
        assert_eq!((suspects(&cluster), downs(&mut cluster)), (0, Vec::new()), "seed {seed}");
    }
}

#[test]
fn a_restarted_host_replaces_its_former_self_at_once_and_leaves_no_ghost() {
    let mut cluster = Cluster::formed(700, 50);
    cluster.take_happened();
    cluster.kill(20);
    cluster.run(seconds(0.5));
    cluster.start(20);
    cluster.run_until(seconds(20.0), "the restarted host is everywhere", Cluster::all_agree);
    let happened = cluster.take_happened();
    for host in (0..50).filter(|host| *host != 20) {
        let rejoined = |(_, at, event): &(Duration, u16, Event)| {
            let second = Generation { boot: 2, renewal: 0 };
            *at == host && *event == Event::Rejoined { node: node(20), generation: second }
        };
        assert!(happened.iter().any(rejoined), "host {host} was told");
        let members = cluster.machine(host).members();
        assert_eq!(members.filter(|member| member.identity.node == node(20)).count(), 1);
    }
    assert!(
        happened.iter().all(|(_, _, event)| !matches!(event, Event::Down(_))),
        "nobody was taken for dead"
    );
}

#[test]
fn a_host_that_lost_its_counter_of_starts_goes_on_above_what_the_others_remember() {
    let mut cluster = Cluster::formed(800, 20);
    for _ in 0..3 {
        cluster.kill(5);
        cluster.run(seconds(1.0));
        cluster.start(5);
        cluster.run(seconds(5.0));
    }
    cluster.kill(5);
    cluster.run(seconds(1.0));
    cluster.start_as(5, record(5, 1));
    cluster.run_until(seconds(30.0), "it is back", Cluster::all_agree);
    assert!(cluster.machine(5).identity().generation.boot > 4);
    let sent = cluster.bytes_sent;
    cluster.run(seconds(10.0));
    assert!((cluster.bytes_sent - sent) / 10 / 20 < 3000, "and the cluster is quiet");
}

#[test]
fn one_that_leaves_is_known_to_have_left_and_nobody_takes_it_for_dead() {
    let mut cluster = Cluster::formed(900, 80);
    cluster.take_happened();
    cluster.act(33, |machine, now| machine.leave(now));
    cluster.kill(33);
    cluster.run_until(seconds(12.0), "all know that it has left", Cluster::all_agree);
    let happened = cluster.take_happened();
    for host in (0..80).filter(|host| *host != 33) {
        assert!(
            happened.iter().any(|(_, at, event)| *at == host && *event == Event::Left(node(33))),
            "host {host}"
        );
        assert_eq!(
            cluster.machine(host).member(&node(33)).map(|member| member.liveness),
            Some(Liveness::Left)
        );
    }
    assert!(happened.iter().all(|(_, _, event)| !matches!(event, Event::Down(_))));
    cluster.start(33);
    cluster.run_until(seconds(20.0), "it is back after another start", Cluster::all_agree);
}

#[test]
fn a_removed_host_is_out_for_good_whatever_it_tries() {
    let mut cluster = Cluster::formed(1000, 30);
    cluster.act(4, |machine, now| machine.remove(now, node(17)));
    let gone = |cluster: &Cluster| {
        (0..30).filter(|host| *host != 17).all(|host| {
            cluster.machine(host).is_removed(&node(17)) && cluster.machine(host).member(&node(17)).is_none()
        })
    };
    cluster.run_until(seconds(10.0), "the removal is known everywhere", gone);
    cluster.take_happened();
    // It is still running, and starts anew, twice.
    for _ in 0..2 {
        cluster.run(seconds(60.0));
        assert!(gone(&cluster));
        cluster.kill(17);
        cluster.start(17);
        cluster.contact(17, 8);
    }
    cluster.run(seconds(60.0));
    assert!(gone(&cluster));
    assert_eq!(up(cluster.machine(17)), 0, "nobody has let it in");
    let happened = cluster.take_happened();
    let refused = |(_, at, event): &(Duration, u16, Event)| {
        *at == 17 && matches!(event, Event::Refused { reason: RefusalReason::Removed, .. })
    };
    assert!(happened.iter().any(refused), "and it has been told why");
}

#[test]
fn a_removal_made_while_the_cluster_is_cut_holds_on_both_sides_afterwards() {
    let mut cluster = Cluster::formed(1100, 30);
    cluster.cut(20..30);
    cluster.run(seconds(30.0));
    cluster.act(2, |machine, now| machine.remove(now, node(25)));
    cluster.run(seconds(10.0));
    cluster.heal();
    cluster.run_until(seconds(120.0), "the removal is known everywhere", |cluster| {
        (0..30)
            .filter(|host| *host != 25)
            .all(|host| cluster.machine(host).is_removed(&node(25)) && up(cluster.machine(host)) == 28)
    });
}

#[test]
fn a_changed_record_reaches_everyone_soon() {
    let mut cluster = Cluster::formed(1200, 100);
    cluster.act(8, |machine, now| {
        machine.update(now, |record| record.state = NodeState::Active).expect("allowed")
    });
    let took = cluster.run_until(seconds(15.0), "a new state is known everywhere", |cluster| {
        (0..100).filter(|host| *host != 8).all(|host| {
            let member = cluster.machine(host).member(&node(8)).expect("known");
            member.record.state == NodeState::Active
        })
    });
    println!("{took:?}");
}

#[test]
fn a_second_node_of_a_name_is_refused_at_the_door_until_the_first_is_gone() {
    let mut cluster = Cluster::new(1300, 12);
    (0..11).for_each(|number| cluster.start(number));
    cluster.run_until(seconds(30.0), "eleven know each other", Cluster::all_agree);
    cluster.start_as(11, NodeRecord { name: "node-3".to_owned(), ..record(11, 1) });
    cluster.run(seconds(40.0));
    let refused = |(_, at, event): &(Duration, u16, Event)| {
        let by_name = RefusalReason::NameTaken { name: "node-3".to_owned(), by: node(3) };
        *at == 11 && matches!(event, Event::Refused { reason, .. } if *reason == by_name)
    };
    assert!(cluster.take_happened().iter().any(refused));
    assert_eq!(up(cluster.machine(11)), 0);
    cluster.kill(3);
    cluster.run_until(seconds(90.0), "the name is free and it is in", Cluster::all_agree);
}

#[test]
fn two_halves_that_meet_with_one_name_twice_report_it() {
    let mut cluster = Cluster::new(1400, 4);
    cluster.cut([2, 3]);
    cluster.set_seeds(&[0, 2]);
    for (number, name) in [(0, "a"), (1, "same"), (2, "b"), (3, "same")] {
        cluster.start_as(number, NodeRecord { name: name.to_owned(), ..record(number, 1) });
    }
    cluster.run(seconds(5.0));
    cluster.heal();
    cluster.contact(0, 2);
    cluster.run_until(seconds(60.0), "the halves are one", Cluster::all_agree);
    let happened = cluster.take_happened();
    let (low, high) = (node(1).min(node(3)), node(1).max(node(3)));
    let clash = Event::NameClash(Clash { name: "same".to_owned(), nodes: vec![low, high] });
    for host in 0..4 {
        assert!(happened.iter().any(|(_, at, event)| *at == host && *event == clash), "host {host}");
    }
}
