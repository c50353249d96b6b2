//! The way to the supervisor, wherever it is: what this node asks it, the contexts that this node keeps and announces, and
//! what its agent reports.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use ractor::ActorRef;
use stellate_kernels::KvShape;
use stellate_runtime::identity::NodeId;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::AskFailure;
use super::calls::SupervisorCall;
use super::claims::{Claims, Placing};
use super::electorate::Electorate;
use super::neighbours::Neighbours;
use super::peers::Peers;
use crate::budget::free_tokens;
use crate::cluster::agent::Uplink;
use crate::cluster::messages::{
    AnchorCopy, BlockNeed, ContextClaim, ContextKey, ContextPlaced, Refusal, SupervisorReply,
    SupervisorRequest,
};
use crate::cluster::term::Term;
use crate::error::{ContextFull, EncodeError};
use crate::link::HostId;
use crate::manifest::ContextId;
use crate::node::{Node, WeakNode};
use crate::placement::Placed;
use crate::port::SupervisorPort;
use crate::supervisor::{PlaceRequest, Placement};

/// How long a supervisor that is not there, or has just started, is waited for: longer than its node takes to start again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one that was just elected may take to hear its hosts, beside what its election takes.
const SETTLING: Duration = Duration::from_secs(8);
/// How long hosts are waited for where none is known: three of their reports.
const FIRST_REPORTS: Duration = Duration::from_secs(3);
/// How often it is asked meanwhile.
const POLL: Duration = Duration::from_millis(100);
/// How long it may take to answer: it computes nothing that takes long.
const ANSWER: Duration = Duration::from_secs(5);
/// Time between two signs of life, as those of agents.
const BEAT: Duration = Duration::from_secs(1);
/// Bits of a context's name that count; those above say whose it is.
const COUNTER_BITS: u32 = 32;

/// The latest term, and the latest version of it, that this node has seen of a supervisor's table.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<(Term, u64)>);

impl Seen {
    /// The term and the version.
    pub(super) fn now(&self) -> (Term, u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a term and a version.
    pub(super) fn note(&self, term: Term, version: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = (term, version).max(*seen);
    }
}

/// The way to the supervisor.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) peers: Peers,
    /// The voters, where the supervisor is elected.
    pub(super) electorate: Option<Electorate>,
    pub(super) seen: Arc<Seen>,
    pub(super) neighbours: Arc<Neighbours>,
    kv_shape: KvShape,
    /// Nodes that shall hold each block.
    replicas: u16,
    claims: Claims,
    next_name: AtomicU64,
    /// Something is to be told before the next sign of life is due.
    news: Notify,
    node: Mutex<Option<WeakNode>>,
    runtime: Handle,
}

impl Way {
    pub(super) fn new(
        peers: Peers,
        electorate: Option<Electorate>,
        seen: Arc<Seen>,
        neighbours: Arc<Neighbours>,
        kv_shape: KvShape,
        replicas: u16,
    ) -> Self {
        Self {
            peers,
            electorate,
            seen,
            neighbours,
            kv_shape,
            replicas,
            claims: Claims::default(),
            next_name: AtomicU64::new(1),
            news: Notify::new(),
            node: Mutex::new(None),
            runtime: Handle::current(),
        }
    }

