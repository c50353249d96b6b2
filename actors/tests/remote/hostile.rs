//! A member that sends what no member sends, on decode and on bulk streams: each stream ends alone, the node's store stays as it
//! was, and honest members are answered as before.
#![allow(clippy::print_stdout, reason = "seeds and figures are told")]

use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stellate_actors::KvFormat;
use stellate_actors::link::{Fold, HostLink, LinkError};
use stellate_actors::remote::frames::{
    ATTEND, ATTENDED, Attend, Attended, BlockHead, FETCH, Fetch, NO_TRANSFER, OPEN, Open, PIECE, PUT, Piece,
    Put, REFUSED, ROUTE, Refused, Route, WireFold, write_ids,
};
use stellate_model::block::BlockId;
use stellate_runtime::transport::{
    Connection, ConnectionClass, Frame, FrameKind, FrameLimits, FrameReceiver, Header, Target, WIRE_VERSION,
    encode_head,
};

use crate::log::Log;
use crate::support::{Asked, Asker, HOST, Model, PATIENT, queries, real_node, request};

/// Fixed, so that a failure is the same again.
const SEED: u64 = 0x5717_e11a_7e00_0007;

fn dial(asker: &Asker, node: &Asked, class: ConnectionClass) -> Connection {
    let target = Target::seed(node.endpoint.local_address().unwrap());
    let endpoint = Arc::clone(&asker.endpoint);
    let dialling = asker.network.handle().spawn(async move { endpoint.dial(target, class).await });
    asker.runtime.block_on(dialling).unwrap().unwrap()
}

fn frame<T: Header>(kind: FrameKind, header: &T, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_head(WIRE_VERSION, kind, header, payload.len(), &FrameLimits::default(), &mut bytes).unwrap();
    bytes.extend_from_slice(payload);
    bytes
}

/// Sends `bytes` as a stream of their own and ends it. Gives the frames that came back until its end.
async fn converse(connection: &Connection, bytes: &[u8]) -> Vec<Frame> {
    let (sender, receiver) = connection.open().await.unwrap();
    let mut send = sender.into_inner();
    // A peer that has seen enough reads no more.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    read_all(receiver).await
}

async fn read_all(mut receiver: FrameReceiver) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = receiver.receive().await {
        frames.push(frame);
    }
    frames
}

/// Sends `bytes` and takes so many frames that answer them. To end the stream is to want no more.
async fn ask(connection: &Connection, bytes: &[u8], answers: usize) -> Vec<Frame> {
    let (sender, mut receiver) = connection.open().await.unwrap();
    let mut send = sender.into_inner();
    send.write_all(bytes).await.unwrap();
    let mut frames = Vec::new();
    while frames.len() < answers {
        frames.push(receiver.expect().await.unwrap());
    }
    frames
}

/// Changes some bytes, cuts some off, puts some in.
fn mangle(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..5) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random_range(0..bytes.len().min(200));
        match rng.random_range(0..4) {
            0 => bytes[at] = rng.next_u32() as u8,
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, rng.next_u32() as u8),
        }
    }
}

fn attend(model: &Model, number: u64) -> Vec<u8> {
    let header = Attend { request: number, route: 0, layer: 0, tokens: 1, fold: WireFold::Apart };
    frame(ATTEND, &header, bytemuck::cast_slice(&queries(model.shape(), 1, 3)))
}

#[test]
fn mangled_decode_streams_end_alone_and_others_are_answered() {
    println!("seed {SEED:#x}");
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let asker = Asker::new();
    let model = Model::new(KvFormat::Bf16);
    let host = model.encoded_host(&asker);
    let node = real_node(&asker, "asked", &model, &host);
    let used = host.budget.used_bytes();
    let connection = dial(&asker, &node, ConnectionClass::Decode);
    let open = frame(OPEN, &Open { host: HOST.0 }, &[]);
    let route = frame(ROUTE, &Route { route: 0 }, &write_ids(&model.blocks));
    let honest = [open, route, attend(&model, 1), attend(&model, 2)].concat();
    asker.runtime.block_on(async {
        // A request said twice is answered twice: replayed, it changes nothing.
        let twice = [&honest[..], &attend(&model, 2)].concat();
        let answers = ask(&connection, &twice, 3 * model.blocks.len()).await;
        assert!(answers.iter().all(|answer| answer.kind == ATTENDED));
        for _ in 0..400 {
            let mut bytes = honest.clone();
            mangle(&mut rng, &mut bytes);
            for answer in converse(&connection, &bytes).await {
                assert!(answer.kind == REFUSED || answer.payload.len() == model.shape().partial_bytes(1));
            }
        }
        assert!(connection.is_open(), "streams end, the connection goes on");
        ask(&connection, &honest, 2 * model.blocks.len()).await;
    });
    assert_eq!(host.budget.used_bytes(), used);
    let mut link = asker.channel(&node, HOST, model.shape(), PATIENT).link();
    let blocks: Arc<[BlockId]> = model.blocks.clone().into();
    link.post(request(&blocks, 0, Fold::ByHost, queries(model.shape(), 2, 1))).unwrap();
    assert_eq!(link.wait().unwrap().partials.len(), 1);
}

