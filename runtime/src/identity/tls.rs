//! TLS as the cluster uses it: 1.3 only, one cryptographic provider named explicitly, no resumption. Which certificates
//! are believed is in `verify`.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{CipherSuite, ClientConfig, ServerConfig};

use super::credentials::Credentials;
use super::revocation::Revocations;
use super::verify::{ClusterVerifier, PinnedVerifier};
use crate::clock::Clock;

/// What two members agree on before the first frame. It names the layout of the frame preamble and the hello, which all
/// versions share; the version of everything else is in the hello, since a failed ALPN tells neither side why.
pub(crate) const ALPN: &[u8] = b"stellate/1";
/// The same for the exchange of a node that has no certificate yet.
pub(crate) const JOIN_ALPN: &[u8] = b"stellate-join/1";

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("TLS could not be set up with this identity: {0}")]
pub struct TlsError(#[from] rustls::Error);

/// The one provider: aws-lc-rs, which `ractor_cluster` and the checkpoint downloader bring anyway. It is passed to
/// every configuration and never installed as the process's default, which another library could have set first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            let mut provider = rustls::crypto::aws_lc_rs::default_provider();
            provider.cipher_suites.retain(|suite| suite.tls13().is_some());
            // AES-128 first: the fastest where the CPU has AES, and no weaker here than the 128-bit keys around it.
            provider
                .cipher_suites
                .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
            Arc::new(provider)
        })
        .clone()
}

/// Bytes that nobody can guess.
///
/// # Panics
/// If the operating system gives no randomness, without which nothing here may go on.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// The process's clock, as rustls asks for it.
#[derive(Debug)]
struct ClockTime(Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.wall().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// For accepting members: both sides show certificates.
pub(crate) fn server_config(
    credentials: &Credentials,
    revocations: &Revocations,
    clock: &Arc<dyn Clock>,
) -> Result<ServerConfig, TlsError> {
    let verifier = ClusterVerifier::new(credentials.ca(), revocations.clone())?;
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(vec![credentials.certificate().clone()], credentials.key().private_der())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    without_resumption(&mut config);
    Ok(config)
}

/// For dialling members.
pub(crate) fn client_config(
    credentials: &Credentials,
    revocations: &Revocations,
    clock: &Arc<dyn Clock>,
) -> Result<ClientConfig, TlsError> {
    let verifier = ClusterVerifier::new(credentials.ca(), revocations.clone())?;
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![credentials.certificate().clone()], credentials.key().private_der())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// For answering nodes that have no certificate yet. The CA's certificate is sent along, for them to hash.
pub(crate) fn join_server_config(
    credentials: &Credentials,
    clock: &Arc<dyn Clock>,
) -> Result<ServerConfig, TlsError> {
    let chain = vec![credentials.certificate().clone(), credentials.ca().clone()];
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, credentials.key().private_der())?;
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    without_resumption(&mut config);
    Ok(config)
}

/// For a node that has no certificate yet.
pub(crate) fn join_client_config(
    verifier: Arc<PinnedVerifier>,
    clock: &Arc<dyn Clock>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// For a port that nobody is meant to use: it has no certificate to show, so that no handshake ever succeeds.
pub(crate) fn nobody_config() -> Result<ServerConfig, TlsError> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate)))
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// A resumed session is not verified again, so a revoked node could come back with a ticket: there are none. Nor is there
/// early data, which could be replayed.
fn without_resumption(config: &mut ServerConfig) {
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.max_early_data_size = 0;
}
