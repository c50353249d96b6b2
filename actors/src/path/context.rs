//! The life of a context token (phase 1 of Star Attention, arXiv 2411.17116, section 2.1).
//!
//! 1. **tokenise** the text: [`tokenise`];
//! 2. **cut** the tokens into blocks and **address** each by its content: [`Manifest::new`];
//! 3. **place** the blocks on hosts, or be refused with the numbers: [`place_request`];
//! 4. **encode** what no host holds yet: [`encode_star`], every host its own blocks side by side with the others and
//!    with no word between them; or [`encode_exact`], block after block along the path of a query token. Where a host
//!    fails, place again and go on: [`settle`];
//! 5. on the host, **ensure the anchor** and run the block behind it chunk by chunk: [`BlockEncoder`] (`exact`: [`ExactEncoder`]);
//! 6. **seal** the block into the host's bounded store, write the **manifest** down and hand it out: [`encode`].

use std::ops::Range;
use std::sync::Arc;

use futures_util::future::try_join_all;
use ractor::call;
use stellate_kernels::{KvBlock, KvSpan, Visible};
use stellate_model::block::{Attention, BlockId, Layout};
use stellate_model::decoder::Decoder;
use stellate_model::observe::{Operation, Phase, Work};

use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::context_host::{EncodeJob, Encoded, HostError, Reserved};
use crate::directory::Hosts;
use crate::engine::Engine;
use crate::error::{Asked, EncodeError};
use crate::fanout::{Fanout, FanoutError};
use crate::fleet::Fleet;
use crate::journal::ContextRecord;
use crate::lease::ContextLease;
use crate::link::HostId;
use crate::manifest::{ContextId, Manifest, ManifestBlock};
use crate::path::heal::{Effort, settle};
use crate::path::query::forward;
use crate::placement::{AnchorNeed, Need, Placed};
use crate::port::HostPort;
use crate::progress::EncodeMeter;
use crate::prompt::{ContextSource, Prompting};
use crate::query_host::{ExactJob, QueryHostMsg};
use crate::speculate::ContextIndex;
use crate::supervisor::PlaceRequest;
use crate::tail::Tail;
use crate::whereabouts::Whereabouts;

/// A context to encode.
#[derive(Debug)]
pub struct EncodeRequest {
    /// Its text or tokens.
    pub source: ContextSource,
    /// How questions over it are put.
    pub prompting: Prompting,
    /// Its shape.
    pub layout: Layout,
    /// Told of every chunk of tokens that is done.
    pub meter: EncodeMeter,
    /// Ends the work between two chunks.
    pub cancel: CancelToken,
}

/// A context that can be asked, and what keeps it.
#[derive(Debug)]
pub struct EncodedContext {
    /// Its tokens and blocks.
    pub manifest: Arc<Manifest>,
    /// How questions over it are put.
    pub prompting: Prompting,
    /// Where its blocks lie.
    pub whereabouts: Whereabouts,
    /// Where runs of its tokens stand, for guesses at answers that copy them.
    pub index: ContextIndex,
    /// Keeps the blocks; dropped with the last user of the context.
    pub lease: ContextLease,
}

/// Encodes a context: the whole path. On an error nothing is kept and every other context is as it was.
pub async fn encode(fleet: &Fleet, request: EncodeRequest) -> Result<EncodedContext, EncodeError> {
    let EncodeRequest { source, prompting, layout, meter, cancel } = request;
    layout.validate()?;
    let _cancelled_if_dropped = cancel.on_drop();
    let ids = tokenise(fleet, source).await?;
    fleet.decoder.check_ids(&ids)?;
    fleet.decoder.config().check_context(ids.len())?;

    // Where contexts outlive the process, their names do; else the supervisor names them.
    let name = match &fleet.journal {
        Some(journal) => Some(ContextId(journal.name().await?)),
        None => None,
    };
    let draft = Manifest::new(&fleet.addresser, name.unwrap_or(ContextId(0)), layout, ids);
    let placement = fleet.supervisor.place(place_request(fleet, &draft, name, Vec::new())).await?;
    let lease = ContextLease::new(placement.context, Arc::clone(&fleet.supervisor));
    let manifest = Arc::new(Manifest { id: placement.context, ..draft });
    let index = index_of(&manifest);
    let effort = Effort { manifest: &manifest, meter: &meter, cancel: &cancel, is_heal: false };
    let placement = settle(fleet, effort, Some(placement), Vec::new()).await?;
    tracing::info!(context = %manifest.id, tokens = manifest.tokens(), blocks = manifest.blocks.len(), "context encoded");
    let index = index.await.map_err(|_| EncodeError::Stopped)?;
    if let Some(journal) = &fleet.journal {
        journal.context_created(ContextRecord::of(&manifest, prompting)).await?;
        lease.keep();
    }
    Ok(EncodedContext { manifest, prompting, whereabouts: Whereabouts::at(placement.placed), index, lease })
}

