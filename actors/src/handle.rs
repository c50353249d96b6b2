//! What a user holds of a node: contexts and sessions. Handles only: blocks lie on context hosts, conversations on the
//! query host.

use std::sync::Arc;

use ractor::call;
use tokio::sync::mpsc;

use crate::api::{RemoteContext, RemoteSession};
use crate::cancel::CancelToken;
use crate::error::{AskError, Asked, EncodeError, SessionError, Stopped};
use crate::journal::{JournalError, SessionRecord};
use crate::manifest::{ContextId, Manifest};
use crate::node::{Cast, Node};
use crate::path::context::EncodedContext;
use crate::path::query::TurnRequest;
use crate::progress::{EncodeMeter, EncodeProgress};
use crate::prompt::Prompting;
use crate::prompt::{Addition, ContextSource};
use crate::query_host::{OpenSession, QueryHostMsg, SessionLease};
use crate::session::{SessionId, TurnRecord};
use crate::turn::{AskOptions, QueryInput, Turn};
use crate::whereabouts::Places;

/// An encoded context: a handle that keeps its blocks. Any number of sessions share it; the last handle or session to go
/// frees what no other context shares. On a node with a journal it stays until it is removed by name.
#[derive(Clone, Debug)]
pub struct Context {
    node: Node,
    held: Held,
    progress: EncodeProgress,
}

/// Where what the handle stands for is.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    Here(Arc<EncodedContext>),
    There(RemoteContext, Prompting),
}

impl Context {
    pub(crate) fn new(node: Node, encoded: Arc<EncodedContext>, progress: EncodeProgress) -> Self {
        Self { node, held: Held::Here(encoded), progress }
    }

    pub(crate) fn there(
        node: Node,
        remote: RemoteContext,
        prompting: Prompting,
        progress: EncodeProgress,
    ) -> Self {
        Self { node, held: Held::There(remote, prompting), progress }
    }

    /// What it is in this process.
    ///
    /// # Panics
    /// If it is of a node of another process.
    pub(crate) fn encoded(&self) -> &Arc<EncodedContext> {
        match &self.held {
            Held::Here(encoded) => encoded,
            Held::There(..) => panic!("the context is of another process"),
        }
    }

    /// Its name in the node.
    pub fn id(&self) -> ContextId {
        self.manifest().id
    }

    /// Its tokens and blocks.
    pub fn manifest(&self) -> &Manifest {
        match &self.held {
            Held::Here(encoded) => &encoded.manifest,
            Held::There(remote, _) => remote.manifest(),
        }
    }

    /// Where its blocks lie now.
    pub fn places(&self) -> Arc<Places> {
        match &self.held {
            Held::Here(encoded) => encoded.whereabouts.now(),
            Held::There(remote, _) => remote.places(),
        }
    }

    /// What its encoding came to: how many blocks were encoded, how many shared. Nothing for a context that was taken up
    /// again: its blocks are encoded when they are asked for.
    pub fn progress(&self) -> EncodeProgress {
        self.progress
    }

    /// Bytes of its blocks' keys and values, shared ones counted.
    pub fn kv_bytes(&self) -> usize {
        let manifest = match &self.held {
            Held::Here(encoded) => &encoded.manifest,
            Held::There(remote, _) => return remote.kv_bytes(),
        };
        manifest.blocks.iter().map(|block| self.node.cast().fleet.kv_shape.bytes_for(block.range.len())).sum()
    }

    /// The context with more behind it. Whole blocks are shared with this one, which stays as it is: only a short last
    /// block is encoded again.
    pub async fn append(&self, addition: Addition) -> Result<Self, EncodeError> {
        self.append_with(addition, |_| {}).await
    }

    /// [`append`](Self::append) with `progress` told of every chunk.
    pub async fn append_with(
        &self,
        addition: Addition,
        progress: impl FnMut(EncodeProgress) + Send + 'static,
    ) -> Result<Self, EncodeError> {
        let manifest = match &self.held {
            Held::Here(encoded) => &encoded.manifest,
            Held::There(remote, prompting) => {
                let meter = EncodeMeter::new(progress);
                let longer = remote.append(addition, &meter).await?;
                return Ok(longer.into_context(self.node.clone(), *prompting, &meter));
            }
        };
        let source = ContextSource::Append(Arc::clone(&manifest.ids), addition);
        self.node
            .encode_as(self.encoded().prompting, source, manifest.layout, EncodeMeter::new(progress))
            .await
    }

