//! Runs one seed, shrunk if it fails, and prints what happened: `cargo run -p stellate-simulator --example one -- SEED [whole]`.
//! In place of the seed may be a file with a scenario as JSON.
#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use stellate_simulator::{Scenario, run_with_lines, shrink};

fn main() {
    let which = std::env::args().nth(1).unwrap_or_else(|| "1".to_owned());
    let whole = match which.parse() {
        Ok(seed) => Scenario::of_seed(seed),
        Err(_) => {
            let json = std::fs::read_to_string(&which).expect("a seed, or a file that can be read");
            Scenario::from_json(&json).expect("a scenario")
        }
    };
    let scenario = if std::env::args().nth(2).is_some() { whole } else { shrink(&whole, None, 2000) };
    let outcome = run_with_lines(&scenario, None);
    outcome.lines.iter().for_each(|line| println!("{line}"));
    println!("{}\n{:?}\nhash {}", scenario.to_json(), outcome.violation, outcome.hash);
}
