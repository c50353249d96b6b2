//! Until when a supervisor may act: looked at before every decision and every order, since a lease ends by itself, also while
//! its process stood still.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::term::Term;

/// What a supervisor may act by. Clones are the same.
#[derive(Clone, Debug)]
pub struct Mandate(Basis);

#[derive(Clone, Debug)]
enum Basis {
    /// It was configured, and nobody else is elected.
    Configured,
    /// The term that was elected, and when its lease ends.
    Elected(Arc<Mutex<Option<(Term, Duration)>>>),
}

impl Mandate {
    /// Of a supervisor that no other is elected beside.
    pub fn configured() -> Self {
        Self(Basis::Configured)
    }

    /// Of supervisors that are elected: none yet.
    pub fn elected() -> Self {
        Self(Basis::Elected(Arc::default()))
    }

    /// Whether it is of supervisors that are elected.
    pub fn is_elected(&self) -> bool {
        matches!(self.0, Basis::Elected(_))
    }

    /// Notes who is elected, and until when.
    pub fn renew(&self, lease: Option<(Term, Duration)>) {
        if let Basis::Elected(current) = &self.0 {
            *current.lock().unwrap_or_else(PoisonError::into_inner) = lease;
        }
    }

    /// Whether the supervisor of `term` may act at `now`.
    pub fn holds(&self, term: Term, now: Duration) -> bool {
        match &self.0 {
            Basis::Configured => true,
            Basis::Elected(current) => {
                let current = *current.lock().unwrap_or_else(PoisonError::into_inner);
                current.is_some_and(|(elected, until)| elected == term && now < until)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::messages::NodeKey;

    #[test]
    fn it_holds_for_the_elected_term_until_its_lease_ends_and_for_no_other() {
        let term = |counter| Term { counter, node: NodeKey([1; 6]) };
        let (mandate, second) = (Mandate::elected(), Duration::from_secs(1));
        assert!(!mandate.holds(term(1), Duration::ZERO));
        mandate.renew(Some((term(1), second)));
        assert!(mandate.clone().holds(term(1), Duration::ZERO));
        assert!(!mandate.holds(term(1), second) && !mandate.holds(term(2), Duration::ZERO));
        mandate.renew(None);
        assert!(!mandate.holds(term(1), Duration::ZERO));
        assert!(Mandate::configured().holds(term(9), second));
    }
}
