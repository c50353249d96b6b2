//! A flag that asks work under way to stop at its next step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Shared by who may cancel and who must notice.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Flag>);

#[derive(Debug, Default)]
struct Flag {
    is_set: AtomicBool,
    told: Notify,
}

impl CancelToken {
    /// Asks for the end.
    pub fn cancel(&self) {
        self.0.is_set.store(true, Ordering::Release);
        self.0.told.notify_waiters();
    }

    /// Whether the end was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_set.load(Ordering::Acquire)
    }

    /// Waits until the end is asked for.
    pub async fn cancelled(&self) {
        // Made before the flag is read: a call in between is heard.
        let told = self.0.told.notified();
        if !self.is_cancelled() {
            told.await;
        }
    }

    /// A guard that cancels when it is dropped, as when the future that waits for the work is.
    pub fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }
}

/// Cancels its token when dropped.
#[derive(Debug)]
pub struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
