//! Requests and events as they stand in the headers of frames. What is in the payload is said at each of them; turning all
//! of it into the types of the session API is `convert.rs`'s.

use stellate_runtime::encoding::{decode, encode};
use stellate_runtime::identity::Role;
use stellate_runtime::transport::FrameKind;
use wincode::{SchemaRead, SchemaWrite};

use super::cluster::{DrainRequest, MoveEvent};
use super::fault::Fault;
use crate::manifest::ContextId;
use crate::session::SessionId;

/// The first frame of a stream, from the client.
pub(super) const REQUEST: FrameKind = FrameKind(96);
/// Every other frame, from the server.
pub(super) const EVENT: FrameKind = FrameKind(97);

/// With which code the client resets its half to cancel.
pub(super) const CANCELLED: u32 = 1;

/// Bytes of logits in one frame at most; a vocabulary's row fits, many rows are sent in pieces.
pub(super) const LOGITS_BYTES: usize = 16 << 20;

/// Any bytes read as a request and written again; none if they are none. For tests that send any bytes.
pub fn request_again(bytes: &[u8]) -> Option<Vec<u8>> {
    encode(&decode::<Request>(bytes).ok()?).ok()
}

/// As [`request_again`], of an event.
pub fn event_again(bytes: &[u8]) -> Option<Vec<u8>> {
    encode(&decode::<Event>(bytes).ok()?).ok()
}

/// What the client asks.
#[derive(Clone, Debug, SchemaRead, SchemaWrite)]
pub(super) enum Request {
    /// Answered by `Body` with [`super::About`].
    About,
    /// Answered by `Body` with [`super::Status`].
    Status,
    /// The text or the tokens are the payload. Answered by `Progress` and `Context`.
    Encode { source: SourceKind, layout: WireLayout },
    /// The text or the tokens are the payload. Answered as `Encode`.
    Append { context: ContextId, addition: PartKind },
    /// Answered by `Body` with a list of [`super::ContextInfo`].
    Contexts,
    /// Answered by `Context`.
    Context(ContextId),
    /// Answered by `Done`.
    RemoveContext(ContextId),
    /// Answered by `Session`.
    OpenSession(ContextId),
    /// Answered by `Body` with a list of [`super::SessionInfo`].
    Sessions,
    /// Answered by `Session` if it is there.
    Session(SessionId),
    /// Answered by `Done`.
    CloseSession(SessionId),
    /// The text or the tokens are the payload. Answered by `Token`s, `QueryLogits` and `Finished`.
    Ask { session: SessionId, input: InputKind, options: WireOptions },
    /// Answered by `Body` with a list of [`super::TurnInfo`].
    Turns(SessionId),
    /// Answered by `Body` with a list of [`super::NodeInfo`].
    Nodes,
    /// Answered by `Body` with a [`super::NodeInfo`].
    Cordon { node: String, cordoned: bool },
    /// Answered by `Moved` and `Done`.
    Drain(DrainRequest),
    /// Answered by `Done`.
    Remove { node: String, force: bool },
    /// Answered by `Body` with a [`super::RebalancePlan`].
    Plan,
    /// Answered by `Moved` and `Done`.
    Rebalance,
    /// Answered by `Body` with an [`super::IssuedToken`].
    CreateToken { ttl_s: u64, uses: u32 },
    /// Answered by `Body` with a list of [`super::Check`]: of the node alone, or of all.
    Doctor { everywhere: bool },
    /// Bytes to measure with are the payload. Answered by `Done` once all have come.
    Sink,
    /// Answered by `Done`.
    RevokeAdmin { admin: String },
    /// Answered by `Body` with a list of [`super::TokenInfo`].
    Tokens,
    /// Answered by `Done`.
    RevokeToken { id: String },
    /// Answered by `Body` with a [`super::SupervisorInfo`].
    Supervisor,
    /// Answered by `Body` with the name of who is to supervise.
    TakeOver { node: Option<String> },
    /// Answered by `Body` with the number of turns (`u64`) in a session.
    TurnCount(SessionId),
    /// As `Ask`, for the turn of this number, the first being 0: one that is logged is told again, and of the tokens only those
    /// behind the first `received` are sent. Lost with its connection, it was never asked; reset, it keeps what was said.
    AskTurn { session: SessionId, turn: u64, received: u64, input: InputKind, options: WireOptions },
    /// Answered by `Done`.
    MoveSession { session: SessionId, to: String },
    /// Answered by `Body` with a list of [`super::SessionPlaceInfo`].
    SessionPlaces,
}

