//! Writing: the rules that each write is judged by, and one transaction with one sync for all writes of a call.

use redb::{ReadableTable, Table, WriteTransaction};

use super::database::Store;
use super::error::{Refusal, StoreError, WriteError};
use super::sealed::{self, Place};
use super::tables::{ENTRIES, HEADS, NUMBERS, RECORDS, VERSION_KEY};
use super::types::{Condition, Kind, MAX_KEY_BYTES, Promise, Write, Written};

/// The key of the one record of [`Kind::Promise`].
pub(super) const PROMISE_KEY: &[u8] = b"promise";

/// What came of one write, or why the rules refused it.
pub(super) type Outcome = Result<Written, Refusal>;

impl Store {
    /// Performs `writes` in order and syncs once; when this returns, they are on the disk. One that is refused leaves the
    /// others alone. A crash leaves all of them or none. The outcomes are in the order of the writes.
    ///
    /// # Errors
    /// The disk failed: none is acknowledged.
    pub fn write(&self, writes: &[Write]) -> Result<Vec<Result<Written, Refusal>>, StoreError> {
        self.write_all(writes.iter())
    }

    pub(super) fn write_all<'write>(
        &self,
        writes: impl Iterator<Item = &'write Write>,
    ) -> Result<Vec<Outcome>, StoreError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let mut outcomes = Vec::with_capacity(writes.size_hint().0);
            {
                let mut tables = Tables::open(&transaction, self.options.max_value_bytes)?;
                for write in writes {
                    outcomes.push(tables.apply(write)?);
                }
                tables.numbers.insert(VERSION_KEY, tables.version)?;
            }
            if outcomes.iter().any(Result::is_ok) {
                // Immediate durability is the database's default: this returns after the sync.
                transaction.commit()?;
            } else {
                transaction.abort()?;
            }
            Ok(outcomes)
        })
    }

    /// Sets a record; its version from now on.
    ///
    /// # Errors
    /// The condition does not hold, key or value are out of bounds, or the disk failed.
    pub fn put(&self, kind: Kind, key: &[u8], value: &[u8], condition: Condition) -> Result<u64, WriteError> {
        let write = Write::Put { kind, key: key.to_vec(), value: value.to_vec(), condition };
        match self.write_one(&write)? {
            Written::Put { version } => Ok(version),
            other => unreachable!("a put came to {other:?}"),
        }
    }

    /// Deletes a record; whether there was one.
    ///
    /// # Errors
    /// The condition does not hold, the key is out of bounds, or the disk failed.
    pub fn delete(&self, kind: Kind, key: &[u8], condition: Condition) -> Result<bool, WriteError> {
        match self.write_one(&Write::Delete { kind, key: key.to_vec(), condition })? {
            Written::Deleted { existed } => Ok(existed),
            other => unreachable!("a delete came to {other:?}"),
        }
    }

    /// Appends to a log, see [`Write::Append`]; the entry's index.
    ///
    /// # Errors
    /// The log has a later epoch, the index is not the expected one, bounds, or the disk failed.
    pub fn append(&self, log: &[u8], epoch: u64, entry: &[u8]) -> Result<u64, WriteError> {
        match self.write_one(&Write::Append { log: log.to_vec(), epoch, at: None, entry: entry.to_vec() })? {
            Written::Appended { index } => Ok(index),
            other => unreachable!("an append came to {other:?}"),
        }
    }

    /// Fences a log, see [`Write::Fence`]; the index that the next entry will have.
    ///
    /// # Errors
    /// The log has a later epoch, bounds, or the disk failed.
    pub fn fence(&self, log: &[u8], epoch: u64) -> Result<u64, WriteError> {
        match self.write_one(&Write::Fence { log: log.to_vec(), epoch })? {
            Written::Fenced { next } => Ok(next),
            other => unreachable!("a fence came to {other:?}"),
        }
    }

    /// Makes a promise.
    ///
    /// # Errors
    /// A higher one has been made, or the disk failed.
    pub fn promise(&self, promise: Promise) -> Result<(), WriteError> {
        self.write_one(&Write::Promise(promise)).map(|_| ())
    }

    fn write_one(&self, write: &Write) -> Result<Written, WriteError> {
        let outcome = self.write_all(std::iter::once(write))?.pop();
        Ok(outcome.unwrap_or_else(|| unreachable!("one write has one outcome"))?)
    }
}

