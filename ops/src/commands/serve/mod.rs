//! `stellate serve`: a node until it is told to stop. Who it is comes from `identity.rs`, what runs is put together in
//! `daemon.rs`, its place in the cluster is held in `place.rs` and given up by `departure.rs`, what administrators are told
//! is in `cluster`, what outlives the process in `durable.rs` and `disk.rs`, and how it is told that the node can be asked in `readiness.rs`.

mod cluster;
mod daemon;
mod departure;
mod disk;
mod durable;
mod identity;
mod place;
mod readiness;
mod signals;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use stellate_runtime::identity::NodeName;
use stellate_runtime::substrate::StartError;

use self::daemon::Daemon;
use self::durable::Durable;
use self::readiness::ReadyFile;
use self::signals::Signals;
use crate::app::App;
use crate::settings::{ModelArgs, NodeArgs, Overrides};
use crate::{open, paths};

const AFTER_HELP: &str = "\
Once it can be asked, the node prints one line on standard output and tells systemd. SIGTERM or Ctrl-C lets what runs come to its end and takes \
nothing new; a second one leaves at once.

Examples:
  stellate cluster init && stellate admin create you && stellate serve
  stellate serve --join 10.0.0.1:7401 --token-file token";

/// Arguments of `serve`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ServeArgs {
    /// Join the cluster whose nodes join at this address, unless this node has joined before
    #[arg(long, value_name = "ADDR:PORT", requires = "token_file")]
    join: Option<String>,
    /// A file that holds the join token, as `stellate token create` prints it
    #[arg(long, value_name = "FILE", requires = "join")]
    token_file: Option<PathBuf>,
    /// The name to join by; else node.name, else this machine's
    #[arg(long, value_name = "NAME", requires = "join")]
    name: Option<NodeName>,
    /// The node's data folder (node.data_dir)
    #[arg(long, value_name = "FOLDER")]
    dir: Option<String>,
    /// Where to listen (network.listen)
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Where nodes join, on the node that holds the CA (network.join_listen)
    #[arg(long, value_name = "ADDR:PORT")]
    join_listen: Option<String>,
    /// Print the line of readiness as JSON: {"ready": {"address", "join_address", "name", "id", "model"}}
    #[arg(long)]
    json: bool,
    /// A file that is there, with that line of JSON, as long as the node can be asked
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// End at once when standard input does: whoever started this node is gone
    #[arg(long, hide = true)]
    end_with_stdin: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    node: NodeArgs,
}

impl ServeArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.model.override_settings(overrides);
        self.node.override_settings(overrides);
        overrides.set("node.data_dir", self.dir.as_ref());
        overrides.set("network.listen", self.listen.as_ref());
        overrides.set("network.join_listen", self.join_listen.as_ref());
    }
}

/// Serves until it is told to stop.
///
/// # Errors
/// No identity, or one that cannot be used; `JoinError`; `OpenError`; an address that cannot be had; `StartError::Removed`
/// when the cluster has removed the node.
pub(crate) async fn run(args: ServeArgs, app: &App) -> anyhow::Result<ExitCode> {
    if args.end_with_stdin {
        stellate_ops::local::end_with_stdin();
    }
    let mut signals = Signals::listen(app)?;
    let identity = signals.or(identity::ready(&args, app)).await??;
    // Before a large model is loaded: another process may have the folder.
    let durable = Durable::open(&paths::data_dir(&app.settings)?).await?;
    let file = ReadyFile::at(args.ready_file.clone())?;
    let model = signals.or(open::load_model(app, open::model_source(&args.model, &app.settings))).await??;
    let daemon = Daemon::start(app, &args, identity, &model, durable).await?;
    file.say(&daemon.ready, args.json)?;
    let is_removed = tokio::select! {
        () = signals.asked_to_stop() => false,
        () = daemon.removed() => true,
    };
    file.leave();
    if is_removed {
        // Nothing that it does counts any more.
        daemon.leave().await;
        return Err(StartError::Removed.into());
    }
    tracing::info!(running = daemon.api.running(), "leaving once what runs has ended");
    // A second signal ends the process by itself.
    daemon.finish().await;
    daemon.leave().await;
    tracing::info!("left");
    Ok(ExitCode::SUCCESS)
}
