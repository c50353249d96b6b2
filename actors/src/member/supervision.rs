//! The supervisor of the cluster on the node that supervises: its start, what it is told of nodes that go, and a start anew if
//! agents have seen a higher term than its own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorRef};
use stellate_runtime::clock::Clock;
use stellate_runtime::identity::NodeId;
use stellate_runtime::membership::Standing;
use stellate_runtime::substrate::Roster;
use tokio::sync::{broadcast, watch};
use tokio::time::{sleep, timeout};

use super::MemberError;
use super::calls::{Doorkeeper, SUPERVISORS, SupervisorCall, SupervisorGate};
use super::peers::{Peers, key_of};
use super::transport::Outward;
use crate::cluster::actor::{ClusterArgs, ClusterMsg, ClusterSupervisor, SupervisorStore};
use crate::cluster::drain::DrainProgress;
use crate::cluster::mandate::Mandate;
use crate::cluster::messages::{NodeKey, Refusal, SupervisorReply, SupervisorRequest};
use crate::cluster::settings::ClusterSettings;
use crate::cluster::term::Term;

/// How often it is looked who has not reported yet.
const LOOK: Duration = Duration::from_millis(200);

/// How often it is looked whether another supervisor is still there.
const STAND_BY: Duration = Duration::from_secs(1);

/// Makes a store for each start of a supervisor.
pub(super) type Stores = Arc<dyn Fn() -> Box<dyn SupervisorStore> + Send + Sync>;

/// What a supervisor is started with, each time.
pub(super) struct Supervision {
    pub(super) peers: Peers,
    pub(super) settings: ClusterSettings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stores: Stores,
    pub(super) drains: broadcast::Sender<DrainProgress>,
    /// Whether this node has context hosts, which report first.
    pub(super) has_hosts: bool,
    pub(super) running: Running,
}

/// The supervisor that runs, if one does.
pub(super) type Running = Arc<Mutex<Option<Supervisor>>>;

/// A supervisor and the way in.
#[derive(Clone, Debug)]
pub(super) struct Supervisor {
    cluster: ActorRef<ClusterMsg>,
    gate: ActorRef<SupervisorCall>,
    replaced: watch::Receiver<Term>,
}

impl Supervisor {
    /// Waits until it has ended; the highest term that it was told of by then.
    pub(super) async fn ended(&self) -> Term {
        // One that has stopped already has nothing to wait for.
        let _ = self.cluster.wait(None).await;
        self.gate.stop(None);
        *self.replaced.borrow()
    }

    /// Stops it without waiting.
    pub(super) fn end(&self) {
        self.gate.stop(None);
        self.cluster.stop(None);
    }

    /// Stops it.
    pub(super) async fn stop(&self) {
        // One that has stopped already has nothing to wait for.
        let _ = self.gate.stop_and_wait(None, None).await;
        let _ = self.cluster.stop_and_wait(None, None).await;
    }
}

impl Supervision {
    /// Starts a supervisor of a term above `seen` and above all that this node has seen.
    pub(super) async fn start(&self, seen: Term) -> Result<Supervisor, MemberError> {
        self.start_with((self.stores)(), seen, Mandate::configured()).await
    }

    /// Starts a supervisor with what `store` remembers, which may act as long as `mandate` holds.
    pub(super) async fn start_with(
        &self,
        store: Box<dyn SupervisorStore>,
        seen: Term,
        mandate: Mandate,
    ) -> Result<Supervisor, MemberError> {
        let failed = |what, reason: String| MemberError::Start { what, reason };
        let (replaced_by, replaced) = watch::channel(Term::NONE);
        let (peers, drains) = (self.peers.clone(), self.drains.clone());
        let args = ClusterArgs {
            settings: self.settings.clone(),
            transport: Arc::new(Outward {
                peers,
                mandate: mandate.clone(),
                clock: Arc::clone(&self.clock),
                drains,
                replaced: replaced_by,
            }),
            store,
            seen,
            mandate,
            clock: Arc::clone(&self.clock),
        };
        let started = Actor::spawn(None, ClusterSupervisor, args).await;
        let (cluster, _) = started.map_err(|error| failed("the supervisor", error.to_string()))?;
        let (reported, _) = watch::channel(BTreeSet::new());
        let door = Arc::new(Door { peers: self.peers.clone(), reported: reported.clone() });
        let started =
            Actor::spawn(None, SupervisorGate, (cluster.clone(), door as Arc<dyn Doorkeeper>)).await;
        let (gate, _) = started.map_err(|error| failed("the way in to the supervisor", error.to_string()))?;
        let supervisor = Supervisor { cluster, gate, replaced };
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(supervisor.clone());
        self.peers.join(SUPERVISORS, supervisor.gate.get_cell());
        let listening = Listening {
            peers: self.peers.clone(),
            cluster: supervisor.cluster.clone(),
            reported,
            has_hosts: self.has_hosts,
        };
        tokio::spawn(listening.run(self.settings.host_timeout));
        Ok(supervisor)
    }