    /// Opens a session: a conversation of its own over this context.
    pub async fn session(&self) -> Result<Session, SessionError> {
        let encoded = match &self.held {
            Held::Here(encoded) => Arc::clone(encoded),
            Held::There(remote, _) => {
                return Ok(Session::there(self.node.clone(), remote.session().await?));
            }
        };
        let Cast { query, fleet, .. } = self.node.cast();
        let id = match &fleet.journal {
            Some(journal) => Some(SessionId(journal.name().await?)),
            None => None,
        };
        let request = OpenSession { context: Arc::clone(&encoded), id, turns: Vec::new() };
        let lease = call!(query.actor, QueryHostMsg::Open, request).asked()??;
        if let Some(journal) = &fleet.journal {
            let (id, context) = (lease.session(), self.id());
            journal.session_opened(SessionRecord { id, context }).await?;
            // From here on it is not let go; if it was before, it came back since, as another in memory.
            if encoded.lease.is_given_up() {
                journal.session_closed(id).await?;
                return Err(JournalError::NoContext { context }.into());
            }
        }
        Ok(Session::new(lease, self.node.clone()))
    }
}

/// A conversation over a context. What was asked and answered stays in it: a later question sees it and nothing is
/// encoded again. Dropping it closes it; on a node with a journal it can be taken up again by name, until it is removed. One of
/// a node of another process stays until someone closes it.
#[derive(Debug)]
pub struct Session {
    lease: Lease,
    node: Node,
}

#[derive(Debug)]
enum Lease {
    Here(SessionLease),
    There(RemoteSession),
}

impl Session {
    pub(crate) fn new(lease: SessionLease, node: Node) -> Self {
        Self { lease: Lease::Here(lease), node }
    }

    pub(crate) fn there(node: Node, remote: RemoteSession) -> Self {
        Self { lease: Lease::There(remote), node }
    }

    /// Its name in the node.
    pub fn id(&self) -> SessionId {
        match &self.lease {
            Lease::Here(lease) => lease.session(),
            Lease::There(remote) => remote.id(),
        }
    }

    /// Asks, and gives the answer as it is made. What is wrong with the question is told as the stream's first event.
    pub fn ask(&self, input: impl Into<QueryInput>, options: AskOptions) -> Turn {
        if let Lease::There(remote) = &self.lease {
            return remote.ask(input.into(), options);
        }
        let Cast { query, clock, queue_events, .. } = self.node.cast();
        let (events, receiver) = mpsc::channel(*queue_events);
        let (cancel, abandoned) = (CancelToken::default(), CancelToken::default());
        let request = TurnRequest {
            input: input.into(),
            options,
            asked: clock.now(),
            events: events.clone(),
            cancel: cancel.clone(),
            abandoned: abandoned.clone(),
        };
        if query.actor.cast(QueryHostMsg::Ask(self.id(), request)).is_err() {
            // The channel is empty: there is room.
            let _ = events.try_send(Err(AskError::Stopped));
        }
        Turn { events: receiver, cancel, abandoned }
    }

    /// The turns answered so far.
    pub async fn turns(&self) -> Result<Vec<TurnRecord>, SessionError> {
        if let Lease::There(remote) = &self.lease {
            return Ok(remote.turns().await?);
        }
        Ok(call!(self.node.cast().query.actor, QueryHostMsg::Turns, self.id()).asked()?)
    }

    /// Closes it wherever it is, for all: what is written of it is removed.
    ///
    /// # Errors
    /// The node that has it cannot be asked, or refuses; there is none any more.
    pub async fn remove(&self) -> Result<(), SessionError> {
        match &self.lease {
            Lease::Here(lease) => self.node.remove_session(lease.session()).await,
            Lease::There(remote) => Ok(remote.remove().await?),
        }
    }

    /// Whether the query host still has it. It is closed there when another node takes the session over.
    ///
    /// # Errors
    /// It cannot be asked at the moment, or has stopped.
    pub(crate) async fn is_open(&self) -> Result<bool, Stopped> {
        let query = &self.node.cast().query.actor;
        call!(query, QueryHostMsg::IsOpen, self.id()).asked()
    }

    /// Ends the session and frees its own keys and values; so does dropping it, unless the node is of another process. What a
    /// journal remembers of it stays.
    pub fn close(self) {
        if let Lease::There(remote) = &self.lease {
            remote.close();
        }
        drop(self);
    }
}
