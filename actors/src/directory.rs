//! The context hosts that can be reached now, of this node and of others. They join and go at any time; who walks a path
//! takes a snapshot. Who is a member is decided elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::link::HostId;
use crate::port::HostPort;

/// The hosts of a moment.
pub type Hosts = Arc<BTreeMap<HostId, Arc<dyn HostPort>>>;

/// The ways to the context hosts.
#[derive(Debug, Default)]
pub struct Directory {
    hosts: RwLock<Hosts>,
}

impl Directory {
    /// A directory of these hosts.
    pub fn of(hosts: impl IntoIterator<Item = Arc<dyn HostPort>>) -> Self {
        let hosts = hosts.into_iter().map(|host| (host.host(), host)).collect();
        Self { hosts: RwLock::new(Arc::new(hosts)) }
    }

    /// The hosts as they are now.
    pub fn snapshot(&self) -> Hosts {
        Arc::clone(&self.hosts.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The way to a host, if it can be reached.
    pub fn get(&self, host: HostId) -> Option<Arc<dyn HostPort>> {
        self.hosts.read().unwrap_or_else(PoisonError::into_inner).get(&host).cloned()
    }

    /// A host has joined, or is reached another way from now on. Links made before stay as they are.
    pub fn join(&self, host: Arc<dyn HostPort>) {
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut hosts).insert(host.host(), host);
    }

    /// A host has gone. Steps that still ask it fail, and heal.
    pub fn remove(&self, host: HostId) -> Option<Arc<dyn HostPort>> {
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut hosts).remove(&host)
    }
}
