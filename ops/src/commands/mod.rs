//! The commands, one file or folder each: its arguments, and what it does with them.

pub(crate) mod batch;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod run;

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
        Command::Completions(args) => completions::run(&args),
    }
}
