//! The server's side: takes the streams of one connection, reads one request of each and answers it. Work that takes its
//! time (encodings, turns, moves of blocks) is in `work.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use stellate_runtime::encoding;
use stellate_runtime::transport::{
    CloseCode, Closed, Connection, FrameReceiver, FrameSender, Payload, Peer, StreamError,
};
use tokio::sync::{Notify, Semaphore, watch};
use wincode::SchemaWrite;
use wincode::config::DefaultConfig;

use super::cluster::ClusterAdmin;
use super::convert;
use super::fault::{ErrorCode, Fault};
use super::info::{About, ContextInfo, SessionInfo, Status, TurnInfo};
use super::shelf::Shelf;
use super::wire::{EVENT, Event, REQUEST, Request};
use super::work;
use crate::error::ContextError;
use crate::gates::Gates;
use crate::handle::{Context, Session};
use crate::manifest::ContextId;
use crate::node::Node;
use crate::session::SessionId;
use stellate_model::block::Attention;

/// Requests of one connection that are being read at once: their payloads are held in memory while they arrive.
pub const MAX_READING: usize = 4;

/// Longest that a request may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// A node as it is served. Clones are the same.
#[derive(Clone, Debug)]
pub struct Api(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) node: Node,
    pub(super) shelf: Arc<Shelf>,
    pub(super) cluster: Arc<dyn ClusterAdmin>,
    /// Held by whoever asks a session, and alone by whoever moves it.
    pub(super) gates: Gates<SessionId>,
    /// Held alone by whoever opens a session that is not on the shelf.
    pub(super) openings: Gates<SessionId>,
    /// A session was closed: a context may not be needed any more.
    pub(super) unused: Notify,
    model: String,
    running: watch::Sender<usize>,
    leaving: AtomicBool,
}

/// One turn or encoding under way; dropped when it has ended.
#[derive(Debug)]
pub(super) struct Running(Api);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.running.send_modify(|running| *running -= 1);
    }
}

impl Api {
    /// Serves `node`, whose model people call `model`, with the contexts and sessions of `shelf`.
    pub fn new(node: Node, shelf: Arc<Shelf>, model: String, cluster: Arc<dyn ClusterAdmin>) -> Self {
        let (running, leaving) = (watch::Sender::new(0), AtomicBool::new(false));
        let (gates, openings, unused) = (Gates::default(), Gates::default(), Notify::new());
        Self(Arc::new(Shared { node, shelf, cluster, gates, openings, unused, model, running, leaving }))
    }

    /// The contexts and sessions that are kept for clients.
    pub fn shelf(&self) -> &Shelf {
        &self.0.shelf
    }

    /// Takes no new encodings, sessions and turns from now on, and waits until those under way have ended.
    pub async fn finish(&self) {
        self.0.leaving.store(true, Ordering::SeqCst);
        let ended = self.0.running.subscribe().wait_for(|running| *running == 0).await.is_ok();
        debug_assert!(ended, "the sender is held by self");
    }

    /// Turns and encodings under way.
    pub fn running(&self) -> usize {
        *self.0.running.borrow()
    }

    pub(super) fn begin(&self) -> Result<Running, Fault> {
        // Counted first: whoever waits for none then either sees this one, or this one sees that it is too late.
        self.0.running.send_modify(|running| *running += 1);
        let running = Running(self.clone());
        if self.0.leaving.load(Ordering::SeqCst) { Err(Fault::leaving()) } else { Ok(running) }
    }

