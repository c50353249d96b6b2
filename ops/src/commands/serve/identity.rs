//! Who the node is: the identity in its data folder, or one that it gets by joining. A restart finds the one it had.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use stellate_runtime::clock::SystemClock;
use stellate_runtime::identity::{
    CertificateAuthority, Credentials, IdentityFileError, JoinToken, NodeKey, Revocations,
};
use stellate_runtime::transport::{JoinError, NetworkHandle, TransportOptions, join};

use super::ServeArgs;
use crate::app::App;
use crate::commands::cluster::machine_name;
use crate::exit::UsageError;
use crate::{paths, remote};

/// Everything that says who the node is.
#[derive(Debug)]
pub(super) struct Identity {
    /// Key and certificate.
    pub(super) credentials: Arc<Credentials>,
    /// Who is no longer believed.
    pub(super) revocations: Revocations,
    /// The CA, on the node that holds it.
    pub(super) authority: Option<CertificateAuthority>,
}

/// The node's identity, once it has one.
pub(super) async fn ready(args: &ServeArgs, app: &App, network: &NetworkHandle) -> anyhow::Result<Identity> {
    let data = paths::data_dir(&app.settings)?;
    let folder = paths::identity(&data);
    let credentials = match Credentials::load(&folder) {
        Ok(credentials) => {
            check_same_cluster(args, &credentials)?;
            credentials
        }
        Err(IdentityFileError::Missing { .. }) if args.join.is_some() => {
            join_as(args, &folder, network).await?
        }
        Err(error @ IdentityFileError::Missing { .. }) => {
            return Err(anyhow::Error::new(error).context(
                "this node has no identity; found a cluster with `stellate cluster init`, or join one with \
                 --join and --token-file",
            ));
        }
        Err(error) => return Err(error.into()),
    };
    let revocations = Revocations::load(&folder, credentials.ca())?;
    let authority = match CertificateAuthority::load(&paths::authority(&data)) {
        Ok(authority) if authority.hash() == credentials.ca_hash() => Some(authority),
        Ok(_) => bail!(
            "the CA in {} is not that of this node's certificate; move one of them away",
            data.display()
        ),
        Err(IdentityFileError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Identity { credentials: Arc::new(credentials), revocations, authority })
}

/// A node that has joined needs no token; one that is for another cluster is a slip that must not pass in silence.
fn check_same_cluster(args: &ServeArgs, credentials: &Credentials) -> anyhow::Result<()> {
    let Some(file) = &args.token_file else { return Ok(()) };
    // The token may have been deleted once it was used, as it should be.
    let Ok(token) = read_token(file) else { return Ok(()) };
    if token.ca_hash() != credentials.ca_hash() {
        let address = args.join.as_deref().and_then(remote::resolve);
        let (pinned, found) = (token.ca_hash(), Some(credentials.ca_hash()));
        let address = address.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        return Err(anyhow::Error::new(JoinError::OtherCluster { address, pinned, found }).context(
            "this node is a member of another cluster than the token is for; name another data folder to join",
        ));
    }
    Ok(())
}

async fn join_as(args: &ServeArgs, folder: &Path, network: &NetworkHandle) -> anyhow::Result<Credentials> {
    let (Some(text), Some(file)) = (&args.join, &args.token_file) else {
        unreachable!("clap has each require the other")
    };
    let address = remote::resolve(text).ok_or_else(|| {
        UsageError(format!("--join {text} is not an address that can be reached; write address and port"))
    })?;
    let token = read_token(file)?;
    let name = args.name.clone().map_or_else(machine_name, Ok)?;
    let key = NodeKey::load_or_create(folder)?;
    let (options, clock) = (TransportOptions::default(), Arc::new(SystemClock::new()));
    let joined = join(network, address, &token, &name, key, &options, clock).await?;
    joined.revocations.save(folder)?;
    joined.credentials.save(folder)?;
    tracing::info!(%name, id = %joined.credentials.id(), "joined the cluster");
    Ok(joined.credentials)
}

fn read_token(file: &Path) -> anyhow::Result<JoinToken> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| UsageError(format!("cannot read the token file {}: {error}", file.display())))?;
    text.parse().map_err(|error| UsageError(format!("{}: {error}", file.display()))).context("no join token")
}
