//! The sessions of this node and the copies that it keeps of others': the thin hands of [`crate::copies`]. Here is what
//! there is and how it is found; [`keep`] answers other nodes, [`drive`] copies what is written here, [`take`] takes
//! sessions over, [`journal`] is what the query side sees of it, [`wire`] what nodes say.

mod drive;
mod journal;
mod keep;
mod take;
mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stellate_runtime::membership::Standing as Fit;
use tokio::time::{MissedTickBehavior, interval};

use super::peers::{Peers, key_of};
use super::way::Way;
use crate::cluster::messages::NodeKey;
use crate::copies::{Copy, Epoch, Owner, Standing, preferred};
use crate::gates::Gates;
use crate::journal::JournalError;
use crate::journal::kept::KeptSessions;
use crate::manifest::ContextId;
use crate::session::SessionId;

pub use self::journal::CopiedJournal;
pub(super) use self::wire::{SessionAnswer, SessionAsk};

/// How long a node may take to answer about a session: it writes a few records, and computes nothing.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a node may take to take a session over that is moved to it.
const MOVE: Duration = Duration::from_secs(30);
/// How often it is looked whether all copies are where they should be.
const UPKEEP: Duration = Duration::from_secs(1);
/// Rounds of upkeep after which nodes that did not answer are asked again.
const RETRY_ROUNDS: u32 = 10;
/// Rounds of upkeep after which what is not needed any more is let go.
const TIDY_ROUNDS: u32 = 60;

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// It is this node's, and a quorum of its copies says so.
    Ours {
        /// Turns that they have.
        turns: u64,
    },
    /// Another node has it, and can be asked.
    Others(NodeKey),
}

/// A session could not be had. It is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// There is none of that name on any node that answers.
    #[error("there is no session {session}; `stellate session ls` lists them{}", unseen(*.silent))]
    Unknown {
        /// The name.
        session: SessionId,
        /// Nodes that did not answer.
        silent: usize,
    },
    /// It was removed.
    #[error("session {session} was removed; open another one over its context")]
    Removed {
        /// The session.
        session: SessionId,
    },
    /// Too few of its copies answer.
    #[error(
        "session {session} waits for its copies: {} do not answer, and without them nobody knows its last turns; start \
         those nodes, then ask again", list(.silent)
    )]
    Short {
        /// The session.
        session: SessionId,
        /// The nodes that keep them.
        silent: Vec<NodeKey>,
    },
    /// The store failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Something else, in words.
    #[error("session {session} was not taken over: {why}; ask again")]
    Failed {
        /// The session.
        session: SessionId,
        /// What happened.
        why: String,
    },
}

fn unseen(silent: usize) -> String {
    match silent {
        0 => String::new(),
        count => format!("; {count} nodes that may have it do not answer"),
    }
}

