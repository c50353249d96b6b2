//! The join exchange and hostile bytes: whatever comes is no request, or is refused, and only the request that was proved for
//! this very connection is let in.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::super::token::JoinToken;
use super::super::{CaHash, NodeKey};
use super::*;
use crate::clock::ManualClock;
use crate::encoding::{decode, encode};

const DAY: Duration = Duration::from_secs(86_400);
const EXPORTED: [u8; 32] = [7; 32];

/// A desk, a request that it admits once for a connection that exports [`EXPORTED`], and what it remembers of tokens.
fn desk() -> (JoinDesk, JoinRequest, Arc<MemoryIssuing>) {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1_795_000_000));
    let authority = CertificateAuthority::create(clock.wall()).unwrap();
    let revocations = Revocations::new(authority.certificate()).unwrap();
    let store = Arc::new(MemoryIssuing::default());
    let (token, record) = JoinToken::create(authority.hash(), clock.wall(), DAY, 1);
    store.add_token(record).unwrap();
    let request = request(&token);
    let desk = JoinDesk::new(authority, store.clone(), revocations, Arc::new(clock));
    (desk, request, store)
}

fn request(token: &JoinToken) -> JoinRequest {
    let request_der = NodeKey::generate().unwrap().certificate_request().unwrap();
    let proof = token.prove(&EXPORTED, "node", &request_der);
    JoinRequest { token: token.id(), name: "node".to_owned(), request_der, proof }
}

fn is_forged(reply: &JoinReply) -> bool {
    matches!(reply, JoinReply::Refused(JoinRefusal::Forged))
}

#[test]
fn a_request_replayed_on_another_connection_or_with_another_key_is_forged_and_costs_no_use() {
    let (desk, honest, store) = desk();
    assert!(is_forged(&desk.admit(&honest, &[8; 32], &[])), "on another connection");
    let other = NodeKey::generate().unwrap().certificate_request().unwrap();
    assert!(is_forged(&desk.admit(&JoinRequest { request_der: other, ..honest.clone() }, &EXPORTED, &[])));
    let renamed = JoinRequest { name: "another".to_owned(), ..honest.clone() };
    assert!(is_forged(&desk.admit(&renamed, &EXPORTED, &[])));
    assert_eq!(store.tokens().unwrap()[0].uses_left(), 1);
    assert!(matches!(desk.admit(&honest, &EXPORTED, &[]), JoinReply::Accepted { .. }));
}

#[test]
fn a_key_that_cannot_be_certified_is_refused_and_costs_no_use() {
    let (desk, honest, store) = desk();
    let (token, record) = JoinToken::create(desk.authority().hash(), desk.clock.wall(), DAY, 1);
    store.add_token(record).unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request_der = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let proof = token.prove(&EXPORTED, "node", &request_der);
    let other = JoinRequest { token: token.id(), request_der, proof, ..honest };
    assert!(matches!(desk.admit(&other, &EXPORTED, &[]), JoinReply::Refused(JoinRefusal::BadRequest)));
    assert!(store.tokens().unwrap().iter().all(|record| record.uses_left() == 1));
}

#[test]
fn oversized_requests_are_refused_before_they_are_read_as_certificates() {
    let (desk, honest, _) = desk();
    let long = JoinRequest { request_der: vec![0x30; MAX_REQUEST_BYTES + 1], ..honest.clone() };
    assert!(matches!(desk.admit(&long, &EXPORTED, &[]), JoinReply::Refused(JoinRefusal::BadRequest)));
    let named = JoinRequest { name: "n".repeat(10_000), ..honest };
    assert!(matches!(desk.admit(&named, &EXPORTED, &[]), JoinReply::Refused(JoinRefusal::BadName)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_no_message_of_the_exchange_or_one_that_is_written_the_same(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        if let Ok(request) = decode::<JoinRequest>(&bytes) {
            prop_assert_eq!(encode(&request).unwrap(), &bytes[..]);
        }
        if let Ok(reply) = decode::<JoinReply>(&bytes) {
            prop_assert_eq!(encode(&reply).unwrap(), bytes);
        }
    }
}

#[test]
fn a_request_of_which_any_byte_was_changed_is_never_let_in() {
    let (desk, honest, store) = desk();
    let bytes = encode(&honest).unwrap();
    for length in 0..bytes.len() {
        assert!(decode::<JoinRequest>(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    for (at, flipped) in (0..bytes.len()).flat_map(|at| [(at, 1_u8), (at, 0x80)]) {
        let mut changed = bytes.clone();
        changed[at] ^= flipped;
        let Ok(request) = decode::<JoinRequest>(&changed) else { continue };
        let reply = desk.admit(&request, &EXPORTED, &[]);
        assert!(matches!(reply, JoinReply::Refused(_)), "byte {at}");
    }
    assert_eq!(store.tokens().unwrap()[0].uses_left(), 1, "none of them cost a use");
}

#[test]
fn what_a_hostile_issuer_answers_is_no_certificate_of_ours() {
    let stranger = CertificateAuthority::create(SystemTime::now()).unwrap();
    let pinned = CaHash::of(b"another CA");
    assert_ne!(CaHash::of(stranger.certificate()), pinned);
    for der in [&b""[..], b"\x30\x82\xff\xff", stranger.certificate()] {
        let key = NodeKey::generate().unwrap();
        let certificate = rustls::pki_types::CertificateDer::from(der.to_vec());
        let issued = super::super::Credentials::new(key, certificate, stranger.certificate().clone());
        assert!(issued.is_err(), "{} bytes", der.len());
    }
}
