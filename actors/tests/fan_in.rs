//! What a query host does with hosts that misbehave: a step over a block that is missing, counted twice, foreign or late
//! gives a typed error, leaves the session as it was, and can be asked again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use stellate_actors::budget::{BudgetedBlock, KvBudget};
use stellate_actors::cover::{Cover, CoverError};
use stellate_actors::engine::Engine;
use stellate_actors::fanout::{Fanout, FanoutError, Route};
use stellate_actors::link::{AttendReply, AttendRequest, HostId, HostLink, LinkError};
use stellate_actors::path::context::BlockEncoder;
use stellate_actors::path::query::forward;
use stellate_actors::tail::Tail;
use stellate_actors::{KvFormat, Layout, Model, ModelOptions, ModelSource, WeightChoice};
use stellate_kernels::{Cpu, CpuOptions, KvSpan, Partial, Visible};
use stellate_model::block::{Addresser, BlockId};

const BLOCK_TOKENS: usize = 48;
const BLOCKS: usize = 5;
const CONTEXT_TOKENS: usize = BLOCKS * BLOCK_TOKENS - 20;

/// How a host misbehaves at layer 1.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    DropsABlock,
    CountsABlockTwice,
    NamesAForeignBlock,
    AnswersInAnotherShape,
    Dies,
    LosesABlock,
}

struct World {
    engine: Mutex<Engine>,
    blocks: HashMap<BlockId, BudgetedBlock>,
    order: Vec<BlockId>,
    foreign: BlockId,
    budget: Arc<KvBudget>,
}

/// A host that shares the world's memory, and fails as it is told.
struct FakeLink {
    world: Arc<World>,
    host: HostId,
    fault: Arc<Mutex<Fault>>,
    pending: Option<AttendRequest>,
}

impl std::fmt::Debug for FakeLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FakeLink({})", self.host)
    }
}

impl HostLink for FakeLink {
    fn host(&self) -> HostId {
        self.host
    }

    fn post(&mut self, request: AttendRequest) -> Result<(), LinkError> {
        self.pending = Some(request);
        Ok(())
    }

    fn wait(&mut self) -> Result<AttendReply, LinkError> {
        let AttendRequest { layer, blocks, fold, queries, mut partials } =
            self.pending.take().expect("a request was posted");
        let fault = if layer == 1 { *self.fault.lock().unwrap() } else { Fault::None };
        let mut named = blocks.to_vec();
        match fault {
            Fault::DropsABlock => drop(named.pop()),
            Fault::CountsABlockTwice => named.push(named[0]),
            Fault::NamesAForeignBlock => named.push(self.world.foreign),
            Fault::Dies => return Err(LinkError::HostGone { host: self.host }),
            Fault::LosesABlock => {
                return Err(LinkError::NoSuchBlock { host: self.host, block: named[0] });
            }
            Fault::None | Fault::AnswersInAnotherShape => {}
        }
        let mut engine = self.world.engine.lock().unwrap();
        let held = named.iter().filter_map(|id| self.world.blocks.get(id));
        let spans: Vec<_> = held
            .map(|block| KvSpan { keys: block.view(layer, block.len()), visible: Visible::All })
            .collect();
        engine.attend(&queries, &spans, fold, &mut partials);
        if fault == Fault::AnswersInAnotherShape {
            partials[0] = Partial::empty(engine.decoder.partial_shape(partials[0].shape().tokens + 1));
        }
        Ok(AttendReply { blocks: named.into(), partials })
    }
}

fn engine() -> anyhow::Result<Engine> {
    engine_of(WeightChoice::default())
}

fn engine_of(weights: WeightChoice) -> anyhow::Result<Engine> {
    let source = ModelSource::Random { shape: "tiny".into(), seed: 7 };
    let options = ModelOptions { weights, ..ModelOptions::default() };
    let model = Model::load(&source, &options, &mut |_| {})?;
    let cpu = Cpu::new(&CpuOptions { name: "test".into(), threads: 1, cpus: Vec::new() })?;
    Ok(Engine::new(model.decoder, Box::new(cpu), 32))
}

/// A context whose blocks are all encoded (star, no anchor: each by itself).
fn world() -> anyhow::Result<Arc<World>> {
    world_of(engine()?, KvFormat::F32, CONTEXT_TOKENS)
}

