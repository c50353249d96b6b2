//! Intervals, bounds, and several sources together, on tokio's own paused time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::{Instant, timeout};

use super::*;

/// A source that finds `count` addresses, twice each, at each look, and counts its looks.
struct MadeUp {
    source: Source,
    count: u16,
    looks: Arc<AtomicUsize>,
}

impl Finder for MadeUp {
    fn source(&self) -> Source {
        self.source
    }

    async fn look(&mut self) -> Look {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let candidate = |port| Candidate {
            address: SocketAddr::from(([10, 0, 0, 1], port)),
            source: self.source,
            origin: "made up".to_owned(),
        };
        let candidates = (1..=self.count).flat_map(|port| [candidate(port), candidate(port)]).collect();
        Look { candidates, warnings: Vec::new() }
    }
}

fn made_up(source: Source, count: u16) -> (MadeUp, Arc<AtomicUsize>) {
    let looks = Arc::new(AtomicUsize::new(0));
    (MadeUp { source, count, looks: Arc::clone(&looks) }, looks)
}

#[tokio::test(start_paused = true)]
async fn a_source_is_asked_at_once_then_at_intervals_and_sooner_when_wanted_but_not_too_often() {
    let options = DiscoveryOptions::default();
    let (interval, shortest) = (options.interval, options.shortest_interval);
    let mut discovery = Discovery::with_options(options);
    let start = Instant::now();
    discovery.add(made_up(Source::Dns, 1).0);
    let mut times = Vec::new();
    for look in 0..4 {
        discovery.next().await;
        times.push(start.elapsed());
        if look == 1 {
            for _ in 0..100 {
                discovery.want();
            }
        }
    }
    // Tokio's timers count milliseconds and may be one late.
    let expected = [Duration::ZERO, interval, interval + shortest, 2 * interval + shortest];
    for (time, expected) in times.iter().zip(expected) {
        assert!(time.abs_diff(expected) < Duration::from_millis(10), "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn addresses_come_once_each_and_no_more_than_may_be() {
    let mut discovery =
        Discovery::with_options(DiscoveryOptions { max_candidates: 3, ..DiscoveryOptions::default() });
    discovery.add(made_up(Source::Seeds, 5).0);
    let mut ports = Vec::new();
    let warning = loop {
        match discovery.next().await {
            Finding::Candidate(candidate) => ports.push(candidate.address.port()),
            Finding::Warning(warning) => break warning,
        }
    };
    assert_eq!(ports, [1, 2, 3]);
    assert_eq!(warning, Warning::TooMany { source_kind: Source::Seeds, found: 5, limit: 3 });
}

#[tokio::test(start_paused = true)]
async fn sources_wait_when_nobody_takes_what_they_find() {
    let mut discovery = Discovery::with_options(DiscoveryOptions { queue: 4, ..DiscoveryOptions::default() });
    let (finder, looks) = made_up(Source::Mdns, 10);
    discovery.add(finder);
    // An hour of paused time in which nobody takes anything.
    assert!(timeout(Duration::from_secs(3600), std::future::pending::<()>()).await.is_err());
    assert_eq!(looks.load(Ordering::Relaxed), 1);
    for _ in 0..11 {
        discovery.next().await;
    }
    assert_eq!(looks.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn several_sources_feed_one_stream() {
    let options = DiscoveryOptions {
        seeds: vec!["10.0.0.7:7400".to_owned()],
        dns: vec!["nothing.invalid".to_owned()],
        // Nobody listens there.
        name_servers: vec![address("127.0.0.1:9")],
        timeout: Duration::from_millis(200),
        ..DiscoveryOptions::default()
    };
    let mut discovery = Discovery::start(options).expect("proper");
    let (mut candidate, mut warning) = (None, None);
    while candidate.is_none() || warning.is_none() {
        match timeout(LIMIT, discovery.next()).await.expect("in time") {
            Finding::Candidate(found) => candidate = Some(found.address),
            Finding::Warning(found) => warning = Some(found),
        }
    }
    assert_eq!(candidate, Some(address("10.0.0.7:7400")));
    let warning = warning.expect("waited for");
    assert!(matches!(warning, Warning::Dns { .. } | Warning::NotFound { .. }), "{warning:?}");
}
