//! Nodes within this process, each with a network thread, a socket and a certificate of its own: one that asks and some that
//! have a context host. What is asked is in `fanout.rs` and `copies.rs`.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use stellate_actors::context_host::{self, ContextHostArgs, ContextHostHandle};
use stellate_actors::engine::Engine;
use stellate_actors::link::HostId;
use stellate_actors::{KvFormat, WeightChoice};
use stellate_kernels::{Cpu, CpuOptions};
use stellate_model::decoder::Decoder;
use stellate_model::random::{RandomModel, random_weights};
use stellate_runtime::clock::SystemClock;
use stellate_runtime::identity::{CertificateAuthority, Credentials, Revocations};
use stellate_runtime::transport::{Accepted, Connection, Endpoint, EndpointSetup, NetworkThread, Target};

/// Keys and values as a cluster keeps them by default.
pub(super) const FORMAT: KvFormat = KvFormat::Bf16;

/// The node that asks.
pub(super) struct Asker {
    pub(super) endpoint: Arc<Endpoint>,
    authority: CertificateAuthority,
    pub(super) network: NetworkThread,
}

/// A node that is asked. The socket goes before the thread that drives it.
pub(super) struct Asked {
    endpoint: Endpoint,
    _network: NetworkThread,
}

impl Asker {
    pub(super) fn new() -> anyhow::Result<Self> {
        let authority = CertificateAuthority::create(SystemTime::now())?;
        let network = NetworkThread::start("asker")?;
        let (endpoint, _) = open(&network, &authority, "asker")?;
        Ok(Self { endpoint: Arc::new(endpoint), authority, network })
    }

    /// A node that does `serve` with every connection.
    pub(super) fn node<F>(
        &self,
        name: &str,
        serve: impl Fn(Connection) -> F + Send + Sync + 'static,
    ) -> anyhow::Result<Asked>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let network = NetworkThread::start(name)?;
        let (endpoint, mut accepted) = open(&network, &self.authority, name)?;
        network.handle().spawn(async move {
            while let Some(connection) = accepted.next().await {
                tokio::spawn(serve(connection));
            }
        });
        Ok(Asked { endpoint, _network: network })
    }
}

impl Asked {
    pub(super) fn target(&self) -> anyhow::Result<Target> {
        Ok(Target::node(self.endpoint.credentials().id(), self.endpoint.local_address()?))
    }
}

fn open(
    network: &NetworkThread,
    authority: &CertificateAuthority,
    name: &str,
) -> anyhow::Result<(Endpoint, Accepted)> {
    let credentials: Arc<Credentials> = authority.issue_node(&name.parse()?, SystemTime::now())?.into();
    let revocations = Revocations::new(authority.certificate())?;
    let setup = EndpointSetup::new((Ipv4Addr::LOCALHOST, 0).into(), credentials, revocations);
    Ok(Endpoint::bind(&network.handle(), setup)?)
}

/// The attention of Llama 3.2 1B in so many layers; the rest of it is as small as it can be.
pub(super) fn decoder(layers: usize) -> anyhow::Result<Arc<Decoder>> {
    let mut config = RandomModel::named("tiny")?;
    (config.layers, config.heads, config.kv_heads, config.head_dim) = (layers, 32, 8, 64);
    let loaded = random_weights(&config, WeightChoice::F32, 1)?;
    Ok(Arc::new(Decoder::new(config, loaded)))
}

/// A context host with room for `tokens` tokens.
pub(super) async fn start_host(
    decoder: &Arc<Decoder>,
    host: HostId,
    tokens: usize,
) -> anyhow::Result<ContextHostHandle> {
    let options = CpuOptions { name: host.to_string(), threads: 1, cpus: Vec::new() };
    let engine = Engine::new(Arc::clone(decoder), Box::new(Cpu::new(&options)?), 64);
    let kv_shape = decoder.kv_shape(FORMAT);
    let capacity_bytes = kv_shape.bytes_for(tokens);
    let clock = Arc::new(SystemClock::new());
    let (stuck_after, disk) = (Duration::from_secs(30), None);
    let args =
        ContextHostArgs { host, engine, kv_shape, capacity_bytes, queue_jobs: 4, stuck_after, clock, disk };
    context_host::start(args).await.context("a context host starts")
}
