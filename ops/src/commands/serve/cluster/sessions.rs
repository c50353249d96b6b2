//! Sessions of the cluster as administrators see them: whose they are, by the names of nodes, and moving them.

use std::sync::Arc;

use stellate_actors::api::{Claimed, ClusterError, SessionPlaceInfo};
use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::member::{ClaimError, SessionPlace, Sessions, Whose};
use stellate_actors::session::SessionId;
use stellate_runtime::membership::NodeRecord;
use stellate_runtime::substrate::Roster;

use super::Administration;
use super::nodes::{self, key_of};

impl Administration {
    async fn sessions(&self) -> Result<Arc<Sessions>, ClusterError> {
        Ok(Arc::clone(self.place.get().await?.member.sessions()))
    }

    pub(super) async fn claim_session(&self, session: SessionId) -> Result<Claimed, ClusterError> {
        match self.sessions().await?.claim(session, false).await {
            Ok(Whose::Ours { turns }) => Ok(Claimed::Here { turns: Some(turns) }),
            Ok(Whose::Others(key)) => {
                let roster = self.roster();
                let waits = || {
                    ClusterError::Waits(format!(
                        "session {session} is on a node that is not known here yet; ask again"
                    ))
                };
                let record = record(&roster, key).ok_or_else(waits)?;
                let address = record.addresses.first().ok_or_else(waits)?.to_string();
                Ok(Claimed::Elsewhere { node: record.name.clone(), address })
            }
            Err(error) => Err(self.not_claimed(&error)),
        }
    }

    fn not_claimed(&self, error: &ClaimError) -> ClusterError {
        let words = nodes::with_names(&self.roster(), &error.to_string());
        match error {
            // It may be on those that do not answer.
            ClaimError::Unknown { silent, .. } if *silent > 0 => ClusterError::Waits(words),
            ClaimError::Unknown { .. } | ClaimError::Removed { .. } => ClusterError::Unknown(words),
            ClaimError::Short { .. } | ClaimError::Failed { .. } => ClusterError::Waits(words),
            _ => ClusterError::Failed(words),
        }
    }

    pub(super) async fn move_session(&self, session: SessionId, to: String) -> Result<(), ClusterError> {
        let roster = self.roster();
        let named = nodes::named(&roster, &to)?;
        if named.is_own {
            return Err(ClusterError::Refused(format!(
                "session {session} is on node `{}` already",
                named.name
            )));
        }
        let target = roster.member(named.id).filter(|member| member.is_up() && member.record.roles.query);
        if target.is_none() {
            return Err(ClusterError::Refused(format!(
                "node `{}` is not there, or runs no sessions (node.roles); move the session to another one",
                named.name
            )));
        }
        let handed = self.sessions().await?.hand_over(session, named.key()).await;
        handed.map_err(|why| {
            let why = nodes::with_names(&roster, &why);
            ClusterError::Waits(format!(
                "node `{}` did not take session {session} over: {why}; try again",
                named.name
            ))
        })
    }

    pub(super) async fn session_places(&self) -> Result<Vec<SessionPlaceInfo>, ClusterError> {
        let places = self.sessions().await?.places().await;
        let places = places.map_err(|error| ClusterError::Failed(error.to_string()))?;
        let roster = self.roster();
        let info = |place: SessionPlace| SessionPlaceInfo {
            id: place.session,
            context: place.context,
            node: record(&roster, place.owner).map_or(place.owner.to_string(), |record| record.name.clone()),
            copies: place.copies.map(|(have, shall)| (have as u64, shall as u64)),
        };
        Ok(places.into_iter().map(info).collect())
    }
}

fn record(roster: &Roster, key: NodeKey) -> Option<&NodeRecord> {
    let all = std::iter::once(&roster.own).chain(roster.members.iter().map(|member| &member.record));
    all.into_iter().find(|record| key_of(record.node) == key)
}
