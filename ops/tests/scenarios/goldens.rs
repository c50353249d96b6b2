//! Every golden (`tests/goldens`) on clusters of one, two, three and five nodes: the tokens of an independent oracle, both
//! attentions, two turns a session. Logits are compared in one process (`tests/goldens.rs`).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stellate_actors::api::Client;
use stellate_actors::{AskOptions, ContextSource, Layout, QueryInput};
use stellate_ops::local::{LocalCluster, LocalOptions};

/// One case: a context, its turns and what the oracle gave.
#[derive(Deserialize)]
struct Case {
    case: String,
    mode: String,
    block_tokens: usize,
    anchor_tokens: usize,
    context: Vec<u32>,
    turns: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    query: Vec<u32>,
    generated: Vec<u32>,
}

impl Case {
    fn layout(&self) -> Layout {
        match self.mode.as_str() {
            "star" => Layout::star(self.block_tokens, self.anchor_tokens),
            _ => Layout::exact(self.block_tokens),
        }
    }
}

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(family)
}

/// Asks every case of a family of clusters of one, two, three and five nodes.
async fn on_clusters(family: &str) -> anyhow::Result<()> {
    let folder = folder(family);
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(folder.join("cases.json"))?)?;
    assert!(!cases.is_empty());
    let model = folder.to_str().expect("a path in UTF-8");
    let serve =
        ["--model", model, "--weights", "f32", "--kv", "f32", "--threads", "1", "--kv-capacity", "64MiB"];
    let serve = serve.map(str::to_owned).to_vec();
    let options = LocalOptions { serve, ..LocalOptions::new(env!("CARGO_BIN_EXE_stellate")) };
    for nodes in [1, 2, 3, 5] {
        let mut cluster = LocalCluster::found(options.clone(), &mut |_| {}).await?;
        cluster.add(nodes - 1, &mut |_| {}).await?;
        let client = cluster.client(0).await?;
        let mut most_nodes = 0;
        for case in &cases {
            let place = format!("{family} {} on {} nodes", case.case, cluster.nodes().len());
            most_nodes = most_nodes.max(ask(&cluster, &client, case, &place).await?);
        }
        assert!(most_nodes >= nodes.min(3), "{family}: blocks lay on {most_nodes} of {nodes} nodes at most");
        cluster.stop().await?;
    }
    Ok(())
}

/// Answers a case, and tells on how many nodes its blocks lay.
async fn ask(cluster: &LocalCluster, client: &Client, case: &Case, place: &str) -> anyhow::Result<usize> {
    let context = client.node().encode(ContextSource::Ids(case.context.clone()), case.layout()).await?;
    let nodes = cluster.blocks_of(&client.context(context.id()).await?, 0).await?.len();
    let session = context.session().await?;
    for turn in &case.turns {
        let options =
            AskOptions { max_tokens: turn.generated.len(), ignore_eos: true, ..AskOptions::default() };
        let report = session.ask(QueryInput::Ids(turn.query.clone()), options).finish().await?;
        assert_eq!(report.ids, turn.generated, "{place}");
    }
    Ok(nodes)
}

#[tokio::test]
async fn llama3_goldens_are_met_on_one_two_three_and_five_nodes() -> anyhow::Result<()> {
    on_clusters("llama3").await
}

#[tokio::test]
async fn tied_llama_goldens_are_met_on_one_two_three_and_five_nodes() -> anyhow::Result<()> {
    on_clusters("llama-tied").await
}

#[tokio::test]
async fn mistral_goldens_are_met_on_one_two_three_and_five_nodes() -> anyhow::Result<()> {
    on_clusters("mistral").await
}

#[tokio::test]
async fn qwen2_goldens_are_met_on_one_two_three_and_five_nodes() -> anyhow::Result<()> {
    on_clusters("qwen2").await
}

#[tokio::test]
async fn qwen3_goldens_are_met_on_one_two_three_and_five_nodes() -> anyhow::Result<()> {
    on_clusters("qwen3").await
}
