//! A node's agent: carries out what the supervisor orders on the context hosts of its node, refuses supervisors that were
//! replaced, and reports what is there. The hosts, what is kept on disk and the way to the supervisor are behind traits.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use stellate_model::block::BlockId;
use stellate_runtime::clock::Clock;

use crate::checksum::Checksum;
use crate::disk::index::DiskFigures;
use crate::link::HostId;

use super::messages::{
    AgentOrder, AgentRefusal, AgentReply, AgentRequest, EncodeOrder, HostInventory, Inventory, NodeKey,
    Stamp, SupervisorRequest,
};
use super::term::Term;

/// Time between two inventories, which are heartbeats too.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// What an agent refuses: orders of supervisors that were replaced, and to free what was claimed since.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    highest: Term,
    /// By host and block: term and version of the latest order that wants it there.
    claims: BTreeMap<(HostId, BlockId), (Term, u64)>,
}

impl Fence {
    /// A fence that has seen the terms up to `highest`.
    pub fn new(highest: Term) -> Self {
        Self { highest, claims: BTreeMap::new() }
    }

    /// The highest term seen.
    pub fn highest(&self) -> Term {
        self.highest
    }

    /// Lets an order of a supervisor of `term` pass. `Some` is a term that must be on disk before the order is followed.
    ///
    /// # Errors
    /// [`AgentRefusal::Fenced`].
    pub fn admit(&mut self, term: Term) -> Result<Option<Term>, AgentRefusal> {
        if term < self.highest {
            return Err(AgentRefusal::Fenced { term, highest: self.highest });
        }
        let is_new = term > self.highest;
        self.highest = term;
        Ok(is_new.then_some(term))
    }

    /// Notes that an order wants a block on a host.
    pub fn claim(&mut self, host: HostId, block: BlockId, by: (Term, u64)) {
        let claim = self.claims.entry((host, block)).or_insert(by);
        *claim = by.max(*claim);
    }

    /// Those of `blocks` that nobody has claimed since the order to free them, without their claims.
    pub fn freeable(&mut self, host: HostId, blocks: &[BlockId], by: (Term, u64)) -> Vec<BlockId> {
        let is_free = |block: &&BlockId| self.claims.get(&(host, **block)).is_none_or(|claim| *claim <= by);
        let free: Vec<_> = blocks.iter().filter(is_free).copied().collect();
        for block in &free {
            self.claims.remove(&(host, *block));
        }
        free
    }
}

/// The context hosts of a node, as its agent uses them.
pub trait AgentHosts: Send + Sync + fmt::Debug + 'static {
    /// Encodes a block unless it is held; tells whether it was encoded.
    fn encode(&self, order: EncodeOrder) -> BoxFuture<'static, Result<bool, AgentRefusal>>;
    /// Promises room for a block of so many bytes and tokens, unless the host holds it; tells whether it does.
    fn reserve(
        &self,
        host: HostId,
        block: BlockId,
        bytes: u64,
        tokens: u32,
    ) -> BoxFuture<'static, Result<bool, AgentRefusal>>;
    /// Copies a block from another host into the room that was promised, and seals it if it is what the source sent; an
    /// order to encode it that comes meanwhile waits for the copy. The checksum that the source named.
    fn pull(
        &self,
        host: HostId,
        block: BlockId,
        from: HostId,
    ) -> BoxFuture<'static, Result<Checksum, AgentRefusal>>;
    /// The checksum of a block as it lies in the store.
    fn verify(&self, host: HostId, block: BlockId) -> BoxFuture<'static, Result<Checksum, AgentRefusal>>;
    /// Lets go of blocks, of promised room, and of copies under way. Takes effect before whatever is asked later.
    fn free(&self, host: HostId, blocks: Vec<BlockId>) -> BoxFuture<'static, ()>;
    /// The hosts whose device thread makes no progress.
    fn stuck(&self) -> Vec<HostId> {
        Vec::new()
    }
    /// What the hosts have.
    fn inventory(&self) -> BoxFuture<'static, Vec<HostInventory>>;
    /// The disk that they share, in figures, if the node has one.
    fn disk(&self) -> Option<DiskFigures> {
        None
    }
}

