//! What keeps a context's blocks on their hosts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::manifest::ContextId;
use crate::port::SupervisorPort;

/// Keeps a context's blocks. Dropped by its last user, it has those freed that no other context needs; the lease of a
/// durable context does so only once the context was given up, since its process may end before it does.
#[derive(Debug)]
pub struct ContextLease {
    context: ContextId,
    supervisor: Arc<dyn SupervisorPort>,
    releases: AtomicBool,
}

impl ContextLease {
    /// The lease of a context that lives as long as it is used.
    pub fn new(context: ContextId, supervisor: Arc<dyn SupervisorPort>) -> Self {
        Self { context, supervisor, releases: AtomicBool::new(true) }
    }

    /// From now on the blocks outlive the lease.
    pub fn keep(&self) {
        self.releases.store(false, Ordering::Release);
    }

    /// Whether the context was given up.
    pub fn is_given_up(&self) -> bool {
        self.releases.load(Ordering::Acquire)
    }

    /// The context is not wanted any more: its blocks are freed with their last user.
    pub fn give_up(&self) {
        self.releases.store(true, Ordering::Release);
    }
}

impl Drop for ContextLease {
    fn drop(&mut self) {
        if *self.releases.get_mut() {
            self.supervisor.release(self.context);
        }
    }
}
