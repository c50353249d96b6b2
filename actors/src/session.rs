//! A session as its query host holds it: a conversation over a context, its own keys and values, and the log of its
//! turns. Contexts are shared; a tail belongs to one session.

use std::fmt;
use std::sync::Arc;

use wincode::{SchemaRead, SchemaWrite};

use crate::fanout::Fanout;
use crate::path::context::EncodedContext;
use crate::prompt::Prompting;
use crate::tail::Tail;
use crate::turn::FinishReason;

/// The name of a session in its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s-{}", self.0)
    }
}

/// One turn, as it is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnRecord {
    /// The tokens that were fed.
    pub query_ids: Vec<u32>,
    /// The tokens of the answer; the last one was not fed within this turn.
    pub ids: Vec<u32>,
    /// Why the answer ended.
    pub finish: FinishReason,
}

/// A conversation over a context.
#[derive(Debug)]
pub struct SessionState {
    /// The context; held for as long as the session is open.
    pub context: Arc<EncodedContext>,
    /// How its questions are put.
    pub prompting: Prompting,
    /// The way to the context's blocks.
    pub fanout: Fanout,
    /// Keys and values of all that was asked and answered.
    pub tail: Tail,
    /// The token that was sampled last and not fed yet.
    pub pending: Option<u32>,
    turns: Vec<TurnRecord>,
}

impl SessionState {
    /// A session that has not been asked yet.
    pub fn new(context: Arc<EncodedContext>, prompting: Prompting, fanout: Fanout, tail: Tail) -> Self {
        Self { context, prompting, fanout, tail, pending: None, turns: Vec::new() }
    }

    /// Tokens of its context.
    pub fn context_tokens(&self) -> usize {
        self.context.manifest.tokens()
    }

    /// The position of the next token to be fed.
    pub fn position(&self) -> usize {
        self.context_tokens() + self.tail.len()
    }

    /// Whether no turn has been answered.
    pub fn is_new(&self) -> bool {
        self.turns.is_empty()
    }

    /// Tokens generated in all turns.
    pub fn generated_tokens(&self) -> usize {
        self.turns.iter().map(|turn| turn.ids.len()).sum()
    }

    /// Adds a turn to the log.
    pub fn log(&mut self, turn: TurnRecord) {
        self.turns.push(turn);
    }

    /// The turns answered so far.
    pub fn turns(&self) -> &[TurnRecord] {
        &self.turns
    }

    /// At most the last `count` tokens of earlier turns and `current`.
    pub fn recent(&self, current: &[u32], count: usize) -> Vec<u32> {
        let turns = self.turns.iter().flat_map(|turn| [&*turn.query_ids, &*turn.ids]).chain([current]);
        let mut pieces = Vec::new();
        let mut left = count;
        for piece in turns.rev() {
            let end = &piece[piece.len().saturating_sub(left)..];
            left -= end.len();
            pieces.push(end);
        }
        pieces.into_iter().rev().flatten().copied().collect()
    }

    /// The tokens of context, earlier turns and `current`, as the sampler's penalty counts them.
    pub fn history(&self, current: &[u32]) -> Vec<u32> {
        let turns = self.turns.iter().flat_map(|turn| [&*turn.query_ids, &*turn.ids]);
        [&*self.context.manifest.ids].into_iter().chain(turns).chain([current]).flatten().copied().collect()
    }
}
