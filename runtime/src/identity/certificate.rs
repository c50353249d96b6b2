//! What a certificate says: whose it is, what it allows and for how long. Whether it is genuine is decided by the
//! verifiers in `verify`; nothing here checks a signature except [`check_issued_by`].

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use wincode::{SchemaRead, SchemaWrite};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::hex;
use super::id::{NodeId, NodeName, Role};

/// What is pinned of a cluster: the BLAKE3 hash of its CA's certificate (DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash, SchemaRead, SchemaWrite)]
pub struct CaHash([u8; 32]);

impl CaHash {
    /// The hash of this certificate.
    pub fn of(ca_der: &[u8]) -> Self {
        Self(*blake3::hash(ca_der).as_bytes())
    }

    pub(super) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..6]))
    }
}

/// A text that is no CA hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not the hash of a CA certificate; it is 64 digits from 0 to 9 and a to f")]
pub struct BadCaHash;

impl FromStr for CaHash {
    type Err = BadCaHash;

    fn from_str(text: &str) -> Result<Self, BadCaHash> {
        hex::decode_array(text).map(Self).ok_or(BadCaHash)
    }
}

/// A certificate does not say what those of a cluster say. Nothing was accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateProblem {
    /// Not a certificate at all.
    #[error("this is not an X.509 certificate")]
    Encoding,
    /// Not exactly one acceptable name.
    #[error("the certificate does not carry exactly one valid node name")]
    Name,
    /// Not exactly one known role.
    #[error("the certificate does not carry exactly one known role")]
    Role,
    /// It has another key than it is used with.
    #[error("the certificate belongs to another key")]
    OtherKey,
    /// The cluster's CA has not signed it.
    #[error("the certificate was not issued by this cluster's CA")]
    OtherCa,
}

/// Whose a certificate is, what it allows and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateDetails {
    /// The hash of its key.
    pub id: NodeId,
    /// The name it was issued for.
    pub name: NodeName,
    /// What its holder may do.
    pub role: Role,
    /// Valid from then on.
    pub not_before: SystemTime,
    /// Valid until then.
    pub not_after: SystemTime,
}

impl CertificateDetails {
    /// Reads a DER certificate.
    pub fn of(der: &[u8]) -> Result<Self, CertificateProblem> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateProblem::Encoding)?;
        if !rest.is_empty() {
            return Err(CertificateProblem::Encoding);
        }
        let names = certificate.subject_alternative_name().map_err(|_| CertificateProblem::Encoding)?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let name = only(names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        }));
        let role = only(names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        }));
        let validity = certificate.validity();
        Ok(Self {
            id: NodeId::of_public_key(certificate.public_key().raw),
            name: name.and_then(|name| name.parse().ok()).ok_or(CertificateProblem::Name)?,
            role: role.and_then(Role::from_uri).ok_or(CertificateProblem::Role)?,
            not_before: since_epoch(validity.not_before.timestamp()),
            not_after: since_epoch(validity.not_after.timestamp()),
        })
    }

    /// Whether it is time to ask for a new one: two thirds of its life are over.
    pub fn is_due_for_renewal(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        now.duration_since(self.not_before).unwrap_or_default() >= life / 3 * 2
    }
}

/// Whether the key in `ca` has signed `certificate`. Dates are not looked at.
pub(super) fn check_issued_by(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
) -> Result<(), CertificateProblem> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateProblem::Encoding)?;
    let (_, ca) = X509Certificate::from_der(ca).map_err(|_| CertificateProblem::Encoding)?;
    certificate.verify_signature(Some(ca.public_key())).map_err(|_| CertificateProblem::OtherCa)
}

/// The raw public key in a certificate: 32 bytes for Ed25519, which every key of a cluster is.
pub(super) fn raw_public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, CertificateProblem> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateProblem::Encoding)?;
    Ok(certificate.public_key().subject_public_key.data.to_vec())
}

/// The public key in a certificate as DER `SubjectPublicKeyInfo`.
pub(super) fn spki_der(certificate_der: &[u8]) -> Result<Vec<u8>, CertificateProblem> {
    let (_, certificate) =
        X509Certificate::from_der(certificate_der).map_err(|_| CertificateProblem::Encoding)?;
    Ok(certificate.public_key().raw.to_vec())
}

fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    items.next().filter(|_| items.next().is_none())
}

/// Dates before 1970 count as 1970: no certificate of a cluster has one.
fn since_epoch(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
