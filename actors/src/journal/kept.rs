//! Sessions of which several nodes keep copies, in the store of one of them: what it has of each (a record in JSON), the log
//! of its turns, and the contexts of those that other nodes run. What is stored when is [`crate::copies`]'s.

use std::collections::BTreeSet;
use std::ops::Range;

use stellate_runtime::store::{Condition, Kind, Write};
use tokio::sync::Mutex;

use super::store::{StoreJournal, context_of, damaged, delete, from_json, key, put, to_json};
use super::{ContextRecord, Journal as _, JournalError};
use crate::cluster::messages::NodeKey;
use crate::copies::{Change, Copy, CopySet, Epoch, Head, KeeperReply, KeeperRequest, decide};
use crate::manifest::ContextId;
use crate::session::{SessionId, TurnRecord};

/// Sessions that are decided about at the same time.
const GATES: usize = 64;

/// Bytes of turns that are read at once.
const PAGE_BYTES: usize = 1 << 20;

/// Contexts that are deleted in one transaction, whose pages all stay in memory until its end.
const DELETED_AT_ONCE: usize = 16;

/// As which node this one has kept its sessions.
const OWNER_KEY: &[u8] = b"owner of sessions";

/// Heads of sessions that were removed or went elsewhere which are kept, so that no old copy revives them.
pub const MAX_GONE: usize = 4096;

/// The store's own epoch of these logs: who may append is in the record beside them, written with them.
const EPOCH: u64 = 1;

/// The copies in a node's store.
#[derive(Debug)]
pub struct KeptSessions {
    journal: StoreJournal,
    /// One request of a session at a time.
    gates: [Mutex<()>; GATES],
    /// Contexts that came since they were tidied last: the sessions that they are for may be on their way.
    recent: Mutex<BTreeSet<ContextId>>,
}

impl KeptSessions {
    /// Those in the store of `journal`. Sessions that `journal` has are those of `me`, without copies elsewhere, from now on.
    ///
    /// # Errors
    /// The store failed, or what it has is damaged.
    pub async fn open(journal: StoreJournal, me: NodeKey) -> Result<Self, JournalError> {
        let gates = std::array::from_fn(|_| Mutex::new(()));
        let kept = Self { journal, gates, recent: Mutex::default() };
        for record in kept.journal.sessions().await? {
            let (session, epoch) = (record.id, Epoch::first(me));
            let turns = kept.journal.session(session).await?.map(|(_, turns)| turns).unwrap_or_default();
            let set = CopySet::of(vec![me]);
            let head = Head { session, context: record.context, epoch, version: 1, set, is_removed: false };
            let turns = turns.iter().map(to_json).collect();
            kept.keep(me, session, KeeperRequest::Store { head, from: 0, turns }).await?;
            kept.journal.session_closed(session).await?;
        }
        kept.keep_name(me).await?;
        Ok(kept)
    }

    /// Under another identity than before, as in a cluster that was founded anew, what was this node's stays this node's; the
    /// copies of before are on nodes that nobody knows any more.
    async fn keep_name(&self, me: NodeKey) -> Result<(), JournalError> {
        let before = self.journal.read(|store| store.get(Kind::Node, OWNER_KEY)).await?;
        let before = before.and_then(|record| record.value.try_into().ok()).map(NodeKey);
        if before == Some(me) {
            return Ok(());
        }
        let mut writes = vec![put(Kind::Node, OWNER_KEY.to_vec(), me.0.to_vec(), Condition::Any)];
        for (session, copy) in self.copies().await? {
            let Copy { head: Some(head), promised, turns } = copy else { continue };
            if Some(promised.owner) == before && head.epoch == promised && !head.is_removed {
                let epoch = promised.next(me);
                let head = Head { epoch, version: 1, set: CopySet::of(vec![me]), ..head };
                let copy = Copy { head: Some(head), promised: epoch, turns };
                writes.push(put(Kind::Copy, key(session.0), to_json(&copy), Condition::Any));
            }
        }
        self.journal.write(writes).await
    }

    /// The journal beside them: contexts of this node, and names.
    pub fn journal(&self) -> &StoreJournal {
        &self.journal
    }

    /// What there is of a session.
    ///
    /// # Errors
    /// The store failed, or the record is damaged.
    pub async fn copy(&self, session: SessionId) -> Result<Option<Copy>, JournalError> {
        let record = self.journal.read(move |store| store.get(Kind::Copy, &key(session.0))).await?;
        record.map(|record| from_json(&format!("the copy of session {session}"), &record.value)).transpose()
    }

