//! Who the node is: the identity in its data folder, or one that it gets by joining, with the addresses by which it finds the
//! cluster again. A restart finds what it had.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use stellate_runtime::identity::{CertificateAuthority, Credentials, IdentityFileError, Revocations};
use stellate_runtime::transport::JoinError;

use super::ServeArgs;
use crate::app::App;
use crate::commands::join::{Invitation, has_ended, read_token};
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
            match (&args.join, &args.token_file) {
                (Some(address), Some(token_file)) if has_ended(&credentials) => {
                    let name = args.name.clone().or(Some(credentials.details().name.clone()));
                    Invitation { address, token_file, name }.accept(app, &data).await?
                }
                _ => credentials,
            }
        }
        Err(error @ IdentityFileError::Missing { .. }) => match (&args.join, &args.token_file) {
            (Some(address), Some(token_file)) => {
                Invitation { address, token_file, name: args.name.clone() }.accept(app, &data).await?
            }
            _ => {
                return Err(anyhow::Error::new(error).context(
                    "this node has no identity; found a cluster with `stellate cluster init`, or join one with \
                     --join and --token-file",
                ));
            }
        },
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
