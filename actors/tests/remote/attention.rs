//! Attention by a real context host of another node.

use std::sync::Arc;
use std::time::Duration;

use stellate_actors::KvFormat;
use stellate_actors::context_host::{EncodeJob, HostError};
use stellate_actors::link::{Fold, HostId, HostLink, LinkError};
use stellate_actors::port::HostPort;
use stellate_actors::progress::EncodeMeter;
use stellate_actors::remote::DecodeOptions;
use stellate_model::block::BlockId;
use stellate_runtime::transport::ProtocolRange;

use crate::support::{Asker, HOST, Model, PATIENT, queries, real_node, request};

#[test]
fn attention_over_the_network_is_that_in_memory_bit_for_bit() {
    for format in [KvFormat::F32, KvFormat::Bf16] {
        let asker = Asker::new();
        let model = Model::new(format);
        let host = model.encoded_host(&asker);
        let node = real_node(&asker, "asked", &model, &host);
        let channel = asker.channel(&node, HOST, model.shape(), PATIENT);
        let (mut near, mut far, mut other) = (host.link(), channel.link(), channel.link());
        let all: Arc<[BlockId]> = model.blocks.clone().into();
        let some: Arc<[BlockId]> = model.blocks[1..2].into();
        let mut spare = Vec::new();
        for (round, fold) in
            [Fold::ByHost, Fold::ByBlock, Fold::Apart].into_iter().cycle().take(9).enumerate()
        {
            for (blocks, tokens) in [(&all, 1), (&some, 5), (&all, 40)] {
                let layer = round % model.shape().layers;
                let asked = queries(model.shape(), tokens, round);
                let ask = || request(blocks, layer, fold, Arc::clone(&asked));
                near.post(ask()).unwrap();
                let expected = near.wait().unwrap();
                let mut again = ask();
                again.partials = spare;
                far.post(again).unwrap();
                other.post(ask()).unwrap();
                let reply = far.wait().unwrap();
                assert_eq!(reply.blocks, expected.blocks);
                assert_eq!(reply.partials, expected.partials, "{format}, {fold:?}, {tokens} tokens");
                assert_eq!(other.wait().unwrap().partials, expected.partials);
                assert_eq!(Arc::strong_count(&asked), 1, "queries are let go before the reply");
                spare = reply.partials;
            }
        }
        assert_eq!(channel.stats().streams(), 1);
        assert_eq!(channel.stats().replies(), channel.stats().requests());
    }
}

#[test]
fn a_block_that_is_not_there_and_a_host_that_is_gone_are_told_by_name() {
    let asker = Asker::new();
    let model = Model::new(KvFormat::F32);
    let host = model.encoded_host(&asker);
    let node = real_node(&asker, "asked", &model, &host);
    let all: Arc<[BlockId]> = model.blocks.clone().into();
    let foreign = BlockId::from_bytes([7; 32]);
    let with_foreign: Arc<[BlockId]> = [model.blocks[0], foreign].into();
    let mut link = asker.channel(&node, HOST, model.shape(), PATIENT).link();
    let ask = |blocks: &Arc<[BlockId]>| request(blocks, 0, Fold::ByHost, queries(model.shape(), 2, 1));

    link.post(ask(&with_foreign)).unwrap();
    assert_eq!(link.wait().unwrap_err(), LinkError::NoSuchBlock { host: HOST, block: foreign });
    link.post(ask(&all)).unwrap();
    assert!(link.wait().is_ok());
    let mut beyond = ask(&all);
    beyond.layer = model.shape().layers;
    link.post(beyond).unwrap();
    assert!(matches!(link.wait().unwrap_err(), LinkError::Interrupted { .. }));

    let nobody = HostId(9);
    let mut elsewhere = asker.channel(&node, nobody, model.shape(), PATIENT).link();
    elsewhere.post(ask(&all)).unwrap();
    assert_eq!(elsewhere.wait().unwrap_err(), LinkError::HostGone { host: nobody });

    asker.runtime.block_on(async { host.actor.stop_and_wait(None, None).await.unwrap() });
    link.post(ask(&all)).unwrap();
    assert_eq!(link.wait().unwrap_err(), LinkError::HostGone { host: HOST });
}

#[test]
fn a_request_that_was_given_up_does_not_answer_the_next_one() {
    let asker = Asker::new();
    let model = Model::new(KvFormat::F32);
    let host = model.encoded_host(&asker);
    let node = real_node(&asker, "asked", &model, &host);
    let all: Arc<[BlockId]> = model.blocks.clone().into();
    let (mut near, mut far) = (host.link(), asker.channel(&node, HOST, model.shape(), PATIENT).link());
    let ask = |seed| request(&all, 1, Fold::ByHost, queries(model.shape(), 3, seed));
    for seed in 0..12 {
        far.post(ask(seed)).unwrap();
    }
    near.post(ask(11)).unwrap();
    assert_eq!(far.wait().unwrap().partials, near.wait().unwrap().partials);
    assert!(matches!(far.wait().unwrap_err(), LinkError::Interrupted { .. }), "nothing was asked");
}

#[test]
fn a_stuck_host_refuses_at_once_and_by_name_or_as_the_version_before_would() {
    for (version, is_by_name) in [(2, true), (1, false)] {
        let asker = Asker::speaking(ProtocolRange::only(version));
        let model = Model::new(KvFormat::F32);
        let host = asker.runtime.block_on(model.host_stuck_after(HOST, Duration::from_secs(2)));
        asker.runtime.block_on(model.encode(&host));
        let node = real_node(&asker, "asked", &model, &host);
        let all: Arc<[BlockId]> = model.blocks.clone().into();
        // Long enough that whoever waits for it fails the test.
        let options = DecodeOptions { reply_timeout: Duration::from_secs(600), ..DecodeOptions::default() };
        let (mut near, mut far) = (host.link(), asker.channel(&node, HOST, model.shape(), options).link());
        let ask = || request(&all, 0, Fold::ByHost, queries(model.shape(), 2, 1));
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let (begun, stands) = std::sync::mpsc::channel();
        let meter = EncodeMeter::new(move |_| {
            let _ = begun.send(());
            let _ = wait.recv();
        });
        let further = BlockId::from_bytes([3; 32]);
        let stuck = host.clone();
        let job = EncodeJob { id: further, meter, ..model.job(0) };
        let encoding = asker.runtime.spawn(async move { HostPort::encode(&stuck, job).await });
        stands.recv().unwrap();
        // Whoever waits, here or on another node, finds out.
        far.post(ask()).unwrap();
        near.post(ask()).unwrap();
        assert_eq!(near.wait().unwrap_err(), LinkError::Stuck { host: HOST });
        assert_eq!(near.post(ask()).unwrap_err(), LinkError::Stuck { host: HOST });
        let ended = asker.runtime.block_on(encoding).unwrap();
        assert_eq!(ended, Err(HostError::Stuck { host: HOST }));
        for is_first in [true, false] {
            if !is_first {
                far.post(ask()).unwrap();
            }
            let refused = far.wait().unwrap_err();
            assert_eq!(refused == LinkError::Stuck { host: HOST }, is_by_name, "{refused}");
            assert!(is_by_name || matches!(refused, LinkError::Interrupted { .. }), "{refused}");
        }
        drop(go_on);
        while host.vitals.is_stuck() {
            std::thread::yield_now();
        }
        near.post(ask()).unwrap();
        far.post(ask()).unwrap();
        assert_eq!(near.wait().unwrap().partials, far.wait().unwrap().partials);
    }
}
