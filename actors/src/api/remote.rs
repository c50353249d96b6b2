//! Contexts, sessions and moves of a node of another process: what stands behind the handles of `handle.rs` when the node was
//! connected to.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::client::{Call, Client};
use super::cluster::MoveEvent;
use super::convert;
use super::fault::RemoteError;
use super::info::TurnInfo;
use super::wire::{Event, Request, WireOptions};
use crate::cancel::CancelToken;
use crate::error::{AskError, EncodeError, SessionError};
use crate::handle::Context;
use crate::manifest::Manifest;
use crate::node::Node;
use crate::progress::EncodeMeter;
use crate::prompt::{Addition, Prompting};
use crate::session::{SessionId, TurnRecord};
use crate::turn::{AskOptions, QueryInput, Turn, TurnEvent};
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

/// A session of a node of another process.
#[derive(Debug)]
pub struct RemoteSession {
    client: Client,
    id: SessionId,
}

impl RemoteSession {
    pub(super) fn new(client: Client, id: SessionId) -> Self {
        Self { client, id }
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    pub(crate) fn ask(&self, input: QueryInput, options: AskOptions) -> Turn {
        let (events, receiver) = mpsc::channel(QUEUE_EVENTS);
        let cancel = CancelToken::default();
        let (input, payload) = convert::input_parts(input);
        let request = Request::Ask { session: self.id, input, options: WireOptions::from(options) };
        let asked = Asked { client: self.client.clone(), events, cancel: cancel.clone() };
        self.client.spawn(asked.run(request, payload));
        Turn { events: receiver, cancel }
    }

    pub(crate) async fn turns(&self) -> Result<Vec<TurnRecord>, RemoteError> {
        let turns: Vec<TurnInfo> = self.client.body(Request::Turns(self.id)).await?;
        let record = |turn: TurnInfo| {
            let finish = convert::finish_of(&turn.finish)?;
            Ok(TurnRecord { query_ids: turn.query_ids, ids: turn.ids, finish })
        };
        turns.into_iter().map(record).collect()
    }

    /// Has the session closed, whenever the node hears of it.
    pub(crate) fn close(&self) {
        let (client, id) = (self.client.clone(), self.id);
        self.client.spawn(async move {
            if let Err(error) = client.close_session(id).await {
                tracing::debug!(session = %id, %error, "a session was not closed");
            }
        });
    }
}

/// A question under way: passes events from the stream to the listener.
struct Asked {
    client: Client,
    events: mpsc::Sender<Result<TurnEvent, AskError>>,
    cancel: CancelToken,
}

impl Asked {
    async fn run(self, request: Request, payload: Vec<u8>) {
        if let Err(error) = self.follow(request, &payload).await {
            // A listener that is gone has nothing to be told.
            let _ = self.events.send(Err(error)).await;
        }
    }

    async fn follow(&self, request: Request, payload: &[u8]) -> Result<(), AskError> {
        let mut call = self.client.call(request, payload).await?;
        let mut query_logits = Vec::new();
        let mut cancelled = false;
        loop {
            let (event, payload) = tokio::select! {
                biased;
                () = self.cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    call.cancel();
                    continue;
                }
                event = call.event() => event?,
            };
            let told = match event {
                Event::Token(head) => TurnEvent::Token(convert::token(head, &payload)?),
                Event::QueryLogits => {
                    query_logits.extend(convert::floats(&payload)?);
                    continue;
                }
                Event::Finished(head) => {
                    call.end();
                    TurnEvent::Finished(Box::new(convert::report(
                        &head,
                        &payload,
                        std::mem::take(&mut query_logits),
                    )?))
                }
                Event::Failed(fault) => {
                    call.end();
                    return Err(fault.into());
                }
                event => return Err(call.unexpected(event).into()),
            };
            let is_last = matches!(told, TurnEvent::Finished(_));
            if self.events.send(Ok(told)).await.is_err() || is_last {
                return Ok(());
            }
        }
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
