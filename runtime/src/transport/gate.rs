//! The door of a socket: how many handshakes are under way at once, and when an address has to prove that it is real before
//! memory and cryptography are spent on it.

use std::sync::Arc;

use quinn::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
}

impl Gate {
    pub(super) fn new(size: usize, proof: Proof) -> Self {
        Self { free: Arc::new(Semaphore::new(size)), size, proof }
    }

    /// Lets an attempt in, with a permit for as long as its handshake takes; or answers it and lets it go.
    pub(super) fn admit(&self, incoming: Incoming) -> Option<(Incoming, OwnedSemaphorePermit)> {
        let Ok(permit) = self.free.clone().try_acquire_owned() else {
            tracing::debug!(address = %incoming.remote_address(), "a connection was refused: too many handshakes");
            incoming.refuse();
            return None;
        };
        let must_prove = self.proof == Proof::Always || self.free.available_permits() < self.size / 2;
        if must_prove && !incoming.remote_address_validated() {
            // A retry that is not possible leaves the attempt to time out at the other end.
            let _ = incoming.retry();
            return None;
        }
        Some((incoming, permit))
    }
}
