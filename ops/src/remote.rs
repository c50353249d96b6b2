//! How a command line reaches a node: in whose name, and where. What is asked of it is the commands' business.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use stellate_actors::api::Client;
use stellate_runtime::config::{ADDRESS_VARIABLE, IDENTITY_VARIABLE};
use stellate_runtime::identity::Credentials;

use crate::app::App;
use crate::exit::UsageError;
use crate::paths;

/// Where a node is unless anything says otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:7400";

/// Which node is asked, and by whom.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Node that is asked")]
pub(crate) struct RemoteArgs {
    /// Its address; else the one in the file `address` of the identity, else 127.0.0.1:7400
    #[arg(long, value_name = "ADDR:PORT", env = ADDRESS_VARIABLE)]
    address: Option<String>,
    /// Folder of your identity, as `stellate admin create` makes it; else stellate/admin in $XDG_CONFIG_HOME or ~/.config
    #[arg(long, value_name = "FOLDER", env = IDENTITY_VARIABLE)]
    identity: Option<PathBuf>,
}

impl RemoteArgs {
    /// Connects.
    ///
    /// # Errors
    /// `UsageError` for an address that is none; `IdentityFileError`; `RemoteError`; `Interrupted`.
    pub(crate) async fn connect(&self, app: &App) -> anyhow::Result<Client> {
        let folder = self.identity.clone().map_or_else(paths::default_admin, Ok)?;
        let credentials = Credentials::load(&folder).with_context(|| {
            format!("no identity to ask with in {}; make one with `stellate admin create`", folder.display())
        })?;
        let address = self.address(&folder)?;
        let client = app.interrupt.or(Client::connect(address, Arc::new(credentials))).await?;
        let client = client.with_context(|| format!("cannot ask the node at {address}"))?;
        // A command asks one node; were there a second, it would end with the process.
        let _ = app.client.set(client.clone());
        Ok(client)
    }

    fn address(&self, identity: &std::path::Path) -> Result<SocketAddr, UsageError> {
        let (text, from) = match &self.address {
            Some(text) => (text.clone(), "--address".to_owned()),
            None => {
                let file = paths::address_file(identity);
                let text = std::fs::read_to_string(&file);
                (text.unwrap_or_else(|_| DEFAULT_ADDRESS.to_owned()), file.display().to_string())
            }
        };
        resolve(text.trim()).ok_or_else(|| {
            UsageError(format!(
                "`{}` in {from} is not an address that can be reached; write address and port, as in {DEFAULT_ADDRESS}",
                text.trim().chars().take(80).collect::<String>()
            ))
        })
    }
}

/// An address, or a name that has one.
pub(crate) fn resolve(text: &str) -> Option<SocketAddr> {
    use std::net::ToSocketAddrs as _;
    text.to_socket_addrs().ok()?.next()
}
