//! A context host's device thread: it owns the blocks and computes, one thing at a time. Attention for decode steps goes
//! first, between the chunks of a block that is being encoded; other work waits its turn.

use std::collections::HashMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, select};
use ractor::RpcReplyPort;
use stellate_kernels::{KvBlock, KvSpan, Visible};
use stellate_model::block::BlockId;
use stellate_model::observe::{Operation, Phase};

use super::{ContextHostMsg, EncodeJob, Encoded, HostError, Reserved};
use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::engine::{Engine, recycle};
use crate::link::{AttendJob, AttendReply, AttendRequest, HostId, LinkError};
use crate::path::context::{Anchor, BlockEncoder};

/// The state of a context host, all of it on its own thread.
#[derive(Debug)]
pub(super) struct Device {
    host: HostId,
    engine: Engine,
    budget: Arc<KvBudget>,
    stop: CancelToken,
    /// Sealed, and only read from then on; some of them elsewhere at the same time.
    blocks: HashMap<BlockId, Arc<BudgetedBlock>>,
    encoding: Option<Encoding>,
    /// Empty: memory for the spans of the next request.
    spans: Vec<KvSpan<'static>>,
}

/// A block being encoded.
#[derive(Debug)]
struct Encoding {
    job: EncodeJob,
    reply: RpcReplyPort<Result<Encoded, HostError>>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The anchor first, to be kept under its own address.
    Anchor(BlockEncoder),
    /// The anchor first, for this block alone.
    OwnAnchor(BlockEncoder),
    /// The block, behind the anchor that the store holds or behind its own.
    Block(BlockEncoder, Option<BudgetedBlock>),
}

impl Device {
    pub(super) fn new(host: HostId, engine: Engine, budget: Arc<KvBudget>, stop: CancelToken) -> Self {
        Self { host, engine, budget, stop, blocks: HashMap::new(), encoding: None, spans: Vec::new() }
    }

    /// Works until the actor is gone.
    pub(super) fn run(mut self, attends: &Receiver<AttendJob>, work: &Receiver<ContextHostMsg>) {
        tracing::debug!(host = %self.host, backend = self.engine.backend.name(), "context host started");
        self.engine.backend.attach();
        while !self.stop.is_cancelled() {
            while let Ok(job) = attends.try_recv() {
                self.attend(job);
            }
            if let Some(encoding) = self.encoding.take() {
                self.advance(encoding);
            } else if let Ok(message) = work.try_recv() {
                self.handle(message);
            } else {
                select! {
                    recv(attends) -> job => if let Ok(job) = job { self.attend(job) } else { return },
                    recv(work) -> message => if let Ok(message) = message { self.handle(message) } else { return },
                }
            }
        }
    }

    fn handle(&mut self, message: ContextHostMsg) {
        match message {
            ContextHostMsg::Encode(job, reply) => self.begin(job, reply),
            ContextHostMsg::Reserve(id, tokens, reply) => {
                let reserved = match self.blocks.contains_key(&id) {
                    true => Ok(Reserved::Held),
                    false => self.budget.allocate(tokens).map(Reserved::Room).map_err(HostError::Full),
                };
                drop(reply.send(reserved));
            }
            ContextHostMsg::Seal(id, block, reply) => {
                self.blocks.entry(id).or_insert_with(|| Arc::new(block));
                drop(reply.send(Ok(())));
            }
            ContextHostMsg::Share(id, reply) => drop(reply.send(Ok(self.blocks.get(&id).cloned()))),
            ContextHostMsg::Release(ids) => {
                for id in ids {
                    self.blocks.remove(&id);
                }
            }
            ContextHostMsg::Retry => {}
        }
    }

    /// Answers a decode step: the attention over the blocks that are asked for, or none at all.
    fn attend(&mut self, job: AttendJob) {
        let AttendJob { request, reply } = job;
        reply.send(self.attention(request));
    }

    fn attention(&mut self, request: AttendRequest) -> Result<AttendReply, LinkError> {
        let AttendRequest { layer, blocks, fold, queries, mut partials } = request;
        self.engine.pass.begin(Phase::Serve, Some(layer));
        let mut spans = recycle(std::mem::take(&mut self.spans));
        for id in blocks.iter() {
            let block = self.blocks.get(id).ok_or(LinkError::NoSuchBlock { host: self.host, block: *id })?;
            spans.push(KvSpan { keys: block.view(layer, block.len()), visible: Visible::All });
        }
        self.engine.attend(&queries, &spans, fold, &mut partials);
        let (pass, decoder) = (&mut self.engine.pass, &self.engine.decoder);
        let tokens = decoder.queries(&queries).tokens;
        pass.done(Operation::Attention, || decoder.attention_work(tokens, &spans));
        self.spans = recycle(spans);
        // The queries are let go before the reply: their asker uses the memory again.
        Ok(AttendReply { blocks, partials })
    }

