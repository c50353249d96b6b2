//! The control plane of this process: `ractor_cluster`'s server of sessions, on the network thread, and how sessions come
//! to be, one per peer.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorRef};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{IncomingEncryptionMode, NodeServer, NodeServerMessage};
use tokio::sync::broadcast;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::sessions::{ControlEvent, Place, Sessions, label};
use super::stream::SessionStream;
use crate::identity::{CaHash, NodeId, tls};
use crate::transport::{
    CloseCode, Connection, FrameKind, FrameReceiver, FrameSender, NetworkHandle, StreamError,
};

/// Longest wait for the end of an earlier session with the same peer. QUIC's idle time ends its stream long before.
const LONGEST_END: Duration = Duration::from_secs(5);
/// Longest message between nodes: a few arguments of [`super::MAX_WIRE_BYTES`].
const MAX_MESSAGE_BYTES: u64 = 16 << 20;
const COOKIE_CONTEXT: &str = "stellate 2026-11-24 control plane cookie";

/// Whether this process has a control plane: `ractor_cluster` keeps statics.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Who this node is.
#[derive(Clone, Debug)]
pub struct ControlSetup {
    /// The node.
    pub node: NodeId,
    /// Its life, as its transport tells it.
    pub incarnation: u64,
    /// The cluster.
    pub ca: CaHash,
}

/// There is no control plane, or no session.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// This process has one already. It goes on.
    #[error("this process has a control plane already, and can have one only; run one node in a process")]
    Taken,
    /// Its actor did not start: the port on loopback that it wants cannot be had.
    #[error("the control plane did not start: {0}")]
    Spawn(String),
    /// The network thread or the control plane has ended.
    #[error("this node is leaving the network")]
    Stopped,
    /// The connection carries a session already, which goes on.
    #[error("a second session over one connection was refused")]
    Duplicate,
    /// The stream was lost on the way.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// The control plane. Clones mean the same one.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    server: ActorRef<NodeServerMessage>,
    sessions: Sessions,
    network: NetworkHandle,
    node: NodeId,
    _hold: Arc<Hold>,
}

/// Holds the process's one place; gives it back when the last clone is gone.
#[derive(Debug)]
struct Hold;

impl Drop for Hold {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

impl ControlPlane {
    /// Starts it on the network thread. Sessions come with connections: `attach` and `serve`.
    ///
    /// # Errors
    /// This process has one already, or its actor does not start.
    pub async fn start(network: &NetworkHandle, setup: ControlSetup) -> Result<Self, ControlError> {
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(ControlError::Taken);
        }
        let hold = Arc::new(Hold);
        let ControlSetup { node, incarnation, ca } = setup;
        let nobody = tls::nobody_config().map_err(|error| ControlError::Spawn(error.to_string()))?;
        let server = NodeServer::new(
            0,
            cookie(&ca),
            life_of(node, incarnation),
            // Only a part of names here; nodes of one host name and one port would take each other for themselves.
            node.to_string(),
            Some(IncomingEncryptionMode::Tls(TlsAcceptor::from(Arc::new(nobody)))),
            Some(NodeConnectionMode::Isolated),
        )
        .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .with_max_inbound_frame_size(MAX_MESSAGE_BYTES);
        let sessions = Sessions::new();
        let subscription = Box::new(sessions.clone());
        let spawned = network.run(async move {
            let (server, _) = Actor::spawn(None, server, ()).await.map_err(|error| error.to_string())?;
            let subscribe = NodeServerMessage::SubscribeToEvents { id: "stellate".to_owned(), subscription };
            server.cast(subscribe).map_err(|error| error.to_string())?;
            Ok(server)
        });
        let server = spawned.await.ok_or(ControlError::Stopped)?.map_err(ControlError::Spawn)?;
        Ok(Self { server, sessions, network: network.clone(), node, _hold: hold })
    }

    /// Opens a session over a control connection that this side has dialled.
    ///
    /// # Errors
    /// The connection is gone or has a session, or the control plane has ended.
    pub async fn attach(&self, connection: &Connection) -> Result<(), ControlError> {
        let number = self.place(connection).await?;
        let opened = async {
            let (mut sender, receiver) = connection.open().await.map_err(StreamError::from)?;
            sender.send(FrameKind::SESSION, &(), &[]).await?;
            Ok::<_, StreamError>((sender, receiver))
        };
        match opened.await {
            Ok((sender, receiver)) => self.hand_over(connection, sender, receiver, number, false),
            Err(error) => {
                self.sessions.clear(connection.peer().id);
                Err(error.into())
            }
        }
    }

