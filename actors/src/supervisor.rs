//! The supervisor: an actor that knows which block lies on which host and how much room is left, places the blocks of new
//! contexts, and has blocks freed that no context needs any more. It computes nothing and waits for nobody. This is the
//! supervisor of the hosts of one process.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, call};
use ractor_cluster::RactorMessage;
use stellate_kernels::KvShape;
use stellate_model::block::BlockId;

use crate::budget::free_tokens;
use crate::cluster::term::Term;
use crate::context_host::ContextHostMsg;
use crate::error::{Asked, ContextFull, EncodeError};
use crate::link::HostId;
use crate::manifest::ContextId;
use crate::placement::{AnchorNeed, HostLoad, Need, NoRoom, Placed, place};
use crate::port::SupervisorPort;

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
    /// The supervisor's term and version then: what it says of moves later is not in this.
    pub at: (Term, u64),
}

/// What the supervisor is asked.
#[derive(Debug, RactorMessage)]
pub enum SupervisorMsg {
    /// Find room for a context and promise it.
    Place(PlaceRequest, RpcReplyPort<Result<Placement, EncodeError>>),
    /// A context is not needed any more.
    Release(ContextId),
    /// A host of so many bytes takes blocks from now on.
    Join(HostId, ActorRef<ContextHostMsg>, usize),
    /// A host is gone, and with it what it held.
    Leave(HostId),
}

/// What a supervisor starts with.
#[derive(Debug)]
pub struct SupervisorArgs {
    /// The shape of the node's keys and values.
    pub kv_shape: KvShape,
    /// The context hosts with their capacity in bytes.
    pub hosts: BTreeMap<HostId, (ActorRef<ContextHostMsg>, usize)>,
}

/// A supervisor of this process behind the seam of all supervisors.
#[derive(Clone, Debug)]
pub struct LocalSupervisor(pub ActorRef<SupervisorMsg>);

impl SupervisorPort for LocalSupervisor {
    fn place(&self, request: PlaceRequest) -> BoxFuture<'_, Result<Placement, EncodeError>> {
        Box::pin(async move { call!(self.0, SupervisorMsg::Place, request).asked()? })
    }

    fn release(&self, context: ContextId) {
        // A supervisor that is gone has no blocks to free.
        let _ = self.0.cast(SupervisorMsg::Release(context));
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
            SupervisorMsg::Join(host, actor, capacity_bytes) => {
                table.forget(host);
                table.hosts.insert(host, HostEntry { actor, capacity_bytes, blocks: BTreeMap::new() });
            }
            SupervisorMsg::Leave(host) => table.forget(host),
        }
        Ok(())
    }
}

impl Table {
    /// Places a context, for the first time or again. What it held before and needs no longer, on a host that does not
    /// answer above all, is let go. If there is no room, all is as it was.
    fn place(&mut self, request: &PlaceRequest) -> Result<Placement, EncodeError> {
        let trusted = self.hosts.iter().filter(|(host, _)| !request.suspects.contains(host));
        let mut loads: Vec<HostLoad> = trusted.map(|(&host, entry)| entry.load(host)).collect();
        let placed = place(&mut loads, &request.needs, request.anchor).map_err(|room| self.full(room))?;
        let context = request.context.unwrap_or(ContextId(self.next_context));
        // A name from outside is never given a second time.
        self.next_context = self.next_context.max(context.0 + 1);
        let before = self.contexts.remove(&context).unwrap_or_default();
        for (need, placed) in request.needs.iter().zip(&placed) {
            self.hold(context, placed.host, need.id, need.bytes);
            // Also where the block is held: should the context that had it encoded go away half-way, this one goes on.
            if let Some(anchor) = request.anchor.filter(|_| placed.anchor_copy) {
                self.hold(context, placed.host, anchor.id, anchor.bytes);
            }
        }
        self.let_go(context, before);
        tracing::debug!(%context, blocks = placed.len(), held = placed.iter().filter(|p| p.held).count(), "placed");
        // Between the hosts of one process nothing moves.
        Ok(Placement { context, placed, at: (Term::NONE, 0) })
    }

    /// Counts `context` among the users of a block, once.
    fn hold(&mut self, context: ContextId, host: HostId, id: BlockId, bytes: usize) {
        if self.contexts.entry(context).or_default().insert((host, id)) {
            let entry = self.hosts.get_mut(&host).expect("blocks are placed on hosts of the table");
            entry.blocks.entry(id).or_insert(BlockEntry { bytes, users: 0 }).users += 1;
        }
    }

    fn release(&mut self, context: ContextId) {
        let held = self.contexts.remove(&context).unwrap_or_default();
        self.let_go(context, held);
    }

    /// Forgets a host and what it held.
    fn forget(&mut self, host: HostId) {
        self.hosts.remove(&host);
        for held in self.contexts.values_mut() {
            held.retain(|&(holder, _)| holder != host);
        }
    }

    /// Takes a context off the users of blocks and has those freed that have none left.
    fn let_go(&mut self, context: ContextId, held: BTreeSet<(HostId, BlockId)>) {
        let mut freed: BTreeMap<HostId, Vec<BlockId>> = BTreeMap::new();
        for (host, id) in held {
            let entry = self.hosts.get_mut(&host).expect("a host that leaves is forgotten by every context");
            let block = entry.blocks.get_mut(&id).expect("a context's blocks are in the table");
            block.users -= 1;
            if block.users == 0 {
                entry.blocks.remove(&id);
                freed.entry(host).or_default().push(id);
            }
        }
        for (host, ids) in freed {
            tracing::debug!(%context, %host, blocks = ids.len(), "freed");
            // A host that has stopped holds nothing.
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
            has_anchor: false,
        }
    }
}
