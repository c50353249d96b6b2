//! The live connections of a node: one per peer and class, closed when the peer is revoked; and the peers that could not be
//! talked to because they speak another version.
//!
//! When two nodes dial each other at the same moment, both ends keep the same one of the two: that of the node with the
//! lower id. Between two of the same dialer the newer one counts, and a life of the peer's process beats an earlier one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::close::CloseCode;
use super::connection::Connection;
use super::hello::ConnectionClass;
use crate::identity::{NodeId, NodeName, Revocations, Role};
use crate::protocol::ProtocolRange;

/// Most peers of other versions that are remembered for `status`.
const MAX_INCOMPATIBLE: usize = 256;

/// Most connections of one administrator at once: a person with some terminals.
const MAX_PER_ADMINISTRATOR: usize = 16;

/// A peer that speaks another version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncompatiblePeer {
    /// Which node.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Where it is.
    pub address: SocketAddr,
    /// What it speaks, as far as it has said.
    pub theirs: ProtocolRange,
}

#[derive(Debug)]
pub(super) struct Registry {
    own: NodeId,
    max_connections: usize,
    revocations: Revocations,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    connections: BTreeMap<Key, Connection>,
    incompatible: BTreeMap<NodeId, IncompatiblePeer>,
}

/// The last number is 0 for nodes; administrators may have several connections, told apart by it.
type Key = (NodeId, ConnectionClass, usize);

impl Registry {
    pub(super) fn new(own: NodeId, max_connections: usize, revocations: Revocations) -> Self {
        Self { own, max_connections, revocations, live: Mutex::default() }
    }

    /// A panic of another thread leaves a map that is as good as before.
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection up, or says with which code to close it. One whose place it takes is closed.
    pub(super) fn register(&self, connection: &Connection) -> Result<(), CloseCode> {
        let peer = connection.peer();
        let mut live = self.live();
        // Asked while the map is held: a list that comes into force now closes what it finds in the map later.
        if self.revocations.contains(&peer.id) {
            return Err(CloseCode::Revoked);
        }
        // Whatever becomes of the connection: its hello was of a version that both speak.
        live.incompatible.remove(&peer.id);
        let key = key_of(connection);
        if let Some(existing) = live.connections.get(&key).filter(|existing| existing.is_open()) {
            self.compare(existing, connection)?;
            existing.close(CloseCode::Superseded);
        } else if live.connections.len() >= self.max_connections || live.has_too_many_of(connection) {
            return Err(CloseCode::Busy);
        }
        live.connections.insert(key, connection.clone());
        Ok(())
    }

    /// Whether `new` takes the place of `existing`.
    fn compare(&self, existing: &Connection, new: &Connection) -> Result<(), CloseCode> {
        let dialer_of = |connection: &Connection| match connection.is_dialled() {
            true => self.own,
            false => connection.peer().id,
        };
        let lives = (existing.peer().incarnation, new.peer().incarnation);
        let dialers = (dialer_of(existing), dialer_of(new));
        if lives.1 < lives.0 {
            return Err(CloseCode::Stale);
        }
        if lives.1 == lives.0 && dialers.0 < dialers.1 {
            return Err(CloseCode::Superseded);
        }
        Ok(())
    }

    /// Forgets a connection that is gone, unless another has taken its place.
    pub(super) fn forget(&self, connection: &Connection) {
        let mut live = self.live();
        let key = key_of(connection);
        if live.connections.get(&key).is_some_and(|known| known.number() == connection.number()) {
            live.connections.remove(&key);
        }
    }

    pub(super) fn note_incompatible(&self, peer: IncompatiblePeer) {
        let mut live = self.live();
        if live.incompatible.len() < MAX_INCOMPATIBLE || live.incompatible.contains_key(&peer.id) {
            live.incompatible.insert(peer.id, peer);
        }
    }

    pub(super) fn incompatible(&self) -> Vec<IncompatiblePeer> {
        self.live().incompatible.values().cloned().collect()
    }

    /// The live connection to a node that was not removed.
    pub(super) fn get(&self, id: NodeId, class: ConnectionClass) -> Option<Connection> {
        if self.revocations.contains(&id) {
            return None;
        }
        self.live().connections.get(&(id, class, 0)).filter(|connection| connection.is_open()).cloned()
    }

    /// All live connections, ordered by peer and class.
    pub(super) fn all(&self) -> Vec<Connection> {
        self.live().connections.values().filter(|connection| connection.is_open()).cloned().collect()
    }

    /// Closes what the list in force no longer allows, but for control connections: those are returned, for the removed node
    /// to be shown the list.
    pub(super) fn close_revoked(&self) -> Vec<Connection> {
        let mut open = self.all();
        open.retain(|connection| self.revocations.contains(&connection.peer().id));
        for connection in &open {
            let (peer, class) = (connection.peer(), connection.class());
            tracing::warn!(node = %peer.id, name = %peer.name, %class, "the connection of a removed node is closed");
            if class != ConnectionClass::Control {
                connection.close(CloseCode::Revoked);
            }
        }
        open.retain(|connection| connection.class() == ConnectionClass::Control);
        open
    }
}

impl Live {
    fn has_too_many_of(&self, connection: &Connection) -> bool {
        let peer = connection.peer();
        let of_peer = (peer.id, connection.class(), 0)..=(peer.id, connection.class(), usize::MAX);
        peer.role == Role::Admin && self.connections.range(of_peer).count() >= MAX_PER_ADMINISTRATOR
    }
}

fn key_of(connection: &Connection) -> Key {
    let peer = connection.peer();
    let number = if peer.role == Role::Admin { connection.number() } else { 0 };
    (peer.id, connection.class(), number)
}
