//! A host that misbehaves in every way there is: the asker gets a typed error, and the same link works again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use stellate_actors::fanout::FanoutError;
use stellate_actors::link::{Fold, HostLink, LinkError};
use stellate_actors::remote::frames::{
    ATTEND, ATTENDED, Attend, AttendShape, Attended, OPEN, REFUSED, ROUTE, Refusal, Refused, digest, read_ids,
};
use stellate_actors::remote::{DecodeOptions, QuicLink};
use stellate_model::block::BlockId;
use stellate_runtime::transport::{CloseCode, Connection, FrameReceiver, FrameSender};
use tokio::sync::Notify;

use crate::support::{Asked, Asker, HOST, PATIENT, queries, request};

pub(crate) const SHAPE: AttendShape = AttendShape { layers: 16, heads: 32, head_dim: 64 };

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    AnswersLate,
    EndsTheStream,
    ResetsTheStream,
    ClosesTheConnection,
    NamesOtherBlocks,
    NamesAnotherRoute,
    AnswersAnother,
    AnswersShort,
    AnswersLong,
    ClaimsMoreParts,
    LosesTheRoute,
    LosesABlock,
    IsOverloaded,
    SendsAForeignFrame,
    SendsALongerHeader,
    AnswersNoNumber,
    AnswersInfinity,
    AnswersWithInfiniteWeight,
    AnswersWithTheWeightOfNothing,
}

/// What the host does wrong, once, and when it may go on.
#[derive(Debug)]
pub(crate) struct Script {
    fault: Mutex<Fault>,
    go: Notify,
}

/// A node whose host answers each layer with partials full of the layer's number, and does as `script` says.
pub(crate) fn scripted(asker: &Asker) -> (Asked, Arc<Script>) {
    let script = Arc::new(Script { fault: Mutex::new(Fault::None), go: Notify::new() });
    let shared = Arc::clone(&script);
    let node = asker.node("scripted", move |connection: Connection| {
        let script = Arc::clone(&shared);
        async move {
            while let Ok((sender, receiver)) = connection.accept().await {
                tokio::spawn(answer(connection.clone(), sender, receiver, Arc::clone(&script)));
            }
        }
    });
    (node, script)
}

async fn answer(
    connection: Connection,
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
    script: Arc<Script>,
) {
    let mut routes: Vec<Vec<BlockId>> = Vec::new();
    while let Ok(Some(frame)) = receiver.receive().await {
        if frame.kind == ROUTE {
            routes.push(read_ids(frame.payload.as_bytes()).unwrap());
        }
        if frame.kind != ATTEND {
            assert!(frame.kind == OPEN || frame.kind == ROUTE);
            continue;
        }
        let Attend { request, route, layer, tokens, .. } = frame.header().unwrap();
        let fault = std::mem::replace(&mut *script.fault.lock().unwrap(), Fault::None);
        let digest = digest(&routes[route as usize]);
        let mut header = Attended { request, route, part: 0, parts: 1, digest };
        let mut values = vec![layer as f32; SHAPE.partial_bytes(tokens as usize) / 4];
        let refuse = |reason| Refused { request, reason };
        match fault {
            Fault::None => {}
            Fault::AnswersLate => script.go.notified().await,
            Fault::EndsTheStream => return sender.finish(),
            Fault::ResetsTheStream => return sender.reset(9),
            Fault::ClosesTheConnection => return connection.close(CloseCode::Done),
            Fault::NamesOtherBlocks => header.digest[0] ^= 1,
            Fault::NamesAnotherRoute => header.route += 1,
            Fault::AnswersAnother => header.request += 1,
            Fault::AnswersShort => drop(values.pop()),
            Fault::AnswersLong => values.push(0.0),
            Fault::AnswersNoNumber => values[0] = f32::NAN,
            Fault::AnswersInfinity => values[1] = f32::INFINITY,
            // The weights are last.
            Fault::AnswersWithInfiniteWeight => *values.last_mut().unwrap() = f32::INFINITY,
            Fault::AnswersWithTheWeightOfNothing => *values.last_mut().unwrap() = f32::NEG_INFINITY,
            Fault::ClaimsMoreParts => header.parts = 2,
            Fault::LosesTheRoute => drop(sender.send(REFUSED, &refuse(Refusal::NoSuchRoute), &[]).await),
            Fault::LosesABlock => {
                let refused = refuse(Refusal::NoSuchBlock(*routes[route as usize][0].as_bytes()));
                drop(sender.send(REFUSED, &refused, &[]).await);
                continue;
            }
            Fault::IsOverloaded => {
                drop(sender.send(REFUSED, &refuse(Refusal::Overloaded), &[]).await);
                continue;
            }
            Fault::SendsAForeignFrame => drop(sender.send(OPEN, &1u64, &[]).await),
            Fault::SendsALongerHeader => drop(sender.send(ATTENDED, &(header, 0u8), &[]).await),
        }
        if sender.send(ATTENDED, &header, &[bytemuck::cast_slice(&values)]).await.is_err() {
            return;
        }
        receiver.recycle(frame.payload);
    }
}

fn ask(link: &mut QuicLink, blocks: &Arc<[BlockId]>, layer: usize) -> Result<f32, LinkError> {
    link.post(request(blocks, layer, Fold::ByHost, queries(SHAPE, 1, layer)))?;
    let reply = link.wait()?;
    let partial = &reply.partials[0];
    assert!(partial.out.iter().chain(&partial.lse).all(|value| *value == partial.lse[0]));
    Ok(partial.lse[0])
}

