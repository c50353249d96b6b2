//! Headers of any bytes: they are refused or mean something that can be checked, and nothing panics.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stellate_runtime::encoding::{decode, encode};

use super::*;

const SHAPE: AttendShape = AttendShape { layers: 16, heads: 32, head_dim: 64 };
const KV: KvShape = KvShape { layers: 2, kv_heads: 2, head_dim: 24, format: KvFormat::Bf16 };

/// Reads bytes as each header there is; those that are one are written again to the same bytes.
fn read_all(bytes: &[u8]) -> usize {
    fn read<T>(bytes: &[u8], check: impl Fn(&T)) -> usize
    where
        T: wincode::SchemaReadOwned<wincode::config::DefaultConfig, Dst = T>
            + SchemaWrite<wincode::config::DefaultConfig, Src = T>,
    {
        let Ok(header) = decode::<T>(bytes) else { return 0 };
        check(&header);
        assert_eq!(encode(&header).unwrap(), bytes);
        1
    }
    read::<Open>(bytes, |_| {})
        + read::<Route>(bytes, |_| {})
        + read::<Attend>(bytes, |attend| {
            let bytes = SHAPE.query_bytes(attend.tokens as usize % (2 * MAX_TOKENS));
            for blocks in [0, 1, usize::MAX] {
                let _ = attend.check(bytes, blocks, SHAPE);
            }
        })
        + read::<Attended>(bytes, |_| {})
        + read::<Refused>(bytes, |refused| drop(refused.reason.into_error(HostId(1))))
        + read::<Fetch>(bytes, |_| {})
        + read::<BlockHead>(bytes, |head| assert!(!head.is_of(KV, 100, head.offset) || head.tokens == 100))
        + read::<Piece>(bytes, |_| {})
        + read::<Done>(bytes, |_| {})
        + read::<Put>(bytes, |_| {})
        + read::<PutReply>(bytes, |_| {})
        + read::<NoTransfer>(bytes, |_| {})
}

fn samples() -> Vec<Vec<u8>> {
    let attend = Attend { request: 7, route: 1, layer: 3, tokens: 2, fold: WireFold::Apart };
    let head = BlockHead::new(KV, 100, 64);
    vec![
        encode(&Open { host: 3 }).unwrap(),
        encode(&Route { route: 9 }).unwrap(),
        encode(&attend).unwrap(),
        encode(&Attended { request: 7, route: 1, part: 0, parts: 2, digest: [5; 32] }).unwrap(),
        encode(&Refused { request: 7, reason: Refusal::NoSuchBlock([6; 32]) }).unwrap(),
        encode(&Fetch { host: 1, id: [8; 32], offset: 5, rate: 0 }).unwrap(),
        encode(&head).unwrap(),
        encode(&Done { checksum: Checksum([5; 16]) }).unwrap(),
        encode(&Put { host: 1, id: [8; 32], head }).unwrap(),
        encode(&PutReply::Held).unwrap(),
        encode(&NoTransfer::Full(3, 4)).unwrap(),
    ]
}

#[test]
fn any_bytes_are_a_header_or_refused() {
    // Fixed, so that a failure is the same again.
    let seed = 0x5717_e11a_7e00_0004;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let samples = samples();
    let mut read = 0;
    for round in 0..20_000 {
        let mut bytes = if round % 2 == 0 {
            let length = rng.next_u32() as usize % 120;
            let mut bytes = vec![0; length];
            rng.fill_bytes(&mut bytes);
            bytes
        } else {
            samples[rng.next_u32() as usize % samples.len()].clone()
        };
        for _ in 0..rng.next_u32() % 4 {
            if !bytes.is_empty() {
                let at = rng.next_u32() as usize % bytes.len();
                bytes[at] = rng.next_u32() as u8;
            }
        }
        read += read_all(&bytes);
        let _ = read_ids(&bytes);
    }
    assert!(read > 1000, "some of them are headers: {read}");
}

#[test]
fn headers_cut_short_or_with_bytes_to_spare_are_refused() {
    for bytes in samples() {
        assert!(read_all(&bytes) > 0);
    }
    let attend = &samples()[2];
    assert_eq!(attend.len(), Attend::BYTES);
    assert!(decode::<Attend>(&attend[1..]).is_err());
    assert!(decode::<Attend>(&[&attend[..], &[0]].concat()).is_err());
    assert_eq!(samples()[3].len(), Attended::BYTES);
}

#[test]
fn a_request_beyond_the_model_or_the_bounds_is_refused() {
    let good = Attend { request: 1, route: 0, layer: 15, tokens: 4, fold: WireFold::ByHost };
    let bytes = SHAPE.query_bytes(4);
    assert_eq!(good.check(bytes, 100, SHAPE), Ok(()));
    assert_eq!(good.check(bytes - 4, 100, SHAPE), Err(Refusal::Shape));
    assert_eq!(Attend { layer: 16, ..good }.check(bytes, 100, SHAPE), Err(Refusal::Shape));
    assert_eq!(Attend { tokens: 0, ..good }.check(0, 100, SHAPE), Err(Refusal::Shape));
    let many = Attend { fold: WireFold::Apart, ..good };
    assert_eq!(many.check(bytes, 100, SHAPE), Ok(()));
    assert_eq!(many.check(bytes, MAX_ROUTED_BLOCKS, SHAPE), Err(Refusal::Shape));
    let tokens = u32::MAX;
    assert_eq!(
        Attend { tokens, ..good }.check(SHAPE.query_bytes(tokens as usize), 1, SHAPE),
        Err(Refusal::Shape)
    );
}

#[test]
fn ids_come_back_from_their_bytes_and_their_digest_knows_their_order() {
    let ids: Vec<_> = (0..5).map(|byte| BlockId::from_bytes([byte; 32])).collect();
    assert_eq!(read_ids(&write_ids(&ids)), Some(ids.clone()));
    assert_eq!(read_ids(&write_ids(&ids)[..33]), None);
    let mut turned = ids.clone();
    turned.reverse();
    assert_ne!(digest(&ids), digest(&turned));
    assert_ne!(digest(&ids), digest(&ids[..4]));
}
