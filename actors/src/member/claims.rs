//! The contexts that this node keeps blocks of on the cluster's hosts, and which supervisor knows of which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::cluster::messages::ContextClaim;
use crate::cluster::term::Term;
use crate::manifest::ContextId;

/// The claims of this node.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    kept: BTreeMap<ContextId, ContextClaim>,
    /// The term of the supervisor that knows of a context.
    told: BTreeMap<ContextId, Term>,
    /// Contexts that are being placed, which tells of them; how often at the same time.
    placing: BTreeMap<ContextId, usize>,
    /// Contexts whose end no supervisor knows of yet.
    released: BTreeSet<ContextId>,
}

impl Claims {
    /// Keeps a context, unless it is kept already.
    pub(super) fn keep(&self, claim: impl FnOnce() -> ContextClaim) {
        let claim = claim();
        self.lock().kept.entry(claim.context).or_insert(claim);
    }

    /// A context is not needed any more.
    pub(super) fn release(&self, context: ContextId) {
        let mut book = self.lock();
        book.kept.remove(&context);
        book.told.remove(&context);
        book.released.insert(context);
    }

    /// Contexts whose end is still to be told.
    pub(super) fn released(&self) -> Vec<ContextId> {
        let book = self.lock();
        book.released.iter().filter(|context| !book.placing.contains_key(context)).copied().collect()
    }

    /// The end of a context is known.
    pub(super) fn forgotten(&self, context: ContextId) {
        self.lock().released.remove(&context);
    }

    /// What the supervisor of `term` is still to be told of.
    pub(super) fn untold(&self, term: Term) -> Vec<ContextClaim> {
        let book = self.lock();
        book.untold(term).cloned().collect()
    }

    /// The supervisor of `term` knows of a context.
    pub(super) fn told(&self, context: ContextId, term: Term) {
        let mut book = self.lock();
        if book.kept.contains_key(&context) {
            book.told.insert(context, term);
        }
    }

    /// `term` if its supervisor knows of every context, else none.
    pub(super) fn announced(&self, term: Term) -> Term {
        if self.lock().untold(term).next().is_none() { term } else { Term::NONE }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn untold(&self, term: Term) -> impl Iterator<Item = &ContextClaim> {
        self.kept.values().filter(move |claim| {
            let context = &claim.context;
            self.told.get(context) != Some(&term) && !self.placing.contains_key(context)
        })
    }
}

/// A context that is being placed.
#[derive(Debug)]
pub(super) struct Placing<'a> {
    claims: &'a Claims,
    news: &'a Notify,
    context: ContextId,
    /// Whether it is released if it is not placed.
    is_new: bool,
}

impl<'a> Placing<'a> {
    /// Notes that a context is being placed; `is_new` if nobody else knows of it yet.
    pub(super) fn new(claims: &'a Claims, news: &'a Notify, context: ContextId, is_new: bool) -> Self {
        let mut book = claims.lock();
        *book.placing.entry(context).or_default() += 1;
        let is_new = is_new && !book.kept.contains_key(&context);
        Self { claims, news, context, is_new }
    }

    /// It is placed, and a supervisor of `term` knows so.
    pub(super) fn done(mut self, claim: ContextClaim, term: Term) {
        self.is_new = false;
        let mut book = self.claims.lock();
        book.released.remove(&self.context);
        book.told.insert(self.context, term);
        book.kept.insert(self.context, claim);
    }
}

impl Drop for Placing<'_> {
    fn drop(&mut self) {
        let mut book = self.claims.lock();
        if let Some(count) = book.placing.get_mut(&self.context) {
            *count -= 1;
            if *count == 0 {
                book.placing.remove(&self.context);
            }
        }
        if self.is_new {
            book.released.insert(self.context);
            drop(book);
            self.news.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::messages::NodeKey;

    fn term(counter: u64) -> Term {
        Term { counter, node: NodeKey([1; 6]) }
    }

    fn claim(context: u64) -> ContextClaim {
        let (context, query_node) = (ContextId(context), NodeKey([1; 6]));
        ContextClaim { context, query_node, needs: Vec::new(), anchor: None, replicas: 1 }
    }

    #[test]
    fn a_new_supervisor_is_told_of_every_context_that_is_kept_and_of_no_other() {
        let (claims, news) = (Claims::default(), Notify::new());
        Placing::new(&claims, &news, ContextId(1), true).done(claim(1), term(3));
        claims.keep(|| claim(2));
        assert_eq!((claims.announced(term(3)), claims.untold(term(3))), (Term::NONE, vec![claim(2)]));
        claims.told(ContextId(2), term(3));
        let of_another = Term { node: NodeKey([2; 6]), ..term(3) };
        assert_eq!(claims.announced(of_another), Term::NONE, "another node's supervisor counts the same");
        assert_eq!((claims.announced(term(3)), claims.announced(term(4))), (term(3), Term::NONE));
        claims.release(ContextId(1));
        assert_eq!((claims.untold(term(4)), claims.released()), (vec![claim(2)], vec![ContextId(1)]));
        claims.forgotten(ContextId(1));
        assert!(claims.released().is_empty());
    }

    #[test]
    fn a_new_context_that_is_given_up_on_its_way_is_released_and_a_known_one_stays() {
        let (claims, news) = (Claims::default(), Notify::new());
        drop(Placing::new(&claims, &news, ContextId(1), true));
        drop(Placing::new(&claims, &news, ContextId(2), false));
        assert_eq!(claims.released(), [ContextId(1)]);
        let again = Placing::new(&claims, &news, ContextId(1), true);
        assert!(claims.released().is_empty(), "its end must not overtake its placing");
        again.done(claim(1), term(1));
        assert!(claims.released().is_empty());
        // Known by now: a try that fails later changes nothing.
        drop(Placing::new(&claims, &news, ContextId(1), true));
        assert_eq!((claims.announced(term(1)), claims.released()), (term(1), vec![]));
    }
}
