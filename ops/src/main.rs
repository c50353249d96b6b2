//! `stellate`, the command: parse, read the settings, set up logs, run one command, end with its exit code. What each
//! command does is in `commands/`; how settings become a node in `open.rs`. Nothing here computes.

#![forbid(unsafe_code)]

mod admins;
mod app;
mod cli;
mod commands;
mod exit;
mod human;
mod interrupt;
mod open;
mod output;
mod paths;
mod progress;
mod remote;
mod report;
mod settings;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use stellate_runtime::config::Settings;
use stellate_runtime::telemetry;

use crate::app::App;
use crate::cli::Cli;
use crate::interrupt::Interrupt;

/// Threads of the async runtime: it passes messages and writes to the terminal; what computes has threads of its own.
const ASYNC_THREADS: usize = 2;

/// Longest that the end of a connection may take.
const GOODBYE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(cli.global.config.as_deref(), cli.overrides().into_pairs())?;
    telemetry::init(&settings.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let ended = runtime.block_on(async {
        let app = App { settings, interrupt: Interrupt::listen(), client: Arc::default() };
        let ended = commands::run(cli.command, &app).await;
        if let Some(client) = app.client.get() {
            // A node that is gone hears nothing, and nobody waits for it.
            let _ = tokio::time::timeout(GOODBYE, client.disconnect()).await;
        }
        ended
    });
    // A thread that still reads a checkpoint or standard input must not keep an interrupted program.
    runtime.shutdown_background();
    ended
}
