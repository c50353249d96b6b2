//! What runs while a node serves: its place on the network, the join address, and the API over its contexts. Here the parts
//! are put together; each is its own crate's or file's.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use stellate_actors::Node;
use stellate_actors::api::{Api, serve_api};
use stellate_runtime::clock::SystemClock;
use stellate_runtime::identity::{IssuingStore, JoinDesk};
use stellate_runtime::store::StoreHandle;
use stellate_runtime::substrate::DurableIssuing;
use stellate_runtime::transport::{
    Accepted, CloseCode, ConnectionClass, Endpoint, EndpointSetup, JoinServer, NetworkHandle,
};

use tokio::runtime::Handle;

use super::identity::Identity;
use super::one_node::{Issuer, OneNode};
use super::{Ready, ServeArgs};
use crate::app::App;

/// A node that serves.
#[derive(Debug)]
pub(super) struct Daemon {
    /// The API.
    pub(super) api: Api,
    /// What is told of it.
    pub(super) ready: Ready,
    endpoint: Endpoint,
    join_server: Option<JoinServer>,
}

impl Daemon {
    /// Opens everything. From then on the node can be asked.
    pub(super) fn start(
        app: &App,
        args: &ServeArgs,
        network: &NetworkHandle,
        identity: Identity,
        node: Node,
        store: StoreHandle,
    ) -> anyhow::Result<Self> {
        let settings = &app.settings;
        let Identity { credentials, revocations, authority } = identity;
        let listen: SocketAddr = settings.network.listen;
        let store: Arc<dyn IssuingStore> = Arc::new(DurableIssuing::new(store, Handle::current()));
        let clock = Arc::new(SystemClock::new());
        let details = credentials.details().clone();
        let desk = authority
            .map(|ca| Arc::new(JoinDesk::new(ca, store.clone(), revocations.clone(), clock.clone())));
        if desk.is_some() {
            store.claim_name(&details.name, details.id)?;
        }
        let mut setup = EndpointSetup::new(listen, credentials.clone(), revocations);
        setup.desk = desk.clone();
        let options = setup.options.clone();
        let (endpoint, accepted) = Endpoint::bind(network, setup)?;
        let join_server = match &desk {
            Some(desk) => {
                let address = settings.network.join_listen;
                Some(JoinServer::bind(network, address, &credentials, desk.clone(), options, clock)?)
            }
            _ => None,
        };
        let join_address = join_server.as_ref().map(JoinServer::local_address).transpose()?.map(reachable);
        let model = match (&args.model.random_weights, settings.model.path.as_str()) {
            (Some(shape), _) => shape.clone(),
            (None, "") => "demo".to_owned(),
            (None, path) => path.to_owned(),
        };
        let address = reachable(endpoint.local_address()?).to_string();
        let ready = Ready {
            join_address: join_address.map(|address| address.to_string()),
            name: details.name.to_string(),
            id: details.id.to_string(),
            model: model.clone(),
            address: address.clone(),
        };
        let issuer = desk.zip(join_address).map(|(desk, join_address)| Issuer { desk, store, join_address });
        let cluster = Arc::new(OneNode::new(details, address, node.clone(), issuer));
        let api = Api::new(node, model, cluster.clone());
        cluster.serve(&api);
        tokio::spawn(accept(accepted, api.clone()));
        Ok(Self { api, ready, endpoint, join_server })
    }

    /// Leaves the network, and lets contexts and sessions go.
    pub(super) async fn stop(self) {
        drop(self.join_server);
        self.api.shelf().clear();
        self.endpoint.close().await;
    }
}

/// Hands each connection to what it is for.
async fn accept(mut accepted: Accepted, api: Api) {
    while let Some(connection) = accepted.next().await {
        let peer = connection.peer();
        match connection.class() {
            ConnectionClass::Admin => {
                tracing::info!(name = %peer.name, role = %peer.role, address = %connection.remote_address(), "asked");
                tokio::spawn(serve_api(connection, api.clone()));
            }
            class => {
                tracing::warn!(name = %peer.name, %class, "a connection that this node has no use for");
                connection.close(CloseCode::NotOffered);
            }
        }
    }
}

/// An address as others can use it: where a node listens everywhere, that of the interface that leads outside.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    // Connecting a UDP socket sends nothing: it only asks the system which way it would take (RFC 5737: a test network).
    let outside = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(("192.0.2.1", 9))?;
        Ok(socket.local_addr()?.ip())
    };
    let ip = outside().unwrap_or_else(|_| IpAddr::from([127, 0, 0, 1]));
    SocketAddr::new(ip, address.port())
}
