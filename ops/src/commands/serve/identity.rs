//! Who the node is: the identity in its data folder, or one that it gets by joining, with the addresses by which it finds the
//! cluster again. A restart finds what it had.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use stellate_runtime::clock::SystemClock;
use stellate_runtime::identity::{
    CertificateAuthority, Credentials, IdentityFileError, JoinToken, NodeKey, Revocations,
};
use stellate_runtime::transport::{JoinError, NetworkThread, TransportOptions, join};

use super::ServeArgs;
use crate::app::App;
use crate::commands::cluster::own_name;
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
    /// Where key and certificate came from.
    pub(super) folder: PathBuf,
    /// Where the node was that this one joined through.
    pub(super) seeds: Vec<String>,
}

/// The node's identity, once it has one.
pub(super) async fn ready(args: &ServeArgs, app: &App) -> anyhow::Result<Identity> {
    let data = paths::data_dir(&app.settings)?;
    let folder = paths::identity(&data);
    let credentials = match Credentials::load(&folder) {
        Ok(credentials) => {
            check_same_cluster(args, &credentials)?;
            credentials
        }
        Err(IdentityFileError::Missing { .. }) if args.join.is_some() => join_as(args, app, &data).await?,
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
    // A node without the file was founded, or looks elsewhere.
    let seeds = fs::read_to_string(paths::seeds(&data)).unwrap_or_default();
    let seeds = seeds.split_whitespace().map(str::to_owned).collect();
    Ok(Identity { credentials: Arc::new(credentials), revocations, authority, folder, seeds })
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

async fn join_as(args: &ServeArgs, app: &App, data: &Path) -> anyhow::Result<Credentials> {
    let (Some(text), Some(file)) = (&args.join, &args.token_file) else {
        unreachable!("clap has each require the other")
    };
    let address = remote::resolve(text).ok_or_else(|| {
        UsageError(format!("--join {text} is not an address that can be reached; write address and port"))
    })?;
    let token = read_token(file)?;
    let name = own_name(args.name.clone(), &app.settings)?;
    let folder = paths::identity(data);
    let key = NodeKey::load_or_create(&folder)?;
    let network = NetworkThread::start("joining").context("cannot start the network thread")?;
    let (options, clock) = (TransportOptions::default(), Arc::new(SystemClock::new()));
    let joined = join(&network.handle(), address, &token, &name, key, &options, clock).await?;
    joined.revocations.save(&folder)?;
    // Before the identity: a node that has one does not join again.
    let (file, seeds) = (paths::seeds(data), joined.nodes.iter().map(|node| format!("{node}\n")));
    fs::write(&file, seeds.collect::<String>())
        .with_context(|| format!("cannot write {}", file.display()))?;
    joined.credentials.save(&folder)?;
    tokio::task::spawn_blocking(move || drop(network)).await?;
    tracing::info!(%name, id = %joined.credentials.id(), "joined the cluster");
    Ok(joined.credentials)
}

fn read_token(file: &Path) -> anyhow::Result<JoinToken> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| UsageError(format!("cannot read the token file {}: {error}", file.display())))?;
    text.parse().map_err(|error| UsageError(format!("{}: {error}", file.display()))).context("no join token")
}
