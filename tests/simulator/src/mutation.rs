//! Bugs that are put into a cluster on purpose, at the seams between its state machines and what carries them out. A simulator
//! that does not find them proves nothing.

use std::fmt;

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Replies are merged whatever blocks they name.
    MergeWithoutCover,
    /// A reply is taken for the request under way, whatever request it answers.
    TakeLateReplies,
    /// Copies are sealed without a look at their checksum.
    SealUnchecked,
    /// Agents follow supervisors of any term.
    FollowAnyTerm,
    /// The highest term seen is forgotten by a restart.
    ForgetTerm,
    /// Writes are acknowledged before they are synced.
    AcknowledgeUnsynced,
    /// A turn is acknowledged although it could not be written.
    IgnoreFullDisk,
    /// A step whose host does not answer is not asked again.
    DropRetry,
    /// Contexts are not announced to a supervisor that has started.
    DropAnnouncement,
    /// A host says that it has freed what it still holds.
    LeakFreed,
    /// A host takes blocks beyond its capacity.
    Overfill,
    /// A supervisor starts with the term that it had before.
    ReuseTerm,
    /// Intents are forgotten by a restart.
    ForgetIntents,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::MergeWithoutCover,
        Self::TakeLateReplies,
        Self::SealUnchecked,
        Self::FollowAnyTerm,
        Self::ForgetTerm,
        Self::AcknowledgeUnsynced,
        Self::IgnoreFullDisk,
        Self::DropRetry,
        Self::DropAnnouncement,
        Self::LeakFreed,
        Self::Overfill,
        Self::ReuseTerm,
        Self::ForgetIntents,
    ];
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
