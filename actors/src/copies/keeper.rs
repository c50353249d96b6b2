//! What a node answers for the copy of a session that it keeps. Whoever calls [`decide`] makes the change durable before the
//! answer leaves, and decides one request of a session at a time.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use super::head::{Copy, Epoch, Head};
use crate::cluster::messages::NodeKey;

/// What a keeper is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum KeeperRequest {
    /// Obey no lower epoch from now on.
    Fence(Epoch),
    /// This is the head, and these are the turns from `from` on.
    Store {
        /// The head as the owner has it.
        head: Head,
        /// The number of the first of `turns`.
        from: u64,
        /// Turns in order, as they are written down.
        turns: Vec<Vec<u8>>,
    },
}

/// What a keeper answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum KeeperReply {
    /// It obeys the epoch. This is what it has.
    Promised(Copy),
    /// It has the log up to here, under this head.
    Stored {
        /// The epoch of the head.
        epoch: Epoch,
        /// Its version.
        version: u64,
        /// Turns that it has.
        turns: u64,
    },
    /// It obeys a later owner.
    Fenced(Epoch),
    /// The turns do not follow on what it has: send those from here on. 0 is the whole log.
    Behind {
        /// The first that it lacks.
        from: u64,
    },
}

/// What a keeper is to make durable before it answers, all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What it has is `copy` from now on; the log stays.
    Head(Copy),
    /// Turns are added to the log.
    Append {
        /// What it has then.
        copy: Copy,
        /// The turns behind those that it had.
        turns: Vec<Vec<u8>>,
    },
    /// The log is these turns from now on.
    Replace {
        /// What it has then.
        copy: Copy,
        /// The whole log.
        turns: Vec<Vec<u8>>,
    },
    /// There is no log any more, only what `copy` says.
    Drop(Copy),
}

impl Change {
    /// What the keeper has once it is durable.
    pub fn copy(&self) -> &Copy {
        match self {
            Self::Head(copy) | Self::Append { copy, .. } | Self::Replace { copy, .. } | Self::Drop(copy) => {
                copy
            }
        }
    }
}

/// What the keeper `me`, which has `copy`, answers once the change is durable.
pub fn decide(me: NodeKey, copy: Option<&Copy>, request: KeeperRequest) -> (KeeperReply, Option<Change>) {
    let has = copy.cloned().unwrap_or_default();
    match request {
        KeeperRequest::Fence(epoch) if epoch < has.promised => (KeeperReply::Fenced(has.promised), None),
        KeeperRequest::Fence(epoch) if epoch == has.promised => (KeeperReply::Promised(has), None),
        KeeperRequest::Fence(epoch) => {
            let copy = Copy { promised: epoch, ..has };
            (KeeperReply::Promised(copy.clone()), Some(Change::Head(copy)))
        }
        KeeperRequest::Store { head, .. } if head.epoch < has.promised => {
            (KeeperReply::Fenced(has.promised), None)
        }
        KeeperRequest::Store { head, from, turns } => store(me, has, head, from, turns),
    }
}

fn store(
    me: NodeKey,
    has: Copy,
    head: Head,
    from: u64,
    turns: Vec<Vec<u8>>,
) -> (KeeperReply, Option<Change>) {
    let old = has.head.as_ref();
    if old.is_some_and(|old| old.rank() > head.rank()) {
        // Overtaken by a newer one of the same owner, which has it in its log.
        return (stored(&has, head), None);
    }
    let promised = head.epoch;
    if !head.is_kept_by(me) {
        let copy = Copy { head: Some(head.clone()), promised, turns: 0 };
        let change = (copy != has).then(|| Change::Drop(copy.clone()));
        return (stored(&copy, head), change);
    }
    // Within an epoch, what it has is a beginning of what the owner has. Of another epoch, or without a log, it may not be.
    let follows = old.is_some_and(|old| old.epoch == head.epoch && old.is_kept_by(me));
    let known = if follows { has.turns } else { 0 };
    if from > known {
        return (KeeperReply::Behind { from: known }, None);
    }
    let count = from + turns.len() as u64;
    let new: Vec<_> = turns.into_iter().skip((known - from) as usize).collect();
    let copy = Copy { head: Some(head.clone()), promised, turns: known.max(count) };
    let reply = stored(&copy, head);
    let change = match (follows, new.is_empty()) {
        (false, _) => Some(Change::Replace { copy, turns: new }),
        (true, false) => Some(Change::Append { copy, turns: new }),
        (true, true) => (copy != has).then_some(Change::Head(copy)),
    };
    (reply, change)
}

/// What it has, told of the head that it was asked to store: never more than the newest that it has.
fn stored(copy: &Copy, asked: Head) -> KeeperReply {
    KeeperReply::Stored { epoch: asked.epoch, version: asked.version, turns: copy.turns }
}
