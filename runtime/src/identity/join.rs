//! Joining, without the network: the messages, why a node can be refused ([`JoinRefusal`]), what the issuing side has to
//! remember ([`IssuingStore`]) and its decision ([`JoinDesk`]). `transport::join` carries it.
//!
//! 1. The new node makes its key and connects. It believes the server if that one's certificate was issued by the CA whose
//!    hash the token pins.
//! 2. It sends its name, a certificate request signed with its key, and a proof of the token that is bound to this very
//!    connection. The token's secret is never sent.
//! 3. The desk checks proof, token, name and key, in one transaction of the store, and issues the certificate.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateSigningRequestDer;
use wincode::{SchemaRead, SchemaWrite};

use super::authority::{CertificateAuthority, NODE_LIFETIME};
use super::id::{NodeId, NodeName, Role};
use super::revocation::Revocations;
use super::token::{TokenId, TokenRecord};
use crate::clock::Clock;
use crate::encoding::decode;

/// Longest certificate request: one of an Ed25519 key takes under 200 bytes.
const MAX_REQUEST_BYTES: usize = 4096;

/// What a new node asks.
#[derive(Clone, Debug, SchemaRead, SchemaWrite)]
pub(crate) struct JoinRequest {
    pub(crate) token: TokenId,
    pub(crate) name: String,
    pub(crate) request_der: Vec<u8>,
    pub(crate) proof: [u8; 32],
}

/// What it is answered. The revocation list follows as the payload of the frame.
#[derive(Clone, Debug, SchemaRead, SchemaWrite)]
pub(crate) enum JoinReply {
    /// `nodes` is where the node that answers is reached by the cluster's own protocol.
    Accepted {
        certificate_der: Vec<u8>,
        ca_der: Vec<u8>,
        nodes: Vec<SocketAddr>,
    },
    Refused(JoinRefusal),
}

/// Why a node may not join. The cluster is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, SchemaRead, SchemaWrite)]
pub enum JoinRefusal {
    /// The cluster knows no such token.
    #[error("the cluster does not know this join token; create one with `stellate token create`")]
    UnknownToken,
    /// The token's time is over.
    #[error("this join token has expired; create a new one with `stellate token create`")]
    Expired,
    /// The token has brought in as many nodes as it may.
    #[error("this join token is used up; create a new one with `stellate token create --uses N`")]
    UsedUp,
    /// The token was called back.
    #[error("this join token was revoked; create a new one with `stellate token create`")]
    TokenRevoked,
    /// The proof is wrong: whoever asks does not hold the token.
    #[error("the proof of the join token is wrong; copy the whole token again")]
    Forged,
    /// The node was removed from the cluster.
    #[error(
        "this node's key was removed from the cluster for good; delete its identity folder to join as a new node"
    )]
    NodeRevoked,
    /// Another node has the name.
    #[error("another node is named `{name}`; choose another name, or remove that node first")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The name cannot be one.
    #[error("this name cannot name a node; use lower-case letters, digits and hyphens")]
    BadName,
    /// The certificate request is none, or its signature is wrong.
    #[error("the certificate request is malformed; run the same version of `stellate` as the cluster")]
    BadRequest,
    /// Too many attempts at once, from this address or from all.
    #[error("too many attempts to join; try again in a minute")]
    TooMany,
    /// The issuing side could not do its part.
    #[error("the cluster could not answer (its log says why); try again")]
    Unavailable,
}

/// The store could not be read or written. Nothing has changed in it.
#[derive(Debug, thiserror::Error)]
#[error("the store of join tokens failed: {0}")]
pub struct IssuingStoreError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A decision about one token and one name, made inside a transaction: `holder` is the node that has the name, if any.
/// What it changes is kept if it returns `Ok`.
pub type Decision<'a> = &'a mut dyn FnMut(&mut TokenRecord, Option<NodeId>) -> Result<(), JoinRefusal>;

