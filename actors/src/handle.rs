//! What a user holds of a node: contexts and sessions. Handles only: blocks lie on context hosts, conversations on the
//! query host.

use std::sync::Arc;

use ractor::call;
use tokio::sync::mpsc;

use crate::cancel::CancelToken;
use crate::error::{AskError, Asked, EncodeError, SessionError};
use crate::manifest::{ContextId, Manifest};
use crate::node::{Cast, Node};
use crate::path::context::EncodedContext;
use crate::path::query::TurnRequest;
use crate::progress::{EncodeMeter, EncodeProgress};
use crate::prompt::{Addition, ContextSource, Prompting};
use crate::query_host::{QueryHostMsg, SessionLease};
use crate::session::{SessionId, TurnRecord};
use crate::turn::{AskOptions, QueryInput, Turn};

/// An encoded context: a handle that keeps its blocks. Any number of sessions share it; the last handle or session to go
/// frees what no other context shares.
#[derive(Clone, Debug)]
pub struct Context {
    node: Node,
    encoded: Arc<EncodedContext>,
    prompting: Prompting,
    progress: EncodeProgress,
}

impl Context {
    pub(crate) fn new(
        node: Node,
        encoded: EncodedContext,
        prompting: Prompting,
        progress: EncodeProgress,
    ) -> Self {
        Self { node, encoded: Arc::new(encoded), prompting, progress }
    }

    /// Its name in the node.
    pub fn id(&self) -> ContextId {
        self.encoded.manifest.id
    }

    /// Its tokens and blocks.
    pub fn manifest(&self) -> &Manifest {
        &self.encoded.manifest
    }

    /// What its encoding came to: how many blocks were encoded, how many shared.
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
        self.node.encode_as(self.prompting, source, manifest.layout, EncodeMeter::new(progress)).await
    }

    /// Opens a session: a conversation of its own over this context.
    pub async fn session(&self) -> Result<Session, SessionError> {
        let query = &self.node.cast().query.actor;
        let lease = call!(query, QueryHostMsg::Open, Arc::clone(&self.encoded), self.prompting).asked()??;
        Ok(Session { lease, node: self.node.clone() })
    }
}

/// A conversation over a context. What was asked and answered stays in it: a later question sees it and nothing is
/// encoded again. Dropping it closes it.
#[derive(Debug)]
pub struct Session {
    lease: SessionLease,
    node: Node,
}

impl Session {
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

    /// Ends the session and frees its own keys and values; so does dropping it.
    pub fn close(self) {
        drop(self);
    }
}
