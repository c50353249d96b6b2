//! What the query side of a node writes down, on several nodes: the journal over this node's sessions and their copies.
//! Contexts are in the journal beside them, and are copied with the sessions over them.

use std::sync::Arc;

use futures_util::future::join_all;

use super::super::names::namer;
use super::super::peers::key_of;
use super::drive::Unwritten;
use super::{ANSWER, Owned, SessionAsk, Sessions};
use crate::cluster::messages::NodeKey;
use crate::copies::{Copy, CopySet, Epoch, Head, Owner, Standing};
use crate::journal::kept::{turn_bytes, turn_of};
use crate::journal::{ContextRecord, Forget, Journal, JournalError, Journaled, SessionRecord};
use crate::manifest::ContextId;
use crate::session::{SessionId, TurnRecord};

impl Sessions {
    /// What came of what was written; `own` is what this node itself said.
    fn outcome(
        &self,
        session: SessionId,
        owned: &Owned,
        owner: &Owner,
        own: Result<(), String>,
    ) -> Result<(), JournalError> {
        match owner.standing() {
            Standing::Settled => Ok(()),
            Standing::Fenced(epoch) => {
                self.lost(session, owned, epoch);
                Err(JournalError::Moved { session, owner: epoch.owner })
            }
            Standing::Short { silent } => match own {
                Ok(()) => Err(JournalError::Unsettled { session, silent: silent.len() }),
                Err(why) => {
                    // What this node's disk has is not known; it is read again.
                    if self.let_go(session, owned)
                        && let Some(node) = self.way.node()
                    {
                        node.close_session_here(session);
                    }
                    Err(JournalError::Unwritten { session, why })
                }
            },
            Standing::Waiting => unreachable!("it is driven until nobody is waited for"),
        }
    }

    async fn open_session(&self, record: SessionRecord) -> Result<(), JournalError> {
        let (session, context, me) = (record.id, record.context, self.me());
        let _stays = self.contexts.of(context).read_owned().await;
        if !self.kept.journal().has_context(context).await? {
            return Err(JournalError::NoContext { context });
        }
        let others = self.live(context, &[]).into_iter().take(self.copies);
        let set = CopySet::of(std::iter::once(me).chain(others).collect());
        let head = Head { session, context, epoch: Epoch::first(me), version: 1, set, is_removed: false };
        let owned: Owned = Arc::new(tokio::sync::Mutex::new(Owner::new(me, head, 0)));
        let mut owner = owned.lock().await;
        let own = self.drive(&mut owner, None).await;
        let outcome = self.outcome(session, &owned, &owner, own);
        if outcome.is_ok() {
            self.owned().insert(session, Arc::clone(&owned));
        } else {
            // Nobody has its name: what was written of it is taken back where that can be.
            owner.remove();
            owner.retry();
            if let Err(why) = self.drive(&mut owner, None).await {
                tracing::debug!(%session, %why, "what was written of a session that was not opened stays");
            }
        }
        outcome
    }

    /// Removes a session everywhere. Nodes that keep a copy and do not answer learn it when they are asked for it.
    async fn remove_session(&self, session: SessionId) -> Result<bool, JournalError> {
        let Some(owned) = self.own(session) else { return Ok(false) };
        let mut owner = owned.lock().await;
        owner.remove();
        owner.retry();
        let own = self.drive(&mut owner, None).await;
        self.outcome(session, &owned, &owner, own)?;
        self.let_go(session, &owned);
        Ok(true)
    }

    async fn append(&self, session: SessionId, index: u64, turn: TurnRecord) -> Result<(), JournalError> {
        let Some(owned) = self.own(session) else {
            let owner = self.kept.copy(session).await?.map_or(self.me(), |copy| copy.promised.owner);
            return Err(JournalError::Moved { session, owner });
        };
        let mut owner = owned.lock().await;
        // Removed while this waited for it, or earlier and not by a quorum yet.
        if owner.head().is_removed {
            return Err(JournalError::Removed { session });
        }
        if owner.turns() != index {
            let refusal = stellate_runtime::store::Refusal::Position { next: owner.turns(), expected: index };
            return Err(JournalError::Store(refusal.into()));
        }
        owner.append();
        let own = self.drive(&mut owner, Some(Unwritten::Last(turn_bytes(&turn)))).await;
        self.outcome(session, &owned, &owner, own)
    }

    async fn own_sessions(&self) -> Result<Vec<SessionRecord>, JournalError> {
        let ids: Vec<_> = self.owned().keys().copied().collect();
        let mut records = Vec::new();
        for id in ids {
            let head = self.kept.copy(id).await?.and_then(|copy| copy.head);
            let head = head.filter(|head| !head.is_removed);
            records.extend(head.map(|head| SessionRecord { id, context: head.context }));
        }
        Ok(records)
    }
}

