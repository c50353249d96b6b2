//! Between the session API's types and those that travel. Whatever comes in is checked here: a peer's text that is no text,
//! tokens cut in half, blocks that are no part of their context.

use std::sync::Arc;

use stellate_model::block::{Attention, BlockId, Layout};
use stellate_model::sampler::SamplingParams;
use stellate_runtime::encoding;
use stellate_runtime::transport::Payload;

use super::fault::{Fault, RemoteError};
use super::wire::{
    ContextHead, InputKind, PartKind, ReportBody, ReportHead, SourceKind, TokenHead, WireBlock, WireFinish,
    WireLayout, WireOptions, WireProgress,
};
use crate::link::HostId;
use crate::manifest::{Manifest, ManifestBlock};
use crate::placement::Placed;
use crate::progress::EncodeProgress;
use crate::prompt::{Addition, ContextSource};
use crate::turn::{
    AskOptions, FinishReason, QueryInput, Speculation, Timings, TokenEvent, TurnReport, Usage,
};
use crate::whereabouts::Places;

fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Little-endian bytes of tokens.
pub(super) fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// Little-endian bytes of logits.
pub(super) fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn text(payload: &Payload) -> Result<String, Fault> {
    String::from_utf8(payload.as_bytes().to_vec())
        .map_err(|error| Fault::malformed(format!("the text of the request is not UTF-8: {error}")))
}

fn ids(payload: &Payload) -> Result<Vec<u32>, Fault> {
    payload.as_slice_of::<u32>().map(<[u32]>::to_vec).map_err(Fault::malformed)
}

/// What an encoding is asked for with; the source of an append is not for here.
pub(super) fn source_parts(source: ContextSource) -> (SourceKind, Vec<u8>) {
    match source {
        ContextSource::Document(text) => (SourceKind::Document, text.into_bytes()),
        ContextSource::Text(text) => (SourceKind::Text, text.into_bytes()),
        ContextSource::Ids(ids) => (SourceKind::Ids, id_bytes(&ids)),
        ContextSource::Append(before, Addition::Ids(more)) => {
            (SourceKind::Ids, id_bytes(&[&before[..], &more].concat()))
        }
        // Whoever appends text has a context of the node at hand, which knows where it stands.
        ContextSource::Append(_, Addition::Text(text)) => (SourceKind::Text, text.into_bytes()),
    }
}

pub(super) fn source(kind: SourceKind, payload: &Payload) -> Result<ContextSource, Fault> {
    Ok(match kind {
        SourceKind::Document => ContextSource::Document(text(payload)?),
        SourceKind::Text => ContextSource::Text(text(payload)?),
        SourceKind::Ids => ContextSource::Ids(ids(payload)?),
    })
}

pub(super) fn addition_parts(addition: Addition) -> (PartKind, Vec<u8>) {
    match addition {
        Addition::Text(text) => (PartKind::Text, text.into_bytes()),
        Addition::Ids(ids) => (PartKind::Ids, id_bytes(&ids)),
    }
}

pub(super) fn addition(kind: PartKind, payload: &Payload) -> Result<Addition, Fault> {
    Ok(match kind {
        PartKind::Text => Addition::Text(text(payload)?),
        PartKind::Ids => Addition::Ids(ids(payload)?),
    })
}

pub(super) fn input_parts(input: QueryInput) -> (InputKind, Vec<u8>) {
    match input {
        QueryInput::Text(text) => (InputKind::Text, text.into_bytes()),
        QueryInput::Ids(ids) => (InputKind::Ids, id_bytes(&ids)),
        QueryInput::Continue => (InputKind::Continue, Vec::new()),
    }
}

pub(super) fn input(kind: InputKind, payload: &Payload) -> Result<QueryInput, Fault> {
    Ok(match kind {
        InputKind::Text => QueryInput::Text(text(payload)?),
        InputKind::Ids => QueryInput::Ids(ids(payload)?),
        InputKind::Continue => QueryInput::Continue,
    })
}

impl From<Layout> for WireLayout {
    fn from(layout: Layout) -> Self {
        let anchor_tokens = match layout.attention {
            Attention::Star { anchor_tokens } => Some(anchor_tokens as u64),
            Attention::Exact => None,
        };
        Self { block_tokens: layout.block_tokens as u64, anchor_tokens }
    }
}

impl From<WireLayout> for Layout {
    fn from(layout: WireLayout) -> Self {
        let block_tokens = size(layout.block_tokens);
        match layout.anchor_tokens {
            Some(anchor_tokens) => Self::star(block_tokens, size(anchor_tokens)),
            None => Self::exact(block_tokens),
        }
    }
}

