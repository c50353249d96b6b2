//! How the actors of a node are started: engines on their threads, then the hosts over them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ractor::{Actor, ActorRef};
use stellate_kernels::{Backend, Cpu, CpuOptions, KvShape};
use stellate_model::decoder::Decoder;

use super::{HostThreads, NodeOptions};
use crate::catalogue::Catalogue;
use crate::context_host::held::HeldBlocks;
use crate::context_host::{self, ContextHostArgs, ContextHostHandle};
use crate::directory::Directory;
use crate::engine::Engine;
use crate::error::OpenError;
use crate::link::HostId;
use crate::model::Model;
use crate::query_host::{self, Errands, QueryHostArgs, QueryHostHandle};
use crate::supervisor::{Supervisor, SupervisorArgs, SupervisorMsg};

/// Starts the context hosts that `options.hosts` lists, which run `model`. `node` are the first bytes of the node's id,
/// zeros in a process of its own.
pub async fn start_hosts(
    model: &Model,
    options: &NodeOptions,
    node: [u8; 6],
) -> Result<Vec<ContextHostHandle>, OpenError> {
    let (decoder, mut hosts) = (&model.decoder, Vec::new());
    for (index, threads) in options.hosts.iter().enumerate() {
        let index = u16::try_from(index).map_err(|error| not_started("a context host", error))?;
        let host = HostId::of_node(node, index);
        let args = ContextHostArgs {
            host,
            engine: engine(decoder, threads, host.to_string(), options)?,
            kv_shape: decoder.kv_shape(options.kv_format),
            capacity_bytes: options.capacity_bytes,
            queue_jobs: options.queue_jobs,
            stuck_after: options.stuck_after,
            clock: Arc::clone(&options.clock),
            disk: options.disk.clone(),
        };
        let started = context_host::start(args).await;
        hosts.push(started.map_err(|error| not_started(&format!("context host {host}"), error))?);
    }
    if let Some(disk) = &options.disk {
        disk.serve(&held_by(&hosts));
    }
    Ok(hosts)
}

/// What hosts hold.
pub(crate) fn held_by(hosts: &[ContextHostHandle]) -> Vec<Arc<HeldBlocks>> {
    hosts.iter().map(|host| Arc::clone(&host.held)).collect()
}

/// Starts a supervisor of these hosts and of those that join it.
pub async fn start_supervisor(
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

/// Starts the query host.
pub(super) async fn start_query(
    model: &Model,
    options: &NodeOptions,
    hosts: &Arc<Directory>,
    contexts: &Arc<Catalogue>,
    errands: Errands,
) -> Result<QueryHostHandle, OpenError> {
    let args = QueryHostArgs {
        engine: engine(&model.decoder, &options.query, "query".to_owned(), options)?,
        prompter: Arc::clone(&model.prompter),
        clock: Arc::clone(&options.clock),
        hosts: Arc::clone(hosts),
        contexts: Arc::clone(contexts),
        errands,
        is_durable: options.journal.is_some(),
        kv_shape: model.decoder.kv_shape(options.kv_format),
        capacity_bytes: options.capacity_bytes,
        max_sessions: options.max_sessions,
        queue_jobs: options.queue_jobs,
    };
    query_host::start(args).await.map_err(|error| not_started("the query host", error))
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

fn not_started(what: &str, error: impl std::fmt::Display) -> OpenError {
    OpenError::Start { what: what.to_owned(), reason: error.to_string() }
}
