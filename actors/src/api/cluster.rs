//! What administrators ask of a cluster: the questions and answers as they travel, and the seam ([`ClusterAdmin`]) that the
//! daemon fills. Which node decides what is the daemon's business.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::sync::mpsc;
use wincode::{SchemaRead, SchemaWrite};

use super::fault::ErrorCode;
use super::info::SessionPlaceInfo;
use crate::cluster::versions::STUCK_HOSTS;
use crate::disk::index::DiskFigures;
use crate::link::HostId;
use crate::session::SessionId;

/// The state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It has a certificate and is not yet used.
    Joining,
    /// It takes blocks.
    Active,
    /// It keeps what it has and takes no new blocks.
    Cordoned,
    /// Its blocks are moving off.
    Draining,
    /// It holds nothing more and can be stopped.
    Drained,
    /// It has said goodbye.
    Left,
    /// Nothing was heard of it for a while.
    Suspect,
    /// It is held for dead.
    Down,
    /// It runs another model or format, and gets no blocks.
    Incompatible,
    /// A device of it makes no progress; its host gets no blocks, and what it holds does not count. Of wire version 2.
    Stuck,
}

impl NodeState {
    /// The word for it, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Left => "left",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Incompatible => "incompatible",
            Self::Stuck => "stuck",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A node of the cluster, as the node that was asked knows it.
#[derive(Clone, Debug, PartialEq, Serialize, SchemaRead, SchemaWrite)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its id, in hexadecimal digits.
    pub id: String,
    /// Where it listens.
    pub address: String,
    /// Its state.
    pub state: NodeState,
    /// Why it is in that state, where that is worth saying.
    pub why: Option<String>,
    /// What it does: `context`, `query`, `supervisor`.
    pub roles: Vec<String>,
    /// What it computes with, as in `1xCPU avx512, 8 threads`.
    pub devices: String,
    /// The program's version.
    pub version: String,
    /// Bytes of keys and values that it may hold.
    pub capacity_bytes: u64,
    /// Bytes of keys and values that it holds or has promised room for; none where no supervisor said so.
    pub used_bytes: Option<u64>,
    /// Blocks that it holds; none where no supervisor said so.
    pub blocks: Option<u64>,
    /// Sessions open on it; none where that is not known to the node that was asked.
    pub sessions: Option<u64>,
    /// Round-trip time from the node that was asked, in microseconds; none to itself.
    pub rtt_us: Option<u64>,
    /// Blocks that were computed for its hosts since they have started, copies of anchors among them; none where no supervisor
    /// said so.
    pub computed_blocks: Option<u64>,
    /// The blocks on its disk, in figures; none where it keeps none there, or no supervisor said so.
    pub disk: Option<DiskFigures>,
}

impl NodeInfo {
    /// As a client that speaks wire version `version` knows it: the reason still says what the state does not.
    pub(super) fn lowered(mut self, version: u16) -> Self {
        if version < STUCK_HOSTS && self.state == NodeState::Stuck {
            self.state = NodeState::Active;
        }
        self
    }
}

/// A node to be emptied.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct DrainRequest {
    /// The node's name or id.
    pub node: String,
    /// What is not moved by then is computed again elsewhere; none waits for as long as it takes.
    pub deadline_s: Option<u64>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// One thing that happened, or would happen, to a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct Planned {
    /// The block, by the first digits of its address.
    pub block: String,
    /// A context that it is a part of.
    pub context: Option<String>,
    /// Its tokens.
    pub tokens: u64,
    /// Its bytes.
    pub bytes: u64,
    /// The node that has it.
    pub from: String,
    /// The node that gets it.
    pub to: String,
    /// `move` or `recompute`.
    pub how: String,
    /// Why it moves.
    pub why: String,
}

/// What happens while blocks move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct MoveEvent {
    /// Wall time, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: MoveKind,
}

/// See [`MoveEvent`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum MoveKind {
    /// A node takes no new blocks from now on.
    Cordoned {
        /// Its name.
        node: String,
    },
    /// A block has moved, or would.
    Block(Planned),
    /// How far the blocks of a node that is drained are.
    Progress {
        /// Blocks moved.
        moved: u64,
        /// Blocks computed again.
        recomputed: u64,
        /// Blocks still to go.
        left: u64,
        /// Their bytes, less those that have come already.
        left_bytes: u64,
    },
    /// A session is touched: it goes on once a block of its context was computed again.
    Session {
        /// Its name.
        session: String,
        /// How.
        effect: String,
    },
    /// All is done.
    Complete {
        /// Blocks moved.
        moved: u64,
        /// Blocks computed again.
        recomputed: u64,
    },
}

