//! A context host of another node behind the same seam as one of this process.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use ractor::call;
use stellate_actors::KvFormat;
use stellate_actors::budget::KvBudget;
use stellate_actors::cancel::CancelToken;
use stellate_actors::cluster::messages::EncodeOrder;
use stellate_actors::context_host::{ContextHostHandle, ContextHostMsg, Encoded, HostError, Reserved};
use stellate_actors::link::{Fold, HostId};
use stellate_actors::port::HostPort;
use stellate_actors::progress::EncodeMeter;
use stellate_actors::remote::{ControlCalls, Pacer, RemoteHost, RoomPromise};
use stellate_model::block::BlockId;
use stellate_runtime::transport::ConnectionClass;

use crate::support::{Asker, HOST, Model, PATIENT, queries, real_node, request};

/// A control plane of one process: the calls go straight to the host.
#[derive(Debug)]
pub(crate) struct Straight(pub(crate) ContextHostHandle);

impl ControlCalls for Straight {
    fn encode(&self, order: EncodeOrder) -> BoxFuture<'_, Result<Encoded, HostError>> {
        Box::pin(async move {
            let bytes = stellate_runtime::encoding::encode(&order).unwrap();
            let order: EncodeOrder = stellate_runtime::encoding::decode(&bytes).unwrap();
            let job = order.into_job(EncodeMeter::default(), CancelToken::default()).unwrap();
            call!(self.0.actor, ContextHostMsg::Encode, job).unwrap()
        })
    }

    fn reserve(
        &self,
        _: HostId,
        id: BlockId,
        tokens: usize,
    ) -> BoxFuture<'_, Result<RoomPromise, HostError>> {
        Box::pin(async move {
            let reserved = call!(self.0.actor, ContextHostMsg::Reserve, id, tokens).unwrap()?;
            Ok(if matches!(reserved, Reserved::Held) { RoomPromise::Held } else { RoomPromise::Promised })
        })
    }
}

#[test]
fn a_far_host_encodes_reserves_seals_and_attends_as_a_near_one() {
    let asker = Asker::new();
    let model = Model::new(KvFormat::Bf16);
    let (near, far) = asker.runtime.block_on(async {
        let near = model.host(HostId(1)).await;
        model.encode(&near).await;
        (near, model.host(HOST).await)
    });
    let node = real_node(&asker, "far", &model, &far);
    let channel = asker.channel(&node, HOST, model.shape(), PATIENT);
    let scratch = KvBudget::new(model.decoder.kv_shape(model.format), usize::MAX);
    let bulk = Arc::new(asker.dialer(&node, ConnectionClass::Bulk));
    let port: Arc<dyn HostPort> = Arc::new(RemoteHost::new(
        channel,
        Arc::new(Straight(far)),
        bulk,
        Arc::clone(&scratch),
        Pacer::default(),
    ));
    let [first, second, third] = [0, 1, 2].map(|index| model.blocks[index]);
    asker.runtime.block_on(async {
        for expected in [Encoded::Fresh, Encoded::Held] {
            assert_eq!(port.encode(model.job(0)).await, Ok(expected));
        }
        assert_eq!(port.encode(model.job(1)).await, Ok(Encoded::Fresh));
        assert!(matches!(port.reserve(second, 5).await, Ok(Reserved::Held)));

        // The third was computed elsewhere.
        let original = call!(near.actor, ContextHostMsg::Share, third).unwrap().unwrap().unwrap();
        let Ok(Reserved::Room(mut room)) = port.reserve(third, original.len()).await else {
            panic!("there is room")
        };
        room.raw_mut().copy_from_slice(original.raw());
        room.set_len(original.len());
        port.seal(third, room).await.unwrap();
        assert!(matches!(port.reserve(third, original.len()).await, Ok(Reserved::Held)));
    });
    assert_eq!(scratch.used_bytes(), 0);
    let (mut one, mut other) = (near.link(), port.link());
    let blocks: Arc<[BlockId]> = [first, second, third].into();
    for link in [&mut one as &mut dyn stellate_actors::link::HostLink, &mut *other] {
        link.post(request(&blocks, 1, Fold::ByHost, queries(model.shape(), 3, 1))).unwrap();
    }
    use stellate_actors::link::HostLink;
    assert_eq!(one.wait().unwrap().partials, other.wait().unwrap().partials);
}