    /// What there is of all sessions.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    pub async fn copies(&self) -> Result<Vec<(SessionId, Copy)>, JournalError> {
        let mut copies = Vec::new();
        for id in self.journal.keys(Kind::Copy).await? {
            let session = SessionId(id);
            copies.extend(self.copy(session).await?.map(|copy| (session, copy)));
        }
        Ok(copies)
    }

    /// Answers a request as the keeper `me`; what it changes is on the disk then.
    ///
    /// # Errors
    /// The store failed: nothing is to be answered.
    pub async fn keep(
        &self,
        me: NodeKey,
        session: SessionId,
        request: KeeperRequest,
    ) -> Result<KeeperReply, JournalError> {
        let _one = self.gates[(session.0 % GATES as u64) as usize].lock().await;
        let copy = self.copy(session).await?;
        let before = copy.as_ref().map_or(0, |copy| copy.turns);
        let (reply, change) = decide(me, copy.as_ref(), request);
        let Some(change) = change else { return Ok(reply) };
        let log = log(session);
        let mut writes = vec![put(Kind::Copy, key(session.0), to_json(change.copy()), Condition::Any)];
        let append = |log: &[u8], from: u64, turns: Vec<Vec<u8>>| -> Vec<Write> {
            let entry = |(at, entry)| Write::Append {
                log: log.to_vec(),
                epoch: EPOCH,
                at: Some(from + at as u64),
                entry,
            };
            turns.into_iter().enumerate().map(entry).collect()
        };
        match change {
            Change::Head(_) => {}
            Change::Append { turns, .. } => writes.extend(append(&log, before, turns)),
            Change::Replace { turns, .. } => {
                writes.push(Write::Drop { log: log.clone(), epoch: EPOCH });
                writes.extend(append(&log, 0, turns));
            }
            Change::Drop(_) => writes.push(Write::Drop { log, epoch: EPOCH }),
        }
        self.journal.write(writes).await?;
        Ok(reply)
    }

    /// Turns of a session as they are written down, from `from` on: as many as come to at most `PAGE_BYTES`, at least one if
    /// there is one.
    ///
    /// # Errors
    /// The store failed, or an entry is damaged.
    pub async fn turns_page(&self, session: SessionId, from: u64) -> Result<Vec<Vec<u8>>, JournalError> {
        let page = self.journal.read(move |store| store.read_log(&log(session), from, PAGE_BYTES)).await?;
        let entries = page.map(|page| page.entries).unwrap_or_default();
        Ok(entries.into_iter().map(|entry| entry.value).collect())
    }

    /// All turns of a session from `from` on, as they are written down.
    ///
    /// # Errors
    /// As [`turns_page`](Self::turns_page).
    pub async fn turns(&self, session: SessionId, from: u64) -> Result<Vec<Vec<u8>>, JournalError> {
        let mut turns = Vec::new();
        loop {
            let page = self.turns_page(session, from + turns.len() as u64).await?;
            if page.is_empty() {
                return Ok(turns);
            }
            turns.extend(page);
        }
    }

    /// A context that this node has, its own or one of sessions that others run, as it is written down.
    ///
    /// # Errors
    /// The store failed, or the record is damaged.
    pub async fn manifest(&self, context: ContextId) -> Result<Option<Vec<u8>>, JournalError> {
        let record = self.journal.read(move |store| {
            let own = store.get(Kind::Manifest, &key(context.0))?;
            if own.is_some() { Ok(own) } else { store.get(Kind::KeptManifest, &key(context.0)) }
        });
        Ok(record.await?.map(|record| record.value))
    }

    /// A piece of a context as it is written down, and the length of the whole; none if it is not here.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest).
    pub async fn manifest_piece(
        &self,
        context: ContextId,
        range: Range<usize>,
    ) -> Result<Option<(usize, Vec<u8>)>, JournalError> {
        let Some(whole) = self.manifest(context).await? else { return Ok(None) };
        let range = range.start.min(whole.len())..range.end.min(whole.len());
        Ok(Some((whole.len(), whole[range].to_vec())))
    }

    /// Keeps a context for sessions that others run.
    ///
    /// # Errors
    /// It is none, or the store failed.
    pub async fn keep_manifest(&self, context: ContextId, value: Vec<u8>) -> Result<(), JournalError> {
        context_of(context, &value)?;
        self.recent.lock().await.insert(context);
        self.journal.write(vec![put(Kind::KeptManifest, key(context.0), value, Condition::Any)]).await
    }

    /// Makes a context that is kept for others one of this node.
    ///
    /// # Errors
    /// It is not here, it is damaged, or the store failed.
    pub async fn adopt_manifest(&self, context: ContextId) -> Result<(), JournalError> {
        if self.journal.has_context(context).await? {
            return Ok(());
        }
        let missing = || damaged(&format!("context {context}"), "no copy of it is here".to_owned());
        let value = self.manifest(context).await?.ok_or_else(missing)?;
        let record: ContextRecord = context_of(context, &value)?;
        self.journal.context_created(record).await
    }

    /// Makes a context of this node one that is kept for others, for as long as they need it. Tells whether it was this node's.
    ///
    /// # Errors
    /// The store failed, or the record is damaged.
    pub async fn give_up_manifest(&self, context: ContextId) -> Result<bool, JournalError> {
        let record = self.journal.read(move |store| store.get(Kind::Manifest, &key(context.0))).await?;
        let Some(record) = record else { return Ok(false) };
        let kept = put(Kind::KeptManifest, key(context.0), record.value, Condition::Any);
        self.journal.write(vec![kept, delete(Kind::Manifest, context.0)]).await?;
        Ok(true)
    }

    /// Whether a context is here; if so, it is kept as if it had just come.
    ///
    /// # Errors
    /// The store failed.
    pub async fn renew_manifest(&self, context: ContextId) -> Result<bool, JournalError> {
        self.recent.lock().await.insert(context);
        self.journal
            .read(move |store| {
                let own = store.list(Kind::Manifest, &key(context.0), None, 1)?;
                let kept = store.list(Kind::KeptManifest, &key(context.0), None, 1)?;
                Ok(!own.is_empty() || !kept.is_empty())
            })
            .await
    }

    /// Lets contexts go that are kept for no session any more, and the oldest heads of sessions that are gone from here, of
    /// which [`MAX_GONE`] stay.
    ///
    /// # Errors
    /// The store failed.
    pub async fn tidy(&self, me: NodeKey) -> Result<(), JournalError> {
        self.tidy_to(me, MAX_GONE).await
    }

    async fn tidy_to(&self, me: NodeKey, max_gone: usize) -> Result<(), JournalError> {
        // In this order: a context that comes, and the copy behind it, is not listed, or recent, or needed.
        let kept = self.journal.keys(Kind::KeptManifest).await?;
        let recent = std::mem::take(&mut *self.recent.lock().await);
        let (mut needed, mut gone) = (recent, Vec::new());
        for id in self.journal.keys(Kind::Copy).await? {
            let record = self.journal.read(move |store| store.get(Kind::Copy, &key(id))).await?;
            let Some(record) = record else { continue };
            let copy: Copy = from_json(&format!("the copy of session {}", SessionId(id)), &record.value)?;
            match copy.head {
                Some(head) if head.is_kept_by(me) => _ = needed.insert(head.context),
                Some(_) => gone.push((record.version, id)),
                // Only a promise: whoever made it promise is about to store.
                None => {}
            }
        }
        for some in kept.chunks(DELETED_AT_ONCE) {
            // Held while they go: whoever renews one meanwhile finds it either kept or gone.
            let recent = self.recent.lock().await;
            let is_needed = |id: u64| needed.contains(&ContextId(id)) || recent.contains(&ContextId(id));
            let unneeded = some.iter().filter(|id| !is_needed(**id));
            let writes: Vec<_> = unneeded.map(|id| delete(Kind::KeptManifest, *id)).collect();
            if !writes.is_empty() {
                self.journal.write(writes).await?;
            }
        }
        // The store's versions rise: those that were written first go first.
        gone.sort_unstable();
        let surplus = gone.len().saturating_sub(max_gone);
        for (version, id) in &gone[..surplus] {
            self.forget_gone(SessionId(*id), *version).await?;
        }
        Ok(())
    }

    /// Deletes what is known of a session that is gone, unless it was written anew since.
    async fn forget_gone(&self, session: SessionId, version: u64) -> Result<(), JournalError> {
        let _one = self.gates[(session.0 % GATES as u64) as usize].lock().await;
        let record = self.journal.read(move |store| store.get(Kind::Copy, &key(session.0))).await?;
        if record.is_none_or(|record| record.version != version) {
            return Ok(());
        }
        self.journal.write(vec![delete(Kind::Copy, session.0)]).await
    }
}

