//! What voters say to each other and keep on disk. No behaviour is here.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::cluster::intents::Intent;
use crate::cluster::messages::NodeKey;
use crate::cluster::term::Term;

/// A voter: its place in the list of voters' names in alphabetical order, which is the same on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct Voter(pub u8);

impl fmt::Display for Voter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "voter {}", self.0)
    }
}

/// How old a copy of the intents is: later ones are greater.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    SchemaRead,
    SchemaWrite,
)]
pub struct Version {
    /// The term of the leader that wrote it.
    pub term: Term,
    /// How many that leader had written, this one counted.
    pub sequence: u64,
}

/// All that administrators want of nodes, as one value that is replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Book {
    /// Which one it is.
    pub version: Version,
    /// What is wanted of each node that something is wanted of.
    pub intents: BTreeMap<NodeKey, Intent>,
}

/// What a voter must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ballot {
    /// The highest term that it has promised to.
    pub promised: Term,
    /// Its copy of the intents.
    pub book: Book,
}

/// What one voter says to another. Any of it may be lost, late, doubled or out of order.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Message {
    /// Would you promise to me? Nothing is promised by the answer.
    Poll {
        /// Which question of the sender it is.
        round: u64,
        /// The sender's node.
        node: NodeKey,
    },
    /// The answer to [`Message::Poll`].
    Would {
        /// To which question.
        round: u64,
        /// How long the voter is still bound to another; zero if it is free.
        left: Duration,
        /// The highest term that the voter has heard of.
        highest: Term,
    },
    /// Promise to me, or renew the lease that you have granted me.
    Ask {
        /// Which question of the sender it is.
        round: u64,
        /// The sender's term.
        term: Term,
        /// Whether the answer shall carry the voter's copy of the intents.
        wants_book: bool,
    },
    /// The promise is on disk, and nobody else is promised anything for the time of a lease.
    Granted {
        /// To which question.
        round: u64,
        /// Whose term.
        term: Term,
        /// The voter's copy, if it was asked for.
        book: Option<Book>,
    },
    /// No promise, and nothing written.
    Refused {
        /// The term that was refused.
        term: Term,
        /// The highest term that the voter has promised to.
        promised: Term,
    },
    /// Keep this copy of the intents.
    Replicate {
        /// It, with the sender's term.
        book: Book,
    },
    /// A copy at least as late as the one that was sent is on disk.
    Stored {
        /// Its version.
        version: Version,
    },
    /// The sender does nothing in this term any more: what was granted it is free.
    Release {
        /// The term.
        term: Term,
        /// Who shall lead next, if it matters.
        heir: Option<Voter>,
    },
    /// Lead as soon as leases allow.
    Nudge,
}

/// Why a leader does not lead any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resignation {
    /// A majority did not renew its lease in time.
    LeaseRanOut,
    /// A voter, an agent or a query node has seen a later term. The voter campaigns again at once, with a later one still.
    Outranked {
        /// That term.
        by: Term,
    },
    /// It was asked to let another lead.
    HandedOver {
        /// Whom.
        to: Voter,
    },
    /// What it led has ended.
    Ended,
}

impl fmt::Display for Resignation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeaseRanOut => f.write_str("no majority of voters renewed its lease in time"),
            Self::Outranked { by } => write!(f, "the later term {by} was seen"),
            Self::HandedOver { to } => write!(f, "it handed over to {to}"),
            Self::Ended => f.write_str("its supervisor ended"),
        }
    }
}

/// What a voter has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Keep the ballot in the place of every earlier one; then call [`Election::persisted`](super::Election::persisted) or
    /// [`Election::persist_failed`](super::Election::persist_failed). In the order in which they come.
    Persist {
        /// Which write it is.
        number: u64,
        /// What is kept.
        ballot: Ballot,
    },
    /// Send a message; it may be lost.
    Send {
        /// To whom.
        to: Voter,
        /// What.
        message: Message,
    },
    /// This voter leads, until its lease ends or it resigns.
    Elected {
        /// Its term, above every term that any leader ever had.
        term: Term,
        /// What administrators want of nodes.
        intents: BTreeMap<NodeKey, Intent>,
    },
    /// A majority has this version of the intents on disk, and all before it: it will be found by every later leader.
    Kept {
        /// The version.
        version: Version,
    },
    /// This voter does not lead any more. What was proposed and not kept may be found by a later leader or not.
    Resigned {
        /// The term that has ended.
        term: Term,
        /// Why.
        why: Resignation,
    },
}
