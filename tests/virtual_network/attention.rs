//! Attention over blocks of another node: the host is a real actor with a real device thread, and so is what asks. The network's
//! time goes no faster than that of the machine, which the devices need.

#![allow(clippy::print_stdout, reason = "seeds are told")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ractor::call;
use stellate_actors::budget::KvBudget;
use stellate_actors::cancel::CancelToken;
use stellate_actors::context_host::{self, ContextHostArgs, ContextHostHandle, ContextHostMsg, EncodeJob};
use stellate_actors::engine::Engine;
use stellate_actors::link::{AttendRequest, Fold, HostId, HostLink, LinkError};
use stellate_actors::progress::EncodeMeter;
use stellate_actors::remote::{
    AttendShape, BlockServer, DecodeChannel, DecodeOptions, Landing, LocalHosts, NodeDialer, fetch_block,
    serve_decode,
};
use stellate_actors::{KvFormat, Layout, WeightChoice};
use stellate_kernels::{Cpu, CpuOptions};
use stellate_model::block::{Addresser, BlockId};
use stellate_model::decoder::Decoder;
use stellate_model::random::{RandomModel, random_weights};
use stellate_runtime::clock::SystemClock;
use stellate_runtime::transport::{ConnectionClass, Endpoint, NetworkHandle, Target};
use tokio::runtime::Runtime;

use crate::network::{Cluster, Dice, Fault, TICK, name, network, seeds};

const BLOCK_TOKENS: usize = 100;
const TOKENS: usize = 270;
const HOST: HostId = HostId(0);
const FORMAT: KvFormat = KvFormat::Bf16;
/// Faults happen until then.
const BAD_UNTIL: Duration = Duration::from_secs(5);
/// Longest that is asked on after the last fault; only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host that holds all blocks of a small random model's context.
struct Held {
    decoder: Arc<Decoder>,
    host: ContextHostHandle,
    blocks: Arc<[BlockId]>,
}

impl Held {
    async fn new() -> Self {
        let config = RandomModel::named("tiny").unwrap();
        let loaded = random_weights(&config, WeightChoice::F32, 5).unwrap();
        let decoder = Arc::new(Decoder::new(config, loaded));
        let cpu = Cpu::new(&CpuOptions { name: "held".to_owned(), threads: 1, cpus: Vec::new() }).unwrap();
        let kv_shape = decoder.kv_shape(FORMAT);
        let args = ContextHostArgs {
            host: HOST,
            engine: Engine::new(Arc::clone(&decoder), Box::new(cpu), 32),
            kv_shape,
            capacity_bytes: kv_shape.bytes_for(8 * BLOCK_TOKENS),
            queue_jobs: 16,
            stuck_after: PATIENCE,
            clock: Arc::new(SystemClock::new()),
            disk: None,
        };
        let host = context_host::start(args).await.unwrap();
        let ids: Vec<u32> = (0..TOKENS as u32).map(|at| at * 37 % 512).collect();
        let layout = Layout::star(BLOCK_TOKENS, 0);
        let blocks = Addresser::new(decoder.fingerprint(), FORMAT).address_all(&layout, &ids);
        for (id, range) in blocks.iter().zip(layout.cut(ids.len())) {
            let job = EncodeJob {
                id: *id,
                position: range.start,
                ids: ids[range].into(),
                anchor: None,
                recompute_anchor: false,
                meter: EncodeMeter::default(),
                cancel: CancelToken::default(),
            };
            call!(host.actor, ContextHostMsg::Encode, job).unwrap().unwrap();
        }
        Self { decoder, host, blocks: blocks.into() }
    }

    fn shape(&self) -> AttendShape {
        AttendShape::of(&self.decoder)
    }

    /// Anything that may be asked.
    fn request(&self, dice: &mut Dice) -> AttendRequest {
        let shape = self.shape();
        let (tokens, number) = (1 + dice.below(30), dice.below(1000));
        let count = tokens * shape.heads * shape.head_dim;
        let from = dice.below(self.blocks.len());
        AttendRequest {
            layer: dice.below(shape.layers),
            blocks: self.blocks[from..].into(),
            fold: [Fold::ByHost, Fold::ByBlock, Fold::Apart][dice.below(3)],
            queries: Arc::new(
                (0..count).map(|at| ((at * 7919 + number * 31) % 1009) as f32 / 500.0 - 1.0).collect(),
            ),
            partials: Vec::new(),
        }
    }
}

/// The node that asks: what it asks over, once its software runs.
struct Asker {
    network: NetworkHandle,
    endpoint: Arc<Endpoint>,
    channel: DecodeChannel,
    asked: Target,
}

fn asks(sim: &mut turmoil::Sim<'_>, cluster: &Arc<Cluster>, shape: AttendShape, told: Sender<Asker>) {
    let cluster = Arc::clone(cluster);
    sim.host(name(0), move || {
        let (cluster, told) = (Arc::clone(&cluster), told.clone());
        async move {
            let (endpoint, _accepted) = cluster.endpoint(0);
            let (endpoint, network) = (Arc::new(endpoint), NetworkHandle::current());
            let asked = cluster.target(1);
            let dialer = NodeDialer::new(
                Arc::clone(&endpoint),
                asked.clone(),
                ConnectionClass::Decode,
                Arc::new(|_| {}),
            );
            let options =
                DecodeOptions { reply_timeout: Duration::from_secs(1), send_timeout: Duration::from_secs(1) };
            let channel = DecodeChannel::new(&network, HOST, shape, Arc::new(dialer), options);
            told.send(Asker { network, endpoint, channel, asked }).unwrap();
            std::future::pending::<()>().await;
            Ok(())
        }
    });
}

