//! A node: the query host, the context hosts of its process, the ways to others, and the session API over them. Open a
//! node, encode a document, open sessions over it, ask. How its actors are started is in [`start`], what it remembers in
//! [`durable`], what the rest of a cluster asks of it in [`weak`].

mod durable;
mod start;
mod weak;

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorRef, call};
use stellate_kernels::KvFormat;
use stellate_model::block::{Addresser, Layout};
use stellate_model::decoder::Decoder;
use stellate_runtime::clock::{Clock, SystemClock};

use crate::api::Client;
use crate::budget::KvBudget;
use crate::cancel::CancelToken;
use crate::catalogue::Catalogue;
use crate::context_host::ContextHostHandle;
use crate::directory::Directory;
use crate::disk::Disk;
use crate::error::{Asked, EncodeError, OpenError, Stopped};
use crate::fleet::Fleet;
use crate::handle::Context;
use crate::journal::Journal;
use crate::link::HostId;
use crate::manifest::ContextId;
use crate::model::Model;
use crate::path::context::{EncodeRequest, encode};
use crate::port::{HostPort, SupervisorPort};
use crate::profile::Profile;
use crate::progress::{EncodeMeter, EncodeProgress};
use crate::prompt::{ContextSource, Prompter, Prompting};
use crate::query_host::{QueryHostHandle, QueryHostMsg, errands, run_errands};
use crate::supervisor::{LocalSupervisor, SupervisorMsg};
use crate::whereabouts::Moved;

pub(crate) use start::held_by;
pub use start::{start_hosts, start_supervisor};
pub(crate) use weak::WeakNode;

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
    /// How long a host's device thread may stand still at one layer of one piece of work before the host counts as stuck.
    pub stuck_after: Duration,
    /// Events of an answer that may wait for its listener; at least 2.
    pub queue_events: usize,
    /// Sessions that may be open.
    pub max_sessions: usize,
    /// Times that a context is placed before it is given up: hosts fail, and others take over. At least 1.
    pub heal_tries: u32,
    /// Remembers contexts and sessions over the node's end, if that is to be. Its contexts stay until they are removed.
    pub journal: Option<Arc<dyn Journal>>,
    /// Where the context hosts keep blocks over the node's end, if they are to: each is read when it is asked for, and those of a
    /// member of a cluster come back by themselves as well. Whoever opened it closes it after the node.
    pub disk: Option<Disk>,
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
            stuck_after: Duration::from_secs(30),
            queue_events: 256,
            max_sessions: 64,
            heal_tries: 8,
            journal: None,
            disk: None,
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

/// What a query node finds around it.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The context hosts of its own process, which end with it.
    pub own: Vec<ContextHostHandle>,
    /// The ways to all context hosts, its own among them. Hosts may join and go while the node is open.
    pub hosts: Arc<Directory>,
    /// Places blocks.
    pub supervisor: Arc<dyn SupervisorPort>,
}

/// A model that runs on a query host and on context hosts: of this process and those that it reaches ([`open`](Self::open),
/// [`open_among`](Self::open_among)), or all of another one ([`connect`](Self::connect)). Clones are the same node. One of
/// this process stops when the last clone, context and session of it is dropped, or when [`close`](Self::close) is called; of
/// another one, only the connection ends.
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
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) hosts: Vec<ContextHostHandle>,
    pub(crate) query: QueryHostHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) queue_events: usize,
    /// The supervisor, where it is this node's alone.
    supervisor: Option<ActorRef<SupervisorMsg>>,
    profile: Option<Arc<Profile>>,
}

impl Drop for Cast {
    fn drop(&mut self) {
        self.query.actor.stop(None);
        self.hosts.iter().for_each(|host| host.actor.stop(None));
        if let Some(supervisor) = &self.supervisor {
            supervisor.stop(None);
        }
    }
}

