// Any bytes as a stream of frames, in pieces whose size the first byte gives.

use stellate_runtime::transport::{FrameDecoder, FrameLimits, WIRE_VERSION};

pub(crate) fn frames(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let limits = FrameLimits { header_bytes: 4096, payload_bytes: 1 << 20 };
    let mut decoder = FrameDecoder::new(WIRE_VERSION, limits);
    for mut input in bytes.chunks(usize::from(*piece).max(1)) {
        loop {
            match decoder.feed(&mut input) {
                Ok(Some(frame)) => {
                    assert!(frame.payload.len() + frame.header_bytes().len() <= bytes.len());
                    let _ = frame.header::<(u32, Vec<u64>, Option<String>)>();
                    let _ = frame.payload.as_slice_of::<f32>();
                    decoder.recycle(frame.payload);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    let _ = decoder.finish();
}
