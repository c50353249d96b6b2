//! Takes sessions over: asks around, fences, fetches the log and the context, and goes on as the owner.

use std::sync::Arc;

use futures_util::future::join_all;
use stellate_runtime::membership::{NodeState, Standing as Fit};

use super::super::peers::key_of;
use super::drive::Unwritten;
use super::{ANSWER, ClaimError, SessionAnswer, SessionAsk, Sessions, Whose};
use crate::cluster::messages::NodeKey;
use crate::copies::{Fencing, Found, Head, KeeperRequest, Owner, Standing, Survey, TakeOver};
use crate::manifest::ContextId;
use crate::session::SessionId;

/// A context as it is written down is fetched in so many pieces at most.
const MAX_PIECES: usize = 4096;

impl Sessions {
    /// Looks whose a session is; takes it over from an owner that does not answer, and with `never_mind` from one that does.
    pub(super) async fn take(&self, session: SessionId, never_mind: bool) -> Result<Whose, ClaimError> {
        let _one = self.taking.lock().await;
        if let Some(owned) = self.own(session) {
            // Somebody else has asked for it at the same time.
            let owner = owned.lock().await;
            if owner.head().is_removed {
                return Err(ClaimError::Removed { session });
            }
            return Ok(Whose::Ours { turns: owner.turns() });
        }
        let (survey, answered) = self.survey(session).await?;
        let epoch = match survey.found() {
            Found::Nowhere { silent } => return Err(ClaimError::Unknown { session, silent: silent.len() }),
            Found::Removed => return Err(ClaimError::Removed { session }),
            Found::Owned(epoch) => epoch,
        };
        let is_there = answered.contains(&epoch.owner) && self.runs_sessions(epoch.owner);
        if epoch.owner != self.me() && is_there && !never_mind {
            return Ok(Whose::Others(epoch.owner));
        }
        if self.way.node().is_none() {
            let why = "this node does not run sessions (node.roles)".to_owned();
            return Err(ClaimError::Failed { session, why });
        }
        tracing::info!(%session, owner = %epoch.owner, "taking a session over");
        let taking = TakeOver::begin(self.me(), &survey).expect("somebody owns it");
        self.fence(session, taking).await
    }

    /// Whether a node runs sessions, as far as membership knows: one that only keeps copies answers too.
    fn runs_sessions(&self, node: NodeKey) -> bool {
        let roster = self.peers.substrate.roster();
        let member = roster.members.iter().find(|member| key_of(member.id) == node);
        member.is_none_or(|member| member.record.roles.query && member.record.state != NodeState::Left)
    }

    /// Members that membership holds for up and that cannot be called: a session may be theirs.
    fn uncallable(&self, callable: &[NodeKey]) -> Vec<NodeKey> {
        let roster = self.peers.substrate.roster();
        let up = roster.members.iter().filter(|member| member.standing == Fit::Compatible && member.is_up());
        up.map(|member| key_of(member.id)).filter(|node| !callable.contains(node)).collect()
    }

    /// What every node that answers has, and which do.
    async fn survey(&self, session: SessionId) -> Result<(Survey, Vec<NodeKey>), ClaimError> {
        let mut survey = Survey::default();
        survey.told(self.me(), self.kept.copy(session).await?);
        let others: Vec<_> = self.peers.keepers().into_iter().filter(|node| *node != self.me()).collect();
        let asks = others.iter().map(|node| self.peers.ask_about(*node, SessionAsk::Look(session), ANSWER));
        let mut answered = Vec::new();
        self.uncallable(&others).into_iter().for_each(|node| survey.failed(node));
        for (node, answer) in others.iter().zip(join_all(asks).await) {
            match answer {
                Ok(SessionAnswer::Copy(copy)) => {
                    survey.told(*node, copy);
                    answered.push(*node);
                }
                _ => survey.failed(*node),
            }
        }
        Ok((survey, answered))
    }

