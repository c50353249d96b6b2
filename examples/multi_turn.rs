//! Several sessions over one context on several context hosts: progress while it is encoded, answers streamed token by
//! token, an answer cancelled in the middle, more text appended.
//!
//! ```sh
//! cargo run --release -p stellate-examples --bin multi_turn
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to its user")]

use std::io::Write as _;

use stellate_actors::{
    Addition, AskOptions, Context, ContextSource, FinishReason, Layout, Model, ModelOptions, ModelSource,
    Node, NodeOptions, QueryInput, Session, TurnEvent, TurnReport,
};

const FILLER: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {})?;
    let node = Node::open(&model, NodeOptions::default().with_hosts(3)).await?;

    let document = format!(
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about \
         the numbers afterwards.\n{}{}{}\n",
        FILLER.repeat(6),
        fact("amber-falcon", 1_234_567),
        FILLER.repeat(6)
    );
    let progress = |p: stellate_actors::EncodeProgress| {
        eprintln!("encoded {} of {} tokens", p.tokens_done, p.tokens_total)
    };
    let context =
        node.encode_with(ContextSource::Document(document), Layout::star(128, 128), progress).await?;
    print_blocks(&context);

    // Turns of one session hear each other; sessions do not.
    let (first, second) = (context.session().await?, context.session().await?);
    ask(&first, "amber-falcon").await?;
    ask(&first, "amber-falcon").await?;
    ask(&second, "amber-falcon").await?;

    // An answer cut off by its budget goes on where it stopped.
    let few = AskOptions { max_tokens: 3, ..AskOptions::default() };
    let begun = second.ask(question("amber-falcon"), few.clone()).finish().await?;
    let more = second.ask(QueryInput::Continue, few).finish().await?;
    println!("amber-falcon, in two pieces:{} + {}", begun.text, more.text);

    // An answer nobody needs any more: the session goes on.
    let turn = second.ask(question("amber-falcon"), AskOptions::default());
    turn.cancel();
    assert_eq!(turn.finish().await?.finish, FinishReason::Cancelled);

    // More text: whole blocks are shared with the first context, which stays as it is.
    let more = format!("{}{}\n", fact("kind-jacket", 7_654_321), FILLER.repeat(2));
    let longer = context.append(Addition::Text(more)).await?;
    print_blocks(&longer);
    ask(&longer.session().await?, "kind-jacket").await?;
    node.close().await;
    Ok(())
}

fn fact(key: &str, value: u32) -> String {
    format!("One of the special magic numbers for {key} is: {value}. ")
}

fn question(key: &str) -> String {
    format!(
        "What is the special magic number for {key} mentioned in the provided text? The special magic number for {key} \
         mentioned in the provided text is"
    )
}

fn print_blocks(context: &Context) {
    let progress = context.progress();
    println!(
        "context {}: {} tokens, {} blocks of which {} were there already",
        context.id(),
        context.manifest().tokens(),
        progress.blocks_total,
        progress.blocks_reused
    );
}

/// Asks and prints the answer as it is made.
async fn ask(session: &Session, key: &str) -> anyhow::Result<TurnReport> {
    print!("{key}:");
    // One sentence is enough.
    let options = AskOptions { stop: vec![".".to_owned()], ..AskOptions::default() };
    let mut turn = session.ask(question(key), options);
    loop {
        match turn.next().await {
            Some(Ok(TurnEvent::Token(token))) => {
                print!("{}", token.text);
                std::io::stdout().flush()?;
            }
            Some(Ok(TurnEvent::Finished(report))) => {
                println!("   ({} tokens fed, the context not again)", report.usage.query_tokens);
                return Ok(*report);
            }
            Some(Err(error)) => return Err(error.into()),
            None => anyhow::bail!("the node is closing"),
        }
    }
}
