//! Copies what the owner of a session writes: sends what its machine says, and tells it what came of it.

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::wire::{MAX_TURN_BYTES, PIECE_BYTES};
use super::{ANSWER, SessionAnswer, SessionAsk, Sessions};
use crate::cluster::messages::NodeKey;
use crate::copies::{Head, KeeperReply, KeeperRequest, Owner, Send};
use crate::manifest::ContextId;

/// What is not in the log of this node yet.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// The last turn.
    Last(Vec<u8>),
    /// The log as it was found elsewhere, all of it.
    All(Vec<Vec<u8>>),
}

impl Sessions {
    /// Sends and listens until nobody is waited for any more.
    ///
    /// # Errors
    /// Why this node itself did not write it.
    pub(super) async fn drive(&self, owner: &mut Owner, unwritten: Option<Unwritten>) -> Result<(), String> {
        let mut own = Ok(());
        let mut calls = FuturesUnordered::new();
        // Of one that was driven before and dropped, as when its client left, nothing comes any more.
        owner.give_up();
        loop {
            let (head, count) = (owner.head().clone(), owner.turns());
            for Send { to, from } in owner.sends() {
                let (head, unwritten) = (head.clone(), unwritten.as_ref());
                calls.push(async move { (to, self.store_at(to, head, from, count, unwritten).await) });
            }
            match calls.next().await {
                Some((node, Ok(reply))) => owner.replied(node, &reply),
                Some((node, Err(why))) => {
                    tracing::debug!(session = %head.session, %node, %why, "a copy was not written");
                    owner.failed(node);
                    if node == self.me() {
                        own = Err(why);
                    }
                }
                None => return own,
            }
        }
    }

    async fn store_at(
        &self,
        to: NodeKey,
        head: Head,
        from: u64,
        count: u64,
        unwritten: Option<&Unwritten>,
    ) -> Result<KeeperReply, String> {
        let session = head.session;
        let turns = match unwritten {
            Some(Unwritten::All(turns)) => turns.iter().skip(from as usize).cloned().collect(),
            Some(Unwritten::Last(_)) if from == count => Vec::new(),
            Some(Unwritten::Last(last)) => {
                let written = self.kept.turns(session, from).await.map_err(|error| error.to_string())?;
                // Others are sent it from the log, where it is by then.
                let missing = (from + written.len() as u64) < count;
                written.into_iter().chain(missing.then(|| last.clone())).collect()
            }
            None if head.is_removed => Vec::new(),
            None => {
                let turns = self.kept.turns(session, from).await.map_err(|error| error.to_string())?;
                // Its last turn was not written, and whoever was told so has let this owner go.
                if from + (turns.len() as u64) < count {
                    return Err(format!("fewer than {count} turns are written down here"));
                }
                turns
            }
        };
        let request = KeeperRequest::Store { head, from, turns };
        match self.ask_keeper(to, session, request).await? {
            SessionAnswer::Kept(reply) => Ok(reply),
            _ => Err("its answer is none to what was asked".to_owned()),
        }
    }

    /// Asks a keeper, this node among them; and gives it the context that it lacks.
    pub(super) async fn ask_keeper(
        &self,
        to: NodeKey,
        session: crate::session::SessionId,
        request: KeeperRequest,
    ) -> Result<SessionAnswer, String> {
        if to == self.me() {
            let kept = self.kept.keep(to, session, request).await;
            return kept.map(SessionAnswer::Kept).map_err(|error| error.to_string());
        }
        let context = match &request {
            KeeperRequest::Store { head, turns, .. } => {
                let bytes: usize = turns.iter().map(Vec::len).sum();
                if bytes > MAX_TURN_BYTES {
                    return Err(format!(
                        "{bytes} bytes of turns are more than {MAX_TURN_BYTES}, which a copy takes at once"
                    ));
                }
                Some(head.context)
            }
            KeeperRequest::Fence(_) => None,
        };
        let ask = SessionAsk::Keep(session, request);
        let answer = self.peers.ask_about(to, ask.clone(), ANSWER).await?;
        let (SessionAnswer::NeedsContext, Some(context)) = (&answer, context) else { return Ok(answer) };
        self.give_context(to, context).await?;
        self.peers.ask_about(to, ask, ANSWER).await
    }

    async fn give_context(&self, to: NodeKey, context: ContextId) -> Result<(), String> {
        let _one = self.giving.of((to, context)).write_owned().await;
        let whole = self.kept.manifest(context).await.map_err(|error| error.to_string())?;
        let whole = whole.ok_or_else(|| format!("context {context} is not here"))?;
        for (index, piece) in whole.chunks(PIECE_BYTES).enumerate() {
            let offset = (index * PIECE_BYTES) as u64;
            let (whole_bytes, bytes) = (whole.len() as u64, piece.to_vec());
            let ask = SessionAsk::KeepContext { context, whole_bytes, offset, bytes };
            self.peers.ask_about(to, ask, ANSWER).await?;
        }
        Ok(())
    }
}
