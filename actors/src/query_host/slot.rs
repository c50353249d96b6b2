//! A session on its query host: the turn that it answers, and what that turn waits for. How sessions share the thread is
//! not decided here.

use std::collections::BTreeSet;
use std::sync::Arc;

use stellate_model::block::BlockId;
use stellate_runtime::clock::Clock;

use super::{Errand, Errands};
use crate::directory::Directory;
use crate::engine::Engine;
use crate::error::{AskError, EncodeError};
use crate::fanout::{Fanout, FanoutError, Route};
use crate::journal::JournalError;
use crate::link::{HostId, LinkError};
use crate::manifest::{ContextId, Manifest};
use crate::path::context::EncodedContext;
use crate::path::query::{Step, TurnRequest, TurnRun, restore};
use crate::prompt::Prompter;
use crate::session::{SessionId, SessionState};
use crate::whereabouts::Places;

/// Times that one step may be asked again, each after a heal that succeeded: hosts that are there for an encode and never
/// for a step are not waited for forever.
const MAX_RETRIES: u32 = 4;

/// What every step needs.
pub(super) struct Means<'a> {
    pub(super) engine: &'a mut Engine,
    pub(super) prompter: &'a Prompter,
    pub(super) clock: &'a dyn Clock,
    pub(super) hosts: &'a Directory,
    pub(super) errands: &'a Errands,
    pub(super) is_durable: bool,
    /// Contexts that are being healed.
    pub(super) healing: &'a mut BTreeSet<ContextId>,
}

/// A session and the turn that it answers.
#[derive(Debug)]
pub(super) struct Slot {
    id: SessionId,
    session: SessionState,
    run: Option<TurnRun>,
    waits: Waits,
    /// Asked while the turn before, over but for its entry in the journal, was being written down.
    next: Option<TurnRequest>,
    /// Times that the step under way was asked again.
    retries: u32,
    /// Closed while its turn was being written down: gone once that is done, so that who opens it again reads the turn.
    is_closed: bool,
}

/// What a turn waits for.
#[derive(Debug)]
enum Waits {
    Nothing,
    /// Its context to be healed of this.
    Heal(FanoutError),
    /// Its entry in the journal to be durable.
    Journal,
}

impl Slot {
    pub(super) fn new(id: SessionId, session: SessionState) -> Self {
        Self { id, session, run: None, waits: Waits::Nothing, next: None, retries: 0, is_closed: false }
    }

    pub(super) fn session(&self) -> &SessionState {
        &self.session
    }

    /// Takes a question on.
    pub(super) fn ask(&mut self, request: TurnRequest, means: &mut Means<'_>) -> Result<(), AskError> {
        // The listener of a cancelled turn may ask again before the thread came round to notice.
        if self.run.as_ref().is_some_and(TurnRun::is_cancelled) {
            self.step(means);
        }
        match (&self.run, &self.waits) {
            (None, _) => {
                self.run = Some(TurnRun::begin(request, &self.session, means.prompter, means.engine)?);
                self.retries = 0;
            }
            (Some(run), Waits::Journal) if run.is_cancelled() && self.next.is_none() => {
                self.next = Some(request)
            }
            (Some(_), _) => return Err(AskError::Busy),
        }
        Ok(())
    }

    /// Ends the session, and its turn with an error unless that is over. Tells whether the slot can go.
    pub(super) fn close(&mut self) -> bool {
        self.is_closed = matches!(self.waits, Waits::Journal);
        if let Some(next) = self.next.take() {
            // A stream of its own, empty so far: there is room.
            let _ = next.events.try_send(Err(AskError::Closed));
        }
        if !self.is_closed {
            self.fail(AskError::Closed);
        }
        !self.is_closed
    }

