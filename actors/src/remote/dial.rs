//! How links and copies come to a connection: from the node's endpoint, one connection per peer and class, dialled when it is
//! needed and not there.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use stellate_runtime::identity::NodeId;
use stellate_runtime::transport::{Connection, ConnectionClass, Endpoint, Expected, Target};
use tokio::sync::Mutex;

/// There is no connection. It can be asked for again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialFailure {
    /// The node is no longer of the cluster.
    #[error("the node has left the cluster; its blocks are placed elsewhere when they are needed")]
    Gone,
    /// It could not be reached.
    #[error("{0}")]
    Unreachable(String),
}

/// Gives a connection to one peer, a new one where the last has failed.
pub trait Dialer: Send + Sync + fmt::Debug {
    /// A connection that lives, as far as this side knows. Called on the network thread.
    fn connect(&self) -> BoxFuture<'_, Result<Connection, DialFailure>>;
}

/// Told of each connection that was dialled: the peer may open streams on it as well, which somebody must serve.
pub type OnDialled = Arc<dyn Fn(Connection) + Send + Sync>;

/// Dials a node of the cluster, unless a connection of the class to it lives, whoever has dialled that.
pub struct NodeDialer {
    endpoint: Arc<Endpoint>,
    target: Target,
    class: ConnectionClass,
    on_dialled: OnDialled,
    /// One dial at a time: of two connections to a peer, the endpoint closes one.
    last: Mutex<Option<Connection>>,
}

impl NodeDialer {
    /// Connections of `class` from `endpoint` to `target`.
    pub fn new(
        endpoint: Arc<Endpoint>,
        target: Target,
        class: ConnectionClass,
        on_dialled: OnDialled,
    ) -> Self {
        Self { endpoint, target, class, on_dialled, last: Mutex::default() }
    }

    fn node(&self) -> Option<NodeId> {
        match &self.target.expected {
            Expected::Id(id) => Some(*id),
            Expected::AnyNode | Expected::Name(_) => None,
        }
    }
}

impl Dialer for NodeDialer {
    fn connect(&self) -> BoxFuture<'_, Result<Connection, DialFailure>> {
        Box::pin(async move {
            let mut last = self.last.lock().await;
            if let Some(live) = last.as_ref().filter(|connection| connection.is_open()) {
                return Ok(live.clone());
            }
            let known = self.node().and_then(|id| self.endpoint.connection(id, self.class));
            if let Some(known) = known.filter(Connection::is_open) {
                return Ok(last.insert(known).clone());
            }
            let dialled = self.endpoint.dial(self.target.clone(), self.class).await;
            let connection = dialled.map_err(|error| DialFailure::Unreachable(error.to_string()))?;
            (self.on_dialled)(connection.clone());
            Ok(last.insert(connection).clone())
        })
    }
}

impl fmt::Debug for NodeDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeDialer")
            .field("target", &self.target)
            .field("class", &self.class)
            .finish_non_exhaustive()
    }
}
