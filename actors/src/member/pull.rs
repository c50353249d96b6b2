//! A block on its way to a host of this node: from another node over the bulk class, or from another host of the same
//! process. What has arrived is kept over broken connections and, as promised room, over a copy that was given up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use stellate_model::block::BlockId;
use stellate_runtime::clock::Clock;
use stellate_runtime::transport::Connection;

use crate::budget::BudgetedBlock;
use crate::cancel::CancelToken;
use crate::checksum::Checksum;
use crate::cluster::messages::AgentRefusal;
use crate::context_host::ContextHostHandle;
use crate::context_host::held::Arrival;
use crate::context_host::strip::Strip;
use crate::link::HostId;
use crate::remote::frames::NoTransfer;
use crate::remote::{DialFailure, FetchError, Landing, fetch_block};

/// Tries in a row that bring nothing new, before a copy is given up. With the pauses between them some 3 s: longer than a
/// connection that broke takes to be there again.
const TRIES: u32 = 6;

/// The pause before the second try; each later one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Bytes that are copied within a process between two looks at whether the copy is still wanted.
const STEP_BYTES: usize = 4 << 20;

/// The ways to the hosts that blocks are copied from.
pub trait BlockSources: Send + Sync + fmt::Debug + 'static {
    /// A connection of the bulk class to the node of a host.
    fn connect(&self, host: HostId) -> BoxFuture<'_, Result<Connection, DialFailure>>;
}

/// A copy that was ordered.
#[derive(Debug)]
pub(super) struct Pull {
    pub(super) target: ContextHostHandle,
    pub(super) block: BlockId,
    pub(super) from: HostId,
    /// The source, if it is of this process.
    pub(super) near: Option<ContextHostHandle>,
    pub(super) sources: Arc<dyn BlockSources>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) max_rate: Option<u64>,
    /// Noted when the order came: an order to free the block that came later takes it back.
    pub(super) arrival: Arrival,
}

impl Pull {
    /// Copies the block into the room that was promised to it and seals it. Gives its checksum as the source has it.
    pub(super) async fn run(self) -> Result<Checksum, AgentRefusal> {
        for copy in self.arrival.earlier_copies() {
            copy.wait().await;
        }
        if let Some(held) = self.target.held.get(&self.block) {
            return checksum_of(held).await;
        }
        if self.arrival.revoked().is_cancelled() {
            return Err(freed());
        }
        let strip = self.target.held.take_promised(&self.block).ok_or_else(|| AgentRefusal::Failed {
            cause: format!("no room was promised to block {}; have it reserved first", self.block),
        })?;
        let (arrived, block) = match &self.near {
            Some(near) => self.copy(near, strip).await,
            None => self.fetch(strip).await,
        };
        // The room with what has come stays promised, unless it was freed; and is gone before the arrival is.
        let checksum = match (arrived, block) {
            (Ok(checksum), Filled::Block(block)) => {
                let (id, bytes) = (self.block, block.bytes());
                self.arrival.seal(block).map_err(|_| freed())?;
                tracing::info!(block = %id, from = %self.from, to = %self.target.host, bytes, "block copied");
                return Ok(checksum);
            }
            (outcome, Filled::Part(strip)) => {
                self.arrival.promise(strip);
                outcome
            }
            (outcome, Filled::Block(_) | Filled::Lost) => outcome,
        };
        checksum.and(Err(AgentRefusal::Failed { cause: "the copy is not whole".to_owned() }))
    }

    /// Copies from a host of the same process.
    async fn copy(
        &self,
        near: &ContextHostHandle,
        mut strip: Strip,
    ) -> (Result<Checksum, AgentRefusal>, Filled) {
        let source = match near.held.get(&self.block) {
            Some(source) if source.bytes() == strip.bytes() && source.len() <= strip.capacity_tokens() => {
                source
            }
            Some(_) => return (Err(failed("the host runs another model or format")), Filled::Part(strip)),
            None => return (Err(self.no_such_block()), Filled::Part(strip)),
        };
        let (cancel, started) = (self.arrival.revoked().clone(), self.clock.now());
        let (bytes, count) = (source.bytes() as u64, self.arrival.count());
        let copying = tokio::task::spawn_blocking(move || {
            strip.restart();
            for piece in source.raw().chunks(STEP_BYTES) {
                if cancel.is_cancelled() {
                    return (Err(freed()), Filled::Part(strip));
                }
                strip.fill(&[piece]);
                count.store(strip.arrived_bytes() as u64, std::sync::atomic::Ordering::Relaxed);
            }
            (Ok(strip.checksum()), Filled::Block(strip.into_block(source.len())))
        });
        let copied = copying.await.unwrap_or_else(|_| (Err(failed("copying has stopped")), Filled::Lost));
        self.target.rates.copy.add(bytes, self.clock.now().saturating_sub(started));
        copied
    }

