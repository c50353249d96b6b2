//! What can be written, and what comes of it. No disk here.

/// The longest key of a record or of a log, in bytes.
pub const MAX_KEY_BYTES: usize = 256;

/// What a record is about. The numbers are in the file: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// What a context is made of.
    Manifest = 1,
    /// What a session is, beside the log of its turns.
    Session = 2,
    /// What an operator wants of a node: cordoned, draining.
    Intent = 3,
    /// A join token.
    Token = 4,
    /// An identity that is no longer accepted.
    Revocation = 5,
    /// What this node knows of itself: the counter of its starts, its neighbours of last time.
    Node = 6,
    /// The highest promise; written through [`Write::Promise`] only.
    Promise = 7,
    /// What this node has of a session that several nodes keep, beside the log of its turns.
    Copy = 8,
    /// What a context is made of whose sessions other nodes run.
    KeptManifest = 9,
}

/// What must hold of a record for a write to take place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    Any,
    /// There is no such record.
    Absent,
    /// It is at this version.
    Version(u64),
}

/// A promise to obey `holder` in `term` and none with a lower pair, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Promise {
    /// The term.
    pub term: u64,
    /// The id of the node that leads in it.
    pub holder: [u8; 32],
}

/// One write. Several in one call share one sync; each is judged by itself, in order, and sees those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a record.
    Put {
        /// Its kind.
        kind: Kind,
        /// Its key.
        key: Vec<u8>,
        /// What it holds from now on.
        value: Vec<u8>,
        /// What must hold before.
        condition: Condition,
    },

    /// Deletes a record.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its key.
        key: Vec<u8>,
        /// What must hold before.
        condition: Condition,
    },

    /// Appends an entry to a log, which is created if there is none. An epoch above the log's raises it.
    Append {
        /// The log.
        log: Vec<u8>,
        /// The epoch of its owner.
        epoch: u64,
        /// The index that the entry must get, if the writer minds: protects a retry from being a second entry.
        at: Option<u64>,
        /// The entry.
        entry: Vec<u8>,
    },

    /// Raises a log's epoch, so that owners of lower ones can no longer append. The log is created if there is none.
    Fence {
        /// The log.
        log: Vec<u8>,
        /// The epoch from now on; the same again is fine.
        epoch: u64,
    },

    /// Deletes a log and its entries, and its fence with them.
    Drop {
        /// The log.
        log: Vec<u8>,
        /// The epoch of its owner.
        epoch: u64,
    },

    /// Makes a promise; the same again is fine.
    Promise(Promise),
}

impl Write {
    /// The bytes that it holds while it waits.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Append { log, entry, .. } => log.len() + entry.len(),
            Self::Delete { key, .. } => key.len(),
            Self::Fence { log, .. } | Self::Drop { log, .. } => log.len(),
            Self::Promise(_) => size_of::<Promise>(),
        }
    }
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The record is at this version. Versions rise over the whole store and are never used again, also not after a delete.
    Put {
        /// The version.
        version: u64,
    },
    /// The record or the log is gone.
    Deleted {
        /// Whether there was one.
        existed: bool,
    },
    /// The entry is in the log.
    Appended {
        /// Its index; the first is 0.
        index: u64,
    },
    /// The log has the epoch.
    Fenced {
        /// The index that the next entry will have.
        next: u64,
    },
    /// The promise stands.
    Promised,
}
