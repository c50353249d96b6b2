// Any bytes as the headers and lists of decode streams and of copies of blocks. What is read means something that can be
// checked, and is written the same way.

use stellate_actors::link::HostId;
use stellate_actors::remote::frames::{
    Attend, AttendShape, Attended, BlockHead, Done, Fetch, MAX_TOKENS, NoTransfer, Open, Piece, Put, PutReply,
    Refused, Route, digest, read_ids, write_ids,
};
use stellate_kernels::{KvFormat, KvShape};
use stellate_runtime::encoding::{decode, encode};

const SHAPE: AttendShape = AttendShape { layers: 16, heads: 32, head_dim: 64 };
const KV: KvShape = KvShape { layers: 2, kv_heads: 2, head_dim: 24, format: KvFormat::Bf16 };

macro_rules! same {
    ($($header:ty),* => $bytes:expr) => {
        $(if let Ok(header) = decode::<$header>($bytes) {
            assert_eq!(encode(&header).expect("it was read"), $bytes);
        })*
    };
}

pub(crate) fn headers(bytes: &[u8]) {
    same!(Open, Route, Attend, Attended, Refused, Fetch, BlockHead, Piece, Done, Put, PutReply, NoTransfer => bytes);
    if let Ok(attend) = decode::<Attend>(bytes) {
        let queries = SHAPE.query_bytes(attend.tokens as usize % (2 * MAX_TOKENS));
        for blocks in [0, 1, usize::MAX] {
            let _ = attend.check(queries, blocks, SHAPE);
        }
    }
    if let Ok(refused) = decode::<Refused>(bytes) {
        let _ = refused.reason.into_error(HostId(1)).to_string();
    }
    if let Ok(head) = decode::<BlockHead>(bytes) {
        assert!(!head.is_of(KV, 100, head.offset) || head.tokens == 100);
    }
    if let Some(ids) = read_ids(bytes) {
        assert_eq!(write_ids(&ids), bytes);
        let _ = digest(&ids);
    }
}
