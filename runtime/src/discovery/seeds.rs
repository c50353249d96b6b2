//! Addresses in the settings. Those that are names are looked up at each look.

use std::net::{IpAddr, SocketAddr};

use super::dns::{Resolver, split};
use super::finder::{Candidate, DiscoveryError, Finder, Look, Source};
use super::options::DiscoveryOptions;

/// Yields the seeds.
#[derive(Debug)]
pub struct SeedFinder {
    fixed: Vec<Candidate>,
    names: Vec<(String, u16)>,
    /// Only where there are names.
    resolver: Option<Resolver>,
}

impl SeedFinder {
    /// A finder for the seeds in `options`.
    ///
    /// # Errors
    /// A seed is no address and no name, or there are names and no DNS servers to ask.
    pub fn new(options: &DiscoveryOptions) -> Result<Self, DiscoveryError> {
        let (mut fixed, mut names) = (Vec::new(), Vec::new());
        for seed in &options.seeds {
            if let Some(address) = address(seed, options.default_port) {
                fixed.push(Candidate { address, source: Source::Seeds, origin: seed.clone() });
            } else {
                let (host, port) = split(seed, options.default_port)?;
                names.push((host.to_owned(), port));
            }
        }
        let resolver = if names.is_empty() { None } else { Some(Resolver::new(options)?) };
        Ok(Self { fixed, names, resolver })
    }
}

impl Finder for SeedFinder {
    fn source(&self) -> Source {
        Source::Seeds
    }

    async fn look(&mut self) -> Look {
        let mut look = Look { candidates: self.fixed.clone(), warnings: Vec::new() };
        if let Some(resolver) = &self.resolver {
            for (host, port) in &self.names {
                resolver.host(host, *port, Source::Seeds, host, &mut look).await;
            }
        }
        look
    }
}

/// `text` as an address, with or without a port.
fn address(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, port));
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0).or_else(with_port)
}