    /// Waits until the supervisor ends. If agents or query nodes have followed one of a higher term, it is started again with
    /// a higher term still, once no other node supervises: what it knew comes back from them.
    pub(super) async fn keep_up(self, mut supervisor: Supervisor) {
        loop {
            let _ = supervisor.cluster.wait(None).await;
            let _ = supervisor.gate.stop_and_wait(None, None).await;
            let highest = *supervisor.replaced.borrow();
            if highest == Term::NONE {
                return;
            }
            if self.peers.is_supervised_elsewhere() {
                tracing::error!(
                    %highest,
                    "another node supervises as well; name one of them in cluster.supervisor"
                );
            }
            while self.peers.is_supervised_elsewhere() {
                sleep(STAND_BY).await;
            }
            tracing::warn!(
                %highest,
                "agents have followed a later supervisor that is gone; taking over from it"
            );
            supervisor = match self.start(highest).await {
                Ok(next) => next,
                Err(error) => return tracing::error!(%error, "the supervisor was not started again"),
            };
        }
    }
}

/// A supervisor that has just started, and listens to hosts before it decides anything.
struct Listening {
    peers: Peers,
    cluster: ActorRef<ClusterMsg>,
    /// Who has reported.
    reported: watch::Sender<BTreeSet<NodeKey>>,
    has_hosts: bool,
}

impl Listening {
    /// Tells the supervisor when it need not listen for longer, and when it should: it has heard the hosts of its own node,
    /// and others are there, or not.
    async fn run(self, longest: Duration) {
        let own = self.peers.own_key();
        let has_begun = |reported: &BTreeSet<NodeKey>| match self.has_hosts {
            true => reported.contains(&own),
            false => !reported.is_empty(),
        };
        let mut reports = self.reported.subscribe();
        if reports.wait_for(has_begun).await.is_err() {
            return;
        }
        // Of no use to one that has been there before, unless it is alone.
        drop(self.cluster.cast(ClusterMsg::Reported { is_alone: false }));
        let ready = async {
            self.peers.substrate.ready().await;
            if !self.peers.substrate.roster().members.iter().any(|member| member.is_up()) {
                drop(self.cluster.cast(ClusterMsg::Reported { is_alone: true }));
            }
        };
        let others = async {
            loop {
                if self.is_somebody_missing() {
                    drop(self.cluster.cast(ClusterMsg::Awaiting));
                }
                sleep(LOOK).await;
            }
        };
        // Beyond, the supervisor has decided.
        let _ = timeout(longest, async { tokio::join!(ready, others) }).await;
    }

    /// Whether a node is there that holds blocks and has not reported.
    fn is_somebody_missing(&self) -> bool {
        let (roster, reported) = (self.peers.substrate.roster(), self.reported.borrow());
        roster.members.iter().any(|member| {
            let holds = member.record.roles.context && member.standing == Standing::Compatible;
            member.is_up() && holds && !reported.contains(&key_of(member.id))
        })
    }
}

/// Lets in who can work with the cluster.
#[derive(Debug)]
struct Door {
    peers: Peers,
    /// Who has reported since the supervisor has started.
    reported: watch::Sender<BTreeSet<NodeKey>>,
}

impl Doorkeeper for Door {
    fn answer(&self, request: &SupervisorRequest) -> Option<SupervisorReply> {
        let node = match request {
            SupervisorRequest::Inventory(inventory) | SupervisorRequest::StuckInventory { inventory, .. } => {
                inventory.node
            }
            SupervisorRequest::Renew { node, .. } => *node,
            SupervisorRequest::Hold(claim) | SupervisorRequest::Place { claim, .. } => claim.query_node,
            // Who has gone is seen by the supervisor's own node, and by nobody for it.
            SupervisorRequest::NodeGone(node) => {
                let cause = format!("who has gone is not for others to say; ask for the removal of {node}");
                return Some(SupervisorReply::Refused(Refusal::Unreadable { cause }));
            }
            _ => return None,
        };
        if let Err(cause) = self.peers.check(node) {
            tracing::debug!(%node, %cause, "a node that cannot take part");
            return Some(SupervisorReply::Refused(Refusal::Incompatible { cause }));
        }
        if matches!(request, SupervisorRequest::Inventory(_) | SupervisorRequest::StuckInventory { .. }) {
            // What is asked because of it comes after it.
            self.reported.send_if_modified(|reported| reported.insert(node));
        }
        None
    }
}

/// Tells the supervisor of nodes that have gone.
#[derive(Debug, Default)]
pub(super) struct Watch {
    up: BTreeSet<NodeId>,
}

impl Watch {
    /// Looks at the roster of a moment.
    pub(super) fn look(&mut self, roster: &Roster, running: &Running) {
        let up: BTreeSet<NodeId> =
            roster.members.iter().filter(|member| member.is_up()).map(|member| member.id).collect();
        let gone: Vec<NodeKey> = self.up.difference(&up).map(|node| key_of(*node)).collect();
        self.up = up;
        let running = running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(supervisor) = &*running {
            for key in gone {
                drop(supervisor.cluster.cast(ClusterMsg::Tell(SupervisorRequest::NodeGone(key))));
            }
        }
    }
}
