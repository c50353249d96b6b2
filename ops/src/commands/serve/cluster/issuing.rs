//! What takes the CA's key: join tokens, and removing nodes for good. On other nodes it is refused in words that name the one
//! that has the key.

use std::time::{Duration, SystemTime};

use stellate_actors::api::{ClusterError, IssuedToken};
use stellate_actors::cluster::messages::{Refusal, SupervisorReply, SupervisorRequest};
use stellate_runtime::substrate::{ManageError, Roster};

use super::nodes::Named;
use super::{Administration, nodes};

/// Longest life of a token: beyond, it is a key under the doormat.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Administration {
    pub(super) async fn issue(&self, ttl: Duration, uses: u32) -> Result<IssuedToken, ClusterError> {
        if ttl > MAX_TTL || ttl.is_zero() {
            let words = "a token lasts a year at most, and some time; lower --ttl";
            return Err(ClusterError::Refused(words.to_owned()));
        }
        let seat = self.place.get().await?;
        let issued = seat.substrate.issue_token(ttl, uses).await;
        let token = issued.map_err(|error| managed(&self.roster(), &error))?;
        let join_address = seat.substrate.join_address().ok_or_else(|| {
            ClusterError::Failed("the join address of this node is closed; restart it".to_owned())
        })?;
        let expires = SystemTime::now() + ttl;
        let expires = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        tracing::info!(token = %token.id(), uses, expires_s = expires.as_secs(), "a join token was made");
        Ok(IssuedToken {
            id: token.id().to_string(),
            token: token.to_line(),
            expires_s: expires.as_secs(),
            uses: u64::from(uses),
            join_address: join_address.to_string(),
        })
    }

    /// Blocks first, then the key: a node that is refused here is as it was.
    pub(super) async fn remove_node(&self, node: String, force: bool) -> Result<(), ClusterError> {
        let roster = self.roster();
        let named = nodes::named(&roster, &node)?;
        self.needs_another(&named, "without it there is no cluster")?;
        if !roster.own.roles.issuer {
            return Err(managed(&roster, &ManageError::NotIssuer));
        }
        if named.is_own {
            return Err(managed(&roster, &ManageError::Ourselves));
        }
        if !force {
            self.keeps_nothing(&named).await?;
        }
        match self.place.ask(SupervisorRequest::Remove { node: named.key(), force }).await {
            // One without context hosts, or gone for long.
            Ok(SupervisorReply::Refused(Refusal::NoSuchNode { .. })) => {}
            Ok(SupervisorReply::Refused(refusal)) => return Err(self.refused(&refusal)),
            Ok(_) => {}
            Err(error) if force => {
                tracing::warn!(%error, node = %named.name, "removed without the supervisor")
            }
            Err(error) => return Err(error),
        }
        let seat = self.place.get().await?;
        let removed = seat.substrate.remove_node(named.id).await;
        removed.map_err(|error| managed(&self.roster(), &error))?;
        tracing::info!(node = %named.name, id = %named.id, force, "a node was removed for good");
        Ok(())
    }

    /// Contexts and the sessions over them live on the node on which they were made, wherever their blocks lie.
    async fn keeps_nothing(&self, named: &Named) -> Result<(), ClusterError> {
        let snapshot = self.place.snapshot().await?;
        let kept = snapshot.contexts.iter().filter(|row| row.query_node == named.key());
        let kept: Vec<_> = kept.map(|row| row.context.to_string()).collect();
        if kept.is_empty() {
            return Ok(());
        }
        Err(ClusterError::Refused(format!(
            "node `{}` keeps {} context(s), which would be lost with the sessions over them: {}; remove them there first \
             (`stellate context rm`), or use --force",
            named.name,
            kept.len(),
            shortened(&kept)
        )))
    }
}

/// The first names of a list.
fn shortened(names: &[String]) -> String {
    const MOST: usize = 8;
    let more = if names.len() > MOST { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(MOST)].join(", "))
}

/// A refusal of the issuing side, in words that name who can do it.
fn managed(roster: &Roster, error: &ManageError) -> ClusterError {
    match (error, nodes::issuer(roster)) {
        (ManageError::NotIssuer, Some(issuer)) => ClusterError::NotHere(format!(
            "this node does not hold the key of the cluster's CA; ask node `{issuer}`"
        )),
        (ManageError::NotIssuer, None) => ClusterError::NotHere(error.to_string()),
        (ManageError::Ourselves, _) => ClusterError::Refused(
            "the node that holds the CA's key cannot be removed: nobody could be let in any more".to_owned(),
        ),
        _ => ClusterError::Failed(error.to_string()),
    }
}
