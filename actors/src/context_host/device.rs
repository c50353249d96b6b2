//! A context host's device thread: it computes, one thing at a time. Attention for decode steps goes first, between the
//! chunks of a block that is being encoded; other blocks wait their turn. What is held is in [`super::held`].

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, select};
use ractor::RpcReplyPort;
use stellate_kernels::{KvSpan, Visible};
use stellate_model::observe::{Operation, Phase};
use stellate_runtime::clock::Clock;

use super::held::{Arrival, Ended, HeldBlocks, Way};
use super::rate::Rates;
use super::{EncodeJob, Encoded, HostError};
use crate::budget::{BudgetedBlock, KvBudget};
use crate::cancel::CancelToken;
use crate::engine::{Engine, recycle};
use crate::link::{AttendJob, AttendReply, AttendRequest, HostId, LinkError};
use crate::path::context::{Anchor, BlockEncoder};

/// The state of a context host, all of it on its own thread but for the blocks, which others look up and take out.
#[derive(Debug)]
pub(super) struct Device {
    host: HostId,
    engine: Engine,
    budget: Arc<KvBudget>,
    held: Arc<HeldBlocks>,
    rates: Arc<Rates>,
    clock: Arc<dyn Clock>,
    stop: CancelToken,
    encoding: Option<Encoding>,
    /// Empty: memory for the blocks of the next request.
    gathered: Vec<Arc<BudgetedBlock>>,
    /// Empty: memory for the spans of the next request.
    spans: Vec<KvSpan<'static>>,
}

/// A block to encode, noted as on its way.
#[derive(Debug)]
pub struct EncodeWork {
    job: EncodeJob,
    reply: RpcReplyPort<Result<Encoded, HostError>>,
    arrival: Arrival,
    /// The anchor, where the host keeps it.
    anchor: Option<Arrival>,
}

/// A block being encoded.
#[derive(Debug)]
struct Encoding {
    work: EncodeWork,
    stage: Stage,
    /// Tokens that were encoded for it, and the time that they took.
    tokens: usize,
    took: Duration,
}

#[derive(Debug)]
enum Stage {
    /// The anchor first, to be kept under its own address.
    Anchor(BlockEncoder),
    /// The anchor first, for this block alone.
    OwnAnchor(BlockEncoder),
    /// The block, behind an anchor that stays while it is needed, whoever lets go of it.
    Block(BlockEncoder, Option<Arc<BudgetedBlock>>),
}

impl EncodeWork {
    /// Notes a block as on its way.
    pub(super) fn new(
        held: &Arc<HeldBlocks>,
        job: EncodeJob,
        reply: RpcReplyPort<Result<Encoded, HostError>>,
    ) -> Self {
        let arrival = held.expect(job.id, Way::Encode);
        let kept = job.anchor.as_ref().filter(|anchor| anchor.is_kept && !job.recompute_anchor);
        let anchor = kept.map(|anchor| held.expect(anchor.id, Way::Encode));
        Self { job, reply, arrival, anchor }
    }

    /// The copies of the block, and of the anchor, that were on their way before: to be waited for.
    pub(super) fn earlier_copies(&self) -> Vec<Ended> {
        let arrivals = self.anchor.iter().chain([&self.arrival]);
        arrivals.flat_map(Arrival::earlier_copies).collect()
    }

    /// How many arrivals of the block are under way.
    pub(super) fn of_block(&self) -> usize {
        self.arrival.of_block()
    }

    /// Whether there is nothing left to do.
    pub(super) fn is_held(&self, held: &HeldBlocks) -> bool {
        held.get(&self.job.id).is_some()
    }

    /// Tells who asked.
    pub(super) fn answer(self, answer: Result<Encoded, HostError>) {
        let Self { reply, arrival, anchor, .. } = self;
        // Nothing is on its way any more when the answer comes. Who asked may have given up.
        drop((arrival, anchor));
        drop(reply.send(answer));
    }

    /// Why the block is not to be encoded any more, if so.
    fn ended(&self, host: HostId) -> Option<HostError> {
        if self.job.cancel.is_cancelled() {
            return Some(HostError::Cancelled);
        }
        self.arrival.revoked().is_cancelled().then(|| released(host))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.held.close();
    }
}