fn list(nodes: &[NodeKey]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A session as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPlace {
    /// The session.
    pub session: SessionId,
    /// The context that it is over.
    pub context: ContextId,
    /// Whose it is, as far as is known here.
    pub owner: NodeKey,
    /// Nodes that have all of it, and nodes that shall; none where another node owns it.
    pub copies: Option<(usize, usize)>,
}

/// An own session: one thing at a time happens to it.
type Owned = Arc<tokio::sync::Mutex<Owner>>;

/// The sessions of a node, and the copies that it keeps.
#[derive(Debug)]
pub struct Sessions {
    peers: Peers,
    kept: Arc<KeptSessions>,
    /// The query side.
    way: Arc<Way>,
    /// Nodes besides the owner that shall keep each session of this node.
    copies: usize,
    owned: Mutex<BTreeMap<SessionId, Owned>>,
    /// One take-over of a session at a time.
    taking: tokio::sync::Mutex<()>,
    /// One giving of a context to a node at a time.
    giving: Gates<(NodeKey, ContextId)>,
    /// Held by whoever opens a session over a context, and alone by whoever lets it go.
    contexts: Gates<ContextId>,
    /// Contexts on their way to this node.
    arriving: Mutex<keep::Arriving>,
}

impl Sessions {
    /// Those in the store of this node. Whether they still are this node's is found out when they are asked for.
    pub(super) async fn open(
        way: Arc<Way>,
        kept: KeptSessions,
        copies: usize,
    ) -> Result<Arc<Self>, JournalError> {
        let peers = way.peers.clone();
        let (me, mut owned) = (peers.own_key(), BTreeMap::new());
        for (session, copy) in kept.copies().await? {
            if let Some(owner) = owner_of(me, copy) {
                // It was being taken over when this node stopped.
                if let Err(error) = kept.adopt_manifest(owner.head().context).await {
                    tracing::warn!(%session, %error, "the context of a session is not here");
                }
                owned.insert(session, Arc::new(tokio::sync::Mutex::new(owner)));
            }
        }
        let (giving, contexts) = (Gates::default(), Gates::default());
        let (kept, owned, taking) = (Arc::new(kept), Mutex::new(owned), tokio::sync::Mutex::default());
        let arriving = Mutex::default();
        Ok(Arc::new(Self { peers, kept, way, copies, owned, taking, giving, contexts, arriving }))
    }

    fn me(&self) -> NodeKey {
        self.peers.own_key()
    }

    fn owned(&self) -> MutexGuard<'_, BTreeMap<SessionId, Owned>> {
        // Every change is a single insertion or removal.
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self, session: SessionId) -> Option<Owned> {
        self.owned().get(&session).cloned()
    }

    /// Makes a session this node's, if it is nobody's who can be asked. Of an own one it sees to it that what is written here is
    /// on its copies, and that a quorum of them still obeys this node: whatever was acknowledged before this was called, here or
    /// elsewhere, is in its log. `never_mind` takes it from its owner, who is there.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim(&self, session: SessionId, never_mind: bool) -> Result<Whose, ClaimError> {
        if let Some(owned) = self.own(session) {
            let mut owner = owned.lock().await;
            owner.doubt();
            let mut own = self.drive(&mut owner, None).await;
            if let Standing::Short { .. } = owner.standing() {
                owner.retry();
                own = self.drive(&mut owner, None).await;
            }
            match owner.standing() {
                Standing::Settled if owner.head().is_removed => {
                    self.let_go(session, &owned);
                    return Err(ClaimError::Removed { session });
                }
                Standing::Settled => return Ok(Whose::Ours { turns: owner.turns() }),
                Standing::Fenced(epoch) => {
                    drop(owner);
                    self.lost(session, &owned, epoch);
                }
                Standing::Short { silent } => {
                    return Err(match own {
                        Ok(()) => ClaimError::Short { session, silent },
                        Err(why) => ClaimError::Failed { session, why },
                    });
                }
                Standing::Waiting => unreachable!("it is driven until nobody is waited for"),
            }
        }
        self.take(session, never_mind).await
    }

    /// Takes an own session out, unless it went and came back since `known` was looked up. Tells whether it was there.
    fn let_go(&self, session: SessionId, known: &Owned) -> bool {
        let mut owned = self.owned();
        let is_there = owned.get(&session).is_some_and(|owned| Arc::ptr_eq(owned, known));
        if is_there {
            owned.remove(&session);
        }
        is_there
    }

    /// Another node owns a session from now on, of which `known` was this node's.
    fn lost(&self, session: SessionId, known: &Owned, epoch: Epoch) {
        if self.let_go(session, known) {
            tracing::info!(%session, owner = %epoch.owner, "a session is another node's now");
            if let Some(node) = self.way.node() {
                node.close_session_here(session);
            }
        }
    }

    /// The sessions that this node owns, and those that it keeps copies of or has given away.
    ///
    /// # Errors
    /// The store failed.
    pub async fn places(&self) -> Result<Vec<SessionPlace>, JournalError> {
        let mut places = Vec::new();
        for (session, copy) in self.kept.copies().await? {
            let Some(head) = copy.head.filter(|head| !head.is_removed) else { continue };
            let copies = match self.own(session) {
                None => None,
                Some(owned) => Some(owned.lock().await.copies()),
            };
            let owner = copy.promised.max(head.epoch).owner;
            places.push(SessionPlace { session, context: head.context, owner, copies });
        }
        Ok(places)
    }

    /// Has another node take a session over. Nobody may be asking it.
    ///
    /// # Errors
    /// It is not this node's, or the other did not take it: then it may be asked again, here or there.
    pub async fn hand_over(&self, session: SessionId, to: NodeKey) -> Result<(), String> {
        if to == self.me() {
            return Ok(());
        }
        match self.peers.ask_about(to, SessionAsk::TakeOver(session), MOVE).await? {
            SessionAnswer::Done => Ok(()),
            _ => Err("its answer is none to what was asked".to_owned()),
        }
    }

    /// The nodes that may keep copies of sessions over a context, best first. A member stays as long as membership holds it for
    /// up; a new one can be called now.
    fn live(&self, context: ContextId, members: &[NodeKey]) -> Vec<NodeKey> {
        let (callable, roster) = (self.peers.keepers(), self.peers.substrate.roster());
        let fits =
            roster.members.iter().filter(|member| member.standing == Fit::Compatible && member.is_up());
        let nodes = fits.map(|member| (key_of(member.id), member.record.roles.query));
        preferred(context, nodes.filter(|(node, _)| callable.contains(node) || members.contains(node)))
    }

    /// Keeps copies where they should be. Never ends.
    pub(super) async fn keep_up(self: Arc<Self>) {
        let mut ticks = interval(UPKEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0_u32;
        loop {
            ticks.tick().await;
            round = round.wrapping_add(1);
            let is_retry = round.is_multiple_of(RETRY_ROUNDS);
            let all: Vec<_> = self.owned().iter().map(|(id, owned)| (*id, Arc::clone(owned))).collect();
            for (session, owned) in all {
                // One that is being written to is looked at the next time.
                if let Ok(mut owner) = owned.try_lock() {
                    self.keep_one_up(session, &owned, &mut owner, is_retry).await;
                }
            }
            if round.is_multiple_of(TIDY_ROUNDS)
                && let Err(error) = self.kept.tidy(self.me()).await
            {
                tracing::warn!(%error, "what no session needs was not let go");
            }
        }
    }

    async fn keep_one_up(&self, session: SessionId, owned: &Owned, owner: &mut Owner, is_retry: bool) {
        if is_retry {
            owner.retry();
        }
        // The set that is wanted, the end of the change to it: two steps.
        for _ in 0..3 {
            if self.drive(owner, None).await.is_err() {
                break;
            }
            let head = owner.head();
            let live = self.live(head.context, &head.set.members);
            if !owner.change(&live, self.copies) {
                break;
            }
        }
        match owner.standing() {
            Standing::Fenced(epoch) => self.lost(session, owned, epoch),
            Standing::Settled if owner.head().is_removed => _ = self.let_go(session, owned),
            _ => {}
        }
    }
}

/// The owner of a session that `me` was when it stopped, if it was.
fn owner_of(me: NodeKey, copy: Copy) -> Option<Owner> {
    let head = copy.head?;
    let is_own = head.epoch.owner == me && head.epoch == copy.promised && !head.is_removed;
    is_own.then(|| Owner::new(me, head, copy.turns))
}
