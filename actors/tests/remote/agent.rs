//! The hosts of a node as its agent orders them about: blocks that are pulled from other nodes, room that is promised to them,
//! and what is answered while a block is being encoded.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorRef, call};
use stellate_actors::KvFormat;
use stellate_actors::budget::{BudgetedBlock, KvBudget};
use stellate_actors::checksum::Checksum;
use stellate_actors::cluster::agent::{Agent, AgentArgs, AgentHosts, AgentMsg, Uplink};
use stellate_actors::cluster::messages::{
    AgentOrder, AgentRefusal, AgentReply, AgentRequest, AnchorOrder, EncodeOrder, HostInventory, NodeKey,
    SupervisorRequest,
};
use stellate_actors::cluster::term::Term;
use stellate_actors::context_host::{ContextHostHandle, Encoded};
use stellate_actors::link::{Fold, HostId, HostLink};
use stellate_actors::member::hosts::NodeHosts;
use stellate_actors::member::pull::BlockSources;
use stellate_actors::member::store::AgentRecords;
use stellate_actors::port::HostPort;
use stellate_actors::progress::EncodeMeter;
use stellate_actors::remote::frames::{BLOCK, BlockHead, DONE, Done, FETCH, Fetch, PIECE, Piece};
use stellate_actors::remote::{DialFailure, Dialer, Landing, NodeDialer, fetch_block, put_block};
use stellate_model::block::BlockId;
use stellate_runtime::clock::SystemClock;
use stellate_runtime::store::{Store, StoreHandle, StoreOptions};
use stellate_runtime::transport::{Connection, ConnectionClass, NetworkHandle};
use tokio::sync::{Semaphore, watch};

use crate::blocks::{Fault, held, limping};
use crate::support::{Asked, Asker, BLOCK_TOKENS, HOST, Model, queries, real_node, request};

const TARGET: HostId = HostId(1);

/// The ways to the nodes of a test, by the hosts that blocks are copied from.
struct Sources {
    network: NetworkHandle,
    nodes: BTreeMap<HostId, Arc<NodeDialer>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl BlockSources for Sources {
    fn connect(&self, host: HostId) -> BoxFuture<'_, Result<Connection, DialFailure>> {
        Box::pin(async move {
            let dialer = Arc::clone(self.nodes.get(&host).ok_or(DialFailure::Gone)?);
            self.network.spawn(async move { dialer.connect().await }).await.unwrap()
        })
    }
}

fn sources(asker: &Asker, nodes: &[(HostId, &Asked)]) -> Arc<Sources> {
    let dialer =
        |&(host, node): &(HostId, &Asked)| (host, Arc::new(asker.dialer(node, ConnectionClass::Bulk)));
    Arc::new(Sources { network: asker.network.handle(), nodes: nodes.iter().map(dialer).collect() })
}

fn agent_of(model: &Model, hosts: &[&ContextHostHandle], sources: Arc<Sources>) -> NodeHosts {
    let clock = Arc::new(SystemClock::new());
    NodeHosts::new(hosts.iter().copied().cloned(), Arc::clone(&model.decoder), sources, clock, None)
}

/// Another node whose host holds the blocks, and a host of this one that holds none.
struct Pair {
    asker: Asker,
    model: Model,
    origin: ContextHostHandle,
    target: ContextHostHandle,
}

impl Pair {
    fn new(format: KvFormat) -> Self {
        let (asker, model) = (Asker::new(), Model::new(format));
        let (origin, target) = asker.runtime.block_on(async {
            let origin = model.host(HOST).await;
            model.encode(&origin).await;
            (origin, model.host(TARGET).await)
        });
        Self { asker, model, origin, target }
    }

    /// This node's hosts, which copy from `node`.
    fn agent(&self, node: &Asked) -> NodeHosts {
        agent_of(&self.model, &[&self.target], sources(&self.asker, &[(HOST, node)]))
    }

    fn original(&self, index: usize) -> Arc<BudgetedBlock> {
        self.asker.runtime.block_on(held(&self.origin, self.model.blocks[index])).unwrap()
    }

    fn order(&self, index: usize) -> EncodeOrder {
        EncodeOrder::of(TARGET, &self.model.job(index))
    }
}

