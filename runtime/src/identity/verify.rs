//! Which certificates are believed in a handshake: those that the cluster's CA has issued, in date, with the right role,
//! not revoked ([`ClusterVerifier`]); and, for a node that only holds a token, those issued by the CA whose hash is pinned
//! ([`PinnedVerifier`]).
//!
//! Names are not compared here: a seed is known by its address alone. Who was expected is checked by the dialer on the
//! finished handshake, before it sends anything.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, RootCertStore,
    SignatureScheme,
};

use super::certificate::{CaHash, CertificateDetails};
use super::id::Role;
use super::revocation::Revocations;
use super::tls::provider;

/// Believes members of one cluster.
#[derive(Debug)]
pub(super) struct ClusterVerifier {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    revocations: Revocations,
}

impl ClusterVerifier {
    pub(super) fn new(ca: &CertificateDer<'static>, revocations: Revocations) -> Result<Self, Error> {
        let roots = roots(ca)?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { roots, clients, algorithms: provider().signature_verification_algorithms, revocations })
    }

    /// What the CA's signature does not say: that the holder may act as `allowed`, and still may.
    fn check_holder(&self, certificate: &CertificateDer<'_>, allowed: &[Role]) -> Result<(), Error> {
        let details = details(certificate)?;
        if self.revocations.contains(&details.id) {
            tracing::warn!(node = %details.id, name = %details.name, "a revoked certificate was refused");
            return Err(CertificateError::Revoked.into());
        }
        if !allowed.contains(&details.role) {
            tracing::warn!(node = %details.id, role = %details.role, "a certificate was refused for its role");
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for ClusterVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server(end_entity, &self.roots, self.algorithms, now)?;
        self.check_holder(end_entity, &[Role::Node])?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ClusterVerifier {
    /// Mandatory, which is the trait's default, said again because everything rests on it.
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.clients.verify_client_cert(end_entity, &[], now).inspect_err(|error| {
            tracing::warn!(%error, "a peer's certificate was refused");
        })?;
        self.check_holder(end_entity, &[Role::Node, Role::Admin])?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What a joining node learnt of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pinned {
    /// The server belongs to the pinned cluster, and this is its CA's certificate.
    Matches(CertificateDer<'static>),
    /// It sent the CA of another cluster, or none.
    Mismatch {
        /// The hash of the CA that it sent.
        found: Option<CaHash>,
    },
}

/// Believes a node of the cluster whose CA has the pinned hash, and remembers what it saw.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    pinned: CaHash,
    algorithms: WebPkiSupportedAlgorithms,
    seen: Mutex<Option<Pinned>>,
}

impl PinnedVerifier {
    pub(crate) fn new(pinned: CaHash) -> Self {
        Self { pinned, algorithms: provider().signature_verification_algorithms, seen: Mutex::new(None) }
    }

    /// What the last handshake showed.
    pub(crate) fn seen(&self) -> Option<Pinned> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let sent = intermediates.first();
        let found = sent.map(|ca| CaHash::of(ca));
        let see = |seen| *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        let Some(ca) = sent.filter(|_| found == Some(self.pinned)) else {
            see(Pinned::Mismatch { found });
            return Err(CertificateError::UnknownIssuer.into());
        };
        verify_server(end_entity, &*roots(&ca.clone().into_owned())?, self.algorithms, now)?;
        if details(end_entity)?.role != Role::Node {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        see(Pinned::Matches(ca.clone().into_owned()));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(Arc::new(roots))
}

/// The CA issues to nodes directly (path length 0), so intermediates are never looked at.
fn verify_server(
    end_entity: &CertificateDer<'_>,
    roots: &RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<(), Error> {
    let certificate = ParsedCertificate::try_from(end_entity)?;
    verify_server_cert_signed_by_trust_anchor(&certificate, roots, &[], now, algorithms.all)
}

fn details(certificate: &CertificateDer<'_>) -> Result<CertificateDetails, Error> {
    CertificateDetails::of(certificate).map_err(|error| {
        tracing::warn!(%error, "a certificate of this cluster's CA is not one of a member");
        CertificateError::ApplicationVerificationFailure.into()
    })
}