#[test]
fn every_fault_is_a_typed_error_and_the_link_works_again() {
    let asker = Asker::new();
    let (node, script) = scripted(&asker);
    let blocks: Arc<[BlockId]> = [BlockId::from_bytes([1; 32]), BlockId::from_bytes([2; 32])].into();
    let channel = asker.channel(&node, HOST, SHAPE, PATIENT);
    let mut link = channel.link();
    for (fault, cause, is_stream_lost) in [
        (Fault::None, "", false),
        (Fault::EndsTheStream, "ended the stream", true),
        (Fault::ResetsTheStream, "gave this stream up", true),
        (Fault::ClosesTheConnection, "closed the connection", true),
        (Fault::NamesOtherBlocks, "other blocks", true),
        (Fault::NamesAnotherRoute, "other blocks", true),
        (Fault::AnswersAnother, "not asked", true),
        (Fault::AnswersShort, "another shape", true),
        (Fault::AnswersLong, "another shape", true),
        (Fault::ClaimsMoreParts, "another shape", true),
        (Fault::LosesTheRoute, "list of blocks", true),
        (Fault::LosesABlock, "does not hold", false),
        (Fault::IsOverloaded, "queue is full", false),
        (Fault::SendsAForeignFrame, "kind", true),
        (Fault::SendsALongerHeader, "malformed", true),
    ] {
        let streams = channel.stats().streams();
        *script.fault.lock().unwrap() = fault;
        match (fault, ask(&mut link, &blocks, 3)) {
            (Fault::None, answer) => assert_eq!(answer, Ok(3.0)),
            (Fault::LosesABlock, answer) => {
                assert_eq!(answer, Err(LinkError::NoSuchBlock { host: HOST, block: blocks[0] }));
            }
            (_, Err(LinkError::Interrupted { host, cause: told })) => {
                assert!(host == HOST && told.contains(cause), "{fault:?}: {told}");
            }
            (_, answer) => panic!("{fault:?}: {answer:?}"),
        }
        assert_eq!(ask(&mut link, &blocks, 5), Ok(5.0), "after {fault:?}");
        let opened = channel.stats().streams() - streams;
        assert_eq!(opened, u64::from(is_stream_lost || fault == Fault::None), "{fault:?}");
    }
}

#[test]
fn numbers_that_are_no_attention_are_an_error_that_names_the_host_and_are_never_merged() {
    let asker = Asker::new();
    let (node, script) = scripted(&asker);
    let blocks: Arc<[BlockId]> = [BlockId::from_bytes([1; 32])].into();
    let channel = asker.channel(&node, HOST, SHAPE, PATIENT);
    let mut link = channel.link();
    for fault in [
        Fault::AnswersNoNumber,
        Fault::AnswersInfinity,
        Fault::AnswersWithInfiniteWeight,
        Fault::AnswersWithTheWeightOfNothing,
    ] {
        *script.fault.lock().unwrap() = fault;
        let error = ask(&mut link, &blocks, 3).unwrap_err();
        assert_eq!(error, LinkError::NotNumbers { host: HOST }, "{fault:?}");
        let fault = FanoutError::from(error);
        assert_eq!((fault.silent_host(), fault.is_mendable()), (Some(HOST), true), "it is asked no more");
        assert_eq!(ask(&mut link, &blocks, 5), Ok(5.0));
    }
}

#[test]
fn a_late_reply_is_given_up_and_never_taken_for_another_requests() {
    let asker = Asker::new();
    let (node, script) = scripted(&asker);
    let blocks: Arc<[BlockId]> = [BlockId::from_bytes([1; 32])].into();
    let options = DecodeOptions { reply_timeout: Duration::from_millis(300), ..DecodeOptions::default() };
    let channel = asker.channel(&node, HOST, SHAPE, options);
    let (mut link, mut other) = (channel.link(), channel.link());
    // A slow machine may take longer than this test waits for an answer that does come.
    let patiently = |link: &mut QuicLink, layer| loop {
        if let Ok(answer) = ask(link, &blocks, layer) {
            return answer;
        }
    };
    assert_eq!(patiently(&mut link, 1), 1.0);
    for layer in 2..5 {
        *script.fault.lock().unwrap() = Fault::AnswersLate;
        let late = ask(&mut link, &blocks, layer).unwrap_err();
        assert!(late.to_string().contains("no reply within 300 ms"), "{late}");
        script.go.notify_one();
        assert_eq!(patiently(&mut link, layer + 5), (layer + 5) as f32);
        assert_eq!(patiently(&mut other, layer + 6), (layer + 6) as f32);
    }
}

#[test]
fn a_node_that_is_not_there_is_an_interruption_until_it_is() {
    let asker = Asker::new();
    let (node, _script) = scripted(&asker);
    let blocks: Arc<[BlockId]> = [BlockId::from_bytes([1; 32])].into();
    let options = DecodeOptions { send_timeout: Duration::from_secs(2), ..DecodeOptions::default() };
    let channel = asker.channel(&node, HOST, SHAPE, options);
    let mut link = channel.link();
    drop(node);
    assert!(matches!(ask(&mut link, &blocks, 1), Err(LinkError::Interrupted { host: HOST, .. })));
    assert!(matches!(ask(&mut link, &blocks, 1), Err(LinkError::Interrupted { host: HOST, .. })));
}
