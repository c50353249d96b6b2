//! The tree of commands and the flags of all of them. A command's own arguments stand beside the command; flags that
//! several share are in `settings.rs`.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};
use stellate_runtime::config::LogFormat;

use crate::commands::admin::AdminArgs;
use crate::commands::ask::{AskArgs, ChatArgs};
use crate::commands::batch::BatchArgs;
use crate::commands::bench::BenchArgs;
use crate::commands::cluster::ClusterArgs;
use crate::commands::completions::CompletionsArgs;
use crate::commands::context::ContextCommandArgs;
use crate::commands::demo::DemoArgs;
use crate::commands::dev::DevArgs;
use crate::commands::doctor::DoctorArgs;
use crate::commands::node::{NodeCommandArgs, RebalanceArgs};
use crate::commands::run::RunArgs;
use crate::commands::serve::ServeArgs;
use crate::commands::session::SessionArgs;
use crate::commands::status::{PsArgs, StatusArgs};
use crate::commands::supervisor::SupervisorArgs;
use crate::commands::token::TokenArgs;
use crate::settings::{Overrides, words};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
Settings are looked up in this order, the later one winning: the defaults; the file given with --config, else the one \
that STELLATE_CONFIG names, else ./cluster.toml; environment variables such as STELLATE_HOSTS__COUNT=3; flags. \
cluster.toml lists every setting.

Answers and results go to standard output; progress, logs and errors go to standard error.

Exit codes:
  0    everything was done
  1    the work failed
  2    the command line, a setting, or a file that one of them names is wrong
  3    the model cannot be used: missing, damaged or unsupported
  4    done, but some answers are wrong (demo), some lines are bad (batch) or some checks fail (doctor)
  5    a node cannot be reached, or the connection to it was lost
  6    a certificate, an identity folder or a join token is missing, wrong or refused
  130  interrupted with Ctrl-C
  143  ended by a second SIGTERM (serve)";

/// Long-context language models by Star Attention: encode a long document once, ask it any number of questions.
#[derive(Debug, Parser)]
#[command(name = "stellate", version, styles = STYLES, max_term_width = 120, after_help = AFTER_HELP)]
#[command(arg_required_else_help = true, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global")]
pub(crate) struct GlobalArgs {
    /// Settings file, in the form of cluster.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace or off, also by module as in "info,stellate_actors=debug"
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// The form of log lines
    #[arg(long, global = true, value_name = "FORMAT", value_parser = words(LogFormat::ALL, LogFormat::as_str))]
    pub(crate) log_format: Option<LogFormat>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask the small model inside this program for facts hidden in a long document, over several turns
    Demo(DemoArgs),
    /// Ask questions over documents: given with --query, or typed in a chat
    Run(RunArgs),
    /// Answer every line of a JSON Lines file
    Batch(BatchArgs),
    /// Measure speed and memory over context lengths and block sizes
    Bench(BenchArgs),
    /// Run a whole cluster on this machine until Ctrl-C, to try it
    Dev(DevArgs),
    /// Run a node of a cluster until it is told to stop
    Serve(ServeArgs),
    /// Found a cluster
    Cluster(ClusterArgs),
    /// Make, list and revoke join tokens
    Token(TokenArgs),
    /// Make and revoke identities for command lines
    Admin(AdminArgs),
    /// Encode, list, show and remove contexts of a node
    Context(ContextCommandArgs),
    /// Ask a question over a context of a node
    Ask(AskArgs),
    /// Chat over a context of a node
    Chat(ChatArgs),
    /// List, show and close sessions of a node
    Session(SessionArgs),
    /// List what a node holds, a line for each context
    Ps(PsArgs),
    /// Show the cluster: nodes, contexts, sessions
    Status(StatusArgs),
    /// List, cordon, drain and remove nodes
    Node(NodeCommandArgs),
    /// Move blocks to where there is room
    Rebalance(RebalanceArgs),
    /// Show who supervises, and have another node take over
    Supervisor(SupervisorArgs),
    /// Check certificates, clocks and paths
    Doctor(DoctorArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
}

impl Cli {
    /// The settings that flags change.
    pub(crate) fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::default();
        overrides.set("log.level", self.global.log_level.as_ref());
        overrides.set("log.format", self.global.log_format);
        match &self.command {
            Command::Demo(args) => args.override_settings(&mut overrides),
            Command::Run(args) => args.override_settings(&mut overrides),
            Command::Batch(args) => args.override_settings(&mut overrides),
            Command::Bench(args) => args.override_settings(&mut overrides),
            Command::Dev(args) => args.override_settings(&mut overrides),
            Command::Serve(args) => args.override_settings(&mut overrides),
            Command::Context(args) => args.override_settings(&mut overrides),
            Command::Ask(args) => args.override_settings(&mut overrides),
            Command::Chat(args) => args.override_settings(&mut overrides),
            _ => {}
        }
        overrides
    }
}
