//! A served node with certificates of a cluster of its own, on free loopback ports, for tests of the API over the network.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt};
use stellate_actors::api::{
    Api, Check, Client, ClusterAdmin, ClusterError, DrainRequest, Finding, IssuedToken, MoveEvent, MoveKind,
    NodeInfo, NodeState, RebalancePlan, TokenInfo, serve_api,
};
use stellate_actors::{Model, ModelOptions, ModelSource, Node, NodeOptions};
use stellate_runtime::identity::{CertificateAuthority, Credentials, Revocations};
use stellate_runtime::transport::{Accepted, Endpoint, EndpointSetup, NetworkThread, TransportOptions};
use tokio::sync::mpsc;

/// In the wording that the demo model was taught.
pub(crate) const FACTS: &str = "Some special magic numbers are hidden within the following text. Make sure to memorize it. \
                                I will quiz you about the numbers afterwards.\nThe grass is green. The sky is blue. One of \
                                the special magic numbers for amber-falcon is: 4816302. The sun is yellow. Here we go. \
                                There and back again. The grass is green. One of the special magic numbers for \
                                misty-otter is: 7659321. The sky is blue. The sun is yellow. Here we go.\n";

/// What is asked of the facts.
pub(crate) fn question(key: &str) -> String {
    format!(
        "What is the special magic number for {key} mentioned in the provided text? \
         The special magic number for {key} mentioned in the provided text is"
    )
}

/// A cluster's CA.
pub(crate) struct Authority(CertificateAuthority);

impl Authority {
    pub(crate) fn new() -> Self {
        Self(CertificateAuthority::create(SystemTime::now()).unwrap())
    }

    pub(crate) fn admin(&self, name: &str) -> Arc<Credentials> {
        Arc::new(self.0.issue_admin(&name.parse().unwrap(), SystemTime::now()).unwrap())
    }

    pub(crate) fn node(&self, name: &str) -> Arc<Credentials> {
        Arc::new(self.0.issue_node(&name.parse().unwrap(), SystemTime::now()).unwrap())
    }

    fn setup(&self, credentials: Arc<Credentials>) -> EndpointSetup {
        let revocations = Revocations::new(self.0.certificate()).unwrap();
        let mut setup = EndpointSetup::new((Ipv4Addr::LOCALHOST, 0).into(), credentials, revocations);
        // The test machine may be busy for longer than a network thread may be.
        setup.options = TransportOptions { idle: Duration::from_secs(20), ..TransportOptions::default() };
        setup
    }
}

/// A node of this process, served on a port of its own.
pub(crate) struct Served {
    pub(crate) authority: Authority,
    pub(crate) node: Node,
    pub(crate) api: Api,
    pub(crate) endpoint: Endpoint,
    _network: NetworkThread,
}

impl Served {
    /// The demo model on two context hosts.
    pub(crate) async fn new() -> Self {
        Self::with(NodeOptions { capacity_bytes: 64 << 20, ..NodeOptions::default() }).await
    }

    pub(crate) async fn with(options: NodeOptions) -> Self {
        let authority = Authority::new();
        let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {}).unwrap();
        let node = Node::open(&model, options.with_hosts(2)).await.unwrap();
        let api = Api::new(node.clone(), Arc::default(), "demo".to_owned(), Arc::new(OneNode));
        let network = NetworkThread::start("served").unwrap();
        let credentials = authority.node("server");
        let (endpoint, accepted) = Endpoint::bind(&network.handle(), authority.setup(credentials)).unwrap();
        tokio::spawn(accept(accepted, api.clone()));
        Self { authority, node, api, endpoint, _network: network }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_address().unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_of(self.authority.admin("alice")).await
    }

    pub(crate) async fn client_of(&self, credentials: Arc<Credentials>) -> Client {
        Client::connect_with(self.address(), self.authority.setup(credentials)).await.unwrap()
    }

    /// An endpoint with an administrator's certificate, for frames of one's own.
    pub(crate) fn raw(&self) -> (Endpoint, NetworkThread) {
        self.raw_of(self.authority.admin("mallory"))
    }

    /// As [`raw`](Self::raw), with another certificate.
    pub(crate) fn raw_of(&self, credentials: Arc<Credentials>) -> (Endpoint, NetworkThread) {
        let network = NetworkThread::start("raw").unwrap();
        let setup = self.authority.setup(credentials);
        (Endpoint::bind(&network.handle(), setup).unwrap().0, network)
    }
}

