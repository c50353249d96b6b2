//! What a node is started with, and what comes of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::memory::MemoryError;
use crate::clock::{Clock, SystemClock};
use crate::config::{NodeRole, Settings};
use crate::control::ControlError;
use crate::discovery::{Announcement, DiscoveryError, DiscoveryOptions, MdnsOptions};
use crate::identity::{CertificateAuthority, Credentials, IssuingStoreError, RevocationError, Revocations};
use crate::membership::{
    Device, MembershipOptions, ModelFormat, NodeState, RecordError, Requirements, Roles,
};
use crate::protocol::ProtocolRange;
use crate::store::StoreHandle;
use crate::transport::{Connection, EndpointError, TransportOptions};

/// What a node says of itself at its start, beside its identity and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeProfile {
    /// What it is there for; whether it is the issuer is said by [`SubstrateSetup::authority`].
    pub roles: Roles,
    /// Its state, unless an operator's wish was stored before: [`NodeState::Joining`] until it can take work.
    pub state: NodeState,
    /// The model it has loaded.
    pub model: Option<ModelFormat>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// Bytes for blocks.
    pub capacity_bytes: u64,
}

impl Default for NodeProfile {
    /// A node that computes nothing.
    fn default() -> Self {
        Self {
            roles: Roles::default(),
            state: NodeState::Joining,
            model: None,
            devices: Vec::new(),
            capacity_bytes: 0,
        }
    }
}

/// Everything that a node is started with. [`SubstrateSetup::new`] has defaults for what has some.
#[derive(Debug)]
pub struct SubstrateSetup {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where nodes join, on the node that holds the CA; port 0 takes a free one, none takes nobody in.
    pub join_listen: Option<SocketAddr>,
    /// Where others reach this node, the preferred address first; empty: where it listens, and if that is every interface,
    /// the address of the one that leads outside.
    pub advertise: Vec<SocketAddr>,
    /// Who it is.
    pub credentials: Arc<Credentials>,
    /// The folder that `credentials` came from, to which renewed certificates are written; none: nowhere.
    pub identity_folder: Option<PathBuf>,
    /// The CA, on the one node that holds it.
    pub authority: Option<CertificateAuthority>,
    /// The list of the revoked as it came with the credentials; a newer one in the store replaces it.
    pub revocations: Revocations,
    /// What the node must not forget.
    pub store: StoreHandle,
    /// What it says of itself.
    pub profile: NodeProfile,
    /// What it asks of others; none: its own protocol and model.
    pub requirements: Option<Requirements>,
    /// Where it looks for others.
    pub discovery: DiscoveryOptions,
    /// Numbers of the transport.
    pub transport: TransportOptions,
    /// Numbers of membership.
    pub membership: MembershipOptions,
    /// Whether this process's control plane is this node's: of several nodes in one process, one can have it.
    pub control: bool,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl SubstrateSetup {
    /// With defaults: no join address, no other nodes to look for, the machine's clock, a control plane.
    ///
    /// # Errors
    /// The CA's certificate has no usable key.
    pub fn new(
        listen: SocketAddr,
        credentials: Arc<Credentials>,
        store: StoreHandle,
    ) -> Result<Self, RevocationError> {
        Ok(Self {
            listen,
            join_listen: None,
            advertise: Vec::new(),
            identity_folder: None,
            authority: None,
            revocations: Revocations::new(credentials.ca())?,
            credentials,
            store,
            profile: NodeProfile::default(),
            requirements: None,
            discovery: DiscoveryOptions::default(),
            transport: TransportOptions::default(),
            membership: MembershipOptions::default(),
            control: true,
            clock: Arc::new(SystemClock::new()),
        })
    }
}

impl SubstrateSetup {
    /// As `settings` say: addresses, roles, where to look for others, the capacity of all its context hosts together. What
    /// the settings do not know, as the model, is the caller's to add.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_settings(
        settings: &Settings,
        credentials: Arc<Credentials>,
        store: StoreHandle,
    ) -> Result<Self, RevocationError> {
        let (node, network) = (&settings.node, &settings.network);
        let mut setup = Self::new(network.listen, credentials, store)?;
        setup.join_listen = Some(network.join_listen);
        setup.advertise = network.advertise.clone();
        setup.profile.roles = Roles {
            context: node.has_role(NodeRole::Context),
            query: node.has_role(NodeRole::Query),
            supervisor: node.has_role(NodeRole::Supervisor),
            issuer: false,
        };
        if setup.profile.roles.context {
            setup.profile.capacity_bytes =
                settings.kv.capacity_bytes.get().saturating_mul(settings.hosts.count as u64);
        }
        setup.transport.protocol = ProtocolRange::held_to(network.max_protocol as u16);
        setup.discovery.seeds = network.seeds.clone();
        setup.discovery.dns = network.dns.clone();
        if network.mdns {
            let mut mdns = MdnsOptions::for_cluster(&setup.credentials.ca_hash().to_string());
            let name = setup.credentials.details().name.to_string();
            let addresses = network.advertise.iter().map(SocketAddr::ip).collect();
            let announced = network.advertise.first().unwrap_or(&network.listen);
            // A free port is known only once it is bound; such a node looks for others and does not announce itself.
            mdns.announcement =
                (announced.port() != 0).then(|| Announcement { name, port: announced.port(), addresses });
            setup.discovery.mdns = Some(mdns);
        }
        Ok(setup)
    }
}

/// The node did not start. Nothing is open; its start was counted.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system has no thread.
    #[error("the network thread did not start: {0}")]
    Thread(#[source] std::io::Error),
    /// What it remembers.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The stored list of the revoked.
    #[error(transparent)]
    Revocations(#[from] RevocationError),
    /// Join tokens.
    #[error(transparent)]
    Issuing(#[from] IssuingStoreError),
    /// Sockets.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// What it would say of itself.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Where it looks for others.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// The control plane.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The credentials are an administrator's.
    #[error("an administrator's certificate cannot run a node; join with a token to get a node's")]
    NotANode,
    /// This node was removed from the cluster.
    #[error(
        "this node was removed from the cluster for good; delete its identity folder and join as a new node"
    )]
    Removed,
}

/// Connections that other nodes open, for the layer above. What is not picked up is closed as busy; dropping a receiver
/// refuses its class.
#[derive(Debug)]
pub struct Incoming {
    /// Decode steps.
    pub decode: mpsc::Receiver<Connection>,
    /// Blocks that move.
    pub bulk: mpsc::Receiver<Connection>,
    /// Requests of administrators and of sessions from outside.
    pub admin: mpsc::Receiver<Connection>,
}

/// Where others reach a node that listens at `local`.
pub(super) fn reachable(local: SocketAddr) -> SocketAddr {
    if !local.ip().is_unspecified() {
        return local;
    }
    // Nothing is sent: connecting a UDP socket only asks the routing table which interface leads there. The addresses are
    // those for documentation (RFC 5737, RFC 3849), so that they are nobody's.
    let (any, outside): (SocketAddr, SocketAddr) = match local {
        SocketAddr::V4(_) => ((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(192, 0, 2, 1), 9).into()),
        SocketAddr::V6(_) => {
            let outside = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            ((Ipv6Addr::UNSPECIFIED, 0).into(), (outside, 9).into())
        }
    };
    let found = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(outside)?;
        socket.local_addr()
    });
    let loopback: IpAddr = match local {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(found.map_or(loopback, |found| found.ip()), local.port())
}
