//! Sessions through the session API: several over one context, several turns, streams, cancelling, refusals that leave the
//! conversation as it was.

use futures_util::StreamExt as _;
use stellate_actors::error::SessionError;
use stellate_actors::{
    AskError, AskOptions, Context, ContextSource, FinishReason, KvFormat, Layout, Model, ModelOptions,
    ModelSource, Node, NodeOptions, QueryInput, SamplingParams, TurnEvent, WeightChoice,
};
use stellate_tests::{golden_dir, golden_model, small_node};

fn ids(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 29 + i * i * 11 + seed * 17) % 320).collect()
}

fn options(max_tokens: usize) -> AskOptions {
    AskOptions { max_tokens, ignore_eos: true, ..AskOptions::default() }
}

fn tokens(ids: &[u32]) -> QueryInput {
    QueryInput::Ids(ids.to_vec())
}

fn model() -> anyhow::Result<Model> {
    golden_model(&golden_dir("qwen3"), WeightChoice::F32)
}

async fn context() -> anyhow::Result<Context> {
    let node = small_node(&model()?, 2, KvFormat::F32).await?;
    Ok(node.encode(ContextSource::Ids(ids(150, 1)), Layout::star(32, 32)).await?)
}

/// A text with two facts.
fn text() -> String {
    let filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
        .repeat(4);
    format!(
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about \
         the numbers afterwards.\n{filler}One of the special magic numbers for amber-falcon is: 1234567. {filler}One of \
         the special magic numbers for kind-jacket is: 7654321. {filler}\n"
    )
}

/// The demo model over `source`.
async fn demo(source: ContextSource) -> anyhow::Result<Context> {
    let options = ModelOptions { weights: WeightChoice::F32, ..ModelOptions::default() };
    let model = Model::load(&ModelSource::Demo, &options, &mut |_| {})?;
    let node = small_node(&model, 2, KvFormat::F32).await?;
    Ok(node.encode(source, Layout::star(128, 128)).await?)
}

fn question(key: &str) -> String {
    format!(
        "What is the special magic number for {key} mentioned in the provided text? The special magic number for {key} \
         mentioned in the provided text is"
    )
}

#[tokio::test]
async fn a_later_turn_feeds_only_its_own_tokens() -> anyhow::Result<()> {
    let session = context().await?.session().await?;
    let first = session.ask(tokens(&[1, 2, 3]), options(5)).finish().await?;
    let pending = *first.ids.last().unwrap();
    let second = session.ask(tokens(&[pending, 4, 5]), options(4)).finish().await?;
    assert_eq!(
        (first.usage.context_tokens, first.usage.session_tokens, first.usage.query_tokens),
        (150, 0, 3)
    );
    // Three of the question and four of the answer: the fifth was sampled and not fed.
    assert_eq!((second.usage.session_tokens, second.usage.query_tokens), (7, 3));
    let turns = session.turns().await?;
    assert_eq!(turns.len(), 2);
    assert_eq!((&turns[1].query_ids, &turns[1].ids), (&vec![pending, 4, 5], &second.ids));
    Ok(())
}