#[test]
fn a_member_that_breaks_the_protocol_is_named_in_the_log_and_cannot_fill_it() {
    let log = Log::start();
    let asker = Asker::new();
    let model = Model::new(KvFormat::F32);
    let host = asker.runtime.block_on(model.host(HOST));
    let me = asker.endpoint.credentials().id().short();
    for (class, stream) in [(ConnectionClass::Decode, "decode"), (ConnectionClass::Bulk, "bulk")] {
        let node = real_node(&asker, stream, &model, &host);
        let connection = dial(&asker, &node, class);
        asker.runtime.block_on(async {
            for _ in 0..100 {
                converse(&connection, b"no frame of any kind").await;
            }
        });
        let lines = log.lines_with(&[" WARN ", "broke the protocol", &me, &format!("stream=\"{stream}\"")]);
        // Twenty in ten seconds, which may pass once or twice meanwhile.
        assert!((20..=60).contains(&lines), "{lines} lines for 100 {stream} streams");
    }
}

#[test]
fn claims_beyond_the_bounds_of_a_decode_stream_are_refused_before_anything_is_set_aside() {
    let asker = Asker::new();
    let model = Model::new(KvFormat::F32);
    let host = asker.runtime.block_on(model.host(HOST));
    let node = real_node(&asker, "asked", &model, &host);
    let connection = dial(&asker, &node, ConnectionClass::Decode);
    let open = frame(OPEN, &Open { host: HOST.0 }, &[]);
    asker.runtime.block_on(async {
        // Out of turn, cut within an id, without an opening.
        for bytes in [
            [&open[..], &frame(ROUTE, &Route { route: 7 }, &[0; 32])].concat(),
            [&open[..], &frame(ROUTE, &Route { route: 0 }, &[0; 33])].concat(),
            attend(&model, 1),
        ] {
            assert!(converse(&connection, &bytes).await.is_empty());
        }
        // A list that was never told, and a host that is not there: told so, in words.
        let untold = [&open[..], &attend(&model, 1)].concat();
        assert_eq!(ask(&connection, &untold, 1).await[0].kind, REFUSED);
        let elsewhere = frame(OPEN, &Open { host: 99 }, &[]);
        let route = frame(ROUTE, &Route { route: 0 }, &write_ids(&model.blocks));
        let answers = ask(&connection, &[elsewhere, route, attend(&model, 1)].concat(), 1).await;
        assert_eq!(answers[0].kind, REFUSED);
    });
}

#[test]
fn mangled_copies_of_blocks_leave_nothing_in_the_store_and_honest_ones_go_through() {
    println!("seed {SEED:#x}");
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let asker = Asker::new();
    let model = Model::new(KvFormat::F32);
    let host = model.encoded_host(&asker);
    let node = real_node(&asker, "asked", &model, &host);
    let used = host.budget.used_bytes();
    let connection = dial(&asker, &node, ConnectionClass::Bulk);
    let shape = model.decoder.kv_shape(model.format);
    let (id, head) = ([9; 32], BlockHead::new(shape, 10, 0));
    let put = |head| frame(PUT, &Put { host: HOST.0, id, head }, &[]);
    let piece = frame(PIECE, &Piece { offset: 0 }, &vec![5; shape.bytes_for(10)]);
    let of_block = |id, offset| Fetch { host: HOST.0, id, offset, rate: 0 };
    let fetch = frame(FETCH, &of_block(*model.blocks[0].as_bytes(), 0), &[]);
    asker.runtime.block_on(async {
        for _ in 0..200 {
            // Never with a checksum: it ends before the block is whole.
            let mut bytes = [put(head), piece.clone()].concat();
            mangle(&mut rng, &mut bytes);
            converse(&connection, &bytes).await;
            let mut bytes = fetch.clone();
            mangle(&mut rng, &mut bytes);
            converse(&connection, &bytes).await;
        }
        for claim in [
            put(BlockHead { tokens: u64::MAX, ..head }),
            put(BlockHead { bytes: u64::MAX, ..head }),
            put(BlockHead { layers: 99, ..head }),
            frame(FETCH, &of_block([7; 32], 0), &[]),
            frame(FETCH, &of_block(*model.blocks[0].as_bytes(), u64::MAX), &[]),
        ] {
            assert_eq!(converse(&connection, &claim).await[0].kind, NO_TRANSFER);
        }
        assert!(converse(&connection, &fetch).await.len() > 2, "head, pieces and checksum");
    });
    assert!(connection.is_open());
    // Room that was made for what never came is given back, at the latest when its stream has ended.
    while host.budget.used_bytes() != used {
        std::thread::yield_now();
    }
}

