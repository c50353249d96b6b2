//! `stellate context`: encode, list, show and remove contexts of a node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use stellate_actors::ContextSource;
use stellate_actors::api::{Client, ContextInfo};
use stellate_actors::manifest::ContextId;

use super::run::documents;
use crate::app::App;
use crate::remote::RemoteArgs;
use crate::report::table;
use crate::settings::{ContextArgs, Overrides};
use crate::{human, open, output, progress};

/// Arguments of `context`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ContextCommandArgs {
    #[command(subcommand)]
    command: ContextCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum ContextCommand {
    /// Encode text files into a context and print its name
    Create(CreateArgs),
    /// List the contexts
    Ls(ListArgs),
    /// Show a context
    Show(NamedArgs),
    /// Remove contexts that no session needs
    Rm(RemoveArgs),
}

#[derive(Args, Clone, Debug)]
struct CreateArgs {
    /// Text files that make up the context, in order; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Feed the text as it is, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    how: ContextArgs,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    /// Print one JSON document: a list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct NamedArgs {
    /// Its name, as in c-1
    context: ContextId,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct RemoveArgs {
    /// Their names, as in c-1
    #[arg(required = true)]
    contexts: Vec<ContextId>,
    /// Print one JSON document: the list of those removed
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

impl ContextCommandArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        if let ContextCommand::Create(args) = &self.command {
            args.how.override_settings(overrides);
        }
    }
}

/// Does what was asked.
///
/// # Errors
/// As [`RemoteArgs::connect`]; what the node refuses; Ctrl-C, which cancels an encoding.
pub(crate) async fn run(args: ContextCommandArgs, app: &App) -> anyhow::Result<ExitCode> {
    match args.command {
        ContextCommand::Create(args) => create(args, app).await?,
        ContextCommand::Ls(args) => {
            let client = args.remote.connect(app).await?;
            let contexts = app.interrupt.or(client.contexts()).await??;
            match args.json {
                true => output::json(&contexts)?,
                false => output::line(&list(&contexts))?,
            }
        }
        ContextCommand::Show(args) => {
            let client = args.remote.connect(app).await?;
            let info = app.interrupt.or(info(&client, args.context)).await??;
            match args.json {
                true => output::json(&info)?,
                false => output::line(&list(&[info]))?,
            }
        }
        ContextCommand::Rm(args) => {
            let client = args.remote.connect(app).await?;
            let mut removed = Vec::new();
            for context in args.contexts {
                app.interrupt.or(client.remove_context(context)).await??;
                match args.json {
                    true => removed.push(context.to_string()),
                    false => output::line(&format!("context {context} is removed"))?,
                }
            }
            if args.json {
                output::json(&removed)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(args: CreateArgs, app: &App) -> anyhow::Result<()> {
    let text = documents::read(app, &args.files, args.raw).await?;
    let client = args.remote.connect(app).await?;
    let source = if args.raw { ContextSource::Text(text) } else { ContextSource::Document(text) };
    let (context, took) = open::encode(app, &client.node(), source, open::layout(&app.settings)).await?;
    if args.json {
        return output::json(&info(&client, context.id()).await?);
    }
    output::line(&context.id().to_string())?;
    progress::note(&format!(
        "{} tokens in {} block(s), {} there already, encoded in {}",
        human::count(context.manifest().tokens()),
        human::count(context.manifest().blocks.len()),
        human::count(context.progress().blocks_reused),
        human::seconds(took.as_secs_f64()),
    ));
    Ok(())
}

async fn info(client: &Client, id: ContextId) -> anyhow::Result<ContextInfo> {
    let found = client.contexts().await?.into_iter().find(|info| info.id == id);
    match found {
        Some(info) => Ok(info),
        // The node says it in its own words.
        None => Err(client
            .context(id)
            .await
            .err()
            .map_or_else(|| anyhow::anyhow!("{id} is being removed"), Into::into)),
    }
}

/// A line for each context.
pub(super) fn list(contexts: &[ContextInfo]) -> String {
    let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let row = |info: &ContextInfo| {
        vec![
            info.id.to_string(),
            info.attention.clone(),
            human::count(size(info.tokens)),
            format!("{}x{}", info.blocks, info.block_tokens),
            info.hosts.len().to_string(),
            human::bytes(size(info.kv_bytes)),
            info.sessions.to_string(),
        ]
    };
    let header = ["CONTEXT", "ATTENTION", "TOKENS", "BLOCKS", "HOSTS", "KV", "SESSIONS"];
    table::plain(&header, contexts.iter().map(row).collect(), 2)
}
