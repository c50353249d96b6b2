//! A cluster's CA and endpoints on free loopback ports, for tests of identity and transport.

#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod anyone;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use stellate_runtime::clock::{Clock, ManualClock};
use stellate_runtime::identity::{
    CertificateAuthority, Credentials, IssuingStore, JoinDesk, JoinToken, MemoryIssuing, NodeName,
    Revocations,
};
use stellate_runtime::transport::{
    Accepted, Endpoint, EndpointSetup, JoinServer, NetworkHandle, NetworkThread, TransportOptions,
};

/// Longest that a condition may take; only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test's waiting on a runtime of its own, beside the network threads.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("the test ends in time") })
}

/// A free port of the loopback interface.
pub(crate) fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// A cluster: its CA at a desk, the tokens, and a clock that stands until it is moved.
pub(crate) struct Cluster {
    pub(crate) desk: Arc<JoinDesk>,
    pub(crate) store: Arc<MemoryIssuing>,
    pub(crate) revocations: Revocations,
    pub(crate) clock: ManualClock,
    pub(crate) network: NetworkThread,
}

/// A day of 2026: certificates need a date that X.509 can write.
pub(crate) const TODAY: Duration = Duration::from_secs(1_795_000_000);

impl Cluster {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::new();
        clock.advance(TODAY);
        let authority = CertificateAuthority::create(clock.wall()).unwrap();
        let revocations = Revocations::new(authority.certificate()).unwrap();
        let store = Arc::new(MemoryIssuing::default());
        let desk = JoinDesk::new(authority, store.clone(), revocations.clone(), Arc::new(clock.clone()));
        let network = NetworkThread::start("network").unwrap();
        Self { desk: Arc::new(desk), store, revocations, clock, network }
    }

    pub(crate) fn handle(&self) -> NetworkHandle {
        self.network.handle()
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clock.clone())
    }

    pub(crate) fn clock_wall(&self) -> std::time::SystemTime {
        self.clock.wall()
    }

    pub(crate) fn node(&self, text: &str) -> Arc<Credentials> {
        Arc::new(self.desk.authority().issue_node(&name(text), self.clock.wall()).unwrap())
    }

    pub(crate) fn admin(&self, text: &str) -> Arc<Credentials> {
        Arc::new(self.desk.authority().issue_admin(&name(text), self.clock.wall()).unwrap())
    }

    /// A setup that shares the cluster's revocation list.
    pub(crate) fn setup(&self, credentials: Arc<Credentials>) -> EndpointSetup {
        let mut setup = EndpointSetup::new(any_port(), credentials, self.revocations.clone());
        setup.clock = self.clock();
        setup.incarnation = 1;
        setup
    }

    pub(crate) fn bind(&self, setup: EndpointSetup) -> (Endpoint, Accepted) {
        Endpoint::bind(&self.handle(), setup).unwrap()
    }

    /// An endpoint for a new node, and its address.
    pub(crate) fn endpoint(&self, text: &str) -> (Endpoint, Accepted, SocketAddr) {
        let (endpoint, accepted) = self.bind(self.setup(self.node(text)));
        let address = endpoint.local_address().unwrap();
        (endpoint, accepted, address)
    }

    pub(crate) fn token(&self, ttl: Duration, uses: u32) -> JoinToken {
        let (token, record) = JoinToken::create(self.desk.authority().hash(), self.clock.wall(), ttl, uses);
        self.store.add_token(record).unwrap();
        token
    }

    pub(crate) fn join_server(&self, options: TransportOptions) -> (JoinServer, SocketAddr) {
        let credentials = self.node("issuer");
        let server = JoinServer::bind(
            &self.handle(),
            any_port(),
            &credentials,
            self.desk.clone(),
            vec![any_port()],
            options,
            self.clock(),
        )
        .unwrap();
        let address = server.local_address().unwrap();
        (server, address)
    }

    /// Removes a node from the cluster: the next list names it.
    pub(crate) fn revoke(&self, node: &Credentials) {
        let list = self.revocations.list().with(node.id());
        let signed = self.desk.authority().sign_revocations(&list).unwrap();
        assert!(self.revocations.install(&signed).unwrap());
    }
}
