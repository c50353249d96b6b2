//! Locks by name: one for each thing that is in use now, and none for what nobody holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::RwLock;

/// Locks of things that are called `K`.
#[derive(Debug)]
pub(crate) struct Gates<K>(Mutex<BTreeMap<K, Weak<RwLock<()>>>>);

impl<K> Default for Gates<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord> Gates<K> {
    /// That of one of them; gone when nobody holds it.
    pub(crate) fn of(&self, name: K) -> Arc<RwLock<()>> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(&name).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(RwLock::new(()));
        gates.insert(name, Arc::downgrade(&gate));
        gate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_has_one_lock_while_somebody_holds_it_and_none_afterwards() {
        let gates = Gates::default();
        let (one, again, other) = (gates.of(1), gates.of(1), gates.of(2));
        assert!(Arc::ptr_eq(&one, &again) && !Arc::ptr_eq(&one, &other));
        drop((one, again, other));
        let _third = gates.of(3);
        assert_eq!(gates.0.lock().unwrap().len(), 1, "those that nobody holds are gone");
    }
}
