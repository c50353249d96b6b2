//! A node: the whole cast in one process, and the session API over it. Open a node, encode a document, open sessions over
//! it, ask.

use std::collections::BTreeMap;
use std::sync::Arc;

use ractor::{Actor, ActorRef};
use stellate_kernels::{Backend, Cpu, CpuOptions, KvFormat, KvShape};
use stellate_model::block::{Addresser, Layout};
use stellate_model::decoder::Decoder;
use stellate_runtime::clock::{Clock, SystemClock};

use crate::api::Client;
use crate::budget::KvBudget;
use crate::cancel::CancelToken;
use crate::context_host::{self, ContextHostArgs, ContextHostHandle};
use crate::engine::Engine;
use crate::error::{EncodeError, OpenError};
use crate::fleet::Fleet;
use crate::handle::Context;
use crate::link::HostId;
use crate::model::Model;
use crate::path::context::{EncodeRequest, encode};
use crate::profile::Profile;
use crate::progress::{EncodeMeter, EncodeProgress};
use crate::prompt::{ContextSource, Prompter, Prompting};
use crate::query_host::{self, QueryHostArgs, QueryHostHandle};
use crate::supervisor::{Supervisor, SupervisorArgs, SupervisorMsg};

/// Threads of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostThreads {
    /// How many; 0 is one for every core.
    pub threads: usize,
    /// CPUs that they are bound to; none binds nothing.
    pub cpus: Vec<usize>,
}

/// How a node is built.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The context hosts, by their threads.
    pub hosts: Vec<HostThreads>,
    /// The query host's threads.
    pub query: HostThreads,
    /// Number format of keys and values.
    pub kv_format: KvFormat,
    /// Bytes of keys and values that each context host may hold, and the tails of all sessions together.
    pub capacity_bytes: usize,
    /// Computes the anchor again behind every block, as the paper does.
    pub recompute_anchor: bool,
    /// Tokens that go through the layers together at most.
    pub chunk_tokens: usize,
    /// Jobs that may wait for a host.
    pub queue_jobs: usize,
    /// Events of an answer that may wait for its listener; at least 2.
    pub queue_events: usize,
    /// Sessions that may be open.
    pub max_sessions: usize,
    /// Where the hosts' time is counted by operation, if it is to be.
    pub profile: Option<Arc<Profile>>,
    /// Measures turns.
    pub clock: Arc<dyn Clock>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            hosts: vec![HostThreads::default()],
            query: HostThreads::default(),
            kv_format: KvFormat::Bf16,
            capacity_bytes: 4 << 30,
            recompute_anchor: false,
            chunk_tokens: 512,
            queue_jobs: 64,
            queue_events: 256,
            max_sessions: 64,
            profile: None,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl NodeOptions {
    /// The same with `count` context hosts that share the machine's cores evenly, at least one each.
    pub fn with_hosts(mut self, count: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / count.max(1)).max(1);
        self.hosts = vec![HostThreads { threads, cpus: Vec::new() }; count];
        self
    }
}

/// A model that runs on context hosts and a query host: of this process ([`open`](Self::open)), or of another one
/// ([`connect`](Self::connect)). Clones are the same node. One of this process stops when the last clone, context and
/// session of it is dropped, or when [`close`](Self::close) is called; of another one, only the connection ends.
#[derive(Clone, Debug)]
pub struct Node(Place);

#[derive(Clone, Debug)]
enum Place {
    Here(Arc<Cast>),
    There(Client),
}

/// The actors of a node and the ways to them.
#[derive(Debug)]
pub(crate) struct Cast {
    pub(crate) fleet: Fleet,
    pub(crate) hosts: Vec<ContextHostHandle>,
    pub(crate) query: QueryHostHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) queue_events: usize,
    profile: Option<Arc<Profile>>,
}

