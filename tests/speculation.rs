//! Guessing ahead changes how many tokens a step gives and nothing else: the same tokens, the same logits bit for bit, the
//! same conversation after it; greedy and seeded, star and exact, on any number of hosts.

use std::sync::Arc;

use stellate_actors::{
    AskOptions, Context, ContextSource, KvFormat, Layout, Model, ModelOptions, ModelSource, Node,
    NodeOptions, QueryInput, SamplingParams, Speculation, TurnEvent, TurnReport, WeightChoice,
};
use stellate_runtime::clock::ManualClock;
use stellate_tests::{FAMILIES, golden_dir, golden_model, small_node};

/// Tokens that repeat themselves, so that there is something to copy.
fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i % 23 * 11 + i % 5 * 3) % 320).collect()
}

/// A turn's report and all its logits.
async fn ask(
    context: &Context,
    turns: &[u32],
    options: AskOptions,
) -> anyhow::Result<Vec<(TurnReport, Vec<f32>)>> {
    let session = context.session().await?;
    let mut answers = Vec::new();
    for &token in turns {
        let mut turn = session.ask(QueryInput::Ids(vec![token, 3]), options.clone());
        let mut logits = Vec::new();
        while let Some(event) = turn.next().await {
            match event? {
                TurnEvent::Token(token) => {
                    logits.extend_from_slice(token.logits.as_deref().unwrap_or_default())
                }
                TurnEvent::Finished(report) => answers.push((*report, std::mem::take(&mut logits))),
            }
        }
    }
    Ok(answers)
}

#[tokio::test]
async fn tokens_and_logits_are_those_of_an_answer_without_guesses() -> anyhow::Result<()> {
    let mut total = Speculation::default();
    for family in FAMILIES {
        let model = golden_model(&golden_dir(family), WeightChoice::F32)?;
        for (hosts, kv) in [(1, KvFormat::F32), (3, KvFormat::Bf16)] {
            let options = NodeOptions {
                kv_format: kv,
                capacity_bytes: 64 << 20,
                // Guesses are then paced by how many hold alone, the same in every run.
                clock: Arc::new(ManualClock::new()),
                ..NodeOptions::default()
            };
            let node = Node::open(&model, options.with_hosts(hosts)).await?;
            for layout in [Layout::star(64, 32), Layout::exact(64)] {
                let context = node.encode(ContextSource::Ids(ids(200)), layout).await?;
                for temperature in [0.0, 0.3, 1.0] {
                    let sampling = SamplingParams {
                        temperature,
                        repetition_penalty: if temperature == 0.3 { 1.05 } else { 1.0 },
                        seed: 5,
                        ..SamplingParams::default()
                    };
                    let plain = AskOptions {
                        sampling,
                        max_tokens: 60,
                        ignore_eos: true,
                        logits: true,
                        guess_tokens: 0,
                        ..AskOptions::default()
                    };
                    let expected = ask(&context, &[1, 2], plain.clone()).await?;
                    let guessed = ask(&context, &[1, 2], AskOptions { guess_tokens: 8, ..plain }).await?;
                    for ((expected, logits), (actual, actual_logits)) in expected.iter().zip(&guessed) {
                        let place = format!("{family}, {hosts} hosts, {layout:?}, temperature {temperature}");
                        assert_eq!(actual.ids, expected.ids, "{place}");
                        assert!(logits == actual_logits, "{place}: logits differ");
                        assert_eq!(expected.speculation.guessed_tokens, 0);
                        assert_eq!(
                            actual.speculation.steps + actual.speculation.accepted_tokens,
                            60,
                            "{place}"
                        );
                        total.steps += actual.speculation.steps;
                        total.accepted_tokens += actual.speculation.accepted_tokens;
                    }
                }
            }
        }
    }
    assert!(total.accepted_tokens > 100, "too few guesses held to show anything: {total:?}");
    Ok(())
}

#[tokio::test]
async fn quantised_weights_answer_alike_with_and_without_guesses() -> anyhow::Result<()> {
    let source = ModelSource::Random { shape: "tiny".into(), seed: 3 };
    for weights in [WeightChoice::Bf16, WeightChoice::Q8_0, WeightChoice::Q4K] {
        let options = ModelOptions { weights, ..ModelOptions::default() };
        let node = Node::open(&Model::load(&source, &options, &mut |_| {})?, NodeOptions::default()).await?;
        let context = node.encode(ContextSource::Ids(ids(150)), Layout::star(64, 64)).await?;
        let plain = AskOptions { max_tokens: 80, ignore_eos: true, guess_tokens: 0, ..AskOptions::default() };
        let expected = ask(&context, &[7], plain.clone()).await?.swap_remove(0).0;
        let guessed = ask(&context, &[7], AskOptions { guess_tokens: 16, ..plain }).await?.swap_remove(0).0;
        assert_eq!(guessed.ids, expected.ids, "{weights:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_ends_within_its_guesses_leaves_the_conversation_as_without_them() -> anyhow::Result<()>
{
    let model = golden_model(&golden_dir("llama3"), WeightChoice::F32)?;
    let node = small_node(&model, 2, KvFormat::F32).await?;
    let context = node.encode(ContextSource::Ids(ids(200)), Layout::star(64, 32)).await?;
    for max_tokens in 1..24 {
        let mut answers = Vec::new();
        for guess_tokens in [0, 8] {
            let session = context.session().await?;
            let options = AskOptions { max_tokens, ignore_eos: true, guess_tokens, ..AskOptions::default() };
            let first = session.ask(QueryInput::Ids(vec![4]), options.clone()).finish().await?;
            let more = session.ask(QueryInput::Continue, options).finish().await?;
            answers.push((first.ids, more.ids, more.usage));
        }
        assert_eq!(answers[0], answers[1], "{max_tokens} tokens");
    }
    Ok(())
}