    async fn fence(&self, session: SessionId, mut taking: TakeOver) -> Result<Whose, ClaimError> {
        loop {
            let asks = taking.asks();
            if asks.is_empty() {
                break;
            }
            let fence = KeeperRequest::Fence(taking.epoch());
            let asked = asks.iter().map(|node| self.ask_keeper(*node, session, fence.clone()));
            for (node, answer) in asks.iter().zip(join_all(asked).await) {
                match answer {
                    Ok(SessionAnswer::Kept(reply)) => taking.replied(*node, reply),
                    _ => taking.failed(*node),
                }
            }
        }
        match taking.fencing() {
            Fencing::Won { head, source, turns } => self.go_on(head, source, turns).await,
            Fencing::Gone => Err(ClaimError::Removed { session }),
            Fencing::Lost(epoch) => Ok(Whose::Others(epoch.owner)),
            Fencing::Short { silent } => Err(ClaimError::Short { session, silent }),
            Fencing::Waiting => unreachable!("everybody has answered, or did not in time"),
        }
    }

    /// Fetches what the session is made of, and owns it once a quorum says so.
    async fn go_on(&self, head: Head, source: NodeKey, turns: u64) -> Result<Whose, ClaimError> {
        let (session, context) = (head.session, head.context);
        let failed = |why: String| ClaimError::Failed { session, why };
        let log = self.fetch_turns(session, source, turns).await.map_err(failed)?;
        self.fetch_context(context, &head).await.map_err(failed)?;
        self.kept.adopt_manifest(context).await?;
        let mut owner = Owner::new(self.me(), head, turns);
        let own = self.drive(&mut owner, Some(Unwritten::All(log))).await;
        match owner.standing() {
            Standing::Settled => {
                tracing::info!(%session, turns, "a session was taken over");
                self.owned().insert(session, Arc::new(tokio::sync::Mutex::new(owner)));
                Ok(Whose::Ours { turns })
            }
            Standing::Fenced(epoch) => Ok(Whose::Others(epoch.owner)),
            Standing::Short { silent } => Err(match own {
                Ok(()) => ClaimError::Short { session, silent },
                Err(why) => ClaimError::Failed { session, why },
            }),
            Standing::Waiting => unreachable!("it is driven until nobody is waited for"),
        }
    }

    async fn fetch_turns(
        &self,
        session: SessionId,
        source: NodeKey,
        count: u64,
    ) -> Result<Vec<Vec<u8>>, String> {
        if source == self.me() {
            return self.kept.turns(session, 0).await.map_err(|error| error.to_string());
        }
        let mut turns = Vec::new();
        while (turns.len() as u64) < count {
            let ask = SessionAsk::Turns(session, turns.len() as u64);
            match self.peers.ask_about(source, ask, ANSWER).await? {
                SessionAnswer::Turns(page) if !page.is_empty() => turns.extend(page),
                _ => return Err(format!("node {source} has fewer turns than it said")),
            }
        }
        Ok(turns)
    }

    /// Sees to it that the context is here, wherever it is found.
    async fn fetch_context(&self, context: ContextId, head: &Head) -> Result<(), String> {
        if self.kept.renew_manifest(context).await.map_err(|error| error.to_string())? {
            return Ok(());
        }
        let mut last = format!("nobody has context {context}");
        for node in head.set.all() {
            match self.fetch_context_from(context, node).await {
                Ok(whole) => {
                    return self.kept.keep_manifest(context, whole).await.map_err(|error| error.to_string());
                }
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    async fn fetch_context_from(&self, context: ContextId, node: NodeKey) -> Result<Vec<u8>, String> {
        let mut whole = Vec::new();
        for _ in 0..MAX_PIECES {
            let ask = SessionAsk::Context(context, whole.len() as u64);
            match self.peers.ask_about(node, ask, ANSWER).await? {
                SessionAnswer::Piece { whole_bytes: total, bytes }
                    if whole.len() as u64 + bytes.len() as u64 <= total =>
                {
                    let is_last = whole.len() as u64 + bytes.len() as u64 == total || bytes.is_empty();
                    whole.extend(bytes);
                    if is_last {
                        return Ok(whole);
                    }
                }
                _ => return Err(format!("node {node} has no such context")),
            }
        }
        Err(format!("context {context} has no end"))
    }
}