fn world_of(mut engine: Engine, format: KvFormat, tokens: usize) -> anyhow::Result<Arc<World>> {
    let shape = engine.decoder.kv_shape(format);
    let budget = KvBudget::new(shape, shape.bytes_for(4096));
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 37 % 512).collect();
    let layout = Layout::star(BLOCK_TOKENS, 0);
    let addresser = Addresser::new(engine.decoder.fingerprint(), format);
    let order = addresser.address_all(&layout, &ids);
    let foreign = addresser.address_all(&layout, &ids[1..])[0];
    let mut blocks = HashMap::new();
    for (&id, range) in order.iter().zip(layout.cut(ids.len())) {
        let mut encoder = BlockEncoder::new(&budget, ids[range.clone()].into(), range.start)?;
        while !encoder.is_done() {
            encoder.step(&mut engine, None);
        }
        blocks.insert(id, encoder.seal());
    }
    Ok(Arc::new(World { engine: Mutex::new(engine), blocks, order, foreign, budget }))
}

/// Routes to the world's blocks on `hosts` hosts, the last of which fails by `fault`.
fn fanout(world: &Arc<World>, hosts: usize, fault: &Arc<Mutex<Fault>>) -> Fanout {
    Fanout::new(routes(world, hosts, fault), Cover::new(world.order.iter().copied()))
}

fn routes(world: &Arc<World>, hosts: usize, fault: &Arc<Mutex<Fault>>) -> Vec<Route> {
    let routes = (0..hosts).map(|host| {
        let blocks: Vec<BlockId> = world.order.iter().copied().skip(host).step_by(hosts).collect();
        let fault = match host + 1 == hosts {
            true => Arc::clone(fault),
            false => Arc::new(Mutex::new(Fault::None)),
        };
        let link = FakeLink { world: Arc::clone(world), host: HostId(host as u64), fault, pending: None };
        Route { link: Box::new(link), blocks: blocks.into() }
    });
    routes.collect()
}

fn step(
    engine: &mut Engine,
    fanout: &mut Fanout,
    tail: &mut Tail,
    ids: &[u32],
) -> Result<Vec<f32>, FanoutError> {
    tail.reserve(ids.len()).unwrap();
    forward(engine, fanout, tail, ids, CONTEXT_TOKENS + tail.len(), 0..ids.len())
}

#[test]
fn a_step_over_a_bad_reply_fails_by_name_and_succeeds_when_it_is_asked_again() -> anyhow::Result<()> {
    let world = world()?;
    let mut engine = engine()?;
    let last = world.order[4];
    for (fault, expected) in [
        (Fault::DropsABlock, FanoutError::Cover(CoverError::Missing { block: last, index: 4 })),
        (Fault::CountsABlockTwice, FanoutError::Cover(CoverError::Twice { block: last, index: 4 })),
        (Fault::NamesAForeignBlock, FanoutError::Cover(CoverError::Foreign { block: world.foreign })),
        (Fault::AnswersInAnotherShape, FanoutError::Shape),
        (Fault::Dies, FanoutError::Link(LinkError::HostGone { host: HostId(4) })),
        (Fault::LosesABlock, FanoutError::Link(LinkError::NoSuchBlock { host: HostId(4), block: last })),
    ] {
        let switch = Arc::new(Mutex::new(Fault::None));
        let mut fanout = fanout(&world, 5, &switch);
        let mut tail = Tail::growing(Arc::clone(&world.budget));
        step(&mut engine, &mut fanout, &mut tail, &[1, 2, 3])?;
        *switch.lock().unwrap() = fault;
        assert_eq!(step(&mut engine, &mut fanout, &mut tail, &[4, 5]), Err(expected), "{fault:?}");
        assert_eq!(tail.len(), 3, "{fault:?}");
        *switch.lock().unwrap() = Fault::None;
        let retried = step(&mut engine, &mut fanout, &mut tail, &[4, 5])?;

        let mut healthy = self::fanout(&world, 5, &switch);
        let mut tail = Tail::growing(Arc::clone(&world.budget));
        step(&mut engine, &mut healthy, &mut tail, &[1, 2, 3])?;
        assert_eq!(step(&mut engine, &mut healthy, &mut tail, &[4, 5])?, retried, "{fault:?}");
    }
    Ok(())
}

