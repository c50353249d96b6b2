//! A session as its query host holds it: a conversation over a context, its own keys and values, and the log of its
//! turns. Contexts are shared; a tail belongs to one session.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::fanout::Fanout;
use crate::pace::StepCosts;
use crate::path::context::EncodedContext;
use crate::tail::Tail;
use crate::turn::FinishReason;

/// The name of a session in its node.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s-{}", self.0)
    }
}

/// One turn, as it is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnRecord {
    /// The tokens that were fed.
    pub query_ids: Vec<u32>,
    /// The tokens of the answer; the last one was not fed within this turn.
    pub ids: Vec<u32>,
    /// Why the answer ended.
    pub finish: FinishReason,
}

impl TurnRecord {
    /// Tokens of the turn whose keys and values the tail holds after it.
    fn fed_tokens(&self) -> usize {
        self.query_ids.len() + self.ids.len().saturating_sub(1)
    }
}

/// A conversation over a context.
#[derive(Debug)]
pub struct SessionState {
    /// The context; held for as long as the session is open.
    pub context: Arc<EncodedContext>,
    /// The way to the context's blocks; none before the first step, and after one that failed.
    pub fanout: Option<Fanout>,
    /// The version of the context's whereabouts that the fan-out was made for, or was to be made for.
    pub routed_version: u64,
    /// Keys and values of all that was asked and answered.
    pub tail: Tail,
    /// The token that was sampled last and not fed yet.
    pub pending: Option<u32>,
    /// What its steps take, by the number of tokens guessed in them.
    pub costs: StepCosts,
    turns: Vec<TurnRecord>,
    /// Tokens that the turns so far have fed.
    logged_tokens: usize,
}

impl SessionState {
    /// A session over a context, after `turns`, whose keys and values the tail may still lack.
    pub fn new(context: Arc<EncodedContext>, tail: Tail, turns: Vec<TurnRecord>) -> Self {
        let pending = turns.last().and_then(|turn| turn.ids.last().copied());
        let logged_tokens = turns.iter().map(TurnRecord::fed_tokens).sum();
        let costs = StepCosts::default();
        Self { context, fanout: None, routed_version: 0, tail, pending, costs, turns, logged_tokens }
    }

    /// Tokens of its context.
    pub fn context_tokens(&self) -> usize {
        self.context.manifest.tokens()
    }

    /// The position of the next token to be fed.
    pub fn position(&self) -> usize {
        self.context_tokens() + self.tail.len()
    }

    /// Tokens that the turns so far have fed: as many as the tail holds when no turn is under way, once it
    /// [is whole](Self::is_behind).
    pub fn logged_tokens(&self) -> usize {
        self.logged_tokens
    }

    /// Whether the tail still lacks tokens of the turns so far, as in a session that was taken up again.
    pub fn is_behind(&self) -> bool {
        self.tail.len() < self.logged_tokens
    }

    /// The next tokens that the tail lacks, at most `count`.
    pub fn lacking(&self, count: usize) -> Vec<u32> {
        let fed = |turn: &TurnRecord| {
            let tokens = turn.fed_tokens();
            turn.query_ids.iter().chain(&turn.ids).copied().take(tokens).collect::<Vec<_>>()
        };
        self.turns.iter().flat_map(fed).skip(self.tail.len()).take(count).collect()
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
        self.logged_tokens += turn.fed_tokens();
        self.turns.push(turn);
    }

    /// Takes the last turn out of the log: it could not be written down.
    pub fn unlog(&mut self) {
        if let Some(turn) = self.turns.pop() {
            self.logged_tokens -= turn.fed_tokens();
        }
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
