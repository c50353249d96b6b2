//! Names in DNS: addresses (A, AAAA) and services (SRV). The resolver's cache is off, for a node that looks again wants to
//! know what is there now.

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

use super::finder::{Candidate, DiscoveryError, Finder, Look, Source, Warning};
use super::options::DiscoveryOptions;

/// The most targets of one service that are looked up.
const MAX_TARGETS: usize = 64;
/// How often a question that got no answer is asked.
const ATTEMPTS: usize = 2;

/// Looks names up.
#[derive(Debug)]
pub struct DnsFinder {
    resolver: Resolver,
    names: Vec<DnsName>,
}

/// A name and what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DnsName {
    Service(String),
    Host(String, u16),
}

impl DnsFinder {
    /// A finder for the names in `options`.
    ///
    /// # Errors
    /// A name is none, or there are no DNS servers to ask.
    pub fn new(options: &DiscoveryOptions) -> Result<Self, DiscoveryError> {
        let name = |text: &String| {
            if text.starts_with('_') {
                return Ok(DnsName::Service(text.clone()));
            }
            let (host, port) = split(text, options.default_port)?;
            Ok(DnsName::Host(host.to_owned(), port))
        };
        let names = options.dns.iter().map(name).collect::<Result<_, _>>()?;
        Ok(Self { resolver: Resolver::new(options)?, names })
    }
}

impl Finder for DnsFinder {
    fn source(&self) -> Source {
        Source::Dns
    }

    async fn look(&mut self) -> Look {
        let mut look = Look::default();
        for name in &self.names {
            match name {
                DnsName::Host(host, port) => {
                    self.resolver.host(host, *port, Source::Dns, host, &mut look).await
                }
                DnsName::Service(name) => self.resolver.service(name, &mut look).await,
            }
        }
        look
    }
}

/// The host and the port of `text`, or `port` if it names none.
pub(super) fn split(text: &str, port: u16) -> Result<(&str, u16), DiscoveryError> {
    let bad = || DiscoveryError::BadAddress { text: text.to_owned() };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, digits)) => (host, digits.parse().map_err(|_| bad())?),
        None => (text, port),
    };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if host.is_empty() || host.len() > 253 || port == 0 || !host.bytes().all(fits) {
        return Err(bad());
    }
    Ok((host, port))
}

/// DNS, as both the names in it and the names among seeds are looked up.
#[derive(Debug)]
pub(super) struct Resolver {
    dns: TokioResolver,
}

impl Resolver {
    pub(super) fn new(options: &DiscoveryOptions) -> Result<Self, DiscoveryError> {
        let unusable = |error: NetError| DiscoveryError::NoNameServers { problem: error.to_string() };
        let mut builder = if options.name_servers.is_empty() {
            TokioResolver::builder_tokio().map_err(unusable)?
        } else {
            let servers = options.name_servers.iter().map(name_server).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let settings = builder.options_mut();
        settings.timeout = options.timeout;
        settings.attempts = ATTEMPTS;
        settings.cache_size = 0;
        Ok(Self { dns: builder.build().map_err(unusable)? })
    }

    /// Addresses of `host`.
    pub(super) async fn host(&self, host: &str, port: u16, source: Source, origin: &str, look: &mut Look) {
        match self.dns.lookup_ip(host).await {
            Ok(found) => {
                let mut addresses: Vec<IpAddr> = found.iter().collect();
                // DNS servers rotate their answers; who wants a random one can take one.
                addresses.sort_unstable();
                addresses.dedup();
                look.candidates.extend(addresses.into_iter().map(|ip| Candidate {
                    address: SocketAddr::new(ip, port),
                    source,
                    origin: origin.to_owned(),
                }));
            }
            Err(error) => look.warnings.push(warning(host, &error)),
        }
    }

    /// Addresses of the targets of a service, those of better priority first.
    async fn service(&self, name: &str, look: &mut Look) {
        let found = match self.dns.srv_lookup(name).await {
            Ok(found) => found,
            Err(error) => return look.warnings.push(warning(name, &error)),
        };
        let mut targets: Vec<_> = found
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(service) => Some((service.priority, service.target.to_utf8(), service.port)),
                _ => None,
            })
            // A target of one dot says that there is decidedly no such service (RFC 2782).
            .filter(|(_, target, port)| target != "." && *port != 0)
            .collect();
        targets.sort_unstable();
        if targets.is_empty() {
            look.warnings.push(Warning::NotFound { name: name.to_owned() });
        }
        if targets.len() > MAX_TARGETS {
            look.warnings.push(Warning::TooMany {
                source_kind: Source::Dns,
                found: targets.len(),
                limit: MAX_TARGETS,
            });
        }
        for (_, target, port) in targets.into_iter().take(MAX_TARGETS) {
            self.host(&target, port, Source::Dns, name, look).await;
        }
    }
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let with_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let connections = vec![with_port(ConnectionConfig::udp()), with_port(ConnectionConfig::tcp())];
    NameServerConfig::new(address.ip(), true, connections)
}

fn warning(name: &str, error: &NetError) -> Warning {
    let name = name.to_owned();
    if error.is_nx_domain() || error.is_no_records_found() {
        Warning::NotFound { name }
    } else {
        Warning::Dns { name, problem: error.to_string() }
    }
}
