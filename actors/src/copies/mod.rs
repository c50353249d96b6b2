//! Copies of a session on several nodes, so that it outlives the node that runs it: the decisions, without clock, disk or
//! network. A session is a log of turns with one owner, the node that appends; the nodes of its set keep a copy each.
//!
//! * [`head`]: what is written in front of every copy: whose it is ([`Epoch`]), and which nodes keep one ([`CopySet`]);
//! * [`keeper`]: what a node answers for the copy that it keeps;
//! * [`owner`]: what the owner sends to whom, when a turn counts as copied, and which nodes shall keep copies;
//! * [`takeover`]: how another node becomes the owner.
//!
//! The algorithm is that of one Raft group (Ongaro and Ousterhout 2014) whose leader is whoever a client asks: epochs are
//! its terms, a fence its vote, and sets change by its joint consensus. What differs: the owner writes before all others, so
//! that within an epoch every copy is a beginning of the owner's log; a copy enters a later epoch with the whole log at
//! once, so that the latest epoch, and in it the longest log, has every turn that was acknowledged; and the first member of a
//! set breaks ties, so that a set of two goes on without its second.
//!
//! What holds: a turn that was acknowledged is in the log of every later owner, as long as a quorum of its set can be
//! asked; an owner that a quorum has fenced acknowledges nothing any more.

pub mod head;
pub mod keeper;
pub mod owner;
pub mod takeover;

#[cfg(test)]
mod tests;

pub use head::{Copy, CopySet, Epoch, Head, preferred};
pub use keeper::{Change, KeeperReply, KeeperRequest, decide};
pub use owner::{Owner, Send, Standing};
pub use takeover::{Fencing, Found, Survey, TakeOver};