/// Contexts. Copies of sessions that other nodes own may need one that is removed here: it is kept until they do not.
impl Sessions {
    /// Removes a context and this node's sessions over it, none of which is taken over or opened meanwhile.
    async fn remove_context(
        &self,
        context: ContextId,
        forget: Forget<'_>,
    ) -> Result<Option<Vec<SessionId>>, JournalError> {
        let _alone = self.contexts.of(context).write_owned().await;
        let _taking = self.taking.lock().await;
        if !self.kept.journal().has_context(context).await? {
            forget();
            return Ok(None);
        }
        let sessions = self.own_sessions().await?.into_iter();
        let ids: Vec<_> =
            sessions.filter(|record| record.context == context).map(|record| record.id).collect();
        for id in &ids {
            match self.remove_session(*id).await {
                // Another node's by now, which has the context as well.
                Ok(_) | Err(JournalError::Moved { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let is_removed = self.kept.give_up_manifest(context).await?;
        forget();
        Ok(is_removed.then_some(ids))
    }

    /// Lets a context go that came here with a session. Nobody waits for it: where a session is being taken over, or opened over
    /// the context, it stays.
    async fn let_context_go(&self, context: ContextId, forget: Forget<'_>) -> Result<bool, JournalError> {
        let journal = self.kept.journal();
        let is_here = journal.has_context(context).await?;
        if is_here && (journal.gives(context.0) || !self.has_maker(context).await) {
            return Ok(false);
        }
        let Ok(_alone) = self.contexts.of(context).try_write_owned() else { return Ok(false) };
        let Ok(_taking) = self.taking.try_lock() else { return Ok(false) };
        // What the disk has counts: what this node owned when it stops is its own when it starts.
        let is_over =
            |copy: &Copy| copy.head.as_ref().is_some_and(|head| head.context == context && !head.is_removed);
        if !journal.has_context(context).await? {
            // Somebody took it up from the disk while it went.
            forget();
            return Ok(true);
        }
        let me = self.me();
        if self.kept.copies().await?.iter().any(|(_, copy)| is_over(copy) && copy.promised.owner == me) {
            return Ok(false);
        }
        let is_gone = self.kept.give_up_manifest(context).await?;
        forget();
        Ok(is_gone)
    }

    /// Whether the node that made a context has it, or was told to remove it.
    async fn has_maker(&self, context: ContextId) -> bool {
        let Some(maker) = namer(&self.peers.substrate.roster(), context.0).map(|record| key_of(record.node))
        else {
            return false;
        };
        if context.0 >> u32::BITS != 0 {
            return self.is_there(maker).await;
        }
        // The key of the CA moves, and with it who is taken for the founder. That one has the context, or the founder, who was
        // told to remove it, is among all others.
        if self.peers.ask_about(maker, SessionAsk::Context(context, u64::MAX), ANSWER).await.is_ok() {
            return true;
        }
        let others: Vec<_> =
            self.peers.substrate.roster().members.iter().map(|member| key_of(member.id)).collect();
        join_all(others.into_iter().map(|node| self.is_there(node)))
            .await
            .into_iter()
            .all(|is_there| is_there)
    }

    /// Whether a node answers. It is asked about a session that nobody has.
    async fn is_there(&self, node: NodeKey) -> bool {
        self.peers.ask_about(node, SessionAsk::Look(SessionId(0)), ANSWER).await.is_ok()
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct CopiedJournal(pub(in super::super) Arc<Sessions>);

impl Journal for CopiedJournal {
    fn name(&self) -> Journaled<'_, u64> {
        self.0.kept.journal().name()
    }

    fn context_created(&self, context: ContextRecord) -> Journaled<'_, ()> {
        self.0.kept.journal().context_created(context)
    }

    fn context_removed<'a>(
        &'a self,
        context: ContextId,
        forget: Forget<'a>,
    ) -> Journaled<'a, Option<Vec<SessionId>>> {
        Box::pin(self.0.remove_context(context, forget))
    }

    fn context_let_go<'a>(&'a self, context: ContextId, forget: Forget<'a>) -> Journaled<'a, bool> {
        Box::pin(self.0.let_context_go(context, forget))
    }

    fn session_opened(&self, session: SessionRecord) -> Journaled<'_, ()> {
        Box::pin(self.0.open_session(session))
    }

    fn session_closed(&self, session: SessionId) -> Journaled<'_, bool> {
        Box::pin(self.0.remove_session(session))
    }

    fn turn_appended(&self, session: SessionId, index: u64, turn: TurnRecord) -> Journaled<'_, ()> {
        Box::pin(self.0.append(session, index, turn))
    }

    fn contexts(&self) -> Journaled<'_, Vec<ContextId>> {
        self.0.kept.journal().contexts()
    }

    fn context(&self, id: ContextId) -> Journaled<'_, Option<ContextRecord>> {
        self.0.kept.journal().context(id)
    }

    fn sessions(&self) -> Journaled<'_, Vec<SessionRecord>> {
        Box::pin(self.0.own_sessions())
    }

    fn session(&self, id: SessionId) -> Journaled<'_, Option<(SessionRecord, Vec<TurnRecord>)>> {
        Box::pin(async move {
            if self.0.own(id).is_none() {
                return Ok(None);
            }
            let head = self.0.kept.copy(id).await?.and_then(|copy| copy.head);
            let Some(head) = head.filter(|head| !head.is_removed) else { return Ok(None) };
            let turns = self.0.kept.turns(id, 0).await?;
            let turns = turns.iter().map(|turn| turn_of(id, turn)).collect::<Result<_, _>>()?;
            Ok(Some((SessionRecord { id, context: head.context }, turns)))
        })
    }
}