impl Node {
    /// Starts the hosts of a node that runs `model`. Call it within a tokio runtime.
    pub async fn open(model: &Model, options: NodeOptions) -> Result<Self, OpenError> {
        if options.hosts.is_empty() {
            return Err(OpenError::NoHosts);
        }
        let own = start_hosts(model, &options, [0; 6]).await?;
        let supervisor = start_supervisor(model.decoder.kv_shape(options.kv_format), &own).await?;
        let ports = own.iter().map(|host| Arc::new(host.clone()) as Arc<dyn HostPort>);
        let hosts = Arc::new(Directory::of(ports));
        let port = Arc::new(LocalSupervisor(supervisor.clone()));
        let surroundings = Surroundings { own, hosts, supervisor: port };
        Self::assemble(model, options, surroundings, Some(supervisor)).await
    }

    /// Starts a query host that runs `model` among hosts that are there. `options.hosts` is not looked at.
    pub async fn open_among(
        model: &Model,
        options: NodeOptions,
        surroundings: Surroundings,
    ) -> Result<Self, OpenError> {
        Self::assemble(model, options, surroundings, None).await
    }

    async fn assemble(
        model: &Model,
        options: NodeOptions,
        surroundings: Surroundings,
        local: Option<ActorRef<SupervisorMsg>>,
    ) -> Result<Self, OpenError> {
        let Surroundings { own, hosts, supervisor } = surroundings;
        let contexts = Arc::new(Catalogue::default());
        let (errands, receiver) = errands();
        let query = start::start_query(model, &options, &hosts, &contexts, errands).await?;
        let decoder = &model.decoder;
        let fleet = Arc::new(Fleet {
            decoder: Arc::clone(decoder),
            prompter: Arc::clone(&model.prompter),
            addresser: Addresser::new(decoder.fingerprint(), options.kv_format),
            kv_shape: decoder.kv_shape(options.kv_format),
            recompute_anchor: options.recompute_anchor,
            clock: Arc::clone(&options.clock),
            heal_tries: options.heal_tries,
            supervisor,
            hosts,
            contexts,
            journal: options.journal,
            query: query.actor.clone(),
            exact_gate: tokio::sync::Mutex::new(()),
        });
        tokio::spawn(run_errands(Arc::clone(&fleet), receiver));
        let NodeOptions { clock, queue_events, profile, .. } = options;
        let queue_events = queue_events.max(2);
        let cast = Cast { fleet, hosts: own, query, clock, queue_events, supervisor: local, profile };
        Ok(Self(Place::Here(Arc::new(cast))))
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
        let (meter, cancel) = (meter, CancelToken::default());
        let request = EncodeRequest { source, prompting, layout, meter: meter.clone(), cancel };
        let fleet = &self.cast().fleet;
        let encoded = encode(fleet, request).await?;
        let encoded = fleet.contexts.add(encoded, fleet.journal.is_some());
        Ok(Context::new(self.clone(), encoded, meter.progress()))
    }

    /// A block lies elsewhere. Returns when no step asks for it in its old place any more.
    ///
    /// # Errors
    /// The node is closing or has too much to do to listen. Nobody needs to try again: a step that finds the block gone
    /// from its old place has its context placed again.
    ///
    /// # Panics
    /// As [`decoder`](Self::decoder).
    pub async fn moved(&self, moved: Moved) -> Result<(), Stopped> {
        call!(self.cast().query.actor, QueryHostMsg::Moved, moved).asked()
    }

    /// Brings a context back in the background, blocks of which are lost; `suspects` are hosts that they were on. Nothing
    /// happens if it is being brought back already, is not known, or was not used since the node was opened.
    ///
    /// # Panics
    /// As [`decoder`](Self::decoder).
    pub fn heal(&self, context: ContextId, suspects: Vec<HostId>) {
        // A query host that is gone, or has too much to do, heals when a step fails.
        let _ = self.cast().query.actor.cast(QueryHostMsg::Heal(context, suspects));
    }

    /// The ways to the context hosts: hosts join and go here.
    ///
    /// # Panics
    /// As [`decoder`](Self::decoder).
    pub fn hosts(&self) -> &Arc<Directory> {
        &self.cast().fleet.hosts
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

    /// The stores of the context hosts of this process, in their order, to read their fill from.
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
        if let Some(supervisor) = &cast.supervisor {
            stop(supervisor).await;
        }
    }
}

async fn stop<M: ractor::Message>(actor: &ActorRef<M>) {
    // One that has stopped already has nothing to wait for.
    let _ = actor.stop_and_wait(None, None).await;
}
