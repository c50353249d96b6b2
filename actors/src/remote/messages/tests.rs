//! Messages come back from their bytes; any other bytes are refused or are a message, and nothing panics.

use std::fmt::Debug;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stellate_runtime::encoding::{decode, encode};
use wincode::SchemaReadOwned;
use wincode::config::DefaultConfig;

use super::*;

fn id(byte: u8) -> BlockId {
    BlockId::from_bytes([byte; 32])
}

fn back<T>(message: &T) -> T
where
    T: SchemaReadOwned<DefaultConfig, Dst = T> + SchemaWrite<DefaultConfig, Src = T> + PartialEq + Debug,
{
    let bytes = encode(message).unwrap();
    for length in 0..bytes.len() {
        assert!(decode::<T>(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    assert!(decode::<T>(&[&bytes[..], &[0]].concat()).is_err(), "bytes to spare");
    let back = decode(&bytes).unwrap();
    assert_eq!(&back, message);
    back
}

fn order() -> EncodeOrder {
    let anchor = Anchor { id: id(2), ids: [1, 2].into(), first_block: id(3), is_kept: true };
    let job = EncodeJob {
        id: id(1),
        ids: [5, 6, 7].into(),
        position: 40,
        anchor: Some(anchor),
        recompute_anchor: true,
        meter: EncodeMeter::default(),
        cancel: CancelToken::default(),
    };
    EncodeOrder::of(HostId(9), &job)
}

fn request() -> PlaceRequest {
    PlaceRequest {
        context: Some(ContextId(4)),
        suspects: vec![HostId(1), HostId(2)],
        needs: vec![
            Need { id: id(1), bytes: 10, anchored: false },
            Need { id: id(2), bytes: 20, anchored: true },
        ],
        anchor: Some(AnchorNeed { id: id(3), bytes: 5, first_block: id(1) }),
    }
}

#[test]
fn an_order_to_encode_is_the_job_again() {
    let job = back(&order()).into_job(EncodeMeter::default(), CancelToken::default()).unwrap();
    assert_eq!((job.id, &*job.ids, job.position, job.recompute_anchor), (id(1), &[5, 6, 7][..], 40, true));
    let anchor = job.anchor.unwrap();
    assert_eq!(
        (anchor.id, &*anchor.ids, anchor.first_block, anchor.is_kept),
        (id(2), &[1, 2][..], id(3), true)
    );
}

#[test]
fn an_order_that_cannot_be_carried_out_is_none() {
    let job = |order: EncodeOrder| order.into_job(EncodeMeter::default(), CancelToken::default());
    assert!(job(EncodeOrder { ids: Vec::new(), ..order() }).is_none());
    assert!(job(EncodeOrder { position: u64::MAX, ..order() }).is_none());
    let anchor = order().anchor.map(|anchor| AnchorOrder { ids: Vec::new(), ..anchor });
    assert!(job(EncodeOrder { anchor, ..order() }).is_none());
}

#[test]
fn errors_of_hosts_and_of_placement_keep_their_numbers() {
    let (host, cause) = (HostId(3), "gone".to_owned());
    for error in [
        HostError::Full(StoreFull { needed_tokens: 7, free_tokens: 3 }),
        HostError::Overloaded { host, queue: 5 },
        HostError::Unreachable { host, cause },
        HostError::Cancelled,
    ] {
        assert_eq!(HostError::from(back(&WireHostError::from(error.clone()))), error);
    }
    let full =
        ContextFull { needed_tokens: 1, free_tokens: 2, block_tokens: 3, largest_free_tokens: 4, hosts: 5 };
    match EncodeError::from(back(&WirePlaceError::from(&EncodeError::Full(full)))) {
        EncodeError::Full(told) => assert_eq!(told, full),
        error => panic!("{error}"),
    }
    for encoded in [Encoded::Held, Encoded::Fresh] {
        assert_eq!(Encoded::from(back(&WireEncoded::from(encoded))), encoded);
    }
    back(&ReserveOrder { host: 1, id: [2; 32], tokens: 3 });
}

#[test]
fn a_request_to_place_and_its_placement_come_back() {
    let (before, after) = (request(), PlaceRequest::from(back(&WirePlaceRequest::from(&request()))));
    assert_eq!((after.context, &after.suspects), (before.context, &before.suspects));
    assert_eq!((&after.needs, after.anchor), (&before.needs, before.anchor));
    let placed = vec![Placed { host: HostId(8), held: true, anchor_copy: false }; 2];
    let placement = Placement { context: ContextId(6), placed };
    let wire = back(&WirePlacement::from(&placement));
    assert!(wire.clone().into_placement(3).is_none());
    let told = wire.into_placement(2).unwrap();
    assert_eq!((told.context, told.placed), (placement.context, placement.placed));
}

#[test]
fn any_bytes_are_a_message_or_refused() {
    // Fixed, so that a failure is the same again.
    let seed = 0x5717_e11a_7e00_0005;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let samples = [encode(&order()).unwrap(), encode(&WirePlaceRequest::from(&request())).unwrap()];
    for round in 0..20_000 {
        let mut bytes = samples[round % 2].clone();
        for _ in 0..1 + rng.next_u32() % 6 {
            let at = rng.next_u32() as usize % bytes.len();
            bytes[at] = rng.next_u32() as u8;
        }
        if let Ok(order) = decode::<EncodeOrder>(&bytes) {
            let _ = order.into_job(EncodeMeter::default(), CancelToken::default());
        }
        if let Ok(request) = decode::<WirePlaceRequest>(&bytes) {
            let _ = PlaceRequest::from(request);
        }
        if let Ok(placement) = decode::<WirePlacement>(&bytes) {
            let _ = placement.into_placement(2);
        }
        let _ = decode::<WireHostError>(&bytes).map(HostError::from);
        let _ = decode::<WirePlaceError>(&bytes).map(EncodeError::from);
    }
}
