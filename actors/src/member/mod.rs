//! A node's part in a cluster: what runs beside its query host so that blocks may lie on several nodes. Here the parts are put
//! together and ended; what each does is in its own file.

pub mod hosts;
pub mod pull;
pub mod store;

use std::fmt;

use stellate_runtime::identity::NodeId;
use stellate_runtime::membership::Roles;
use stellate_runtime::store::StoreHandle;
use stellate_runtime::substrate::SubstrateHandle;
use stellate_runtime::transport::Connection;
use tokio::sync::{broadcast, mpsc};

use crate::cluster::drain::DrainProgress;
use crate::cluster::messages::{SupervisorReply, SupervisorRequest};
use crate::cluster::settings::ClusterSettings;
use crate::error::OpenError;
use crate::model::Model;
use crate::node::{Node, NodeOptions, Surroundings};

/// What a member of a cluster is started with.
#[derive(Debug)]
pub struct MemberSetup {
    /// Its place on the network.
    pub substrate: SubstrateHandle,
    /// What it must not forget.
    pub store: StoreHandle,
    /// What its hosts run.
    pub model: Model,
    /// How its hosts are built. Those are of the node that is opened among them, and end with it.
    pub options: NodeOptions,
    /// What it is there for.
    pub roles: Roles,
    /// Whether it is the one that supervises.
    pub supervises: bool,
    /// By which figures, if it does.
    pub settings: ClusterSettings,
    /// Bytes a second that a copy of a block may take; none is no bound.
    pub max_bulk_rate: Option<u64>,
}

/// The member did not start. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// Its hosts.
    #[error(transparent)]
    Hosts(#[from] OpenError),
    /// Another node has the same 48 first bits in its id, by which hosts and blocks would be taken for each other's.
    #[error(
        "the ids of this node and of node {name} begin alike ({key}); delete this node's identity folder and join again"
    )]
    SameKey {
        /// What both begin with.
        key: String,
        /// The other node's name.
        name: String,
    },
    /// What it must not forget could not be read or written.
    #[error("the store of this node failed: {0}")]
    Store(String),
    /// An actor.
    #[error("cannot start {what}: {reason}")]
    Start {
        /// What was to be started.
        what: &'static str,
        /// What was wrong.
        reason: String,
    },
}

/// The supervisor was not asked, or did not answer in time. It may have done what was asked; asking again does no harm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskFailure {
    /// There is none.
    #[error(
        "no supervisor was found within {waited_s} s; start the node that supervises (cluster.supervisor), and ask again"
    )]
    NoSupervisor {
        /// How long it was looked for, in seconds.
        waited_s: u64,
    },
    /// It is there and does not answer.
    #[error("the supervisor on node {node} did not answer within {waited_s} s: {cause}; ask again")]
    Unanswered {
        /// Its node.
        node: String,
        /// How long it was asked, in seconds.
        waited_s: u64,
        /// What happened last.
        cause: String,
    },
}

/// A node's part in a cluster.
pub struct Member {}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").finish_non_exhaustive()
    }
}

impl Member {
    /// Starts it: the context hosts if it has that role, their agent, the supervisor if it supervises. `decode` and `bulk`
    /// are the connections of [`stellate_runtime::substrate::Incoming`].
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn start(
        setup: MemberSetup,
        decode: mpsc::Receiver<Connection>,
        bulk: mpsc::Receiver<Connection>,
    ) -> Result<Self, MemberError> {
        let _ = (setup, decode, bulk);
        Err(MemberError::Start { what: "a member", reason: "not yet".to_owned() })
    }

    /// What a query node of this process finds around it.
    pub fn surroundings(&self) -> Surroundings {
        unreachable!("nothing starts yet")
    }

    /// Tells `node` what the supervisor says from now on. The node is not kept open by this.
    pub fn serve(&self, node: &Node) {
        let _ = node;
    }

    /// Asks the supervisor, wherever it is. Waits a while for one that is not there or has just started.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub async fn ask(&self, request: SupervisorRequest) -> Result<SupervisorReply, AskFailure> {
        let _ = request;
        Err(AskFailure::NoSupervisor { waited_s: 0 })
    }

    /// The node of the supervisor, if one is known.
    pub fn supervisor(&self) -> Option<NodeId> {
        None
    }

    /// How drains go on, from now on. Only the supervisor's node is told; others ask for
    /// [`SupervisorRequest::Snapshot`].
    pub fn drains(&self) -> broadcast::Receiver<DrainProgress> {
        broadcast::channel(1).1
    }

    /// Ends it. The hosts end with their node.
    pub async fn stop(self) {}
}
