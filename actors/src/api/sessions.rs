//! Sessions as the server finds them: on its shelf, taken over from a node that is gone, or on another node, which is then
//! named. And moving them, once nobody asks them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::cluster::Claimed;
use super::fault::{ErrorCode, Fault};
use super::server::Api;
use crate::error::SessionError;
use crate::handle::Session;
use crate::manifest::ContextId;
use crate::path::replay::{Replayed, replay};
use crate::session::{SessionId, TurnRecord};
use crate::turn::{AskOptions, QueryInput, TurnEvent};

/// How long a turn under way is waited for before its session is not moved.
const LAST_TURN: Duration = Duration::from_secs(300);

/// How often contexts are looked for that no session here needs any more.
const TIDY: Duration = Duration::from_secs(60);

impl Api {
    /// A session that this node has, or takes over just now.
    pub(super) async fn session(&self, id: SessionId) -> Result<(ContextId, Arc<Session>), Fault> {
        let (context, session, _) = self.session_with_turns(id).await?;
        Ok((context, session))
    }

    /// As [`session`](Self::session), with the number of its turns that are certain to stay, where they are copied.
    pub(super) async fn session_with_turns(
        &self,
        id: SessionId,
    ) -> Result<(ContextId, Arc<Session>, Option<u64>), Fault> {
        match self.0.cluster.claim(id).await.map_err(|error| Fault::from(&error))? {
            Claimed::Here { turns } => {
                let (context, session) = self.take_up(id).await?;
                Ok((context, session, turns))
            }
            Claimed::Elsewhere { node, address } => {
                self.0.shelf.forget_session(id);
                Err(Fault::elsewhere(id, &node, address))
            }
        }
    }

    /// One of this node, opened if it is not.
    async fn take_up(&self, id: SessionId) -> Result<(ContextId, Arc<Session>), Fault> {
        let (shelf, node) = (&self.0.shelf, &self.0.node);
        let _one = self.0.openings.of(id).write_owned().await;
        if let Ok(found) = shelf.session(id) {
            // Of one that has too much to do to answer nothing is known: whoever asks the session is told that.
            if found.1.is_open().await.unwrap_or(true) {
                return Ok(found);
            }
            // It was away meanwhile.
            drop(found);
            shelf.forget_session(id);
        }
        let session = match node.session(id).await {
            // It was put there meanwhile, or its last turn is still being written down.
            Err(SessionError::AlreadyOpen { .. }) => {
                let message = format!("session {id} is being closed or opened; ask again");
                return shelf.session(id).map_err(|_| Fault::new(ErrorCode::Unavailable, message));
            }
            Err(SessionError::Unknown { .. }) => return Err(Fault::no_session(id)),
            session => session.map_err(|error| Fault::from(&error))?,
        };
        let records = node.sessions().await.map_err(|error| Fault::from(&error))?;
        let record =
            records.into_iter().find(|record| record.id == id).ok_or_else(|| Fault::no_session(id))?;
        let context = node.context(record.context).await;
        let context = context.map_err(|error| Fault::new(ErrorCode::Failed, error))?;
        shelf.add_both(context, session);
        shelf.session(id)
    }

    /// Takes sessions off the shelf that are other nodes' by now.
    pub(super) async fn forget_the_lost(&self) {
        for (_, session) in self.0.shelf.sessions() {
            if session.is_open().await.is_ok_and(|is_open| !is_open) {
                self.0.shelf.forget_session(session.id());
            }
        }
    }

    /// Has on the shelf what this node owns: sessions that came to it and were not asked for since are opened.
    pub(super) async fn take_up_the_rest(&self) -> Result<(), Fault> {
        self.forget_the_lost().await;
        for record in self.0.node.sessions().await.map_err(|error| Fault::from(&error))? {
            if self.0.shelf.session(record.id).is_err()
                && let Err(fault) = self.take_up(record.id).await
            {
                tracing::debug!(session = %record.id, why = %fault.message, "a session was not opened to be listed");
            }
        }
        Ok(())
    }

    /// Lets a session go, in memory and on disk.
    pub(super) async fn close_session(&self, id: SessionId) -> Result<(), Fault> {
        drop(self.session(id).await?);
        self.0.shelf.close_session(id)?;
        match self.0.node.remove_session(id).await {
            // A node without a journal remembers none.
            Ok(()) | Err(SessionError::Unknown { .. }) => {}
            Err(error) => return Err(Fault::from(&error)),
        }
        self.0.unused.notify_one();
        Ok(())
    }

    /// Lets contexts of other nodes go that came here with sessions which are not here any more: when a session was closed, and
    /// now and then. Never ends.
    pub async fn keep_tidy(self) {
        let mut ticks = interval(TIDY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.0.unused.notified() => {}
            }
            self.let_contexts_go().await;
        }
    }

    async fn let_contexts_go(&self) {
        self.forget_the_lost().await;
        // In this order: one that is on the shelf was known before.
        let shelved: Vec<_> = self.0.shelf.contexts().into_iter().map(|(context, _)| context.id()).collect();
        let node = &self.0.node;
        // A journal that fails tells whoever asks for something.
        let (Ok(known), Ok(sessions)) = (node.contexts().await, node.sessions().await) else { return };
        let used: BTreeSet<_> = sessions.iter().map(|record| record.context).collect();
        // Let go while a lost session over it was still there.
        let mut gone: Vec<_> = shelved.into_iter().filter(|context| !known.contains(context)).collect();
        for context in known.into_iter().filter(|context| !used.contains(context)) {
            match node.let_context_go(context).await {
                Ok(true) => {
                    tracing::info!(%context, "a context of another node is let go: no session here is over it any more");
                    gone.push(context);
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%context, %error, "a context was not let go"),
            }
        }
        for context in gone {
            // It is not there if no session over it was asked here, and stays while a lost one, or one that came again, is there.
            let _ = self.0.shelf.remove_context(context, &[]);
        }
    }

    /// Moves a session to another node, once the turn under way has ended.
    pub(super) async fn move_session(&self, id: SessionId, to: String) -> Result<(), Fault> {
        drop(self.session(id).await?);
        let Ok(_alone) = timeout(LAST_TURN, self.0.gates.of(id).write_owned()).await else {
            let waited_s = LAST_TURN.as_secs();
            let message =
                format!("session {id} still answers after {waited_s} s; move it once its turn has ended");
            return Err(Fault::new(ErrorCode::Busy, message));
        };
        self.0.cluster.hand_over(id, to).await.map_err(|error| Fault::from(&error))?;
        self.0.shelf.forget_session(id);
        Ok(())
    }

    /// The events of a turn that is logged, if it was this question.
    pub(super) fn replay(
        &self,
        context: ContextId,
        turns: Vec<TurnRecord>,
        index: usize,
        input: &QueryInput,
        options: &AskOptions,
    ) -> Result<Vec<TurnEvent>, Fault> {
        let context = self.0.shelf.context(context)?;
        let encoded = context.encoded();
        let (prompting, context_tokens) = (encoded.prompting, encoded.manifest.tokens());
        let logged = Replayed { turns: &turns, index, prompting, context_tokens };
        replay(self.0.node.prompter(), &logged, input, options).map_err(Fault::other_question)
    }
}