/// A turn as it is written down.
pub fn turn_bytes(turn: &TurnRecord) -> Vec<u8> {
    to_json(turn)
}

/// A turn as it was written down.
///
/// # Errors
/// [`JournalError::Damaged`].
pub fn turn_of(session: SessionId, bytes: &[u8]) -> Result<TurnRecord, JournalError> {
    from_json(&format!("a turn of session {session}"), bytes)
}

fn log(session: SessionId) -> Vec<u8> {
    [b"copies ", &session.0.to_be_bytes()[..]].concat()
}

#[cfg(test)]
mod tests {
    use stellate_model::block::Layout;
    use stellate_runtime::store::{Store, StoreHandle, StoreOptions};

    use super::*;
    use crate::journal::SessionRecord;
    use crate::prompt::Prompting;
    use crate::turn::FinishReason;

    const SESSION: SessionId = SessionId(5);

    fn turn(id: u32) -> TurnRecord {
        TurnRecord { query_ids: vec![1, 2], ids: vec![id], finish: FinishReason::Stop }
    }

    fn context() -> ContextRecord {
        let (layout, prompting) = (Layout::star(8, 8), Prompting::Raw);
        ContextRecord { id: ContextId(3), layout, prompting, blocks: Vec::new(), ids: (0..16).collect() }
    }

