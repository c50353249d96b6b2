//! Bugs that are put in on purpose: the simulator finds each of them, which is what its silence about the code without them is
//! worth.

#![allow(clippy::print_stdout, reason = "what was found is told")]

use stellate_simulator::{Mutation, Scenario, run, shrink};

/// Seeds that are tried.
const SEEDS: u64 = 1500;

#[test]
fn every_bug_that_is_put_in_is_found() {
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        let mut scenarios = (1..=SEEDS).map(Scenario::of_seed);
        let found = scenarios.find_map(|scenario| {
            let violation = run(&scenario, Some(mutation)).violation?;
            Some((scenario, violation))
        });
        match found {
            Some((scenario, violation)) => {
                let steps = shrink(&scenario, Some(mutation), 60).steps.len();
                println!("{mutation}: seed {}, shrunk to {steps} steps: {violation}", scenario.seed);
                assert_eq!(run(&scenario, None).violation, None, "seed {} without a bug", scenario.seed);
            }
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "not found in {SEEDS} seeds: {missed:?}");
}
