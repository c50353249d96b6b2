//! The journal over the store in a node's data folder. A context is a record: the length of a header (4 bytes, little
//! endian), the header as JSON, then its tokens (4 bytes each, little endian), of which there may be millions. A session
//! is a record in JSON, and a log of turns in JSON.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stellate_model::block::{BlockId, Layout};
use stellate_runtime::store::{Condition, HandleError, Kind, Store, StoreError, StoreHandle, Write};
use tokio::sync::Mutex;

use super::{ContextRecord, Forget, Journal, JournalError, Journaled, SessionRecord};
use crate::manifest::ContextId;
use crate::prompt::Prompting;
use crate::session::{SessionId, TurnRecord};

/// Where the next number to be given stands.
const NUMBERS_KEY: &[u8] = b"journal numbers";

/// Numbers that are taken from the store at once; as many at most are lost by a restart.
const NUMBERS_AT_ONCE: u64 = 64;

/// Bits of a name that count; those above say whose it is.
const COUNTER_BITS: u32 = 32;

/// The logs have one owner, the process that holds the store's folder.
const EPOCH: u64 = 1;

/// Records in a page of a listing.
const PAGE: usize = 256;

/// Bytes of turns that are read at once.
const PAGE_BYTES: usize = 1 << 20;

/// A journal in the store of a node.
#[derive(Debug)]
pub struct StoreJournal {
    store: StoreHandle,
    scope: u32,
    numbers: Mutex<Numbers>,
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    /// What the store says: numbers from here on were never given.
    taken: u64,
}

/// What stands before a context's tokens.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    layout: Layout,
    prompting: Prompting,
    blocks: Vec<BlockId>,
}

impl StoreJournal {
    /// The journal in `store`, whose names begin with `scope`: 0 in a process of its own, and in a cluster a number that
    /// no other query node has.
    ///
    /// # Errors
    /// The store failed, or the count of names is damaged.
    pub async fn open(store: StoreHandle, scope: u32) -> Result<Self, JournalError> {
        let taken = match store.read(|store| store.get(Kind::Node, NUMBERS_KEY)).await? {
            None => 1,
            Some(record) => {
                let bytes = record.value.try_into().map_err(|value: Vec<u8>| {
                    damaged("the count of names", format!("it has {} bytes, not 8", value.len()))
                })?;
                u64::from_le_bytes(bytes)
            }
        };
        Ok(Self { store, scope, numbers: Mutex::new(Numbers { next: taken, taken }) })
    }

    /// Whether the names of this journal begin as this one does.
    pub(crate) fn gives(&self, name: u64) -> bool {
        name >> COUNTER_BITS == u64::from(self.scope)
    }

    /// Whether a context is here.
    pub(crate) async fn has_context(&self, context: ContextId) -> Result<bool, JournalError> {
        let listed = self.read(move |store| store.list(Kind::Manifest, &key(context.0), None, 1)).await?;
        Ok(!listed.is_empty())
    }

    pub(super) async fn write(&self, writes: Vec<Write>) -> Result<(), JournalError> {
        for outcome in self.store.write(writes).await? {
            outcome.map_err(HandleError::from)?;
        }
        Ok(())
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, JournalError> {
        Ok(self.store.read(read).await?)
    }

    /// The keys of all records of a kind, which are numbers.
    pub(super) async fn keys(&self, kind: Kind) -> Result<Vec<u64>, JournalError> {
        let keys = self.read(move |store| {
            let mut keys: Vec<Vec<u8>> = Vec::new();
            loop {
                let page = store.list(kind, &[], keys.last().map(Vec::as_slice), PAGE)?;
                let is_last = page.len() < PAGE;
                keys.extend(page.into_iter().map(|listed| listed.key));
                if is_last {
                    return Ok(keys);
                }
            }
        });
        let number = |key: Vec<u8>| {
            let bytes = key.try_into().map_err(|key: Vec<u8>| {
                damaged("a key of the journal", format!("it has {} bytes, not 8", key.len()))
            })?;
            Ok(u64::from_be_bytes(bytes))
        };
        keys.await?.into_iter().map(number).collect()
    }

    async fn session_record(&self, id: SessionId) -> Result<Option<SessionRecord>, JournalError> {
        let record = self.read(move |store| store.get(Kind::Session, &key(id.0))).await?;
        record.map(|record| from_json(&format!("session {id}"), &record.value)).transpose()
    }

    async fn all_sessions(&self) -> Result<Vec<SessionRecord>, JournalError> {
        let mut sessions = Vec::new();
        for id in self.keys(Kind::Session).await? {
            sessions.extend(self.session_record(SessionId(id)).await?);
        }
        Ok(sessions)
    }
}

impl Journal for StoreJournal {
    fn name(&self) -> Journaled<'_, u64> {
        Box::pin(async {
            let mut numbers = self.numbers.lock().await;
            if numbers.next == numbers.taken {
                let taken = numbers.taken + NUMBERS_AT_ONCE;
                let value = taken.to_le_bytes().to_vec();
                self.write(vec![put(Kind::Node, NUMBERS_KEY.to_vec(), value, Condition::Any)]).await?;
                numbers.taken = taken;
            }
            let number = numbers.next;
            numbers.next += 1;
            Ok(u64::from(self.scope) << COUNTER_BITS | number)
        })
    }

