//! What a query host's device thread has done elsewhere, since it waits for nobody: contexts are healed and turns written
//! down by tasks of their own, which send the outcome back as a message.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::QueryHostMsg;
use crate::error::EncodeError;
use crate::fleet::Fleet;
use crate::link::HostId;
use crate::path::context::EncodedContext;
use crate::path::heal::heal;
use crate::session::{SessionId, TurnRecord};

/// Errands that may wait to be started: they are started at once, so a few are enough for any number of sessions.
const QUEUE: usize = 256;

/// Something to be done elsewhere.
#[derive(Debug)]
pub enum Errand {
    /// Bring a context's blocks back; some hosts did not answer. Comes back as [`QueryHostMsg::Rerouted`].
    Heal(Arc<EncodedContext>, Vec<HostId>),
    /// Write a turn down. Comes back as [`QueryHostMsg::Written`].
    Write(SessionId, u64, TurnRecord),
}

/// Where errands are sent.
pub type Errands = mpsc::Sender<Errand>;

/// A way for errands.
pub fn errands() -> (Errands, mpsc::Receiver<Errand>) {
    mpsc::channel(QUEUE)
}

/// Does what is sent until the query host is gone.
pub async fn run_errands(fleet: Arc<Fleet>, mut errands: mpsc::Receiver<Errand>) {
    while let Some(errand) = errands.recv().await {
        let fleet = Arc::clone(&fleet);
        tokio::spawn(async move {
            let outcome = run(&fleet, errand).await;
            // A query host that is gone has no turn that waits.
            let _ = fleet.query.cast(outcome);
        });
    }
}

async fn run(fleet: &Arc<Fleet>, errand: Errand) -> QueryHostMsg {
    match errand {
        Errand::Heal(context, suspects) => {
            let (shared, healed) = (Arc::clone(fleet), Arc::clone(&context));
            // In a task of its own: whatever becomes of it, the turns that wait are told.
            let task = tokio::spawn(async move { heal(&shared, &healed, suspects).await });
            let placement = task.await.unwrap_or(Err(EncodeError::Stopped));
            QueryHostMsg::Rerouted(context, placement.map_err(Arc::new))
        }
        Errand::Write(session, index, turn) => {
            let written = match &fleet.journal {
                Some(journal) => journal.turn_appended(session, index, turn).await,
                None => Ok(()),
            };
            QueryHostMsg::Written(session, written)
        }
    }
}
