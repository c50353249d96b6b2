//! The saving of the shared anchor: the same contexts encoded with the anchor computed once per host and with the anchor
//! computed behind every block, as the paper does, in turns, so that both meet the same machine. Two nodes over one
//! model; nothing is asked.

use anyhow::ensure;
use serde::Serialize;
use stellate_actors::{ContextSource, Model, Node};
use stellate_runtime::config::Settings;

use super::count::{Anchors, Gflop};
use super::measure::{Times, Tokens};
use super::plan::{Case, anchor_tokens};
use crate::app::App;
use crate::open;
use crate::report::stores;

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
        })
    }
}

/// Seconds to encode a context of new or given tokens, which is dropped.
async fn encode(app: &App, node: &Node, tokens: &mut Tokens, case: &Case) -> anyhow::Result<f64> {
    ensure!(stores::until_empty(node).await, "the context before was not freed");
    let source = ContextSource::Ids(tokens.begin(case.context_tokens));
    let (context, took) = open::encode(app, node, source, case.layout).await?;
    ensure!(context.progress().blocks_reused == 0, "a block was found encoded already");
    Ok(took.as_secs_f64())
}
