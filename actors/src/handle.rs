//! What a user holds of a node: contexts and sessions. Handles only: blocks lie on context hosts, conversations on the
//! query host.

use std::sync::Arc;

use ractor::call;
use tokio::sync::mpsc;

use crate::cancel::CancelToken;
use crate::error::{AskError, Asked, EncodeError, SessionError};
use crate::journal::SessionRecord;
use crate::manifest::{ContextId, Manifest};
use crate::node::{Cast, Node};
use crate::path::context::EncodedContext;
use crate::path::query::TurnRequest;
use crate::progress::{EncodeMeter, EncodeProgress};
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
    encoded: Arc<EncodedContext>,
    progress: EncodeProgress,
}

impl Context {
    pub(crate) fn new(node: Node, encoded: Arc<EncodedContext>, progress: EncodeProgress) -> Self {
        Self { node, encoded, progress }
    }

    pub(crate) fn encoded(&self) -> &Arc<EncodedContext> {
        &self.encoded
    }

    /// Its name in the node.
    pub fn id(&self) -> ContextId {
        self.encoded.manifest.id
    }

    /// Its tokens and blocks.
    pub fn manifest(&self) -> &Manifest {
        &self.encoded.manifest
    }

    /// Where its blocks lie now.
    pub fn places(&self) -> Arc<Places> {
        self.encoded.whereabouts.now()
    }

    /// What its encoding came to: how many blocks were encoded, how many shared. Nothing for a context that was taken up
    /// again: its blocks are encoded when they are asked for.
    pub fn progress(&self) -> EncodeProgress {
        self.progress
    }

    /// Bytes of its blocks' keys and values, shared ones counted.
    pub fn kv_bytes(&self) -> usize {
        let manifest = &self.encoded.manifest;
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
        let manifest = &self.encoded.manifest;
        let source = ContextSource::Append(Arc::clone(&manifest.ids), addition);
        self.node.encode_as(self.encoded.prompting, source, manifest.layout, EncodeMeter::new(progress)).await
    }

    /// Opens a session: a conversation of its own over this context.
    pub async fn session(&self) -> Result<Session, SessionError> {
        let Cast { query, fleet, .. } = self.node.cast();
        let id = match &fleet.journal {
            Some(journal) => Some(SessionId(journal.name().await?)),
            None => None,
        };
        let request = OpenSession { context: Arc::clone(&self.encoded), id, turns: Vec::new() };
        let lease = call!(query.actor, QueryHostMsg::Open, request).asked()??;
        if let Some(journal) = &fleet.journal {
            journal.session_opened(SessionRecord { id: lease.session(), context: self.id() }).await?;
        }
        Ok(Session::new(lease, self.node.clone()))
    }
}

/// A conversation over a context. What was asked and answered stays in it: a later question sees it and nothing is
/// encoded again. Dropping it closes it; on a node with a journal it can be taken up again by name, until it is removed.
#[derive(Debug)]
pub struct Session {
    lease: SessionLease,
    node: Node,
}

impl Session {
    pub(crate) fn new(lease: SessionLease, node: Node) -> Self {
        Self { lease, node }
    }

    /// Its name in the node.
    pub fn id(&self) -> SessionId {
        self.lease.session()
    }

    /// Asks, and gives the answer as it is made. What is wrong with the question is told as the stream's first event.
    pub fn ask(&self, input: impl Into<QueryInput>, options: AskOptions) -> Turn {
        let Cast { query, clock, queue_events, .. } = self.node.cast();
        let (events, receiver) = mpsc::channel(*queue_events);
        let cancel = CancelToken::default();
        let request = TurnRequest {
            input: input.into(),
            options,
            asked: clock.now(),
            events: events.clone(),
            cancel: cancel.clone(),
        };
        if query.actor.cast(QueryHostMsg::Ask(self.id(), request)).is_err() {
            // The channel is empty: there is room.
            let _ = events.try_send(Err(AskError::Stopped));
        }
        Turn { events: receiver, cancel }
    }

    /// The turns answered so far.
    pub async fn turns(&self) -> Result<Vec<TurnRecord>, SessionError> {
        Ok(call!(self.node.cast().query.actor, QueryHostMsg::Turns, self.id()).asked()?)
    }

    /// Ends the session and frees its own keys and values; so does dropping it. What a journal remembers of it stays.
    pub fn close(self) {
        drop(self);
    }
}