impl Drop for Cast {
    fn drop(&mut self) {
        self.query.actor.stop(None);
        self.hosts.iter().for_each(|host| host.actor.stop(None));
        self.fleet.supervisor.stop(None);
    }
}

impl Node {
    /// Starts the hosts of a node that runs `model`. Call it within a tokio runtime.
    pub async fn open(model: &Model, options: NodeOptions) -> Result<Self, OpenError> {
        if options.hosts.is_empty() {
            return Err(OpenError::NoHosts);
        }
        let decoder = &model.decoder;
        let kv_shape = decoder.kv_shape(options.kv_format);
        let hosts = start_hosts(decoder, kv_shape, &options).await?;
        let query = QueryHostArgs {
            engine: engine(decoder, &options.query, "query".to_owned(), &options)?,
            prompter: Arc::clone(&model.prompter),
            clock: Arc::clone(&options.clock),
            hosts: hosts.clone(),
            kv_shape,
            capacity_bytes: options.capacity_bytes,
            max_sessions: options.max_sessions,
            queue_jobs: options.queue_jobs,
        };
        let query = query_host::start(query).await.map_err(|error| not_started("the query host", error))?;
        let supervisor = start_supervisor(kv_shape, &hosts).await?;
        let fleet = Fleet {
            decoder: Arc::clone(decoder),
            prompter: Arc::clone(&model.prompter),
            addresser: Addresser::new(decoder.fingerprint(), options.kv_format),
            kv_shape,
            recompute_anchor: options.recompute_anchor,
            supervisor,
            hosts: hosts.iter().map(|host| (host.host, host.actor.clone())).collect(),
            query: query.actor.clone(),
            exact_gate: tokio::sync::Mutex::new(()),
        };
        let NodeOptions { clock, queue_events, profile, .. } = options;
        let queue_events = queue_events.max(2);
        Ok(Self(Place::Here(Arc::new(Cast { fleet, hosts, query, clock, queue_events, profile }))))
    }

    /// Encodes a context. Dropping the future cancels the work; on an error every other context is as it was.
    pub async fn encode(&self, source: ContextSource, layout: Layout) -> Result<Context, EncodeError> {
        self.encode_with(source, layout, |_| {}).await
    }

    /// [`encode`](Self::encode) with `progress` told of every chunk. It is called from the hosts' threads: be quick.
    pub async fn encode_with(
        &self,
        source: ContextSource,
        layout: Layout,
        progress: impl FnMut(EncodeProgress) + Send + 'static,
    ) -> Result<Context, EncodeError> {
        let prompting = match source {
            ContextSource::Document(_) => Prompting::Chat,
            _ => Prompting::Raw,
        };
        self.encode_as(prompting, source, layout, EncodeMeter::new(progress)).await
    }

    pub(crate) async fn encode_as(
        &self,
        prompting: Prompting,
        source: ContextSource,
        layout: Layout,
        meter: EncodeMeter,
    ) -> Result<Context, EncodeError> {
        if let Place::There(client) = &self.0 {
            return Ok(client.encode(source, layout, &meter).await?.into_context(
                self.clone(),
                prompting,
                &meter,
            ));
        }
        let request = EncodeRequest { source, layout, meter: meter.clone(), cancel: CancelToken::default() };
        let encoded = encode(&self.cast().fleet, request).await?;
        Ok(Context::new(self.clone(), encoded, prompting, meter.progress()))
    }

    /// The node of another process that `client` talks to.
    pub(crate) fn there(client: Client) -> Self {
        Self(Place::There(client))
    }

    /// The connection, if the node is of another process: for what only clusters have.
    pub fn client(&self) -> Option<&Client> {
        match &self.0 {
            Place::Here(_) => None,
            Place::There(client) => Some(client),
        }
    }

    pub(crate) fn cast(&self) -> &Cast {
        match &self.0 {
            Place::Here(cast) => cast,
            Place::There(_) => panic!("the node is of another process: it has no model here"),
        }
    }

