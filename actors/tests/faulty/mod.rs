//! Nodes whose context hosts fail as they are told, and answers to compare: what the tests of faults share.

#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use ractor::ActorRef;
use stellate_actors::budget::BudgetedBlock;
use stellate_actors::context_host::{ContextHostHandle, EncodeJob, Encoded, HostError, Reserved};
use stellate_actors::directory::Directory;
use stellate_actors::link::{AttendReply, AttendRequest, HostId, HostLink, LinkError, LocalLink};
use stellate_actors::manifest::ContextId;
use stellate_actors::node::{Surroundings, start_hosts, start_supervisor};
use stellate_actors::port::{HostPort, SupervisorPort};
use stellate_actors::supervisor::{LocalSupervisor, PlaceRequest, Placement, SupervisorMsg};
use stellate_actors::{
    AskError, AskOptions, Context, ContextSource, EncodeError, KvFormat, Layout, Model, ModelOptions,
    ModelSource, Node, NodeOptions, QueryInput, Session, TurnEvent, WeightChoice,
};
use stellate_model::block::BlockId;
use tokio::sync::Notify;

pub(crate) const VOCAB: u32 = 320;
pub(crate) const BLOCK_TOKENS: usize = 32;
pub(crate) const BLOCKS: usize = 6;

pub(crate) fn model() -> anyhow::Result<Model> {
    model_of(7)
}

pub(crate) fn model_of(seed: u64) -> anyhow::Result<Model> {
    let source = ModelSource::Random { shape: "tiny".into(), seed };
    let options = ModelOptions { weights: WeightChoice::F32, ..ModelOptions::default() };
    Ok(Model::load(&source, &options, &mut |_| {})?)
}

pub(crate) fn ids(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 29 + i * i * 11 + seed * 17) % VOCAB).collect()
}

/// Tokens of a context of [`BLOCKS`] blocks, the last one short.
pub(crate) fn text() -> ContextSource {
    ContextSource::Ids(ids(BLOCKS * BLOCK_TOKENS - 9, 1))
}

pub(crate) fn layouts() -> [Layout; 2] {
    [Layout::star(BLOCK_TOKENS, BLOCK_TOKENS), Layout::exact(BLOCK_TOKENS)]
}

pub(crate) fn options() -> NodeOptions {
    let options =
        NodeOptions { kv_format: KvFormat::F32, capacity_bytes: 64 << 20, ..NodeOptions::default() };
    options.with_hosts(3)
}

/// How a host fails.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Attention requests that are still answered; below zero nothing is.
    left: AtomicI64,
    /// Whether it answers nothing at all, encodes included, once it has failed.
    is_dead: bool,
    /// Whether it says that it holds whatever it is asked for, and has nothing.
    lies: AtomicBool,
    /// Encodes wait for it to be told.
    held: Mutex<Option<Arc<Notify>>>,
}

impl Fault {
    /// A host that fails never.
    pub(crate) fn never() -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(i64::MAX),
            is_dead: true,
            lies: AtomicBool::new(false),
            held: Mutex::new(None),
        })
    }

    /// From now on it answers `requests` more requests, then nothing.
    pub(crate) fn after(&self, requests: i64) {
        self.left.store(requests, Ordering::SeqCst);
    }

    /// From now on it says that it holds whatever it is asked for, and has nothing.
    pub(crate) fn lie(&self) {
        self.lies.store(true, Ordering::SeqCst);
    }

    fn lies(&self) -> bool {
        self.lies.load(Ordering::SeqCst)
    }

    /// It answers again.
    pub(crate) fn mend(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }

    /// Encodes wait until the notification comes.
    pub(crate) fn hold_encodes(&self) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        *self.held.lock().unwrap() = Some(Arc::clone(&notify));
        notify
    }

    fn has_failed(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }

    fn request(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) > 0
    }
}

/// A host that fails as it is told.
#[derive(Debug)]
pub(crate) struct FaultyHost {
    pub(crate) host: ContextHostHandle,
    pub(crate) fault: Arc<Fault>,
    pub(crate) encodes: AtomicU32,
}

impl FaultyHost {
    fn check(&self) -> Result<(), HostError> {
        match self.fault.has_failed() {
            true => Err(HostError::Unreachable { host: self.host.host, cause: "told to fail".into() }),
            false => Ok(()),
        }
    }
}

impl HostPort for FaultyHost {
    fn host(&self) -> HostId {
        self.host.host
    }

    fn link(&self) -> Box<dyn HostLink> {
        Box::new(FaultyLink { link: self.host.link(), fault: Arc::clone(&self.fault), asked: None })
    }

    fn encode(&self, job: EncodeJob) -> BoxFuture<'_, Result<Encoded, HostError>> {
        self.encodes.fetch_add(1, Ordering::SeqCst);
        let held = self.fault.held.lock().unwrap().clone();
        Box::pin(async move {
            self.check()?;
            if self.fault.lies() {
                return Ok(Encoded::Held);
            }
            if let Some(held) = held {
                held.notified().await;
            }
            self.host.encode(job).await
        })
    }

    fn reserve(&self, id: BlockId, tokens: usize) -> BoxFuture<'_, Result<Reserved, HostError>> {
        Box::pin(async move {
            self.check()?;
            if self.fault.lies() {
                return Ok(Reserved::Held);
            }
            self.host.reserve(id, tokens).await
        })
    }

    fn seal(&self, id: BlockId, block: BudgetedBlock) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.check()?;
            self.host.seal(id, block).await
        })
    }
}

#[derive(Debug)]
struct FaultyLink {
    link: LocalLink,
    fault: Arc<Fault>,
    asked: Option<BlockId>,
}

