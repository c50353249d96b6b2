//! A node over the network beside the same node in its own process: real QUIC and certificates on loopback.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use stellate_actors::api::{Client, DrainRequest, ErrorCode, MoveKind, NodeState, RemoteError, peer};
use stellate_actors::{
    Addition, AskError, AskOptions, ContextError, ContextSource, EncodeError, FinishReason, Layout, Node,
    NodeOptions, OpenError, QueryInput, Session, SessionError, TurnEvent, TurnReport,
};
use stellate_runtime::transport::{CertificateFault, CloseCode, Closed, ConnectionClass, FrameKind, Target};
use support::{Authority, FACTS, Served, question};

/// One turn with all its tokens' logits.
async fn answer(session: &Session, query: &str) -> (TurnReport, Vec<f32>) {
    let options = AskOptions { logits: true, top_logprobs: 3, max_tokens: 16, ..AskOptions::default() };
    let mut turn = session.ask(query, options);
    let mut logits = Vec::new();
    loop {
        match turn.next().await.expect("a turn ends with its report").unwrap() {
            TurnEvent::Token(token) => {
                assert_eq!(token.top.len(), 3);
                logits.extend_from_slice(&token.logits.unwrap());
            }
            TurnEvent::Finished(report) => return (*report, logits),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_logits_are_the_same_through_the_network_as_within_the_process() {
    let served = Served::new().await;
    let there = served.client().await.node();
    let mut told: Vec<Vec<(TurnReport, Vec<f32>)>> = Vec::new();
    // Kept to the end, so that the second time finds the first time's blocks where they lie: over other hosts the parts
    // of a sum would be added in another order, which is another last bit.
    let mut kept = Vec::new();
    for node in [&served.node, &there] {
        for layout in [Layout::star(32, 32), Layout::exact(48)] {
            let context = node.encode(ContextSource::Document(FACTS.to_owned()), layout).await.unwrap();
            let session = context.session().await.unwrap();
            let mut turns = Vec::new();
            for key in ["amber-falcon", "misty-otter"] {
                turns.push(answer(&session, &question(key)).await);
            }
            assert!(turns[0].0.text.contains("4816302") && turns[1].0.text.contains("7659321"));
            let records = session.turns().await.unwrap();
            assert_eq!(records.len(), 2);
            assert_eq!(records[1].ids, turns[1].0.ids);
            assert_eq!(context.manifest().tokens(), turns[0].0.usage.context_tokens);
            told.push(turns);
            kept.push((context, session));
        }
    }
    let (here, there) = told.split_at(2);
    for ((here, here_logits), (there, there_logits)) in here.iter().flatten().zip(there.iter().flatten()) {
        assert_eq!((&here.text, &here.ids, &here.query_ids), (&there.text, &there.ids, &there.query_ids));
        assert_eq!((here.usage, here.finish), (there.usage, there.finish));
        assert_eq!(here.query_logits, there.query_logits, "logits of the question, bit for bit");
        assert_eq!(here_logits, there_logits, "logits of the answer, bit for bit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_process_lists_takes_up_and_forgets_as_one_of_this_process_does() {
    let served = Served::new().await;
    let node = served.client().await.node();
    let source = ContextSource::Document(FACTS.to_owned());
    let context = node.encode(source, Layout::star(32, 32)).await.unwrap().id();
    let session = node.context(context).await.unwrap().session().await.unwrap().id();
    assert_eq!(node.contexts().await.unwrap(), [context]);
    let sessions = node.sessions().await.unwrap();
    assert_eq!(
        sessions.iter().map(|record| (record.id, record.context)).collect::<Vec<_>>(),
        [(session, context)]
    );
    let taken_up = node.session(session).await.unwrap();
    let asked = taken_up.ask(question("misty-otter"), AskOptions::default()).finish().await.unwrap();
    assert!(asked.text.contains("7659321"), "{}", asked.text);
    node.remove_session(session).await.unwrap();
    let refused = node.session(session).await.unwrap_err();
    assert!(matches!(refused, SessionError::Remote(_)), "{refused}");
    node.remove_context(context).await.unwrap();
    let refused = node.context(context).await.unwrap_err();
    assert!(matches!(refused, ContextError::Remote(_)), "{refused}");
    assert!(node.contexts().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_and_sessions_are_kept_for_whoever_connects_next() {
    let served = Served::new().await;
    let client = served.client().await;
    let states = Arc::new(Mutex::new(Vec::new()));
    let told = states.clone();
    let source = ContextSource::Document(FACTS.to_owned());
    let context =
        client.node().encode_with(source, Layout::star(16, 16), move |s| told.lock().unwrap().push(s)).await;
    let context = context.unwrap();
    let last = *states.lock().unwrap().last().unwrap();
    assert_eq!((last, last.tokens_done), (context.progress(), context.manifest().tokens()));
    let longer = context.append(Addition::Text("The sky is blue.".to_owned())).await.unwrap();
    assert!(longer.progress().blocks_reused > 0 && longer.manifest().tokens() > context.manifest().tokens());
    assert!(longer.kv_bytes() > 0 && longer.id() != context.id());
    let session = context.session().await.unwrap();
    let asked = session.ask(question("misty-otter"), AskOptions::default()).finish().await.unwrap();
    let (context, session) = (context.id(), session.id());
    client.disconnect().await;

    let client = served.client().await;
    let contexts = client.contexts().await.unwrap();
    assert_eq!(contexts.iter().map(|info| info.id).collect::<Vec<_>>(), [context, longer.id()]);
    assert_eq!((contexts[0].sessions, contexts[0].attention.as_str()), (1, "star"));
    let sessions = client.sessions().await.unwrap();
    assert_eq!((sessions[0].id, sessions[0].context, sessions[0].turns), (session, context, 1));
    let again = client.context(context).await.unwrap();
    assert_eq!(again.manifest().tokens() as u64, contexts[0].tokens);
    let turns = client.turns(session).await.unwrap();
    assert!(turns[0].query.contains("misty-otter") && turns[0].text.contains("7659321"), "{turns:?}");
    assert_eq!(turns[0].ids, asked.ids);
    let go_on = client.session(session).await.unwrap();
    let second = go_on.ask(question("amber-falcon"), AskOptions::default()).finish().await.unwrap();
    assert!(second.text.contains("4816302") && second.usage.session_tokens > 0);

    let refused = client.remove_context(context).await.unwrap_err();
    assert!(matches!(&refused, RemoteError::Refused { code: ErrorCode::Refused, .. }), "{refused}");
    assert!(refused.to_string().contains(&session.to_string()), "{refused}");
    client.close_session(session).await.unwrap();
    client.remove_context(context).await.unwrap();
    let gone = client.context(context).await.unwrap_err();
    assert!(matches!(gone, RemoteError::Refused { code: ErrorCode::NotFound, .. }), "{gone}");
    let closed = go_on.ask("anything", AskOptions::default()).finish().await.unwrap_err();
    assert!(closed.to_string().contains("session ls"), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_turn_tells_what_was_said_and_the_session_can_be_asked_again() {
    let served = Served::new().await;
    let node = served.client().await.node();
    let context = node.encode(ContextSource::Document(FACTS.to_owned()), Layout::star(64, 64)).await.unwrap();
    let session = context.session().await.unwrap();
    let endless = AskOptions { max_tokens: 20_000, ignore_eos: true, ..AskOptions::default() };
    let mut turn = session.ask(question("amber-falcon"), endless.clone());
    assert!(matches!(turn.next().await, Some(Ok(TurnEvent::Token(_)))));
    turn.cancel();
    let report = turn.finish().await.unwrap();
    assert_eq!(report.finish, FinishReason::Cancelled);
    assert!(!report.ids.is_empty() && report.ids.len() < 20_000);

    let mut dropped = session.ask(question("amber-falcon"), endless);
    assert!(matches!(dropped.next().await, Some(Ok(TurnEvent::Token(_)))));
    let busy = session.ask("x", AskOptions::default()).finish().await.unwrap_err();
    assert!(matches!(busy, AskError::Busy), "{busy}");
    drop(dropped);
    until(|| served.api.running() == 0).await;
    let next = session.ask(question("misty-otter"), AskOptions::default()).finish().await.unwrap();
    assert!(next.usage.generated_tokens > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoding_that_nobody_waits_for_is_cancelled_and_leaves_nothing() {
    let options = NodeOptions { capacity_bytes: 1 << 30, chunk_tokens: 16, ..NodeOptions::default() };
    let served = Served::with(options).await;
    let client = served.client().await;
    let (told, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let source = ContextSource::Document(FACTS.repeat(300));
    let node = client.node();
    let encoding =
        node.encode_with(source, Layout::exact(256), move |state| _ = told.send(state.tokens_done));
    tokio::select! {
        done = encoding => panic!("it has ended: {done:?}"),
        // Some of it is done; the rest is dropped with the future.
        () = async { while begun.recv().await.unwrap() == 0 {} } => {}
    }
    until(|| served.api.running() == 0).await;
    assert!(client.contexts().await.unwrap().is_empty());
    until(|| served.node.stores().all(|(_, store)| store.used_bytes() == 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_connection_is_lost_goes_on_over_another_and_is_logged_once() {
    let served = Served::new().await;
    let node = served.client().await.node();
    let context = node.encode(ContextSource::Document(FACTS.to_owned()), Layout::star(64, 64)).await.unwrap();
    let long = AskOptions { max_tokens: 300, ignore_eos: true, guess_tokens: 0, ..AskOptions::default() };
    let quiet = context.session().await.unwrap();
    let expected = quiet.ask(question("amber-falcon"), long.clone()).finish().await.unwrap();
    let session = context.session().await.unwrap();
    let mut turn = session.ask(question("amber-falcon"), long);
    let mut ids = Vec::new();
    let report = loop {
        match turn.next().await.unwrap().unwrap() {
            TurnEvent::Token(token) => ids.push(token.id),
            TurnEvent::Finished(report) => break report,
        }
        if ids.len() == 2 {
            served.endpoint.connections().iter().for_each(|connection| connection.close(CloseCode::Done));
        }
    };
    assert_eq!((ids, &report.ids), (expected.ids.clone(), &expected.ids), "neither a gap nor a token twice");
    until(|| served.api.running() == 0).await;
    assert_eq!(session.turns().await.unwrap().len(), 1);
    let next = session.ask(question("misty-otter"), AskOptions::default()).finish().await.unwrap();
    assert!(next.usage.generated_tokens > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_the_same_errors_as_within_the_process() {
    let options = NodeOptions { capacity_bytes: 1 << 20, max_sessions: 1, ..NodeOptions::default() };
    let served = Served::with(options).await;
    let node = served.client().await.node();
    let text = |text: &str| ContextSource::Document(text.to_owned());
    let layout = node.encode(text(FACTS), Layout::star(0, 0)).await.unwrap_err();
    assert!(
        matches!(layout, EncodeError::Remote(RemoteError::Refused { code: ErrorCode::Usage, .. })),
        "{layout:?}"
    );
    let full = node.encode(text(&FACTS.repeat(100)), Layout::star(256, 64)).await.unwrap_err();
    let here = served.node.encode(text(&FACTS.repeat(100)), Layout::star(256, 64)).await.unwrap_err();
    let (EncodeError::Full(full), EncodeError::Full(here)) = (full, here) else { panic!("neither fits") };
    assert_eq!(full, here, "the same numbers");

    let context = node.encode(text(FACTS), Layout::star(64, 64)).await.unwrap();
    let session = context.session().await.unwrap();
    let many = context.session().await.unwrap_err();
    assert!(matches!(many, SessionError::TooMany { max_sessions: 1 }), "{many:?}");
    let nothing = AskOptions { max_tokens: 0, ..AskOptions::default() };
    let error = session.ask("x", nothing).finish().await.unwrap_err();
    assert!(matches!(error, AskError::NoTokens), "{error:?}");
    let error =
        session.ask(QueryInput::Ids(vec![u32::MAX]), AskOptions::default()).finish().await.unwrap_err();
    assert!(
        matches!(&error, AskError::Remote(RemoteError::Refused { code: ErrorCode::Failed, .. })),
        "{error:?}"
    );
    session.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_ends_what_runs_and_takes_nothing_new() {
    let served = Served::new().await;
    let client = served.client().await;
    let context =
        client.node().encode(ContextSource::Document(FACTS.to_owned()), Layout::star(64, 64)).await.unwrap();
    let session = context.session().await.unwrap();
    let mut turn =
        session.ask(question("amber-falcon"), AskOptions { max_tokens: 8, ..AskOptions::default() });
    assert!(turn.next().await.is_some());
    let api = served.api.clone();
    let leaving = tokio::spawn(async move { api.finish().await });
    assert!(turn.finish().await.is_ok(), "what runs goes on to its end");
    leaving.await.unwrap();
    assert!(client.status().await.unwrap().leaving);
    let refused = session.ask("x", AskOptions::default()).finish().await.unwrap_err();
    let code = match &refused {
        AskError::Remote(RemoteError::Refused { code, .. }) => *code,
        error => panic!("{error:?}"),
    };
    assert_eq!(code, ErrorCode::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_ask_of_the_cluster_and_watch_what_moves() {
    let served = Served::new().await;
    let client = served.client().await;
    let status = client.status().await.unwrap();
    assert_eq!((status.about.model.as_str(), status.nodes.len()), ("demo", 1));
    assert_eq!(status.about.vocab_tokens, served.node.decoder().config().vocab_size as u64);
    assert_eq!(client.set_cordon("server", true).await.unwrap().state, NodeState::Cordoned);
    let unknown = client.set_cordon("nobody", true).await.unwrap_err();
    assert!(unknown.to_string().contains("nobody"), "{unknown}");
    let request = DrainRequest { node: "server".to_owned(), deadline_s: Some(1), dry_run: false };
    let mut moves = client.drain(request).await.unwrap();
    let first = moves.next().await.unwrap().unwrap();
    assert_eq!(first.kind, MoveKind::Complete { moved: 1, recomputed: 0 });
    assert!(moves.next().await.unwrap().is_none());
    let refused = client.remove_node("server", false).await.unwrap_err();
    assert!(matches!(refused, RemoteError::Refused { code: ErrorCode::Refused, .. }), "{refused:?}");
    assert_eq!(client.create_token(Duration::from_secs(60), 3).await.unwrap().uses, 3);
    assert_eq!(client.tokens().await.unwrap()[0].id, "id");
    client.revoke_token("id").await.unwrap();
    let unknown = client.revoke_token("other").await.unwrap_err();
    assert!(matches!(&unknown, RemoteError::Refused { code: ErrorCode::NotFound, .. }), "{unknown}");
    client.revoke_admin("alice").await.unwrap();
    assert_eq!(client.doctor().await.unwrap().len(), 1);
    assert!(client.rebalance_plan().await.unwrap().moves.is_empty());
    assert!(client.rebalance().await.unwrap().next().await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_answered_what_nodes_look_at_and_refused_what_administrators_ask() {
    let served = Served::new().await;
    let client = served.client_of(served.authority.node("other")).await;
    client.about().await.unwrap();
    let (endpoint, _network) = served.raw_of(served.authority.node("third"));
    let connection = endpoint.dial(Target::seed(served.address()), ConnectionClass::Admin).await.unwrap();
    assert_eq!(peer::about(&connection).await.unwrap().model, "demo");
    assert_eq!(peer::doctor(&connection).await.unwrap().len(), 1);
    peer::sink(&connection, &[0; 1000]).await.unwrap();
    let refusals = [
        client.create_token(Duration::from_secs(60), 1).await.unwrap_err(),
        client.remove_node("server", true).await.unwrap_err(),
        client.set_cordon("server", true).await.unwrap_err(),
        client.status().await.unwrap_err(),
        client.contexts().await.unwrap_err(),
        client.doctor().await.unwrap_err(),
    ];
    for refused in refusals {
        assert!(matches!(&refused, RemoteError::Refused { code: ErrorCode::NotAllowed, .. }), "{refused}");
        assert!(refused.is_identity() && refused.to_string().contains("stellate admin create"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_cluster_is_refused() {
    let served = Served::new().await;
    let stranger = Authority::new().admin("mallory");
    let error = Client::connect(served.address(), stranger.clone()).await.unwrap_err();
    assert!(error.is_identity(), "{error:?}");
    assert_eq!(error.certificate_fault(), Some(CertificateFault::OtherCluster));
    let error = Node::connect(served.address(), stranger).await.unwrap_err();
    assert!(matches!(error, OpenError::Remote(error) if error.is_identity()));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_frames_end_their_own_connection_and_no_other() {
    let served = Served::new().await;
    let client = served.client().await;
    let request = FrameKind(96);
    for case in 0..5 {
        let (endpoint, _network) = served.raw();
        let connection = endpoint.dial(Target::seed(served.address()), ConnectionClass::Admin).await.unwrap();
        let (mut sender, _receiver) = connection.open().await.unwrap();
        match case {
            // A kind that has no place, a header that is none, one that names a list without end.
            0 => sender.send(FrameKind(97), &7u32, &[]).await.unwrap(),
            1 => sender.send(request, &0xffu8, &[]).await.unwrap(),
            2 => sender.send(request, &(15u32, u64::MAX), &[]).await.unwrap(),
            // No frame, and one that is cut short.
            3 => _ = sender.into_inner().write_all(b"GET / HTTP/1.1\r\n\r\n").await,
            _ => {
                let mut stream = sender.into_inner();
                stream.write_all(b"STLF\x01\0\x60\0\x04\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0").await.unwrap();
                stream.finish().unwrap();
            }
        }
        let reason = connection.closed().await;
        assert_eq!(reason, Closed::ByPeer { code: CloseCode::ProtocolViolation }, "case {case}");
    }
    assert!(client.about().await.is_ok(), "others go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_that_are_not_what_the_request_says_are_refused_by_name() {
    let served = Served::new().await;
    let client = served.client().await;
    // What no client of ours would send: tokens cut in half, text that is none.
    let (endpoint, _network) = served.raw();
    let connection = endpoint.dial(Target::seed(served.address()), ConnectionClass::Admin).await.unwrap();
    // `Encode { source: Ids, layout: star(1, 0) }` and `Encode { source: Text, … }` in the codec's own bytes.
    for (source, payload) in [(2u32, &b"abc"[..]), (1, &b"\xff\xfe"[..])] {
        let (mut sender, mut receiver) = connection.open().await.unwrap();
        sender.send(FrameKind(96), &(2u32, source, 1u64, 1u8, 0u64), &[payload]).await.unwrap();
        let frame = receiver.expect().await.unwrap();
        let text = String::from_utf8_lossy(frame.header_bytes()).into_owned();
        assert!(text.contains("UTF-8") || text.contains("whole values"), "{text}");
    }
    assert!(client.contexts().await.unwrap().is_empty());
}

/// Waits for something that is told nowhere.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}
