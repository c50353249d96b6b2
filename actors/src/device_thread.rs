//! The OS thread behind an actor that computes: a bounded queue into it, a way to refuse when the queue is full, an end
//! that waits for the step under way and leaves nobody waiting. What the thread does is the actor's own `device` module.

use std::collections::VecDeque;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use ractor::ActorProcessingErr;

use crate::cancel::CancelToken;

/// How soon an actor offers again what must not be lost: a step of the thread takes about as long.
pub(crate) const RETRY: Duration = Duration::from_millis(20);

/// The end of a queue at which a device thread takes messages that carry the way back to who waits for an answer. When
/// the thread ends, or panics, what it has not taken is dropped, and with it what may still be sent, so that every asker
/// is told: a bounded channel by itself keeps what was sent for as long as it has a sender.
#[derive(Debug)]
pub(crate) struct Inbox<M: Send + 'static>(pub(crate) Receiver<M>);

impl<M: Send + 'static> Drop for Inbox<M> {
    fn drop(&mut self) {
        let left = loop {
            match self.0.try_recv() {
                Ok(message) => drop(message),
                Err(end) => break end,
            }
        };
        // Somebody may still send, also just now: the channel must not end before they are gone, or what comes between the
        // last look and its end would be kept. A thread of its own sleeps until then.
        if left == TryRecvError::Empty {
            let rest = self.0.clone();
            let drain =
                std::thread::Builder::new().name("stellate-gone".to_owned()).stack_size(DRAIN_STACK_BYTES);
            if let Err(error) = drain.spawn(move || rest.iter().for_each(drop)) {
                tracing::error!(%error, "those who still ask a thread that has ended may wait in vain");
            }
        }
    }
}

/// The stack of a thread that only drops messages.
const DRAIN_STACK_BYTES: usize = 256 << 10;

/// A thread that takes messages `M` from a bounded queue.
#[derive(Debug)]
pub(crate) struct DeviceThread<M> {
    queue_jobs: usize,
    stop: CancelToken,
    work: Option<Sender<M>>,
    kept: VecDeque<M>,
    thread: Option<JoinHandle<()>>,
}

impl<M: Send + 'static> DeviceThread<M> {
    /// Starts a thread that runs `run` until its queue is closed or its token says stop.
    pub(crate) fn spawn(
        name: String,
        queue_jobs: usize,
        run: impl FnOnce(&Receiver<M>, CancelToken) + Send + 'static,
    ) -> io::Result<Self> {
        let queue_jobs = queue_jobs.max(1);
        let (work, jobs) = bounded(queue_jobs);
        let stop = CancelToken::default();
        let told = stop.clone();
        let jobs = Inbox(jobs);
        let thread = std::thread::Builder::new().name(name).spawn(move || run(&jobs.0, told))?;
        Ok(Self { queue_jobs, stop, work: Some(work), kept: VecDeque::new(), thread: Some(thread) })
    }

    /// Messages that may wait.
    pub(crate) fn queue_jobs(&self) -> usize {
        self.queue_jobs
    }

    /// Hands over a message, or gives it back if the queue is full. Nothing overtakes what is kept.
    pub(crate) fn offer(&mut self, message: M) -> Result<(), M> {
        self.retry();
        if self.kept.is_empty() { self.send(message) } else { Err(message) }
    }

    /// Keeps a message that was given back and must not be lost. The callers bound how many there can be.
    pub(crate) fn keep(&mut self, message: M) {
        self.kept.push_back(message);
    }

    /// Hands over what is kept, as far as the queue has room. Tells whether some is left.
    pub(crate) fn retry(&mut self) -> bool {
        while let Some(message) = self.kept.pop_front() {
            if let Err(message) = self.send(message) {
                self.kept.push_front(message);
                return true;
            }
        }
        false
    }

    /// Ends the thread after the step under way and waits for it, on no thread of this runtime.
    pub(crate) async fn stop(&mut self) -> Result<(), ActorProcessingErr> {
        self.stop.cancel();
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
            joined.map_err(|_| "the device thread panicked")?;
        }
        Ok(())
    }

    fn send(&self, message: M) -> Result<(), M> {
        match self.work.as_ref().map(|work| work.try_send(message)) {
            Some(Err(TrySendError::Full(message))) => Err(message),
            // A thread that is gone drops the message, and with it the way back: the asker is told.
            Some(Ok(()) | Err(TrySendError::Disconnected(_))) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_that_ended_never_took_is_dropped_also_when_it_is_sent_later() {
        let (sender, receiver) = bounded(4);
        let (told, tell) = bounded::<()>(8);
        for _ in 0..2 {
            sender.send(told.clone()).unwrap();
        }
        drop(Inbox(receiver));
        for _ in 0..6 {
            // Never refused for want of room: somebody takes them.
            sender.send(told.clone()).unwrap();
        }
        drop(told);
        // Ends when the last way back is gone, though the sender is not.
        assert!(tell.recv().is_err());
        drop(sender);
    }

    #[tokio::test]
    async fn what_is_kept_goes_first_and_nothing_is_lost() {
        let (go, wait) = bounded::<()>(1);
        let (seen, see) = bounded(16);
        let mut thread = DeviceThread::spawn("test".to_owned(), 2, move |jobs, _| {
            wait.recv().unwrap();
            jobs.iter().for_each(|job| seen.send(job).unwrap());
        })
        .unwrap();
        assert_eq!((thread.offer(1), thread.offer(2), thread.offer(3)), (Ok(()), Ok(()), Err(3)));
        thread.keep(3);
        assert_eq!(thread.offer(4), Err(4));
        go.send(()).unwrap();
        while thread.retry() {
            tokio::task::yield_now().await;
        }
        while thread.offer(5).is_err() {
            tokio::task::yield_now().await;
        }
        thread.stop().await.unwrap();
        assert_eq!(see.try_iter().collect::<Vec<_>>(), [1, 2, 3, 5]);
    }
}
