//! The saving of the shared anchor: the same contexts encoded with the anchor computed once per host and with the anchor
//! computed behind every block, as the paper does, in turns, so that both meet the same machine. Two nodes over one
//! model; nothing is asked.

use anyhow::ensure;
use serde::Serialize;
use stellate_actors::{ContextSource, Model, Node};
use stellate_model::config::ModelConfig;
use stellate_runtime::config::Settings;

use super::count::{Anchors, Gflop};
use super::measure::{Times, Tokens};
use super::plan::{Case, anchor_tokens};
use crate::app::App;
use crate::open;
use crate::report::stores;

/// What the saving is to be at least in the shape of Llama 3.2 1B, on one host, by tokens of a block.
const TARGETS: [(usize, f64); 2] = [(2048, 1.7), (8192, 1.5)];

/// What came out for one length of blocks.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AnchorSaving {
    pub(super) series: String,
    pub(super) context_tokens: usize,
    pub(super) block_tokens: usize,
    pub(super) anchor_tokens: usize,
    pub(super) blocks: usize,
    /// Computed once per host.
    pub(super) shared_s: Times,
    /// Computed behind every block.
    pub(super) recomputed_s: Times,
    pub(super) shared_gflop: Gflop,
    pub(super) recomputed_gflop: Gflop,
    pub(super) shared_gflop_per_s: f64,
    pub(super) recomputed_gflop_per_s: f64,
    /// Recomputed time over shared time, the best of each.
    pub(super) measured: f64,
    /// The same of the counted operations.
    pub(super) counted: f64,
    /// The measured ratio in percent of the counted one.
    pub(super) percent: f64,
    /// What the measured ratio is to be at least, where that was set.
    pub(super) target: Option<f64>,
    /// Whether it is.
    pub(super) holds: Option<bool>,
}

/// The two nodes.
#[derive(Debug)]
pub(super) struct Pair {
    shared: Node,
    recomputing: Node,
}

impl Pair {
    /// Opens both over the weights of `model`. Close it, also after an error.
    pub(super) async fn open(settings: &Settings, model: &Model) -> anyhow::Result<Self> {
        let node = async |recompute_anchor: bool| {
            let mut settings = settings.clone();
            settings.attention.recompute_anchor = recompute_anchor;
            open::open_node(&settings, model).await
        };
        Ok(Self { shared: node(false).await?, recomputing: node(true).await? })
    }

    pub(super) async fn close(&self) {
        self.shared.close().await;
        self.recomputing.close().await;
    }

    /// Context hosts of each.
    pub(super) fn hosts(&self) -> usize {
        self.shared.stores().count()
    }

    /// A context on both, thrown away.
    pub(super) async fn warm_up(&self, app: &App, tokens: &mut Tokens, case: &Case) -> anyhow::Result<()> {
        for node in [&self.shared, &self.recomputing] {
            encode(app, node, tokens, case).await?;
        }
        Ok(())
    }

    /// Seconds to encode a context, which is dropped, with the anchor computed once.
    pub(super) async fn encode_shared(
        &self,
        app: &App,
        tokens: &mut Tokens,
        case: &Case,
    ) -> anyhow::Result<f64> {
        encode(app, &self.shared, tokens, case).await
    }

    /// Measures one case, `repeat` times each in turns.
    pub(super) async fn measure(
        &self,
        app: &App,
        tokens: &mut Tokens,
        case: &Case,
        repeat: usize,
    ) -> anyhow::Result<AnchorSaving> {
        let (mut shared, mut recomputed) = (Vec::new(), Vec::new());
        for _ in 0..repeat {
            shared.push(encode(app, &self.shared, tokens, case).await?);
            recomputed.push(encode(app, &self.recomputing, tokens, case).await?);
        }
        let (shared_s, recomputed_s) = (Times::of(shared), Times::of(recomputed));
        let config = self.shared.decoder().config();
        let gflop = |anchors| case.work(config, anchors).gflop();
        let (once, again) = (gflop(Anchors::OncePerHost(self.hosts())), gflop(Anchors::BehindEveryBlock));
        let (measured, counted) = (recomputed_s.best / shared_s.best, again.total / once.total);
        let target = target_of(config, case.layout.block_tokens, self.hosts());
        Ok(AnchorSaving {
            series: case.series.clone(),
            context_tokens: case.context_tokens,
            block_tokens: case.layout.block_tokens,
            anchor_tokens: anchor_tokens(&case.layout),
            blocks: case.layout.cut(case.context_tokens).count(),
            shared_s,
            recomputed_s,
            shared_gflop: once,
            recomputed_gflop: again,
            shared_gflop_per_s: once.total / shared_s.best,
            recomputed_gflop_per_s: again.total / recomputed_s.best,
            measured,
            counted,
            percent: 100.0 * measured / counted,
            target,
            holds: target.map(|target| measured >= target),
        })
    }
}

/// What was aimed at for blocks of this length. Layers are alike: their number does not matter.
fn target_of(config: &ModelConfig, block_tokens: usize, hosts: usize) -> Option<f64> {
    let ModelConfig { hidden_size, intermediate_size, heads, kv_heads, head_dim, .. } = *config;
    let is_1b = [hidden_size, intermediate_size, heads, kv_heads, head_dim] == [2048, 8192, 32, 8, 64];
    let of_block = TARGETS.iter().find(|(tokens, _)| *tokens == block_tokens);
    of_block.filter(|_| is_1b && hosts == 1).map(|(_, target)| *target)
}

/// Seconds to encode a context of new or given tokens, which is dropped.
async fn encode(app: &App, node: &Node, tokens: &mut Tokens, case: &Case) -> anyhow::Result<f64> {
    ensure!(stores::until_empty(node).await, "the context before was not freed");
    let source = ContextSource::Ids(tokens.begin(case.context_tokens));
    let (context, took) = open::encode(app, node, source, case.layout).await?;
    ensure!(context.progress().blocks_reused == 0, "a block was found encoded already");
    Ok(took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use stellate_model::random::RandomModel;

    use super::*;

    #[test]
    fn targets_are_those_of_the_1b_shape_with_any_number_of_layers_on_one_host() {
        let target = |shape, block, hosts| target_of(&RandomModel::named(shape).unwrap(), block, hosts);
        for (shape, block, hosts, expected) in [
            ("llama-3.2-1b", 2048, 1, Some(1.7)),
            ("llama-3.2-1b:4", 8192, 1, Some(1.5)),
            ("llama-3.2-1b", 4096, 1, None),
            ("llama-3.2-1b", 2048, 2, None),
            ("smollm-135m", 2048, 1, None),
        ] {
            assert_eq!(target(shape, block, hosts), expected, "{shape}, {block} on {hosts}");
        }
    }
}
