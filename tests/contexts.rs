//! Contexts through the session API: shapes of all kinds, sharing, appending, freeing, refusals that lose nothing.

use stellate_actors::context_host::HostError;
use stellate_actors::error::{ContextFull, EncodeError};
use stellate_actors::{
    Addition, AskOptions, Context, ContextSource, EncodeProgress, KvFormat, Layout, Model, Node, NodeOptions,
    QueryInput, WeightChoice,
};
use stellate_tests::{golden_dir, golden_model, small_node};

fn model() -> anyhow::Result<Model> {
    golden_model(&golden_dir("llama3"), WeightChoice::F32)
}

async fn node(hosts: usize) -> anyhow::Result<Node> {
    small_node(&model()?, hosts, KvFormat::F32).await
}

/// `count` tokens of the goldens' vocabulary; another `seed`, other tokens.
fn ids(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 31 + i * i * 7 + seed * 13) % 320).collect()
}

async fn encode(node: &Node, ids: Vec<u32>, layout: Layout) -> Result<Context, EncodeError> {
    node.encode(ContextSource::Ids(ids), layout).await
}

/// The greedy answer to a fixed question, in a session of its own.
async fn answer(context: &Context) -> anyhow::Result<Vec<u32>> {
    let options = AskOptions { max_tokens: 8, ignore_eos: true, ..AskOptions::default() };
    Ok(context.session().await?.ask(QueryInput::Ids(vec![7, 8, 9]), options).finish().await?.ids)
}

fn used_bytes(node: &Node) -> usize {
    node.stores().map(|(_, store)| store.used_bytes()).sum()
}

/// Waits until blocks that nobody needs are freed: it happens behind the last user's back.
async fn until_used(node: &Node, bytes: usize) {
    let mut spins = 0;
    while used_bytes(node) != bytes {
        tokio::task::yield_now().await;
        spins += 1;
        assert!(spins < 50_000_000, "{} bytes are held, not {bytes}", used_bytes(node));
    }
}

#[tokio::test]
async fn a_second_context_with_the_same_text_encodes_nothing() -> anyhow::Result<()> {
    let node = node(3).await?;
    for layout in [Layout::star(32, 16), Layout::exact(32)] {
        let first = encode(&node, ids(200, 1), layout).await?;
        let used = used_bytes(&node);
        let second = encode(&node, ids(200, 1), layout).await?;
        let expected = EncodeProgress {
            tokens_done: 200,
            tokens_total: 200,
            blocks_done: 7,
            blocks_total: 7,
            blocks_reused: 7,
        };
        assert_eq!(second.progress(), expected);
        assert_eq!(used_bytes(&node), used);
        assert_eq!(answer(&first).await?, answer(&second).await?);
    }
    Ok(())
}

#[tokio::test]
async fn appending_redoes_only_the_short_last_block() -> anyhow::Result<()> {
    let node = node(2).await?;
    for layout in [Layout::star(32, 32), Layout::star(32, 0), Layout::exact(32)] {
        let whole = ids(230, 2);
        let first = encode(&node, whole[..100].to_vec(), layout).await?;
        let before = answer(&first).await?;
        let second = first.append(Addition::Ids(whole[100..].to_vec())).await?;
        // Blocks 0 to 2 are whole in both; block 3 had 4 tokens and has 32.
        assert_eq!(second.progress().blocks_reused, 3, "{layout:?}");
        assert_eq!(answer(&first).await?, before, "the first context is as it was");
        let at_once = encode(&node, whole, layout).await?;
        assert_eq!(answer(&second).await?, answer(&at_once).await?, "{layout:?}");
    }
    Ok(())
}

#[tokio::test]
async fn blocks_are_freed_with_the_last_context_or_session_that_needs_them() -> anyhow::Result<()> {
    let node = node(2).await?;
    let layout = Layout::star(32, 8);
    let first = encode(&node, ids(128, 3), layout).await?;
    let alone = used_bytes(&node);
    let longer = first.append(Addition::Ids(ids(64, 4))).await?;
    let session = longer.session().await?;
    assert!(used_bytes(&node) > alone);
    drop(longer);
    let options = AskOptions { max_tokens: 2, ignore_eos: true, ..AskOptions::default() };
    session.ask(QueryInput::Ids(vec![1]), options).finish().await?;
    drop(session);
    until_used(&node, alone).await;
    answer(&first).await?;
    drop(first);
    until_used(&node, 0).await;
    Ok(())
}

