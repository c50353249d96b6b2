//! What takes the CA's key: join tokens, and removing nodes for good. On other nodes it is refused in words that name the one
//! that has the key.

use std::time::{Duration, SystemTime};

use stellate_actors::api::{ClusterError, IssuedToken, TokenInfo};
use stellate_actors::cluster::messages::{Refusal, SupervisorReply, SupervisorRequest};
use stellate_runtime::identity::{NodeId, NodeName, TokenId, TokenRecord};
use stellate_runtime::substrate::{ManageError, Roster};

use super::nodes::Named;
use super::{Administration, nodes};
use crate::admins;

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

    pub(super) async fn list_tokens(&self) -> Result<Vec<TokenInfo>, ClusterError> {
        let records = self.place.get().await?.substrate.tokens().await;
        let now = SystemTime::now();
        let records = records.map_err(|error| managed(&self.roster(), &error))?;
        Ok(records.iter().map(|record| token_info(record, now)).collect())
    }

    pub(super) async fn call_back(&self, id: String) -> Result<(), ClusterError> {
        let shown: String = id.chars().take(80).collect();
        let unknown = || {
            ClusterError::Unknown(format!("there is no join token `{shown}`; `stellate token ls` lists them"))
        };
        let id: TokenId = id.parse().map_err(|_| unknown())?;
        let revoked = self.place.get().await?.substrate.revoke_token(id).await;
        match revoked.map_err(|error| managed(&self.roster(), &error))? {
            true => tracing::info!(token = %id, "a join token was revoked"),
            false => return Err(unknown()),
        }
        Ok(())
    }

    /// Revokes all certificates that an administrator was given here, or the one with this id.
    pub(super) async fn dismiss(&self, admin: String) -> Result<(), ClusterError> {
        let roster = self.roster();
        if !roster.own.roles.issuer {
            return Err(managed(&roster, &ManageError::NotIssuer));
        }
        let ids = match admin.parse::<NodeId>() {
            Ok(id) => vec![id],
            Err(_) => admins::ids(&self.authority, &admin)
                .map_err(|error| ClusterError::Failed(format!("the list of administrators: {error}")))?,
        };
        let shown: String = admin.chars().take(80).collect();
        if ids.is_empty() {
            return Err(ClusterError::Unknown(format!(
                "no administrator `{shown}` was made here; name the id of the certificate (64 digits), which the logs \
                 of nodes show"
            )));
        }
        let is_node = |id: &NodeId| *id == roster.own.node || roster.member(*id).is_some();
        if ids.iter().any(is_node) {
            let words = format!("`{shown}` is a node, no administrator; use `stellate node remove`");
            return Err(ClusterError::Refused(words));
        }
        let seat = self.place.get().await?;
        for id in ids {
            let removed = seat.substrate.remove_node(id).await;
            removed.map_err(|error| managed(&roster, &error))?;
            tracing::info!(admin = ?shown, %id, "an administrator's certificate was revoked");
        }
        Ok(())
    }

    /// The node that is to be removed: one of the roster, or one that was let in and is gone, by its name or its id.
    async fn to_remove(&self, roster: &Roster, node: &str) -> Result<Named, ClusterError> {
        let unknown = match nodes::named(roster, node) {
            Ok(named) => return Ok(named),
            Err(unknown) => unknown,
        };
        if !roster.own.roles.issuer {
            // It may be known where names are given.
            return Err(managed(roster, &ManageError::NotIssuer));
        }
        let holder = match (node.parse::<NodeId>(), node.parse::<NodeName>()) {
            (Ok(id), _) => Some(id),
            (_, Ok(name)) => {
                let holder = self.place.get().await?.substrate.holder(name).await;
                holder.map_err(|error| managed(roster, &error))?
            }
            _ => None,
        };
        let id = holder.ok_or(unknown)?;
        Ok(Named { id, name: node.to_owned(), is_own: id == roster.own.node })
    }

    /// Blocks first, then the key: a node that is refused here is as it was.
    pub(super) async fn remove_node(&self, node: String, force: bool) -> Result<(), ClusterError> {
        let roster = self.roster();
        let named = self.to_remove(&roster, &node).await?;
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

fn token_info(record: &TokenRecord, now: SystemTime) -> TokenInfo {
    let state = match () {
        () if record.is_revoked() => "revoked",
        () if record.expires() <= now => "expired",
        () if record.uses_left() == 0 => "used up",
        () => "open",
    };
    TokenInfo {
        id: record.id().to_string(),
        state: state.to_owned(),
        expires_s: record.expires().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        uses_left: u64::from(record.uses_left()),
        used_by: record.used_by().iter().map(ToString::to_string).collect(),
    }
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
