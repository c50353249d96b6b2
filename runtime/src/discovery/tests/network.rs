//! Multicast DNS between finders of this process. Where the machine has no interface on which multicast works, as in many
//! containers, the test says so and skips: there is nothing it could find.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use tokio::time::timeout;

use super::*;

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

/// Whether a multicast datagram sent from this address comes back to us.
fn echoes(ip: Ipv4Addr) -> std::io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = socket.local_addr()?.port();
    socket.join_multicast_v4(&GROUP, &ip)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let sender = UdpSocket::bind((ip, 0))?;
    sender.set_multicast_loop_v4(true)?;
    sender.send_to(b"echo", (GROUP, port))?;
    socket.recv(&mut [0; 16]).map(drop)
}

/// The address of an interface on which multicast works.
fn interface() -> Option<IpAddr> {
    let routed = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // Sends nothing: asks the system which interface it would use.
        socket.connect((GROUP, 5353)).ok()?;
        match socket.local_addr().ok()?.ip() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }
    };
    let mut interfaces = [routed(), Some(Ipv4Addr::LOCALHOST)].into_iter().flatten();
    interfaces.find(|ip| echoes(*ip).is_ok()).map(IpAddr::V4)
}

fn start(cluster: &str, ip: IpAddr, node: Option<(&str, u16)>) -> Discovery {
    let announcement = node.map(|(name, port)| Announcement {
        // Of this process, so that runs beside each other stay apart.
        name: format!("{name}-{}", std::process::id()),
        port,
        addresses: vec![ip],
    });
    let mdns = MdnsOptions { announcement, interfaces: vec![ip], ..MdnsOptions::for_cluster(cluster) };
    let options = DiscoveryOptions {
        mdns: Some(mdns),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        ..DiscoveryOptions::default()
    };
    Discovery::start(options).expect("starts")
}

async fn first(discovery: &mut Discovery) -> SocketAddr {
    loop {
        if let Finding::Candidate(candidate) = timeout(LIMIT, discovery.next()).await.expect("in time") {
            return candidate.address;
        }
    }
}

#[tokio::test]
async fn nodes_of_one_cluster_find_each_other_on_the_local_network_and_no_others() {
    let Some(ip) = interface() else {
        println!("SKIPPED: multicast works on no interface of this machine");
        return;
    };
    println!("on {ip}");
    let cluster = format!("test-{}", std::process::id());
    let mut one = start(&cluster, ip, Some(("one", 7401)));
    let mut two = start(&cluster, ip, Some(("two", 7402)));
    let _stranger = start("another", ip, Some(("stranger", 7403)));
    let mut listener = start(&cluster, ip, None);
    assert_eq!(first(&mut one).await, SocketAddr::new(ip, 7402));
    assert_eq!(first(&mut two).await, SocketAddr::new(ip, 7401));
    let mut heard = BTreeSet::new();
    while heard.len() < 2 {
        heard.insert(first(&mut listener).await.port());
    }
    assert_eq!(heard.into_iter().collect::<Vec<_>>(), [7401, 7402]);
}
