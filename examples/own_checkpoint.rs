//! Your own checkpoint and text: star beside exact, on the same hosts.
//!
//! ```sh
//! cargo run --release -p stellate-examples --bin own_checkpoint -- path/to/model report.txt "Who signed?"
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to its user")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use stellate_actors::{
    AskOptions, ContextSource, Layout, Model, ModelOptions, ModelSource, Node, NodeOptions,
};

const USAGE: &str = "usage: own_checkpoint MODEL TEXT_FILE QUESTION";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context(USAGE);
    let (path, file, question) = (PathBuf::from(next()?), next()?, next()?);
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;

    // Reading a checkpoint takes a while: not on the runtime's threads.
    let source = ModelSource::Checkpoint(path);
    let load = move || Model::load(&source, &ModelOptions::default(), &mut |_| {});
    let model = tokio::task::spawn_blocking(load).await??;
    let node = Node::open(&model, NodeOptions::default().with_hosts(2)).await?;

    for layout in [Layout::star(2048, 2048), Layout::exact(2048)] {
        let started = Instant::now();
        let context = node.encode(ContextSource::Document(text.clone()), layout).await?;
        let encoded_s = started.elapsed().as_secs_f64();
        let report = context.session().await?.ask(&*question, AskOptions::default()).finish().await?;
        println!("{}: {}", layout.attention, report.text.trim());
        println!(
            "  {} tokens encoded in {encoded_s:.2} s, first token after {:.2} s",
            context.manifest().tokens(),
            report.timings.first_token_s
        );
    }
    node.close().await;
    Ok(())
}
