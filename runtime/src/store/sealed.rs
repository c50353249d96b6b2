//! The form of a value in the file: a checksum over where it belongs and what it says, then the fixed numbers, then the
//! bytes. The database checks its pages only when it repairs; this finds what went wrong at any other time, and a value
//! that turns up under another key.

use super::error::StoreError;

/// Bytes of the checksum, the front of a BLAKE3 hash.
const CHECKSUM_BYTES: usize = 16;

/// `numbers` and `bytes` as they lie in the file at `place`.
pub(super) fn seal<const N: usize>(place: &Place<'_>, numbers: [u64; N], bytes: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(CHECKSUM_BYTES + 8 * N + bytes.len());
    sealed.extend([0; CHECKSUM_BYTES]);
    for number in numbers {
        sealed.extend(number.to_le_bytes());
    }
    sealed.extend(bytes);
    let checksum = checksum(place, &sealed[CHECKSUM_BYTES..]);
    sealed[..CHECKSUM_BYTES].copy_from_slice(&checksum);
    sealed
}

/// The numbers and the bytes that were sealed at `place`.
///
/// # Errors
/// [`StoreError::Corrupt`] if they are not what was sealed there.
pub(super) fn open<'sealed, const N: usize>(
    place: &Place<'_>,
    sealed: &'sealed [u8],
) -> Result<([u64; N], &'sealed [u8]), StoreError> {
    let damaged = || StoreError::Corrupt { what: place.to_string() };
    let (stored, content) = sealed.split_at_checked(CHECKSUM_BYTES).ok_or_else(damaged)?;
    if stored != checksum(place, content) {
        return Err(damaged());
    }
    let (head, bytes) = content.split_at_checked(8 * N).ok_or_else(damaged)?;
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(head.as_chunks().0) {
        *number = u64::from_le_bytes(*bytes);
    }
    Ok((numbers, bytes))
}

/// Where a value belongs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'key> {
    Record(u8, &'key [u8]),
    Head(&'key [u8]),
    Entry(&'key [u8], u64),
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Record(kind, key) => write!(out, "the record {} of kind {kind}", key.escape_ascii()),
            Self::Head(log) => write!(out, "the head of the log {}", log.escape_ascii()),
            Self::Entry(log, index) => write!(out, "entry {index} of the log {}", log.escape_ascii()),
        }
    }
}

fn checksum(place: &Place<'_>, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let (tag, number, key) = match place {
        Place::Record(kind, key) => (b'r', u64::from(*kind), key),
        Place::Head(log) => (b'h', 0, log),
        Place::Entry(log, index) => (b'e', *index, log),
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[tag]);
    hasher.update(&number.to_le_bytes());
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(content);
    let mut front = [0; CHECKSUM_BYTES];
    front.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_BYTES]);
    front
}
