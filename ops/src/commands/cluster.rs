//! `stellate cluster init`: a cluster's CA and the identity of its first node, in that node's data folder.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use serde::Serialize;
use stellate_runtime::config::Settings;
use stellate_runtime::identity::{CertificateAuthority, IdentityFileError, NodeName};

use crate::app::App;
use crate::exit::UsageError;
use crate::{output, paths};

/// Arguments of `cluster`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum ClusterCommand {
    /// Make a cluster's CA and its first node's identity, readable by you alone
    Init(InitArgs),
}

#[derive(Args, Clone, Debug)]
struct InitArgs {
    /// The node's data folder; else node.data_dir, else the user's own
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// The node's name; else node.name, else this machine's
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What `cluster init --json` prints.
#[derive(Debug, Serialize)]
struct Founded {
    /// The folder.
    dir: PathBuf,
    /// What join tokens pin.
    ca_hash: String,
    /// The first node's name.
    name: String,
    /// Its id.
    id: String,
}

/// Founds a cluster.
///
/// # Errors
/// `IdentityFileError`, also where a CA or an identity is there already.
pub(crate) fn run(args: ClusterArgs, app: &App) -> anyhow::Result<ExitCode> {
    let ClusterCommand::Init(InitArgs { dir, name, json }) = args.command;
    let dir = folder(dir, &app.settings)?;
    let name = own_name(name, &app.settings)?;
    let now = SystemTime::now();
    let authority = CertificateAuthority::create(now)?;
    let credentials = authority.issue_node(&name, now)?;
    // Where one of them is there already, nothing is touched.
    for path in [paths::authority(&dir), paths::identity(&dir)] {
        if std::fs::read_dir(&path).is_ok_and(|mut files| files.next().is_some()) {
            return Err(IdentityFileError::Exists { path }.into());
        }
    }
    authority.save_new(&paths::authority(&dir))?;
    credentials.save(&paths::identity(&dir))?;
    let founded = Founded {
        ca_hash: authority.hash().to_string(),
        name: name.to_string(),
        id: credentials.id().to_string(),
        dir,
    };
    if json {
        output::json(&founded)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Founded { dir, ca_hash, name, id } = founded;
    let dir = dir.display();
    output::line(&format!(
        "cluster {ca_hash}\nnode    {name} ({id})\nfolder  {dir}\n\nnext:\n  stellate admin create you --dir {dir}\n  \
         STELLATE_NODE__DATA_DIR={dir} stellate serve"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// `--dir`, or what the settings say.
pub(crate) fn folder(dir: Option<PathBuf>, settings: &Settings) -> Result<PathBuf, UsageError> {
    dir.map_or_else(|| paths::data_dir(settings), Ok)
}

/// The name to found or join by: the one given, else `node.name`, else this machine's.
pub(crate) fn own_name(given: Option<NodeName>, settings: &Settings) -> Result<NodeName, UsageError> {
    match (given, settings.node.name.as_str()) {
        (Some(name), _) => Ok(name),
        (None, "") => machine_name(),
        (None, name) => name.parse().map_err(|error| UsageError(format!("node.name: {error}"))),
    }
}

/// This machine's name, as far as it can name a node.
fn machine_name() -> Result<NodeName, UsageError> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname"))
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_default();
    let text = text.trim().to_ascii_lowercase();
    text.parse()
        .map_err(|error| UsageError(format!("this machine's name cannot name a node ({error}); give --name")))
}
