//! Where other nodes may be: addresses from settings, from DNS and from multicast DNS, together or singly, as one bounded
//! stream of [`Finding`]s. An address is a hint and no more: who is there, and whether it belongs to the cluster, is found
//! out by connecting and checking its certificate. What is found is not remembered, and nothing here connects to a node.
//!
//! Each source is a [`Finder`] that looks when asked; [`Discovery`] asks all of them at intervals, and sooner when it is told
//! that somebody is waiting, but never more often than the options allow. A source that fails says so as a warning, once per
//! look, and is asked again; the others go on.

mod dns;
mod driver;
mod finder;
#[cfg(feature = "mdns")]
mod mdns;
mod options;
mod seeds;

#[cfg(test)]
mod tests;

pub use dns::DnsFinder;
pub use driver::Discovery;
pub use finder::{Candidate, DiscoveryError, Finder, Finding, Look, Source, Warning};
#[cfg(feature = "mdns")]
pub use mdns::MdnsFinder;
pub use options::{Announcement, DiscoveryOptions, MdnsOptions};
pub use seeds::SeedFinder;