#[test]
fn queries_that_are_no_numbers_are_answered_to_who_asked_and_change_nothing_for_others() {
    let asker = Asker::new();
    let model = Model::new(KvFormat::Bf16);
    let host = model.encoded_host(&asker);
    let node = real_node(&asker, "asked", &model, &host);
    let channel = asker.channel(&node, HOST, model.shape(), PATIENT);
    let (mut honest, mut hostile) = (channel.link(), channel.link());
    let blocks: Arc<[BlockId]> = model.blocks.clone().into();
    let ask = |queries| request(&blocks, 0, Fold::ByHost, queries);
    let good = queries(model.shape(), 2, 1);
    honest.post(ask(Arc::clone(&good))).unwrap();
    let expected = honest.wait().unwrap().partials;
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        hostile.post(ask(Arc::new(vec![value; good.len()]))).unwrap();
        honest.post(ask(Arc::clone(&good))).unwrap();
        // Whatever comes back of it is refused on the way in if it is no number.
        match hostile.wait() {
            Ok(reply) => assert!(reply.partials[0].lse.iter().all(|lse| lse.is_finite()), "{value}"),
            Err(error) => assert_eq!(error, LinkError::NotNumbers { host: HOST }, "{value}"),
        }
        assert_eq!(honest.wait().unwrap().partials, expected, "beside queries of {value}");
    }
}

/// Sends requests as one stream and waits until each was answered whole, or refused.
async fn flood(connection: &Connection, bytes: &[u8], requests: u64) {
    let (sender, mut receiver) = connection.open().await.unwrap();
    let mut send = sender.into_inner();
    send.write_all(bytes).await.unwrap();
    for number in 0..requests {
        loop {
            let frame = receiver.expect().await.unwrap();
            if frame.kind == REFUSED {
                let Refused { request, .. } = frame.header().unwrap();
                assert_eq!(request, number);
                break;
            }
            let Attended { request, part, parts, .. } = frame.expect(ATTENDED).unwrap();
            assert_eq!(request, number);
            if part + 1 == parts {
                break;
            }
        }
    }
}

#[test]
fn a_flood_of_requests_is_answered_or_refused_and_an_honest_member_is_answered_beside_it() {
    const STREAMS: usize = 48;
    const REQUESTS: u64 = 40;
    let asker = Asker::new();
    let model = Model::new(KvFormat::Bf16);
    let host = model.encoded_host(&asker);
    let node = real_node(&asker, "asked", &model, &host);
    let used = host.budget.used_bytes();
    let connection = dial(&asker, &node, ConnectionClass::Decode);
    let open = frame(OPEN, &Open { host: HOST.0 }, &[]);
    let route = frame(ROUTE, &Route { route: 0 }, &write_ids(&model.blocks));
    let requests: Vec<u8> = (0..REQUESTS).flat_map(|number| attend(&model, number)).collect();
    let bytes = Arc::new([open, route, requests].concat());
    let floods: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (connection, bytes) = (connection.clone(), Arc::clone(&bytes));
            asker.runtime.spawn(async move { flood(&connection, &bytes, REQUESTS).await })
        })
        .collect();
    let mut link = asker.channel(&node, HOST, model.shape(), PATIENT).link();
    let blocks: Arc<[BlockId]> = model.blocks.clone().into();
    let mut answered = 0;
    for seed in 0..40 {
        link.post(request(&blocks, 0, Fold::ByHost, queries(model.shape(), 2, seed))).unwrap();
        match link.wait() {
            Ok(_) => answered += 1,
            Err(LinkError::Interrupted { cause, .. }) => assert!(cause.contains("queue is full"), "{cause}"),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(answered > 0, "nobody is kept out for as long as the flood lasts");
    for flood in floods {
        asker.runtime.block_on(flood).unwrap();
    }
    assert_eq!(host.budget.used_bytes(), used);
    link.post(request(&blocks, 0, Fold::ByHost, queries(model.shape(), 2, 1))).unwrap();
    assert_eq!(link.wait().unwrap().partials.len(), 1);
}