    async fn open(folder: &std::path::Path, me: u8) -> (StoreHandle, KeptSessions) {
        let store = StoreHandle::start(Store::open(folder, StoreOptions::default()).unwrap()).unwrap();
        let journal = StoreJournal::open(store.clone(), 0).await.unwrap();
        (store, KeptSessions::open(journal, NodeKey([me; 6])).await.unwrap())
    }

    async fn close(store: StoreHandle, kept: KeptSessions) {
        drop(kept);
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();
    }

    #[tokio::test]
    async fn sessions_of_an_earlier_time_and_of_an_earlier_identity_stay_this_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let store = StoreHandle::start(Store::open(folder.path(), StoreOptions::default()).unwrap()).unwrap();
        let journal = StoreJournal::open(store.clone(), 0).await.unwrap();
        let record = SessionRecord { id: SESSION, context: ContextId(3) };
        let refused = journal.session_opened(record).await;
        assert_eq!(refused, Err(JournalError::NoContext { context: ContextId(3) }));
        journal.context_created(context()).await.unwrap();
        journal.session_opened(record).await.unwrap();
        journal.turn_appended(SESSION, 0, turn(7)).await.unwrap();
        drop(journal);
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();

        let (store, kept) = open(folder.path(), 1).await;
        assert!(kept.journal().sessions().await.unwrap().is_empty(), "it is in one place only");
        let copy = kept.copy(SESSION).await.unwrap().unwrap();
        assert_eq!((copy.promised, copy.turns), (Epoch::first(NodeKey([1; 6])), 1));
        close(store, kept).await;

