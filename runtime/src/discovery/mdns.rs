//! The local network: announces this node by multicast DNS (RFC 6762, 6763) and hears of others. It works where multicast
//! does, which is seldom in clouds and containers: never the only way to find a cluster.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV6};
use std::time::Duration;

use mdns_sd::{
    DaemonEvent, IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo,
};
use tokio::time::timeout;

use super::finder::{Candidate, DiscoveryError, Finder, Look, Source, Warning};
use super::options::{Announcement, MdnsOptions};

/// The property that names the cluster.
const CLUSTER: &str = "cluster";
/// The most services that are remembered.
const MAX_SERVICES: usize = 1024;

/// Hears, and says who we are. The crate it rests on has a thread of its own, which ends with it.
pub struct MdnsFinder {
    daemon: ServiceDaemon,
    cluster: String,
    events: Receiver<ServiceEvent>,
    troubles: Receiver<DaemonEvent>,
    /// Addresses of those that are there, by the full name of their service.
    services: BTreeMap<String, Vec<SocketAddr>>,
    own: Option<String>,
    window: Duration,
}

impl std::fmt::Debug for MdnsFinder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("MdnsFinder")
            .field("cluster", &self.cluster)
            .field("services", &self.services)
            .finish_non_exhaustive()
    }
}

impl MdnsFinder {
    /// Starts to listen, and to announce if `options` say what. A look waits for news for up to `window`.
    ///
    /// # Errors
    /// The port of multicast DNS cannot be bound, or a name is none.
    pub fn start(options: &MdnsOptions, window: Duration) -> Result<Self, DiscoveryError> {
        let failed = |error: mdns_sd::Error| DiscoveryError::Mdns { problem: error.to_string() };
        let daemon = ServiceDaemon::new().map_err(failed)?;
        if !options.interfaces.is_empty() {
            daemon.disable_interface(IfKind::All).map_err(failed)?;
            let interfaces: Vec<_> = options.interfaces.iter().map(|ip| IfKind::Addr(*ip)).collect();
            daemon.enable_interface(interfaces).map_err(failed)?;
        }
        let troubles = daemon.monitor().map_err(failed)?;
        let own = options.announcement.as_ref().map(|announcement| announce(&daemon, options, announcement));
        let own = own.transpose().map_err(failed)?;
        let events = daemon.browse(&options.service).map_err(failed)?;
        let cluster = options.cluster.clone();
        Ok(Self { daemon, cluster, events, troubles, services: BTreeMap::new(), own, window })
    }

    fn hear(&mut self, event: ServiceEvent) {
        match event {
            ServiceEvent::ServiceResolved(service) => {
                let ours = service.get_property_val_str(CLUSTER) == Some(self.cluster.as_str());
                let own = self.own.as_deref() == Some(service.get_fullname());
                let room =
                    self.services.len() < MAX_SERVICES || self.services.contains_key(service.get_fullname());
                if ours && !own && room && service.is_valid() && service.port != 0 {
                    self.services.insert(service.get_fullname().to_owned(), addresses(&service));
                }
            }
            ServiceEvent::ServiceRemoved(_, name) => {
                self.services.remove(&name);
            }
            _ => {}
        }
    }
}

impl Finder for MdnsFinder {
    fn source(&self) -> Source {
        Source::Mdns
    }

    async fn look(&mut self) -> Look {
        let mut look = Look::default();
        // Answers come within a second or so, and later news at any time: what is known when the window closes is the look.
        let window = self.window;
        let listening = async {
            while let Ok(event) = self.events.recv_async().await {
                self.hear(event);
            }
        };
        let ended = timeout(window, listening).await.is_ok();
        if ended {
            look.warnings.push(Warning::Mdns { problem: "it has stopped".to_owned() });
        }
        while let Ok(trouble) = self.troubles.try_recv() {
            if let DaemonEvent::Error(error) = trouble {
                look.warnings.push(Warning::Mdns { problem: error.to_string() });
            }
        }
        for (name, addresses) in &self.services {
            look.candidates.extend(addresses.iter().map(|address| Candidate {
                address: *address,
                source: Source::Mdns,
                origin: name.clone(),
            }));
        }
        look
    }
}

impl Drop for MdnsFinder {
    fn drop(&mut self) {
        // Says farewell on the network as it ends; if it has ended already there is nothing to do.
        let _ = self.daemon.shutdown();
    }
}

/// Announces this node; the full name of its service.
fn announce(
    daemon: &ServiceDaemon,
    options: &MdnsOptions,
    announcement: &Announcement,
) -> mdns_sd::Result<String> {
    let Announcement { name, port, addresses } = announcement;
    let host = format!("{name}.local.");
    let properties = [(CLUSTER, options.cluster.as_str())];
    let mut service =
        ServiceInfo::new(&options.service, name, &host, addresses.as_slice(), *port, &properties[..])?;
    if addresses.is_empty() {
        service = service.enable_addr_auto();
    }
    let full_name = service.get_fullname().to_owned();
    daemon.register(service)?;
    Ok(full_name)
}

/// The addresses of a service in a fixed order. One that is good on one link only says on which.
fn addresses(service: &ResolvedService) -> Vec<SocketAddr> {
    let address = |ip: &ScopedIp| match ip {
        ScopedIp::V6(v6) if v6.addr().is_unicast_link_local() => {
            SocketAddr::V6(SocketAddrV6::new(*v6.addr(), service.port, 0, v6.scope_id().index))
        }
        other => SocketAddr::new(other.to_ip_addr(), service.port),
    };
    let mut addresses: Vec<_> = service.addresses.iter().map(address).collect();
    addresses.sort_unstable();
    addresses
}