/// What an agent keeps on disk.
pub trait AgentStore: Send + Sync + fmt::Debug + 'static {
    /// The highest term seen, and how often the agent has started, this start counted.
    ///
    /// # Errors
    /// In words.
    fn start(&mut self) -> BoxFuture<'_, Result<(Term, u64), String>>;
    /// Keeps a term; returns when it is safe.
    ///
    /// # Errors
    /// In words; the order that brought the term is then refused.
    fn raise(&mut self, term: Term) -> BoxFuture<'_, Result<(), String>>;
}

/// The way from an agent to the supervisor. What does not arrive is sent again a second later.
pub trait Uplink: Send + Sync + fmt::Debug + 'static {
    /// Sends a request whose reply does not matter.
    fn send(&self, request: SupervisorRequest);
}

/// What an agent starts with.
#[derive(Debug)]
pub struct AgentArgs {
    /// Its node.
    pub node: NodeKey,
    /// Its hosts.
    pub hosts: Arc<dyn AgentHosts>,
    /// What it keeps.
    pub store: Box<dyn AgentStore>,
    /// The way to the supervisor.
    pub uplink: Arc<dyn Uplink>,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
}

/// What an agent is asked.
#[derive(Debug, RactorMessage)]
pub enum AgentMsg {
    /// Follow an order.
    Order(AgentOrder, RpcReplyPort<AgentReply>),
    /// Blocks are about to be encoded on a host by its own process, as a supervisor of this term and version placed them.
    /// Answered when every order to free some of them that came before has been followed.
    Claim(HostId, Vec<BlockId>, (Term, u64), RpcReplyPort<()>),
    /// Report what is there; sent by itself.
    Report,
}

/// The actor.
#[derive(Debug)]
pub struct Agent;

/// What an agent knows.
#[derive(Debug)]
pub struct AgentState {
    node: NodeKey,
    hosts: Arc<dyn AgentHosts>,
    store: Box<dyn AgentStore>,
    uplink: Arc<dyn Uplink>,
    clock: Arc<dyn Clock>,
    up_since: Duration,
    fence: Fence,
    moments: Moments,
}

/// Numbers what happens on a node, so that an inventory can be told to be older than a copy.
#[derive(Clone, Debug)]
struct Moments {
    start: u64,
    count: Arc<AtomicU64>,
}

impl Moments {
    fn next(&self) -> Stamp {
        Stamp { start: self.start, count: self.count.fetch_add(1, Ordering::AcqRel) + 1 }
    }
}

impl Actor for Agent {
    type Msg = AgentMsg;
    type State = AgentState;
    type Arguments = AgentArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<AgentMsg>,
        args: AgentArgs,
    ) -> Result<AgentState, ActorProcessingErr> {
        let AgentArgs { node, hosts, mut store, uplink, clock } = args;
        let (highest, start) = store.start().await?;
        let moments = Moments { start, count: Arc::new(AtomicU64::new(0)) };
        myself.cast(AgentMsg::Report)?;
        drop(myself.send_interval(HEARTBEAT, || AgentMsg::Report));
        let up_since = clock.now();
        Ok(AgentState { node, hosts, store, uplink, clock, up_since, fence: Fence::new(highest), moments })
    }

    async fn handle(
        &self,
        _: ActorRef<AgentMsg>,
        message: AgentMsg,
        state: &mut AgentState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            AgentMsg::Order(order, reply) => state.follow(order, reply).await,
            AgentMsg::Claim(host, blocks, by, reply) => {
                if let Err(refusal) = state.admit(by.0).await {
                    // The blocks are encoded all the same, and show in the inventory: nothing is ordered here.
                    tracing::debug!(%refusal, "this node's query side has not heard of the latest supervisor");
                }
                blocks.into_iter().for_each(|block| state.fence.claim(host, block, by));
                // Who asked may have given up.
                let _ = reply.send(());
            }
            AgentMsg::Report => {
                let (stuck, inventory) = (state.hosts.stuck(), state.inventory().await);
                state.uplink.send(match stuck.is_empty() {
                    true => SupervisorRequest::Inventory(inventory),
                    false => SupervisorRequest::StuckInventory { inventory, stuck },
                });
            }
        }
        Ok(())
    }
}

