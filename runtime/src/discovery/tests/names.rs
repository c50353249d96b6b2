//! Seeds and names in DNS.

use std::sync::atomic::Ordering;

use super::server::{Answer, Server};
use super::*;

fn options(server: &Server) -> DiscoveryOptions {
    DiscoveryOptions {
        name_servers: vec![server.address],
        timeout: Duration::from_secs(2),
        ..DiscoveryOptions::default()
    }
}

fn ips(texts: &[&str]) -> Answer {
    Answer::Addresses(texts.iter().map(|text| text.parse().expect("an address")).collect())
}

fn dns(server: &Server, names: &[&str]) -> DnsFinder {
    let dns = names.iter().map(|name| (*name).to_owned()).collect();
    DnsFinder::new(&DiscoveryOptions { dns, ..options(server) }).expect("proper names")
}

#[tokio::test]
async fn a_headless_service_gives_the_addresses_of_all_its_nodes() {
    let name = "stellate.default.svc.cluster.local";
    let server = Server::start([(name, ips(&["10.1.0.2", "10.1.0.1", "fd00::7"]))]).await;
    let look = dns(&server, &[&format!("{name}:7500")]).look().await;
    assert_eq!(look.warnings, []);
    let mut found = addresses(&look);
    found.sort_unstable();
    assert_eq!(found, ["10.1.0.1:7500", "10.1.0.2:7500", "[fd00::7]:7500"].map(address));
    assert_eq!((look.candidates[0].source, look.candidates[0].origin.as_str()), (Source::Dns, name));
}

#[tokio::test]
async fn a_service_gives_ports_and_the_better_priority_first() {
    let service = |priority, port, target: &str| (priority, port, target.to_owned());
    let services = vec![
        service(20, 7402, "b.example."),
        service(10, 7401, "a.example."),
        service(30, 7403, "gone.example."),
    ];
    let names = [
        ("_stellate._udp.example", Answer::Services(services)),
        ("a.example", ips(&["10.0.0.1"])),
        ("b.example", ips(&["10.0.0.2", "10.0.0.3"])),
    ];
    let server = Server::start(names).await;
    let look = dns(&server, &["_stellate._udp.example"]).look().await;
    assert_eq!(addresses(&look), ["10.0.0.1:7401", "10.0.0.2:7402", "10.0.0.3:7402"].map(address));
    assert_eq!(look.warnings, [Warning::NotFound { name: "gone.example.".to_owned() }]);
}

#[tokio::test]
async fn a_name_that_fails_is_a_warning_and_the_others_are_found() {
    let server =
        Server::start([("good.example", ips(&["10.0.0.9"])), ("bad.example", Answer::Failure)]).await;
    let look = dns(&server, &["bad.example", "none.example", "good.example"]).look().await;
    assert_eq!(addresses(&look), [address("10.0.0.9:7400")]);
    assert!(
        matches!(&look.warnings[0], Warning::Dns { name, .. } if name == "bad.example"),
        "{:?}",
        look.warnings
    );
    assert_eq!(look.warnings[1], Warning::NotFound { name: "none.example".to_owned() });
}

#[tokio::test]
async fn each_look_asks_again_for_nodes_come_and_go() {
    let server = Server::start([("pool.example", ips(&["10.0.0.1"]))]).await;
    let mut finder = dns(&server, &["pool.example"]);
    finder.look().await;
    let asked = server.asked.load(Ordering::Relaxed);
    finder.look().await;
    assert!(server.asked.load(Ordering::Relaxed) > asked);
}

#[tokio::test]
async fn seeds_are_addresses_or_names_with_or_without_a_port() {
    let server = Server::start([("node-1.example", ips(&["10.0.0.4"]))]).await;
    let seeds =
        ["10.0.0.1:7500", "10.0.0.2", "[fd00::1]:7600", "fd00::2", "[fd00::3]", "node-1.example:7700"];
    let options = DiscoveryOptions { seeds: seeds.map(str::to_owned).to_vec(), ..options(&server) };
    let look = SeedFinder::new(&options).expect("proper seeds").look().await;
    let expected = [
        "10.0.0.1:7500",
        "10.0.0.2:7400",
        "[fd00::1]:7600",
        "[fd00::2]:7400",
        "[fd00::3]:7400",
        "10.0.0.4:7700",
    ];
    assert_eq!(addresses(&look), expected.map(address));
    assert_eq!(look.warnings, []);
}

#[test]
fn what_is_no_address_and_no_name_is_refused_at_start() {
    for text in ["", ":7400", "host:port", "host:0", "a b", "host:70000", "http://host"] {
        let options = DiscoveryOptions { seeds: vec![text.to_owned()], ..DiscoveryOptions::default() };
        let error = SeedFinder::new(&options).map(drop).expect_err(text);
        assert_eq!(error, DiscoveryError::BadAddress { text: text.to_owned() });
    }
}
