//! Join tokens and the holders of names in the durable store. Every call blocks: never on a network thread.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use crate::encoding::{decode, encode};
use crate::identity::{
    Decision, IssuingStore, IssuingStoreError, JoinRefusal, NodeId, NodeName, TokenId, TokenRecord,
};
use crate::store::{Condition, Kind, StoreHandle, Write};

const TOKEN_PREFIX: &str = "token/";
const NAME_PREFIX: &str = "name/";
/// Keys listed at once.
const PAGE: usize = 256;

/// The issuing side's memory in a [`StoreHandle`].
#[derive(Debug)]
pub struct DurableIssuing {
    store: StoreHandle,
    runtime: Handle,
    /// One decision at a time: what it has read must still hold when it writes.
    turn: Mutex<()>,
}

impl DurableIssuing {
    /// Over `store`, waiting by means of `runtime`, of which neither timers nor sockets are used.
    pub fn new(store: StoreHandle, runtime: Handle) -> Self {
        Self { store, runtime, turn: Mutex::new(()) }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, key: String) -> Result<Option<Vec<u8>>, IssuingStoreError> {
        let read = self.store.read(move |store| store.get(Kind::Token, key.as_bytes()));
        Ok(self.runtime.block_on(read).map_err(failed)?.map(|record| record.value))
    }

    fn keys(&self, prefix: &'static str) -> Result<Vec<String>, IssuingStoreError> {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let after = keys.last().cloned();
            let list = self.store.read(move |store| {
                store.list(Kind::Token, prefix.as_bytes(), after.as_deref().map(str::as_bytes), PAGE)
            });
            let page = self.runtime.block_on(list).map_err(failed)?;
            let full = page.len() == PAGE;
            keys.extend(page.into_iter().filter_map(|listed| String::from_utf8(listed.key).ok()));
            if !full {
                return Ok(keys);
            }
        }
    }

    /// All of `writes` in one transaction: none has a condition, so that the rules refuse none.
    fn write(&self, writes: Vec<Write>) -> Result<(), IssuingStoreError> {
        let outcomes = self.runtime.block_on(self.store.write(writes)).map_err(failed)?;
        outcomes.into_iter().try_for_each(|outcome| outcome.map(drop)).map_err(failed)
    }

    fn token(&self, id: TokenId) -> Result<Option<TokenRecord>, IssuingStoreError> {
        self.read(token_key(id))?.map(|bytes| decode(&bytes).map_err(failed)).transpose()
    }

    /// Forgets tokens and names: those of another cluster.
    pub(super) fn forget_all(&self) -> Result<(), IssuingStoreError> {
        let _turn = self.turn();
        let keys = [self.keys(TOKEN_PREFIX)?, self.keys(NAME_PREFIX)?].concat();
        let delete = |key: &String| {
            let key = key.clone().into_bytes();
            Write::Delete { kind: Kind::Token, key, condition: Condition::Any }
        };
        for some in keys.chunks(PAGE) {
            self.write(some.iter().map(delete).collect())?;
        }
        Ok(())
    }

    /// The node that has `name`.
    pub(super) fn holder(&self, name: &NodeName) -> Result<Option<NodeId>, IssuingStoreError> {
        self.read(name_key(name))?.map(|bytes| decode(&bytes).map_err(failed)).transpose()
    }
}

impl IssuingStore for DurableIssuing {
    fn add_token(&self, record: TokenRecord) -> Result<(), IssuingStoreError> {
        let _turn = self.turn();
        self.write(vec![put_token(&record)?])
    }

    fn tokens(&self) -> Result<Vec<TokenRecord>, IssuingStoreError> {
        let read = |key: String| self.read(key);
        let found = self.keys(TOKEN_PREFIX)?.into_iter().filter_map(|key| read(key).transpose());
        found.map(|bytes| decode(&bytes?).map_err(failed)).collect()
    }

    fn revoke_token(&self, id: TokenId) -> Result<bool, IssuingStoreError> {
        let _turn = self.turn();
        let Some(mut record) = self.token(id)? else { return Ok(false) };
        record.revoke();
        self.write(vec![put_token(&record)?]).map(|()| true)
    }

    fn claim_name(&self, name: &NodeName, node: NodeId) -> Result<(), IssuingStoreError> {
        let _turn = self.turn();
        self.write(vec![put_name(name, node)?])
    }

    fn release_names(&self, node: NodeId) -> Result<(), IssuingStoreError> {
        let _turn = self.turn();
        let mut deletes = Vec::new();
        for key in self.keys(NAME_PREFIX)? {
            let holder =
                self.read(key.clone())?.map(|bytes| decode::<NodeId>(&bytes).map_err(failed)).transpose()?;
            if holder == Some(node) {
                let key = key.into_bytes();
                deletes.push(Write::Delete { kind: Kind::Token, key, condition: Condition::Any });
            }
        }
        if deletes.is_empty() { Ok(()) } else { self.write(deletes) }
    }

    fn admit(
        &self,
        token: TokenId,
        name: &NodeName,
        node: NodeId,
        decide: Decision<'_>,
    ) -> Result<Result<(), JoinRefusal>, IssuingStoreError> {
        let _turn = self.turn();
        let Some(mut record) = self.token(token)? else { return Ok(Err(JoinRefusal::UnknownToken)) };
        if let Err(refusal) = decide(&mut record, self.holder(name)?) {
            return Ok(Err(refusal));
        }
        self.write(vec![put_token(&record)?, put_name(name, node)?]).map(Ok)
    }
}

fn token_key(id: TokenId) -> String {
    format!("{TOKEN_PREFIX}{id}")
}

fn name_key(name: &NodeName) -> String {
    format!("{NAME_PREFIX}{name}")
}

fn put_token(record: &TokenRecord) -> Result<Write, IssuingStoreError> {
    let (key, value) = (token_key(record.id()).into_bytes(), encode(record).map_err(failed)?);
    Ok(Write::Put { kind: Kind::Token, key, value, condition: Condition::Any })
}

fn put_name(name: &NodeName, node: NodeId) -> Result<Write, IssuingStoreError> {
    let (key, value) = (name_key(name).into_bytes(), encode(&node).map_err(failed)?);
    Ok(Write::Put { kind: Kind::Token, key, value, condition: Condition::Any })
}

fn failed<E: std::error::Error + Send + Sync + 'static>(error: E) -> IssuingStoreError {
    IssuingStoreError(Box::new(error))
}