impl From<EncodeProgress> for WireProgress {
    fn from(progress: EncodeProgress) -> Self {
        let EncodeProgress { tokens_done, tokens_total, blocks_done, blocks_total, blocks_reused } = progress;
        Self {
            tokens_done: tokens_done as u64,
            tokens_total: tokens_total as u64,
            blocks_done: blocks_done as u64,
            blocks_total: blocks_total as u64,
            blocks_reused: blocks_reused as u64,
        }
    }
}

impl From<WireProgress> for EncodeProgress {
    fn from(progress: WireProgress) -> Self {
        Self {
            tokens_done: size(progress.tokens_done),
            tokens_total: size(progress.tokens_total),
            blocks_done: size(progress.blocks_done),
            blocks_total: size(progress.blocks_total),
            blocks_reused: size(progress.blocks_reused),
        }
    }
}

impl From<AskOptions> for WireOptions {
    fn from(options: AskOptions) -> Self {
        let SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            repetition_window_tokens,
            seed,
        } = options.sampling;
        Self {
            temperature,
            top_k: top_k.map(|k| k as u64),
            top_p,
            min_p,
            repetition_penalty,
            repetition_window_tokens: repetition_window_tokens as u64,
            seed,
            max_tokens: options.max_tokens as u64,
            stop: options.stop,
            ignore_eos: options.ignore_eos,
            top_logprobs: options.top_logprobs as u64,
            logits: options.logits,
            guess_tokens: options.guess_tokens as u64,
        }
    }
}

impl From<WireOptions> for AskOptions {
    fn from(options: WireOptions) -> Self {
        let sampling = SamplingParams {
            temperature: options.temperature,
            top_k: options.top_k.map(size),
            top_p: options.top_p,
            min_p: options.min_p,
            repetition_penalty: options.repetition_penalty,
            repetition_window_tokens: size(options.repetition_window_tokens),
            seed: options.seed,
        };
        Self {
            sampling,
            max_tokens: size(options.max_tokens),
            stop: options.stop,
            ignore_eos: options.ignore_eos,
            top_logprobs: size(options.top_logprobs),
            logits: options.logits,
            guess_tokens: size(options.guess_tokens),
        }
    }
}

/// A context's head, tokens and blocks.
pub(super) fn context_parts(
    manifest: &Manifest,
    places: &Places,
    kv_bytes: usize,
    progress: EncodeProgress,
) -> Result<(ContextHead, Vec<u8>, Vec<u8>), Fault> {
    let head = ContextHead {
        id: manifest.id,
        layout: manifest.layout.into(),
        tokens: manifest.tokens() as u64,
        anchor: manifest.anchor.map(|anchor| *anchor.as_bytes()),
        kv_bytes: kv_bytes as u64,
        progress: progress.into(),
    };
    let block = |(index, block): (usize, &ManifestBlock)| WireBlock {
        id: *block.id.as_bytes(),
        start: block.range.start as u64,
        end: block.range.end as u64,
        placed: places.placed.get(index).map(|placed| (placed.host.0, placed.anchor_copy)),
    };
    let blocks: Vec<WireBlock> = manifest.blocks.iter().enumerate().map(block).collect();
    let blocks = encoding::encode(&blocks).map_err(Fault::malformed)?;
    Ok((head, id_bytes(&manifest.ids), blocks))
}

/// The context whose head and payload these are, and where its blocks lay.
pub(super) fn manifest(head: &ContextHead, payload: &Payload) -> Result<(Manifest, Places), RemoteError> {
    let wrong = |problem: &str| RemoteError::Protocol(format!("a malformed context: {problem}"));
    let bytes = payload.as_bytes();
    let cut = size(head.tokens).checked_mul(4).filter(|cut| *cut <= bytes.len());
    let (ids, blocks) = bytes.split_at(cut.ok_or_else(|| wrong("fewer tokens than it says"))?);
    let (ids, _) = ids.as_chunks::<4>();
    let ids: Arc<[u32]> = ids.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let blocks: Vec<WireBlock> =
        encoding::decode(blocks).map_err(|error| RemoteError::Protocol(error.to_string()))?;
    let block = |block: WireBlock| {
        let range = size(block.start)..size(block.end);
        let is_part = range.start <= range.end && range.end <= ids.len();
        is_part.then_some(ManifestBlock { id: BlockId::from_bytes(block.id), range })
    };
    let held =
        |(host, anchor_copy)| Placed { host: HostId(host), held: true, anchor_copy, anchor_from: None };
    let placed: Option<Vec<_>> = blocks.iter().map(|block| block.placed.map(held)).collect();
    let places = Places { version: 0, placed: placed.unwrap_or_default() };
    let blocks: Option<Vec<_>> = blocks.into_iter().map(block).collect();
    let manifest = Manifest {
        id: head.id,
        layout: head.layout.into(),
        blocks: blocks.ok_or_else(|| wrong("a block is no part of it"))?,
        anchor: head.anchor.map(BlockId::from_bytes),
        ids,
    };
    Ok((manifest, places))
}

