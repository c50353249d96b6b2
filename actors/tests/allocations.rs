//! That a layer allocates nothing, neither in phase 1 nor in phase 2: as many allocations whatever the number of layers.
//! Hosts answer on the asker's thread, whose allocations are counted; the link is the one between real hosts. Each engine
//! has a helper thread beside it, as real ones do.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, bounded};
use stellate_actors::budget::{BudgetedBlock, KvBudget};
use stellate_actors::cover::Cover;
use stellate_actors::engine::{Engine, recycle};
use stellate_actors::fanout::{Fanout, Route};
use stellate_actors::link::{AttendJob, AttendReply, AttendRequest, HostId, HostLink, LinkError, LocalLink};
use stellate_actors::path::context::BlockEncoder;
use stellate_actors::path::query::forward;
use stellate_actors::tail::Tail;
use stellate_actors::{KvFormat, Layout, WeightChoice};
use stellate_kernels::{Cpu, CpuOptions, KvSpan, Visible};
use stellate_model::block::{Addresser, BlockId};
use stellate_model::decoder::Decoder;
use stellate_model::families::Family;
use stellate_model::random::{RandomModel, random_weights};

const BLOCK_TOKENS: usize = 96;
const CHUNK_TOKENS: usize = 32;
const CONTEXT_TOKENS: usize = 4 * BLOCK_TOKENS;

/// What is different between models on the way through a layer.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Llama,
    /// Norms of queries and keys, and heads that are together wider than the hidden state.
    Qwen3,
}

const SHAPES: [Shape; 2] = [Shape::Llama, Shape::Qwen3];

fn engine(shape: Shape, layers: usize) -> Engine {
    let mut config = RandomModel::named("tiny").unwrap();
    config.layers = layers;
    if let Shape::Qwen3 = shape {
        (config.family, config.qk_norm, config.head_dim) = (Family::Qwen3, true, 64);
    }
    let loaded = random_weights(&config, WeightChoice::Bf16, 1).unwrap();
    let options = CpuOptions { name: "test".into(), threads: 2, cpus: Vec::new() };
    Engine::new(Arc::new(Decoder::new(config, loaded)), Box::new(Cpu::new(&options).unwrap()), CHUNK_TOKENS)
}

/// A host that computes when its reply is waited for, behind the link of a real one.
#[derive(Debug)]
struct Inline {
    link: LocalLink,
    jobs: Receiver<AttendJob>,
    host: Arc<Mutex<Host>>,
}

#[derive(Debug)]
struct Host {
    engine: Engine,
    blocks: Vec<(BlockId, BudgetedBlock)>,
    spans: Vec<KvSpan<'static>>,
}

impl Host {
    fn answer(&mut self, request: AttendRequest) -> AttendReply {
        let AttendRequest { layer, blocks, fold, queries, mut partials } = request;
        let mut spans = recycle(std::mem::take(&mut self.spans));
        for (_, block) in self.blocks.iter().filter(|(id, _)| blocks.contains(id)) {
            spans.push(KvSpan { keys: block.view(layer, block.len()), visible: Visible::All });
        }
        self.engine.attend(&queries, &spans, fold, &mut partials);
        self.spans = recycle(spans);
        AttendReply { blocks, partials }
    }
}

impl HostLink for Inline {
    fn host(&self) -> HostId {
        self.link.host()
    }

    fn post(&mut self, request: AttendRequest) -> Result<(), LinkError> {
        self.link.post(request)
    }

    fn wait(&mut self) -> Result<AttendReply, LinkError> {
        let AttendJob { request, reply } = self.jobs.recv().unwrap();
        reply.send(Ok(self.host.lock().unwrap().answer(request)));
        self.link.wait()
    }
}

/// The context's blocks, two on each of two hosts; and the allocations of each chunk of the last block.
fn encode(shape: Shape, layers: usize, budget: &Arc<KvBudget>) -> (Vec<Route>, Vec<BlockId>, Vec<u64>) {
    let mut encoding = engine(shape, layers);
    let ids: Vec<u32> = (0..CONTEXT_TOKENS as u32).map(|i| i * 37 % 512).collect();
    let layout = Layout::star(BLOCK_TOKENS, 0);
    let order = Addresser::new(encoding.decoder.fingerprint(), KvFormat::Bf16).address_all(&layout, &ids);
    let mut counts = Vec::new();
    let mut sealed = Vec::new();
    for (&id, range) in order.iter().zip(layout.cut(ids.len())) {
        let mut encoder = BlockEncoder::new(budget, ids[range.clone()].into(), range.start).unwrap();
        counts.clear();
        while !encoder.is_done() {
            counts.push(count(|| assert!(encoder.step(&mut encoding, None) > 0)));
        }
        sealed.push((id, encoder.seal()));
    }
    let mut routes = Vec::new();
    for number in 0..2 {
        let blocks: Vec<_> = sealed.drain(..2).collect();
        let named = blocks.iter().map(|(id, _)| *id).collect();
        let (sender, jobs) = bounded(4);
        let host = Arc::new(Mutex::new(Host { engine: engine(shape, layers), blocks, spans: Vec::new() }));
        let link = Inline { link: LocalLink::new(HostId(number), sender), jobs, host };
        routes.push(Route { link: Box::new(link), blocks: named });
    }
    (routes, order, counts)
}

fn budget(engine: &Engine) -> Arc<KvBudget> {
    let shape = engine.decoder.kv_shape(KvFormat::Bf16);
    KvBudget::new(shape, shape.bytes_for(4096))
}

fn count(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

/// Allocations of a steady step of `tokens` tokens.
fn step_allocations(shape: Shape, layers: usize, tokens: usize, in_block_order: bool) -> u64 {
    let mut engine = engine(shape, layers);
    let budget = budget(&engine);
    let (routes, order, _) = encode(shape, layers, &budget);
    let cover = Cover::new(order);
    let mut fanout = match in_block_order {
        true => Fanout::in_block_order(routes, cover),
        false => Fanout::new(routes, cover),
    };
    let mut tail = Tail::growing(budget);
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let mut counted = 0;
    for _ in 0..3 {
        tail.reserve(tokens).unwrap();
        let position = CONTEXT_TOKENS + tail.len();
        counted = count(|| {
            let logits = forward(&mut engine, &mut fanout, &mut tail, &ids, position, tokens - 1..tokens);
            assert!(logits.is_ok_and(|logits| logits.iter().all(|logit| logit.is_finite())));
        });
    }
    counted
}

#[test]
fn a_chunk_of_a_context_allocates_as_often_in_two_layers_as_in_seven() {
    for shape in SHAPES {
        let counts = [2, 7].map(|layers| encode(shape, layers, &budget(&engine(shape, layers))).2);
        assert_eq!(counts[0], counts[1], "{shape:?}");
        assert_eq!(counts[0].len(), BLOCK_TOKENS / CHUNK_TOKENS);
    }
}

#[test]
fn a_step_of_an_answer_allocates_as_often_in_two_layers_as_in_seven() {
    for shape in SHAPES {
        for (tokens, in_block_order) in [(1, false), (1, true), (5, false), (5, true)] {
            let counts = [2, 7].map(|layers| step_allocations(shape, layers, tokens, in_block_order));
            assert_eq!(counts[0], counts[1], "{shape:?}, {tokens} tokens, in block order: {in_block_order}");
        }
    }
}
