//! Requests that take their time: encodings, turns and moves of blocks, with events while they go on and an end when the
//! client gives up.

use stellate_runtime::transport::{Payload, StreamError};
use tokio::sync::{mpsc, watch};

use super::convert;
use super::fault::Fault;
use super::server::{Api, Served, given_up, lost_or_reset};
use super::wire::{Event, LOGITS_BYTES, Request};
use crate::error::{AskError, EncodeError};
use crate::handle::Context;
use crate::progress::EncodeProgress;
use crate::turn::{AskOptions, Turn, TurnEvent, TurnReport};

/// The request's own end, within the stream's.
type Answered = Result<Result<(), Fault>, StreamError>;

/// Events of moving blocks that may wait for a slow watcher; beyond, the oldest news is that there is newer.
const QUEUE_MOVES: usize = 256;

/// Unwraps a request's own result, or answers with its fault.
macro_rules! or_fault {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(fault) => return Ok(Err(fault)),
        }
    };
}

/// Encodes, appends, opens a session, or answers a question.
pub(super) async fn run(call: &mut Served, api: &Api, request: Request, payload: &Payload) -> Answered {
    let _running = or_fault!(api.begin());
    let (node, shelf) = (&api.0.node, &api.0.shelf);
    match request {
        Request::Encode { source, layout } => {
            or_fault!(shelf.has_room());
            let source = or_fault!(convert::source(source, payload));
            let (told, progress) = watch::channel(EncodeProgress::default());
            let work = node.encode_with(source, layout.into(), move |state| _ = told.send_replace(state));
            encode(call, api, work, progress).await
        }
        Request::Append { context, addition } => {
            or_fault!(shelf.has_room());
            let context = or_fault!(shelf.context(context));
            let addition = or_fault!(convert::addition(addition, payload));
            let (told, progress) = watch::channel(EncodeProgress::default());
            let work = context.append_with(addition, move |state| _ = told.send_replace(state));
            encode(call, api, work, progress).await
        }
        Request::OpenSession(id) => {
            let context = or_fault!(shelf.context(id));
            let session = or_fault!(context.session().await.map_err(|error| Fault::from(&error)));
            let name = session.id();
            shelf.add_session(id, session);
            call.event(&Event::Session(name)).await.map(Ok)
        }
        Request::Ask { session, input, options } => {
            let _asking = api.0.gates.of(session).read_owned().await;
            let (_, session) = or_fault!(api.session(session).await);
            let input = or_fault!(convert::input(input, payload));
            let turn = session.ask(input, options.into());
            // Whoever closes the session meanwhile ends the turn.
            drop(session);
            follow(call, turn, None).await
        }
        Request::AskTurn { session, turn, received, input, options } => {
            let _asking = api.0.gates.of(session).read_owned().await;
            let (context, open, settled) = or_fault!(api.session_with_turns(session).await);
            let input = or_fault!(convert::input(input, payload));
            let options: AskOptions = options.into();
            let turns = or_fault!(open.turns().await.map_err(|error| Fault::from(&error)));
            let known = usize::try_from(turn).ok().filter(|turn| *turn <= turns.len());
            let known = or_fault!(known.ok_or_else(|| Fault::no_such_turn(session, turn, turns.len())));
            if known < turns.len() {
                if settled.is_some_and(|settled| turn >= settled) {
                    // It is being written down: it is told once it is certain to stay.
                    return Ok(Err(Fault::from(&AskError::Busy)));
                }
                return tell_again(
                    call,
                    or_fault!(api.replay(context, turns, known, &input, &options)),
                    received,
                )
                .await;
            }
            let turn = open.ask(input, options);
            drop(open);
            follow(call, turn, Some(received)).await
        }
        _ => unreachable!("the server sends work here and nothing else"),
    }
}