fn checksum(block: &BudgetedBlock) -> Checksum {
    Checksum::of(block.raw())
}

async fn reserve(hosts: &NodeHosts, id: BlockId, like: &BudgetedBlock) -> Result<bool, AgentRefusal> {
    hosts.reserve(TARGET, id, like.bytes() as u64, like.len() as u32).await
}

async fn inventory(hosts: &NodeHosts) -> HostInventory {
    hosts.inventory().await.pop().unwrap()
}

/// Waits until copies have brought some bytes.
async fn wait_for_bytes(hosts: &NodeHosts) {
    while inventory(hosts).await.inbound.iter().all(|inbound| inbound.bytes == 0) {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_block_that_was_pulled_from_another_node_is_the_same_bit_for_bit_and_answers_alike() {
    for format in KvFormat::ALL {
        let pair = Pair::new(format);
        let node = real_node(&pair.asker, "origin", &pair.model, &pair.origin);
        let agent = pair.agent(&node);
        for (index, &id) in pair.model.blocks.iter().enumerate() {
            let original = pair.original(index);
            pair.asker.runtime.block_on(async {
                // Who knows a block by its bytes alone counts the tokens that as many bytes would hold.
                let tokens = original.len().next_multiple_of(64) as u32;
                let bytes = original.bytes() as u64;
                assert_eq!(agent.reserve(TARGET, id, bytes, tokens).await, Ok(false));
                assert_eq!(agent.pull(TARGET, id, HOST).await, Ok(checksum(&original)));
                let copy = held(&pair.target, id).await.unwrap();
                assert_eq!((copy.len(), copy.raw()), (original.len(), original.raw()), "{format}");
                assert_eq!(agent.verify(TARGET, id).await, Ok(checksum(&original)));
                assert_eq!(reserve(&agent, id, &original).await, Ok(true), "it is held");
                assert_eq!(agent.pull(TARGET, id, HOST).await, Ok(checksum(&original)), "it is held");
            });
        }
        let inventory = pair.asker.runtime.block_on(inventory(&agent));
        let listed: Vec<_> = inventory.blocks.iter().map(|block| block.id).collect();
        assert!(pair.model.blocks.iter().all(|id| listed.contains(id)) && inventory.inbound.is_empty());
        assert_eq!(
            inventory.blocks.iter().map(|block| block.bytes).sum::<u64>(),
            pair.target.budget.used_bytes() as u64
        );
        assert!(inventory.copy_bytes_per_s > 0);

        let (mut one, mut other) = (pair.origin.link(), pair.target.link());
        let blocks: Arc<[BlockId]> = pair.model.blocks.clone().into();
        let shape = pair.model.shape();
        let ask = |layer| request(&blocks, layer, Fold::ByHost, queries(shape, 3, layer));
        for layer in 0..shape.layers {
            one.post(ask(layer)).unwrap();
            other.post(ask(layer)).unwrap();
            assert_eq!(one.wait().unwrap().partials, other.wait().unwrap().partials, "{format}");
        }
    }
}

#[test]
fn a_pull_that_was_cut_off_goes_on_where_it_stood_and_one_of_other_bytes_begins_again() {
    for fault in [Fault::Reset, Fault::SkipsAPiece, Fault::OtherBytes] {
        let pair = Pair::new(KvFormat::F32);
        let (original, id) = (pair.original(0), pair.model.blocks[0]);
        let (node, asked) = limping(&pair.asker, Arc::clone(&original), fault);
        let agent = pair.agent(&node);
        pair.asker.runtime.block_on(async {
            reserve(&agent, id, &original).await.unwrap();
            assert_eq!(agent.pull(TARGET, id, HOST).await, Ok(checksum(&original)), "{fault:?}");
            assert_eq!(held(&pair.target, id).await.unwrap().raw(), original.raw());
        });
        let again = if fault == Fault::OtherBytes { 0 } else { original.bytes() as u64 / 2 };
        assert_eq!(*asked.lock().unwrap(), [0, again], "{fault:?}");
    }
}

/// Serves half of `block`, and the rest once the gate is open.
fn gated(asker: &Asker, block: Arc<BudgetedBlock>) -> (Asked, watch::Sender<bool>) {
    let (gate, opened) = watch::channel(false);
    let node = asker.node("gated", move |connection: Connection| {
        let (block, opened) = (Arc::clone(&block), opened.clone());
        async move {
            while let Ok((mut sender, mut receiver)) = connection.accept().await {
                let fetch: Fetch = receiver.expect().await.unwrap().expect(FETCH).unwrap();
                let head = BlockHead::new(block.shape(), block.len(), fetch.offset);
                sender.send(BLOCK, &head, &[]).await.unwrap();
                let middle = block.bytes() / 2;
                for (offset, piece) in [(0, &block.raw()[..middle]), (middle, &block.raw()[middle..])] {
                    if offset > 0 && opened.clone().wait_for(|&is_open| is_open).await.is_err() {
                        return;
                    }
                    if sender.send(PIECE, &Piece { offset: offset as u64 }, &[piece]).await.is_err() {
                        break;
                    }
                }
                let _ = sender.send(DONE, &Done { checksum: checksum(&block) }, &[]).await;
                sender.finish();
            }
        }
    });
    (node, gate)
}

#[test]
fn a_pull_that_is_freed_leaves_no_bytes_behind_and_is_not_held_when_it_comes() {
    let pair = Pair::new(KvFormat::F32);
    let (original, id) = (pair.original(0), pair.model.blocks[0]);
    let (node, gate) = gated(&pair.asker, Arc::clone(&original));
    let agent = pair.agent(&node);
    pair.asker.runtime.block_on(async {
        reserve(&agent, id, &original).await.unwrap();
        let pulling = tokio::spawn(agent.pull(TARGET, id, HOST));
        wait_for_bytes(&agent).await;
        assert_eq!(pair.target.budget.used_bytes(), original.bytes());
        agent.free(TARGET, vec![id]).await;
        assert_eq!(pair.target.budget.used_bytes(), 0);
        gate.send_replace(true);
        assert!(matches!(pulling.await.unwrap(), Err(AgentRefusal::Failed { .. })));
        assert!(held(&pair.target, id).await.is_none() && inventory(&agent).await.inbound.is_empty());

        // An order to free that comes before the copy has begun, too.
        reserve(&agent, id, &original).await.unwrap();
        let late = agent.pull(TARGET, id, HOST);
        let free = agent.free(TARGET, vec![id]);
        let (late, ()) = tokio::join!(late, free);
        assert!(matches!(late, Err(AgentRefusal::Failed { .. })), "{late:?}");
        assert_eq!(pair.target.budget.used_bytes(), 0);

        // What is asked later is done as if nothing had been.
        reserve(&agent, id, &original).await.unwrap();
        assert_eq!(agent.pull(TARGET, id, HOST).await, Ok(checksum(&original)));
    });
}

#[test]
fn an_order_to_encode_a_block_that_is_being_pulled_waits_for_the_pull() {
    let pair = Pair::new(KvFormat::F32);
    let (original, id) = (pair.original(0), pair.model.blocks[0]);
    let (node, gate) = gated(&pair.asker, Arc::clone(&original));
    let agent = pair.agent(&node);
    pair.asker.runtime.block_on(async {
        reserve(&agent, id, &original).await.unwrap();
        let pulling = tokio::spawn(agent.pull(TARGET, id, HOST));
        wait_for_bytes(&agent).await;
        let ordered = tokio::spawn(agent.encode(pair.order(0)));
        let own = pair.target.clone();
        let job = pair.model.job(0);
        let own = tokio::spawn(async move { HostPort::encode(&own, job).await });
        // Another block is encoded meanwhile; the one that is being pulled is not.
        assert_eq!(agent.encode(pair.order(1)).await, Ok(true));
        assert!(held(&pair.target, id).await.is_none());
        gate.send_replace(true);
        assert_eq!(pulling.await.unwrap(), Ok(checksum(&original)));
        assert_eq!(ordered.await.unwrap(), Ok(false), "it has come");
        assert_eq!(own.await.unwrap(), Ok(Encoded::Held));
    });
}

#[test]
fn a_block_that_differs_from_its_source_or_is_not_to_be_had_is_told() {
    let pair = Pair::new(KvFormat::F32);
    let node = real_node(&pair.asker, "origin", &pair.model, &pair.origin);
    let agent = pair.agent(&node);
    let (original, id) = (pair.original(0), pair.model.blocks[0]);
    let foreign = BlockId::from_bytes([7; 32]);
    pair.asker.runtime.block_on(async {
        let mut changed = pair.target.budget.allocate(original.len()).unwrap();
        changed.raw_mut().copy_from_slice(original.raw());
        changed.raw_mut()[1000] ^= 1;
        changed.set_len(original.len());
        pair.target.held.insert(id, changed).unwrap();
        assert_ne!(agent.verify(TARGET, id).await, Ok(checksum(&original)));

        let missing = |host| AgentRefusal::NoSuchBlock { host, block: foreign };
        assert_eq!(agent.verify(TARGET, foreign).await, Err(missing(TARGET)));
        let pulled = agent.pull(TARGET, foreign, HOST).await;
        assert!(matches!(pulled, Err(AgentRefusal::Failed { .. })), "no room was promised: {pulled:?}");
        reserve(&agent, foreign, &original).await.unwrap();
        assert_eq!(agent.pull(TARGET, foreign, HOST).await, Err(missing(HOST)));
        assert_eq!(agent.pull(TARGET, foreign, HostId(9)).await, Err(missing(HostId(9))));
        let nobody = AgentRefusal::NoSuchHost { host: HostId(9) };
        assert_eq!(agent.verify(HostId(9), id).await, Err(nobody));
        let shape = agent.reserve(TARGET, id, 17, 100).await;
        assert!(matches!(shape, Err(AgentRefusal::Failed { .. })), "{shape:?}");
    });
}

#[test]
fn a_full_store_refuses_with_the_numbers_and_loses_nothing() {
    let pair = Pair::new(KvFormat::F32);
    let node = real_node(&pair.asker, "origin", &pair.model, &pair.origin);
    let agent = pair.agent(&node);
    let (original, id) = (pair.original(0), pair.model.blocks[0]);
    let shape = pair.target.budget.shape();
    pair.asker.runtime.block_on(async {
        assert_eq!(agent.encode(pair.order(0)).await, Ok(true));
        let tokens = pair.target.budget.free_tokens() as u32 + 1;
        let needed_bytes = shape.bytes_for(tokens as usize) as u64;
        let free_bytes = (pair.target.budget.capacity_bytes() - pair.target.budget.used_bytes()) as u64;
        let full = AgentRefusal::Full { needed_bytes, free_bytes };
        let second = pair.model.blocks[1];
        assert_eq!(agent.reserve(TARGET, second, needed_bytes, tokens).await, Err(full));
        // All that is left is promised: there is no room to encode.
        let rest = tokens - 1;
        let bytes = shape.bytes_for(rest as usize) as u64;
        assert_eq!(agent.reserve(TARGET, BlockId::from_bytes([7; 32]), bytes, rest).await, Ok(false));
        let encoded = agent.encode(pair.order(1)).await;
        assert!(matches!(encoded, Err(AgentRefusal::Full { .. })), "{encoded:?}");
        assert_eq!(agent.verify(TARGET, id).await, Ok(checksum(&original)));
        agent.free(TARGET, vec![BlockId::from_bytes([7; 32])]).await;
        assert_eq!(agent.encode(pair.order(1)).await, Ok(true));
    });
}

/// A job whose encoding stands still after the first chunk until the gate is dropped, or has a permit for each chunk.
fn standing(
    pair: &Pair,
    index: usize,
) -> (impl Future<Output = Option<Encoded>>, Arc<Semaphore>, watch::Receiver<bool>) {
    let (gate, runtime) = (Arc::new(Semaphore::new(0)), pair.asker.runtime.handle().clone());
    let (stands, standing) = watch::channel(false);
    let (waited, mut job) = (Arc::clone(&gate), pair.model.job(index));
    job.meter = EncodeMeter::new(move |_| {
        stands.send_replace(true);
        // On the device thread, which is to stand still.
        if let Ok(permit) = runtime.block_on(waited.acquire()) {
            permit.forget();
        }
    });
    let host = pair.target.clone();
    let encoding = pair.asker.runtime.spawn(async move { HostPort::encode(&host, job).await.ok() });
    (async move { encoding.await.unwrap() }, gate, standing)
}

#[test]
fn whatever_is_asked_is_answered_while_a_block_is_being_encoded() {
    let pair = Pair::new(KvFormat::F32);
    let node = real_node(&pair.asker, "origin", &pair.model, &pair.origin);
    // Seen from outside, this node's host is served as well.
    let own = real_node(&pair.asker, "own", &pair.model, &pair.target);
    let bulk = pair.asker.bulk(&own);
    let agent = pair.agent(&node);
    let (first, second) = (pair.model.blocks[0], pair.model.blocks[1]);
    let (original, other) = (pair.original(0), pair.original(1));
    pair.asker.runtime.block_on(async { agent.encode(pair.order(0)).await.unwrap() });
    let (encoding, gate, mut standing) = standing(&pair, 2);
    pair.asker.runtime.block_on(async {
        standing.wait_for(|&stands| stands).await.unwrap();
        assert_eq!(inventory(&agent).await.blocks.len(), 1);
        assert!(inventory(&agent).await.encode_tokens_per_s > 0);
        assert_eq!(agent.encode(pair.order(0)).await, Ok(false), "it is held");
        assert_eq!(agent.verify(TARGET, first).await, Ok(checksum(&original)));
        assert_eq!(held(&pair.target, first).await.unwrap().raw(), original.raw());
        let budget = KvBudget::new(pair.target.budget.shape(), usize::MAX);
        let mut landing = Landing::new(budget.allocate(BLOCK_TOKENS).unwrap(), BLOCK_TOKENS);
        fetch_block(&bulk, TARGET, first, &mut landing, None).await.unwrap();
        assert_eq!(landing.into_block().unwrap().raw(), original.raw());

        assert_eq!(reserve(&agent, second, &other).await, Ok(false));
        assert_eq!(agent.pull(TARGET, second, HOST).await, Ok(checksum(&other)));
        agent.free(TARGET, vec![second]).await;
        assert!(held(&pair.target, second).await.is_none());
        put_block(&bulk, TARGET, second, other, None).await.unwrap();
        assert_eq!(inventory(&agent).await.blocks.len(), 2);
        gate.close();
        assert_eq!(encoding.await, Some(Encoded::Fresh));
        assert_eq!(inventory(&agent).await.blocks.len(), 3);
    });
}

#[test]
fn a_block_that_is_freed_while_it_is_encoded_is_not_held_and_can_be_encoded_again() {
    let pair = Pair::new(KvFormat::F32);
    let agent = agent_of(&pair.model, &[&pair.target], sources(&pair.asker, &[]));
    let id = pair.model.blocks[0];
    let (encoding, gate, mut standing) = standing(&pair, 0);
    pair.asker.runtime.block_on(async {
        standing.wait_for(|&stands| stands).await.unwrap();
        // One waits behind it; both were asked before the order to free.
        let waits = agent.encode(pair.order(0));
        agent.free(TARGET, vec![id]).await;
        let later = agent.encode(pair.order(0));
        gate.close();
        assert_eq!(encoding.await, None);
        assert!(matches!(waits.await, Err(AgentRefusal::Failed { .. })));
        assert_eq!(later.await, Ok(true), "it was asked after the order to free");
        assert_eq!(inventory(&agent).await.blocks.len(), 1);
        // A reader keeps what it reads, and its bytes are counted until it lets go.
        let reader = held(&pair.target, id).await.unwrap();
        agent.free(TARGET, vec![id]).await;
        assert!(held(&pair.target, id).await.is_none());
        assert_eq!(pair.target.budget.used_bytes(), reader.bytes());
        drop(reader);
        assert_eq!(pair.target.budget.used_bytes(), 0);
    });
}

#[test]
fn a_block_that_is_put_fills_the_room_that_was_promised_to_it() {
    let pair = Pair::new(KvFormat::F32);
    let own = real_node(&pair.asker, "own", &pair.model, &pair.target);
    let bulk = pair.asker.bulk(&own);
    let agent = agent_of(&pair.model, &[&pair.target], sources(&pair.asker, &[]));
    let (original, another, id) = (pair.original(0), pair.original(1), pair.model.blocks[0]);
    pair.asker.runtime.block_on(async {
        reserve(&agent, id, &original).await.unwrap();
        // Nothing else is free.
        let (rest, shape) = (pair.target.budget.free_tokens(), pair.target.budget.shape());
        let other = BlockId::from_bytes([7; 32]);
        agent.reserve(TARGET, other, shape.bytes_for(rest) as u64, rest as u32).await.unwrap();
        assert_eq!(pair.target.budget.free_tokens(), 0);
        let put = put_block(&bulk, TARGET, pair.model.blocks[1], Arc::clone(&another), None).await;
        assert!(put.is_err(), "no room was promised to another block");
        put_block(&bulk, TARGET, id, Arc::clone(&original), None).await.unwrap();
        assert_eq!(held(&pair.target, id).await.unwrap().raw(), original.raw());
        agent.free(TARGET, vec![other]).await;
        assert_eq!(pair.target.budget.used_bytes(), original.bytes());
    });
}

#[test]
fn a_block_moves_between_two_hosts_of_one_node_through_memory() {
    let pair = Pair::new(KvFormat::Bf16);
    let agent = agent_of(&pair.model, &[&pair.origin, &pair.target], sources(&pair.asker, &[]));
    let (original, id) = (pair.original(2), pair.model.blocks[2]);
    pair.asker.runtime.block_on(async {
        reserve(&agent, id, &original).await.unwrap();
        assert_eq!(agent.pull(TARGET, id, HOST).await, Ok(checksum(&original)));
        let copy = held(&pair.target, id).await.unwrap();
        assert_eq!((copy.len(), copy.raw()), (original.len(), original.raw()));
        agent.free(HOST, vec![id]).await;
        assert!(held(&pair.origin, id).await.is_none());
        assert!(agent.verify(TARGET, id).await.is_ok());
    });
}

#[test]
fn a_host_that_has_stopped_holds_nothing_and_is_in_no_inventory() {
    let pair = Pair::new(KvFormat::F32);
    let agent = agent_of(&pair.model, &[&pair.origin], sources(&pair.asker, &[]));
    pair.asker.runtime.block_on(async {
        assert_eq!(inventory(&agent).await.blocks.len(), 3);
        pair.origin.actor.stop_and_wait(None, None).await.unwrap();
        assert!(agent.inventory().await.is_empty());
        assert_eq!(pair.origin.budget.used_bytes(), 0);
        let mut order = pair.order(0);
        order.host = HOST;
        assert!(matches!(agent.encode(order).await, Err(AgentRefusal::Failed { .. })));
        assert!(agent.reserve(HOST, pair.model.blocks[0], 0, 0).await.is_err());
    });
}

/// What an agent reports, which nobody reads.
#[derive(Debug)]
struct NoSupervisor;

impl Uplink for NoSupervisor {
    fn send(&self, _: SupervisorRequest) {}
}

async fn start_agent(hosts: NodeHosts, store: &StoreHandle) -> ActorRef<AgentMsg> {
    let args = AgentArgs {
        node: NodeKey::of(TARGET),
        hosts: Arc::new(hosts),
        store: Box::new(AgentRecords::new(store.clone())),
        uplink: Arc::new(NoSupervisor),
        clock: Arc::new(SystemClock::new()),
    };
    Actor::spawn(None, Agent, args).await.unwrap().0
}

fn term(counter: u64) -> Term {
    Term { counter, node: NodeKey([1; 6]) }
}

async fn order(agent: &ActorRef<AgentMsg>, counter: u64, version: u64, request: AgentRequest) -> AgentReply {
    let term = term(counter);
    call!(agent, AgentMsg::Order, AgentOrder { term, version, order: 1, request }).unwrap()
}

#[test]
fn an_agent_answers_while_a_block_is_encoded_and_refuses_the_replaced_also_after_a_restart() {
    let pair = Pair::new(KvFormat::F32);
    let folder = tempfile::tempdir().unwrap();
    let open = || StoreHandle::start(Store::open(folder.path(), StoreOptions::default()).unwrap()).unwrap();
    let hosts = || agent_of(&pair.model, &[&pair.target], sources(&pair.asker, &[]));
    let (first, second) = (pair.model.blocks[0], pair.model.blocks[1]);
    let (encoding, gate, mut standing) = standing(&pair, 0);
    let store = open();
    pair.asker.runtime.block_on(async {
        standing.wait_for(|&stands| stands).await.unwrap();
        let agent = start_agent(hosts(), &store).await;
        let AgentReply::Inventory(inventory) = order(&agent, 5, 1, AgentRequest::Inventory).await else {
            panic!("an inventory was asked for")
        };
        assert_eq!((inventory.at.start, inventory.hosts[0].blocks.len()), (1, 0));
        let (bytes, tokens) =
            (pair.target.budget.shape().bytes_for(BLOCK_TOKENS) as u64, BLOCK_TOKENS as u32);
        let reserve = AgentRequest::Reserve { host: TARGET, block: pair.model.blocks[2], bytes, tokens };
        assert_eq!(order(&agent, 5, 1, reserve).await, AgentReply::Reserved { held: false });

        // What was asked for since is not freed by an order of before.
        let free = |block| AgentRequest::Free { host: TARGET, blocks: vec![block] };
        let encoded = order(&agent, 5, 3, AgentRequest::Encode(pair.order(1)));
        let freed = order(&agent, 5, 2, free(second));
        let (encoded, freed, ()) = tokio::join!(encoded, freed, async { gate.close() });
        assert_eq!(encoded, AgentReply::Encoded { fresh: true });
        assert!(matches!(freed, AgentReply::Freed { .. }));
        assert_eq!(encoding.await, Some(Encoded::Fresh));
        assert!(held(&pair.target, first).await.is_some() && held(&pair.target, second).await.is_some());
        assert!(matches!(order(&agent, 5, 4, free(second)).await, AgentReply::Freed { .. }));
        assert!(held(&pair.target, second).await.is_none());
        agent.stop_and_wait(None, None).await.unwrap();
    });
    store.close();
    let store = open();
    pair.asker.runtime.block_on(async {
        let agent = start_agent(hosts(), &store).await;
        let fenced = AgentRefusal::Fenced { term: term(4), highest: term(5) };
        assert_eq!(order(&agent, 4, 9, AgentRequest::Inventory).await, AgentReply::Refused(fenced.clone()));
        let late = order(&agent, 4, 9, AgentRequest::Encode(pair.order(1))).await;
        assert_eq!(late, AgentReply::Refused(fenced), "what was placed by it is placed anew");
        // What a query node orders tells of the supervisor that has placed it.
        assert!(matches!(
            order(&agent, 6, 1, AgentRequest::Encode(pair.order(1))).await,
            AgentReply::Encoded { .. }
        ));
        let fenced = AgentRefusal::Fenced { term: term(5), highest: term(6) };
        assert_eq!(order(&agent, 5, 1, AgentRequest::Inventory).await, AgentReply::Refused(fenced));
        let AgentReply::Inventory(inventory) = order(&agent, 6, 1, AgentRequest::Inventory).await else {
            panic!("an inventory was asked for")
        };
        assert_eq!((inventory.at.start, inventory.seen), (2, term(6)));
        agent.stop_and_wait(None, None).await.unwrap();
    });
    store.close();
}

#[test]
fn an_order_to_encode_other_tokens_under_the_address_of_a_block_is_refused_and_nothing_is_held() {
    let pair = Pair::new(KvFormat::F32);
    let hosts = agent_of(&pair.model, &[&pair.target], sources(&pair.asker, &[]));
    let honest = pair.order(1);
    let mut other_tokens = honest.clone();
    other_tokens.ids[0] ^= 1;
    let elsewhere = EncodeOrder { position: honest.position + 1, ..honest.clone() };
    let address_of_another = EncodeOrder { block: pair.model.blocks[0], ..honest.clone() };
    let first = pair.model.blocks[0];
    let anchor = AnchorOrder { id: first, ids: vec![1, 2, 3], first_block: first, is_kept: true, from: None };
    let false_anchor = EncodeOrder { anchor: Some(anchor), ..honest.clone() };
    pair.asker.runtime.block_on(async {
        for order in [other_tokens, elsewhere, address_of_another, false_anchor] {
            let refused = hosts.encode(order).await.unwrap_err();
            assert!(refused.to_string().contains("is not the address of the tokens"), "{refused}");
        }
        assert!(inventory(&hosts).await.blocks.is_empty());
        assert_eq!(hosts.encode(honest).await, Ok(true));
    });
}
