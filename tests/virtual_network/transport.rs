//! Frames between nodes: whatever happens on the way, a reply is the one to what was asked, in order and once; connections
//! end with a reason, and come back once the network does.

#![allow(clippy::print_stdout, reason = "seeds are told")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stellate_runtime::transport::{
    Connection, ConnectionClass, Endpoint, FrameKind, FrameReceiver, FrameSender,
};
use tokio::time::sleep;

use crate::network::{Cluster, Dice, Fault, TICK, name, network, seeds};

const NODES: usize = 3;
const ASK: FrameKind = FrameKind(100);
const REPLY: FrameKind = FrameKind(101);
/// Faults happen until then.
const BAD_UNTIL: Duration = Duration::from_secs(20);
/// Everybody hears everybody within so long of the last fault.
const HEALED_WITHIN: Duration = Duration::from_secs(10);

/// What has happened, in order, and when each node last heard a reply of each other.
#[derive(Debug, Default)]
struct Log {
    lines: Vec<String>,
    heard: BTreeMap<(usize, usize), Duration>,
    replies: u64,
    ends: u64,
}

type Shared = Arc<Mutex<Log>>;

fn tell(log: &Shared, line: &str) {
    log.lock()
        .unwrap()
        .lines
        .push(format!("{:>9} {line}", turmoil::sim_elapsed().unwrap_or_default().as_micros()));
}

/// The bytes of message `number` from one node to another: up to 60 kB.
fn payload(from: usize, to: usize, number: u64) -> Vec<u8> {
    let size = (number as usize * 7919 + from * 31 + to * 17) % 60_000;
    (0..size).map(|at| (at as u64 * 31 + number * 7 + from as u64) as u8).collect()
}

/// Answers every message with its number and its bytes in reverse.
async fn answer(mut sender: FrameSender, mut receiver: FrameReceiver) {
    while let Ok(Some(frame)) = receiver.receive().await {
        let number: u64 = frame.expect(ASK).expect("an intact frame of that kind");
        let mut bytes = frame.payload.as_bytes().to_vec();
        bytes.reverse();
        if sender.send(REPLY, &number, &[&bytes]).await.is_err() {
            return;
        }
    }
}

async fn serve(connection: Connection) {
    while let Ok((sender, receiver)) = connection.accept().await {
        tokio::spawn(answer(sender, receiver));
    }
}

/// Asks over one connection until that has ended; returns how.
async fn ask(connection: &Connection, (from, to): (usize, usize), next: &mut u64, log: &Shared) -> String {
    let Ok((mut sender, mut receiver)) = connection.open().await else {
        return "no stream".to_owned();
    };
    loop {
        // Two are under way at once, so that order matters.
        let numbers = [*next, *next + 1];
        *next += 2;
        for number in numbers {
            if let Err(error) = sender.send(ASK, &number, &[&payload(from, to, number)]).await {
                return error.to_string();
            }
        }
        for number in numbers {
            match receiver.expect().await {
                Ok(frame) => {
                    assert_eq!(frame.expect(REPLY), Ok(number), "replies are in order, each once");
                    let mut bytes = payload(from, to, number);
                    bytes.reverse();
                    assert!(frame.payload.as_bytes() == bytes, "the bytes that were sent");
                    let mut log = log.lock().unwrap();
                    log.replies += 1;
                    log.heard.insert((from, to), turmoil::sim_elapsed().unwrap_or_default());
                }
                Err(error) => return error.to_string(),
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn talk(cluster: Arc<Cluster>, endpoint: Arc<Endpoint>, pair: (usize, usize), log: Shared) {
    let mut next = 0;
    loop {
        let end = match endpoint.dial(cluster.target(pair.1), ConnectionClass::Bulk).await {
            Ok(connection) => {
                // Whoever has dialled, both open streams.
                if connection.is_dialled() {
                    tokio::spawn(serve(connection.clone()));
                }
                ask(&connection, pair, &mut next, &log).await
            }
            Err(error) => error.to_string(),
        };
        log.lock().unwrap().ends += 1;
        tell(&log, &format!("{} to {}: {end}", pair.0, pair.1));
        sleep(Duration::from_millis(200)).await;
    }
}

/// The replies heard and the connections lost under a seed. The same seed gives the same faults, and almost the same run: the
/// lengths of signatures are random.
fn run(seed: u64) -> (u64, u64) {
    let (mut sim, mut dice) = (network(seed), Dice::new(seed));
    let (cluster, log) = (Cluster::new(seed, NODES), Shared::default());
    for node in 0..NODES {
        let (cluster, log) = (Arc::clone(&cluster), Arc::clone(&log));
        sim.host(name(node), move || {
            let (cluster, log) = (Arc::clone(&cluster), Arc::clone(&log));
            async move {
                let (endpoint, mut accepted) = cluster.endpoint(node);
                let endpoint = Arc::new(endpoint);
                for other in (0..NODES).filter(|other| *other != node) {
                    tokio::spawn(talk(
                        Arc::clone(&cluster),
                        Arc::clone(&endpoint),
                        (node, other),
                        Arc::clone(&log),
                    ));
                }
                while let Some(connection) = accepted.next().await {
                    tokio::spawn(serve(connection));
                }
                Ok(())
            }
        });
    }
    let step = |sim: &mut turmoil::Sim<'_>| {
        sim.step().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        cluster.clock.advance(TICK);
    };
    while sim.elapsed() < BAD_UNTIL {
        let fault = Fault::draw(&mut dice, NODES, 0);
        log.lock().unwrap().lines.push(format!("{fault:?}"));
        fault.happen(&mut sim);
        (0..500 + dice.below(3000)).for_each(|_| step(&mut sim));
        fault.end(&mut sim);
        (0..dice.below(1500)).for_each(|_| step(&mut sim));
    }
    let healed = sim.elapsed();
    let all = |log: &Log| log.heard.values().filter(|at| **at > healed).count() == NODES * (NODES - 1);
    while !all(&log.lock().unwrap()) {
        let heard = log.lock().unwrap().heard.clone();
        let lines = &log.lock().unwrap().lines.join("\n");
        assert!(
            sim.elapsed() < healed + HEALED_WITHIN,
            "seed {seed}: since {healed:?} heard {heard:?}:\n{lines}"
        );
        step(&mut sim);
    }
    let log = log.lock().unwrap();
    (log.replies, log.ends)
}

#[test]
fn replies_are_those_to_what_was_asked_whatever_happens_on_the_way_and_nodes_find_each_other_again() {
    for seed in seeds(12) {
        let (replies, ends) = run(seed);
        println!("seed {seed}: {replies} replies, {ends} connections lost");
        assert!(replies > 500 && ends > 3, "seed {seed} tries something: {replies} replies, {ends} ends");
    }
}