/// The tables of one transaction.
struct Tables<'transaction> {
    numbers: Table<'transaction, &'static str, u64>,
    records: Table<'transaction, (u8, &'static [u8]), &'static [u8]>,
    heads: Table<'transaction, &'static [u8], &'static [u8]>,
    entries: Table<'transaction, (&'static [u8], u64), &'static [u8]>,
    version: u64,
    max_value_bytes: usize,
}

impl<'transaction> Tables<'transaction> {
    fn open(transaction: &'transaction WriteTransaction, max_value_bytes: usize) -> Result<Self, StoreError> {
        let numbers = transaction.open_table(NUMBERS)?;
        let version = numbers.get(VERSION_KEY)?.map(|version| version.value());
        let version =
            version.ok_or_else(|| StoreError::Corrupt { what: "the counter of versions".to_owned() })?;
        let (records, heads) = (transaction.open_table(RECORDS)?, transaction.open_table(HEADS)?);
        let entries = transaction.open_table(ENTRIES)?;
        Ok(Self { numbers, records, heads, entries, version, max_value_bytes })
    }

    fn apply(&mut self, write: &Write) -> Result<Outcome, StoreError> {
        if let Err(refusal) = self.check_bounds(write) {
            return Ok(Err(refusal));
        }
        match write {
            Write::Put { kind, key, value, condition } => self.put(*kind, key, value, *condition),
            Write::Delete { kind, key, condition } => self.delete(*kind, key, *condition),
            Write::Append { log, epoch, at, entry } => self.append(log, *epoch, *at, entry),
            Write::Fence { log, epoch } => self.fence(log, *epoch),
            Write::Drop { log, epoch } => self.drop_log(log, *epoch),
            Write::Promise(promise) => self.promise(promise),
        }
    }

