//! Reading: each call sees one state of the store, that of the last commit before it.

use redb::{ReadTransaction, ReadableDatabase};

use super::database::Store;
use super::error::StoreError;
use super::sealed::{self, Place};
use super::tables::{ENTRIES, HEADS, RECORDS};
use super::types::{Kind, Promise};
use super::write::{PROMISE_KEY, promise_of};

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its version, for [`super::Condition::Version`].
    pub version: u64,
    /// What it holds.
    pub value: Vec<u8>,
}

/// A record in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: Vec<u8>,
    /// Its version.
    pub version: u64,
}

/// The state of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Appends need at least this epoch.
    pub epoch: u64,
    /// The index that the next entry will have, which is the number of entries.
    pub next: u64,
    /// The sum of its entries' lengths.
    pub bytes: u64,
}

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its index; the first is 0.
    pub index: u64,
    /// The epoch it was appended in.
    pub epoch: u64,
    /// What it says.
    pub value: Vec<u8>,
}

/// A run of entries of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPage {
    /// The log, at the moment of reading.
    pub head: LogHead,
    /// Entries in order, without a gap.
    pub entries: Vec<Entry>,
}

impl Store {
    /// The record of this kind and key.
    ///
    /// # Errors
    /// The disk failed, or the record is damaged.
    pub fn get(&self, kind: Kind, key: &[u8]) -> Result<Option<Record>, StoreError> {
        self.reading(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let Some(sealed) = records.get((kind as u8, key))? else { return Ok(None) };
            let ([version], value) = sealed::open(&Place::Record(kind as u8, key), sealed.value())?;
            Ok(Some(Record { version, value: value.to_vec() }))
        })
    }

    /// Up to `limit` records of this kind whose keys begin with `prefix` and come after `after`, in the order of their keys.
    ///
    /// # Errors
    /// The disk failed, or one of them is damaged.
    pub fn list(
        &self,
        kind: Kind,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        self.reading(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let start = after.map_or(prefix, |after| after.max(prefix));
            let mut listed = Vec::new();
            for record in records.range((kind as u8, start)..)? {
                let (key, sealed) = record?;
                let (of, key) = key.value();
                if listed.len() >= limit || of != kind as u8 || !key.starts_with(prefix) {
                    break;
                }
                if Some(key) == after {
                    continue;
                }
                let ([version], _) = sealed::open(&Place::Record(of, key), sealed.value())?;
                listed.push(Listed { key: key.to_vec(), version });
            }
            Ok(listed)
        })
    }

    /// The head of a log; none if there is no such log.
    ///
    /// # Errors
    /// The disk failed, or the head is damaged.
    pub fn log(&self, log: &[u8]) -> Result<Option<LogHead>, StoreError> {
        self.reading(|transaction| head(transaction, log))
    }

    /// Entries of a log from index `from` on: as many as come to at most `max_bytes`, but at least one if there is one.
    /// None if there is no such log.
    ///
    /// # Errors
    /// The disk failed, or an entry is damaged or missing.
    pub fn read_log(&self, log: &[u8], from: u64, max_bytes: usize) -> Result<Option<LogPage>, StoreError> {
        self.reading(|transaction| {
            let Some(head) = head(transaction, log)? else { return Ok(None) };
            let table = transaction.open_table(ENTRIES)?;
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for index in from..head.next {
                let place = Place::Entry(log, index);
                let missing = || StoreError::Corrupt { what: format!("{place} is missing") };
                let sealed = table.get((log, index))?.ok_or_else(missing)?;
                let ([epoch], value) = sealed::open(&place, sealed.value())?;
                if !entries.is_empty() && bytes + value.len() > max_bytes {
                    break;
                }
                bytes += value.len();
                entries.push(Entry { index, epoch, value: value.to_vec() });
            }
            Ok(Some(LogPage { head, entries }))
        })
    }

    /// Up to `limit` logs whose names begin with `prefix` and come after `after`, in the order of their names.
    ///
    /// # Errors
    /// The disk failed, or a head is damaged.
    pub fn logs(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, LogHead)>, StoreError> {
        self.reading(|transaction| {
            let heads = transaction.open_table(HEADS)?;
            let mut logs = Vec::new();
            for log in heads.range(after.map_or(prefix, |after| after.max(prefix))..)? {
                let (name, sealed) = log?;
                let name = name.value();
                if logs.len() >= limit || !name.starts_with(prefix) {
                    break;
                }
                if Some(name) != after {
                    logs.push((name.to_vec(), head_of(name, sealed.value())?));
                }
            }
            Ok(logs)
        })
    }

    /// The highest promise made; none before the first.
    ///
    /// # Errors
    /// The disk failed, or the promise is damaged.
    pub fn promised(&self) -> Result<Option<Promise>, StoreError> {
        self.reading(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let Some(sealed) = records.get((Kind::Promise as u8, PROMISE_KEY))? else { return Ok(None) };
            promise_of(&Place::Record(Kind::Promise as u8, PROMISE_KEY), sealed.value()).map(Some)
        })
    }

    fn reading<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.with(|database| read(&database.begin_read()?))
    }
}

fn head(transaction: &ReadTransaction, log: &[u8]) -> Result<Option<LogHead>, StoreError> {
    let heads = transaction.open_table(HEADS)?;
    let Some(sealed) = heads.get(log)? else { return Ok(None) };
    head_of(log, sealed.value()).map(Some)
}

fn head_of(log: &[u8], sealed: &[u8]) -> Result<LogHead, StoreError> {
    let ([epoch, next, bytes], _) = sealed::open(&Place::Head(log), sealed)?;
    Ok(LogHead { epoch, next, bytes })
}