/// What a rebalancing would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct RebalancePlan {
    /// The moves, in their order.
    pub moves: Vec<Planned>,
    /// Why there are no more, or none.
    pub why: String,
}

/// A new join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct IssuedToken {
    /// What may be shown of it.
    pub id: String,
    /// The line to hand over: a secret.
    pub token: String,
    /// When it ends, in seconds since 1970.
    pub expires_s: u64,
    /// Nodes that it brings in at most.
    pub uses: u64,
    /// Where nodes join with it.
    pub join_address: String,
}

/// A join token as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct TokenInfo {
    /// What may be shown of it.
    pub id: String,
    /// Whether it lets nodes in: `open`, `used up`, `expired` or `revoked`.
    pub state: String,
    /// When it ends, in seconds since 1970.
    pub expires_s: u64,
    /// Nodes that it may still bring in.
    pub uses_left: u64,
    /// The ids of nodes that it has brought in.
    pub used_by: Vec<String>,
}

/// Who supervises, and who may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct SupervisorInfo {
    /// The node that supervises, if one is known.
    pub leader: Option<String>,
    /// Its term, as in `3 of node-1`, if that is known.
    pub term: Option<String>,
    /// How long its lease lasts if it is not renewed, in milliseconds; none where none is elected.
    pub lease_left_ms: Option<u64>,
    /// For how long one is elected, in milliseconds; 0 where none is.
    pub lease_ms: u64,
    /// Voters that must agree; 0 where there are none.
    pub majority: u64,
    /// The voters, in the order of their names; empty where no supervisor is elected.
    pub voters: Vec<VoterInfo>,
}

/// A voter, as it says it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct VoterInfo {
    /// Its name.
    pub name: String,
    /// Whether it answers.
    pub reachable: bool,
    /// Why it does not.
    pub why: Option<String>,
    /// Whether it leads.
    pub leads: bool,
    /// The highest term that it has promised to.
    pub promised: Option<String>,
    /// How long it is bound by that still, in milliseconds; none if it is not.
    pub bound_ms: Option<u64>,
    /// Its copy of what is wanted of nodes: the term that it is of, and how many that leader had written.
    pub copy: Option<String>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// As it should be.
    Good,
    /// It works, and someone should look at it.
    Warning,
    /// It does not work.
    Bad,
}

/// One check of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct Check {
    /// The node, or the pair of nodes as `a -> b`.
    pub node: String,
    /// What was looked at: `certificate`, `supervisor`, `clock`, `reachability`, `mtu`, `rtt`, `bandwidth`.
    pub what: String,
    /// How it came out.
    pub finding: Finding,
    /// The figures, and what to do.
    pub detail: String,
}

/// The cluster did not do what it was asked. It is as it was, unless the message says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// No node has this name or id.
    #[error("there is no node `{node}`; `stellate node ls` lists them")]
    UnknownNode {
        /// What was asked for.
        node: String,
    },
    /// There is no such token or administrator.
    #[error("{0}")]
    Unknown(String),
    /// It would do harm.
    #[error("{0}")]
    Refused(String),
    /// This node cannot do it; another one can.
    #[error("{0}")]
    NotHere(String),
    /// It went wrong on the way.
    #[error("{0}")]
    Failed(String),
    /// It cannot be done for the moment: nodes that it takes do not answer.
    #[error("{0}")]
    Waits(String),
}

/// Where a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// On this node.
    Here {
        /// Turns that are on the disks of most of its copies; none where there are no copies.
        turns: Option<u64>,
    },
    /// On another one.
    Elsewhere {
        /// Its name.
        node: String,
        /// Where it listens.
        address: String,
    },
}

impl ClusterError {
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownNode { .. } | Self::Unknown(_) => ErrorCode::NotFound,
            Self::Refused(_) => ErrorCode::Refused,
            Self::NotHere(_) | Self::Waits(_) => ErrorCode::Unavailable,
            Self::Failed(_) => ErrorCode::Failed,
        }
    }
}

