//! What a step costs on the wire, for a model of the shape of Llama 3.2 1B: 32 heads of 64 values.

use std::sync::Arc;

use stellate_actors::link::{Fold, HostLink};
use stellate_actors::remote::frames::{Attend, Attended};
use stellate_model::block::BlockId;
use stellate_runtime::transport::PREAMBLE_BYTES;

use crate::faults::{SHAPE, scripted};
use crate::support::{Asker, HOST, PATIENT, queries, request};

#[test]
fn a_token_costs_a_layer_and_host_its_numbers_and_less_than_a_twentieth_more() {
    let asker = Asker::new();
    let (node, _script) = scripted(&asker);
    let channel = asker.channel(&node, HOST, SHAPE, PATIENT);
    let mut link = channel.link();
    let blocks: Arc<[BlockId]> = (0..100).map(|byte| BlockId::from_bytes([byte; 32])).collect();
    let mut step = |layer, tokens| {
        link.post(request(&blocks, layer, Fold::ByHost, queries(SHAPE, tokens, 0))).unwrap();
        assert_eq!(link.wait().unwrap().partials.len(), 1);
        (channel.stats().sent_bytes(), channel.stats().received_bytes())
    };
    // The list of blocks is told with the first request only.
    let mut before = step(0, 1);
    for tokens in [1, 4] {
        for layer in 0..SHAPE.layers {
            let after = step(layer, tokens);
            let (sent, received) = (after.0 - before.0, after.1 - before.1);
            before = after;
            assert_eq!(sent, (PREAMBLE_BYTES + Attend::BYTES + tokens * 32 * 64 * 4) as u64);
            assert_eq!(received, (PREAMBLE_BYTES + Attended::BYTES + tokens * 32 * (64 * 4 + 4)) as u64);
            let allowed = tokens as f64 * 32.0 * (64.0 * 4.0 + 4.0) * 1.05;
            assert!((sent as f64) < allowed && (received as f64) < allowed, "{sent} and {received} bytes");
        }
    }
}