impl AgentState {
    /// Follows an order. What takes long goes on beside, so that the mailbox stays free.
    async fn follow(&mut self, order: AgentOrder, reply: RpcReplyPort<AgentReply>) {
        if let Err(refusal) = self.admit(order.term).await {
            drop(reply.send(AgentReply::Refused(refusal)));
            return;
        }
        let (by, moments) = ((order.term, order.version), self.moments.clone());
        match order.request {
            AgentRequest::Encode(encode) => {
                encode.kept().for_each(|block| self.fence.claim(encode.host, block, by));
                answer(reply, self.hosts.encode(encode), |fresh| AgentReply::Encoded { fresh });
            }
            AgentRequest::Reserve { host, block, bytes, tokens } => {
                self.fence.claim(host, block, by);
                answer(reply, self.hosts.reserve(host, block, bytes, tokens), |held| AgentReply::Reserved {
                    held,
                });
            }
            AgentRequest::Pull { host, block, from } => {
                let pulled = move |checksum| AgentReply::Pulled { checksum, at: moments.next() };
                answer(reply, self.hosts.pull(host, block, from), pulled);
            }
            AgentRequest::Verify { host, block } => {
                let verified = move |checksum| AgentReply::Checksum { checksum, at: moments.next() };
                answer(reply, self.hosts.verify(host, block), verified);
            }
            AgentRequest::Free { host, blocks } => {
                // Waited for: an order to encode one of these that comes next must find it gone.
                self.hosts.free(host, self.fence.freeable(host, &blocks, by)).await;
                drop(reply.send(AgentReply::Freed { at: moments.next() }));
            }
            AgentRequest::Inventory => drop(reply.send(AgentReply::Inventory(self.inventory().await))),
        }
    }

    /// Lets in who speaks for the latest supervisor: orders of query nodes too carry the term of the one that has placed what
    /// they encode, so that a term is known wherever something was placed under it.
    async fn admit(&mut self, term: Term) -> Result<(), AgentRefusal> {
        let before = self.fence.highest;
        if let Some(term) = self.fence.admit(term)? {
            self.store.raise(term).await.map_err(|cause| {
                self.fence.highest = before;
                AgentRefusal::Failed { cause }
            })?;
        }
        Ok(())
    }

    async fn inventory(&self) -> Inventory {
        // Before the hosts are asked: whatever happens meanwhile is later.
        let at = self.moments.next();
        let up_ms = self.clock.now().saturating_sub(self.up_since).as_millis() as u64;
        let seen = self.fence.highest;
        let hosts = self.hosts.inventory().await;
        Inventory { node: self.node, at, up_ms, seen, hosts, disk: self.hosts.disk() }
    }
}

/// Answers once the work is done.
fn answer<T: Send + 'static>(
    reply: RpcReplyPort<AgentReply>,
    work: BoxFuture<'static, Result<T, AgentRefusal>>,
    done: impl FnOnce(T) -> AgentReply + Send + 'static,
) {
    tokio::spawn(async move {
        let answer = work.await.map_or_else(AgentReply::Refused, done);
        // Who asked may have given up.
        let _ = reply.send(answer);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(counter: u64) -> Term {
        Term { counter, node: NodeKey([2; 6]) }
    }

    #[test]
    fn a_replaced_supervisor_is_refused_and_told_by_whom() {
        let mut fence = Fence::new(term(3));
        assert_eq!(fence.admit(term(2)), Err(AgentRefusal::Fenced { term: term(2), highest: term(3) }));
        assert_eq!((fence.admit(term(3)), fence.admit(term(5))), (Ok(None), Ok(Some(term(5)))));
        assert_eq!(fence.admit(term(5)), Ok(None));
        assert!(fence.admit(term(4)).is_err());
        let lower = Term { node: NodeKey([1; 6]), ..term(5) };
        assert!(fence.admit(lower).is_err(), "of two that count the same, one is later");
    }

    #[test]
    fn what_was_claimed_since_is_not_freed() {
        let (host, block) = (HostId(1), BlockId::from_bytes([1; 32]));
        let mut fence = Fence::default();
        fence.claim(host, block, (term(1), 8));
        assert_eq!(fence.freeable(host, &[block], (term(1), 7)), []);
        assert_eq!(
            fence.freeable(host, &[block], (term(2), 1)),
            [block],
            "a later term counts for more than a version"
        );
    }
}
