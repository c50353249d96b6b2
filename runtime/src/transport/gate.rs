//! The door of a socket: how many handshakes are under way at once, how many of them one network may have, and when an address
//! has to prove that it is real before memory and cryptography are spent on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limiter::network_of;

/// Of all handshakes, the part that one network may have under way while the door is busy: one that goes silent after it has
/// proved its address must leave room for the others.
const SHARE: usize = 8;

/// When an address has to prove itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// Always: one more round trip, on a door that strangers use.
    Always,
    /// From the moment that half of the handshakes are taken.
    WhenBusy,
}

#[derive(Debug)]
pub(super) struct Gate {
    free: Arc<Semaphore>,
    size: usize,
    proof: Proof,
    shares: Arc<Shares>,
}

/// Held for as long as a handshake takes.
#[derive(Debug)]
pub(super) struct Permit {
    _place: OwnedSemaphorePermit,
    share: Option<(Arc<Shares>, u64)>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((shares, network)) = &self.share {
            shares.give_back(*network);
        }
    }
}

/// Handshakes under way, by the network that has proved that they are its own. It has no more entries than there are permits.
#[derive(Debug, Default)]
struct Shares(Mutex<BTreeMap<u64, usize>>);

impl Shares {
    /// Takes one for `network`, unless it has `limit` already.
    fn take(&self, network: u64, limit: usize) -> bool {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.get(&network).copied().unwrap_or(0);
        let is_granted = count < limit;
        if is_granted {
            taken.insert(network, count + 1);
        }
        is_granted
    }

    fn give_back(&self, network: u64) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&network) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = taken.remove(&network),
        }
    }
}

impl Gate {
    pub(super) fn new(size: usize, proof: Proof) -> Self {
        Self { free: Arc::new(Semaphore::new(size)), size, proof, shares: Arc::default() }
    }

    /// Lets an attempt in, with a permit for as long as its handshake takes; or answers it and lets it go.
    pub(super) fn admit(&self, incoming: Incoming) -> Option<(Incoming, Permit)> {
        let Ok(place) = self.free.clone().try_acquire_owned() else {
            tracing::debug!(address = %incoming.remote_address(), "a connection was refused: too many handshakes");
            incoming.refuse();
            return None;
        };
        let is_busy = self.free.available_permits() < self.size / 2;
        let must_prove = self.proof == Proof::Always || is_busy;
        if !incoming.remote_address_validated() {
            if must_prove {
                // A retry that is not possible leaves the attempt to time out at the other end.
                let _ = incoming.retry();
                return None;
            }
            // Whose address it is, is not known: it counts for nobody.
            return Some((incoming, Permit { _place: place, share: None }));
        }
        let network = network_of(incoming.remote_address().ip());
        let limit = if is_busy { (self.size / SHARE).max(1) } else { usize::MAX };
        if !self.shares.take(network, limit) {
            tracing::debug!(address = %incoming.remote_address(), "a connection was refused: too many handshakes of one network");
            incoming.refuse();
            return None;
        }
        let share = Some((self.shares.clone(), network));
        Some((incoming, Permit { _place: place, share }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_share_and_no_more_and_gets_it_back() {
        let shares = Shares::default();
        let granted = |network| (0..10).filter(|_| shares.take(network, 3)).count();
        assert_eq!((granted(1), granted(2)), (3, 3));
        shares.give_back(1);
        assert_eq!((granted(1), granted(2)), (1, 0));
        (0..3).for_each(|_| shares.give_back(1));
        (0..3).for_each(|_| shares.give_back(2));
        assert!(shares.0.lock().unwrap().is_empty(), "nothing is kept of who is gone");
    }
}