    /// Whether nothing is left to do for it.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed && self.run.is_none()
    }

    /// One step of the turn. Tells what came of it, or `None` if there is nothing to do before a message comes.
    pub(super) fn step(&mut self, means: &mut Means<'_>) -> Option<Step> {
        let run = self.run.as_ref()?;
        match self.waits {
            Waits::Journal => return None,
            Waits::Heal(_) if !run.is_cancelled() => return Some(Step::Waiting),
            Waits::Heal(_) | Waits::Nothing => self.waits = Waits::Nothing,
        }
        let step = self.advance(means);
        match step {
            Step::Again => self.retries = 0,
            Step::Waiting => {}
            Step::Faulted(fault) => {
                self.park(fault, means);
                return Some(Step::Waiting);
            }
            Step::Finished => self.finish(means),
            Step::Ended => self.run = None,
        }
        Some(step)
    }

    fn advance(&mut self, means: &mut Means<'_>) -> Step {
        let Self { run, session, .. } = self;
        let Some(run) = run else { return Step::Ended };
        if !run.is_cancelled() {
            if let Err(fault) = connect(session, means.hosts) {
                return Step::Faulted(fault);
            }
            if session.is_behind() {
                return match restore(means.engine, session) {
                    Ok(()) => Step::Again,
                    Err(AskError::Fanout(fault)) if fault.is_mendable() => Step::Faulted(fault),
                    Err(error) => {
                        run.fail(session, error);
                        Step::Ended
                    }
                };
            }
        }
        run.step(means.engine, session, means.prompter, means.clock)
    }

    /// After a step without attention: waits for the context to be healed, unless its blocks lie elsewhere by now.
    fn park(&mut self, fault: FanoutError, means: &mut Means<'_>) {
        let (context, session) = (Arc::clone(&self.session.context), &mut self.session);
        // Replies that are still under way go with their links: none is taken for a reply to the step asked again.
        let suspect =
            session.fanout.take().map_or_else(|| fault.silent_host(), |fanout| fanout.suspect(&fault));
        tracing::info!(session = %self.id, context = %context.manifest.id, %fault, "a step is to be asked again");
        // One that was asked to encode what it lacks, and lacks it still, is not asked again.
        let suspect = suspect.or_else(|| fault.lacking_host().filter(|_| self.retries > 0));
        self.retries += 1;
        if self.retries > MAX_RETRIES {
            return self.fail(AskError::Fanout(fault));
        }
        if context.whereabouts.version() != session.routed_version {
            return;
        }
        let id = context.manifest.id;
        if !means.healing.contains(&id) {
            if means.errands.try_send(Errand::Heal(context, suspect.into_iter().collect())).is_err() {
                return self.fail(AskError::Stopped);
            }
            means.healing.insert(id);
        }
        self.waits = Waits::Heal(fault);
    }

    /// The context has been healed, or not.
    pub(super) fn healed(&mut self, context: &Arc<EncodedContext>, failed: Option<&Arc<EncodeError>>) {
        if !Arc::ptr_eq(context, &self.session.context) || !matches!(self.waits, Waits::Heal(_)) {
            return;
        }
        let Waits::Heal(fault) = std::mem::replace(&mut self.waits, Waits::Nothing) else { return };
        if let Some(cause) = failed {
            self.fail(AskError::Unhealed { fault, cause: Arc::clone(cause) });
        }
    }

    /// The turn is over: writes it down, or tells its report at once where nothing is written.
    fn finish(&mut self, means: &mut Means<'_>) {
        let Some(run) = &mut self.run else { return };
        match run.entry(&self.session).filter(|_| means.is_durable) {
            None => {
                run.conclude();
                self.run = None;
            }
            Some((index, turn)) => {
                self.waits = Waits::Journal;
                if means.errands.try_send(Errand::Write(self.id, index, turn)).is_err() {
                    self.waits = Waits::Nothing;
                    self.session.unlog();
                    self.fail(AskError::Stopped);
                }
            }
        }
    }

    /// The turn is durable, or never happened. Gives the question that was asked meanwhile.
    pub(super) fn written(&mut self, outcome: Result<(), JournalError>) -> Option<TurnRequest> {
        self.waits = Waits::Nothing;
        match outcome {
            Ok(()) => {
                if let Some(mut run) = self.run.take() {
                    run.conclude();
                }
            }
            // The session goes on behind the turn: whoever asks for it again is told it once it is copied.
            Err(error) if error.is_written() => {
                if let Some(run) = self.run.take() {
                    run.doubt(error.into());
                }
            }
            Err(error) => {
                self.session.unlog();
                self.fail(error.into());
            }
        }
        self.next.take()
    }

    fn fail(&mut self, error: AskError) {
        if let Some(mut run) = self.run.take() {
            run.fail(&mut self.session, error);
        }
    }
}

/// Sees to it that the session's fan-out goes where the blocks of its context lie now.
fn connect(session: &mut SessionState, hosts: &Directory) -> Result<(), FanoutError> {
    let SessionState { context, fanout, routed_version, .. } = session;
    let is_current = fanout.is_some() && context.whereabouts.version() == *routed_version;
    if !is_current {
        *fanout = None;
        let places = context.whereabouts.now();
        *routed_version = places.version;
        let blocks = context.manifest.blocks.len();
        let routes = routes(hosts, &context.manifest, &places, blocks)?;
        *fanout = Some(Fanout::new(routes, context.manifest.cover(blocks)));
    }
    Ok(())
}

/// The routes to the first `blocks` blocks of a context.
pub(super) fn routes(
    hosts: &Directory,
    manifest: &Manifest,
    places: &Places,
    blocks: usize,
) -> Result<Vec<Route>, FanoutError> {
    let route = |(host, blocks): (HostId, Vec<BlockId>)| {
        let port = hosts.get(host).ok_or(LinkError::HostGone { host })?;
        Ok(Route { link: port.link(), blocks: blocks.into() })
    };
    manifest.by_host(places, blocks).ok_or(FanoutError::Unplaced)?.into_iter().map(route).collect()
}
