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
use stellate_actors::{KvFormat, Layout, Model, ModelOptions, ModelSource};
use stellate_kernels::{Cpu, CpuOptions, KvSpan, Partial, Visible};
use stellate_model::block::{Addresser, BlockId};

const BLOCK_TOKENS: usize = 48;
const CONTEXT_TOKENS: usize = 5 * BLOCK_TOKENS - 20;

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
        let AttendRequest { layer, blocks, queries } = self.pending.take().expect("a request was posted");
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
        let engine = self.world.engine.lock().unwrap();
        let decoder = &engine.decoder;
        let queries = decoder.queries(&queries);
        let held = named.iter().filter_map(|id| self.world.blocks.get(id));
        let spans: Vec<_> = held
            .map(|block| KvSpan { keys: block.view(layer, block.len()), visible: Visible::All })
            .collect();
        let mut partial = Partial::empty(decoder.partial_shape(queries.tokens));
        engine.backend.attend(queries, &spans, &mut partial);
        if fault == Fault::AnswersInAnotherShape {
            partial = Partial::empty(decoder.partial_shape(queries.tokens + 1));
        }
        Ok(AttendReply { blocks: named.into(), partial })
    }
}

fn engine() -> anyhow::Result<Engine> {
    let source = ModelSource::Random { shape: "tiny".into(), seed: 7 };
    let model = Model::load(&source, &ModelOptions::default(), &mut |_| {})?;
    let cpu = Cpu::new(&CpuOptions { name: "test".into(), threads: 1, cpus: Vec::new() })?;
    Ok(Engine::new(model.decoder, Box::new(cpu), 32))
}

/// A context whose blocks are all encoded (star, no anchor: each by itself).
fn world() -> anyhow::Result<Arc<World>> {
    let mut engine = engine()?;
    let shape = engine.decoder.kv_shape(KvFormat::F32);
    let budget = KvBudget::new(shape, shape.bytes_for(4096));
    let ids: Vec<u32> = (0..CONTEXT_TOKENS as u32).map(|i| i * 37 % 512).collect();
    let layout = Layout::star(BLOCK_TOKENS, 0);
    let addresser = Addresser::new(engine.decoder.fingerprint(), KvFormat::F32);
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
    let routes = (0..hosts).map(|host| {
        let blocks: Vec<BlockId> = world.order.iter().copied().skip(host).step_by(hosts).collect();
        let fault = match host + 1 == hosts {
            true => Arc::clone(fault),
            false => Arc::new(Mutex::new(Fault::None)),
        };
        let link = FakeLink { world: Arc::clone(world), host: HostId(host as u32), fault, pending: None };
        Route { link: Box::new(link), blocks: blocks.into() }
    });
    Fanout::new(routes.collect(), Cover::new(world.order.iter().copied()))
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