    /// Takes a session that the peer has opened, after the first frame of its stream.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub(crate) async fn serve(
        &self,
        connection: &Connection,
        sender: FrameSender,
        receiver: FrameReceiver,
    ) -> Result<(), ControlError> {
        let number = self.place(connection).await?;
        self.hand_over(connection, sender, receiver, number, true)
    }

    /// What becomes of peers, from now on.
    pub fn events(&self) -> broadcast::Receiver<ControlEvent> {
        self.sessions.events()
    }

    /// Peers whose actors can be called, ordered by id.
    pub fn ready_peers(&self) -> Vec<NodeId> {
        self.sessions.ready_peers()
    }

    /// Waits until the actors of `node` can be called.
    pub async fn ready(&self, node: NodeId) {
        let mut changes = self.sessions.changes();
        while !self.ready_peers().contains(&node) && changes.changed().await.is_ok() {}
    }

    /// The node that an actor is on; none if it was a peer that is gone.
    pub fn node_of(&self, actor: ActorId) -> Option<NodeId> {
        match actor {
            ActorId::Local(_) => Some(self.node),
            ActorId::Remote { node_id, .. } => self.sessions.peer_of(node_id),
        }
    }

    /// The members of a process group with their nodes, ordered by node: actors of this process and of ready peers.
    /// `ActorRef::<Message>::from(cell)` is what they are called by.
    pub fn members(&self, group: &str) -> Vec<(NodeId, ActorCell)> {
        let members = ractor::pg::get_members(&group.to_owned());
        let with_node = |cell: ActorCell| Some((self.node_of(cell.get_id())?, cell));
        let mut found: Vec<_> = members.into_iter().filter_map(with_node).collect();
        found.sort_by_key(|(node, cell)| (*node, cell.get_id().pid()));
        found
    }

    /// Ends all sessions. Local actors go on.
    pub async fn stop(&self) {
        let server = self.server.clone();
        let stop = async move { server.stop_and_wait(None, Some(LONGEST_END)).await };
        if !matches!(self.network.run(stop).await, Some(Ok(()))) {
            tracing::warn!("the control plane did not stop in time");
        }
    }

    /// A place for a session over `connection`, once there is no other with its peer. An older connection is closed.
    async fn place(&self, connection: &Connection) -> Result<u64, ControlError> {
        let peer = connection.peer();
        let name = format!("{}@{}", life_of(peer.id, peer.incarnation), peer.id);
        let mut changes = self.sessions.changes();
        loop {
            changes.borrow_and_update();
            match self.sessions.take_place(connection, &name) {
                Place::Taken(number) => return Ok(number),
                Place::Duplicate => return Err(ControlError::Duplicate),
                Place::Occupied(older) => older.iter().for_each(|older| older.close(CloseCode::Superseded)),
            }
            // Closing ends the stream, which ends the session, of which we are told; unless it never began.
            let waited = self.network.run(async move {
                let changed = timeout(LONGEST_END, changes.changed()).await;
                (changed.is_ok(), changes)
            });
            let (changed, still) = waited.await.ok_or(ControlError::Stopped)?;
            changes = still;
            if !changed {
                tracing::warn!(node = %peer.id, "an earlier session did not end; it is given up");
                self.sessions.clear(peer.id);
            }
            if let Some(closed) = connection.close_reason() {
                return Err(StreamError::from(closed).into());
            }
        }
    }

    fn hand_over(
        &self,
        connection: &Connection,
        sender: FrameSender,
        receiver: FrameReceiver,
        number: u64,
        is_server: bool,
    ) -> Result<(), ControlError> {
        let stream = SessionStream::new(sender, receiver, label(number, connection.peer().id));
        let opened = NodeServerMessage::ConnectionOpenedExternal { stream: Box::new(stream), is_server };
        if self.server.cast(opened).is_err() {
            self.sessions.clear(connection.peer().id);
            return Err(ControlError::Stopped);
        }
        let (sessions, connection) = (self.sessions.clone(), connection.clone());
        self.network.spawn(async move {
            connection.closed().await;
            sessions.connection_lost(number);
        });
        Ok(())
    }
}

/// What a session is named by: the node in one life of its process, so that a restarted node does not meet its own ghost.
fn life_of(node: NodeId, incarnation: u64) -> String {
    format!("{node}.{incarnation}")
}

fn cookie(ca: &CaHash) -> String {
    blake3::Hash::from_bytes(blake3::derive_key(COOKIE_CONTEXT, ca.as_bytes())).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_nodes_of_a_cluster_have_one_cookie_and_those_of_another_have_another() {
        let (one, other) = (CaHash::of(b"one"), CaHash::of(b"other"));
        assert_eq!(cookie(&one), cookie(&one));
        assert_ne!(cookie(&one), cookie(&other));
    }
}