/// Tells how far `work` is until it has ended. The context stays on the shelf.
async fn encode(
    call: &mut Served,
    api: &Api,
    work: impl Future<Output = Result<Context, EncodeError>>,
    mut progress: watch::Receiver<EncodeProgress>,
) -> Answered {
    tokio::pin!(work);
    let encoded = loop {
        let told = tokio::select! {
            biased;
            encoded = &mut work => break encoded,
            // Dropping the work cancels it, and nobody is left to tell.
            () = given_up(&mut call.receiver) => return Ok(Err(Fault::from(&EncodeError::Cancelled))),
            Ok(()) = progress.changed() => *progress.borrow_and_update(),
        };
        call.event(&Event::Progress(told.into())).await?;
    };
    let context = or_fault!(encoded.map_err(|error| Fault::from(&error)));
    api.0.shelf.add_context(context.clone());
    call.context(&context).await
}

/// Sends a turn's events until its last; of a turn that can be asked again elsewhere, only tokens behind the first `received`,
/// and it never was asked if the connection is lost.
async fn follow(call: &mut Served, mut turn: Turn, received: Option<u64>) -> Answered {
    let answered = tell(call, &mut turn, received).await;
    // What is sent may be the first to find the connection gone.
    if matches!(answered, Err(StreamError::Closed(_))) && received.is_some() {
        turn.abandon();
    }
    answered
}

async fn tell(call: &mut Served, turn: &mut Turn, received: Option<u64>) -> Answered {
    let cancel = turn.cancel_token();
    let mut left = received.unwrap_or(0);
    loop {
        let event = tokio::select! {
            biased;
            event = turn.next() => event,
            is_lost = lost_or_reset(&mut call.receiver), if !cancel.is_cancelled() => {
                if is_lost && received.is_some() {
                    turn.abandon();
                }
                // What was said so far is still told to a client that listens.
                cancel.cancel();
                continue;
            }
        };
        match event {
            Some(Ok(TurnEvent::Token(_))) if left > 0 => left -= 1,
            Some(Ok(TurnEvent::Token(token))) => {
                let (head, logits) = convert::token_parts(token);
                call.send(&Event::Token(head), &[&logits]).await?;
            }
            Some(Ok(TurnEvent::Finished(report))) => return finished(call, *report).await,
            Some(Err(error)) => return Ok(Err(Fault::from(&error))),
            None => return Ok(Err(Fault::from(&AskError::Stopped))),
        }
    }
}

/// Sends the events of a turn that is logged, as [`follow`] does.
async fn tell_again(call: &mut Served, events: Vec<TurnEvent>, received: u64) -> Answered {
    let mut left = received;
    for event in events {
        match event {
            TurnEvent::Token(_) if left > 0 => left -= 1,
            TurnEvent::Token(token) => {
                let (head, logits) = convert::token_parts(token);
                call.send(&Event::Token(head), &[&logits]).await?;
            }
            TurnEvent::Finished(report) => return finished(call, *report).await,
        }
    }
    Ok(Err(Fault::from(&AskError::Stopped)))
}

async fn finished(call: &mut Served, report: TurnReport) -> Answered {
    let (head, body, query_logits) = or_fault!(convert::report_parts(report));
    for piece in query_logits.iter().flat_map(|logits| logits.chunks(LOGITS_BYTES / size_of::<f32>())) {
        call.send(&Event::QueryLogits, &[&convert::float_bytes(piece)]).await?;
    }
    call.send(&Event::Finished(head), &[&body]).await.map(Ok)
}

/// Tells of blocks that move. A client that gives up stops watching; the moves go on.
pub(super) async fn watch_moves(call: &mut Served, api: &Api, request: Request) -> Answered {
    let (events, mut happened) = mpsc::channel(QUEUE_MOVES);
    let cluster = api.0.cluster.clone();
    let moving = tokio::spawn(async move {
        match request {
            Request::Drain(request) => cluster.drain(request, events).await,
            _ => cluster.rebalance(events).await,
        }
    });
    while let Some(event) = tokio::select! {
        event = happened.recv() => event,
        () = given_up(&mut call.receiver) => return Ok(Ok(())),
    } {
        call.event(&Event::Moved(event)).await?;
    }
    match moving.await {
        Ok(Ok(())) => call.event(&Event::Done).await.map(Ok),
        Ok(Err(error)) => Ok(Err(Fault::from(&error))),
        Err(error) => Ok(Err(Fault::new(super::ErrorCode::Failed, error))),
    }
}
