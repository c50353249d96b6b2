//! A thousand hosts, a node each: contexts over hundreds of them, five voters, and a bad minute in which fifty hosts end, some are
//! drained, stand still or are cut off, and who leads changes. Membership does not run: a thousand nodes that gossip take
//! minutes, and what it decides is looked at in small clusters; so a death is found by silence.

#![allow(clippy::print_stdout, reason = "what came of it is told")]

use stellate_simulator::{Chance, Scenario, Shape, Step, Weather, run};

/// Nodes, each with a host.
const NODES: u16 = 1000;

fn scenario(seed: u64) -> Scenario {
    let mut chance = Chance::new(seed);
    let shape = Shape {
        nodes: NODES,
        query_nodes: 4,
        capacity_blocks: 9,
        replicas: 1,
        voters: 5,
        had_supervisor: false,
        copies: 2,
        has_membership: false,
    };
    let weather =
        Weather { delay_us: 200, jitter_us: 2000, loss_permille: 10, doubled_permille: 10, is_wild: false };
    let mut steps = Vec::new();
    for node in 0..shape.query_nodes {
        steps.push((20_000, Step::Context { node, blocks: 300 }));
    }
    for _ in 0..20 {
        let session = chance.below(8);
        steps.push((chance.between(25_000, 60_000), Step::Ask { session, tokens: 3, elsewhere: None }));
    }
    // None of the voters, nor of the nodes that run sessions: one of those is killed by name below.
    let host = |chance: &mut Chance| chance.between(5, u64::from(NODES) - 1) as u16;
    for _ in 0..50 {
        let (node, at) = (host(&mut chance), chance.between(30_000, 50_000));
        steps.push((at, Step::Crash { node }));
        steps.push((at + chance.between(1_000, 20_000), Step::Start { node }));
    }
    for _ in 0..5 {
        let (at, ms) = (chance.between(30_000, 50_000), chance.between(1_000, 15_000));
        steps.push((at, Step::Pause { node: host(&mut chance), ms }));
        steps.push((at, Step::Drain { node: host(&mut chance), deadline_s: Some(30) }));
        steps.push((at, Step::Isolate { node: host(&mut chance) }));
    }
    steps.push((35_000, Step::TakeOver { node: 3 }));
    steps.push((40_000, Step::Crash { node: 3 }));
    steps.push((55_000, Step::Start { node: 3 }));
    steps.push((58_000, Step::Mend));
    steps.sort_by_key(|(at, _)| *at);
    Scenario { seed, shape, weather, steps }
}

#[test]
fn a_thousand_hosts_outlive_the_death_of_fifty_and_of_the_one_that_leads() {
    let outcome = run(&scenario(1), None);
    println!("{} events in {} s: {:#?}", outcome.events, outcome.time.as_secs(), outcome.counts);
    assert_eq!(outcome.violation, None);
    assert!(outcome.counts.acknowledged >= 20 && outcome.counts.healed > 0, "{:?}", outcome.counts);
}
