//! Runs seed after seed for hours; its arguments are MINUTES [FIRST_SEED] [FILE], and `cargo xtask simulate` gives them. Tells how
//! far it is, shrinks what fails, and writes the figures to FILE, which `cargo xtask reliability --simulator FILE` takes.
#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use stellate_simulator::{Scenario, run, shrink};

/// How often it is told how far it is.
const TELL: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Done {
    seeds: u64,
    events: u64,
    failed: Vec<u64>,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let minutes: f64 = words.next().map_or(1.0, |text| text.parse().expect("minutes"));
    let first: u64 = words.next().map_or(1, |text| text.parse().expect("a seed"));
    let file = words.next();
    let (start, limit) = (Instant::now(), Duration::from_secs_f64(minutes * 60.0));
    let (next, done) = (AtomicU64::new(first), Mutex::new(Done::default()));
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    while start.elapsed() < limit {
                        one(next.fetch_add(1, Ordering::Relaxed), &done);
                    }
                })
            })
            .collect();
        let mut told = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            if told.elapsed() >= TELL {
                told = Instant::now();
                let done = done.lock().unwrap();
                println!(
                    "{} s: {} seeds, {} failed",
                    start.elapsed().as_secs(),
                    done.seeds,
                    done.failed.len()
                );
            }
        }
    });
    let (done, seconds) = (done.into_inner().unwrap(), start.elapsed().as_secs_f64());
    let figures = serde_json::json!({
        "seeds": format!("{first} to {}", first + done.seeds.saturating_sub(1)),
        "seeds that failed": format!("{:?}", done.failed),
        "seeds a second": format!("{:.1}", done.seeds as f64 / seconds),
        "steps a second": format!("{:.0}", done.events as f64 / seconds),
        "threads": threads,
        "minutes": format!("{:.1}", seconds / 60.0),
    });
    println!("{figures:#}");
    if let Some(file) = file {
        std::fs::write(&file, figures.to_string()).expect("the file can be written");
    }
    if done.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, done: &Mutex<Done>) {
    let scenario = Scenario::of_seed(seed);
    let outcome = run(&scenario, None);
    if let Some(violation) = &outcome.violation {
        let shorter = shrink(&scenario, None, 200);
        println!("seed {seed}: {violation}\nshrunk to {}", shorter.to_json());
    }
    let mut done = done.lock().unwrap();
    done.seeds += 1;
    done.events += outcome.events;
    done.failed.extend(outcome.violation.is_some().then_some(seed));
}
