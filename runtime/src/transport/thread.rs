//! The network thread: a current-thread tokio runtime on an OS thread of its own, where all sockets and connections are
//! driven. Nothing that blocks or computes may run there: while it stands still, the peers hear nothing and take the node
//! for dead.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The running thread. When it is dropped, its tasks are dropped and the thread ends.
#[derive(Debug)]
pub struct NetworkThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts tasks on the network thread. Clones mean the same thread; what is started after that has ended never runs.
#[derive(Clone, Debug)]
pub struct NetworkHandle(Handle);

impl NetworkThread {
    /// Starts a thread named `name`.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Also ends if the sender is gone without a word.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Starts tasks on this thread.
    pub fn handle(&self) -> NetworkHandle {
        NetworkHandle(self.handle.clone())
    }
}

impl Drop for NetworkThread {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the network thread has panicked");
        }
    }
}

impl NetworkHandle {
    /// The thread of the tokio runtime that this is called in, for programs that are one network thread as a whole.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn current() -> Self {
        Self(Handle::current())
    }

    /// Runs `future` there, whether anyone waits for it or not.
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.0.spawn(future)
    }

    /// Runs `future` there and returns its result, or none if the thread has ended. If this call is cancelled, so is the
    /// future.
    pub async fn run<F>(&self, future: F) -> Option<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let task = self.0.spawn(future);
        let _cancel = CancelOnDrop(task.abort_handle());
        match task.await {
            Ok(output) => Some(output),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => None,
        }
    }

    /// Its runtime, for code that blocks elsewhere on what needs no timers and no sockets.
    pub(crate) fn runtime(&self) -> Handle {
        self.0.clone()
    }

    /// Enters the runtime, for code that makes sockets and timers.
    pub(super) fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.0.enter()
    }
}

struct CancelOnDrop(tokio::task::AbortHandle);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_run_on_a_thread_of_that_name_until_it_is_dropped() {
        let network = NetworkThread::start("net-test").unwrap();
        let handle = network.handle();
        let caller = Builder::new_current_thread().build().unwrap();
        let name = caller.block_on(handle.run(async { std::thread::current().name().map(str::to_owned) }));
        assert_eq!(name, Some(Some("net-test".to_owned())));
        drop(network);
        assert_eq!(caller.block_on(handle.run(async { 1 })), None);
    }
}
