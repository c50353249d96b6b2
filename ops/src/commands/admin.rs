//! `stellate admin`: an identity for a command line, from the folder that holds the CA; and its end, from the node that holds
//! the CA.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use stellate_runtime::identity::{CertificateAuthority, NodeName};

use super::cluster::folder;
use crate::app::App;
use crate::remote::RemoteArgs;
use crate::{admins, output, paths};

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
    /// Revoke an administrator's certificates everywhere and at once; asked of the node that holds the CA
    Revoke(RevokeArgs),
}

#[derive(Args, Clone, Debug)]
struct RevokeArgs {
    /// Its name, for all certificates that were made for it; or the id of one, as logs show it
    admin: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
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

/// Makes an identity, or ends one.
///
/// # Errors
/// `IdentityFileError`: no CA in the folder, or another identity where this one is to go. As [`RemoteArgs::connect`];
/// `RemoteError` where the node does not hold the CA.
pub(crate) async fn run(args: AdminArgs, app: &App) -> anyhow::Result<ExitCode> {
    match args.command {
        AdminCommand::Create(args) => create(args, app),
        AdminCommand::Revoke(args) => revoke(args, app).await,
    }
}

async fn revoke(args: RevokeArgs, app: &App) -> anyhow::Result<ExitCode> {
    let client = args.remote.connect(app).await?;
    app.interrupt.or(client.revoke_admin(&args.admin)).await??;
    match args.json {
        true => output::json(&serde_json::json!({ "revoked": args.admin }))?,
        false => output::line(&format!("{} is revoked", args.admin))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn create(args: CreateArgs, app: &App) -> anyhow::Result<ExitCode> {
    let CreateArgs { name, dir, out, address, json } = args;
    let data = folder(dir, &app.settings)?;
    let authority = CertificateAuthority::load(&paths::authority(&data))
        .with_context(|| format!("{} does not hold the cluster's CA", data.display()))?;
    let out = out.map_or_else(paths::default_admin, Ok)?;
    let credentials = authority.issue_admin(&name, SystemTime::now())?;
    admins::record(&paths::authority(&data), &name, credentials.id())
        .with_context(|| format!("cannot note the administrator in {}", data.display()))?;
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
