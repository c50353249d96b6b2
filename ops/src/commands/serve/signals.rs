//! Being told to stop: SIGTERM as service managers send it, and Ctrl-C. The first asks, the second ends the process.

use std::future::Future;

use tokio::sync::watch;

use crate::app::App;
use crate::interrupt::{Interrupt, Interrupted};

/// As shells count a process ended by SIGTERM: 128 + 15.
#[cfg(unix)]
const TERMINATED: i32 = 143;

/// Told of SIGTERM and of Ctrl-C.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Interrupt,
    terminated: watch::Receiver<bool>,
}

impl Signals {
    /// Listens from now on.
    pub(super) fn listen(app: &App) -> std::io::Result<Self> {
        let (told, terminated) = watch::channel(false);
        #[cfg(unix)]
        {
            let mut signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::spawn(async move {
                while signal.recv().await.is_some() {
                    if told.send_replace(true) {
                        std::process::exit(TERMINATED);
                    }
                }
            });
        }
        // Elsewhere there is Ctrl-C alone; the sender stays, so that nobody takes its end for a signal.
        #[cfg(not(unix))]
        std::mem::forget(told);
        Ok(Self { interrupt: app.interrupt.clone(), terminated })
    }

    /// Waits for the first of them.
    pub(super) async fn asked_to_stop(&mut self) {
        tokio::select! {
            () = self.interrupt.pressed() => {}
            _ = self.terminated.wait_for(|told| *told) => {}
        }
    }

    /// Does `work`, which is no use to anyone yet, unless the node is asked to stop.
    pub(super) async fn or<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            biased;
            () = self.asked_to_stop() => Err(Interrupted),
            done = work => Ok(done),
        }
    }
}