impl HostLink for FaultyLink {
    fn host(&self) -> HostId {
        self.link.host()
    }

    fn post(&mut self, request: AttendRequest) -> Result<(), LinkError> {
        self.asked = request.blocks.first().copied();
        self.link.post(request)
    }

    fn wait(&mut self) -> Result<AttendReply, LinkError> {
        if let Some(block) = self.asked.filter(|_| self.fault.lies()) {
            return Err(LinkError::NoSuchBlock { host: self.link.host(), block });
        }
        match self.fault.request() {
            // The host's reply is still on its way, for nobody.
            false => Err(LinkError::Interrupted { host: self.link.host(), cause: "told to fail".into() }),
            true => self.link.wait(),
        }
    }
}

/// A supervisor that counts.
#[derive(Debug)]
pub(crate) struct Counting {
    inner: LocalSupervisor,
    places: Arc<AtomicU32>,
}

impl SupervisorPort for Counting {
    fn place(&self, request: PlaceRequest) -> BoxFuture<'_, Result<Placement, EncodeError>> {
        self.places.fetch_add(1, Ordering::SeqCst);
        self.inner.place(request)
    }

    fn release(&self, context: ContextId) {
        self.inner.release(context);
    }
}

/// A node and the hosts around it.
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) hosts: Vec<Arc<FaultyHost>>,
    pub(crate) supervisor: ActorRef<SupervisorMsg>,
    places: Arc<AtomicU32>,
}

impl World {
    pub(crate) async fn open(model: &Model, options: NodeOptions) -> anyhow::Result<Self> {
        let own = start_hosts(model, &options, [0; 6]).await?;
        let supervisor = start_supervisor(model.decoder.kv_shape(options.kv_format), &own).await?;
        let hosts: Vec<_> = own.iter().map(|host| faulty(host.clone())).collect();
        let ports = hosts.iter().map(|host| Arc::clone(host) as Arc<dyn HostPort>);
        let places = Arc::new(AtomicU32::new(0));
        let counting = Counting { inner: LocalSupervisor(supervisor.clone()), places: Arc::clone(&places) };
        let surroundings =
            Surroundings { own, hosts: Arc::new(Directory::of(ports)), supervisor: Arc::new(counting) };
        let node = Node::open_among(model, options, surroundings).await?;
        Ok(Self { node, hosts, supervisor, places })
    }

    /// Times that a context was placed.
    pub(crate) fn places(&self) -> u32 {
        self.places.load(Ordering::SeqCst)
    }

    /// A further host, of which nobody knows yet.
    pub(crate) async fn further_host(
        &self,
        model: &Model,
        options: &NodeOptions,
    ) -> anyhow::Result<Arc<FaultyHost>> {
        let options = options.clone().with_hosts(1);
        Ok(faulty(start_hosts(model, &options, [0, 0, 0, 0, 0, 9]).await?.remove(0)))
    }
}

pub(crate) fn faulty(host: ContextHostHandle) -> Arc<FaultyHost> {
    Arc::new(FaultyHost { host, fault: Fault::never(), encodes: AtomicU32::new(0) })
}

/// An answer of a session, with the logits of every step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) ids: Vec<u32>,
    pub(crate) logits: Vec<f32>,
}

impl Answer {
    /// That both are the same answer; the way that blocks are spread shows in the last bits of the logits.
    #[track_caller]
    pub(crate) fn assert_like(&self, other: &Self, what: &str) {
        assert_eq!(self.ids, other.ids, "{what}");
        assert_eq!(self.logits.len(), other.logits.len(), "{what}");
        let pairs = self.logits.iter().zip(&other.logits);
        let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-4, "{what}: logits differ by {off}");
    }
}

pub(crate) fn ask_options(max_tokens: usize) -> AskOptions {
    AskOptions { max_tokens, ignore_eos: true, logits: true, ..AskOptions::default() }
}

pub(crate) fn question(seed: u32) -> QueryInput {
    QueryInput::Ids(ids(5, seed + 40))
}

/// Asks, and does `meanwhile` once a few tokens of the answer are there.
pub(crate) async fn ask_and(
    session: &Session,
    input: QueryInput,
    max_tokens: usize,
    meanwhile: impl Future<Output = ()>,
) -> Result<Answer, AskError> {
    let mut turn = session.ask(input, ask_options(max_tokens));
    let (mut answer, mut meanwhile) = (Answer { ids: Vec::new(), logits: Vec::new() }, Some(meanwhile));
    while let Some(event) = turn.next().await {
        match event? {
            TurnEvent::Token(token) => {
                answer.ids.push(token.id);
                answer.logits.extend(token.logits.iter().flat_map(|logits| logits.iter()));
            }
            TurnEvent::Finished(report) => {
                assert_eq!(report.ids, answer.ids);
                return Ok(answer);
            }
        }
        if answer.ids.len() >= 3
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile.await;
        }
    }
    Err(AskError::Stopped)
}

pub(crate) async fn ask(session: &Session, input: QueryInput, max_tokens: usize) -> Result<Answer, AskError> {
    ask_and(session, input, max_tokens, async {}).await
}

/// What a node without a fault answers to two questions in a row.
pub(crate) async fn healthy(model: &Model, layout: Layout, max_tokens: usize) -> anyhow::Result<[Answer; 2]> {
    let world = World::open(model, options()).await?;
    let session = context(&world, layout).await?.session().await?;
    let first = ask(&session, question(0), max_tokens).await?;
    let second = ask(&session, question(1), max_tokens).await?;
    assert_eq!(world.places(), 1);
    Ok([first, second])
}

pub(crate) async fn context(world: &World, layout: Layout) -> Result<Context, EncodeError> {
    world.node.encode(text(), layout).await
}
