//! Clusters of real processes that keep their blocks on disk: killed and started again, they offer their blocks, and encode
//! nothing that the disks hold. Every answer is compared, token for token, with that of one process.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use stellate_actors::api::NodeInfo;
use stellate_actors::manifest::ContextId;
use stellate_actors::{
    AskOptions, Context, ContextSource, Layout, Model, ModelOptions, ModelSource, Node, NodeOptions, Session,
};
use stellate_ops::document::Document;
use stellate_ops::local::{LocalCluster, LocalOptions};

const NODES: usize = 3;
const BLOCK_TOKENS: usize = 1024;
const DOCUMENT_TOKENS: usize = 6144;
const FACTS: usize = 4;

/// The tokens of an answer.
async fn answer(session: &Session, question: &str) -> anyhow::Result<Vec<u32>> {
    Ok(session.ask(question, AskOptions::default()).finish().await?.ids)
}

/// What one process answers over a context of the cluster.
struct Told {
    id: ContextId,
    questions: Vec<(String, Vec<u32>)>,
}

async fn oracle(document: &Document, contexts: &[Context]) -> anyhow::Result<Vec<Told>> {
    let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {})?;
    let node = Node::open(&model, NodeOptions { capacity_bytes: 64 << 20, ..NodeOptions::default() }).await?;
    let mut told = Vec::new();
    for context in contexts {
        let here =
            node.encode(ContextSource::Document(document.text.clone()), context.manifest().layout).await?;
        let session = here.session().await?;
        let mut questions = Vec::new();
        for fact in &document.facts {
            let question = fact.question();
            let ids = answer(&session, &question).await?;
            questions.push((question, ids));
        }
        told.push(Told { id: context.id(), questions });
    }
    node.close().await;
    Ok(told)
}

fn document() -> anyhow::Result<Document> {
    let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {})?;
    let tokenizer = model.prompter.tokenizer().expect("the demo model has one");
    let count = |text: &str| tokenizer.encode(text, false).map_or(0, |ids| ids.len());
    Ok(Document::generate(1, DOCUMENT_TOKENS, FACTS, count))
}

/// Asks everything in new sessions.
async fn ask(cluster: &LocalCluster, told: &[Told]) -> anyhow::Result<()> {
    let client = cluster.client(0).await?;
    for Told { id, questions } in told {
        let session = client.context(*id).await?.session().await?;
        for (question, expected) in questions {
            assert_eq!(&answer(&session, question).await?, expected, "{question}");
        }
        client.close_session(session.id()).await?;
    }
    Ok(())
}

/// Waits until the nodes hold so many blocks in all, anchors among them, and all of those are on the disks. A node reports what it
/// holds together with what was computed for it.
async fn written(cluster: &LocalCluster, blocks: u64) -> anyhow::Result<Vec<NodeInfo>> {
    let is_written = |node: &NodeInfo| {
        node.disk.is_some_and(|disk| disk.waiting == 0 && disk.blocks >= node.blocks.unwrap_or(u64::MAX))
    };
    let is_so = |seen: &[NodeInfo]| {
        seen.len() == NODES
            && seen.iter().all(is_written)
            && sum(seen, |node| node.blocks.unwrap_or(0)) >= blocks
    };
    Ok(cluster.until_seen(0, &format!("{blocks} blocks to be on the disks"), is_so).await?)
}

async fn kill_and_restart(cluster: &mut LocalCluster, between: impl FnOnce()) -> anyhow::Result<()> {
    let all: Vec<_> = (0..NODES).collect();
    for &index in &all {
        cluster.kill(index)?;
    }
    between();
    cluster.restart(&all).await?;
    Ok(cluster.until_whole().await?)
}

fn sum(nodes: &[NodeInfo], of: impl Fn(&NodeInfo) -> u64) -> u64 {
    nodes.iter().map(of).sum()
}

fn folders(cluster: &LocalCluster) -> Vec<PathBuf> {
    (1..=NODES).map(|node| cluster.folder().join(format!("node-{node}/blocks"))).collect()
}

/// A file of a block that only one node has.
fn file_of_one_node(folders: &[PathBuf]) -> PathBuf {
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for folder in folders {
        for entry in fs::read_dir(folder).expect("a node's folder of blocks") {
            let path = entry.expect("a file").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name.len() == 64 {
                files.entry(name).or_default().push(path);
            }
        }
    }
    files.into_values().find(|of| of.len() == 1).expect("a block that lies on one node").remove(0)
}

#[tokio::test]
async fn nodes_that_were_all_killed_encode_nothing_of_what_their_disks_hold() -> anyhow::Result<()> {
    let serve = ["--threads", "1", "--kv-capacity", "32MiB"].map(str::to_owned).to_vec();
    let mut options = LocalOptions { serve, ..LocalOptions::new(env!("CARGO_BIN_EXE_stellate")) };
    // The machine of the tests may be busy with much else.
    options.patience *= 2;
    // Blocks stay where they are.
    for (name, value) in [("STELLATE_CLUSTER__REBALANCE_EVERY_S", "0"), ("STELLATE_KV__DISK_BYTES", "64MiB")]
    {
        options.settings.push((name.to_owned(), value.to_owned()));
    }
    let mut cluster = LocalCluster::found(options, &mut |_| {}).await?;
    cluster.add(NODES - 1, &mut |_| {}).await?;
    let (document, client) = (document()?, cluster.client(0).await?);
    let mut contexts = Vec::new();
    for layout in [Layout::star(BLOCK_TOKENS, BLOCK_TOKENS), Layout::exact(BLOCK_TOKENS)] {
        contexts.push(client.node().encode(ContextSource::Document(document.text.clone()), layout).await?);
    }
    let blocks: usize = contexts.iter().map(|context| context.manifest().blocks.len()).sum();
    let told = oracle(&document, &contexts).await?;
    drop(contexts);
    ask(&cluster, &told).await?;
    let before = written(&cluster, blocks as u64).await?;
    assert!(sum(&before, |node| node.computed_blocks.unwrap_or(0)) >= blocks as u64, "{before:?}");
    let all = sum(&before, |node| node.blocks.unwrap_or(0));

    kill_and_restart(&mut cluster, || {}).await?;
    ask(&cluster, &told).await?;
    let after = written(&cluster, all).await?;
    let hits = sum(&after, |node| node.disk.map_or(0, |disk| disk.hits));
    assert_eq!(sum(&after, |node| node.computed_blocks.unwrap_or(u64::MAX)), 0, "{after:?}");
    assert!(hits >= blocks as u64, "{after:?}");

    let damaged = file_of_one_node(&folders(&cluster));
    kill_and_restart(&mut cluster, || {
        let mut bytes = fs::read(&damaged).expect("the file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&damaged, bytes).expect("the file");
    })
    .await?;
    ask(&cluster, &told).await?;
    let after = written(&cluster, all).await?;
    assert_eq!(sum(&after, |node| node.disk.map_or(0, |disk| disk.damaged)), 1, "{after:?}");
    // With it perhaps the anchor, where the block is encoded on another node.
    let computed = sum(&after, |node| node.computed_blocks.unwrap_or(u64::MAX));
    assert!((1..=2).contains(&computed), "{computed} blocks were computed: {after:?}");
    Ok(cluster.stop().await?)
}