    /// Copies from another node, going on where it stood as long as that brings something new.
    async fn fetch(&self, strip: Strip) -> (Result<Checksum, AgentRefusal>, Filled) {
        let (cancel, count) = (self.arrival.revoked().clone(), self.arrival.count());
        let mut landing = Landing::on(strip, cancel, count);
        let outcome = self.fetch_into(&mut landing).await;
        let filled = match (outcome.is_ok(), landing) {
            (true, landing) => landing.into_block().map_or(Filled::Lost, Filled::Block),
            (false, landing) => landing.into_strip().map_or(Filled::Lost, Filled::Part),
        };
        (outcome, filled)
    }

    async fn fetch_into(&self, landing: &mut Landing) -> Result<Checksum, AgentRefusal> {
        let (mut most, mut tries) = (landing.arrived_bytes(), 0);
        loop {
            let (before, started) = (landing.arrived_bytes(), self.clock.now());
            let attempt = self.attempt(landing).await;
            let came = landing.arrived_bytes().saturating_sub(before);
            if came > 0 {
                self.target.rates.copy.add(came as u64, self.clock.now().saturating_sub(started));
            }
            let cause = match attempt {
                Ok(()) => return landing.checksum().ok_or_else(|| failed("the copy is not whole")),
                Err(Attempt::Final(refusal)) => return Err(refusal),
                Err(Attempt::Again(cause)) => cause,
            };
            // More than ever before: the way is there, and the copy ends some time.
            tries = if landing.arrived_bytes() > most { 1 } else { tries + 1 };
            most = most.max(landing.arrived_bytes());
            if tries >= TRIES {
                return Err(failed(&cause));
            }
            tracing::debug!(block = %self.block, from = %self.from, arrived = landing.arrived_bytes(), cause, "copying goes on");
            pause(FIRST_PAUSE * (1 << (tries - 1)), self.arrival.revoked()).await?;
        }
    }

    async fn attempt(&self, landing: &mut Landing) -> Result<(), Attempt> {
        let connection = tokio::select! {
            connection = self.sources.connect(self.from) => connection,
            () = self.arrival.revoked().cancelled() => return Err(Attempt::Final(freed())),
        };
        let connection = connection.map_err(|failure| match failure {
            DialFailure::Gone => Attempt::Final(self.no_such_block()),
            DialFailure::Unreachable(cause) => Attempt::Again(cause),
        })?;
        let fetched = fetch_block(&connection, self.from, self.block, landing, self.max_rate).await;
        if let Err(FetchError::Protocol(error)) = &fetched {
            // As often as the copy is tried.
            tracing::warn!(block = %self.block, from = %self.from, %error, "the source of a block broke the protocol");
        }
        fetched.map_err(|error| match error {
            FetchError::Cancelled => Attempt::Final(freed()),
            FetchError::Refused(NoTransfer::NoSuchBlock | NoTransfer::HostGone) => {
                Attempt::Final(self.no_such_block())
            }
            FetchError::Interrupted(_)
            | FetchError::Protocol(_)
            | FetchError::Checksum
            | FetchError::Refused(NoTransfer::Overloaded) => Attempt::Again(error.to_string()),
            FetchError::Refused(_) => Attempt::Final(failed(&error.to_string())),
        })
    }

    fn no_such_block(&self) -> AgentRefusal {
        AgentRefusal::NoSuchBlock { host: self.from, block: self.block }
    }
}

/// What the room has become.
#[derive(Debug)]
enum Filled {
    Block(BudgetedBlock),
    Part(Strip),
    /// A thread that filled it panicked.
    Lost,
}

/// Why a try failed.
enum Attempt {
    Again(String),
    Final(AgentRefusal),
}

/// The checksum of a block's raw bytes, computed on a thread that may block.
pub(super) async fn checksum_of(block: Arc<BudgetedBlock>) -> Result<Checksum, AgentRefusal> {
    let summing = tokio::task::spawn_blocking(move || Checksum::of(block.raw()));
    summing.await.map_err(|_| failed("summing has stopped"))
}

async fn pause(pause: Duration, cancel: &CancelToken) -> Result<(), AgentRefusal> {
    tokio::select! {
        () = tokio::time::sleep(pause) => Ok(()),
        () = cancel.cancelled() => Err(freed()),
    }
}

fn failed(cause: &str) -> AgentRefusal {
    AgentRefusal::Failed { cause: cause.to_owned() }
}

fn freed() -> AgentRefusal {
    failed("the block was freed while it was on its way")
}
