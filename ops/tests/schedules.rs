//! A few random schedules of faults over clusters of real processes, as `cargo xtask schedules` plays hundreds of them. What may
//! happen and what is wrong is said in `stellate_xtask`.

#![cfg(unix)]
#![allow(clippy::print_stdout, reason = "seeds and what came of them are told")]

use std::path::Path;

use stellate_xtask::schedules::{SchedulesOptions, play_all};
use stellate_xtask::stage::NodeOptions;

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_three_random_schedules_changes_an_answer_or_loses_a_turn() {
    let nodes = NodeOptions {
        program: env!("CARGO_BIN_EXE_stellate").into(),
        settings: Vec::new(),
        log_level: "info".to_owned(),
    };
    let keep = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    let options = SchedulesOptions { nodes, seeds: 0..3, sizes: 3..=4, steps: None, jobs: 3, keep };
    let report = play_all(options, |line| println!("{line}")).await.unwrap();
    for lack in &report.lacks {
        println!("SKIPPED: {lack}");
    }
    assert!(report.is_good(), "{:#?}\n{:#?}", report.failures, report.unplayed);
    assert!(report.tally.answers > 0 && report.tally.turns_found > 0, "{:#?}", report.tally);
}