/// What the issuing side has to remember, durably: tokens, and which node has which name. Every call may block on a disk.
pub trait IssuingStore: fmt::Debug + Send + Sync + 'static {
    /// Remembers a new token.
    fn add_token(&self, record: TokenRecord) -> Result<(), IssuingStoreError>;

    /// All tokens, in the order of their ids.
    fn tokens(&self) -> Result<Vec<TokenRecord>, IssuingStoreError>;

    /// Calls a token back. Returns whether there is such a token.
    fn revoke_token(&self, id: TokenId) -> Result<bool, IssuingStoreError>;

    /// Gives `name` to `node`, whatever the tokens say; for the node that founds the cluster.
    fn claim_name(&self, name: &NodeName, node: NodeId) -> Result<(), IssuingStoreError>;

    /// Takes back the names of `node`, once it was removed.
    fn release_names(&self, node: NodeId) -> Result<(), IssuingStoreError>;

    /// In one transaction: shows `decide` the record of `token` and the holder of `name`; if it agrees, keeps the record as
    /// it left it and gives `name` to `node`. Durable before it returns.
    fn admit(
        &self,
        token: TokenId,
        name: &NodeName,
        node: NodeId,
        decide: Decision<'_>,
    ) -> Result<Result<(), JoinRefusal>, IssuingStoreError>;
}

/// Tokens and names in memory: for tests, and for clusters that live no longer than their first process.
#[derive(Debug, Default)]
pub struct MemoryIssuing(Mutex<Issued>);

#[derive(Debug, Default)]
struct Issued {
    tokens: BTreeMap<TokenId, TokenRecord>,
    names: BTreeMap<NodeName, NodeId>,
}

