//! `stellate batch`. To be written.

use std::process::ExitCode;

use clap::Args;

use crate::app::App;
use crate::settings::{ModelArgs, NodeArgs, Overrides};

/// Arguments of `batch`.
#[derive(Args, Clone, Debug)]
pub(crate) struct BatchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    node: NodeArgs,
}

impl BatchArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.model.override_settings(overrides);
        self.node.override_settings(overrides);
    }
}

pub(crate) async fn run(_args: BatchArgs, _app: &App) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not yet")
}