#[tokio::test]
async fn a_full_node_says_how_much_was_needed_and_free_and_leaves_every_context_as_it_was()
-> anyhow::Result<()> {
    let model = model()?;
    let token_bytes = model.decoder.kv_shape(KvFormat::F32).bytes_per_token();
    let options =
        NodeOptions { kv_format: KvFormat::F32, capacity_bytes: 256 * token_bytes, ..NodeOptions::default() };
    let node = Node::open(&model, options.with_hosts(2)).await?;
    for layout in [Layout::star(64, 0), Layout::exact(64)] {
        let kept = encode(&node, ids(256, 5), layout).await?;
        let (before, used) = (answer(&kept).await?, used_bytes(&node));
        let expected = ContextFull {
            needed_tokens: 384,
            free_tokens: 256,
            block_tokens: 64,
            largest_free_tokens: 128,
            hosts: 2,
        };
        match encode(&node, ids(384, 6), layout).await.map(|_| ()) {
            Err(EncodeError::Full(full)) => assert_eq!(full, expected),
            other => panic!("not refused as it should be: {other:?}"),
        }
        match kept.append(Addition::Ids(ids(384, 7))).await.map(|_| ()) {
            Err(EncodeError::Full(full)) => assert_eq!(full, expected),
            other => panic!("not refused as it should be: {other:?}"),
        }
        assert_eq!(used_bytes(&node), used);
        assert_eq!(answer(&kept).await?, before);
        drop(encode(&node, ids(256, 8), layout).await?);
        until_used(&node, used).await;
        drop(kept);
        until_used(&node, 0).await;
    }
    Ok(())
}

#[tokio::test]
async fn an_anchor_computed_once_per_host_gives_what_recomputing_it_gives() -> anyhow::Result<()> {
    let model = model()?;
    let mut answers = Vec::new();
    let mut used = Vec::new();
    for recompute_anchor in [false, true] {
        let options = NodeOptions { kv_format: KvFormat::F32, recompute_anchor, ..NodeOptions::default() };
        let node = Node::open(&model, options.with_hosts(2)).await?;
        for anchor in [1, 20, 32] {
            let context = encode(&node, ids(300, 9), Layout::star(32, anchor)).await?;
            answers.push(answer(&context).await?);
            used.push(used_bytes(&node));
        }
    }
    assert_eq!(answers[..3], answers[3..]);
    // The host of the first block has the anchor in it; only the other one keeps a copy.
    assert!(used[..3].iter().zip(&used[3..]).all(|(shared, recomputed)| shared > recomputed), "{used:?}");
    Ok(())
}