    /// The query node of this process, while it is open.
    pub(super) fn node(&self) -> Option<Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }

    /// Whose contexts are announced from now on.
    pub(super) fn serve(&self, node: &Node) {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = node.downgrade();
        self.news.notify_one();
    }

    /// A supervisor of this term is there and wants to know.
    pub(super) fn announce(&self, term: Term) {
        self.seen.note(term, 0);
        self.news.notify_one();
    }

    /// The supervisor, if one is known: of two, the one that was heard of last, and another than the one to avoid.
    pub(super) fn supervisor(&self, avoid: Option<NodeId>) -> Option<(NodeId, ActorRef<SupervisorCall>)> {
        let (latest, _) = self.seen.now();
        self.peers.supervisor(latest.node, avoid)
    }

    /// How long the supervisor is looked for: where it is elected and a majority of voters is there, until one was and has
    /// listened to its hosts.
    fn patience(&self) -> Duration {
        match &self.electorate {
            Some(electorate) if self.no_majority(0).is_none() => {
                PATIENCE.max(2 * electorate.settings().lease + SETTLING)
            }
            _ => PATIENCE,
        }
    }

    /// Some if too few voters can be reached to elect one.
    fn no_majority(&self, waited_s: u64) -> Option<AskFailure> {
        let electorate = self.electorate.as_ref()?;
        let (missing, settings) = (electorate.missing(), electorate.settings());
        let voters: Vec<String> = electorate.names().map(|(_, name)| name.to_owned()).collect();
        let needed = settings.majority();
        (voters.len() - missing.len() < needed).then_some(AskFailure::NoMajority {
            waited_s,
            voters,
            missing,
            needed,
        })
    }

    /// Asks the supervisor; waits for one that is not there or has just started.
    pub(super) async fn ask(&self, request: SupervisorRequest) -> Result<SupervisorReply, AskFailure> {
        let start = Instant::now();
        let (mut last, mut hostless, mut avoid) = (None, None, None);
        loop {
            let patience = self.patience();
            let left = patience.saturating_sub(start.elapsed());
            let waited_s = patience.as_secs();
            match self.supervisor(avoid.take()) {
                Some(supervisor) => {
                    let (node, limit) = (supervisor.0, ANSWER.min(left.max(POLL)));
                    match self.peers.ask(&supervisor, request.clone(), limit).await {
                        Ok(SupervisorReply::Refused(
                            refusal @ (Refusal::Settling { .. } | Refusal::Replaced),
                        )) if !left.is_zero() => {
                            (hostless, avoid) = (None, (refusal == Refusal::Replaced).then_some(node));
                        }
                        // Hosts report every second; a supervisor that has just come, or was just found, may not have heard of
                        // any.
                        Ok(SupervisorReply::Refused(Refusal::NoHosts))
                            if hostless.get_or_insert_with(Instant::now).elapsed() < FIRST_REPORTS
                                && !left.is_zero() => {}
                        Ok(reply) => return Ok(reply),
                        Err(cause) => (last, hostless) = (Some((node, cause)), None),
                    }
                }
                None if left.is_zero() && (last.is_none() || self.no_majority(0).is_some()) => {
                    let failure = self.no_majority(waited_s);
                    return Err(failure.unwrap_or(AskFailure::NoSupervisor { waited_s }));
                }
                None => {}
            }
            if left.is_zero()
                && let Some((node, cause)) = last
            {
                let name =
                    self.peers.substrate.roster().member(node).map(|member| member.record.name.clone());
                let node = name.unwrap_or_else(|| node.short());
                return Err(AskFailure::Unanswered { node, waited_s, cause });
            }
            sleep(POLL.min(left)).await;
        }
    }

    /// Asks the supervisor once, if one is there.
    async fn ask_once(&self, request: SupervisorRequest) -> Option<SupervisorReply> {
        let supervisor = self.supervisor(None)?;
        let asked = self.peers.ask(&supervisor, request, ANSWER).await;
        asked.inspect_err(|cause| tracing::debug!(%cause, "the supervisor did not answer")).ok()
    }

    /// Shows the supervisor that this query node lives, and tells it what it does not know: contexts that are kept, and
    /// contexts that are not needed any more. Never ends.
    pub(super) async fn keep_in_touch(self: Arc<Self>) {
        loop {
            // Woken at once, it still lets the others have their turn.
            let _ = timeout(BEAT, self.news.notified()).await;
            self.tell_news().await;
            let (node, (seen, _)) = (self.peers.own_key(), self.seen.now());
            let announced = self.claims.announced(seen);
            if let Some(SupervisorReply::Noted(term)) =
                self.ask_once(SupervisorRequest::Renew { node, announced, seen }).await
            {
                self.seen.note(term, 0);
            }
        }
    }

    async fn tell_news(&self) {
        if let Some(node) = self.node() {
            for context in node.known_contexts() {
                // While the context is held: what gives it up comes later.
                self.claims.keep(|| self.claim(node.needs_of(&context)));
            }
        }
        for context in self.claims.released() {
            let key = ContextKey { query_node: self.peers.own_key(), context };
            if self.ask_once(SupervisorRequest::Release(key)).await == Some(SupervisorReply::Done) {
                self.claims.forgotten(context);
            }
        }
        let (term, _) = self.seen.now();
        for claim in self.claims.untold(term) {
            let context = claim.context;
            // Not of another one that is there as well: only what its own supervisor was told is announced to it.
            if let Some(SupervisorReply::Noted(term)) = self.ask_once(SupervisorRequest::Hold(claim)).await {
                self.claims.told(context, term);
            }
        }
    }

    /// What is claimed for a context.
    fn claim(&self, request: PlaceRequest) -> ContextClaim {
        let needs = request.needs.iter().map(|need| BlockNeed {
            id: need.id,
            bytes: need.bytes as u64,
            tokens: u32::try_from(need.tokens).unwrap_or(u32::MAX),
            anchored: need.anchored,
        });
        let anchor = request.anchor.map(|anchor| AnchorCopy {
            id: anchor.id,
            bytes: anchor.bytes as u64,
            first_block: anchor.first_block,
        });
        let context = request.context.unwrap_or_else(|| self.new_name());
        ContextClaim {
            context,
            query_node: self.peers.own_key(),
            needs: needs.collect(),
            anchor,
            replicas: self.replicas.max(1),
        }
    }

    /// A name that no other context of the cluster has.
    fn new_name(&self) -> ContextId {
        let [a, b, c, d, ..] = self.peers.own_key().0;
        let whose = u64::from(u32::from_be_bytes([a, b, c, d])) << COUNTER_BITS;
        ContextId(whose | self.next_name.fetch_add(1, Ordering::Relaxed))
    }

    /// Has a context placed, and sees to it that the hosts can be reached.
    async fn place_claim(
        &self,
        claim: &ContextClaim,
        suspects: Vec<HostId>,
    ) -> Result<ContextPlaced, EncodeError> {
        let request = SupervisorRequest::Place { claim: claim.clone(), suspects };
        let placed = match self.ask(request).await? {
            SupervisorReply::Placed(placed) if placed.placed.len() == claim.needs.len() => placed,
            SupervisorReply::Refused(refusal) => return Err(self.refused(claim, refusal)),
            _ => {
                let cause = "its answer is none to what was asked".to_owned();
                return Err(EncodeError::Refused(Refusal::Unreadable { cause }));
            }
        };
        self.seen.note(placed.term, placed.version);
        let hosts: BTreeSet<HostId> = placed.placed.iter().map(|placed| placed.host).collect();
        join_all(hosts.into_iter().map(|host| self.neighbours.reach(host))).await;
        Ok(placed)
    }

    /// A refusal as whoever encodes a context understands it.
    fn refused(&self, claim: &ContextClaim, refusal: Refusal) -> EncodeError {
        let tokens = |bytes: u64| free_tokens(self.kv_shape, usize::try_from(bytes).unwrap_or(usize::MAX));
        let (needed_bytes, block_bytes, free_bytes) = match refusal {
            Refusal::NoRoom { needed_bytes, block_bytes, free_bytes } => {
                (needed_bytes, block_bytes, free_bytes)
            }
            Refusal::NoHosts => {
                let bytes = claim.needs.iter().map(|need| need.bytes);
                (bytes.clone().sum(), bytes.max().unwrap_or(0), Vec::new())
            }
            refusal => return EncodeError::Refused(refusal),
        };
        let free: Vec<usize> = free_bytes.iter().map(|(_, bytes)| tokens(*bytes)).collect();
        EncodeError::Full(ContextFull {
            needed_tokens: tokens(needed_bytes),
            // What another node says may be anything.
            free_tokens: free.iter().fold(0, |sum: usize, free| sum.saturating_add(*free)),
            block_tokens: tokens(block_bytes),
            largest_free_tokens: free.iter().copied().max().unwrap_or(0),
            hosts: free.len(),
        })
    }
}

