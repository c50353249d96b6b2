//! The sessions that there are, by the number that each carries as its label, and what becomes of them: told by
//! `ractor_cluster` on one side and by QUIC on the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor_cluster::NodeEventSubscription;
use ractor_cluster::node::NodeServerSessionInformation;
use tokio::sync::{broadcast, watch};

use crate::identity::NodeId;
use crate::transport::{CloseCode, Connection};

/// Events that may wait for a slow reader; beyond, it is told that it has missed some, and looks who is there.
const MAX_EVENTS_WAITING: usize = 1024;

/// What has become of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// Its actors can be called, and its members of process groups are known here.
    Ready(NodeId),
    /// It cannot be reached any more: its actors are gone from the process groups, and calls to them fail.
    Gone(NodeId),
}

/// One session.
#[derive(Clone, Debug)]
struct Session {
    peer: NodeId,
    /// The name that it must have by its certificate.
    name: String,
    connection: Connection,
    /// The number that `ractor_cluster` has given the peer's actors, once it is known.
    cluster_id: Option<u64>,
    ready: bool,
}

/// All of them. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Sessions {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// Counts changes of the table, for those who wait for one.
    changes: watch::Sender<u64>,
    events: broadcast::Sender<ControlEvent>,
}

#[derive(Debug, Default)]
struct Table {
    sessions: BTreeMap<u64, Session>,
    last: u64,
}

/// What came of asking for a place.
pub(super) enum Place {
    /// The number of the new session.
    Taken(u64),
    /// Another session with this peer has to end first; those are the connections of such.
    Occupied(Vec<Connection>),
    /// This very connection has one already.
    Duplicate,
}

impl Sessions {
    pub(super) fn new() -> Self {
        let (changes, _) = watch::channel(0);
        let (events, _) = broadcast::channel(MAX_EVENTS_WAITING);
        Self { shared: Arc::new(Shared { table: Mutex::default(), changes, events }) }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    pub(super) fn events(&self) -> broadcast::Receiver<ControlEvent> {
        self.shared.events.subscribe()
    }

    /// Takes a place for a session over `connection`, if its peer has none.
    pub(super) fn take_place(&self, connection: &Connection, name: &str) -> Place {
        let peer = connection.peer().id;
        let mut table = self.table();
        let others: Vec<_> = table.sessions.values().filter(|session| session.peer == peer).collect();
        if others.iter().any(|other| other.connection.number() == connection.number()) {
            return Place::Duplicate;
        }
        if !others.is_empty() {
            return Place::Occupied(others.into_iter().map(|other| other.connection.clone()).collect());
        }
        table.last += 1;
        let number = table.last;
        let (name, connection) = (name.to_owned(), connection.clone());
        table.sessions.insert(number, Session { peer, name, connection, cluster_id: None, ready: false });
        Place::Taken(number)
    }

    /// Gives up on sessions with `peer` whose end nobody has told.
    pub(super) fn clear(&self, peer: NodeId) {
        let mut table = self.table();
        let numbers: Vec<_> = table
            .sessions
            .iter()
            .filter(|(_, session)| session.peer == peer)
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.end(&mut table, number);
        }
    }

    /// A session's connection is gone: nobody can call its peer, though the session itself may take a moment to end.
    pub(super) fn connection_lost(&self, number: u64) {
        let mut table = self.table();
        if let Some(session) = table.sessions.get_mut(&number)
            && std::mem::take(&mut session.ready)
        {
            let peer = session.peer;
            self.tell(ControlEvent::Gone(peer));
        }
    }

    pub(super) fn ready_peers(&self) -> Vec<NodeId> {
        let table = self.table();
        let mut ready: Vec<_> =
            table.sessions.values().filter(|session| session.ready).map(|session| session.peer).collect();
        ready.sort_unstable();
        ready
    }

    /// The peer whose actors carry this number.
    pub(super) fn peer_of(&self, cluster_id: u64) -> Option<NodeId> {
        let table = self.table();
        let found = table.sessions.values().find(|session| session.cluster_id == Some(cluster_id));
        found.map(|session| session.peer)
    }

    /// A panic of another thread leaves a table that is as good as before.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, table: &mut Table, number: u64) {
        let Some(session) = table.sessions.remove(&number) else { return };
        if session.ready {
            self.tell(ControlEvent::Gone(session.peer));
        }
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn tell(&self, event: ControlEvent) {
        // Without readers nobody minds.
        let _ = self.shared.events.send(event);
        self.shared.changes.send_modify(|count| *count += 1);
    }
}

/// The label of the session with this number.
pub(super) fn label(number: u64, peer: NodeId) -> String {
    format!("{number}/{}", peer.short())
}

fn number_of(information: &NodeServerSessionInformation) -> Option<u64> {
    information.peer_addr.split_once('/')?.0.parse().ok()
}

impl NodeEventSubscription for Sessions {
    fn node_session_opened(&self, information: NodeServerSessionInformation) {
        let mut table = self.table();
        let session = number_of(&information).and_then(|number| table.sessions.get_mut(&number));
        if let Some(session) = session {
            session.cluster_id = Some(information.node_id);
        } else {
            tracing::error!(label = %information.peer_addr, "a session that is none of ours was stopped");
            information.actor.stop(Some("not of this node".to_owned()));
        }
    }

    fn node_session_disconnected(&self, information: NodeServerSessionInformation) {
        let Some(number) = number_of(&information) else { return };
        self.end(&mut self.table(), number);
    }

    /// Authenticated by the shared secret, which every member of the cluster knows: whether it is the node of the certificate
    /// is looked at here.
    fn node_session_authenticated(&self, information: NodeServerSessionInformation) {
        let table = self.table();
        let Some(session) = number_of(&information).and_then(|number| table.sessions.get(&number)) else {
            return;
        };
        let name = information.peer_name.as_ref().map(|name| name.name.as_str());
        if name != Some(session.name.as_str()) {
            tracing::warn!(node = %session.peer, claimed = ?name, "a session in another node's name was refused");
            information.actor.stop(Some("in another node's name".to_owned()));
            session.connection.close(CloseCode::ProtocolViolation);
        }
    }

    fn node_session_ready(&self, information: NodeServerSessionInformation) {
        let mut table = self.table();
        let Some(session) = number_of(&information).and_then(|number| table.sessions.get_mut(&number)) else {
            return;
        };
        let name = information.peer_name.as_ref().map(|name| name.name.as_str());
        if name == Some(session.name.as_str()) && session.connection.is_open() && !session.ready {
            session.ready = true;
            let peer = session.peer;
            tracing::debug!(node = %peer, "the control session is ready");
            self.tell(ControlEvent::Ready(peer));
        }
    }
}