/// The node that is asked. Its host lives on when it crashes: what is tried here is the way to it.
fn is_asked(sim: &mut turmoil::Sim<'_>, cluster: &Arc<Cluster>, held: &Held) {
    let hosts = LocalHosts::new([held.host.clone()], &held.decoder, held.decoder.kv_shape(FORMAT));
    let cluster = Arc::clone(cluster);
    sim.host(name(1), move || {
        let (cluster, hosts) = (Arc::clone(&cluster), hosts.clone());
        async move {
            let (_endpoint, mut accepted) = cluster.endpoint(1);
            let blocks = BlockServer::new(hosts.clone());
            while let Some(connection) = accepted.next().await {
                let (hosts, blocks) = (hosts.clone(), blocks.clone());
                tokio::spawn(async move {
                    match connection.class() {
                        ConnectionClass::Decode => serve_decode(connection, hosts).await,
                        _ => blocks.serve(connection).await,
                    }
                });
            }
            Ok(())
        }
    });
}

/// What came of what was asked.
#[derive(Debug, Default)]
struct Tally {
    answered: u64,
    interrupted: u64,
    copied: u64,
    not_copied: u64,
}

/// Asks near and far until `done`, and then until both an answer and a copy have come. Every answer is compared bit for bit.
fn ask(held: &Held, asker: &Asker, runtime: &Runtime, done: &AtomicBool, seed: u64) -> Tally {
    let (mut near, mut far) = (held.host.link(), asker.channel.link());
    let (mut dice, mut tally) = (Dice::new(seed), Tally::default());
    let mut last = None;
    loop {
        let is_over = done.load(Ordering::Acquire);
        let state = dice.clone();
        near.post(held.request(&mut dice)).unwrap();
        let expected = near.wait().unwrap();
        let answered = far.post(held.request(&mut state.clone())).and_then(|()| far.wait());
        match &answered {
            Ok(reply) => {
                assert_eq!(reply.blocks, expected.blocks, "seed {seed}");
                assert!(reply.partials == expected.partials, "seed {seed}: the same bits");
                tally.answered += 1;
            }
            Err(LinkError::Interrupted { host: HOST, .. }) => tally.interrupted += 1,
            Err(error) => panic!("seed {seed}: {error}"),
        }
        let id = held.blocks[dice.below(held.blocks.len())];
        let copied = copy(held, asker, runtime, id);
        let counted = if copied { &mut tally.copied } else { &mut tally.not_copied };
        *counted += 1;
        if is_over {
            if copied && answered.is_ok() {
                return tally;
            }
            let since: Instant = *last.get_or_insert_with(Instant::now);
            assert!(since.elapsed() < PATIENCE, "seed {seed}: not healed: {answered:?}, {tally:?}");
        }
    }
}

/// Copies a block from the other node, if the way is there, and compares it.
fn copy(held: &Held, asker: &Asker, runtime: &Runtime, id: BlockId) -> bool {
    let original =
        runtime.block_on(async { call!(held.host.actor, ContextHostMsg::Share, id) }).unwrap().unwrap();
    let original = original.expect("it is held");
    let (endpoint, target) = (Arc::clone(&asker.endpoint), asker.asked.clone());
    let dialled = asker.network.spawn(async move { endpoint.dial(target, ConnectionClass::Bulk).await });
    let Ok(connection) = runtime.block_on(dialled).expect("the asking node runs") else { return false };
    let budget = KvBudget::new(held.decoder.kv_shape(FORMAT), usize::MAX);
    let mut landing = Landing::new(budget.allocate(original.len()).unwrap(), original.len());
    let fetched = runtime.block_on(fetch_block(&connection, HOST, id, &mut landing, None));
    if fetched.is_err() {
        return false;
    }
    assert!(landing.into_block().unwrap().raw() == original.raw(), "a copy is the block");
    true
}

fn run(seed: u64) -> Tally {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let held = runtime.block_on(Held::new());
    let (mut sim, mut dice) = (network(seed), Dice::new(seed));
    let (cluster, (told, asker)) = (Cluster::new(seed, 2), channel());
    is_asked(&mut sim, &cluster, &held);
    asks(&mut sim, &cluster, held.shape(), told);
    let start = Instant::now();
    let step = |sim: &mut turmoil::Sim<'_>| {
        sim.step().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        cluster.clock.advance(TICK);
        thread::sleep(sim.elapsed().saturating_sub(start.elapsed()));
    };
    (0..5).for_each(|_| step(&mut sim));
    let asker = asker.try_recv().expect("its software has started");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&held, &asker, &runtime, &done, seed));
        while sim.elapsed() < BAD_UNTIL && !asking.is_finished() {
            let fault = Fault::draw(&mut dice, 2, 1);
            fault.happen(&mut sim);
            (0..100 + dice.below(1000)).for_each(|_| step(&mut sim));
            fault.end(&mut sim);
            (0..dice.below(800)).for_each(|_| step(&mut sim));
        }
        done.store(true, Ordering::Release);
        while !asking.is_finished() {
            step(&mut sim);
        }
        asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn attention_and_copies_over_a_bad_network_are_those_in_memory_or_a_typed_error_and_come_again() {
    for seed in seeds(3) {
        let tally = run(seed);
        println!("seed {seed}: {tally:?}");
        assert!(tally.answered > 0 && tally.copied > 0, "seed {seed}: {tally:?}");
    }
}