impl Request {
    /// The number of the context that it names: those are asked for where they were made. Sessions go anywhere.
    pub(super) fn name(&self) -> Option<u64> {
        match self {
            Self::Append { context: id, .. }
            | Self::Context(id)
            | Self::RemoveContext(id)
            | Self::OpenSession(id) => Some(id.0),
            _ => None,
        }
    }

    /// Whether the holder of such a certificate may ask it. Nodes ask each other what `doctor` looks at, and nothing else: a
    /// node that was stolen must not make tokens or remove others.
    pub(super) fn is_open_to(&self, role: Role) -> bool {
        let of_nodes = matches!(self, Self::About | Self::Doctor { everywhere: false } | Self::Sink);
        role == Role::Admin || of_nodes
    }

    /// Whether it is about contexts or sessions of the node that is asked.
    pub(super) fn is_of_sessions(&self) -> bool {
        matches!(
            self,
            Self::Encode { .. }
                | Self::Append { .. }
                | Self::Contexts
                | Self::Context(_)
                | Self::RemoveContext(_)
                | Self::OpenSession(_)
                | Self::Sessions
                | Self::Session(_)
                | Self::CloseSession(_)
                | Self::Ask { .. }
                | Self::Turns(_)
                | Self::TurnCount(_)
                | Self::AskTurn { .. }
                | Self::MoveSession { .. }
                | Self::SessionPlaces
        )
    }
}

/// What a context is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) enum SourceKind {
    Document,
    Text,
    Ids,
}

/// Text (UTF-8) or tokens (little-endian `u32`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) enum PartKind {
    Text,
    Ids,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) enum InputKind {
    Text,
    Ids,
    Continue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct WireLayout {
    pub(super) block_tokens: u64,
    /// None is `exact`.
    pub(super) anchor_tokens: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub(super) struct WireOptions {
    pub(super) temperature: f32,
    pub(super) top_k: Option<u64>,
    pub(super) top_p: Option<f32>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: f32,
    pub(super) repetition_window_tokens: u64,
    pub(super) seed: u64,
    pub(super) max_tokens: u64,
    pub(super) stop: Vec<String>,
    pub(super) ignore_eos: bool,
    pub(super) top_logprobs: u64,
    pub(super) logits: bool,
    pub(super) guess_tokens: u64,
}

/// What the server answers.
#[derive(Clone, Debug, SchemaRead, SchemaWrite)]
pub(super) enum Event {
    /// The last: it was refused, or failed.
    Failed(Fault),
    /// The last: it is done.
    Done,
    /// The last: the answer is the payload.
    Body,
    /// How far an encoding is.
    Progress(WireProgress),
    /// The last: a context. The payload is its tokens, then its blocks.
    Context(ContextHead),
    /// The last: a session.
    Session(SessionId),
    /// A token of the answer; the payload is the step's logits, if they were asked for.
    Token(TokenHead),
    /// Logits of query tokens are the payload: a piece of them, in order.
    QueryLogits,
    /// The last: the end of a turn; the payload is a [`ReportBody`].
    Finished(ReportHead),
    /// Something happened to a block.
    Moved(MoveEvent),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct WireProgress {
    pub(super) tokens_done: u64,
    pub(super) tokens_total: u64,
    pub(super) blocks_done: u64,
    pub(super) blocks_total: u64,
    pub(super) blocks_reused: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct ContextHead {
    pub(super) id: ContextId,
    pub(super) layout: WireLayout,
    pub(super) tokens: u64,
    pub(super) anchor: Option<[u8; 32]>,
    pub(super) kv_bytes: u64,
    pub(super) progress: WireProgress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct WireBlock {
    pub(super) id: [u8; 32],
    pub(super) start: u64,
    pub(super) end: u64,
    /// The host that holds it, and whether that keeps a copy of the anchor for it; none while it lies nowhere.
    pub(super) placed: Option<(u64, bool)>,
}

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub(super) struct TokenHead {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) logprob: f32,
    pub(super) top: Vec<(u32, f32)>,
    /// Whether the payload is logits.
    pub(super) has_logits: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) enum WireFinish {
    Stop,
    Length,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub(super) struct ReportHead {
    pub(super) finish: WireFinish,
    /// Tokens: of the context, of the session, of the query, generated.
    pub(super) usage: [u64; 4],
    /// Steps, tokens guessed, tokens accepted.
    pub(super) speculation: [u64; 3],
    /// Seconds to the first token, seconds in all, tokens a second.
    pub(super) timings: [f64; 3],
    /// Whether logits of the query came before.
    pub(super) has_query_logits: bool,
}

/// The parts of a report that may be long.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct ReportBody {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
    pub(super) query_ids: Vec<u32>,
}
