//! The supervisor: an actor that knows which block lies on which host and how much room is left, places the blocks of new
//! contexts, and has blocks freed that no context needs any more. It computes nothing and waits for nobody.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use stellate_kernels::KvShape;
use stellate_model::block::BlockId;

use crate::budget::free_tokens;
use crate::context_host::ContextHostMsg;
use crate::error::{ContextFull, EncodeError};
use crate::link::HostId;
use crate::manifest::ContextId;
use crate::placement::{AnchorNeed, HostLoad, Need, NoRoom, Placed, place};

/// A context to place.
#[derive(Clone, Debug)]
pub struct PlaceRequest {
    /// Its name if it was placed before and is to be placed again, because some of its blocks were not to be had.
    pub context: Option<ContextId>,
    /// Hosts that did not answer; the blocks they are thought to hold are placed elsewhere.
    pub suspects: Vec<HostId>,
    /// Its blocks, in order.
    pub needs: Vec<Need>,
    /// Its anchor.
    pub anchor: Option<AnchorNeed>,
}

/// Where the blocks of a context go.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The name of the context.
    pub context: ContextId,
    /// A host for every block, in order.
    pub placed: Vec<Placed>,
}

/// What the supervisor is asked.
#[derive(Debug, RactorMessage)]
pub enum SupervisorMsg {
    /// Find room for a context and promise it.
    Place(PlaceRequest, RpcReplyPort<Result<Placement, EncodeError>>),
    /// A context is not needed any more.
    Release(ContextId),
}

/// What a supervisor starts with.
#[derive(Debug)]
pub struct SupervisorArgs {
    /// The shape of the node's keys and values.
    pub kv_shape: KvShape,
    /// The context hosts with their capacity in bytes.
    pub hosts: BTreeMap<HostId, (ActorRef<ContextHostMsg>, usize)>,
}

/// Keeps a context's blocks: dropped by its last user, it has those freed that no other context needs.
#[derive(Debug)]
pub struct ContextLease {
    context: ContextId,
    supervisor: ActorRef<SupervisorMsg>,
}

impl ContextLease {
    /// The lease of a context that was placed.
    pub fn new(context: ContextId, supervisor: ActorRef<SupervisorMsg>) -> Self {
        Self { context, supervisor }
    }
}

impl Drop for ContextLease {
    fn drop(&mut self) {
        // A supervisor that is gone has no blocks to free.
        let _ = self.supervisor.cast(SupervisorMsg::Release(self.context));
    }
}

/// The actor.
#[derive(Debug)]
pub struct Supervisor;

/// The block table.
#[derive(Debug)]
pub struct Table {
    kv_shape: KvShape,
    hosts: BTreeMap<HostId, HostEntry>,
    contexts: HashMap<ContextId, BTreeSet<(HostId, BlockId)>>,
    next_context: u64,
}

#[derive(Debug)]
struct HostEntry {
    actor: ActorRef<ContextHostMsg>,
    capacity_bytes: usize,
    blocks: BTreeMap<BlockId, BlockEntry>,
}

#[derive(Clone, Copy, Debug)]
struct BlockEntry {
    bytes: usize,
    users: usize,
}

impl Actor for Supervisor {
    type Msg = SupervisorMsg;
    type State = Table;
    type Arguments = SupervisorArgs;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        args: SupervisorArgs,
    ) -> Result<Table, ActorProcessingErr> {
        let SupervisorArgs { kv_shape, hosts } = args;
        let hosts = hosts.into_iter().map(|(host, (actor, capacity_bytes))| {
            (host, HostEntry { actor, capacity_bytes, blocks: BTreeMap::new() })
        });
        Ok(Table { kv_shape, hosts: hosts.collect(), contexts: HashMap::new(), next_context: 1 })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: SupervisorMsg,
        table: &mut Table,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::Place(request, reply) => drop(reply.send(table.place(&request))),
            SupervisorMsg::Release(context) => table.release(context),
        }
        Ok(())
    }
}

impl Table {
    fn place(&mut self, request: &PlaceRequest) -> Result<Placement, EncodeError> {
        let mut loads: Vec<HostLoad> = self.hosts.iter().map(|(&host, entry)| entry.load(host)).collect();
        let placed = place(&mut loads, &request.needs, request.anchor).map_err(|room| self.full(room))?;
        let context = ContextId(self.next_context);
        self.next_context += 1;
        for (need, placed) in request.needs.iter().zip(&placed) {
            self.hold(context, placed.host, need.id, need.bytes);
            // Also where the block is held: should the context that had it encoded go away half-way, this one goes on.
            if let Some(anchor) = request.anchor.filter(|_| placed.anchor_copy) {
                self.hold(context, placed.host, anchor.id, anchor.bytes);
            }
        }
        tracing::debug!(%context, blocks = placed.len(), held = placed.iter().filter(|p| p.held).count(), "placed");
        Ok(Placement { context, placed })
    }

    /// Counts `context` among the users of a block, once.
    fn hold(&mut self, context: ContextId, host: HostId, id: BlockId, bytes: usize) {
        if self.contexts.entry(context).or_default().insert((host, id)) {
            let entry = self.hosts.get_mut(&host).expect("blocks are placed on hosts of the table");
            entry.blocks.entry(id).or_insert(BlockEntry { bytes, users: 0 }).users += 1;
        }
    }

    fn release(&mut self, context: ContextId) {
        let mut freed: BTreeMap<HostId, Vec<BlockId>> = BTreeMap::new();
        for (host, id) in self.contexts.remove(&context).unwrap_or_default() {
            let entry = self.hosts.get_mut(&host).expect("blocks are placed on hosts of the table");
            let block = entry.blocks.get_mut(&id).expect("a context's blocks are in the table");
            block.users -= 1;
            if block.users == 0 {
                entry.blocks.remove(&id);
                freed.entry(host).or_default().push(id);
            }
        }
        for (host, ids) in freed {
            tracing::debug!(%context, %host, blocks = ids.len(), "freed");
            // A host that is gone holds nothing.
            let _ = self.hosts[&host].actor.cast(ContextHostMsg::Release(ids));
        }
    }

    fn full(&self, room: NoRoom) -> EncodeError {
        let tokens = |bytes| free_tokens(self.kv_shape, bytes);
        let free: Vec<usize> = room.free_bytes.into_iter().map(tokens).collect();
        EncodeError::Full(ContextFull {
            needed_tokens: tokens(room.needed_bytes),
            free_tokens: free.iter().sum(),
            block_tokens: tokens(room.block_bytes),
            largest_free_tokens: free.into_iter().max().unwrap_or(0),
            hosts: self.hosts.len(),
        })
    }
}

impl HostEntry {
    fn load(&self, host: HostId) -> HostLoad {
        HostLoad {
            host,
            capacity_bytes: self.capacity_bytes,
            used_bytes: self.blocks.values().map(|block| block.bytes).sum(),
            blocks: self.blocks.keys().copied().collect(),
        }
    }
}
