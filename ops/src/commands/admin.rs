//! `stellate admin create`: an identity for a command line, from the folder that holds the CA.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use stellate_runtime::identity::{CertificateAuthority, NodeName};

use super::cluster::folder;
use crate::app::App;
use crate::{output, paths};

/// Arguments of `admin`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AdminArgs {
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum AdminCommand {
    /// Make an administrator's identity, on the machine that holds the CA. It lasts a year; whoever has it can ask anything
    Create(CreateArgs),
}

#[derive(Args, Clone, Debug)]
struct CreateArgs {
    /// Whose it is, as logs show it
    name: NodeName,
    /// The data folder of the node that holds the CA; else node.data_dir, else the user's own
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Where to put it; else where the command line looks for it: stellate/admin in $XDG_CONFIG_HOME or ~/.config
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// The node that is asked with it; else where this node listens
    #[arg(long, value_name = "ADDR:PORT")]
    address: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Makes an identity.
///
/// # Errors
/// `IdentityFileError`: no CA in the folder, or another identity where this one is to go.
pub(crate) fn run(args: AdminArgs, app: &App) -> anyhow::Result<ExitCode> {
    let AdminCommand::Create(CreateArgs { name, dir, out, address, json }) = args.command;
    let data = folder(dir, &app.settings)?;
    let authority = CertificateAuthority::load(&paths::authority(&data))
        .with_context(|| format!("{} does not hold the cluster's CA", data.display()))?;
    let out = out.map_or_else(paths::default_admin, Ok)?;
    let credentials = authority.issue_admin(&name, SystemTime::now())?;
    credentials.save(&out)?;
    let address = address.unwrap_or_else(|| own_address(app.settings.network.listen));
    let file = paths::address_file(&out);
    std::fs::write(&file, format!("{address}\n"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    if json {
        output::json(&serde_json::json!({
            "identity": out, "name": name.as_str(), "id": credentials.id().to_string(), "address": address,
        }))?;
    } else {
        output::line(&format!("identity of {name} in {}, for the node at {address}", out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where this machine reaches its own node.
fn own_address(listen: SocketAddr) -> String {
    let own = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ip = if listen.ip().is_unspecified() { own } else { listen.ip() };
    SocketAddr::new(ip, listen.port()).to_string()
}