/// Stage 1: the text's tokens, off the network threads; given tokens go on as they are.
async fn tokenise(fleet: &Fleet, source: ContextSource) -> Result<Arc<[u32]>, EncodeError> {
    let prompter = Arc::clone(&fleet.prompter);
    let task = tokio::task::spawn_blocking(move || prompter.context_ids(source));
    Ok(task.await.map_err(|_| EncodeError::Stopped)??.into())
}

/// The index of a context's tokens, made beside other work.
pub(crate) fn index_of(manifest: &Manifest) -> tokio::task::JoinHandle<ContextIndex> {
    let ids = Arc::clone(&manifest.ids);
    tokio::task::spawn_blocking(move || ContextIndex::new(&ids))
}

/// Stage 3: what the supervisor must find room for. `context` is the name of a context that it may know already, and
/// `suspects` are hosts that do not answer.
pub(crate) fn place_request(
    fleet: &Fleet,
    manifest: &Manifest,
    context: Option<ContextId>,
    suspects: Vec<HostId>,
) -> PlaceRequest {
    let bytes_for = |tokens| fleet.kv_shape.bytes_for(tokens);
    let needs = manifest.blocks.iter().map(|block| Need {
        id: block.id,
        bytes: bytes_for(block.range.len()),
        tokens: block.range.len(),
        anchored: manifest.anchor.is_some() && block.range.start > 0,
    });
    // An anchor that is computed again behind every block is kept nowhere.
    let kept = manifest.anchor.filter(|_| !fleet.recompute_anchor);
    let anchor = kept.map(|id| AnchorNeed {
        id,
        bytes: bytes_for(manifest.layout.anchor_tokens(manifest.tokens())),
        first_block: manifest.blocks[0].id,
    });
    PlaceRequest { context, suspects, needs: needs.collect(), anchor }
}

/// Stage 4: has every block encoded that is not there, where it was placed.
pub(crate) async fn encode_missing(
    fleet: &Fleet,
    manifest: &Arc<Manifest>,
    placed: &[Placed],
    meter: &EncodeMeter,
    cancel: &CancelToken,
) -> Result<(), EncodeError> {
    meter.start(manifest.tokens(), manifest.blocks.len());
    match manifest.layout.attention {
        Attention::Star { .. } => encode_star(fleet, manifest, placed, meter, cancel).await,
        Attention::Exact => encode_exact(fleet, manifest, placed, meter, cancel).await,
    }
}

/// Stage 4, `star`: each host encodes its blocks in order, all hosts at once. A host that holds a block already says so
/// at once, whoever had it encoded.
async fn encode_star(
    fleet: &Fleet,
    manifest: &Manifest,
    placed: &[Placed],
    meter: &EncodeMeter,
    cancel: &CancelToken,
) -> Result<(), EncodeError> {
    let anchor = anchor_of(manifest);
    let hosts = fleet.hosts.snapshot();
    let used: std::collections::BTreeSet<HostId> = placed.iter().map(|placed| placed.host).collect();
    let of_hosts = used.into_iter().map(|host| {
        let blocks = manifest.blocks.iter().zip(placed).filter(move |(_, placed)| placed.host == host);
        let (anchor, hosts) = (&anchor, &hosts);
        async move {
            let port = reach(hosts, host)?;
            for (block, placed) in blocks {
                let kept = (placed.anchor_copy, placed.anchor_from);
                let job = star_job(fleet, manifest, block, anchor, kept, meter, cancel);
                let encoded = port.encode(job).await?;
                meter.sealed(block.range.len(), encoded == Encoded::Held);
            }
            Ok::<(), EncodeError>(())
        }
    });
    try_join_all(of_hosts).await.map(|_| ())
}

/// Stage 4, `exact`: block after block, each computed by the query host, which asks the hosts of all earlier blocks,
/// and sealed on the host it was placed on.
async fn encode_exact(
    fleet: &Fleet,
    manifest: &Arc<Manifest>,
    placed: &[Placed],
    meter: &EncodeMeter,
    cancel: &CancelToken,
) -> Result<(), EncodeError> {
    let _one_at_a_time = fleet.exact_gate.lock().await;
    let whereabouts = Arc::new(Whereabouts::at(placed.to_vec()));
    for (index, placed) in placed.iter().enumerate() {
        encode_exact_block(fleet, manifest, &whereabouts, index, placed.host, meter, cancel).await?;
    }
    Ok(())
}

