//! The commands, one file or folder each: its arguments, and what it does with them.

pub(crate) mod admin;
pub(crate) mod ask;
pub(crate) mod batch;
pub(crate) mod bench;
pub(crate) mod cluster;
pub(crate) mod completions;
pub(crate) mod context;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod join;
pub(crate) mod node;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod session;
pub(crate) mod status;
pub(crate) mod supervisor;
pub(crate) mod token;

use std::process::ExitCode;

use crate::app::App;
use crate::cli::Command;

/// Runs a command to its end.
pub(crate) async fn run(command: Command, app: &App) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(args, app).await,
        Command::Run(args) => run::run(args, app).await,
        Command::Batch(args) => batch::run(args, app).await,
        Command::Bench(args) => bench::run(args, app).await,
        Command::Dev(args) => dev::run(args, app).await,
        Command::Serve(args) => serve::run(args, app).await,
        Command::Cluster(args) => cluster::run(args, app),
        Command::Token(args) => token::run(args, app).await,
        Command::Admin(args) => admin::run(args, app).await,
        Command::Context(args) => context::run(args, app).await,
        Command::Ask(args) => ask::ask(args, app).await,
        Command::Chat(args) => ask::chat(args, app).await,
        Command::Session(args) => session::run(args, app).await,
        Command::Ps(args) => status::ps(args, app).await,
        Command::Status(args) => status::status(args, app).await,
        Command::Node(args) => node::run(args, app).await,
        Command::Rebalance(args) => node::rebalance(args, app).await,
        Command::Supervisor(args) => supervisor::run(args, app).await,
        Command::Doctor(args) => doctor::run(args, app).await,
        Command::Completions(args) => completions::run(&args),
    }
}
