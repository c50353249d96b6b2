//! The shortest program: the embedded model, a text, a question.
//!
//! ```sh
//! cargo run --release -p stellate-examples --bin one_process
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to its user")]

use stellate_actors::{
    AskOptions, ContextSource, Layout, Model, ModelOptions, ModelSource, Node, NodeOptions,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {})?;
    let node = Node::open(&model, NodeOptions::default()).await?;

    let filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
    let text = format!(
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about \
         the numbers afterwards.\n{filler}One of the special magic numbers for amber-falcon is: 1234567. {filler}\n"
    );
    let context = node.encode(ContextSource::Document(text), Layout::star(32, 32)).await?;

    let question = "What is the special magic number for amber-falcon mentioned in the provided text? \
                    The special magic number for amber-falcon mentioned in the provided text is";
    let report = context.session().await?.ask(question, AskOptions::default()).finish().await?;
    println!("{question}{}", report.text);
    println!(
        "{} tokens of context, {} of the question, {} of the answer",
        report.usage.context_tokens, report.usage.query_tokens, report.usage.generated_tokens
    );
    node.close().await;
    Ok(())
}