/// Stage 4, `exact`: one block, computed by the query host and sealed on `host`, unless that holds it.
async fn encode_exact_block(
    fleet: &Fleet,
    manifest: &Arc<Manifest>,
    whereabouts: &Arc<Whereabouts>,
    index: usize,
    host: HostId,
    meter: &EncodeMeter,
    cancel: &CancelToken,
) -> Result<(), EncodeError> {
    let block = &manifest.blocks[index];
    let (hosts, tokens) = (fleet.hosts.snapshot(), block.range.len());
    let host = reach(&hosts, host)?;
    match host.reserve(block.id, tokens).await? {
        Reserved::Held => meter.sealed(tokens, true),
        Reserved::Room(room) => {
            let (manifest, whereabouts) = (Arc::clone(manifest), Arc::clone(whereabouts));
            let (meter, cancel) = (meter.clone(), cancel.clone());
            let job = ExactJob { manifest, whereabouts, index, room, meter: meter.clone(), cancel };
            let sealed = call!(fleet.query, QueryHostMsg::EncodeExact, job).asked()??;
            host.seal(block.id, sealed).await?;
            meter.sealed(tokens, false);
        }
    }
    Ok(())
}

/// One block of a context that can be asked, encoded on `host` as well.
pub(crate) async fn encode_again(
    fleet: &Fleet,
    context: &EncodedContext,
    index: usize,
    host: HostId,
    meter: &EncodeMeter,
    cancel: &CancelToken,
) -> Result<(), EncodeError> {
    let manifest = &context.manifest;
    if manifest.layout.attention == Attention::Exact {
        let _one_at_a_time = fleet.exact_gate.lock().await;
        let whereabouts = Arc::new(Whereabouts::at(context.whereabouts.now().placed.clone()));
        return encode_exact_block(fleet, manifest, &whereabouts, index, host, meter, cancel).await;
    }
    let hosts = fleet.hosts.snapshot();
    // No room was promised there for a copy of the anchor.
    let (anchor, block) = (anchor_of(manifest), &manifest.blocks[index]);
    let job = star_job(fleet, manifest, block, &anchor, (false, None), meter, cancel);
    reach(&hosts, host)?.encode(job).await?;
    Ok(())
}

/// The anchor that the later blocks of a context stand behind.
fn anchor_of(manifest: &Manifest) -> Option<Anchor> {
    manifest.anchor.map(|id| Anchor {
        id,
        ids: manifest.ids[..manifest.layout.anchor_tokens(manifest.tokens())].into(),
        first_block: manifest.blocks[0].id,
        is_kept: false,
        from: None,
    })
}

/// A block behind its anchor, of which the host keeps a copy if `is_kept`, copied from another host if one is named; as a host
/// is asked to encode it.
fn star_job(
    fleet: &Fleet,
    manifest: &Manifest,
    block: &ManifestBlock,
    anchor: &Option<Anchor>,
    (is_kept, from): (bool, Option<HostId>),
    meter: &EncodeMeter,
    cancel: &CancelToken,
) -> EncodeJob {
    let anchor = anchor.clone().filter(|_| block.range.start > 0);
    EncodeJob {
        id: block.id,
        ids: manifest.ids[block.range.clone()].into(),
        position: block.range.start,
        anchor: anchor.map(|anchor| Anchor { is_kept, from, ..anchor }),
        recompute_anchor: fleet.recompute_anchor,
        meter: meter.clone(),
        cancel: cancel.clone(),
    }
}

/// The way to a host.
fn reach(hosts: &Hosts, host: HostId) -> Result<&Arc<dyn HostPort>, HostError> {
    let gone =
        || HostError::Unreachable { host, cause: "it is not among the hosts that are there".to_owned() };
    hosts.get(&host).ok_or_else(gone)
}

/// The first tokens of a context, which every later block is encoded behind.
#[derive(Clone, Debug)]
pub struct Anchor {
    /// Its address as a block of its own.
    pub id: BlockId,
    /// Its tokens, from position 0.
    pub ids: Arc<[u32]>,
    /// The context's first block, which begins with the anchor.
    pub first_block: BlockId,
    /// Whether the host keeps it once it is computed: only where the supervisor counts it.
    pub is_kept: bool,
    /// The host to copy it from, where that is cheaper than to compute it.
    pub from: Option<HostId>,
}

/// Stage 5, on the host: one block on its way through the layers, chunk by chunk, so that decode steps of other
/// contexts get in between. Its tokens attend to the anchor and, causally, to their own block; nothing else.
#[derive(Debug)]
pub struct BlockEncoder {
    ids: Arc<[u32]>,
    position: usize,
    block: BudgetedBlock,
}

