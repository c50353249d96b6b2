//! What other nodes are answered about sessions: what there is, and what is kept for them.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::wire::{MAX_CONTEXT_BYTES, PIECE_BYTES};
use super::{SessionAnswer, SessionAsk, Sessions, Whose};
use crate::copies::KeeperRequest;
use crate::journal::JournalError;
use crate::manifest::ContextId;
use crate::session::SessionId;

/// Contexts that arrive at the same time; the one that came first makes room.
const MAX_ARRIVING: usize = 4;

/// Contexts on their way, each as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    pieces: BTreeMap<ContextId, Vec<u8>>,
    order: Vec<ContextId>,
}

impl Arriving {
    /// Adds a piece; gives the whole once it is there.
    fn add(
        &mut self,
        context: ContextId,
        total: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, String> {
        if total > MAX_CONTEXT_BYTES || bytes.len() > PIECE_BYTES {
            return Err(format!("a context of {total} bytes is longer than {MAX_CONTEXT_BYTES}"));
        }
        // Two that give it at the same time give the same.
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let old = self.pieces.get(&context).and_then(|has| has.get(at..at.saturating_add(bytes.len())));
        if old.is_some_and(|old| old == bytes && !old.is_empty()) {
            return Ok(None);
        }
        if offset == 0 {
            self.forget(context);
            if self.order.len() >= MAX_ARRIVING {
                self.forget(self.order[0]);
            }
            self.order.push(context);
            self.pieces.insert(context, Vec::new());
        }
        let has = self.pieces.get_mut(&context).filter(|has| has.len() as u64 == offset);
        let has = has.ok_or("the piece does not follow on those that came; begin again")?;
        has.extend(bytes);
        Ok(if has.len() as u64 >= total { self.forget(context) } else { None })
    }

    fn forget(&mut self, context: ContextId) -> Option<Vec<u8>> {
        self.order.retain(|known| *known != context);
        self.pieces.remove(&context)
    }
}

impl Sessions {
    /// Answers another node.
    pub(in super::super) async fn answer(&self, ask: SessionAsk) -> SessionAnswer {
        let answered = match ask {
            SessionAsk::TakeOver(session) => self.take_from_owner(session).await,
            ask => self.look_or_keep(ask).await.map_err(|error| error.to_string()),
        };
        answered.unwrap_or_else(SessionAnswer::Refused)
    }

    async fn take_from_owner(&self, session: SessionId) -> Result<SessionAnswer, String> {
        if self.way.node().is_none() {
            return Err("it does not run sessions (node.roles), or is leaving".to_owned());
        }
        match self.claim(session, true).await {
            Ok(Whose::Ours { .. }) => Ok(SessionAnswer::Done),
            Ok(Whose::Others(node)) => Err(format!("node {node} was quicker")),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn look_or_keep(&self, ask: SessionAsk) -> Result<SessionAnswer, JournalError> {
        Ok(match ask {
            SessionAsk::Look(session) => SessionAnswer::Copy(self.kept.copy(session).await?),
            SessionAsk::Keep(session, request) => self.keep(session, request).await?,
            SessionAsk::Turns(session, from) => {
                SessionAnswer::Turns(self.kept.turns_page(session, from).await?)
            }
            SessionAsk::Context(context, offset) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let range = start..start.saturating_add(PIECE_BYTES);
                match self.kept.manifest_piece(context, range).await? {
                    None => SessionAnswer::Refused(format!("context {context} is not here")),
                    Some((total, bytes)) => SessionAnswer::Piece { whole_bytes: total as u64, bytes },
                }
            }
            SessionAsk::KeepContext { context, whole_bytes, offset, bytes } => {
                let added = {
                    let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
                    arriving.add(context, whole_bytes, offset, &bytes)
                };
                match added {
                    // Somebody else has given the whole meanwhile.
                    Err(_) if self.kept.renew_manifest(context).await? => {}
                    Err(why) => return Ok(SessionAnswer::Refused(why)),
                    Ok(Some(whole)) => self.kept.keep_manifest(context, whole).await?,
                    Ok(None) => {}
                }
                SessionAnswer::Done
            }
            SessionAsk::TakeOver(_) => unreachable!("answered before"),
        })
    }

    /// Keeps a copy as it is asked to, if its context is here; and notices when this node's own sessions go elsewhere.
    pub(super) async fn keep(
        &self,
        session: SessionId,
        request: KeeperRequest,
    ) -> Result<SessionAnswer, JournalError> {
        let by = match &request {
            KeeperRequest::Fence(epoch) => *epoch,
            KeeperRequest::Store { head, .. } => {
                let is_needed = head.is_kept_by(self.me());
                if is_needed && !self.kept.renew_manifest(head.context).await? {
                    return Ok(SessionAnswer::NeedsContext);
                }
                head.epoch
            }
        };
        let reply = self.kept.keep(self.me(), session, request).await?;
        if by.owner != self.me()
            && let Some(owned) = self.own(session)
            && let Some(copy) = self.kept.copy(session).await?
            && copy.promised.owner != self.me()
        {
            self.lost(session, &owned, copy.promised);
        }
        Ok(SessionAnswer::Kept(reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_comes_in_pieces_in_order_and_few_come_at_once() {
        let mut arriving = Arriving::default();
        assert_eq!(arriving.add(ContextId(1), 4, 0, b"ab"), Ok(None));
        assert!(arriving.add(ContextId(1), 4, 3, b"d").is_err(), "there is a gap");
        assert_eq!(arriving.add(ContextId(1), 4, 0, b"ab"), Ok(None), "a second giver breaks nothing");
        assert_eq!(arriving.add(ContextId(1), 4, 2, b"cd"), Ok(Some(b"abcd".to_vec())));
        for context in 2..=6 {
            assert_eq!(arriving.add(ContextId(context), 4, 0, b"ab"), Ok(None));
        }
        assert!(arriving.add(ContextId(2), 4, 2, b"cd").is_err(), "it made room");
        assert!(arriving.add(ContextId(3), 4, 2, b"cd").is_ok());
        assert!(arriving.add(ContextId(9), MAX_CONTEXT_BYTES + 1, 0, b"a").is_err());
    }
}
