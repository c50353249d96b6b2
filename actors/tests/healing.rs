//! What becomes of answers when context hosts fail: the same tokens as without the fault, or a typed error and a session
//! that goes on.

mod faulty;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use faulty::*;
use ractor::{call, cast};
use stellate_actors::cancel::CancelToken;
use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::cluster::term::Term;
use stellate_actors::context_host::{ContextHostMsg, EncodeJob, Encoded, HostError};
use stellate_actors::error::EncodeError;
use stellate_actors::path::context::Anchor;
use stellate_actors::port::HostPort;
use stellate_actors::progress::EncodeMeter;
use stellate_actors::supervisor::SupervisorMsg;
use stellate_actors::{
    AskError, Context, ContextSource, FinishReason, Layout, Moved, NodeOptions, TurnEvent,
};
use stellate_model::block::BlockId;

const TOKENS: usize = 12;

#[tokio::test]
async fn a_host_that_falls_silent_at_any_request_changes_no_token() -> anyhow::Result<()> {
    let model = model()?;
    for layout in layouts() {
        let [first, second] = healthy(&model, layout, TOKENS).await?;
        for (victim, request) in [(0, 0), (1, 1), (2, 5), (0, 8), (1, 13)] {
            let world = World::open(&model, options()).await?;
            let context = context(&world, layout).await?;
            let session = context.session().await?;
            world.hosts[victim].fault.after(request);
            let what = format!("{layout:?}, host {victim}, request {request}");
            ask(&session, question(0), TOKENS).await?.assert_like(&first, &what);
            assert_eq!(world.places(), 2, "{what}: placed once more");
            let silent = world.hosts[victim].host();
            assert!(context.places().placed.iter().all(|placed| placed.host != silent), "{what}");
            ask(&session, question(1), TOKENS).await?.assert_like(&second, &what);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_host_stopped_in_the_middle_of_an_answer_changes_no_token() -> anyhow::Result<()> {
    let model = model()?;
    for layout in layouts() {
        let [first, second] = healthy(&model, layout, TOKENS).await?;
        let world = World::open(&model, options()).await?;
        let session = context(&world, layout).await?.session().await?;
        let stop = |index: usize| {
            let actor = world.hosts[index].host.actor.clone();
            async move { actor.stop_and_wait(None, None).await.unwrap() }
        };
        let answer = ask_and(&session, question(0), TOKENS, stop(1)).await?;
        answer.assert_like(&first, "stopped in the middle");
        // Another one while nobody asks.
        stop(0).await;
        ask(&session, question(1), TOKENS).await?.assert_like(&second, "stopped between two questions");
    }
    Ok(())
}

#[tokio::test]
async fn a_host_that_left_while_nobody_asked_is_replaced() -> anyhow::Result<()> {
    let model = model()?;
    let [first, _] = healthy(&model, layouts()[0], TOKENS).await?;
    let world = World::open(&model, options()).await?;
    let session = context(&world, layouts()[0]).await?.session().await?;
    world.node.hosts().remove(world.hosts[2].host());
    ask(&session, question(0), TOKENS).await?.assert_like(&first, "left");
    Ok(())
}

#[tokio::test]
async fn sessions_over_one_context_share_one_repair() -> anyhow::Result<()> {
    let model = model()?;
    for layout in layouts() {
        let [first, _] = healthy(&model, layout, 40).await?;
        let world = World::open(&model, options()).await?;
        let context = context(&world, layout).await?;
        let sessions = [context.session().await?, context.session().await?, context.session().await?];
        world.hosts[1].fault.after(17);
        let asked = sessions.iter().map(|session| ask(session, question(0), 40));
        for answer in futures_util::future::join_all(asked).await {
            answer?.assert_like(&first, "side by side");
        }
        assert_eq!(world.places(), 2);
    }
    Ok(())
}

#[tokio::test]
async fn a_lost_block_is_encoded_again_where_it_was() -> anyhow::Result<()> {
    let model = model()?;
    for layout in layouts() {
        let [first, _] = healthy(&model, layout, TOKENS).await?;
        let world = World::open(&model, options()).await?;
        let context = context(&world, layout).await?;
        let session = context.session().await?;
        let (lost, place) = (context.manifest().blocks[4].id, context.places().placed[4].host);
        let host = world.hosts.iter().find(|host| host.host() == place).unwrap();
        let lose = async { cast!(host.host.actor, ContextHostMsg::Release(vec![lost])).unwrap() };
        ask_and(&session, question(0), TOKENS, lose).await?.assert_like(&first, "lost");
        assert_eq!(context.places().placed[4].host, place);
    }
    Ok(())
}

#[tokio::test]
async fn a_repair_that_cannot_succeed_fails_by_name_and_the_session_goes_on_afterwards() -> anyhow::Result<()>
{
    let model = model()?;
    let [first, second] = healthy(&model, layouts()[0], TOKENS).await?;
    let options = NodeOptions { heal_tries: 3, ..options() };
    let world = World::open(&model, options).await?;
    let session = context(&world, layouts()[0]).await?.session().await?;
    ask(&session, question(0), TOKENS).await?.assert_like(&first, "before");
    world.hosts.iter().for_each(|host| host.fault.after(4));
    let failed = ask(&session, question(1), TOKENS).await.unwrap_err();
    let AskError::Unhealed { cause, .. } = &failed else { panic!("{failed}") };
    assert!(matches!(**cause, EncodeError::Host(_) | EncodeError::Full(_)), "{failed}");
    assert_eq!(session.turns().await?.len(), 1, "the session is as it was");
    world.hosts.iter().for_each(|host| host.fault.mend());
    ask(&session, question(1), TOKENS).await?.assert_like(&second, "after");
    Ok(())
}

#[tokio::test]
async fn a_cancelled_turn_waits_no_longer_and_other_contexts_never_did() -> anyhow::Result<()> {
    let model = model()?;
    let world = World::open(&model, options()).await?;
    let broken = context(&world, layouts()[0]).await?;
    // A context of one block lies on one host; the others fail for the first context.
    let short = ContextSource::Ids(ids(10, 3));
    let other = world.node.encode(short, layouts()[0]).await?;
    let home = other.places().placed[0].host;
    let (session, other) = (broken.session().await?, other.session().await?);
    for host in &world.hosts {
        host.fault.hold_encodes();
        if host.host() != home {
            host.fault.after(0);
        }
    }
    let mut turn = session.ask(question(0), ask_options(TOKENS));
    let aside = ask(&other, question(0), TOKENS).await?;
    assert_eq!(aside.ids.len(), TOKENS);
    turn.cancel();
    match turn.next().await.unwrap()? {
        TurnEvent::Finished(report) => assert_eq!(report.finish, FinishReason::Cancelled),
        TurnEvent::Token(token) => panic!("a step without its blocks gave {token:?}"),
    }
    assert!(session.turns().await?.is_empty());
    world.node.close().await;
    Ok(())
}

#[tokio::test]
async fn a_host_that_fails_while_it_encodes_is_replaced() -> anyhow::Result<()> {
    let model = model()?;
    for layout in layouts() {
        let [first, _] = healthy(&model, layout, TOKENS).await?;
        let world = World::open(&model, options()).await?;
        world.hosts[0].fault.after(-1);
        let session = context(&world, layout).await?.session().await?;
        ask(&session, question(0), TOKENS).await?.assert_like(&first, "encoded elsewhere");
    }
    Ok(())
}

#[tokio::test]
async fn a_context_that_did_not_fit_fits_once_a_host_has_joined() -> anyhow::Result<()> {
    let model = model()?;
    let shape = model.decoder.kv_shape(options().kv_format);
    // Four blocks a host, in whole tiles, where six are needed.
    let capacity_bytes = 4 * shape.bytes_for(BLOCK_TOKENS);
    let options = NodeOptions { capacity_bytes, ..options() }.with_hosts(1);
    for layout in [Layout::star(BLOCK_TOKENS, 0), Layout::exact(BLOCK_TOKENS)] {
        let world = World::open(&model, options.clone()).await?;
        let refused = context(&world, layout).await;
        assert!(matches!(refused, Err(EncodeError::Full(_))), "{refused:?}");
        let joined = world.further_host(&model, &options).await?;
        world.node.hosts().join(joined.clone());
        cast!(
            world.supervisor,
            SupervisorMsg::Join(joined.host(), joined.host.actor.clone(), capacity_bytes)
        )?;
        let context = context(&world, layout).await?;
        assert!(context.places().placed.iter().any(|placed| placed.host == joined.host()));
        let session = context.session().await?;
        assert_eq!(ask(&session, question(0), TOKENS).await?.ids.len(), TOKENS);
        world.node.hosts().remove(joined.host());
        cast!(world.supervisor, SupervisorMsg::Leave(joined.host()))?;
        joined.host.actor.stop_and_wait(None, None).await?;
        let failed = context.session().await?.ask(question(0), ask_options(2)).finish().await;
        assert!(matches!(failed, Err(AskError::Unhealed { .. })), "{failed:?}");
    }
    Ok(())
}

/// Puts a copy of a block of a `star` context on a host, as a migration does.
async fn copy_block(context: &Context, index: usize, to: &FaultyHost) -> anyhow::Result<()> {
    let manifest = context.manifest();
    let block = &manifest.blocks[index];
    let anchor = manifest.anchor.map(|id| Anchor {
        id,
        ids: manifest.ids[..manifest.layout.anchor_tokens(manifest.tokens())].into(),
        first_block: manifest.blocks[0].id,
        is_kept: false,
        from: None,
    });
    let job = EncodeJob {
        id: block.id,
        ids: manifest.ids[block.range.clone()].into(),
        position: block.range.start,
        anchor: anchor.filter(|_| index > 0),
        recompute_anchor: false,
        meter: Default::default(),
        cancel: Default::default(),
    };
    assert_eq!(to.host.encode(job).await?, Encoded::Fresh);
    Ok(())
}

#[tokio::test]
async fn a_block_that_moves_between_two_steps_changes_no_token_and_needs_no_repair() -> anyhow::Result<()> {
    let model = model()?;
    let [first, second] = healthy(&model, layouts()[0], 40).await?;
    let world = World::open(&model, options()).await?;
    let context = context(&world, layouts()[0]).await?;
    let session = context.session().await?;
    let (block, from) = (context.manifest().blocks[3].id, context.places().placed[3].host);
    let at = |host| world.hosts.iter().find(|known| known.host() == host).unwrap();
    let target = world.hosts.iter().find(|known| known.host() != from).unwrap();
    let to = target.host();
    let term = |counter| Term { counter, node: NodeKey([1; 6]) };
    let migrate = async {
        copy_block(&context, 3, target).await.unwrap();
        world.node.moved(Moved { block, from, to, term: term(1), version: 5 }).await.unwrap();
        // Acknowledged: no step asks here any more.
        cast!(at(from).host.actor, ContextHostMsg::Release(vec![block])).unwrap();
    };
    ask_and(&session, question(0), 40, migrate).await?.assert_like(&first, "moved");
    assert_eq!(context.places().placed[3].host, to);
    // A late message of an earlier move is not obeyed, nor one of a block that lies elsewhere.
    for late in [
        Moved { block, from: to, to: from, term: term(1), version: 5 },
        Moved { block, from, to, term: term(1), version: 9 },
    ] {
        world.node.moved(late).await?;
        assert_eq!(context.places().placed[3].host, to);
    }
    // A supervisor that was started again counts from the beginning, and is obeyed.
    copy_block(&context, 3, at(from)).await.unwrap();
    world.node.moved(Moved { block, from: to, to: from, term: term(2), version: 1 }).await?;
    cast!(at(to).host.actor, ContextHostMsg::Release(vec![block])).unwrap();
    assert_eq!(context.places().placed[3].host, from);
    ask(&session, question(1), 40).await?.assert_like(&second, "after the move");
    assert_eq!(world.places(), 1, "no repair");
    Ok(())
}

#[tokio::test]
async fn what_a_repair_left_behind_is_freed_with_the_context() -> anyhow::Result<()> {
    let model = model()?;
    let world = World::open(&model, options()).await?;
    let context = context(&world, layouts()[0]).await?;
    let session = context.session().await?;
    world.hosts[0].fault.after(3);
    ask(&session, question(0), TOKENS).await?;
    drop((session, context));
    for host in &world.hosts {
        while host.host.budget.used_bytes() > 0 {
            // The releases are messages on their way.
            let _ = call!(host.host.actor, ContextHostMsg::Reserve, *some_block(), 1);
            tokio::task::yield_now().await;
        }
    }
    assert!(world.hosts.iter().any(|host| host.encodes.load(Ordering::SeqCst) > 0));
    Ok(())
}

/// A block that nobody holds.
fn some_block() -> Arc<stellate_model::block::BlockId> {
    use stellate_model::block::Addresser;
    use stellate_model::fingerprint::Fingerprint;
    let addresser = Addresser::new(&Fingerprint::of(b"none"), stellate_actors::KvFormat::F32);
    Arc::new(addresser.address_all(&layouts()[0], &[1])[0])
}

#[tokio::test]
async fn a_host_whose_device_stands_still_changes_no_token_and_is_used_again_when_it_goes_on()
-> anyhow::Result<()> {
    let model = model()?;
    let options = NodeOptions { stuck_after: Duration::from_secs(2), ..options() };
    for layout in layouts() {
        let [first, second] = healthy(&model, layout, TOKENS).await?;
        let world = World::open(&model, options.clone()).await?;
        let context = context(&world, layout).await?;
        let session = context.session().await?;
        let (victim, name) = (world.hosts[1].host.clone(), world.hosts[1].host());
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let meter = EncodeMeter::new(move |_| {
            let _ = wait.recv();
        });
        let stick = async {
            let job = EncodeJob {
                id: BlockId::from_bytes([3; 32]),
                ids: ids(8, 5).into(),
                position: 0,
                anchor: None,
                recompute_anchor: false,
                meter,
                cancel: CancelToken::default(),
            };
            tokio::spawn(async move { drop(HostPort::encode(&victim, job).await) });
        };
        let answer = ask_and(&session, question(0), TOKENS, stick).await?;
        answer.assert_like(&first, "stuck in the middle");
        assert!(context.places().placed.iter().all(|placed| placed.host != name), "{layout:?}");
        // Nothing new is encoded there.
        let refused = HostPort::reserve(&world.hosts[1].host, BlockId::from_bytes([4; 32]), 8).await;
        assert_eq!(refused.err(), Some(HostError::Stuck { host: name }));
        drop(go_on);
        while world.hosts[1].host.vitals.is_stuck() {
            tokio::task::yield_now().await;
        }
        HostPort::reserve(&world.hosts[1].host, BlockId::from_bytes([4; 32]), 8).await?;
        ask(&session, question(1), TOKENS).await?.assert_like(&second, "after it went on");
    }
    Ok(())
}

#[tokio::test]
async fn a_host_that_says_it_holds_what_it_lacks_is_believed_once_and_changes_no_token() -> anyhow::Result<()>
{
    let model = model()?;
    for layout in layouts() {
        let [first, second] = healthy(&model, layout, TOKENS).await?;
        let world = World::open(&model, options()).await?;
        let context = context(&world, layout).await?;
        let session = context.session().await?;
        let liar = &world.hosts[1];
        let answer = ask_and(&session, question(0), TOKENS, async { liar.fault.lie() }).await?;
        answer.assert_like(&first, "it lied in the middle of an answer");
        assert_eq!(world.places(), 3, "placed once more with it, and then without it");
        assert!(context.places().placed.iter().all(|placed| placed.host != liar.host()), "{layout:?}");
        ask(&session, question(1), TOKENS).await?.assert_like(&second, "after that");
    }
    Ok(())
}