impl BlockEncoder {
    /// Takes room for the tokens `ids`, which stand at `position` and after.
    pub fn new(budget: &Arc<KvBudget>, ids: Arc<[u32]>, position: usize) -> Result<Self, HostError> {
        let block = budget.allocate(ids.len())?;
        Ok(Self { ids, position, block })
    }

    /// Whether every token is encoded.
    pub fn is_done(&self) -> bool {
        self.block.len() == self.ids.len()
    }

    /// Encodes the next chunk behind the first `anchor.1` tokens of `anchor.0`. Gives the number of tokens done.
    pub fn step(&mut self, engine: &mut Engine, anchor: Option<(&KvBlock, usize)>) -> usize {
        let at = self.block.len();
        let chunk = &self.ids[at..(at + engine.chunk_tokens).min(self.ids.len())];
        encode_chunk(engine, anchor, &mut self.block, chunk, self.position + at);
        chunk.len()
    }

    /// Stage 6: the block, complete.
    pub fn seal(self) -> BudgetedBlock {
        assert!(self.is_done(), "a block is sealed when its last token is encoded");
        self.block
    }
}

/// Stage 5, `exact`, on the query host: one block along the path of a query token. Its queries go to the hosts of all
/// earlier blocks; its keys and values are sealed instead of kept in a session's tail.
#[derive(Debug)]
pub struct ExactEncoder {
    ids: Arc<[u32]>,
    range: Range<usize>,
    fanout: Fanout,
    tail: Tail,
}

impl ExactEncoder {
    /// Encodes the tokens `range` of `ids` into `room`, behind the blocks that `fanout` reaches.
    pub fn new(ids: Arc<[u32]>, range: Range<usize>, fanout: Fanout, room: BudgetedBlock) -> Self {
        Self { ids, range, fanout, tail: Tail::within(room) }
    }

    /// Goes on behind the blocks that `fanout` reaches, which are the same as before, elsewhere.
    pub fn reroute(&mut self, fanout: Fanout) {
        self.fanout = fanout;
    }

    /// Whether every token is encoded.
    pub fn is_done(&self) -> bool {
        self.tail.len() == self.range.len()
    }

    /// Encodes the next chunk. Gives the number of tokens done.
    pub fn step(&mut self, engine: &mut Engine) -> Result<usize, FanoutError> {
        let start = self.range.start + self.tail.len();
        let chunk = &self.ids[start..(start + engine.chunk_tokens).min(self.range.end)];
        forward(engine, &mut self.fanout, &mut self.tail, chunk, start, 0..0)?;
        Ok(chunk.len())
    }

    /// Stage 6: the block, complete.
    pub fn seal(self) -> BudgetedBlock {
        assert!(self.is_done(), "a block is sealed when its last token is encoded");
        self.tail.into_block()
    }
}

/// Runs `ids`, at `position` and after, through every layer behind `anchor` and behind what `block` holds, and appends
/// their keys and values to `block`.
fn encode_chunk(
    engine: &mut Engine,
    anchor: Option<(&KvBlock, usize)>,
    block: &mut KvBlock,
    ids: &[u32],
    position: usize,
) {
    let decoder: &Decoder = &engine.decoder;
    // A block sees its anchor and itself, wherever either lies.
    let (backend, pass, attended) = (engine.backend.encoding(), &mut engine.pass, &mut engine.attended);
    let (at, last) = (block.len(), decoder.config().layers - 1);
    pass.begin(Phase::Encode, None);
    decoder.start(backend, pass, ids, position);
    for layer in 0..last {
        decoder.project(backend, layer, pass);
        backend.write(block, layer, at, pass.key(), pass.value());
        pass.done(Operation::KvWrite, Work::default);
        let own = KvSpan {
            keys: block.view(layer, at + ids.len()),
            visible: Visible::Causal { offset: at as i64 },
        };
        let before =
            anchor.map(|(kv, tokens)| [KvSpan { keys: kv.view(layer, tokens), visible: Visible::All }, own]);
        let spans = before.as_ref().map_or(std::slice::from_ref(&own), |spans| spans);
        attended.reset(decoder.partial_shape(ids.len()));
        backend.attend(decoder.queries(pass.query()), spans, attended);
        pass.done(Operation::Attention, || decoder.attention_work(ids.len(), spans));
        decoder.finish(backend, layer, pass, attended);
        engine.pulse.beat();
    }
    // Of the last layer only keys and values are kept: nothing reads what it would give to a next one.
    decoder.project_keys(backend, last, pass);
    backend.write(block, last, at, pass.key(), pass.value());
    pass.done(Operation::KvWrite, Work::default);
    block.set_len(at + ids.len());
}
