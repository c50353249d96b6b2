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
    /// A voter that restarts has forgotten what it promised, and what is wanted of nodes.
    ForgetBallot,
    /// A voter says that it has promised before its promise is synced.
    PromiseUnsynced,
    /// A voter grants a lease to whoever asks, also while another runs.
    GrantTwo,
    /// A supervisor that was elected goes on when its lease has ended.
    IgnoreLease,
    /// A voter that leads does not mind that nodes have seen a later term.
    IgnoreHigherTerm,
    /// What is wanted of a node is acknowledged before a majority of voters has it.
    KeepAlone,
    /// A turn is acknowledged once the session's own node has it, before its copies are.
    AcknowledgeAlone,
    /// A session is taken over without a fence.
    TakeUnfenced,
    /// A keeper obeys an owner that it was fenced against.
    ObeyOldEpoch,
    /// A node that takes a session over goes on from its own copy, however old.
    GoOnFromAny,
    /// A session's node answers from its log without asking whether the session still is its own.
    BelieveItself,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 24] = [
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
        Self::ForgetBallot,
        Self::PromiseUnsynced,
        Self::GrantTwo,
        Self::IgnoreLease,
        Self::IgnoreHigherTerm,
        Self::KeepAlone,
        Self::AcknowledgeAlone,
        Self::TakeUnfenced,
        Self::ObeyOldEpoch,
        Self::GoOnFromAny,
        Self::BelieveItself,
    ];
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
