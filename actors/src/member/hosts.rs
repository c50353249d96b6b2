//! The context hosts of a node as its agent orders them about: encode, promise room, copy from elsewhere ([`super::pull`]),
//! sum up, let go, and say what is there. What a host holds is in [`crate::context_host::held`]: looking at it waits for nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, ready};
use stellate_model::block::{Addresser, BlockId};
use stellate_model::decoder::Decoder;
use stellate_runtime::clock::Clock;

use super::pull::{BlockSources, Pull, checksum_of};
use crate::cancel::CancelToken;
use crate::checksum::Checksum;
use crate::cluster::agent::AgentHosts;
use crate::cluster::messages::{AgentRefusal, EncodeOrder, HeldBlock, HostInventory};
use crate::context_host::held::{Arrival, HeldBlocks, Way};
use crate::context_host::{ContextHostHandle, EncodeJob, Encoded, HostError};
use crate::disk::Disk;
use crate::disk::index::DiskFigures;
use crate::link::HostId;
use crate::port::HostPort;
use crate::progress::EncodeMeter;

/// How long an order to encode waits for a place in the queue of its host, and how often it looks for one.
const QUEUEING: Duration = Duration::from_secs(120);
const AGAIN: Duration = Duration::from_millis(100);

/// The context hosts of this process. Clones are the same.
#[derive(Clone, Debug)]
pub struct NodeHosts {
    hosts: Arc<BTreeMap<HostId, ContextHostHandle>>,
    decoder: Arc<Decoder>,
    sources: Arc<dyn BlockSources>,
    clock: Arc<dyn Clock>,
    max_rate: Option<u64>,
}

impl NodeHosts {
    /// These hosts, which run `decoder`. Copies come from `sources`, each at `max_rate` bytes a second at most, and are
    /// timed by `clock`.
    pub fn new(
        hosts: impl IntoIterator<Item = ContextHostHandle>,
        decoder: Arc<Decoder>,
        sources: Arc<dyn BlockSources>,
        clock: Arc<dyn Clock>,
        max_rate: Option<u64>,
    ) -> Self {
        let hosts = hosts.into_iter().map(|host| (host.host, host)).collect();
        Self { hosts: Arc::new(hosts), decoder, sources, clock, max_rate }
    }

    fn host(&self, host: HostId) -> Result<&ContextHostHandle, AgentRefusal> {
        self.hosts.get(&host).ok_or(AgentRefusal::NoSuchHost { host })
    }

    /// The job that an order comes to, if the model can run it.
    fn job(&self, order: EncodeOrder, cancel: CancelToken) -> Result<EncodeJob, AgentRefusal> {
        let cannot = |cause: String| AgentRefusal::Failed { cause };
        let nothing = || cannot("the order to encode names no tokens, or positions beyond any".to_owned());
        let format = self.host(order.host)?.held.budget().shape().format;
        if !order.is_addressed(&Addresser::new(self.decoder.fingerprint(), format)) {
            let block = order.block;
            return Err(cannot(format!(
                "block {block} is not the address of the tokens that the order names, in this node's model and format"
            )));
        }
        let job = order.into_job(EncodeMeter::default(), cancel).ok_or_else(nothing)?;
        let anchor = job.anchor.as_ref().map_or(&[][..], |anchor| &anchor.ids);
        for ids in [&job.ids, anchor] {
            self.decoder.check_ids(ids).map_err(|error| cannot(error.to_string()))?;
        }
        // Positions are counted in 32 bits; what a model was made for is looked at where the context is made.
        if u32::try_from(job.position + job.ids.len()).is_err() {
            return Err(nothing());
        }
        Ok(job)
    }