    /// Starts a block, with its anchor first if that is not there.
    fn begin(&mut self, job: EncodeJob, reply: RpcReplyPort<Result<Encoded, HostError>>) {
        if job.cancel.is_cancelled() {
            return drop(reply.send(Err(HostError::Cancelled)));
        }
        if self.blocks.contains_key(&job.id) {
            return drop(reply.send(Ok(Encoded::Held)));
        }
        match self.first_stage(&job) {
            Ok(stage) => self.encoding = Some(Encoding { job, reply, stage }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn first_stage(&self, job: &EncodeJob) -> Result<Stage, HostError> {
        let Some(anchor) = &job.anchor else { return self.block_stage(job, None) };
        let encode_anchor = |budget: &Arc<KvBudget>| BlockEncoder::new(budget, Arc::clone(&anchor.ids), 0);
        if !job.recompute_anchor {
            if held_anchor(&self.blocks, anchor).is_some() {
                return self.block_stage(job, None);
            }
            if anchor.is_kept {
                return encode_anchor(&self.budget).map(Stage::Anchor);
            }
        }
        // Scratch like activations, gone with the block: not of the store's bytes.
        let scratch = KvBudget::new(self.budget.shape(), usize::MAX);
        encode_anchor(&scratch).map(Stage::OwnAnchor)
    }

    fn block_stage(&self, job: &EncodeJob, own_anchor: Option<BudgetedBlock>) -> Result<Stage, HostError> {
        let encoder = BlockEncoder::new(&self.budget, Arc::clone(&job.ids), job.position)?;
        Ok(Stage::Block(encoder, own_anchor))
    }

    /// Encodes one chunk.
    fn advance(&mut self, encoding: Encoding) {
        let Encoding { job, reply, stage } = encoding;
        if job.cancel.is_cancelled() {
            return drop(reply.send(Err(HostError::Cancelled)));
        }
        match self.advance_stage(&job, stage) {
            Ok(Some(stage)) => self.encoding = Some(Encoding { job, reply, stage }),
            Ok(None) => drop(reply.send(Ok(Encoded::Fresh))),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Gives the stage that follows one more chunk, or `None` once the block is sealed.
    fn advance_stage(&mut self, job: &EncodeJob, stage: Stage) -> Result<Option<Stage>, HostError> {
        match stage {
            Stage::Anchor(mut encoder) => {
                encoder.step(&mut self.engine, None);
                if !encoder.is_done() {
                    return Ok(Some(Stage::Anchor(encoder)));
                }
                let anchor = job.anchor.as_ref().expect("an anchor is encoded for a block behind one");
                self.blocks.insert(anchor.id, Arc::new(encoder.seal()));
                self.block_stage(job, None).map(Some)
            }
            Stage::OwnAnchor(mut encoder) => {
                encoder.step(&mut self.engine, None);
                if !encoder.is_done() {
                    return Ok(Some(Stage::OwnAnchor(encoder)));
                }
                self.block_stage(job, Some(encoder.seal())).map(Some)
            }
            Stage::Block(mut encoder, own_anchor) => {
                let anchor = job.anchor.as_ref().map(|anchor| {
                    let kv = own_anchor.as_deref().or_else(|| held_anchor(&self.blocks, anchor));
                    (kv.expect("the anchor is ensured before its block"), anchor.ids.len())
                });
                let tokens = encoder.step(&mut self.engine, anchor);
                job.meter.encoded(tokens);
                if !encoder.is_done() {
                    return Ok(Some(Stage::Block(encoder, own_anchor)));
                }
                self.blocks.insert(job.id, Arc::new(encoder.seal()));
                Ok(None)
            }
        }
    }
}

/// The anchor's keys and values: kept under its address, or the head of the context's first block.
fn held_anchor<'a>(blocks: &'a HashMap<BlockId, Arc<BudgetedBlock>>, anchor: &Anchor) -> Option<&'a KvBlock> {
    blocks.get(&anchor.id).or_else(|| blocks.get(&anchor.first_block)).map(|block| &***block)
}
