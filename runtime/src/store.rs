//! What a node must not forget: an embedded database in its data folder. [`Store`] keeps records by kind and key, logs
//! with an epoch fence, and the highest promise made; [`StoreHandle`] is its face for asynchronous code. Values are
//! opaque bytes ([`crate::encoding`] makes them of structured values); what they mean is none of this module's business.
//!
//! **Everything on [`Store`] blocks**, a write for as long as the disk takes to sync. Never call it on a network thread:
//! a peer whose network thread stands still for 1.5 s is taken for dead. [`StoreHandle`] has a thread of its own for
//! writes, where what waits together is synced together, and one for reads.
//!
//! A write that has returned is on the disk. One that returned an error, or was cut short by a crash, is there either
//! wholly or not at all.

mod backend;
mod database;
mod error;
mod handle;
mod options;
mod read;
mod sealed;
mod tables;
mod types;
mod write;

#[cfg(test)]
mod tests;

pub use database::Store;
pub use error::{OpenError, Refusal, StoreError, WriteError};
pub use handle::{HandleError, StoreHandle};
pub use options::StoreOptions;
pub use read::{Entry, Listed, LogHead, LogPage, Record};
pub use types::{Condition, Kind, MAX_KEY_BYTES, Promise, Write, Written};
