//! The contexts and sessions that a server keeps for its clients, by name: a handle each, which is what keeps them alive. A
//! daemon puts here what its durable store had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fault::{ErrorCode, Fault};
use crate::handle::{Context, Session};
use crate::manifest::ContextId;
use crate::session::SessionId;

/// Contexts that a server keeps at most. Their blocks are bounded by the hosts' memory; empty ones by this.
pub const MAX_CONTEXTS: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<Contents>);

#[derive(Debug, Default)]
struct Contents {
    contexts: BTreeMap<ContextId, Context>,
    sessions: BTreeMap<SessionId, (ContextId, Arc<Session>)>,
}

impl Shelf {
    /// Keeps a context.
    pub fn add_context(&self, context: Context) {
        self.contents().contexts.insert(context.id(), context);
    }

    /// Keeps a session over a context.
    pub fn add_session(&self, context: ContextId, session: Session) {
        self.contents().sessions.insert(session.id(), (context, Arc::new(session)));
    }

    /// Keeps a session and the context that it is over.
    pub(super) fn add_both(&self, context: Context, session: Session) {
        let (mut contents, id) = (self.contents(), context.id());
        contents.contexts.insert(id, context);
        contents.sessions.insert(session.id(), (id, Arc::new(session)));
    }

    /// How many contexts and sessions there are.
    pub fn counts(&self) -> (usize, usize) {
        let contents = self.contents();
        (contents.contexts.len(), contents.sessions.len())
    }

    /// The contexts with the number of sessions open over each.
    pub fn contexts(&self) -> Vec<(Context, usize)> {
        let contents = self.contents();
        let sessions = |id| contents.sessions.values().filter(|(context, _)| *context == id).count();
        contents.contexts.iter().map(|(id, context)| (context.clone(), sessions(*id))).collect()
    }

    /// The sessions, each with its context.
    pub fn sessions(&self) -> Vec<(ContextId, Arc<Session>)> {
        self.contents().sessions.values().cloned().collect()
    }

    /// Forgets all of them: the node closes.
    pub fn clear(&self) {
        let contents = std::mem::take(&mut *self.contents());
        drop(contents);
    }

    pub(super) fn has_room(&self) -> Result<(), Fault> {
        if self.contents().contexts.len() < MAX_CONTEXTS {
            return Ok(());
        }
        let message = format!("{MAX_CONTEXTS} contexts are kept, as many as a node may; remove one");
        Err(Fault::new(ErrorCode::Full, message))
    }

    pub(super) fn context(&self, id: ContextId) -> Result<Context, Fault> {
        self.contents().contexts.get(&id).cloned().ok_or_else(|| Fault::no_context(id))
    }

    /// Forgets a context that no session needs, here or of `users`. Its blocks are freed with its last handle.
    pub(super) fn remove_context(&self, id: ContextId, users: &[SessionId]) -> Result<(), Fault> {
        let mut contents = self.contents();
        let here = contents.sessions.iter().filter(|(_, (context, _))| *context == id).map(|(id, _)| *id);
        let users: BTreeSet<_> = here.chain(users.iter().copied()).collect();
        if let Some(first) = users.first() {
            let message = format!(
                "context {id} has {} open session(s), {first} first; close them with `stellate session rm`",
                users.len()
            );
            return Err(Fault::new(ErrorCode::Refused, message));
        }
        contents.contexts.remove(&id).map(drop).ok_or_else(|| Fault::no_context(id))
    }

    pub(super) fn session(&self, id: SessionId) -> Result<(ContextId, Arc<Session>), Fault> {
        self.contents().sessions.get(&id).cloned().ok_or_else(|| Fault::no_session(id))
    }

    /// Lets a session go that is another node's by now; there may be none.
    pub(super) fn forget_session(&self, id: SessionId) {
        let forgotten = self.contents().sessions.remove(&id);
        drop(forgotten);
    }

    pub(super) fn close_session(&self, id: SessionId) -> Result<(), Fault> {
        self.contents().sessions.remove(&id).map(drop).ok_or_else(|| Fault::no_session(id))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        // Every change is a single insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
