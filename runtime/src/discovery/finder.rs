//! What a source of addresses is, what it may find, and what can go wrong with it.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;

/// A source of addresses.
pub trait Finder: Send + 'static {
    /// Which one it is.
    fn source(&self) -> Source;

    /// Looks once. Takes a bounded time. May be dropped before it ends.
    fn look(&mut self) -> impl Future<Output = Look> + Send;
}

/// What one look has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Addresses, the better first.
    pub candidates: Vec<Candidate>,
    /// What went wrong.
    pub warnings: Vec<Warning>,
}

/// A kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Addresses in the settings.
    Seeds,
    /// Names in DNS.
    Dns,
    /// The local network.
    Mdns,
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Seeds => "seeds",
            Self::Dns => "DNS",
            Self::Mdns => "multicast DNS",
        })
    }
}

/// An address at which a node may be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// The address.
    pub address: SocketAddr,
    /// Where it was found.
    pub source: Source,
    /// The seed, name or service that it comes from, to show to people.
    pub origin: String,
}

/// Something that discovery yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// An address. It comes again at each look that finds it.
    Candidate(Candidate),
    /// Something that went wrong. The source is asked again.
    Warning(Warning),
}

/// What went wrong in a look; what was found besides is there all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// DNS knows no such name, or no address of it. Usual while a deployment starts.
    #[error("DNS has no addresses of {name}; check the name, and that its nodes run")]
    NotFound {
        /// The name.
        name: String,
    },

    /// DNS did not answer properly.
    #[error("DNS failed for {name}: {problem}")]
    Dns {
        /// The name.
        name: String,
        /// What was said.
        problem: String,
    },

    /// Multicast DNS does not work.
    #[error("multicast DNS: {problem}")]
    Mdns {
        /// What was said.
        problem: String,
    },

    /// More addresses than are taken.
    #[error("{source_kind} found {found} addresses; the first {limit} are taken")]
    TooMany {
        /// Which source.
        source_kind: Source,
        /// How many.
        found: usize,
        /// How many are taken.
        limit: usize,
    },
}

/// Discovery cannot start. Nothing runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// Something that is no address and no name.
    #[error("`{text}` is neither an address nor a name, with or without `:port`")]
    BadAddress {
        /// As it was written.
        text: String,
    },

    /// The system does not say which DNS servers to use.
    #[error("the system's DNS settings cannot be read ({problem}); name DNS servers in the settings")]
    NoNameServers {
        /// What was said.
        problem: String,
    },

    /// Multicast DNS cannot be used.
    #[error("multicast DNS cannot be used: {problem}; leave it out or check the network's interfaces")]
    Mdns {
        /// What was said.
        problem: String,
    },
}
