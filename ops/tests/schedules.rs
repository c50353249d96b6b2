//! A few random schedules of faults over clusters of real processes, as `cargo xtask schedules` plays hundreds of them. What may
//! happen and what is wrong is said in `stellate_xtask`.

#![cfg(unix)]
#![allow(clippy::print_stdout, reason = "seeds and what came of them are told")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stellate_xtask::machine::Workshop;
use stellate_xtask::network::NetworkKind;
use stellate_xtask::oracle::Oracle;
use stellate_xtask::play::Troupe;
use stellate_xtask::schedule::{Fault, Round, Schedule, Step, Work};
use stellate_xtask::schedules::{SchedulesOptions, play_all};
use stellate_xtask::stage::NodeOptions;
use stellate_xtask::weather::Chances;

fn nodes(network: NetworkKind) -> NodeOptions {
    let (program, settings) = (env!("CARGO_BIN_EXE_stellate").into(), Vec::new());
    NodeOptions { program, settings, log_level: "info".to_owned(), network }
}

fn keep(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_three_random_schedules_changes_an_answer_or_loses_a_turn() {
    let nodes = nodes(NetworkKind::Relays);
    let options =
        SchedulesOptions { nodes, seeds: 0..3, sizes: 3..=4, steps: None, jobs: 3, keep: keep("faults") };
    let report = play_all(options, |line| println!("{line}")).await.unwrap();
    for lack in &report.lacks {
        println!("SKIPPED: {lack}");
    }
    assert!(report.is_good(), "{:#?}\n{:#?}", report.failures, report.unplayed);
    assert!(report.tally.answers > 0 && report.tally.turns_found > 0, "{:#?}", report.tally);
}

/// Two rounds: packets are lost while contexts are encoded and asked, and then one way is cut as well.
fn lossy() -> Schedule {
    let loss = Fault::Weather(Chances { lost_permille: 20, ..Chances::default() });
    let open = |document| Work::Open { document, is_exact: false };
    let ask = |fact| Work::Ask { fact, is_long: true };
    Schedule {
        seed: 0,
        nodes: 3,
        rounds: vec![
            Round {
                steps: vec![Step { after: 0, fault: loss }],
                work: vec![vec![open(0), ask(0)], vec![open(1), ask(1)]],
            },
            Round {
                steps: vec![
                    Step { after: 0, fault: loss },
                    Step { after: 2, fault: Fault::CutOneWay { from: 0, to: 2 } },
                ],
                work: vec![vec![ask(2), ask(3)], vec![ask(4), ask(5)]],
            },
        ],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_lost_and_a_way_cut_between_network_namespaces_change_no_answer() {
    if let Err(error) = NetworkKind::Namespaces.prepare() {
        println!("SKIPPED: {error}");
        return;
    }
    let oracle = Arc::new(Oracle::open().await.unwrap());
    let troupe = Troupe {
        options: nodes(NetworkKind::Namespaces),
        workshop: Workshop::open().unwrap(),
        oracle: oracle.clone(),
    };
    let logs = keep("namespaces");
    let played = troupe.play(&lossy(), &logs).await.unwrap();
    oracle.close().await;
    assert!(played.wrong.is_none(), "{:?}; logs: {}", played.wrong, logs.display());
    assert!(played.tally.answers > 0 && played.tally.turns_found > 0, "{:#?}", played.tally);
    let packets = played.tally.packets;
    println!("{packets:?}");
    assert!(packets.sent > packets.lost + packets.cut && packets.lost > 0 && packets.cut > 0, "{packets:?}");
}
