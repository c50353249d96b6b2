//! Identity: who is a member of a cluster, how one becomes a member and how one stops being one. Keys, certificates,
//! tokens and lists live here, and the rules over them; sockets do not (`transport` carries the exchanges).
//!
//! # Threat model
//!
//! Assumed: anyone can send packets to a node, read and change what passes on the network, and keep copies of it. Machines
//! of the cluster are trusted with the contexts they serve, until they are removed. The folder of an identity is its
//! owner's alone, which is checked at each start. The machine that holds the CA's key is trusted with everything.
//!
//! * **Strangers** get no further than the handshake: every connection of the cluster is mutual TLS 1.3, and certificates come from
//!   the cluster's own CA alone ([`CertificateAuthority`]). There is no resumption and no early data, so nothing is
//!   replayed and each connection is verified anew.
//! * **A node that joins** believes nobody but a holder of a certificate of the CA whose hash its token pins. It never
//!   sends the token: it proves it by a MAC that is bound to the connection, so that even a member of the cluster that
//!   poses as the issuing node gains nothing that it could use ([`JoinToken`]).
//! * **A stolen token** serves until it is used up, over or called back; what it brought in is listed
//!   ([`TokenRecord::used_by`]) and can be removed.
//! * **A removed node** is on a list that the CA signs ([`Revocations`]): handshakes refuse it and live connections are
//!   closed. A node that is cut off from the others learns of it late: until then it believes the removed node.
//! * **An administrator's** certificate cannot serve (TLS's own key usage) and opens no connection of nodes ([`Role`]).
//! * **Clocks** decide about dates: certificates start ten minutes in the past, tokens end by the issuer's clock.
//! * Not covered: a thief of the CA's key (start a new cluster), and denial of service beyond the bounds that `transport`
//!   keeps.

mod authority;
mod certificate;
mod credentials;
mod files;
mod hex;
mod id;
mod join;
mod revocation;
pub(crate) mod tls;
mod token;
mod verify;

pub use authority::{ADMIN_LIFETIME, CertificateAuthority, IssueError, NODE_LIFETIME};
pub use certificate::{BadCaHash, CaHash, CertificateDetails, CertificateProblem};
pub use credentials::{Credentials, NodeKey};
pub use files::IdentityFileError;
pub use id::{BadNodeId, BadNodeName, NodeId, NodeName, Role};
pub use join::{Decision, IssuingStore, IssuingStoreError, JoinDesk, JoinRefusal, MemoryIssuing};
pub use revocation::{MAX_REVOKED, RevocationError, RevocationList, Revocations, SignedRevocations};
pub use tls::TlsError;
pub use token::{JoinToken, MAX_TOKEN_USES, TokenId, TokenRecord, TokenTextError};

pub(crate) use join::{JoinReply, JoinRequest};
pub(crate) use verify::{Pinned, PinnedVerifier};