impl Device {
    pub(super) fn new(
        host: HostId,
        engine: Engine,
        held: Arc<HeldBlocks>,
        (rates, clock): (Arc<Rates>, Arc<dyn Clock>),
        stop: CancelToken,
    ) -> Self {
        let budget = Arc::clone(held.budget());
        let (gathered, spans) = (Vec::new(), Vec::new());
        Self { host, engine, budget, held, rates, clock, stop, encoding: None, gathered, spans }
    }

    /// Works until the actor is gone.
    pub(super) fn run(mut self, attends: &Receiver<AttendJob>, work: &Receiver<EncodeWork>) {
        tracing::debug!(host = %self.host, backend = self.engine.backend.name(), "context host started");
        self.engine.backend.attach();
        while !self.stop.is_cancelled() {
            while let Ok(job) = attends.try_recv() {
                self.attend(job);
            }
            if let Some(encoding) = self.encoding.take() {
                self.at_work(|device| device.advance(encoding));
            } else if let Ok(work) = work.try_recv() {
                self.begin(work);
            } else {
                select! {
                    recv(attends) -> job => if let Ok(job) = job { self.attend(job) } else { return },
                    recv(work) -> work => if let Ok(work) = work { self.begin(work) } else { return },
                }
            }
        }
    }

    /// Does a piece of work, as the pulse shows.
    fn at_work<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.engine.pulse.begin();
        let done = work(self);
        self.engine.pulse.end();
        done
    }

    /// Answers a decode step: the attention over the blocks that are asked for, or none at all.
    fn attend(&mut self, job: AttendJob) {
        self.hold_back_disk();
        let AttendJob { request, reply } = job;
        let answer = self.at_work(|device| device.attention(request));
        reply.send(answer);
    }

    fn attention(&mut self, request: AttendRequest) -> Result<AttendReply, LinkError> {
        let AttendRequest { layer, blocks, fold, queries, mut partials } = request;
        // Only encoding asks for sums that do not depend on where blocks lie.
        let phase = if fold.is_placement_free() { Phase::Encode } else { Phase::Serve };
        self.engine.pass.begin(phase, Some(layer));
        // Taken before anything is computed: what is released meanwhile stays until this is done.
        let mut gathered = std::mem::take(&mut self.gathered);
        if let Err(block) = self.held.gather(&blocks, &mut gathered) {
            gathered.clear();
            self.gathered = gathered;
            return Err(LinkError::NoSuchBlock { host: self.host, block });
        }
        let mut spans = recycle(std::mem::take(&mut self.spans));
        spans.extend(
            gathered
                .iter()
                .map(|block| KvSpan { keys: block.view(layer, block.len()), visible: Visible::All }),
        );
        self.engine.attend(&queries, &spans, fold, &mut partials);
        let (pass, decoder) = (&mut self.engine.pass, &self.engine.decoder);
        let tokens = decoder.queries(&queries).tokens;
        pass.done(Operation::Attention, || decoder.attention_work(tokens, &spans));
        self.spans = recycle(spans);
        gathered.clear();
        self.gathered = gathered;
        // The queries are let go before the reply: their asker uses the memory again.
        Ok(AttendReply { blocks, partials })
    }

    /// The disk lets the host compute.
    fn hold_back_disk(&self) {
        if let Some(disk) = self.held.disk() {
            disk.note_work();
        }
    }

    /// Starts a block, with its anchor first if that is not there.
    fn begin(&mut self, work: EncodeWork) {
        if let Some(error) = work.ended(self.host) {
            return work.answer(Err(error));
        }
        if self.held.get(&work.job.id).is_some() {
            return work.answer(Ok(Encoded::Held));
        }
        match self.first_stage(&work.job) {
            Ok(stage) => self.encoding = Some(Encoding { work, stage, tokens: 0, took: Duration::ZERO }),
            Err(error) => work.answer(Err(error)),
        }
    }

    fn first_stage(&self, job: &EncodeJob) -> Result<Stage, HostError> {
        let Some(anchor) = &job.anchor else { return self.block_stage(job, None) };
        let encode_anchor = |budget: &Arc<KvBudget>| BlockEncoder::new(budget, Arc::clone(&anchor.ids), 0);
        if !job.recompute_anchor {
            if let Some(held) = self.held_anchor(anchor) {
                return self.block_stage(job, Some(held));
            }
            if anchor.is_kept {
                return encode_anchor(&self.budget).map(Stage::Anchor);
            }
        }
        // Scratch like activations, gone with the block: not of the store's bytes.
        let scratch = KvBudget::new(self.budget.shape(), usize::MAX);
        encode_anchor(&scratch).map(Stage::OwnAnchor)
    }

    /// The anchor's keys and values: kept under its address, or the head of the context's first block.
    fn held_anchor(&self, anchor: &Anchor) -> Option<Arc<BudgetedBlock>> {
        self.held.get(&anchor.id).or_else(|| self.held.get(&anchor.first_block))
    }

    fn block_stage(&self, job: &EncodeJob, anchor: Option<Arc<BudgetedBlock>>) -> Result<Stage, HostError> {
        let encoder = BlockEncoder::new(&self.budget, Arc::clone(&job.ids), job.position)?;
        Ok(Stage::Block(encoder, anchor))
    }

    /// Encodes one chunk.
    fn advance(&mut self, encoding: Encoding) {
        let Encoding { mut work, stage, tokens, took } = encoding;
        if let Some(error) = work.ended(self.host) {
            drop(stage);
            return work.answer(Err(error));
        }
        self.hold_back_disk();
        let started = self.clock.now();
        let (step, outcome) = self.advance_stage(&mut work, stage);
        let (tokens, took) = (tokens + step, took + self.clock.now().saturating_sub(started));
        match outcome {
            Ok(Next::Stage(stage)) => self.encoding = Some(Encoding { work, stage, tokens, took }),
            Ok(Next::Sealed(block)) => {
                self.rates.encode.add(tokens as u64, took);
                let EncodeWork { reply, arrival, anchor, .. } = work;
                drop(anchor);
                let sealed = arrival.seal(block).map_err(|_| released(self.host));
                drop(reply.send(sealed.map(|()| Encoded::Fresh)));
            }
            Err(error) => work.answer(Err(error)),
        }
    }

    /// Runs one more chunk. Gives its tokens, and what follows.
    fn advance_stage(&mut self, work: &mut EncodeWork, stage: Stage) -> (usize, Result<Next, HostError>) {
        match stage {
            Stage::Anchor(mut encoder) => {
                let tokens = encoder.step(&mut self.engine, None);
                if !encoder.is_done() {
                    return (tokens, Ok(Next::Stage(Stage::Anchor(encoder))));
                }
                (tokens, self.keep_anchor(work, encoder.seal()))
            }
            Stage::OwnAnchor(mut encoder) => {
                let tokens = encoder.step(&mut self.engine, None);
                if !encoder.is_done() {
                    return (tokens, Ok(Next::Stage(Stage::OwnAnchor(encoder))));
                }
                let block = self.block_stage(&work.job, Some(Arc::new(encoder.seal())));
                (tokens, block.map(Next::Stage))
            }
            Stage::Block(mut encoder, own) => {
                let ids = work.job.anchor.as_ref().map(|anchor| anchor.ids.len());
                let anchor = own.as_ref().zip(ids).map(|(kv, tokens)| (&***kv, tokens));
                let tokens = encoder.step(&mut self.engine, anchor);
                work.job.meter.encoded(tokens);
                let next = match encoder.is_done() {
                    false => Next::Stage(Stage::Block(encoder, own)),
                    true => Next::Sealed(encoder.seal()),
                };
                (tokens, Ok(next))
            }
        }
    }

    /// Holds an anchor under its own address, and goes on to the block behind it.
    fn keep_anchor(&mut self, work: &mut EncodeWork, block: BudgetedBlock) -> Result<Next, HostError> {
        let arrival = work.anchor.take().expect("a kept anchor was noted as on its way");
        arrival.seal(block).map_err(|_| released(self.host))?;
        let anchor = work.job.anchor.as_ref().expect("an anchor is encoded for a block behind one");
        let kept = self.held.get(&anchor.id).ok_or_else(|| released(self.host))?;
        self.block_stage(&work.job, Some(kept)).map(Next::Stage)
    }
}

/// A block that was released while it was encoded is not there; who still wants it asks again.
fn released(host: HostId) -> HostError {
    HostError::Unreachable { host, cause: "it let go of the block meanwhile".to_owned() }
}

/// What follows a chunk.
#[derive(Debug)]
enum Next {
    Stage(Stage),
    Sealed(BudgetedBlock),
}
