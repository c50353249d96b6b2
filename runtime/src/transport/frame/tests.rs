//! Frames in any pieces, and hostile bytes.

use proptest::prelude::*;
use wincode::{SchemaRead, SchemaWrite};

use super::*;
use crate::protocol::WIRE_VERSION;

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
struct Sample {
    layer: u32,
    blocks: Vec<u64>,
    note: Option<String>,
}

const KIND: FrameKind = FrameKind(77);
const LIMITS: FrameLimits = FrameLimits { header_bytes: 4096, payload_bytes: 1 << 16 };

fn sample() -> Sample {
    Sample { layer: 3, blocks: vec![1, u64::MAX], note: Some("note".to_owned()) }
}

fn encoded(header: &Sample, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_head(WIRE_VERSION, KIND, header, payload.len(), &LIMITS, &mut bytes).unwrap();
    bytes.extend_from_slice(payload);
    bytes
}

fn decoder() -> FrameDecoder {
    FrameDecoder::new(WIRE_VERSION, LIMITS)
}

/// The frames in `bytes`, fed in pieces of `piece` bytes, and how the stream ended.
fn decode(bytes: &[u8], piece: usize) -> (Vec<Frame>, Result<(), FrameError>) {
    let mut decoder = decoder();
    let mut frames = Vec::new();
    for mut input in bytes.chunks(piece.max(1)) {
        loop {
            match decoder.feed(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
        assert!(input.is_empty(), "input is used up before more is asked for");
    }
    (frames, decoder.finish())
}

proptest! {
    #[test]
    fn frames_come_back_whole_from_any_pieces(
        contents in proptest::collection::vec(
            (any::<u32>(), proptest::collection::vec(any::<u64>(), 0..20), proptest::collection::vec(any::<u8>(), 0..300)),
            0..5,
        ),
        piece in 1usize..100,
    ) {
        let mut bytes = Vec::new();
        for (layer, blocks, payload) in &contents {
            bytes.extend(encoded(&Sample { layer: *layer, blocks: blocks.clone(), note: None }, payload));
        }
        let (frames, end) = decode(&bytes, piece);
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(frames.len(), contents.len());
        for (frame, (layer, blocks, payload)) in frames.iter().zip(&contents) {
            let header: Sample = frame.expect(KIND).unwrap();
            prop_assert_eq!(header, Sample { layer: *layer, blocks: blocks.clone(), note: None });
            prop_assert_eq!(frame.payload.as_bytes(), &payload[..]);
        }
    }

    #[test]
    fn an_open_frame_s_payload_goes_past_the_decoder(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
        piece in 1usize..100,
    ) {
        let bytes: Vec<u8> = payloads.iter().flat_map(|payload| encoded(&sample(), payload)).collect();
        let (mut decoder, mut passed) = (decoder(), Vec::new());
        for mut input in bytes.chunks(piece) {
            while !input.is_empty() {
                let open = decoder.open_bytes();
                if open > 0 {
                    let (now, rest) = input.split_at(input.len().min(open));
                    passed.last_mut().map(|last: &mut Vec<u8>| last.extend_from_slice(now)).unwrap();
                    decoder.pass(now.len());
                    prop_assert_eq!(decoder.finish().is_err(), open > now.len(), "cut off within the payload");
                    input = rest;
                } else if let Some(frame) = decoder.feed_open(&mut input).unwrap() {
                    prop_assert_eq!(frame.expect::<Sample>(KIND).unwrap(), sample());
                    prop_assert_eq!(frame.payload_bytes, decoder.open_bytes());
                    passed.push(Vec::new());
                }
            }
        }
        prop_assert_eq!(passed, payloads);
    }

    #[test]
    fn any_bytes_give_frames_or_an_error_and_never_more_than_they_hold(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        piece in 1usize..64,
    ) {
        let (frames, _) = decode(&bytes, piece);
        for frame in &frames {
            prop_assert!(frame.payload.len() + frame.header_bytes().len() <= bytes.len());
            let _ = frame.header::<Sample>();
        }
    }

    #[test]
    fn a_frame_with_changed_bytes_is_a_frame_or_an_error(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        piece in 1usize..64,
    ) {
        let mut bytes = encoded(&sample(), &[7; 50]);
        for (position, value) in changes {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        let (frames, end) = decode(&bytes, piece);
        prop_assert!(frames.len() <= 1);
        if frames.is_empty() {
            prop_assert!(end.is_err());
        }
        for frame in &frames {
            let _ = frame.header::<Sample>();
        }
    }
}

#[test]
fn a_frame_cut_at_any_byte_is_truncated_and_gives_nothing() {
    let bytes = encoded(&sample(), &[7; 50]);
    for end in 1..bytes.len() {
        assert_eq!(decode(&bytes[..end], 13), (Vec::new(), Err(FrameError::Truncated)), "cut at {end}");
    }
    assert_eq!(decode(&[], 1), (Vec::new(), Ok(())));
}

#[test]
fn bytes_after_a_frame_belong_to_the_next_one_or_are_refused() {
    let mut bytes = encoded(&sample(), b"payload");
    bytes.push(b'S');
    let (frames, end) = decode(&bytes, 1000);
    assert_eq!((frames.len(), end), (1, Err(FrameError::Truncated)));
    *bytes.last_mut().unwrap() = 0;
    let (frames, end) = decode(&bytes, 1000);
    assert_eq!((frames.len(), end), (1, Err(FrameError::Magic { found: [0; 4] })));
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_any_memory_is_set_aside() {
    let mut bytes = encoded(&sample(), &[]);
    for (header_bytes, payload_bytes) in [(u32::MAX, 0), (4097, 0), (0, u64::MAX), (0, (1 << 16) + 1)] {
        bytes[8..12].copy_from_slice(&header_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&payload_bytes.to_le_bytes());
        let (_, end) = decode(&bytes[..PREAMBLE_BYTES], 1000);
        match end {
            Err(FrameError::HeaderTooLong { bytes, limit: 4096 }) => {
                assert_eq!(bytes, u64::from(header_bytes))
            }
            Err(FrameError::PayloadTooLong { bytes, limit: 65_536 }) => assert_eq!(bytes, payload_bytes),
            other => panic!("{other:?}"),
        }
    }
    let mut out = vec![1, 2];
    let too_long = encode_head(WIRE_VERSION, KIND, &sample(), (1 << 16) + 1, &LIMITS, &mut out);
    assert!(matches!(too_long, Err(FrameError::PayloadTooLong { .. })));
    let header = Sample { blocks: vec![0; 1000], ..sample() };
    let too_long = encode_head(WIRE_VERSION, KIND, &header, 0, &LIMITS, &mut out);
    assert!(matches!(too_long, Err(FrameError::HeaderTooLong { .. })));
    assert_eq!(out, [1, 2], "what was refused leaves nothing behind");
}

#[test]
fn other_versions_are_named_and_a_stranger_is_known_by_its_first_byte() {
    let mut bytes = encoded(&sample(), &[]);
    for theirs in [0, 1, 65_535u16] {
        bytes[4..6].copy_from_slice(&theirs.to_le_bytes());
        let ours = ProtocolRange::only(WIRE_VERSION);
        assert_eq!(decode(&bytes, 5).1, Err(FrameError::Version { ours, theirs }));
    }
    assert_eq!(decode(b"G", 1).1, Err(FrameError::Magic { found: [b'G', 0, 0, 0] }));
    bytes[4..6].copy_from_slice(&WIRE_VERSION.to_le_bytes());
    bytes[12] = 1;
    assert_eq!(decode(&bytes, 5).1, Err(FrameError::Reserved));
}

#[test]
fn the_first_frame_of_a_stream_says_of_which_version_all_are() {
    let mut bytes = [encoded(&sample(), &[]), encoded(&sample(), &[])].concat();
    let second = bytes.len() / 2;
    bytes[4..6].copy_from_slice(&1_u16.to_le_bytes());
    let mut decoder = FrameDecoder::any_of(ProtocolRange::SPOKEN, LIMITS);
    assert_eq!(decoder.version(), None);
    assert!(decoder.feed(&mut &bytes[..second]).unwrap().is_some());
    assert_eq!(decoder.version(), Some(1));
    let changed = decoder.feed(&mut &bytes[second..]);
    assert_eq!(changed, Err(FrameError::Version { ours: ProtocolRange::only(1), theirs: 2 }));
}

#[test]
fn a_decoder_stays_failed() {
    let mut decoder = decoder();
    let error = decoder.feed(&mut &b"GET / HTTP/1.1"[..]).unwrap_err();
    assert_eq!(decoder.feed(&mut &encoded(&sample(), &[])[..]), Err(error.clone()));
    assert_eq!(decoder.finish(), Err(error));
}

#[test]
fn a_header_must_be_all_of_its_type_and_of_the_expected_kind() {
    let (frames, _) = decode(&encoded(&sample(), &[]), 1000);
    assert_eq!(frames[0].header::<Sample>(), Ok(sample()));
    assert!(
        matches!(frames[0].header::<u32>(), Err(FrameError::Header { kind: KIND, .. })),
        "trailing bytes"
    );
    assert!(matches!(frames[0].header::<(Sample, u64)>(), Err(FrameError::Header { .. })), "too few bytes");
    let expected = FrameKind(78);
    assert_eq!(frames[0].expect::<Sample>(expected), Err(FrameError::Kind { found: KIND, expected }));
}

#[test]
fn a_header_that_claims_huge_lists_is_refused_without_the_memory_for_them() {
    let mut bytes = encoded(&Sample { blocks: Vec::new(), ..sample() }, &[]);
    // The length of `blocks` follows the layer's four bytes.
    let at = PREAMBLE_BYTES + 4;
    for claimed in [1, 1 << 20, 1 << 40, u64::MAX] {
        bytes[at..at + 8].copy_from_slice(&claimed.to_le_bytes());
        let (frames, _) = decode(&bytes, 1000);
        assert!(matches!(frames[0].header::<Sample>(), Err(FrameError::Header { .. })), "{claimed}");
    }
}

#[test]
fn headers_are_in_the_encoding_of_bincode() {
    let bytes = encoded(&Sample { layer: 1, blocks: vec![2], note: None }, &[]);
    let expected = [&1u32.to_le_bytes()[..], &1u64.to_le_bytes(), &2u64.to_le_bytes(), &[0]].concat();
    assert_eq!(bytes[PREAMBLE_BYTES..], expected);
}

#[test]
fn memory_given_back_serves_the_next_payload() {
    let mut decoder = decoder();
    let first = decoder.feed(&mut &encoded(&sample(), &[1; 800])[..]).unwrap().unwrap();
    let place = first.payload.as_bytes().as_ptr();
    decoder.recycle(first.payload);
    let second = decoder.feed(&mut &encoded(&sample(), &[2; 100])[..]).unwrap().unwrap();
    assert_eq!((second.payload.as_bytes().as_ptr(), second.payload.as_bytes()), (place, &[2; 100][..]));
}
