//! Many seeds, each a cluster with a few bad minutes: nothing that must hold is ever broken, and one seed is always the same run.

#![allow(clippy::print_stdout, reason = "seeds and what came of them are told")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use stellate_simulator::{Counts, Outcome, Scenario, run, shrink};

/// Seeds that are run by default; `STELLATE_SEEDS` says how many instead, `STELLATE_FIRST_SEED` from which on.
const SEEDS: u64 = 2_000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The first failure, told as a scenario that fails in as few steps as were found.
fn explain(scenario: &Scenario, outcome: &Outcome) -> String {
    let violation = outcome.violation.as_ref().expect("it has failed");
    let shorter = shrink(scenario, None, 200);
    format!("seed {}: {violation}\nshrunk to {}", scenario.seed, shorter.to_json())
}

#[test]
fn no_fault_breaks_what_must_hold() {
    let (first, seeds) = (number("STELLATE_FIRST_SEED", 1), number("STELLATE_SEEDS", SEEDS));
    let (next, all) = (AtomicU64::new(first), Mutex::new((Counts::default(), 0, Vec::new())));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let scenario = Scenario::of_seed(seed);
                    let outcome = run(&scenario, None);
                    let mut all = all.lock().unwrap();
                    all.0.add(&outcome.counts);
                    all.1 += outcome.events;
                    if outcome.violation.is_some() {
                        all.2.push((scenario, outcome));
                    }
                }
            });
        }
    });
    let (counts, events, mut failed) = all.into_inner().unwrap();
    println!("{seeds} seeds from {first}: {events} events, {counts:#?}");
    failed.sort_by_key(|(scenario, _)| scenario.seed);
    for (scenario, outcome) in &failed {
        println!(
            "seed {}, wild: {}: {}",
            scenario.seed,
            scenario.weather.is_wild,
            outcome.violation.as_ref().unwrap()
        );
    }
    let seeds: Vec<_> = failed.iter().map(|(scenario, _)| scenario.seed).collect();
    if let Some((scenario, outcome)) = failed.first() {
        panic!("{} seeds fail: {seeds:?}\n{}", seeds.len(), explain(scenario, outcome));
    }
    // The faults were really there, and most questions were answered all the same.
    assert!(counts.acknowledged * 2 > counts.asked && counts.healed > 0, "{counts:?}");
}

#[test]
fn a_seed_is_always_the_same_run() {
    for seed in [1, 7, 23] {
        let scenario = Scenario::of_seed(seed);
        let (one, other) = (run(&scenario, None), run(&scenario, None));
        assert_eq!((one.hash, one.events), (other.hash, other.events), "seed {seed}");
        let again = Scenario::from_json(&scenario.to_json()).unwrap();
        assert_eq!(run(&again, None).hash, one.hash, "seed {seed}, from its JSON");
        println!("seed {seed}: {} after {} events", one.hash, one.events);
    }
}