#[test]
fn logits_do_not_depend_on_how_many_hosts_hold_the_blocks() -> anyhow::Result<()> {
    let world = world()?;
    let mut engine = engine()?;
    let healthy = Arc::new(Mutex::new(Fault::None));
    let mut logits = Vec::new();
    for hosts in [1, 2, 3, 5] {
        let mut tail = Tail::growing(Arc::clone(&world.budget));
        logits.push(step(&mut engine, &mut fanout(&world, hosts, &healthy), &mut tail, &[9, 8, 7, 6])?);
    }
    for other in &logits[1..] {
        let off = logits[0].iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "logits differ by {off}");
    }
    Ok(())
}

#[test]
fn logits_asked_for_some_tokens_are_those_of_these_tokens_among_all() -> anyhow::Result<()> {
    let world = world()?;
    let mut engine = engine()?;
    let healthy = Arc::new(Mutex::new(Fault::None));
    let ids = [9, 8, 7, 6, 5];
    let mut logits = |rows| {
        let mut tail = Tail::growing(Arc::clone(&world.budget));
        tail.reserve(ids.len()).unwrap();
        forward(&mut engine, &mut fanout(&world, 2, &healthy), &mut tail, &ids, CONTEXT_TOKENS, rows)
    };
    let all = logits(0..ids.len())?;
    let vocab_size = all.len() / ids.len();
    for rows in [4..5, 2..5, 1..3] {
        let wanted = &all[rows.start * vocab_size..rows.end * vocab_size];
        assert!(logits(rows.clone())? == wanted, "{rows:?}");
    }
    assert!(logits(0..0)?.is_empty());
    Ok(())
}

#[test]
fn a_fan_in_in_block_order_gives_the_same_bits_on_any_number_of_hosts() -> anyhow::Result<()> {
    // More blocks than go in one round, in formats that the instructions for encoding may round activations to.
    let (weights, tokens) = (WeightChoice::Bf16, 19 * BLOCK_TOKENS + 3);
    let world = world_of(engine_of(weights)?, KvFormat::Bf16, tokens)?;
    let mut engine = engine_of(weights)?;
    let healthy = Arc::new(Mutex::new(Fault::None));
    let mut logits = Vec::new();
    for hosts in [1, 2, 3, 20] {
        let cover = Cover::new(world.order.iter().copied());
        let mut fanout = Fanout::in_block_order(routes(&world, hosts, &healthy), cover);
        let mut tail = Tail::growing(Arc::clone(&world.budget));
        tail.reserve(4)?;
        logits.push(forward(&mut engine, &mut fanout, &mut tail, &[9, 8, 7, 6], tokens, 0..4)?);
    }
    assert!(logits.iter().all(|other| other == &logits[0]), "the same bits");
    Ok(())
}

#[test]
fn a_fan_in_in_block_order_refuses_what_the_other_refuses() -> anyhow::Result<()> {
    let world = world()?;
    let mut engine = engine()?;
    for (fault, expected) in [
        (Fault::DropsABlock, FanoutError::Cover(CoverError::Missing { block: world.order[4], index: 4 })),
        (Fault::AnswersInAnotherShape, FanoutError::Shape),
        (Fault::Dies, FanoutError::Link(LinkError::HostGone { host: HostId(1) })),
    ] {
        let switch = Arc::new(Mutex::new(fault));
        let order = world.order.iter().copied();
        // The host that fails has the last block.
        let mut routes = routes(&world, 2, &switch);
        let last = Route { blocks: order.clone().skip(2).step_by(2).collect(), ..routes.pop().unwrap() };
        let first = Route {
            blocks: [world.order[0], world.order[1], world.order[3]].into(),
            ..routes.pop().unwrap()
        };
        let mut fanout = Fanout::in_block_order(vec![first, last], Cover::new(order));
        let mut tail = Tail::growing(Arc::clone(&world.budget));
        assert_eq!(step(&mut engine, &mut fanout, &mut tail, &[4, 5]), Err(expected), "{fault:?}");
        assert!(tail.is_empty(), "{fault:?}");
    }
    Ok(())
}
