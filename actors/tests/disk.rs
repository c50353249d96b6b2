//! A node that keeps its blocks on disk and is opened again: the same answers, with nothing encoded but what is not there.

mod faulty;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use faulty::*;
use stellate_actors::disk::{Disk, DiskOptions};
use stellate_actors::{Context, Layout, Model, Node, NodeOptions};

const TOKENS: usize = 10;
/// Only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node whose blocks are in a folder.
struct Lasting {
    node: Node,
    disk: Disk,
}

impl Lasting {
    async fn open(model: &Model, folder: &Path, hosts: usize) -> anyhow::Result<Self> {
        let options = options().with_hosts(hosts);
        let disk = Disk::open(DiskOptions {
            folder: folder.to_owned(),
            bound_bytes: 64 << 20,
            model: *model.decoder.fingerprint().as_bytes(),
            shape: model.decoder.kv_shape(options.kv_format),
            clock: Arc::clone(&options.clock),
        })?;
        let node = Node::open(model, NodeOptions { disk: Some(disk.clone()), ..options }).await?;
        Ok(Self { node, disk })
    }

    /// Ends it once everything is on the disk. What is let go of before its turn is not written.
    async fn close(self, context: Context) {
        assert!(self.disk.settle(PATIENCE).await, "{:?}", self.disk.figures());
        drop(context);
        self.node.close().await;
        self.disk.close().await;
    }

    async fn encode(&self, layout: Layout) -> anyhow::Result<Context> {
        Ok(self.node.encode(text(), layout).await?)
    }
}

/// The blocks of a context that were computed.
fn computed(context: &Context) -> usize {
    let progress = context.progress();
    progress.blocks_done - progress.blocks_reused
}

fn file(folder: &Path, context: &Context, block: usize) -> PathBuf {
    let id = context.manifest().blocks[block].id;
    folder.join(id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[tokio::test]
async fn a_node_that_was_opened_again_encodes_nothing_and_answers_alike() -> anyhow::Result<()> {
    let model = model()?;
    for layout in layouts() {
        let [first, _] = healthy(&model, layout, TOKENS).await?;
        let folder = tempfile::tempdir()?;
        let node = Lasting::open(&model, folder.path(), 2).await?;
        let context = node.encode(layout).await?;
        assert_eq!(computed(&context), BLOCKS);
        node.close(context).await;
        // With other hosts than before, too: blocks come to whichever is asked for them.
        for hosts in [2, 1, 3] {
            let node = Lasting::open(&model, folder.path(), hosts).await?;
            let context = node.encode(layout).await?;
            assert_eq!(computed(&context), 0, "{layout:?} on {hosts} hosts");
            assert!(node.disk.figures().hits >= BLOCKS as u64, "{:?}", node.disk.figures());
            let answer = ask(&context.session().await?, question(0), TOKENS).await?;
            answer.assert_like(&first, &format!("{layout:?} on {hosts} hosts"));
            node.close(context).await;
        }
    }
    Ok(())
}

#[tokio::test]
async fn with_one_bit_flipped_exactly_that_block_is_encoded_anew_and_the_answer_is_the_same()
-> anyhow::Result<()> {
    let model = model()?;
    for layout in layouts() {
        let [first, _] = healthy(&model, layout, TOKENS).await?;
        let folder = tempfile::tempdir()?;
        let node = Lasting::open(&model, folder.path(), 1).await?;
        let context = node.encode(layout).await?;
        let flipped = file(folder.path(), &context, 3);
        node.close(context).await;
        let mut bytes = fs::read(&flipped)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&flipped, bytes)?;
        let node = Lasting::open(&model, folder.path(), 1).await?;
        let context = node.encode(layout).await?;
        assert_eq!((computed(&context), node.disk.figures().damaged), (1, 1), "{layout:?}");
        let answer = ask(&context.session().await?, question(0), TOKENS).await?;
        answer.assert_like(&first, &format!("{layout:?} with a bit flipped"));
        node.close(context).await;
        // It was repaired on the disk as well.
        let node = Lasting::open(&model, folder.path(), 1).await?;
        let context = node.encode(layout).await?;
        assert_eq!((computed(&context), node.disk.figures().damaged), (0, 0), "{layout:?}");
        node.close(context).await;
    }
    Ok(())
}
