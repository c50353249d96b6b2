//! What layers above hold of a running node: ways to others and who they are. It starts and ends nothing.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::driver::Input;
use super::links::{Forward, dial_member};
use super::node::{ConnectError, Context};
use super::roster::Roster;
use crate::control::ControlPlane;
use crate::identity::NodeId;
use crate::membership::Event;
use crate::transport::{Connection, ConnectionClass, Endpoint, NetworkHandle};

/// A node's place on the network, for those who use it. Clones are the same. The network thread ends with
/// [`super::Substrate`], not with this: afterwards nobody is reached.
#[derive(Clone, Debug)]
pub struct SubstrateHandle {
    pub(super) context: Arc<Context>,
}

impl SubstrateHandle {
    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.context.own
    }

    /// See [`super::Substrate::endpoint`].
    pub fn endpoint(&self) -> &Endpoint {
        &self.context.endpoint
    }

    /// Starts tasks on the network thread, where nothing may block.
    pub fn network(&self) -> NetworkHandle {
        self.context.network.clone()
    }

    /// Sessions of actors, unless the node was started without.
    pub fn control(&self) -> Option<&ControlPlane> {
        self.context.control.as_ref()
    }

    /// Who is there now.
    pub fn roster(&self) -> Arc<Roster> {
        self.context.roster.borrow().clone()
    }

    /// Who is there, with each change.
    pub fn watch(&self) -> watch::Receiver<Arc<Roster>> {
        self.context.roster.subscribe()
    }

    /// What happens to members, from now on. A reader that is too slow is told how much it has missed.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.context.events.subscribe()
    }

    /// See [`super::Substrate::ready`].
    pub async fn ready(&self) {
        let mut ready = self.context.ready.subscribe();
        // The sender lives as long as this object.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// See [`super::Substrate::connect`].
    ///
    /// # Errors
    /// The node is not known, or not reached.
    pub async fn connect(&self, node: NodeId, class: ConnectionClass) -> Result<Connection, ConnectError> {
        let connection = match self.context.endpoint.connection(node, class) {
            Some(live) => live,
            None if self.roster().member(node).is_none() => return Err(ConnectError::Unknown(node)),
            None => dial_member(&self.context, node, class).await?,
        };
        Forward::hand(&self.context, &connection);
        if class == ConnectionClass::Control {
            self.context.tell(Input::Connected(connection.clone())).await;
        }
        Ok(connection)
    }
}