    fn check_bounds(&self, write: &Write) -> Result<(), Refusal> {
        let (key, value): (&[u8], &[u8]) = match write {
            Write::Put { key, value, .. } => (key, value),
            Write::Delete { key, .. } => (key, &[]),
            Write::Append { log, entry, .. } => (log, entry),
            Write::Fence { log, .. } | Write::Drop { log, .. } => (log, &[]),
            Write::Promise(_) => return Ok(()),
        };
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(Refusal::Key { bytes: key.len() });
        }
        if value.len() > self.max_value_bytes {
            return Err(Refusal::TooLarge { bytes: value.len(), limit: self.max_value_bytes });
        }
        Ok(())
    }

    fn put(
        &mut self,
        kind: Kind,
        key: &[u8],
        value: &[u8],
        condition: Condition,
    ) -> Result<Outcome, StoreError> {
        if let Err(refusal) = self.check(kind, key, condition)? {
            return Ok(Err(refusal));
        }
        let version = self.version + 1;
        let sealed = sealed::seal(&Place::Record(kind as u8, key), [version], value);
        self.records.insert((kind as u8, key), sealed.as_slice())?;
        self.version = version;
        Ok(Ok(Written::Put { version }))
    }

    fn delete(&mut self, kind: Kind, key: &[u8], condition: Condition) -> Result<Outcome, StoreError> {
        if let Err(refusal) = self.check(kind, key, condition)? {
            return Ok(Err(refusal));
        }
        let existed = self.records.remove((kind as u8, key))?.is_some();
        Ok(Ok(Written::Deleted { existed }))
    }

    /// Whether `condition` holds of a record. Without a condition a damaged record may be overwritten or deleted: there is
    /// no other way to be rid of it.
    fn check(&self, kind: Kind, key: &[u8], condition: Condition) -> Result<Result<(), Refusal>, StoreError> {
        if condition == Condition::Any {
            return Ok(Ok(()));
        }
        let stored = match self.records.get((kind as u8, key))? {
            None => None,
            Some(sealed) => {
                let ([version], _) = sealed::open(&Place::Record(kind as u8, key), sealed.value())?;
                Some(version)
            }
        };
        let expected = match condition {
            Condition::Version(version) => Some(version),
            _ => None,
        };
        Ok(if stored == expected { Ok(()) } else { Err(Refusal::Version { stored }) })
    }

    /// Epoch, next index and bytes of a log; none if there is no such log.
    fn head(&self, log: &[u8]) -> Result<Option<[u64; 3]>, StoreError> {
        match self.heads.get(log)? {
            None => Ok(None),
            Some(sealed) => Ok(Some(sealed::open(&Place::Head(log), sealed.value())?.0)),
        }
    }

    fn set_head(&mut self, log: &[u8], head: [u64; 3]) -> Result<(), StoreError> {
        self.heads.insert(log, sealed::seal(&Place::Head(log), head, &[]).as_slice())?;
        Ok(())
    }

    fn append(
        &mut self,
        log: &[u8],
        epoch: u64,
        at: Option<u64>,
        entry: &[u8],
    ) -> Result<Outcome, StoreError> {
        let [stored, next, bytes] = self.head(log)?.unwrap_or_default();
        if epoch < stored {
            return Ok(Err(Refusal::Fenced { stored, offered: epoch }));
        }
        if let Some(expected) = at.filter(|at| *at != next) {
            return Ok(Err(Refusal::Position { next, expected }));
        }
        let sealed = sealed::seal(&Place::Entry(log, next), [epoch], entry);
        self.entries.insert((log, next), sealed.as_slice())?;
        self.set_head(log, [epoch, next + 1, bytes + entry.len() as u64])?;
        Ok(Ok(Written::Appended { index: next }))
    }

    fn fence(&mut self, log: &[u8], epoch: u64) -> Result<Outcome, StoreError> {
        let head = self.head(log)?;
        let [stored, next, bytes] = head.unwrap_or_default();
        if epoch < stored {
            return Ok(Err(Refusal::Fenced { stored, offered: epoch }));
        }
        if head.is_none() || epoch > stored {
            self.set_head(log, [epoch, next, bytes])?;
        }
        Ok(Ok(Written::Fenced { next }))
    }

    fn drop_log(&mut self, log: &[u8], epoch: u64) -> Result<Outcome, StoreError> {
        let Some([stored, ..]) = self.head(log)? else {
            return Ok(Ok(Written::Deleted { existed: false }));
        };
        if epoch < stored {
            return Ok(Err(Refusal::Fenced { stored, offered: epoch }));
        }
        self.entries.retain_in((log, 0)..=(log, u64::MAX), |_, _| false)?;
        self.heads.remove(log)?;
        Ok(Ok(Written::Deleted { existed: true }))
    }

    fn promise(&mut self, promise: &Promise) -> Result<Outcome, StoreError> {
        let place = Place::Record(Kind::Promise as u8, PROMISE_KEY);
        let stored = match self.records.get((Kind::Promise as u8, PROMISE_KEY))? {
            None => None,
            Some(sealed) => Some(promise_of(&place, sealed.value())?),
        };
        match stored {
            Some(stored) if *promise < stored => return Ok(Err(Refusal::Promised { stored })),
            Some(stored) if *promise == stored => return Ok(Ok(Written::Promised)),
            _ => {}
        }
        let sealed = sealed::seal(&place, [promise.term], &promise.holder);
        self.records.insert((Kind::Promise as u8, PROMISE_KEY), sealed.as_slice())?;
        Ok(Ok(Written::Promised))
    }
}

/// The promise that was sealed at `place`.
pub(super) fn promise_of(place: &Place<'_>, sealed: &[u8]) -> Result<Promise, StoreError> {
    let ([term], holder) = sealed::open(place, sealed)?;
    let holder = holder.try_into().map_err(|_| StoreError::Corrupt { what: "the promise".to_owned() })?;
    Ok(Promise { term, holder })
}