#[tokio::test]
async fn contexts_of_every_length_answer_alike_on_any_number_of_hosts() -> anyhow::Result<()> {
    let (one, five) = (node(1).await?, node(5).await?);
    for tokens in [0, 1, 31, 32, 33, 64, 100, 333] {
        for layout in [Layout::star(32, 32), Layout::star(32, 5), Layout::star(1, 0), Layout::exact(32)] {
            let context = encode(&one, ids(tokens, 10), layout).await?;
            let expected = answer(&context).await?;
            let spread = encode(&five, ids(tokens, 10), layout).await?;
            assert_eq!(answer(&spread).await?, expected, "{tokens} tokens, {layout:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_answer_does_not_depend_on_how_a_block_is_cut_into_steps() -> anyhow::Result<()> {
    let model = model()?;
    let mut answers = Vec::new();
    for chunk_tokens in [1, 7, 64, 512] {
        let options = NodeOptions { chunk_tokens, kv_format: KvFormat::F32, ..NodeOptions::default() };
        let node = Node::open(&model, options).await?;
        for layout in [Layout::star(64, 16), Layout::exact(64)] {
            answers.push(answer(&encode(&node, ids(200, 11), layout).await?).await?);
        }
    }
    assert!(answers.iter().step_by(2).all(|star| *star == answers[0]), "{answers:?}");
    assert!(answers.iter().skip(1).step_by(2).all(|exact| *exact == answers[1]), "{answers:?}");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_a_context_is_refused_by_name() -> anyhow::Result<()> {
    let node = node(1).await?;
    let refusal = async |ids, layout| encode(&node, ids, layout).await.map(|_| ()).unwrap_err().to_string();
    let text = refusal(ids(8, 1), Layout::star(4, 5)).await;
    assert!(text.contains("anchor_tokens is 5"), "{text}");
    let text = refusal(ids(8, 1), Layout::exact(0)).await;
    assert!(text.contains("block_tokens is 0"), "{text}");
    let text = refusal(vec![1, 2, 320], Layout::exact(4)).await;
    assert!(text.contains("token id 320 (token 2 of the input)"), "{text}");
    let text =
        node.encode(ContextSource::Text("words".into()), Layout::exact(4)).await.map(|_| ()).unwrap_err();
    assert!(text.to_string().contains("no tokenizer"), "{text}");
    assert_eq!(used_bytes(&node), 0);
    Ok(())
}

#[tokio::test]
async fn a_context_given_up_half_way_leaves_nothing_behind() -> anyhow::Result<()> {
    let model = model()?;
    let options = NodeOptions { chunk_tokens: 1, kv_format: KvFormat::F32, ..NodeOptions::default() };
    let node = Node::open(&model, options.with_hosts(2)).await?;
    for layout in [Layout::star(256, 256), Layout::exact(256)] {
        let (first_chunk, started) = tokio::sync::oneshot::channel();
        let mut first_chunk = Some(first_chunk);
        let encoding = node.encode_with(ContextSource::Ids(ids(4096, 12)), layout, move |progress| {
            if let Some(sender) = first_chunk.take_if(|_| progress.tokens_done > 0) {
                let _ = sender.send(());
            }
        });
        tokio::select! {
            _ = encoding => panic!("the encoding was to be given up"),
            _ = started => {}
        }
        until_used(&node, 0).await;
        answer(&encode(&node, ids(64, 13), layout).await?).await?;
        until_used(&node, 0).await;
    }
    Ok(())
}

#[tokio::test]
async fn two_contexts_that_share_blocks_can_be_encoded_at_once_and_one_given_up() -> anyhow::Result<()> {
    let model = model()?;
    let options = NodeOptions { chunk_tokens: 8, kv_format: KvFormat::F32, ..NodeOptions::default() };
    let node = Node::open(&model, options.with_hosts(2)).await?;
    for layout in [Layout::star(64, 32), Layout::exact(64)] {
        let expected = answer(&encode(&node, ids(640, 14), layout).await?).await?;
        until_used(&node, 0).await;
        let (first_chunk, started) = tokio::sync::oneshot::channel();
        let mut first_chunk = Some(first_chunk);
        let given_up = node.encode_with(ContextSource::Ids(ids(640, 14)), layout, move |progress| {
            if let Some(sender) = first_chunk.take_if(|_| progress.tokens_done > 64) {
                let _ = sender.send(());
            }
        });
        let kept = async {
            tokio::select! {
                _ = given_up => {}
                _ = started => {}
            }
        };
        let (context, ()) = tokio::join!(encode(&node, ids(640, 14), layout), kept);
        let context = context?;
        assert_eq!(answer(&context).await?, expected, "{layout:?}");
        drop(context);
        until_used(&node, 0).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_with_a_tiny_queue_refuses_by_name_and_frees_everything() -> anyhow::Result<()> {
    let model = model()?;
    let options = NodeOptions { queue_jobs: 1, kv_format: KvFormat::F32, ..NodeOptions::default() };
    let node = Node::open(&model, options).await?;
    let many = (0..24).map(|seed| encode(&node, ids(300, seed), Layout::star(32, 32)));
    let outcomes = futures_util::future::join_all(many).await;
    for outcome in &outcomes {
        if let Err(error) = outcome {
            assert!(matches!(error, EncodeError::Host(HostError::Overloaded { .. })), "{error}");
        }
    }
    assert!(outcomes.iter().any(Result::is_err), "a queue of one job takes 24 contexts at once");
    drop(outcomes);
    until_used(&node, 0).await;
    answer(&encode(&node, ids(300, 1), Layout::star(32, 32)).await?).await?;
    Ok(())
}
