//! Bugs that are put in on purpose: the simulator finds each of them, which is what its silence about the code without them is
//! worth.

#![allow(clippy::print_stdout, reason = "what was found is told")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use stellate_simulator::{Mutation, Scenario, run, shrink};

/// Seeds that are tried for each.
const SEEDS: u64 = 2500;

/// Whether a bug is found, and by which seed.
fn is_found(mutation: Mutation) -> bool {
    let mut scenarios = (1..=SEEDS).map(Scenario::of_seed);
    let found = scenarios.find_map(|scenario| {
        let violation = run(&scenario, Some(mutation)).violation?;
        Some((scenario, violation))
    });
    let Some((scenario, violation)) = found else { return false };
    let steps = shrink(&scenario, Some(mutation), 60).steps.len();
    println!("{mutation}: seed {}, shrunk to {steps} steps: {violation}", scenario.seed);
    assert_eq!(run(&scenario, None).violation, None, "seed {} without a bug", scenario.seed);
    true
}

#[test]
fn every_bug_that_is_put_in_is_found() {
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(&mutation) = Mutation::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !is_found(mutation) {
                        missed.lock().unwrap().push(mutation);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found in {SEEDS} seeds: {missed:?}");
}
