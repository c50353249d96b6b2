//! Nodes in one process, over real sockets and stores, without a control plane (a process can have one).

mod identity;
mod meeting;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::identity::{CertificateAuthority, Credentials, NodeName};
use crate::membership::{MembershipOptions, NodeState};
use crate::store::{Store, StoreHandle, StoreOptions};

/// Longest that a condition may take; only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("the test ends in time") })
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A CA and a folder for the stores of its nodes.
struct Cluster {
    folder: TempDir,
    authority: PathBuf,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("ca");
        CertificateAuthority::create(SystemClock::new().wall()).unwrap().save_new(&authority).unwrap();
        Self { folder, authority }
    }

    fn authority(&self) -> CertificateAuthority {
        CertificateAuthority::load(&self.authority).unwrap()
    }

    fn credentials(&self, name: &str) -> Arc<Credentials> {
        let name: NodeName = name.parse().unwrap();
        Arc::new(self.authority().issue_node(&name, SystemClock::new().wall()).unwrap())
    }

    fn store(&self, name: &str) -> StoreHandle {
        let store = Store::open(&self.folder.path().join(name), StoreOptions::default()).unwrap();
        StoreHandle::start(store).unwrap()
    }

    fn setup(&self, credentials: &Arc<Credentials>, store: &StoreHandle) -> SubstrateSetup {
        let mut setup = SubstrateSetup::new(loopback(), credentials.clone(), store.clone()).unwrap();
        setup.control = false;
        setup.profile.state = NodeState::Active;
        setup.membership =
            MembershipOptions { bootstrap_period: Duration::from_millis(200), ..setup.membership };
        setup
    }

    /// A new node that looks for others at `seeds`.
    async fn node(&self, name: &str, seeds: &[&Substrate]) -> (Substrate, Incoming) {
        let mut setup = self.setup(&self.credentials(name), &self.store(name));
        seek(&mut setup, seeds);
        Substrate::start(setup).await.unwrap()
    }

    /// The node that holds the CA, with its join address.
    async fn issuer(&self, credentials: &Arc<Credentials>, store: &StoreHandle) -> Substrate {
        let mut setup = self.setup(credentials, store);
        setup.authority = Some(self.authority());
        setup.join_listen = Some(loopback());
        Substrate::start(setup).await.unwrap().0
    }
}

fn seek(setup: &mut SubstrateSetup, seeds: &[&Substrate]) {
    setup.discovery.seeds = seeds.iter().map(|seed| seed.local_address().unwrap().to_string()).collect();
}

/// Waits until the roster of `node` is as `wanted`.
async fn until(node: &Substrate, wanted: impl Fn(&Roster) -> bool) -> Arc<Roster> {
    node.watch().wait_for(|roster| wanted(roster)).await.unwrap().clone()
}

/// Waits until two nodes are members to each other, and connected.
async fn met(one: &Substrate, other: &Substrate) {
    for (one, other) in [(one, other), (other, one)] {
        let id = other.id();
        until(one, |roster| roster.member(id).is_some_and(|m| m.is_up() && m.connection.is_some())).await;
    }
}
