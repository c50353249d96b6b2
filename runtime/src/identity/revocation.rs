//! Who is no longer believed: a list of node ids, numbered and signed by the CA, so that it can travel over any path and
//! be checked by anyone. The handshake asks it, and live connections are closed when it grows (`transport`).
//!
//! A list replaces the one before it as a whole; the CA's holder never takes an id off.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use wincode::{SchemaRead, SchemaWrite};

use super::certificate::{CertificateProblem, raw_public_key};
use super::files::{IdentityFileError, private_folder, read_private, write_private};
use super::id::NodeId;

/// Most ids in a list. 64 Ki removals are beyond any cluster's life and still only 2 MiB.
pub const MAX_REVOKED: usize = 65_536;

/// What the signature covers before the list, so that it can stand for nothing else.
const SIGNED_AS: &[u8] = b"stellate revocation list 1\0";
const FILE: &str = "revoked";

/// The ids that are no longer believed, and the number of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevocationList {
    /// Grows by one with each change. 0 is the empty list that every cluster starts with.
    pub version: u64,
    /// The revoked.
    pub ids: BTreeSet<NodeId>,
}

impl RevocationList {
    /// The next list, with `id` on it.
    #[must_use]
    pub fn with(&self, id: NodeId) -> Self {
        let mut ids = self.ids.clone();
        ids.insert(id);
        Self { version: self.version + 1, ids }
    }
}

#[derive(SchemaRead, SchemaWrite)]
struct Body {
    version: u64,
    ids: Vec<NodeId>,
}

/// A list and the CA's signature of it, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct SignedRevocations {
    body: Vec<u8>,
    signature: Vec<u8>,
}

/// A list was not installed. The one before it stays in force.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// The CA of this cluster has not signed it.
    #[error("this revocation list was not signed by the cluster's CA; take it from another node")]
    Forged,
    /// The CA signed it and it is still not a list; a fault of the program.
    #[error("this revocation list is malformed; upgrade this node if others are newer")]
    Malformed,
    /// It is as good as the one in force, with other contents: two holders of the CA's key disagree.
    #[error(
        "two different revocation lists carry the number {version}; the CA's key is used in two places, keep one of them"
    )]
    Conflict {
        /// Their number.
        version: u64,
    },
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] IdentityFileError),
    /// The CA's certificate has no usable key.
    #[error(transparent)]
    Ca(#[from] CertificateProblem),
}

impl SignedRevocations {
    pub(super) fn new<E>(
        list: &RevocationList,
        sign: impl Fn(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let body = Body { version: list.version, ids: list.ids.iter().copied().collect() };
        let body = wincode::serialize(&body).expect("a list within MAX_REVOKED is within the codec's limit");
        let signature = sign(&signed_message(&body))?;
        Ok(Self { body, signature })
    }

    /// The list, if the key `ca_public` has signed it.
    fn open(&self, ca_public: &[u8]) -> Result<RevocationList, RevocationError> {
        UnparsedPublicKey::new(&ED25519, ca_public)
            .verify(&signed_message(&self.body), &self.signature)
            .map_err(|_| RevocationError::Forged)?;
        let body: Body = wincode::deserialize_exact(&self.body).map_err(|_| RevocationError::Malformed)?;
        if body.ids.len() > MAX_REVOKED {
            return Err(RevocationError::Malformed);
        }
        Ok(RevocationList { version: body.version, ids: body.ids.into_iter().collect() })
    }
}

fn signed_message(body: &[u8]) -> Vec<u8> {
    [SIGNED_AS, body].concat()
}

/// The list in force on this node. Clones share it.
#[derive(Clone, Debug)]
pub struct Revocations {
    ca_public: Arc<[u8]>,
    current: watch::Sender<Arc<Installed>>,
}

#[derive(Debug, Default)]
struct Installed {
    list: RevocationList,
    /// As it came, to hand on; none while the list is the first, empty one.
    signed: Option<SignedRevocations>,
}

impl Revocations {
    /// The empty list of the cluster whose CA this is.
    pub fn new(ca: &CertificateDer<'_>) -> Result<Self, CertificateProblem> {
        Ok(Self { ca_public: raw_public_key(ca)?.into(), current: watch::Sender::default() })
    }

    /// The list that [`Self::save`] wrote into `folder`, or the empty one.
    pub fn load(folder: &Path, ca: &CertificateDer<'_>) -> Result<Self, RevocationError> {
        let revocations = Self::new(ca)?;
        let path = folder.join(FILE);
        match read_private(&path) {
            Ok(bytes) => {
                let signed: SignedRevocations = wincode::deserialize_exact(&bytes)
                    .map_err(|error| IdentityFileError::corrupt(&path, error))?;
                revocations.install(&signed)?;
            }
            Err(IdentityFileError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(revocations)
    }

    /// Writes the list in force into `folder`. Blocks on the disk: not for a network thread.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityFileError> {
        let Some(signed) = self.signed() else { return Ok(()) };
        private_folder(folder)?;
        let bytes =
            wincode::serialize(&signed).expect("a list within MAX_REVOKED is within the codec's limit");
        write_private(&folder.join(FILE), &bytes)
    }

    /// Puts a list in force if it is newer. Returns whether it was; an older one or the same is no error, since lists come
    /// over many paths.
    pub fn install(&self, signed: &SignedRevocations) -> Result<bool, RevocationError> {
        let list = signed.open(&self.ca_public)?;
        let version = list.version;
        let mut conflict = false;
        let installed = self.current.send_if_modified(|current| {
            conflict = version == current.list.version && list != current.list;
            let newer = version > current.list.version;
            if newer {
                *current = Arc::new(Installed { list, signed: Some(signed.clone()) });
            }
            newer
        });
        if conflict {
            return Err(RevocationError::Conflict { version });
        }
        if installed {
            tracing::info!(version, "a newer revocation list is in force");
        }
        Ok(installed)
    }

    /// Whether `id` is on the list.
    pub fn contains(&self, id: &NodeId) -> bool {
        self.current.borrow().list.ids.contains(id)
    }

    /// The list in force.
    pub fn list(&self) -> RevocationList {
        self.current.borrow().list.clone()
    }

    /// The list in force as it is handed on; none while nobody was ever revoked.
    pub fn signed(&self) -> Option<SignedRevocations> {
        self.current.borrow().signed.clone()
    }

    /// Completes each time a newer list has come into force since the last call, in the receiver's own pace.
    pub(crate) fn changes(&self) -> RevocationChanges {
        RevocationChanges(self.current.subscribe())
    }
}

/// Waits for newer lists.
#[derive(Debug)]
pub(crate) struct RevocationChanges(watch::Receiver<Arc<Installed>>);

impl RevocationChanges {
    /// Returns false when there can be no more.
    pub(crate) async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}
