//! What lies between the nodes of a cluster that is harmed: relays, which need no rights and do everything that the weather
//! knows, or network namespaces, where the system itself carries and drops packets. How each works is in
//! [`relay`](crate::relay) and [`namespaces`].

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::namespaces::{self, NamespaceError, Namespaces};
use crate::relay::Relays;
use crate::weather::{Chances, Packets};

/// Which kind of network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// A relay before each node.
    #[default]
    Relays,
    /// A network namespace for each node.
    Namespaces,
}

impl NetworkKind {
    /// Makes sure that there can be such networks, and removes what killed processes of this program have left of theirs.
    ///
    /// # Errors
    /// There can be none here; the error says why and what to do.
    pub fn prepare(self) -> Result<(), NamespaceError> {
        match self {
            Self::Relays => Ok(()),
            Self::Namespaces => namespaces::permitted().and_then(|()| namespaces::remove_leftovers()),
        }
    }

    /// What cannot be done to packets there, and why.
    pub fn lacks(self) -> Vec<String> {
        match self {
            Self::Relays => Vec::new(),
            Self::Namespaces => {
                vec![
                    "packets that come twice or late: rules of nft drop packets, and do nothing else to them"
                        .into(),
                ]
            }
        }
    }
}

/// Where a node is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others join through it; anywhere on this machine if none.
    pub join_listen: Option<SocketAddr>,
    /// Where other nodes and clients reach it, which it is to advertise.
    pub address: SocketAddr,
    /// What stands before its program on the command line.
    pub runner: Vec<String>,
}

/// A network. Dropped, it carries nothing more.
#[derive(Debug)]
pub enum Network {
    /// A relay before each node.
    Relays(Relays),
    /// A network namespace for each node.
    Namespaces(Namespaces),
}

impl Network {
    /// One without nodes, in fair weather. Of relays, all chances follow from `seed`.
    ///
    /// # Errors
    /// Namespaces cannot be had.
    pub fn open(kind: NetworkKind, seed: u64) -> Result<Self, NamespaceError> {
        Ok(match kind {
            NetworkKind::Relays => Self::Relays(Relays::new(seed)),
            NetworkKind::Namespaces => Self::Namespaces(Namespaces::open()?),
        })
    }

    /// A place for the node of an index. Indexes are given in their order; that of a node which did not come up is given again.
    ///
    /// # Errors
    /// No sockets or namespaces can be had.
    pub async fn place(&mut self, index: usize) -> anyhow::Result<Place> {
        Ok(match self {
            Self::Relays(relays) => relays.place(index).await?,
            Self::Namespaces(namespaces) => namespaces.place(index)?,
        })
    }

    /// The chances on every way from now on, as far as such a network has them.
    ///
    /// # Errors
    /// Rules cannot be changed.
    pub fn set(&mut self, chances: Chances) -> Result<(), NamespaceError> {
        match self {
            Self::Relays(relays) => relays.set(chances),
            Self::Namespaces(namespaces) => return namespaces.set(chances),
        }
        Ok(())
    }

    /// Lets nothing through from one node to another, for each of these pairs of indexes. The other direction stays.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn cut(&mut self, ways: &[(usize, usize)]) -> Result<(), NamespaceError> {
        match self {
            Self::Relays(relays) => relays.cut(ways),
            Self::Namespaces(namespaces) => return namespaces.cut(ways),
        }
        Ok(())
    }

    /// No way is cut any more, and nothing is left to chance.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn clear(&mut self) -> Result<(), NamespaceError> {
        match self {
            Self::Relays(relays) => relays.clear(),
            Self::Namespaces(namespaces) => return namespaces.clear(),
        }
        Ok(())
    }

    /// What became of packets so far.
    ///
    /// # Errors
    /// Counters cannot be read.
    pub fn packets(&self) -> Result<Packets, NamespaceError> {
        match self {
            Self::Relays(relays) => Ok(relays.packets()),
            Self::Namespaces(namespaces) => namespaces.packets(),
        }
    }
}
