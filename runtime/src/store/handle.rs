//! The store for asynchronous code: one thread that writes, where requests that wait together share one sync, and one that
//! reads. Queues are bounded in number and in bytes.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::database::Store;
use super::error::{Refusal, StoreError, WriteError};
use super::options::StoreOptions;
use super::types::{Write, Written};
use super::write::Outcome;

/// Queued bytes are counted in units of this many, since a semaphore counts in 32 bits.
const UNIT: usize = 1 << 10;

/// A request to a store did not take place, or it is not known whether it did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// The store has been closed. Nothing has been written.
    #[error("the store is closed")]
    Closed,

    /// The rules or the disk, see [`WriteError`].
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<StoreError> for HandleError {
    fn from(error: StoreError) -> Self {
        Self::Write(error.into())
    }
}

impl From<Refusal> for HandleError {
    fn from(refusal: Refusal) -> Self {
        Self::Write(refusal.into())
    }
}

/// A shared handle to an open store; clones share it. The last one that is dropped lets the threads finish what is queued
/// and end, without waiting for them; [`StoreHandle::close`] waits.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    writer: mpsc::Sender<Request>,
    reader: mpsc::Sender<Query>,
    room: Arc<Semaphore>,
    room_units: u32,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

struct Request {
    writes: Vec<Write>,
    reply: oneshot::Sender<Result<Vec<Outcome>, StoreError>>,
    _room: OwnedSemaphorePermit,
}

type Query = Box<dyn FnOnce(&Store) + Send>;

impl StoreHandle {
    /// Takes `store` and starts its two threads.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(store: Store) -> std::io::Result<Self> {
        let options = store.options.clone();
        let store = Arc::new(store);
        let (writer, requests) = mpsc::channel(options.queue.max(1));
        let (reader, queries) = mpsc::channel::<Query>(options.queue.max(1));
        let room_units = u32::try_from(options.queue_bytes / UNIT).unwrap_or(u32::MAX >> 4).max(1);
        let writing = thread::Builder::new().name("store-writer".to_owned()).spawn({
            let store = Arc::clone(&store);
            move || write_requests(&store, requests, &options)
        })?;
        let reading = thread::Builder::new().name("store-reader".to_owned()).spawn(move || {
            let mut queries = queries;
            while let Some(query) = queries.blocking_recv() {
                query(&store);
            }
        })?;
        Ok(Self {
            writer,
            reader,
            room: Arc::new(Semaphore::new(room_units as usize)),
            room_units,
            threads: Arc::new(Mutex::new(vec![writing, reading])),
        })
    }

    /// As [`Store::write`], waiting for room in the queue. If the future is dropped, the writes may still take place.
    ///
    /// # Errors
    /// Closed, or the disk failed. Refusals are among the outcomes.
    pub async fn write(&self, writes: Vec<Write>) -> Result<Vec<Result<Written, Refusal>>, HandleError> {
        let units = self.units(&writes);
        let room = Arc::clone(&self.room).acquire_many_owned(units).await.map_err(|_| HandleError::Closed)?;
        let (reply, outcome) = oneshot::channel();
        self.writer.send(Request { writes, reply, _room: room }).await.map_err(|_| HandleError::Closed)?;
        Ok(outcome.await.map_err(|_| HandleError::Closed)??)
    }

    /// One write, see [`Self::write`].
    ///
    /// # Errors
    /// Refused by the rules, closed, or the disk failed.
    pub async fn write_one(&self, write: Write) -> Result<Written, HandleError> {
        let outcome = self.write(vec![write]).await?.pop();
        Ok(outcome.unwrap_or_else(|| unreachable!("one write has one outcome"))?)
    }

    /// Runs `read` on the thread for reading. It sees what was acknowledged before this call. Keep it short: others wait.
    ///
    /// # Errors
    /// Closed, or what `read` returns.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, HandleError> {
        let (reply, answer) = oneshot::channel();
        let query: Query = Box::new(move |store| {
            // Whoever asked may have gone; then nobody wants the answer.
            let _ = reply.send(read(store));
        });
        self.reader.send(query).await.map_err(|_| HandleError::Closed)?;
        Ok(answer.await.map_err(|_| HandleError::Closed)??)
    }

    /// Finishes what is queued and closes the store; **blocks** until its folder is free for another process. Other handles
    /// must be gone: the store stays open until they are.
    pub fn close(self) {
        let Self { writer, reader, threads, .. } = self;
        drop((writer, reader));
        let threads = std::mem::take(&mut *threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }

    fn units(&self, writes: &[Write]) -> u32 {
        let units = writes.iter().map(Write::bytes).sum::<usize>().div_ceil(UNIT);
        // What is larger than the whole queue waits until it has the queue for itself.
        u32::try_from(units).unwrap_or(u32::MAX).clamp(1, self.room_units)
    }
}

/// Group commit: while one sync runs, requests gather; the next takes all of them, up to a bound.
fn write_requests(store: &Store, mut requests: mpsc::Receiver<Request>, options: &StoreOptions) {
    while let Some(first) = requests.blocking_recv() {
        let mut count = first.writes.len();
        let mut group = vec![first];
        while count < options.group {
            let Ok(request) = requests.try_recv() else { break };
            count += request.writes.len();
            group.push(request);
        }
        let outcomes = store.write_all(group.iter().flat_map(|request| &request.writes));
        match outcomes {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for request in group {
                    let own = outcomes.by_ref().take(request.writes.len()).collect();
                    // Whoever asked may have gone; the writes stand all the same.
                    let _ = request.reply.send(Ok(own));
                }
            }
            Err(error) => {
                for request in group {
                    let _ = request.reply.send(Err(error.clone()));
                }
            }
        }
    }
}
