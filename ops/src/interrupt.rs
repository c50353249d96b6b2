//! Ctrl-C. The first press asks for a clean end: whoever waits through [`Interrupt::or`] drops its work, which cancels
//! it. A second press before the first was acted upon ends the process at once.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::exit;

/// The user pressed Ctrl-C; the work was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Told of Ctrl-C. Clones are told together.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<watch::Sender<bool>>);

impl Interrupt {
    /// Listens to Ctrl-C from now on. Call it within a tokio runtime.
    pub(crate) fn listen() -> Self {
        let pressed = Arc::new(watch::Sender::new(false));
        let heard = Arc::clone(&pressed);
        tokio::spawn(async move {
            // Where signals are not to be had, Ctrl-C keeps its ordinary meaning.
            while tokio::signal::ctrl_c().await.is_ok() {
                if heard.send_replace(true) {
                    std::process::exit(i32::from(exit::INTERRUPTED));
                }
            }
        });
        Self(pressed)
    }

    /// Waits for a press that nobody has acknowledged.
    pub(crate) async fn pressed(&self) {
        let waited = self.0.subscribe().wait_for(|&pressed| pressed).await.is_ok();
        debug_assert!(waited, "the sender is held by self");
    }

    /// Whether there is a press that nobody has acknowledged, for work that looks now and then.
    pub(crate) fn is_pressed(&self) -> bool {
        *self.0.borrow()
    }

    /// The press was acted upon and the program goes on: the next one is a first again.
    pub(crate) fn acknowledge(&self) {
        self.0.send_replace(false);
    }

    /// Does `work` unless Ctrl-C comes first; then it is dropped, which cancels it.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            biased;
            () = self.pressed() => Err(Interrupted),
            done = work => Ok(done),
        }
    }
}