    /// Copies the anchor of a job to a host that is to keep it and does not hold it, from the host that the supervisor has
    /// named, if it has. Where it is not to be had, it is computed.
    pub(super) async fn bring_anchor(&self, host: HostId, job: &EncodeJob) {
        let anchor = job.anchor.as_ref().filter(|anchor| anchor.is_kept && !job.recompute_anchor);
        let Some((anchor, from)) = anchor.and_then(|anchor| Some((anchor, anchor.from?))) else { return };
        let Ok(target) = self.host(host) else { return };
        let held = Arc::clone(&target.held);
        // It may lie nearer than the other host.
        for ended in held.recall(&job.recalled()) {
            ended.wait().await;
        }
        let is_held = held.get(&anchor.id).or_else(|| held.get(&anchor.first_block)).is_some();
        if is_held
            || held.get(&job.id).is_some()
            || !matches!(held.promise(anchor.id, anchor.ids.len()), Ok(false))
        {
            return;
        }
        let copied = match self.begin_pull(host, anchor.id, from) {
            Ok(pull) => pull.run().await,
            Err(refusal) => Err(refusal),
        };
        match copied {
            Ok(_) => {
                let anchor_bytes = held.get(&anchor.id).map_or(0, |block| block.bytes() as u64);
                tracing::info!(anchor = %anchor.id, %host, %from, anchor_bytes, "an anchor was copied");
            }
            Err(refusal) => {
                drop(held.take_promised(&anchor.id));
                tracing::warn!(anchor = %anchor.id, %host, %from, %refusal, "an anchor was not copied; it is computed");
            }
        }
    }

    fn begin_encode(&self, order: EncodeOrder) -> Result<Encode, AgentRefusal> {
        let host = self.host(order.host)?.clone();
        // Noted before anything waits: an order to free the block that comes next takes this one back.
        let expected = host.held.expect(order.block, Way::Encode);
        let job = self.job(order, expected.revoked().clone())?;
        Ok(Encode { host, job, expected })
    }

    fn begin_pull(&self, host: HostId, block: BlockId, from: HostId) -> Result<Pull, AgentRefusal> {
        let target = self.host(host)?.clone();
        let arrival = target.held.expect(block, Way::Copy);
        Ok(Pull {
            arrival,
            target,
            block,
            from,
            near: self.hosts.get(&from).cloned(),
            sources: Arc::clone(&self.sources),
            clock: Arc::clone(&self.clock),
            max_rate: self.max_rate,
        })
    }

    fn promise(&self, host: HostId, block: BlockId, bytes: u64, tokens: u32) -> Result<bool, AgentRefusal> {
        let target = self.host(host)?;
        if target.vitals.is_stuck() {
            return Err(refusal(&target.held, HostError::Stuck { host }));
        }
        let held = &target.held;
        let needed = held.budget().shape().bytes_for(tokens as usize) as u64;
        if tokens == 0 || needed != bytes {
            let cause = format!(
                "{tokens} tokens are {needed} bytes on {host}, not {bytes}: it runs another model or format"
            );
            return Err(AgentRefusal::Failed { cause });
        }
        held.promise(block, tokens as usize).map_err(|error| refusal(held, error))
    }
}

/// A block to encode, as soon as it is its turn.
struct Encode {
    host: ContextHostHandle,
    job: EncodeJob,
    expected: Arrival,
}

impl Encode {
    async fn run(self) -> Result<bool, AgentRefusal> {
        let Self { host, job, expected } = self;
        if host.held.get(&job.id).is_some() {
            return Ok(false);
        }
        let mut waited = Duration::ZERO;
        let encoded = loop {
            match HostPort::encode(&host, job.clone()).await {
                // Who ordered it would take a host that refuses for one that is lost, and have its blocks encoded elsewhere.
                Err(HostError::Overloaded { .. }) if waited < QUEUEING && !job.cancel.is_cancelled() => {
                    tokio::time::sleep(AGAIN).await;
                    waited += AGAIN;
                }
                encoded => break encoded,
            }
        };
        drop(expected);
        Ok(encoded.map_err(|error| refusal(&host.held, error))? == Encoded::Fresh)
    }
}