/// A token's head, and its logits.
pub(super) fn token_parts(token: TokenEvent) -> (TokenHead, Vec<u8>) {
    let TokenEvent { id, text, logprob, top, logits } = token;
    let bytes = logits.as_deref().map(float_bytes);
    let head = TokenHead { id, text, logprob, top, has_logits: bytes.is_some() };
    (head, bytes.unwrap_or_default())
}

pub(super) fn token(head: TokenHead, payload: &Payload) -> Result<TokenEvent, RemoteError> {
    let TokenHead { id, text, logprob, top, has_logits } = head;
    let logits = has_logits.then(|| floats(payload)).transpose()?.map(Into::into);
    Ok(TokenEvent { id, text, logprob, top, logits })
}

/// Logits in a payload.
pub(super) fn floats(payload: &Payload) -> Result<Vec<f32>, RemoteError> {
    payload
        .as_slice_of::<f32>()
        .map(<[f32]>::to_vec)
        .map_err(|error| RemoteError::Protocol(error.to_string()))
}

pub(super) fn finish_word(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

/// The finish that [`finish_word`] wrote.
pub(super) fn finish_of(word: &str) -> Result<FinishReason, RemoteError> {
    [FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled]
        .into_iter()
        .find(|finish| finish_word(*finish) == word)
        .ok_or_else(|| RemoteError::Protocol("a turn that ended in an unknown way".to_owned()))
}

/// A report's head, its body encoded, and its logits.
type ReportParts = (ReportHead, Vec<u8>, Option<Arc<[f32]>>);

/// Takes a report apart.
pub(super) fn report_parts(report: TurnReport) -> Result<ReportParts, Fault> {
    let TurnReport { text, ids, query_ids, finish, usage, speculation, timings, query_logits } = report;
    let head = ReportHead {
        finish: match finish {
            FinishReason::Stop => WireFinish::Stop,
            FinishReason::Length => WireFinish::Length,
            FinishReason::Cancelled => WireFinish::Cancelled,
        },
        usage: [usage.context_tokens, usage.session_tokens, usage.query_tokens, usage.generated_tokens]
            .map(|tokens| tokens as u64),
        speculation: [speculation.steps, speculation.guessed_tokens, speculation.accepted_tokens]
            .map(|count| count as u64),
        timings: [timings.first_token_s, timings.total_s, timings.tokens_per_s],
        has_query_logits: query_logits.is_some(),
    };
    let body = encoding::encode(&ReportBody { text, ids, query_ids }).map_err(Fault::malformed)?;
    Ok((head, body, query_logits))
}

pub(super) fn report(
    head: &ReportHead,
    payload: &Payload,
    query_logits: Vec<f32>,
) -> Result<TurnReport, RemoteError> {
    let body = encoding::decode(payload.as_bytes());
    let ReportBody { text, ids, query_ids } =
        body.map_err(|error| RemoteError::Protocol(error.to_string()))?;
    let [context_tokens, session_tokens, query_tokens, generated_tokens] = head.usage.map(size);
    let [steps, guessed_tokens, accepted_tokens] = head.speculation.map(size);
    let [first_token_s, total_s, tokens_per_s] = head.timings;
    Ok(TurnReport {
        text,
        ids,
        query_ids,
        finish: match head.finish {
            WireFinish::Stop => FinishReason::Stop,
            WireFinish::Length => FinishReason::Length,
            WireFinish::Cancelled => FinishReason::Cancelled,
        },
        usage: Usage { context_tokens, session_tokens, query_tokens, generated_tokens },
        speculation: Speculation { steps, guessed_tokens, accepted_tokens },
        timings: Timings { first_token_s, total_s, tokens_per_s },
        query_logits: head.has_query_logits.then(|| query_logits.into()),
    })
}
