//! Runs one seed, shrunk if it fails, and prints what happened: `cargo run -p stellate-simulator --example one -- SEED [whole]`.
#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use stellate_simulator::{Scenario, run_with_lines, shrink};

fn main() {
    let seed = std::env::args().nth(1).and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let whole = Scenario::of_seed(seed);
    let scenario = if std::env::args().nth(2).is_some() { whole } else { shrink(&whole, None, 2000) };
    let outcome = run_with_lines(&scenario, None);
    outcome.lines.iter().for_each(|line| println!("{line}"));
    println!("{}\n{:?}\nhash {}", scenario.to_json(), outcome.violation, outcome.hash);
}
