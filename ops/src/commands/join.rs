//! Becoming a member of a cluster: a key of one's own, the token's proof, and what comes back of it in the data folder. `serve
//! --join` does this on its way; `node join` does only this.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::Args;
use stellate_runtime::clock::SystemClock;
use stellate_runtime::identity::{Credentials, JoinToken, NodeKey, NodeName};
use stellate_runtime::transport::{NetworkThread, TransportOptions, join};

use super::cluster::{folder, own_name};
use crate::app::App;
use crate::exit::UsageError;
use crate::{output, paths, remote};

/// Arguments of `node join`.
#[derive(Args, Clone, Debug)]
pub(crate) struct JoinArgs {
    /// Where the cluster's nodes join, as `stellate token create` says
    #[arg(value_name = "ADDR:PORT")]
    address: String,
    /// A file that holds the join token
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// The name to join by; else node.name, else this machine's
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,
    /// The node's data folder; else node.data_dir, else the user's own
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Makes this machine's node a member, for `serve` to be started later.
///
/// # Errors
/// `UsageError` where it is one already; `JoinError`; `Interrupted`.
pub(crate) async fn run(args: JoinArgs, app: &App) -> anyhow::Result<ExitCode> {
    let data = folder(args.dir, &app.settings)?;
    let found = Credentials::load(&paths::identity(&data)).ok();
    if let Some(credentials) = found.as_ref().filter(|found| !has_ended(found)) {
        let name = &credentials.details().name;
        let words = format!(
            "{} is the folder of node `{name}` already; start it with `stellate serve`",
            data.display()
        );
        return Err(UsageError(words).into());
    }
    let name = args.name.or(found.map(|found| found.details().name.clone()));
    let invitation = Invitation { address: &args.address, token_file: &args.token_file, name };
    let credentials = app.interrupt.or(invitation.accept(app, &data)).await??;
    let (name, id) = (credentials.details().name.to_string(), credentials.id().to_string());
    match args.json {
        true => output::json(&serde_json::json!({ "dir": data, "name": name, "id": id }))?,
        false => output::line(&format!(
            "node {name} ({id}) in {}; start it with `stellate serve`",
            data.display()
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the certificate is over: its node has to join again, with the same key, and is the same node then.
pub(super) fn has_ended(credentials: &Credentials) -> bool {
    credentials.details().not_after <= SystemTime::now()
}

/// By which a node joins.
#[derive(Debug)]
pub(super) struct Invitation<'a> {
    /// Where nodes join.
    pub(super) address: &'a str,
    /// Holds the token.
    pub(super) token_file: &'a Path,
    /// The name that was given, if one was.
    pub(super) name: Option<NodeName>,
}

impl Invitation<'_> {
    /// Joins; identity and seeds are in `data` afterwards.
    pub(super) async fn accept(self, app: &App, data: &Path) -> anyhow::Result<Credentials> {
        let address = remote::resolve(self.address).ok_or_else(|| {
            UsageError(format!(
                "{} is not an address that can be reached; write address and port",
                self.address
            ))
        })?;
        let token = read_token(self.token_file)?;
        let name = own_name(self.name, &app.settings)?;
        let folder = paths::identity(data);
        let key = NodeKey::load_or_create(&folder)?;
        let network = NetworkThread::start("joining").context("cannot start the network thread")?;
        let (options, clock) = (TransportOptions::default(), Arc::new(SystemClock::new()));
        let joined = join(&network.handle(), address, &token, &name, key, &options, clock).await?;
        joined.revocations.save(&folder)?;
        // Before the identity: a node that has one does not join again.
        let mut seeds: Vec<String> = joined.nodes.iter().map(|node| format!("{node}\n")).collect();
        if let (Some((host, _)), Some(node)) = (self.address.rsplit_once(':'), joined.nodes.first()) {
            // A name outlives the address that it has today.
            let named = format!("{host}:{}\n", node.port());
            seeds.extend((!seeds.contains(&named)).then_some(named));
        }
        let file = paths::seeds(data);
        fs::write(&file, seeds.concat()).with_context(|| format!("cannot write {}", file.display()))?;
        joined.credentials.save(&folder)?;
        tokio::task::spawn_blocking(move || drop(network)).await?;
        tracing::info!(%name, id = %joined.credentials.id(), "joined the cluster");
        Ok(joined.credentials)
    }
}

/// The token in a file.
pub(super) fn read_token(file: &Path) -> anyhow::Result<JoinToken> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| UsageError(format!("cannot read the token file {}: {error}", file.display())))?;
    text.parse().map_err(|error| UsageError(format!("{}: {error}", file.display()))).context("no join token")
}