    fn about(&self) -> About {
        let decoder = self.0.node.decoder();
        let kv_format = self.0.node.session_store().shape().format.to_string();
        let since_1970 =
            self.0.node.cast().clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.0.model.clone(),
            fingerprint: decoder.fingerprint().to_string(),
            vocab_tokens: decoder.config().vocab_size as u64,
            kv_format,
            wall_ms: since_1970.as_millis() as u64,
        }
    }

    async fn status(&self) -> Result<Status, Fault> {
        let (contexts, sessions) = self.0.shelf.counts();
        Ok(Status {
            about: self.about(),
            nodes: self.0.cluster.nodes().await.map_err(|error| Fault::from(&error))?,
            contexts: contexts as u64,
            sessions: sessions as u64,
            running: self.running() as u64,
            leaving: self.0.leaving.load(Ordering::SeqCst),
        })
    }

    /// Lets a context go, in memory and on disk.
    async fn remove_context(&self, id: ContextId) -> Result<(), Fault> {
        self.forget_the_lost().await;
        // Sessions that came to this node and were not asked here yet count as well.
        let sessions = self.0.node.sessions().await.map_err(|error| Fault::from(&error))?.into_iter();
        let users: Vec<_> = sessions.filter(|record| record.context == id).map(|record| record.id).collect();
        let context = self.0.shelf.context(id)?;
        self.0.shelf.remove_context(id, &users)?;
        match self.0.node.remove_context(id).await {
            // A node without a journal remembers none.
            Ok(()) | Err(ContextError::Unknown { .. }) => Ok(()),
            Err(error) => {
                // To be removed again.
                self.0.shelf.add_context(context);
                Err(Fault::new(ErrorCode::Failed, error.to_string()))
            }
        }
    }

    async fn session_info(&self, context: ContextId, session: &Session) -> Result<SessionInfo, Fault> {
        let turns = session.turns().await.map_err(|error| Fault::from(&error))?;
        let tokens: usize = turns.iter().map(|turn| turn.query_ids.len() + turn.ids.len()).sum();
        Ok(SessionInfo { id: session.id(), context, turns: turns.len() as u64, tokens: tokens as u64 })
    }

    async fn turns(&self, session: &Session) -> Result<Vec<TurnInfo>, Fault> {
        let turns = session.turns().await.map_err(|error| Fault::from(&error))?;
        let tokenizer = self.0.node.prompter().tokenizer().ok();
        let words = |ids: &[u32]| tokenizer.and_then(|tokenizer| tokenizer.decode(ids, true).ok());
        let info = |turn: crate::session::TurnRecord| TurnInfo {
            query: words(&turn.query_ids).unwrap_or_default(),
            text: words(&turn.ids).unwrap_or_default(),
            finish: convert::finish_word(turn.finish).to_owned(),
            query_ids: turn.query_ids,
            ids: turn.ids,
        };
        Ok(turns.into_iter().map(info).collect())
    }
}

fn context_info(api: &Api, context: &Context, sessions: usize) -> ContextInfo {
    let manifest = context.manifest();
    let hosts = manifest.by_host(&context.places(), manifest.blocks.len()).unwrap_or_default();
    ContextInfo {
        id: manifest.id,
        tokens: manifest.tokens() as u64,
        blocks: manifest.blocks.len() as u64,
        block_tokens: manifest.layout.block_tokens as u64,
        attention: manifest.layout.attention.to_string(),
        anchor_tokens: match manifest.layout.attention {
            Attention::Star { anchor_tokens } => Some(anchor_tokens as u64),
            Attention::Exact => None,
        },
        hosts: hosts.keys().map(|host| api.0.cluster.host_name(*host)).collect(),
        kv_bytes: context.kv_bytes() as u64,
        sessions: sessions as u64,
    }
}

/// Answers the requests of one connection until it ends. Call it within a tokio runtime that is not the network's.
pub async fn serve_api(connection: Connection, api: Api) {
    let reading = Arc::new(Semaphore::new(MAX_READING));
    let reason = loop {
        match connection.accept().await {
            Ok((sender, receiver)) => {
                let (api, connection, reading) = (api.clone(), connection.clone(), reading.clone());
                tokio::spawn(async move {
                    let mut call = Served { sender, receiver };
                    if let Err(error) = call.serve(&api, connection.peer(), &reading).await {
                        give_up(&connection, &error);
                    }
                });
            }
            Err(reason) => break reason,
        }
    };
    if !matches!(reason, Closed::ByPeer { code: CloseCode::Done } | Closed::Here) {
        tracing::debug!(peer = %connection.peer().name, %reason, "an admin connection has ended");
    }
}

/// What a failed stream means for its connection.
fn give_up(connection: &Connection, error: &StreamError) {
    match error {
        // Boundaries are lost, or the peer means something else by its frames: there is nothing to talk about.
        StreamError::Frame(_) => {
            tracing::warn!(peer = %connection.peer().name, %error, "an admin request broke the protocol");
            connection.close(CloseCode::ProtocolViolation);
        }
        error => tracing::debug!(peer = %connection.peer().name, %error, "an admin request was given up"),
    }
}