#[tokio::test]
async fn sessions_over_one_context_do_not_hear_each_other() -> anyhow::Result<()> {
    let context = context().await?;
    let mut alone = Vec::new();
    for question in 0..4 {
        alone.push(context.session().await?.ask(tokens(&[question, 9]), options(12)).finish().await?.ids);
    }
    let mut together = Vec::new();
    for question in 0..4 {
        let session = context.session().await?;
        together.push(async move { session.ask(tokens(&[question, 9]), options(12)).finish().await });
    }
    for (answer, expected) in futures_util::future::join_all(together).await.into_iter().zip(alone) {
        assert_eq!(answer?.ids, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_continued_answer_is_the_answer_that_was_cut_off() -> anyhow::Result<()> {
    let context = context().await?;
    let whole = context.session().await?.ask(tokens(&[3, 1]), options(20)).finish().await?;
    let session = context.session().await?;
    let mut pieces = session.ask(tokens(&[3, 1]), options(7)).finish().await?.ids;
    pieces.extend(session.ask(QueryInput::Continue, options(13)).finish().await?.ids);
    assert_eq!(pieces, whole.ids);
    Ok(())
}

#[tokio::test]
async fn a_turn_cancelled_in_the_middle_leaves_the_session_usable() -> anyhow::Result<()> {
    let context = context().await?;
    let whole = context.session().await?.ask(tokens(&[5, 6]), options(40)).finish().await?.ids;
    let session = context.session().await?;
    let mut turn = session.ask(tokens(&[5, 6]), options(100_000));
    for expected in &whole[..3] {
        match turn.next().await.unwrap()? {
            TurnEvent::Token(token) => assert_eq!(token.id, *expected),
            TurnEvent::Finished(report) => panic!("ended by itself: {report:?}"),
        }
    }
    turn.cancel();
    let report = turn.finish().await?;
    assert_eq!(report.finish, FinishReason::Cancelled);
    let said = report.ids.len();
    // What was said stays in the conversation: it goes on where it stopped.
    let more = session.ask(QueryInput::Continue, options(5)).finish().await?;
    let all = context.session().await?.ask(tokens(&[5, 6]), options(said + 5)).finish().await?;
    assert_eq!([&report.ids[..], &more.ids[..]].concat(), all.ids);
    Ok(())
}

#[tokio::test]
async fn a_turn_dropped_by_its_listener_makes_way_for_the_next() -> anyhow::Result<()> {
    let session = context().await?.session().await?;
    let mut turn = session.ask(tokens(&[5]), options(100_000));
    turn.next().await.unwrap()?;
    drop(turn);
    let next = session.ask(tokens(&[6]), options(3)).finish().await?;
    assert_eq!(next.ids.len(), 3);
    Ok(())
}

#[tokio::test]
async fn a_second_question_at_once_is_refused_and_the_first_goes_on() -> anyhow::Result<()> {
    let session = context().await?.session().await?;
    let first = session.ask(tokens(&[5]), options(50));
    let second = session.ask(tokens(&[6]), options(3)).finish().await;
    assert!(matches!(second, Err(AskError::Busy)), "{second:?}");
    assert_eq!(first.finish().await?.ids.len(), 50);
    Ok(())
}

#[tokio::test]
async fn bad_questions_are_refused_by_name_and_lose_nothing() -> anyhow::Result<()> {
    let context = context().await?;
    let expected = context.session().await?.ask(tokens(&[5]), options(6)).finish().await?.ids;
    let session = context.session().await?;
    let refused = async |input: QueryInput, options: AskOptions| {
        session.ask(input, options).finish().await.unwrap_err().to_string()
    };
    let hot = SamplingParams { temperature: -1.0, ..SamplingParams::default() };
    for (text, part) in [
        (refused(tokens(&[320]), options(3)).await, "token id 320"),
        (refused(tokens(&[]), options(3)).await, "no tokens"),
        (refused(tokens(&[5]), options(0)).await, "max_tokens is 0"),
        (refused(QueryInput::Continue, options(3)).await, "no answer to continue"),
        (refused("words".into(), options(3)).await, "no tokenizer"),
        (refused(tokens(&[5]), AskOptions { sampling: hot, ..options(3) }).await, "temperature is -1"),
        (refused(tokens(&[5]), AskOptions { stop: vec![String::new()], ..options(3) }).await, "is empty"),
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(session.ask(tokens(&[5]), options(6)).finish().await?.ids, expected);
    Ok(())
}

#[tokio::test]
async fn a_conversation_that_outgrows_its_store_fails_alone() -> anyhow::Result<()> {
    let model = model()?;
    let token_bytes = model.decoder.kv_shape(KvFormat::F32).bytes_per_token();
    let kv =
        NodeOptions { kv_format: KvFormat::F32, capacity_bytes: 512 * token_bytes, ..NodeOptions::default() };
    let node = Node::open(&model, kv).await?;
    let context = node.encode(ContextSource::Ids(ids(64, 1)), Layout::star(32, 32)).await?;
    let session = context.session().await?;
    let first = session.ask(tokens(&[5]), options(10)).finish().await?;
    let refused = session.ask(tokens(&ids(600, 2)), options(10)).finish().await;
    assert!(matches!(refused, Err(AskError::Full(_))), "{refused:?}");
    let more = session.ask(QueryInput::Continue, options(10)).finish().await?;
    let whole = context.session().await?.ask(tokens(&[5]), options(20)).finish().await?;
    assert_eq!([first.ids, more.ids].concat(), whole.ids);
    Ok(())
}

#[tokio::test]
async fn more_sessions_than_allowed_are_refused_until_one_is_closed() -> anyhow::Result<()> {
    let options = NodeOptions { max_sessions: 2, ..NodeOptions::default() };
    let node = Node::open(&model()?, options).await?;
    let context = node.encode(ContextSource::Ids(ids(10, 1)), Layout::star(32, 32)).await?;
    let (first, _second) = (context.session().await?, context.session().await?);
    let refused = context.session().await.map(|_| ());
    assert!(matches!(refused, Err(SessionError::TooMany { max_sessions: 2 })), "{refused:?}");
    first.close();
    context.session().await?;
    Ok(())
}

#[tokio::test]
async fn a_closed_node_says_so() -> anyhow::Result<()> {
    let node = small_node(&model()?, 2, KvFormat::F32).await?;
    let context = node.encode(ContextSource::Ids(ids(10, 1)), Layout::star(32, 32)).await?;
    let session = context.session().await?;
    node.close().await;
    assert!(matches!(session.ask(tokens(&[5]), options(3)).finish().await, Err(AskError::Stopped)));
    assert!(matches!(context.session().await, Err(SessionError::Stopped)));
    Ok(())
}

#[tokio::test]
async fn a_seed_gives_the_same_answer_on_any_number_of_hosts_and_another_seed_another() -> anyhow::Result<()>
{
    let model = model()?;
    let mut answers = Vec::new();
    for (hosts, seed) in [(1, 1), (3, 1), (1, 2)] {
        let node = small_node(&model, hosts, KvFormat::F32).await?;
        let context = node.encode(ContextSource::Ids(ids(150, 1)), Layout::star(32, 32)).await?;
        let sampling = SamplingParams {
            temperature: 1.0,
            top_k: Some(50),
            repetition_penalty: 1.1,
            seed,
            ..SamplingParams::default()
        };
        let options = AskOptions { sampling, ..options(24) };
        answers.push(context.session().await?.ask(tokens(&[1, 2]), options).finish().await?.ids);
    }
    assert_eq!(answers[0], answers[1]);
    assert_ne!(answers[0], answers[2]);
    Ok(())
}

#[tokio::test]
async fn log_probabilities_come_best_first_and_include_the_greedy_choice() -> anyhow::Result<()> {
    let session = context().await?.session().await?;
    let mut turn = session.ask(tokens(&[1, 2]), AskOptions { top_logprobs: 4, ..options(5) });
    while let Some(TurnEvent::Token(token)) = turn.next().await.transpose()? {
        assert_eq!(token.top.len(), 4);
        assert_eq!(token.top[0], (token.id, token.logprob));
        assert!(token.top.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{:?}", token.top);
    }
    Ok(())
}

#[tokio::test]
async fn facts_are_found_over_several_turns_in_words() -> anyhow::Result<()> {
    let session = demo(ContextSource::Document(text())).await?.session().await?;
    for (key, value) in
        [("amber-falcon", " 1234567."), ("kind-jacket", " 7654321."), ("amber-falcon", " 1234567.")]
    {
        let report = session.ask(question(key), AskOptions::default()).finish().await?;
        assert_eq!((&*report.text, report.finish), (value, FinishReason::Stop));
    }
    Ok(())
}

#[tokio::test]
async fn the_pieces_of_a_stream_make_up_the_text_and_a_stop_string_cuts_it() -> anyhow::Result<()> {
    let context = demo(ContextSource::Document(text())).await?;
    let options = AskOptions { stop: vec!["345".into()], ..AskOptions::default() };
    let session = context.session().await?;
    let mut turn = session.ask(question("amber-falcon"), options);
    let mut text = String::new();
    while let Some(event) = turn.next().await {
        match event? {
            TurnEvent::Token(token) => text += &token.text,
            TurnEvent::Finished(report) => {
                assert_eq!((&*report.text, report.finish), (" 12", FinishReason::Stop));
            }
        }
    }
    assert_eq!(text, " 12");
    // The same stream through the `Stream` trait.
    let events: Vec<_> =
        context.session().await?.ask(question("kind-jacket"), AskOptions::default()).collect().await;
    assert!(matches!(events.last(), Some(Ok(TurnEvent::Finished(report))) if report.text == " 7654321."));
    Ok(())
}

#[tokio::test]
async fn a_raw_text_is_continued_as_it_stands() -> anyhow::Result<()> {
    let context = demo(ContextSource::Text(text())).await?;
    assert_eq!(context.manifest().ids[0], 0, "begins with the begin-of-text token");
    let question = format!(" {}", question("amber-falcon"));
    let report = context.session().await?.ask(question, AskOptions::default()).finish().await?;
    assert_eq!(report.text, " 1234567.");
    Ok(())
}

#[tokio::test]
async fn a_session_whose_opening_nobody_waits_for_takes_no_place() -> anyhow::Result<()> {
    let options = NodeOptions { max_sessions: 1, ..NodeOptions::default() };
    let node = Node::open(&model()?, options).await?;
    let context = node.encode(ContextSource::Ids(ids(10, 1)), Layout::star(32, 32)).await?;
    for _ in 0..50 {
        // Polled once, so that the question is sent, and given up before the answer is taken.
        let opening = Box::pin(context.session());
        drop(futures_util::future::select(opening, futures_util::future::ready(())).await);
    }
    let mut spins = 0;
    while context.session().await.is_err() {
        spins += 1;
        assert!(spins < 100_000, "the place is taken by a session that nobody has");
    }
    Ok(())
}
