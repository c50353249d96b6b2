//! An administrator's connection that carries what no client of ours sends: each request is answered, refused or ends its
//! connection, nothing crashes, and others are served as before.
#![allow(clippy::print_stdout, reason = "seeds and figures are told")]

#[allow(dead_code, reason = "each test program uses its part")]
mod support;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stellate_runtime::transport::{
    CloseCode, Closed, Connection, ConnectionClass, FrameKind, FrameLimits, Header, Target, WIRE_VERSION,
    encode_head,
};
use support::Served;

const REQUEST: FrameKind = FrameKind(96);

/// Fixed, so that a failure is the same again.
const SEED: u64 = 0x5717_e11a_7e00_0008;

fn frame<T: Header>(header: &T, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_head(WIRE_VERSION, REQUEST, header, payload.len(), &FrameLimits::default(), &mut bytes).unwrap();
    bytes.extend_from_slice(payload);
    bytes
}

/// Requests in the codec's own bytes: a tag, and what belongs to it.
fn honest() -> Vec<Vec<u8>> {
    vec![
        frame(&0_u32, &[]),
        frame(&1_u32, &[]),
        // `Encode { source: Ids, layout: star(16, 16) }`, `Append`, a context and a session that are not there.
        frame(&(2_u32, 2_u32, 16_u64, 1_u8, 16_u64), &[1, 0, 0, 0, 2, 0, 0, 0]),
        frame(&(3_u32, 7_u64, 0_u32), b"more"),
        frame(&(5_u32, 7_u64), &[]),
        frame(&(7_u32, 7_u64), &[]),
        frame(&(12_u32, 7_u64), &[]),
        // `Cordon`, `Remove`, `CreateToken`.
        frame(&(14_u32, "server".to_owned(), 1_u8), &[]),
        frame(&(16_u32, "server".to_owned(), 0_u8), &[]),
        frame(&(19_u32, 60_u64, 1_u32), &[]),
        frame(&13_u32, &[]),
    ]
}

/// Sends bytes on a stream of their own and reads to its end.
async fn converse(connection: &Connection, bytes: &[u8]) {
    let Ok((sender, mut receiver)) = connection.open().await else { return };
    let mut send = sender.into_inner();
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    while let Ok(Some(_)) = receiver.receive().await {}
}

#[tokio::test(flavor = "multi_thread")]
async fn mangled_requests_are_answered_refused_or_end_their_own_connection() {
    println!("seed {SEED:#x}");
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let served = Served::new().await;
    let client = served.client().await;
    let (endpoint, _network) = served.raw();
    let target = Target::seed(served.address());
    let dial = || endpoint.dial(target.clone(), ConnectionClass::Admin);
    let mut connection = dial().await.unwrap();
    let (requests, mut lost) = (honest(), 0);
    for _ in 0..400 {
        let mut bytes = requests[rng.random_range(0..requests.len())].clone();
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.next_u32() as u8,
                1 => bytes[at] ^= 1 << rng.random_range(0..8),
                _ => bytes.truncate(at.max(1)),
            }
        }
        converse(&connection, &bytes).await;
        if let Some(reason) = connection.close_reason() {
            assert_eq!(reason, Closed::ByPeer { code: CloseCode::ProtocolViolation });
            (connection, lost) = (dial().await.unwrap(), lost + 1);
        }
    }
    println!("{lost} connections were closed");
    assert!(lost > 10, "some of them break the protocol");
    assert!(client.about().await.is_ok(), "others go on");
    assert_eq!(served.api.running(), 0);
}
