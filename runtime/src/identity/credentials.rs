//! A key and its certificate: what a node or an administrator proves itself with, in memory and on disk. Issuing is the
//! CA's business.

use std::fmt;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::authority::CERTIFICATE_FILE as CA_FILE;
use super::certificate::{CaHash, CertificateDetails, CertificateProblem, check_issued_by};
use super::files::{IdentityFileError, private_folder, read_private, write_private, write_private_new};
use super::id::NodeId;

const KEY_FILE: &str = "node.key.der";
const CERTIFICATE_FILE: &str = "node.cert.der";

/// An Ed25519 key. It never leaves the machine it was made on; certificates come and go.
pub struct NodeKey {
    pair: KeyPair,
    spki_der: Vec<u8>,
}

impl NodeKey {
    /// A new key, in memory only.
    pub fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate_for(&rcgen::PKCS_ED25519).map(Self::of)
    }

    /// The key in `folder`, made there if there is none: a join that is tried again is tried with the same node id.
    pub fn load_or_create(folder: &Path) -> Result<Self, IdentityFileError> {
        private_folder(folder)?;
        let path = folder.join(KEY_FILE);
        match read_private(&path) {
            Ok(bytes) => {
                let pair =
                    KeyPair::try_from(bytes).map_err(|error| IdentityFileError::corrupt(&path, error))?;
                Ok(Self::of(pair))
            }
            Err(IdentityFileError::Missing { .. }) => {
                let key = Self::generate().map_err(|error| IdentityFileError::corrupt(&path, error))?;
                write_private_new(&path, key.pair.serialized_der())?;
                Ok(key)
            }
            Err(error) => Err(error),
        }
    }

    fn of(pair: KeyPair) -> Self {
        let spki_der = pair.subject_public_key_info();
        Self { pair, spki_der }
    }

    /// The node id of this key.
    pub fn id(&self) -> NodeId {
        NodeId::of_public_key(&self.spki_der)
    }

    /// The public key as DER `SubjectPublicKeyInfo`.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki_der
    }

    /// A request for a certificate (PKCS #10, DER): the public key, signed with the private one. Name and role are not in
    /// it, they are the issuer's to give.
    pub fn certificate_request(&self) -> Result<Vec<u8>, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&self.pair)?.der().to_vec())
    }

    pub(super) fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der()).into()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeKey").field(&self.id()).finish()
    }
}

/// A key, the certificate for it, and the certificate of the CA that issued it.
#[derive(Debug)]
pub struct Credentials {
    key: NodeKey,
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    details: CertificateDetails,
}

impl Credentials {
    /// Puts the three together, if they belong together. Dates are left to the handshake.
    pub fn new(
        key: NodeKey,
        certificate: CertificateDer<'static>,
        ca: CertificateDer<'static>,
    ) -> Result<Self, CertificateProblem> {
        let details = CertificateDetails::of(&certificate)?;
        if details.id != key.id() {
            return Err(CertificateProblem::OtherKey);
        }
        check_issued_by(&certificate, &ca)?;
        Ok(Self { key, certificate, ca, details })
    }

    /// The same key with a newer certificate of the same CA, name and role.
    pub fn renewed(&self, certificate: CertificateDer<'static>) -> Result<Self, CertificateProblem> {
        let pair =
            KeyPair::try_from(self.key.pair.serialized_der()).map_err(|_| CertificateProblem::OtherKey)?;
        let renewed = Self::new(NodeKey::of(pair), certificate, self.ca.clone())?;
        if renewed.details.name != self.details.name {
            return Err(CertificateProblem::Name);
        }
        if renewed.details.role != self.details.role {
            return Err(CertificateProblem::Role);
        }
        Ok(renewed)
    }

    /// Writes all three into `folder`. The certificate comes last: where it stands, the identity is whole. A certificate
    /// and a CA that are there already are replaced; a key never is, and it must be this one.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityFileError> {
        private_folder(folder)?;
        let path = folder.join(KEY_FILE);
        match write_private_new(&path, self.key.pair.serialized_der()) {
            Err(IdentityFileError::Exists { .. }) if NodeKey::load_or_create(folder)?.id() == self.id() => {}
            other => other?,
        }
        write_private(&folder.join(CA_FILE), &self.ca)?;
        write_private(&folder.join(CERTIFICATE_FILE), &self.certificate)
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(folder: &Path) -> Result<Self, IdentityFileError> {
        let path = folder.join(CERTIFICATE_FILE);
        let certificate = CertificateDer::from(read_private(&path)?);
        let ca = CertificateDer::from(read_private(&folder.join(CA_FILE))?);
        let key = NodeKey::load_or_create(folder)?;
        Self::new(key, certificate, ca).map_err(|error| IdentityFileError::corrupt(&path, error))
    }

    /// The holder's id.
    pub fn id(&self) -> NodeId {
        self.details.id
    }

    /// What the certificate says.
    pub fn details(&self) -> &CertificateDetails {
        &self.details
    }

    /// The key.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate of the cluster's CA.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The hash of the CA's certificate: which cluster this is.
    pub fn ca_hash(&self) -> CaHash {
        CaHash::of(&self.ca)
    }
}
