//! Contexts, sessions and moves of a node of another process: what stands behind the handles of `handle.rs` when the node was
//! connected to.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::client::{Call, Client};
use super::cluster::MoveEvent;
use super::convert;
use super::fault::RemoteError;
use super::info::TurnInfo;
use super::roaming::{Question, Roaming};
use super::wire::{Event, Request};
use crate::cancel::CancelToken;
use crate::error::{EncodeError, SessionError};
use crate::handle::Context;
use crate::manifest::Manifest;
use crate::node::Node;
use crate::progress::EncodeMeter;
use crate::prompt::{Addition, Prompting};
use crate::session::{SessionId, TurnRecord};
use crate::turn::{AskOptions, QueryInput, Turn};
use crate::whereabouts::Places;

/// Events of an answer that may wait for its listener; beyond, the server waits.
const QUEUE_EVENTS: usize = 64;

/// A context of a node of another process.
#[derive(Clone, Debug)]
pub struct RemoteContext {
    client: Client,
    manifest: Arc<Manifest>,
    places: Arc<Places>,
    kv_bytes: usize,
}

impl RemoteContext {
    pub(super) fn new(client: Client, manifest: Manifest, places: Places, kv_bytes: u64) -> Self {
        let kv_bytes = usize::try_from(kv_bytes).unwrap_or(usize::MAX);
        Self { client, manifest: Arc::new(manifest), places: Arc::new(places), kv_bytes }
    }

    /// Where the blocks lay when the handle was made.
    pub(crate) fn places(&self) -> Arc<Places> {
        Arc::clone(&self.places)
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn kv_bytes(&self) -> usize {
        self.kv_bytes
    }

    pub(crate) fn into_context(self, node: Node, prompting: Prompting, meter: &EncodeMeter) -> Context {
        Context::there(node, self, prompting, meter.progress())
    }

    pub(crate) async fn append(&self, addition: Addition, meter: &EncodeMeter) -> Result<Self, EncodeError> {
        let (addition, payload) = convert::addition_parts(addition);
        let request = Request::Append { context: self.manifest.id, addition };
        self.client.encoded(request, &payload, meter).await
    }

    pub(crate) async fn session(&self) -> Result<RemoteSession, SessionError> {
        let id = self.client.named_session(Request::OpenSession(self.manifest.id)).await??;
        Ok(RemoteSession::new(self.client.clone(), id))
    }
}

/// A session of a node of another process, wherever it goes.
#[derive(Debug)]
pub struct RemoteSession {
    /// The node that had it last.
    client: Arc<Mutex<Client>>,
    id: SessionId,
}

impl RemoteSession {
    pub(super) fn new(client: Client, id: SessionId) -> Self {
        Self { client: Arc::new(Mutex::new(client)), id }
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    fn client(&self) -> Client {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks, and asks again elsewhere as long as that may help: the answer goes on where it was cut off.
    pub(crate) fn ask(&self, input: QueryInput, options: AskOptions) -> Turn {
        let (events, receiver) = mpsc::channel(QUEUE_EVENTS);
        let cancel = CancelToken::default();
        let at = Arc::clone(&self.client);
        let question = Question::new(self.id, input, options);
        self.client().spawn(Roaming::new(at, question, events, cancel.clone()).run());
        Turn { events: receiver, cancel, abandoned: CancelToken::default() }
    }

    pub(crate) async fn turns(&self) -> Result<Vec<TurnRecord>, RemoteError> {
        let turns: Vec<TurnInfo> = self.client().turns(self.id).await?;
        let record = |turn: TurnInfo| {
            let finish = convert::finish_of(&turn.finish)?;
            Ok(TurnRecord { query_ids: turn.query_ids, ids: turn.ids, finish })
        };
        turns.into_iter().map(record).collect()
    }

    /// Has the session closed.
    pub(crate) async fn remove(&self) -> Result<(), RemoteError> {
        self.client().close_session(self.id).await
    }

    /// Has the session closed, whenever the node hears of it.
    pub(crate) fn close(&self) {
        let (client, id) = (self.client(), self.id);
        client.clone().spawn(async move {
            if let Err(error) = client.close_session(id).await {
                tracing::debug!(session = %id, %error, "a session was not closed");
            }
        });
    }
}

/// Blocks that move, as they do. Dropping it stops watching; the moves go on.
#[derive(Debug)]
pub struct Moves(Option<Call>);

impl Moves {
    pub(super) fn new(call: Call) -> Self {
        Self(Some(call))
    }

    /// The next event, or none once all is done.
    pub async fn next(&mut self) -> Result<Option<MoveEvent>, RemoteError> {
        let Some(call) = &mut self.0 else { return Ok(None) };
        match call.event().await? {
            (Event::Moved(event), _) => Ok(Some(event)),
            (Event::Done, _) => {
                call.end();
                self.0 = None;
                Ok(None)
            }
            (event, _) => Err(call.unexpected(event)),
        }
    }
}