impl AgentHosts for NodeHosts {
    fn encode(&self, order: EncodeOrder) -> BoxFuture<'static, Result<bool, AgentRefusal>> {
        let (encode, hosts) = (self.begin_encode(order), self.clone());
        Box::pin(async move {
            let encode = encode?;
            hosts.bring_anchor(encode.host.host, &encode.job).await;
            encode.run().await
        })
    }

    fn reserve(
        &self,
        host: HostId,
        block: BlockId,
        bytes: u64,
        tokens: u32,
    ) -> BoxFuture<'static, Result<bool, AgentRefusal>> {
        let recalled = self.host(host).map(|target| target.held.recall(&[block])).unwrap_or_default();
        if recalled.is_empty() {
            return Box::pin(ready(self.promise(host, block, bytes, tokens)));
        }
        // Noted now: an order to free the block that comes next takes this one back.
        let (hosts, expected) =
            (self.clone(), self.host(host).map(|target| target.held.expect(block, Way::Encode)));
        Box::pin(async move {
            for ended in recalled {
                ended.wait().await;
            }
            if expected?.revoked().is_cancelled() {
                return Err(AgentRefusal::Failed {
                    cause: "the block was freed before there was room".to_owned(),
                });
            }
            hosts.promise(host, block, bytes, tokens)
        })
    }

    fn pull(
        &self,
        host: HostId,
        block: BlockId,
        from: HostId,
    ) -> BoxFuture<'static, Result<Checksum, AgentRefusal>> {
        let pull = self.begin_pull(host, block, from);
        Box::pin(async move { pull?.run().await })
    }

    fn verify(&self, host: HostId, block: BlockId) -> BoxFuture<'static, Result<Checksum, AgentRefusal>> {
        let held = self.host(host).map(|target| target.held.get(&block));
        Box::pin(async move {
            let held = held?.ok_or(AgentRefusal::NoSuchBlock { host, block })?;
            checksum_of(held).await
        })
    }

    fn free(&self, host: HostId, blocks: Vec<BlockId>) -> BoxFuture<'static, ()> {
        let copies = self.host(host).map(|host| host.held.release(&blocks)).unwrap_or_default();
        Box::pin(async move {
            for copy in copies {
                copy.wait().await;
            }
        })
    }

    fn stuck(&self) -> Vec<HostId> {
        let stuck = self.hosts.values().filter(|host| host.held.is_open() && host.vitals.is_stuck());
        stuck.map(|host| host.host).collect()
    }

    fn inventory(&self) -> BoxFuture<'static, Vec<HostInventory>> {
        let named =
            |list: Vec<(BlockId, u64)>| list.into_iter().map(|(id, bytes)| HeldBlock { id, bytes }).collect();
        let working = self.hosts.values().filter(|host| host.held.is_open());
        let inventory = working.inspect(|host| host.held.expire_promises()).map(|host| HostInventory {
            host: host.host,
            capacity_bytes: host.budget.capacity_bytes() as u64,
            blocks: named(host.held.list()),
            inbound: named(host.held.inbound()),
            from_disk: named(host.held.from_disk()),
            computed_blocks: host.held.computed(),
            encode_tokens_per_s: host.rates.encode.per_second(),
            copy_bytes_per_s: host.rates.copy.per_second(),
        });
        Box::pin(ready(inventory.collect()))
    }

    fn disk(&self) -> Option<DiskFigures> {
        self.hosts.values().find_map(|host| host.held.disk()).map(Disk::figures)
    }
}

/// Why a host did not do its part, as an agent says it.
fn refusal(held: &HeldBlocks, error: HostError) -> AgentRefusal {
    let budget = held.budget();
    match error {
        HostError::Full(full) => AgentRefusal::Full {
            needed_bytes: budget.shape().bytes_for(full.needed_tokens) as u64,
            free_bytes: (budget.capacity_bytes() - budget.used_bytes()) as u64,
        },
        HostError::Cancelled => {
            AgentRefusal::Failed { cause: "the block was freed before it was encoded".to_owned() }
        }
        error => AgentRefusal::Failed { cause: error.to_string() },
    }
}
