//! The term of a supervisor: which of two came later.

use std::fmt;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use super::messages::NodeKey;

/// A supervisor's term, compared as a whole: by the counter, then by the node. Each start of a supervisor counts one further
/// than its node has seen anyone count, so no two have the same term, on whichever nodes and however often they start.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    SchemaRead,
    SchemaWrite,
)]
pub struct Term {
    /// One above the highest that the supervisor's node had seen.
    pub counter: u64,
    /// The supervisor's node.
    pub node: NodeKey,
}

impl Term {
    /// Lower than the term of any supervisor: none was seen.
    pub const NONE: Self = Self { counter: 0, node: NodeKey([0; 6]) };

    /// The term of a supervisor on `node` that has seen `self` and nothing higher.
    pub fn next(self, node: NodeKey) -> Self {
        Self { counter: self.counter.saturating_add(1), node }
    }

    /// Whether its supervisor may be the first that the cluster ever had: its node has seen none before it.
    pub fn may_be_first(self) -> bool {
        self.counter <= 1
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self == Self::NONE {
            true => f.write_str("none"),
            false => write!(f, "{} of {}", self.counter, self.node),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_that_start_from_the_same_have_different_terms_and_who_has_seen_more_is_later() {
        let (low, high) = (NodeKey([1; 6]), NodeKey([2; 6]));
        let (first, second) = (Term::NONE.next(low), Term::NONE.next(high));
        assert!(Term::NONE < first && first < second && second < first.next(low) && first.may_be_first());
        assert!(!first.next(low).may_be_first());
        assert_eq!(
            (first.next(high).to_string(), Term::NONE.to_string()),
            ("2 of 020202020202".into(), "none".into())
        );
    }
}
