//! What a node remembers of itself over restarts: how often it was started, the list of the revoked, what its
//! operator wants of it, and where its neighbours were.

use std::net::SocketAddr;

use crate::encoding::{DecodeError, EncodeError, decode, encode};
use crate::identity::{CaHash, SignedRevocations};
use crate::membership::NodeState;
use crate::store::{Condition, HandleError, Kind, StoreHandle, Write};

/// Of which cluster all of it is.
const CA: &[u8] = b"ca";
const BOOT: &[u8] = b"boot";
const REVOCATIONS: &[u8] = b"revocations";
const NEIGHBOURS: &[u8] = b"neighbours";
const STATE: &[u8] = b"state";
/// The most neighbours that are remembered: enough to find the cluster again.
const MAX_NEIGHBOURS: usize = 64;

/// What the node must not forget could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The store.
    #[error(transparent)]
    Store(#[from] HandleError),
    /// A record is not what it should be.
    #[error("a record of the node itself is of another version: {0}")]
    Decode(#[from] DecodeError),
    /// A record cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// The node's own records in the store.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    store: StoreHandle,
}

/// What was remembered at the start.
#[derive(Debug)]
pub(super) struct Remembered {
    /// The number of this start; the first is 1.
    pub(super) boot: u32,
    pub(super) revocations: Option<SignedRevocations>,
    pub(super) state: Option<NodeState>,
    pub(super) neighbours: Vec<SocketAddr>,
}

impl Memory {
    pub(super) fn new(store: StoreHandle) -> Self {
        Self { store }
    }

    /// Reads all of it, and counts this start.
    pub(super) async fn wake(&self) -> Result<Remembered, MemoryError> {
        let boot = match self.read(Kind::Node, BOOT).await? {
            Some(bytes) => decode::<u32>(&bytes)?.saturating_add(1),
            None => 1,
        };
        self.keep_boot(boot).await?;
        let revocations = self.read(Kind::Node, REVOCATIONS).await?;
        let state = self.read(Kind::Intent, STATE).await?;
        let neighbours = self.read(Kind::Node, NEIGHBOURS).await?;
        Ok(Remembered {
            boot,
            revocations: revocations.map(|bytes| decode(&bytes)).transpose()?,
            state: state.map(|bytes| decode(&bytes)).transpose()?,
            // Only hints: what does not decode is forgotten.
            neighbours: neighbours.and_then(|bytes| decode(&bytes).ok()).unwrap_or_default(),
        })
    }

    /// Whether the starts before this one were in another cluster than that of `ca`. What belongs to that one is then to be
    /// forgotten; here it is the list of the revoked.
    pub(super) async fn is_of_another(&self, ca: CaHash) -> Result<bool, MemoryError> {
        let before = self.read(Kind::Node, CA).await?.map(|bytes| decode::<String>(&bytes)).transpose()?;
        let is_other = before.is_some_and(|before| before != ca.to_string());
        if is_other {
            let key = REVOCATIONS.to_vec();
            self.store.write_one(Write::Delete { kind: Kind::Node, key, condition: Condition::Any }).await?;
        }
        Ok(is_other)
    }

    /// Keeps which cluster all of it is of, once nothing of another one is left.
    pub(super) async fn keep_ca(&self, ca: CaHash) -> Result<(), MemoryError> {
        self.put(Kind::Node, CA, encode(&ca.to_string())?).await
    }

    pub(super) async fn keep_boot(&self, boot: u32) -> Result<(), MemoryError> {
        self.put(Kind::Node, BOOT, encode(&boot)?).await
    }

    pub(super) async fn keep_revocations(&self, list: &SignedRevocations) -> Result<(), MemoryError> {
        self.put(Kind::Node, REVOCATIONS, encode(list)?).await
    }

    pub(super) async fn keep_neighbours(&self, mut addresses: Vec<SocketAddr>) -> Result<(), MemoryError> {
        addresses.truncate(MAX_NEIGHBOURS);
        self.put(Kind::Node, NEIGHBOURS, encode(&addresses)?).await
    }

    /// Keeps what an operator wants; a node that is at work or on its way there needs no such record.
    pub(super) async fn keep_state(&self, state: NodeState) -> Result<(), MemoryError> {
        if matches!(state, NodeState::Cordoned | NodeState::Draining | NodeState::Drained) {
            return self.put(Kind::Intent, STATE, encode(&state)?).await;
        }
        let key = STATE.to_vec();
        self.store.write_one(Write::Delete { kind: Kind::Intent, key, condition: Condition::Any }).await?;
        Ok(())
    }

    async fn read(&self, kind: Kind, key: &'static [u8]) -> Result<Option<Vec<u8>>, MemoryError> {
        Ok(self.store.read(move |store| store.get(kind, key)).await?.map(|record| record.value))
    }

    async fn put(&self, kind: Kind, key: &[u8], value: Vec<u8>) -> Result<(), MemoryError> {
        let write = Write::Put { kind, key: key.to_vec(), value, condition: Condition::Any };
        self.store.write_one(write).await?;
        Ok(())
    }
}
