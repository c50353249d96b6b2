//! What a node with a journal remembers: contexts and sessions by name, taken up again after the process that made them
//! has ended. Blocks are encoded, and a session's own keys and values computed, when a question asks for them.

use std::sync::Arc;

use ractor::call;

use super::Node;
use crate::error::{Asked, ContextError, SessionError};
use crate::fleet::Fleet;
use crate::handle::{Context, Session};
use crate::journal::{ContextRecord, SessionRecord};
use crate::lease::ContextLease;
use crate::manifest::{ContextId, Manifest};
use crate::path::context::{EncodedContext, index_of};
use crate::progress::EncodeProgress;
use crate::query_host::{OpenSession, QueryHostMsg};
use crate::session::SessionId;
use crate::whereabouts::Whereabouts;

impl Node {
    /// The names of all contexts: those in use, and those that the journal remembers.
    ///
    /// # Errors
    /// The journal failed.
    pub async fn contexts(&self) -> Result<Vec<ContextId>, ContextError> {
        if let Some(client) = self.client() {
            return Ok(client.contexts().await?.into_iter().map(|info| info.id).collect());
        }
        let fleet = self.fleet();
        let mut ids: Vec<_> = fleet.contexts.all().iter().map(|context| context.manifest.id).collect();
        if let Some(journal) = &fleet.journal {
            ids.extend(journal.contexts().await?);
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// A context by its name. One of an earlier time is taken up again; its blocks are encoded when they are asked for.
    ///
    /// # Errors
    /// There is none of that name; it is of another model; what is written of it cannot be read.
    pub async fn context(&self, id: ContextId) -> Result<Context, ContextError> {
        if let Some(client) = self.client() {
            return Ok(client.context(id).await?);
        }
        let fleet = self.fleet();
        if let Some(known) = fleet.contexts.get(id) {
            return Ok(self.handle_of(known));
        }
        let unknown = ContextError::Unknown { context: id };
        let Some(journal) = &fleet.journal else { return Err(unknown) };
        let record = journal.context(id).await?.ok_or(unknown)?;
        let context = take_up(fleet, record).await?;
        Ok(self.handle_of(fleet.contexts.add(context, true)))
    }

    /// Forgets a context and all sessions over it, open or not; their turns end with an error. Its blocks are freed with
    /// its last handle. A node of another process refuses while sessions over it are open.
    ///
    /// # Errors
    /// There is none of that name, or the journal failed.
    pub async fn remove_context(&self, id: ContextId) -> Result<(), ContextError> {
        if let Some(client) = self.client() {
            return Ok(client.remove_context(id).await?);
        }
        let fleet = self.fleet();
        let Some(journal) = &fleet.journal else { return Err(ContextError::Unknown { context: id }) };
        let Some(sessions) = journal.context_removed(id, &|| forget_context(fleet, id)).await? else {
            return Err(ContextError::Unknown { context: id });
        };
        for session in sessions {
            // A query host that is gone has no sessions.
            let _ = fleet.query.cast(QueryHostMsg::Close(session));
        }
        Ok(())
    }

    /// Forgets a context that came here with a session and is not needed any more, as [`remove_context`](Self::remove_context)
    /// would; one that this node made stays, and so does one whose maker does not answer. Tells whether it is forgotten.
    ///
    /// # Errors
    /// The journal failed.
    pub(crate) async fn let_context_go(&self, id: ContextId) -> Result<bool, ContextError> {
        let fleet = self.fleet();
        let Some(journal) = &fleet.journal else { return Ok(false) };
        Ok(journal.context_let_go(id, &|| forget_context(fleet, id)).await?)
    }

    /// The sessions that the journal remembers, open or not. Without a journal there are none to be taken up again.
    ///
    /// # Errors
    /// The journal failed.
    pub async fn sessions(&self) -> Result<Vec<SessionRecord>, SessionError> {
        if let Some(client) = self.client() {
            let sessions = client.sessions().await?.into_iter();
            return Ok(sessions.map(|info| SessionRecord { id: info.id, context: info.context }).collect());
        }
        match &self.fleet().journal {
            Some(journal) => Ok(journal.sessions().await?),
            None => Ok(Vec::new()),
        }
    }

    /// Takes a session up again by its name. What it holds of keys and values is computed when it is asked.
    ///
    /// # Errors
    /// There is none of that name; somebody has it open; its context cannot be taken up again; what is written of it
    /// cannot be read; as many sessions are open as may be.
    pub async fn session(&self, id: SessionId) -> Result<Session, SessionError> {
        if let Some(client) = self.client() {
            return Ok(client.session(id).await?);
        }
        let Some(journal) = &self.fleet().journal else { return Err(SessionError::Unknown { session: id }) };
        loop {
            let (record, turns) = journal.session(id).await?.ok_or(SessionError::Unknown { session: id })?;
            let (context, known) = (self.context(record.context).await?, turns.len());
            let request = OpenSession { context: Arc::clone(context.encoded()), id: Some(id), turns };
            let lease = call!(self.fleet().query, QueryHostMsg::Open, request).asked()??;
            // A handle that was dropped just now may have had a last turn written down meanwhile; from here on none can.
            if journal.session(id).await?.is_some_and(|(_, turns)| turns.len() == known) {
                return Ok(Session::new(lease, self.clone()));
            }
        }
    }

    /// Forgets a session, open or not; its turn ends with an error.
    ///
    /// # Errors
    /// There is none of that name, or the journal failed.
    pub async fn remove_session(&self, id: SessionId) -> Result<(), SessionError> {
        if let Some(client) = self.client() {
            return Ok(client.close_session(id).await?);
        }
        let unknown = SessionError::Unknown { session: id };
        let Some(journal) = &self.fleet().journal else { return Err(unknown) };
        // A query host that is gone has no sessions.
        let _ = self.fleet().query.cast(QueryHostMsg::Close(id));
        if !journal.session_closed(id).await? {
            return Err(unknown);
        }
        Ok(())
    }

    /// Closes a session that is another node's by now; its turn ends with an error. What is written of it stays.
    pub(crate) fn close_session_here(&self, id: SessionId) {
        // A query host that is gone has no sessions.
        let _ = self.fleet().query.cast(QueryHostMsg::Close(id));
    }

    fn fleet(&self) -> &Fleet {
        &self.cast().fleet
    }

    fn handle_of(&self, context: Arc<EncodedContext>) -> Context {
        Context::new(self.clone(), context, EncodeProgress::default())
    }
}

fn forget_context(fleet: &Fleet, id: ContextId) {
    match fleet.contexts.remove(id) {
        Some(context) => context.lease.give_up(),
        // Not used since the node was opened: hosts of other processes may hold its blocks all the same.
        None => fleet.supervisor.release(id),
    }
}

/// A context as it was written down, with its blocks nowhere yet.
async fn take_up(fleet: &Fleet, record: ContextRecord) -> Result<EncodedContext, ContextError> {
    let ContextRecord { id, layout, prompting, blocks, ids } = record;
    if fleet.decoder.check_ids(&ids).is_err() {
        return Err(ContextError::OtherModel { context: id });
    }
    let manifest = Arc::new(Manifest::new(&fleet.addresser, id, layout, ids));
    // The addresses are made of the tokens, the model and the format.
    if !manifest.blocks.iter().map(|block| block.id).eq(blocks) {
        return Err(ContextError::OtherModel { context: id });
    }
    let index = index_of(&manifest).await.map_err(|_| ContextError::Stopped)?;
    let lease = ContextLease::new(id, Arc::clone(&fleet.supervisor));
    lease.keep();
    Ok(EncodedContext { manifest, prompting, whereabouts: Whereabouts::default(), index, lease })
}