        let (store, kept) = open(folder.path(), 2).await;
        let Copy { head, promised, turns } = kept.copy(SESSION).await.unwrap().unwrap();
        assert_eq!((promised, turns), (Epoch { counter: 2, owner: NodeKey([2; 6]) }, 1));
        assert_eq!(head.unwrap().set, CopySet::of(vec![NodeKey([2; 6])]));
        let logged = kept.turns(SESSION, 0).await.unwrap();
        assert_eq!(turn_of(SESSION, &logged[0]).unwrap(), turn(7));
        close(store, kept).await;
    }

    #[tokio::test]
    async fn what_a_keeper_has_answered_is_there_again_after_it_was_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (me, epoch) = (NodeKey([2; 6]), Epoch::first(NodeKey([1; 6])));
        let set = CopySet::of(vec![epoch.owner, me]);
        let context = ContextId(3);
        let head = Head { session: SESSION, context, epoch, version: 1, set, is_removed: false };
        let store_turns = |from, ids: &[u32]| KeeperRequest::Store {
            head: head.clone(),
            from,
            turns: ids.iter().map(|id| turn_bytes(&turn(*id))).collect(),
        };
        let (store, kept) = open(folder.path(), 2).await;
        kept.keep(me, SESSION, store_turns(0, &[4])).await.unwrap();
        let reply = kept.keep(me, SESSION, store_turns(1, &[5])).await.unwrap();
        assert_eq!(reply, KeeperReply::Stored { epoch, version: 1, turns: 2 });
        let later = epoch.next(NodeKey([3; 6]));
        kept.keep(me, SESSION, KeeperRequest::Fence(later)).await.unwrap();
        close(store, kept).await;

        let (store, kept) = open(folder.path(), 2).await;
        let refused = kept.keep(me, SESSION, store_turns(2, &[6])).await.unwrap();
        assert_eq!(refused, KeeperReply::Fenced(later), "it still obeys");
        assert_eq!(kept.turns(SESSION, 0).await.unwrap().len(), 2);
        close(store, kept).await;
    }

    #[tokio::test]
    async fn of_the_heads_of_sessions_that_are_gone_those_written_last_stay() {
        let folder = tempfile::tempdir().unwrap();
        let me = NodeKey([2; 6]);
        let (store, kept) = open(folder.path(), 2).await;
        let remove = |session| {
            let (epoch, set) = (Epoch::first(me), CopySet::of(vec![me]));
            let head = Head { session, context: ContextId(3), epoch, version: 2, set, is_removed: true };
            kept.keep(me, session, KeeperRequest::Store { head, from: 0, turns: Vec::new() })
        };
        for id in [7, 9, 5] {
            remove(SessionId(id)).await.unwrap();
        }
        kept.tidy_to(me, 2).await.unwrap();
        let left: Vec<_> = kept.copies().await.unwrap().into_iter().map(|(session, _)| session.0).collect();
        assert_eq!(left, [5, 9]);
        // One that was written anew since it was looked at stays.
        let version = store.read(|store| store.get(Kind::Copy, &key(5))).await.unwrap().unwrap().version;
        kept.keep(me, SESSION, KeeperRequest::Fence(Epoch { counter: 9, owner: me })).await.unwrap();
        kept.forget_gone(SESSION, version).await.unwrap();
        assert!(kept.copy(SESSION).await.unwrap().is_some());
        close(store, kept).await;
    }

    #[tokio::test]
    async fn a_context_that_is_given_up_stays_while_copies_of_others_need_it() {
        let folder = tempfile::tempdir().unwrap();
        let (me, owner, context) = (NodeKey([2; 6]), NodeKey([1; 6]), ContextId(3));
        let (store, kept) = open(folder.path(), 2).await;
        kept.journal().context_created(self::context()).await.unwrap();
        let epoch = Epoch::first(owner);
        let set = CopySet::of(vec![owner, me]);
        let head = Head { session: SESSION, context, epoch, version: 1, set, is_removed: false };
        let request = KeeperRequest::Store { head: head.clone(), from: 0, turns: Vec::new() };
        kept.keep(me, SESSION, request).await.unwrap();

        assert!(kept.give_up_manifest(context).await.unwrap());
        assert!(!kept.give_up_manifest(context).await.unwrap(), "it is not this node's any more");
        assert!(!kept.journal().has_context(context).await.unwrap());
        kept.tidy(me).await.unwrap();
        assert!(kept.manifest(context).await.unwrap().is_some(), "a copy needs it");

        let request = KeeperRequest::Store {
            head: Head { version: 2, is_removed: true, ..head },
            from: 0,
            turns: Vec::new(),
        };
        kept.keep(me, SESSION, request).await.unwrap();
        kept.tidy(me).await.unwrap();
        assert!(kept.manifest(context).await.unwrap().is_none());
        close(store, kept).await;
    }

    #[tokio::test]
    async fn a_context_that_is_asked_about_stays_until_its_session_had_time_to_come() {
        let folder = tempfile::tempdir().unwrap();
        let (me, context) = (NodeKey([2; 6]), ContextId(3));
        let (store, kept) = open(folder.path(), 2).await;
        let written = put(Kind::KeptManifest, key(context.0), vec![1], Condition::Any);
        kept.journal.write(vec![written]).await.unwrap();
        assert!(kept.renew_manifest(context).await.unwrap());
        kept.tidy(me).await.unwrap();
        assert!(kept.manifest(context).await.unwrap().is_some(), "its session may be on its way");
        kept.tidy(me).await.unwrap();
        assert!(!kept.renew_manifest(context).await.unwrap(), "none came");
        close(store, kept).await;
    }
}