impl MemoryIssuing {
    /// A decision works on a copy, so a panic inside one leaves nothing half done.
    fn with<T>(&self, act: impl FnOnce(&mut Issued) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl IssuingStore for MemoryIssuing {
    fn add_token(&self, record: TokenRecord) -> Result<(), IssuingStoreError> {
        self.with(|issued| issued.tokens.insert(record.id(), record));
        Ok(())
    }

    fn tokens(&self) -> Result<Vec<TokenRecord>, IssuingStoreError> {
        Ok(self.with(|issued| issued.tokens.values().cloned().collect()))
    }

    fn revoke_token(&self, id: TokenId) -> Result<bool, IssuingStoreError> {
        Ok(self.with(|issued| issued.tokens.get_mut(&id).map(TokenRecord::revoke).is_some()))
    }

    fn claim_name(&self, name: &NodeName, node: NodeId) -> Result<(), IssuingStoreError> {
        self.with(|issued| issued.names.insert(name.clone(), node));
        Ok(())
    }

    fn release_names(&self, node: NodeId) -> Result<(), IssuingStoreError> {
        self.with(|issued| issued.names.retain(|_, holder| *holder != node));
        Ok(())
    }

    fn admit(
        &self,
        token: TokenId,
        name: &NodeName,
        node: NodeId,
        decide: Decision<'_>,
    ) -> Result<Result<(), JoinRefusal>, IssuingStoreError> {
        Ok(self.with(|issued| {
            let record = issued.tokens.get_mut(&token).ok_or(JoinRefusal::UnknownToken)?;
            let mut changed = record.clone();
            decide(&mut changed, issued.names.get(name).copied())?;
            *record = changed;
            issued.names.insert(name.clone(), node);
            Ok(())
        }))
    }
}

/// Decides who may join, and issues and renews certificates. Its methods block (they compute and wait for the store):
/// never call them on a network thread.
#[derive(Debug)]
pub struct JoinDesk {
    authority: CertificateAuthority,
    store: Arc<dyn IssuingStore>,
    revocations: Revocations,
    clock: Arc<dyn Clock>,
}

impl JoinDesk {
    /// The desk of the node that holds the CA.
    pub fn new(
        authority: CertificateAuthority,
        store: Arc<dyn IssuingStore>,
        revocations: Revocations,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { authority, store, revocations, clock }
    }

    /// The CA.
    pub fn authority(&self) -> &CertificateAuthority {
        &self.authority
    }

    /// The list in force on this node.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Answers a request whose connection exported `exported`, on a node that is reached at `nodes`. A refusal is logged.
    pub(crate) fn admit(
        &self,
        request: &JoinRequest,
        exported: &[u8; 32],
        nodes: &[SocketAddr],
    ) -> JoinReply {
        match self.try_admit(request, exported) {
            Ok((node, certificate_der)) => {
                tracing::info!(token = %request.token, name = %request.name, %node, "a node has joined");
                let (ca_der, nodes) = (self.authority.certificate().to_vec(), nodes.to_vec());
                JoinReply::Accepted { certificate_der, ca_der, nodes }
            }
            Err(refusal) => {
                // The name is a stranger's text: quoted, so that it cannot pose as another line of the log.
                tracing::warn!(token = %request.token, name = ?clipped(&request.name), %refusal, "a join was refused");
                JoinReply::Refused(refusal)
            }
        }
    }

    /// What the join address does with a request, from the bytes of its header on: whether they let a node in; none if they are
    /// no request. For tests that send any bytes.
    #[doc(hidden)]
    pub fn lets_in(&self, header: &[u8], exported: &[u8; 32]) -> Option<bool> {
        let request: JoinRequest = decode(header).ok()?;
        Some(matches!(self.admit(&request, exported, &[]), JoinReply::Accepted { .. }))
    }

    fn try_admit(
        &self,
        request: &JoinRequest,
        exported: &[u8; 32],
    ) -> Result<(NodeId, Vec<u8>), JoinRefusal> {
        let now = self.clock.wall();
        let name: NodeName = request.name.parse().map_err(|_| JoinRefusal::BadName)?;
        if request.request_der.len() > MAX_REQUEST_BYTES {
            return Err(JoinRefusal::BadRequest);
        }
        let spki_der = requested_key(&request.request_der)?;
        let node = NodeId::of_public_key(&spki_der);
        self.store
            .admit(request.token, &name, node, &mut |record, holder| {
                // The proof first: without it, nobody learns anything about names or the token's state.
                record.check_proof(&request.proof, exported, &request.name, &request.request_der)?;
                if self.revocations.contains(&node) {
                    return Err(JoinRefusal::NodeRevoked);
                }
                if holder.is_some_and(|holder| holder != node) {
                    return Err(JoinRefusal::NameTaken { name: name.to_string() });
                }
                record.spend(node, now)
            })
            .map_err(|error| {
                tracing::error!(%error, "a join could not be decided");
                JoinRefusal::Unavailable
            })??;
        let issued = self.authority.issue(&name, Role::Node, &spki_der, now, NODE_LIFETIME);
        let certificate = issued.map_err(|error| {
            tracing::error!(%error, %node, "a certificate could not be issued");
            JoinRefusal::Unavailable
        })?;
        Ok((node, certificate.to_vec()))
    }

    /// A newer certificate for the holder of `current_der`, with the same key, name and role. The caller has received
    /// `current_der` in a handshake that verified it.
    pub fn renew(&self, current_der: &[u8]) -> Result<Vec<u8>, JoinRefusal> {
        let details =
            super::certificate::CertificateDetails::of(current_der).map_err(|_| JoinRefusal::BadRequest)?;
        if self.revocations.contains(&details.id) {
            return Err(JoinRefusal::NodeRevoked);
        }
        // Administrators come to a person for a new one: theirs lie about on more machines.
        if details.role != Role::Node {
            return Err(JoinRefusal::BadRequest);
        }
        let spki_der = super::certificate::spki_der(current_der).map_err(|_| JoinRefusal::BadRequest)?;
        let now = self.clock.wall();
        let issued = self.authority.issue(&details.name, details.role, &spki_der, now, NODE_LIFETIME);
        let certificate = issued.map_err(|error| {
            tracing::error!(%error, node = %details.id, "a certificate could not be renewed");
            JoinRefusal::Unavailable
        })?;
        tracing::info!(node = %details.id, name = %details.name, "a certificate was renewed");
        Ok(certificate.to_vec())
    }
}

/// The key of a PKCS #10 request whose own signature proves that the asker holds it.
fn requested_key(request_der: &[u8]) -> Result<Vec<u8>, JoinRefusal> {
    use rcgen::PublicKeyData as _;
    let request = CertificateSigningRequestDer::from(request_der);
    let request =
        rcgen::CertificateSigningRequestParams::from_der(&request).map_err(|_| JoinRefusal::BadRequest)?;
    // Before the token is spent: what could not be certified must not use it up.
    if request.public_key.algorithm() != &rcgen::PKCS_ED25519 {
        return Err(JoinRefusal::BadRequest);
    }
    Ok(request.public_key.subject_public_key_info())
}

fn clipped(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests;
