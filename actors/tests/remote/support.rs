//! Two nodes on loopback, each with a network thread of its own: one asks, the other has a context host that runs a small
//! random model, or a script.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ractor::call;
use stellate_actors::cancel::CancelToken;
use stellate_actors::context_host::{self, ContextHostArgs, ContextHostHandle, ContextHostMsg, EncodeJob};
use stellate_actors::engine::Engine;
use stellate_actors::link::{AttendRequest, Fold, HostId};
use stellate_actors::progress::EncodeMeter;
use stellate_actors::remote::{
    AttendShape, BlockServer, DecodeChannel, DecodeOptions, LocalHosts, NodeDialer, serve_decode,
};
use stellate_actors::{KvFormat, Layout, WeightChoice};
use stellate_kernels::{Cpu, CpuOptions};
use stellate_model::block::{Addresser, BlockId};
use stellate_model::decoder::Decoder;
use stellate_model::random::{RandomModel, random_weights};
use stellate_runtime::clock::SystemClock;
use stellate_runtime::identity::{CertificateAuthority, Credentials, Revocations};
use stellate_runtime::transport::{
    Accepted, Connection, ConnectionClass, Endpoint, EndpointSetup, NetworkThread, ProtocolRange, Target,
};
use tokio::runtime::Runtime;

pub(crate) const BLOCK_TOKENS: usize = 100;
pub(crate) const BLOCKS: usize = 3;
pub(crate) const HOST: HostId = HostId(0);

/// Long enough for a loaded machine; only a broken test waits so long.
pub(crate) const PATIENT: DecodeOptions =
    DecodeOptions { reply_timeout: Duration::from_secs(30), send_timeout: Duration::from_secs(30) };

/// The node that asks, and what both nodes rest on. The fields are dropped in this order.
pub(crate) struct Asker {
    pub(crate) runtime: Runtime,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) authority: CertificateAuthority,
    pub(crate) network: NetworkThread,
}

/// A node that is asked.
pub(crate) struct Asked {
    pub(crate) endpoint: Endpoint,
    _network: NetworkThread,
}

impl Asker {
    pub(crate) fn new() -> Self {
        Self::speaking(ProtocolRange::SPOKEN)
    }

    /// One that speaks these versions.
    pub(crate) fn speaking(protocol: ProtocolRange) -> Self {
        let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
        let network = NetworkThread::start("asker").unwrap();
        let (endpoint, _) = open(&network, &authority, "asker", protocol);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime, endpoint: Arc::new(endpoint), authority, network }
    }

    /// A node that does `serve` with every connection.
    pub(crate) fn node<F>(&self, name: &str, serve: impl Fn(Connection) -> F + Send + Sync + 'static) -> Asked
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let network = NetworkThread::start(name).unwrap();
        let (endpoint, mut accepted) = open(&network, &self.authority, name, ProtocolRange::SPOKEN);
        network.handle().spawn(async move {
            while let Some(connection) = accepted.next().await {
                tokio::spawn(serve(connection));
            }
        });
        Asked { endpoint, _network: network }
    }

    pub(crate) fn dialer(&self, node: &Asked, class: ConnectionClass) -> NodeDialer {
        let address = node.endpoint.local_address().unwrap();
        let target = Target::node(node.endpoint.credentials().id(), address);
        NodeDialer::new(Arc::clone(&self.endpoint), target, class, Arc::new(|_| {}))
    }

    pub(crate) fn channel(
        &self,
        node: &Asked,
        host: HostId,
        shape: AttendShape,
        options: DecodeOptions,
    ) -> DecodeChannel {
        let dialer = Arc::new(self.dialer(node, ConnectionClass::Decode));
        DecodeChannel::new(&self.network.handle(), host, shape, dialer, options)
    }

    pub(crate) fn bulk(&self, node: &Asked) -> Connection {
        let target = Target::seed(node.endpoint.local_address().unwrap());
        let (endpoint, class) = (Arc::clone(&self.endpoint), ConnectionClass::Bulk);
        let dialling = self.network.handle().spawn(async move { endpoint.dial(target, class).await });
        self.runtime.block_on(dialling).unwrap().unwrap()
    }
}

fn open(
    network: &NetworkThread,
    authority: &CertificateAuthority,
    name: &str,
    protocol: ProtocolRange,
) -> (Endpoint, Accepted) {
    let credentials: Arc<Credentials> =
        authority.issue_node(&name.parse().unwrap(), SystemTime::now()).unwrap().into();
    let revocations = Revocations::new(authority.certificate()).unwrap();
    let mut setup = EndpointSetup::new((Ipv4Addr::LOCALHOST, 0).into(), credentials, revocations);
    setup.options.protocol = protocol;
    Endpoint::bind(&network.handle(), setup).unwrap()
}