/// A request being served: the two halves of its stream.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) sender: FrameSender,
    pub(super) receiver: FrameReceiver,
}

impl Served {
    async fn serve(&mut self, api: &Api, peer: &Peer, reading: &Semaphore) -> Result<(), StreamError> {
        let read = async {
            // The semaphore is never closed.
            let _permit = reading.acquire().await;
            self.receiver.expect().await
        };
        let Ok(frame) = tokio::time::timeout(READ_TIMEOUT, read).await else {
            self.sender.reset(super::wire::CANCELLED);
            return Ok(());
        };
        let frame = frame?;
        let request: Request = frame.expect(REQUEST)?;
        let name = request.name();
        let answered = match request.is_open_to(peer.role) {
            true => {
                note(peer, &request);
                self.answer(api, request, &frame.payload).await?
            }
            false => {
                tracing::warn!(node = %peer.id, name = %peer.name, "a node asked what only administrators may");
                Err(Fault::not_an_administrator())
            }
        };
        match answered {
            Ok(()) => {}
            Err(fault) => {
                let namer = name.and_then(|name| api.0.cluster.namer(name));
                self.event(&Event::Failed(fault.or_at(namer))).await?;
            }
        }
        self.sender.finish();
        Ok(())
    }

    /// Answers a request. The outer error is the stream's, the inner one the request's.
    async fn answer(
        &mut self,
        api: &Api,
        request: Request,
        payload: &Payload,
    ) -> Result<Result<(), Fault>, StreamError> {
        if request.is_of_sessions()
            && let Err(error) = api.0.cluster.runs_sessions()
        {
            return Ok(Err(Fault::from(&error)));
        }
        match request {
            Request::Sink => self.done(Ok(())).await,
            Request::Encode { .. }
            | Request::Append { .. }
            | Request::OpenSession(_)
            | Request::Ask { .. }
            | Request::AskTurn { .. } => work::run(self, api, request, payload).await,
            Request::Drain(_) | Request::Rebalance => work::watch_moves(self, api, request).await,
            Request::Context(id) => match api.0.shelf.context(id) {
                Ok(context) => self.context(&context).await,
                Err(fault) => Ok(Err(fault)),
            },
            Request::Session(id) => match api.session(id).await {
                Ok((_, session)) => self.event(&Event::Session(session.id())).await.map(Ok),
                Err(fault) => Ok(Err(fault)),
            },
            Request::RemoveContext(id) => self.done(api.remove_context(id).await).await,
            Request::CloseSession(id) => self.done(api.close_session(id).await).await,
            Request::MoveSession { session, to } => self.done(api.move_session(session, to).await).await,
            Request::Remove { node, force } => {
                let removed = api.0.cluster.remove(node, force).await;
                self.done(removed.map_err(|error| Fault::from(&error))).await
            }
            Request::RevokeAdmin { admin } => {
                let revoked = api.0.cluster.revoke_admin(admin).await;
                self.done(revoked.map_err(|error| Fault::from(&error))).await
            }
            Request::RevokeToken { id } => {
                let revoked = api.0.cluster.revoke_token(id).await;
                self.done(revoked.map_err(|error| Fault::from(&error))).await
            }
            request => match body(api, request, self.sender.version()).await {
                Ok(bytes) => self.send(&Event::Body, &[&bytes]).await.map(Ok),
                Err(fault) => Ok(Err(fault)),
            },
        }
    }

    async fn done(&mut self, result: Result<(), Fault>) -> Result<Result<(), Fault>, StreamError> {
        match result {
            Ok(()) => self.event(&Event::Done).await.map(Ok),
            Err(fault) => Ok(Err(fault)),
        }
    }

    pub(super) async fn context(&mut self, context: &Context) -> Result<Result<(), Fault>, StreamError> {
        match convert::context_parts(
            context.manifest(),
            &context.places(),
            context.kv_bytes(),
            context.progress(),
        ) {
            Ok((head, ids, blocks)) => self.send(&Event::Context(head), &[&ids, &blocks]).await.map(Ok),
            Err(fault) => Ok(Err(fault)),
        }
    }

    pub(super) async fn event(&mut self, event: &Event) -> Result<(), StreamError> {
        self.send(event, &[]).await
    }