    /// The model's decoder.
    ///
    /// # Panics
    /// If the node is of another process; see [`Client::about`].
    pub fn decoder(&self) -> &Decoder {
        &self.cast().fleet.decoder
    }

    /// The model's tokenizer and chat template.
    ///
    /// # Panics
    /// As [`decoder`](Self::decoder).
    pub fn prompter(&self) -> &Prompter {
        &self.cast().fleet.prompter
    }

    /// The stores of the context hosts, in their order, to read their fill from.
    ///
    /// # Panics
    /// As [`decoder`](Self::decoder).
    pub fn stores(&self) -> impl Iterator<Item = (HostId, &KvBudget)> {
        self.cast().hosts.iter().map(|host| (host.host, &*host.budget))
    }

    /// The store of the sessions' own keys and values.
    ///
    /// # Panics
    /// As [`decoder`](Self::decoder).
    pub fn session_store(&self) -> &KvBudget {
        &self.cast().query.budget
    }

    /// Where the hosts' time is counted, as given in the options.
    ///
    /// # Panics
    /// As [`decoder`](Self::decoder).
    pub fn profile(&self) -> Option<&Arc<Profile>> {
        self.cast().profile.as_ref()
    }

    /// Stops every host after the step under way and waits for it. Sessions and contexts of the node end with it. Of a node
    /// of another process, the connection ends and all else stays.
    pub async fn close(&self) {
        let cast = match &self.0 {
            Place::Here(cast) => cast,
            Place::There(client) => return client.disconnect().await,
        };
        stop(&cast.query.actor).await;
        for host in &cast.hosts {
            stop(&host.actor).await;
        }
        stop(&cast.fleet.supervisor).await;
    }
}

async fn start_hosts(
    decoder: &Arc<Decoder>,
    kv_shape: KvShape,
    options: &NodeOptions,
) -> Result<Vec<ContextHostHandle>, OpenError> {
    let mut hosts = Vec::new();
    for (index, threads) in options.hosts.iter().enumerate() {
        let host = HostId(index as u64);
        let args = ContextHostArgs {
            host,
            engine: engine(decoder, threads, host.to_string(), options)?,
            kv_shape,
            capacity_bytes: options.capacity_bytes,
            queue_jobs: options.queue_jobs,
        };
        let started = context_host::start(args).await;
        hosts.push(started.map_err(|error| not_started(&format!("context host {host}"), error))?);
    }
    Ok(hosts)
}

async fn start_supervisor(
    kv_shape: KvShape,
    hosts: &[ContextHostHandle],
) -> Result<ActorRef<SupervisorMsg>, OpenError> {
    let table: BTreeMap<_, _> =
        hosts.iter().map(|host| (host.host, (host.actor.clone(), host.budget.capacity_bytes()))).collect();
    let args = SupervisorArgs { kv_shape, hosts: table };
    let (actor, _) =
        Actor::spawn(None, Supervisor, args).await.map_err(|error| not_started("the supervisor", error))?;
    Ok(actor)
}

fn engine(
    decoder: &Arc<Decoder>,
    threads: &HostThreads,
    name: String,
    node: &NodeOptions,
) -> Result<Engine, OpenError> {
    let options = CpuOptions { name, threads: threads.threads, cpus: threads.cpus.clone() };
    let backend: Box<dyn Backend> = Box::new(Cpu::new(&options)?);
    let mut engine = Engine::new(Arc::clone(decoder), backend, node.chunk_tokens);
    if let Some(profile) = &node.profile {
        engine.pass.observe(profile.stopwatch());
    }
    Ok(engine)
}

fn not_started(what: &str, error: ractor::SpawnErr) -> OpenError {
    OpenError::Start { what: what.to_owned(), reason: error.to_string() }
}

async fn stop<M: ractor::Message>(actor: &ActorRef<M>) {
    // One that has stopped already has nothing to wait for.
    let _ = actor.stop_and_wait(None, None).await;
}