    fn context_created(&self, context: ContextRecord) -> Journaled<'_, ()> {
        Box::pin(async move {
            let (id, value) = (context.id, context_bytes(context));
            self.write(vec![put(Kind::Manifest, key(id.0), value, Condition::Absent)]).await
        })
    }

    fn context_removed<'a>(
        &'a self,
        context: ContextId,
        forget: Forget<'a>,
    ) -> Journaled<'a, Option<Vec<SessionId>>> {
        Box::pin(async move {
            if self.read(move |store| store.get(Kind::Manifest, &key(context.0))).await?.is_none() {
                return Ok(None);
            }
            let sessions = self.all_sessions().await?.into_iter();
            let ids: Vec<SessionId> = sessions.filter(|s| s.context == context).map(|s| s.id).collect();
            let mut writes = vec![delete(Kind::Manifest, context.0)];
            for session in &ids {
                writes.extend([delete(Kind::Session, session.0), drop_log(*session)]);
            }
            self.write(writes).await?;
            forget();
            Ok(Some(ids))
        })
    }

    fn session_opened(&self, session: SessionRecord) -> Journaled<'_, ()> {
        Box::pin(async move {
            let context = session.context;
            if !self.has_context(context).await? {
                return Err(JournalError::NoContext { context });
            }
            let record = put(Kind::Session, key(session.id.0), to_json(&session), Condition::Absent);
            self.write(vec![record, Write::Fence { log: log(session.id), epoch: EPOCH }]).await
        })
    }

    fn session_closed(&self, session: SessionId) -> Journaled<'_, bool> {
        Box::pin(async move {
            let existed = self.session_record(session).await?.is_some();
            self.write(vec![delete(Kind::Session, session.0), drop_log(session)]).await?;
            Ok(existed)
        })
    }

    fn turn_appended(&self, session: SessionId, index: u64, turn: TurnRecord) -> Journaled<'_, ()> {
        let (log, entry) = (log(session), to_json(&turn));
        Box::pin(self.write(vec![Write::Append { log, epoch: EPOCH, at: Some(index), entry }]))
    }

    fn contexts(&self) -> Journaled<'_, Vec<ContextId>> {
        Box::pin(async { Ok(self.keys(Kind::Manifest).await?.into_iter().map(ContextId).collect()) })
    }

    fn context(&self, id: ContextId) -> Journaled<'_, Option<ContextRecord>> {
        Box::pin(async move {
            let record = self.read(move |store| store.get(Kind::Manifest, &key(id.0))).await?;
            record.map(|record| context_of(id, &record.value)).transpose()
        })
    }

    fn sessions(&self) -> Journaled<'_, Vec<SessionRecord>> {
        Box::pin(self.all_sessions())
    }

    fn session(&self, id: SessionId) -> Journaled<'_, Option<(SessionRecord, Vec<TurnRecord>)>> {
        Box::pin(async move {
            let Some(record) = self.session_record(id).await? else { return Ok(None) };
            let entries = self.read(move |store| {
                let mut entries = Vec::new();
                while let Some(page) = store.read_log(&log(id), entries.len() as u64, PAGE_BYTES)? {
                    entries.extend(page.entries);
                    if entries.len() as u64 >= page.head.next {
                        break;
                    }
                }
                Ok(entries)
            });
            let what = format!("a turn of session {id}");
            let turns = entries
                .await?
                .iter()
                .map(|entry| from_json(&what, &entry.value))
                .collect::<Result<_, _>>()?;
            Ok(Some((record, turns)))
        })
    }
}

fn context_bytes(context: ContextRecord) -> Vec<u8> {
    let ContextRecord { layout, prompting, blocks, ids, .. } = context;
    let header = to_json(&Header { layout, prompting, blocks });
    let mut value = (header.len() as u32).to_le_bytes().to_vec();
    value.extend(header);
    value.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    value
}

/// A context as it was written down.
pub(super) fn context_of(id: ContextId, value: &[u8]) -> Result<ContextRecord, JournalError> {
    let what = format!("context {id}");
    let split = value
        .split_first_chunk()
        .and_then(|(length, rest)| rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?));
    let (header, tokens) = split.ok_or_else(|| damaged(&what, "it is cut short".to_owned()))?;
    let Header { layout, prompting, blocks } = from_json(&what, header)?;
    let (ids, rest) = tokens.as_chunks();
    if !rest.is_empty() {
        return Err(damaged(&what, "its last token is cut short".to_owned()));
    }
    layout.validate().map_err(|error| damaged(&what, error.to_string()))?;
    let ids = ids.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    Ok(ContextRecord { id, layout, prompting, blocks, ids })
}

pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have no map whose keys are no texts")
}

pub(super) fn from_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, JournalError> {
    serde_json::from_slice(bytes).map_err(|error| damaged(what, error.to_string()))
}

pub(super) fn damaged(what: &str, problem: String) -> JournalError {
    JournalError::Damaged { what: what.to_owned(), problem }
}

/// The key of a record by its number; big endian, so that a listing is in the order of numbers.
pub(super) fn key(id: u64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

fn log(session: SessionId) -> Vec<u8> {
    [b"turns ", &session.0.to_be_bytes()[..]].concat()
}

pub(super) fn put(kind: Kind, key: Vec<u8>, value: Vec<u8>, condition: Condition) -> Write {
    Write::Put { kind, key, value, condition }
}

pub(super) fn delete(kind: Kind, id: u64) -> Write {
    Write::Delete { kind, key: key(id), condition: Condition::Any }
}

fn drop_log(session: SessionId) -> Write {
    Write::Drop { log: log(session), epoch: EPOCH }
}
