//! What may happen in a scenario, one word a step. Nodes are numbered from 1, as in `node-1`; the first founds the cluster and
//! supervises it. How a step is played is in `stage.rs`.

/// One step. It has happened, and was waited for, before the next one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A cluster of so many nodes; one before it ends.
    Start(usize),
    /// So many nodes join.
    Add(usize),
    /// Nodes that are started from now on speak versions of the protocol up to this; 0 for all that the program knows.
    Speak(u16),
    /// The first of these nodes speaks to the second in this version.
    Spoken(usize, usize, u16),
    /// From now on this node is asked, and keeps the contexts.
    AskAt(usize),
    /// The document is encoded, with star and with exact attention, and a session is opened over each.
    Encode,
    /// The document is refused, in words that hold these.
    Refused(&'static str),
    /// The document is appended to each context, and refused in words that hold these.
    AppendRefused(&'static str),
    /// Every question is asked in new sessions, and the next one in each session that is open.
    Ask,
    /// The sessions are closed and the contexts removed.
    Remove,
    /// The blocks lie on at least so many nodes.
    Spread(usize),
    /// This node holds blocks.
    Holds(usize),
    /// Blocks move to where there is room.
    Rebalance,
    /// This node is drained, and holds nothing then.
    Drain(usize),
    /// This node takes blocks again.
    Uncordon(usize),
    /// This node's drain is refused for want of room.
    DrainRefused(usize),
    /// This node takes no new blocks.
    Cordon(usize),
    /// This node takes no new blocks, as the supervisor knows.
    IsCordoned(usize),
    /// This voter supervises from now on.
    TakeOver(usize),
    /// Another voter than this one was elected.
    LedByAnother(usize),
    /// No voter leads.
    NotLed,
    /// This node is killed, held or not.
    Kill(usize),
    /// This node is held where it is.
    Hold(usize),
    /// It goes on.
    Thaw(usize),
    /// It is started again in its folder.
    Restart(usize),
    /// Every node is killed.
    KillAll,
    /// Every node is started again.
    RestartAll,
    /// All nodes that run see each other.
    Whole,
    /// The node that is asked holds this one for dead.
    SeesDown(usize),
    /// Every session of the node that is asked has all its copies, as far as is known since it was asked last.
    Copied,
    /// Something begins, and has got somewhere before the next step.
    Begin(Work),
    /// It ends well.
    Finish,
    /// It ends, well or not.
    GiveUp,
}

/// What takes a while.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// As `Step::Encode`.
    Encode,
    /// A question, before its first token.
    Ask,
    /// A long answer, after its first token.
    Decode,
    /// The drain of this node.
    Drain(usize),
    /// The drain of this node, with part of a block on its way.
    Copy(usize),
}