/// A small random model and a context host that runs it.
pub(crate) struct Model {
    pub(crate) decoder: Arc<Decoder>,
    pub(crate) format: KvFormat,
    pub(crate) ids: Vec<u32>,
    pub(crate) blocks: Vec<BlockId>,
}

impl Model {
    pub(crate) fn new(format: KvFormat) -> Self {
        let config = RandomModel::named("tiny").unwrap();
        let loaded = random_weights(&config, WeightChoice::F32, 5).unwrap();
        let decoder = Arc::new(Decoder::new(config, loaded));
        let ids: Vec<u32> = (0..(BLOCKS * BLOCK_TOKENS - 30) as u32).map(|i| i * 37 % 512).collect();
        let addresser = Addresser::new(decoder.fingerprint(), format);
        let blocks = addresser.address_all(&Layout::star(BLOCK_TOKENS, 0), &ids);
        Self { decoder, format, ids, blocks }
    }

    pub(crate) fn shape(&self) -> AttendShape {
        AttendShape::of(&self.decoder)
    }

    pub(crate) async fn host(&self, host: HostId) -> ContextHostHandle {
        self.host_stuck_after(host, Duration::from_secs(30)).await
    }

    /// A host that is stuck when its device thread has stood still for so long.
    pub(crate) async fn host_stuck_after(&self, host: HostId, stuck_after: Duration) -> ContextHostHandle {
        let options = CpuOptions { name: format!("test-{host}"), threads: 1, cpus: Vec::new() };
        let engine = Engine::new(Arc::clone(&self.decoder), Box::new(Cpu::new(&options).unwrap()), 32);
        let kv_shape = self.decoder.kv_shape(self.format);
        let capacity_bytes = kv_shape.bytes_for(8 * BLOCK_TOKENS);
        let clock = Arc::new(SystemClock::new());
        let disk = None;
        let args = ContextHostArgs {
            host,
            engine,
            kv_shape,
            capacity_bytes,
            queue_jobs: 16,
            stuck_after,
            clock,
            disk,
        };
        context_host::start(args).await.unwrap()
    }

    pub(crate) fn job(&self, index: usize) -> EncodeJob {
        let range = Layout::star(BLOCK_TOKENS, 0).cut(self.ids.len()).nth(index).unwrap();
        EncodeJob {
            id: self.blocks[index],
            position: range.start,
            ids: self.ids[range].into(),
            anchor: None,
            recompute_anchor: false,
            meter: EncodeMeter::default(),
            cancel: CancelToken::default(),
        }
    }

    pub(crate) async fn encode(&self, host: &ContextHostHandle) {
        for index in 0..self.blocks.len() {
            call!(host.actor, ContextHostMsg::Encode, self.job(index)).unwrap().unwrap();
        }
    }

    /// A host that holds all blocks.
    pub(crate) fn encoded_host(&self, asker: &Asker) -> ContextHostHandle {
        asker.runtime.block_on(async {
            let host = self.host(HOST).await;
            self.encode(&host).await;
            host
        })
    }

    pub(crate) fn local_hosts(&self, host: &ContextHostHandle) -> LocalHosts {
        LocalHosts::new([host.clone()], &self.decoder, self.decoder.kv_shape(self.format))
    }
}

/// A node that serves `host` as a real one does.
pub(crate) fn real_node(asker: &Asker, name: &str, model: &Model, host: &ContextHostHandle) -> Asked {
    let hosts = model.local_hosts(host);
    let blocks = BlockServer::new(hosts.clone());
    asker.node(name, move |connection| {
        let (hosts, blocks) = (hosts.clone(), blocks.clone());
        async move {
            match connection.class() {
                ConnectionClass::Decode => serve_decode(connection, hosts).await,
                ConnectionClass::Bulk => blocks.serve(connection).await,
                _ => {}
            }
        }
    })
}

/// Numbers that look like queries.
pub(crate) fn queries(shape: AttendShape, tokens: usize, seed: usize) -> Arc<Vec<f32>> {
    let count = tokens * shape.heads * shape.head_dim;
    Arc::new((0..count).map(|i| ((i * 7919 + seed * 31) % 1009) as f32 / 500.0 - 1.0).collect())
}

pub(crate) fn request(
    blocks: &Arc<[BlockId]>,
    layer: usize,
    fold: Fold,
    queries: Arc<Vec<f32>>,
) -> AttendRequest {
    AttendRequest { layer, blocks: Arc::clone(blocks), fold, queries, partials: Vec::new() }
}