async fn accept(mut accepted: Accepted, api: Api) {
    while let Some(connection) = accepted.next().await {
        tokio::spawn(serve_api(connection, api.clone()));
    }
}

/// A cluster of one node that moves one block.
#[derive(Debug)]
struct OneNode;

impl OneNode {
    fn info() -> NodeInfo {
        NodeInfo {
            name: "server".to_owned(),
            id: "0".repeat(64),
            address: "127.0.0.1:1".to_owned(),
            state: NodeState::Active,
            why: None,
            roles: vec!["context".to_owned()],
            devices: "1xCPU".to_owned(),
            version: "0".to_owned(),
            capacity_bytes: 2,
            used_bytes: Some(1),
            blocks: Some(1),
            sessions: Some(0),
            rtt_us: None,
            computed_blocks: None,
            disk: None,
        }
    }

    async fn moved(events: mpsc::Sender<MoveEvent>) -> Result<(), ClusterError> {
        let complete = MoveEvent { at_ms: 7, kind: MoveKind::Complete { moved: 1, recomputed: 0 } };
        let _ = events.send(complete).await;
        Ok(())
    }
}

impl ClusterAdmin for OneNode {
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeInfo>, ClusterError>> {
        async { Ok(vec![Self::info()]) }.boxed()
    }

    fn set_cordon(&self, node: String, cordoned: bool) -> BoxFuture<'_, Result<NodeInfo, ClusterError>> {
        async move {
            let state = if cordoned { NodeState::Cordoned } else { NodeState::Active };
            if node == "server" {
                return Ok(NodeInfo { state, ..Self::info() });
            }
            Err(ClusterError::UnknownNode { node })
        }
        .boxed()
    }

    fn drain(
        &self,
        _: DrainRequest,
        events: mpsc::Sender<MoveEvent>,
    ) -> BoxFuture<'_, Result<(), ClusterError>> {
        Self::moved(events).boxed()
    }

    fn remove(&self, _: String, _: bool) -> BoxFuture<'_, Result<(), ClusterError>> {
        async { Err(ClusterError::Refused("it is the only node".to_owned())) }.boxed()
    }

    fn plan(&self) -> BoxFuture<'_, Result<RebalancePlan, ClusterError>> {
        async { Ok(RebalancePlan::default()) }.boxed()
    }

    fn rebalance(&self, events: mpsc::Sender<MoveEvent>) -> BoxFuture<'_, Result<(), ClusterError>> {
        Self::moved(events).boxed()
    }

    fn create_token(&self, ttl: Duration, uses: u32) -> BoxFuture<'_, Result<IssuedToken, ClusterError>> {
        let (expires_s, uses) = (ttl.as_secs(), u64::from(uses));
        let (id, token, join_address) = ("id".to_owned(), "line".to_owned(), "127.0.0.1:2".to_owned());
        async move { Ok(IssuedToken { id, token, expires_s, uses, join_address }) }.boxed()
    }

    fn tokens(&self) -> BoxFuture<'_, Result<Vec<TokenInfo>, ClusterError>> {
        let (id, state) = ("id".to_owned(), "open".to_owned());
        async move { Ok(vec![TokenInfo { id, state, expires_s: 9, uses_left: 1, used_by: Vec::new() }]) }
            .boxed()
    }

    fn revoke_token(&self, id: String) -> BoxFuture<'_, Result<(), ClusterError>> {
        async move { if id == "id" { Ok(()) } else { Err(ClusterError::Unknown(format!("no token {id}"))) } }
            .boxed()
    }

    fn revoke_admin(&self, _: String) -> BoxFuture<'_, Result<(), ClusterError>> {
        async { Ok(()) }.boxed()
    }

    fn doctor(&self, _: bool) -> BoxFuture<'_, Result<Vec<Check>, ClusterError>> {
        let (node, what, detail) = ("server".to_owned(), "clock".to_owned(), "0 ms".to_owned());
        async move { Ok(vec![Check { node, what, finding: Finding::Good, detail }]) }.boxed()
    }
}
