//! The cluster's certificate authority: one Ed25519 key that signs certificates of nodes and administrators, and lists
//! of the revoked. Who may have a certificate is decided elsewhere (`join`, or a person at the command line).

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SigningKey,
};
use rustls::pki_types::CertificateDer;

use super::certificate::{CaHash, check_issued_by};
use super::credentials::{Credentials, NodeKey};
use super::files::{
    IdentityFileError, check_private_folder, private_folder, read_private, write_private_new,
};
use super::id::{NodeId, NodeName, Role};
use super::revocation::{RevocationList, SignedRevocations};

/// How long a node's certificate is valid. Nodes renew after two thirds, so a supervisor may be away for ten days.
pub const NODE_LIFETIME: Duration = Duration::from_secs(30 * DAY_S);
/// How long an administrator's certificate is valid. It is not renewed by itself.
pub const ADMIN_LIFETIME: Duration = Duration::from_secs(365 * DAY_S);
/// How long the CA's certificate is valid.
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * DAY_S);
/// Certificates are valid from a little before they are issued, so that a node whose clock is behind accepts them.
const BACKDATE: Duration = Duration::from_secs(10 * 60);
const DAY_S: u64 = 24 * 60 * 60;

const KEY_FILE: &str = "ca.key.der";
/// The CA's certificate, in its own folder and in that of each identity.
pub(super) const CERTIFICATE_FILE: &str = "ca.cert.der";

/// A certificate could not be issued. Nothing was issued and nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The key is not of the kind that clusters use.
    #[error("the key to certify is not an Ed25519 key; let `stellate` make it")]
    UnsupportedKey,
    /// The cryptographic library refused.
    #[error("the certificate could not be made: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// The CA of one cluster. Whoever holds its key can make members and administrators.
pub struct CertificateAuthority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").field("hash", &self.hash()).finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// A new CA, in memory only.
    pub fn create(now: SystemTime) -> Result<Self, IssueError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        // The name differs between clusters, so that another cluster's certificate is told from a damaged one.
        let id = NodeId::of_public_key(&key.subject_public_key_info());
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("stellate cluster {}", id.short()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + CA_LIFETIME).into();
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { key, certificate })
    }

    /// Writes key and certificate into `folder`, which is made for its owner alone. A CA that is there already stays.
    pub fn save_new(&self, folder: &Path) -> Result<(), IdentityFileError> {
        private_folder(folder)?;
        write_private_new(&folder.join(KEY_FILE), self.key.serialized_der())?;
        write_private_new(&folder.join(CERTIFICATE_FILE), &self.certificate)
    }

    /// Reads what [`Self::save_new`] wrote.
    pub fn load(folder: &Path) -> Result<Self, IdentityFileError> {
        check_private_folder(folder)?;
        let path = folder.join(KEY_FILE);
        let bytes = read_private(&path)?;
        let key = KeyPair::try_from(bytes).map_err(|error| IdentityFileError::corrupt(&path, error))?;
        let path = folder.join(CERTIFICATE_FILE);
        let certificate = CertificateDer::from(read_private(&path)?);
        check_issued_by(&certificate, &certificate)
            .map_err(|error| IdentityFileError::corrupt(&path, error))?;
        let authority = Self { key, certificate };
        let own = super::certificate::raw_public_key(&authority.certificate).unwrap_or_default();
        if own != authority.key.public_key_raw() {
            return Err(IdentityFileError::corrupt(&path, "the certificate belongs to another key"));
        }
        Ok(authority)
    }

    /// The CA's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What join tokens pin.
    pub fn hash(&self) -> CaHash {
        CaHash::of(&self.certificate)
    }

    /// A certificate for the key whose DER `SubjectPublicKeyInfo` is `spki_der`.
    ///
    /// Whether the holder may have this name and role is the caller's to know.
    pub fn issue(
        &self,
        name: &NodeName,
        role: Role,
        spki_der: &[u8],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let public =
            rcgen::SubjectPublicKeyInfo::from_der(spki_der).map_err(|_| IssueError::UnsupportedKey)?;
        if public.algorithm() != &rcgen::PKCS_ED25519 {
            return Err(IssueError::UnsupportedKey);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.subject_alt_names =
            vec![SanType::DnsName(name.as_str().try_into()?), SanType::URI(role.uri().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            // Without the server's usage, TLS itself keeps an administrator from posing as a node.
            Role::Admin => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + lifetime).into();
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        Ok(params.signed_by(&public, &issuer)?.der().clone())
    }

    /// Key and certificate for the node that holds this CA.
    pub fn issue_node(&self, name: &NodeName, now: SystemTime) -> Result<Credentials, IssueError> {
        self.issue_credentials(name, Role::Node, now, NODE_LIFETIME)
    }

    /// Key and certificate for a person's command line.
    pub fn issue_admin(&self, name: &NodeName, now: SystemTime) -> Result<Credentials, IssueError> {
        self.issue_credentials(name, Role::Admin, now, ADMIN_LIFETIME)
    }

    fn issue_credentials(
        &self,
        name: &NodeName,
        role: Role,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Credentials, IssueError> {
        let key = NodeKey::generate()?;
        let certificate = self.issue(name, role, key.spki_der(), now, lifetime)?;
        Ok(Credentials::new(key, certificate, self.certificate.clone())
            .expect("just issued by this CA for this key"))
    }

    /// Signs a list of the revoked, so that every node can check a copy from anywhere.
    pub fn sign_revocations(&self, list: &RevocationList) -> Result<SignedRevocations, IssueError> {
        Ok(SignedRevocations::new(list, |message| self.key.sign(message))?)
    }
}