    pub(super) async fn send(&mut self, event: &Event, parts: &[&[u8]]) -> Result<(), StreamError> {
        self.sender.send(EVENT, event, parts).await
    }
}

/// Tells the log who asks for what lets nodes in or keeps them out.
fn note(peer: &Peer, request: &Request) {
    let Peer { id, name, role, .. } = peer;
    match request {
        Request::CreateToken { ttl_s, uses } => {
            tracing::info!(by = %name, %id, %role, ttl_s, uses, "a join token is asked for");
        }
        Request::RevokeAdmin { admin: id_or_name } | Request::RevokeToken { id: id_or_name } => {
            let what: String = id_or_name.chars().take(80).collect();
            tracing::info!(by = %name, %id, %role, ?what, "a revocation is asked for");
        }
        Request::Remove { node, force } => {
            let node: String = node.chars().take(80).collect();
            tracing::info!(by = %name, %id, %role, ?node, force, "a removal is asked for");
        }
        _ => {}
    }
}

/// Completes when the client has given its request up, and not before.
pub(super) async fn given_up(receiver: &mut FrameReceiver) {
    if let Ok(None) = receiver.receive().await {
        // It only has no more to say.
        std::future::pending::<()>().await;
    }
}

/// As [`given_up`]; whether the connection is gone rather than this request.
pub(super) async fn lost_or_reset(receiver: &mut FrameReceiver) -> bool {
    match receiver.receive().await {
        // It only has no more to say.
        Ok(None) => std::future::pending().await,
        Err(StreamError::Closed(_)) => true,
        Ok(Some(_)) | Err(_) => false,
    }
}

/// The answer to a question that takes no time, for a client that speaks `version`.
async fn body(api: &Api, request: Request, version: u16) -> Result<Vec<u8>, Fault> {
    let cluster = &api.0.cluster;
    let refused = |error: super::ClusterError| Fault::from(&error);
    match request {
        Request::About => bytes(&api.about()),
        Request::Status => {
            let status = api.status().await?;
            let nodes = status.nodes.into_iter().map(|node| node.lowered(version)).collect();
            bytes(&Status { nodes, ..status })
        }
        Request::Contexts => {
            let contexts = api.0.shelf.contexts();
            bytes(
                &contexts
                    .iter()
                    .map(|(context, sessions)| context_info(api, context, *sessions))
                    .collect::<Vec<_>>(),
            )
        }
        Request::Sessions => {
            api.take_up_the_rest().await?;
            let mut infos = Vec::new();
            for (context, session) in api.0.shelf.sessions() {
                infos.push(api.session_info(context, &session).await?);
            }
            bytes(&infos)
        }
        Request::Turns(id) => bytes(&api.turns(&api.session(id).await?.1).await?),
        Request::TurnCount(id) => {
            let turns = api.session(id).await?.1.turns().await.map_err(|error| Fault::from(&error))?;
            bytes(&(turns.len() as u64))
        }
        Request::SessionPlaces => bytes(&cluster.places().await.map_err(refused)?),
        Request::Nodes => {
            let nodes = cluster.nodes().await.map_err(refused)?;
            bytes(&nodes.into_iter().map(|node| node.lowered(version)).collect::<Vec<_>>())
        }
        Request::Cordon { node, cordoned } => {
            bytes(&cluster.set_cordon(node, cordoned).await.map_err(refused)?.lowered(version))
        }
        Request::Plan => bytes(&cluster.plan().await.map_err(refused)?),
        Request::CreateToken { ttl_s, uses } => {
            bytes(&cluster.create_token(Duration::from_secs(ttl_s), uses).await.map_err(refused)?)
        }
        Request::Tokens => bytes(&cluster.tokens().await.map_err(refused)?),
        Request::Supervisor => bytes(&cluster.supervisor().await.map_err(refused)?),
        Request::TakeOver { node } => bytes(&cluster.take_over(node).await.map_err(refused)?),
        Request::Doctor { everywhere } => bytes(&cluster.doctor(everywhere).await.map_err(refused)?),
        _ => unreachable!("answered by its own event"),
    }
}

fn bytes<T>(value: &T) -> Result<Vec<u8>, Fault>
where
    T: SchemaWrite<DefaultConfig, Src = T>,
{
    encoding::encode(value).map_err(Fault::malformed)
}