/// What the daemon does for administrators. Every answer is about the whole cluster; nodes are named by name or id.
pub trait ClusterAdmin: fmt::Debug + Send + Sync + 'static {
    /// The nodes, in the order of their names.
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeInfo>, ClusterError>>;

    /// Lets a node take no new blocks, or take them again. Gives the node as it is then.
    fn set_cordon(&self, node: String, cordoned: bool) -> BoxFuture<'_, Result<NodeInfo, ClusterError>>;

    /// Moves everything off a node. `events` is told of each step; that nobody listens any more stops nothing. Refused
    /// before anything moves if the others lack room.
    fn drain(
        &self,
        request: DrainRequest,
        events: mpsc::Sender<MoveEvent>,
    ) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Removes a node for good and revokes its key. Refused while it holds blocks, unless `force`.
    fn remove(&self, node: String, force: bool) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// What a rebalancing would do now.
    fn plan(&self) -> BoxFuture<'_, Result<RebalancePlan, ClusterError>>;

    /// Does it; `events` as in [`drain`](Self::drain).
    fn rebalance(&self, events: mpsc::Sender<MoveEvent>) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Makes a join token.
    fn create_token(&self, ttl: Duration, uses: u32) -> BoxFuture<'_, Result<IssuedToken, ClusterError>>;

    /// The join tokens that were made, without what proves them.
    fn tokens(&self) -> BoxFuture<'_, Result<Vec<TokenInfo>, ClusterError>>;

    /// Calls a join token back. Nodes that it has brought in stay.
    fn revoke_token(&self, id: String) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Revokes the certificates of an administrator, by name or by the id of one.
    fn revoke_admin(&self, admin: String) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Who supervises, and how the voters stand.
    fn supervisor(&self) -> BoxFuture<'_, Result<SupervisorInfo, ClusterError>> {
        let no_cluster = "nobody supervises here: this process is no node of a cluster".to_owned();
        Box::pin(std::future::ready(Err(ClusterError::NotHere(no_cluster))))
    }

    /// Has a voter supervise: the one of this name, else this node. Gives its name once that has begun.
    fn take_over(&self, node: Option<String>) -> BoxFuture<'_, Result<String, ClusterError>> {
        let _ = node;
        let no_cluster = "nobody supervises here: this process is no node of a cluster".to_owned();
        Box::pin(std::future::ready(Err(ClusterError::NotHere(no_cluster))))
    }

    /// Looks at certificates, clocks and paths between this node and the others; with `everywhere`, has the others do so too.
    fn doctor(&self, everywhere: bool) -> BoxFuture<'_, Result<Vec<Check>, ClusterError>>;

    /// Whether this node takes requests for contexts and sessions; if not, the error names one that does.
    fn runs_sessions(&self) -> Result<(), ClusterError> {
        Ok(())
    }

    /// Makes a session this node's, if no other has it that can be asked.
    fn claim(&self, session: SessionId) -> BoxFuture<'_, Result<Claimed, ClusterError>> {
        let _ = session;
        Box::pin(async { Ok(Claimed::Here { turns: None }) })
    }

    /// Has another node take a session of this one over. Nobody is asking it.
    fn hand_over(&self, session: SessionId, to: String) -> BoxFuture<'_, Result<(), ClusterError>> {
        let _ = (session, to);
        Box::pin(async {
            Err(ClusterError::NotHere("this node has no cluster to move sessions in".to_owned()))
        })
    }

    /// The sessions that this node has or keeps copies of, and where they are.
    fn places(&self) -> BoxFuture<'_, Result<Vec<SessionPlaceInfo>, ClusterError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// The other node that gives contexts and sessions such names, and where it is, as in "`first` at 10.0.0.1:7400".
    fn namer(&self, name: u64) -> Option<String> {
        let _ = name;
        None
    }

    /// What people call a context host.
    fn host_name(&self, host: HostId) -> String {
        host.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_the_version_before_is_told_a_state_that_it_knows_and_the_reason_all_the_same() {
        let why = Some("host 0 of 1 makes no progress".to_owned());
        let stuck = NodeInfo {
            name: "first".to_owned(),
            id: "0".repeat(64),
            address: "127.0.0.1:1".to_owned(),
            state: NodeState::Stuck,
            why: why.clone(),
            roles: Vec::new(),
            devices: String::new(),
            version: "0".to_owned(),
            capacity_bytes: 0,
            used_bytes: None,
            blocks: None,
            sessions: None,
            rtt_us: None,
            computed_blocks: None,
            disk: None,
        };
        assert_eq!(stuck.clone().lowered(2), stuck);
        let told = stuck.lowered(1);
        assert_eq!((told.state, told.why), (NodeState::Active, why));
        assert_eq!(NodeState::Stuck.to_string(), "stuck");
    }
}
