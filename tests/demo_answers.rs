//! Every answer of the demo model's `examples.jsonl`, dense and star, id for id, in f32, through the session API: each
//! question in a fresh session over its context, as the oracle asked it.

use std::path::Path;

use serde::Deserialize;
use stellate_actors::{
    AskOptions, ContextSource, KvFormat, Layout, Model, ModelOptions, ModelSource, Node, QueryInput,
    WeightChoice,
};
use stellate_tests::small_node;

/// Tokens of block and anchor in the oracle's star answers.
const BLOCK_TOKENS: usize = 512;

#[derive(Deserialize)]
struct Example {
    index: String,
    context: String,
    context_ids: Vec<u32>,
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    question: String,
    question_ids: Vec<u32>,
    dense: Answer,
    star: Answer,
}

#[derive(Deserialize)]
struct Answer {
    ids: Vec<u32>,
    text: String,
}

fn examples() -> anyhow::Result<Vec<Example>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo/examples.jsonl");
    let text = std::fs::read_to_string(path)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

async fn node() -> anyhow::Result<Node> {
    node_with(KvFormat::F32).await
}

async fn node_with(kv: KvFormat) -> anyhow::Result<Node> {
    let options = ModelOptions { weights: WeightChoice::F32, ..ModelOptions::default() };
    let model = Model::load(&ModelSource::Demo, &options, &mut |_| {})?;
    small_node(&model, 2, kv).await
}

#[tokio::test]
async fn the_demo_model_gives_the_oracles_answers_id_for_id() -> anyhow::Result<()> {
    let node = node().await?;
    for example in examples()? {
        for layout in [Layout::exact(BLOCK_TOKENS), Layout::star(BLOCK_TOKENS, BLOCK_TOKENS)] {
            let context = node.encode(ContextSource::Ids(example.context_ids.clone()), layout).await?;
            for question in &example.questions {
                let place = format!("example {}, {}: {}", example.index, layout.attention, question.question);
                let expected = match layout.attention.to_string().as_str() {
                    "exact" => &question.dense,
                    _ => &question.star,
                };
                let session = context.session().await?;
                let input = QueryInput::Ids(question.question_ids.clone());
                let report = session.ask(input, AskOptions::default()).finish().await?;
                assert_eq!(report.ids, expected.ids, "{place}");
                assert_eq!(report.text, expected.text, "{place}");
            }
        }
    }
    node.close().await;
    Ok(())
}

#[tokio::test]
async fn eight_bit_keys_and_values_give_nearly_all_of_the_oracles_answers() -> anyhow::Result<()> {
    let node = node_with(KvFormat::Q8).await?;
    let (mut same, mut all) = (0, 0);
    for example in examples()? {
        for layout in [Layout::exact(BLOCK_TOKENS), Layout::star(BLOCK_TOKENS, BLOCK_TOKENS)] {
            let context = node.encode(ContextSource::Ids(example.context_ids.clone()), layout).await?;
            for question in &example.questions {
                let exact = layout.attention.to_string() == "exact";
                let expected = if exact { &question.dense } else { &question.star };
                let session = context.session().await?;
                let input = QueryInput::Ids(question.question_ids.clone());
                let report = session.ask(input, AskOptions::default()).finish().await?;
                same += usize::from(report.ids == expected.ids);
                all += 1;
            }
        }
    }
    node.close().await;
    // Seen: 46 and 48 of 48. The closest calls go either way with every change of the kernels' roundings.
    assert!(10 * same >= 9 * all, "{same} of {all} answers are the oracle's, id for id");
    Ok(())
}

#[tokio::test]
async fn documents_and_questions_in_words_become_the_oracles_tokens() -> anyhow::Result<()> {
    let node = node().await?;
    for example in examples()?.iter().take(3) {
        let layout = Layout::star(BLOCK_TOKENS, BLOCK_TOKENS);
        let context = node.encode(ContextSource::Document(example.context.clone()), layout).await?;
        assert_eq!(&*context.manifest().ids, example.context_ids, "example {}", example.index);
        for question in &example.questions {
            let session = context.session().await?;
            let report = session.ask(&*question.question, AskOptions::default()).finish().await?;
            assert_eq!(report.query_ids, question.question_ids, "{}", question.question);
            assert_eq!(report.ids, question.star.ids, "{}", question.question);
        }
    }
    node.close().await;
    Ok(())
}