impl SupervisorPort for Way {
    fn place(&self, request: PlaceRequest) -> BoxFuture<'_, Result<Placement, EncodeError>> {
        Box::pin(async move {
            let suspects = self.neighbours.with_others_of_their_nodes(request.suspects.clone());
            let claim = self.claim(request);
            let context = claim.context;
            let is_known = self.node().is_some_and(|node| node.knows(context));
            // Given up on the way, a new context is released: the supervisor may have promised room for it.
            let placing = Placing::new(&self.claims, &self.news, context, !is_known);
            let placed = self.place_claim(&claim, suspects).await?;
            placing.done(claim, placed.term);
            let at = (placed.term, placed.version);
            let placed = placed.placed.into_iter().map(|placed| Placed {
                host: placed.host,
                held: placed.held,
                anchor_copy: placed.anchor_copy,
                anchor_from: placed.anchor_from,
            });
            Ok(Placement { context, placed: placed.collect(), at })
        })
    }

    fn release(&self, context: ContextId) {
        self.claims.release(context);
        self.news.notify_one();
    }
}

/// The agent's reports, each in a task of its own: the agent waits for nobody.
#[derive(Debug)]
pub(super) struct Reports(pub(super) Arc<Way>);

impl Uplink for Reports {
    fn send(&self, request: SupervisorRequest) {
        let way = Arc::clone(&self.0);
        self.0.runtime.spawn(async move { drop(way.ask_once(request).await) });
    }
}
