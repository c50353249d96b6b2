//! `stellate demo`. To be written.

use std::process::ExitCode;

use clap::Args;

use crate::app::App;
use crate::settings::{ContextArgs, ModelArgs, NodeArgs, Overrides, SamplingArgs};

/// Arguments of `demo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

impl DemoArgs {
    /// Hands on the settings that were given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        self.model.override_settings(overrides);
        self.node.override_settings(overrides);
        self.context.override_settings(overrides);
        self.sampling.override_settings(overrides);
    }
}

pub(crate) async fn run(_args: DemoArgs, _app: &App) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not yet")
}
