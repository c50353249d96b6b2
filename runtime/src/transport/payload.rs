//! The raw bytes of a frame after its header: tensors, as a rule. They are kept in whole 64-bit words, so that they can be
//! read as numbers in place.

use std::fmt;

use bytemuck::Pod;

#[cfg(target_endian = "big")]
compile_error!(
    "tensors travel as little-endian bytes and are read in place; big-endian machines need a conversion here"
);

/// Bytes that start at an 8-byte boundary.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Payload {
    words: Vec<u64>,
    len: usize,
}

/// A payload does not hold whole values of the type it was read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {bytes} bytes does not hold whole values of {value_bytes} bytes")]
pub struct PayloadShapeError {
    /// What there is.
    pub bytes: usize,
    /// Size of one value.
    pub value_bytes: usize,
}

impl Payload {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    /// The bytes as values (`f32`, `half::bf16`, `u32`, …) without copying.
    ///
    /// # Panics
    /// If `T` wants more than 8 bytes of alignment, which no tensor element does.
    pub fn as_slice_of<T: Pod>(&self) -> Result<&[T], PayloadShapeError> {
        assert!(align_of::<T>() <= align_of::<u64>(), "elements are aligned to 8 bytes at most");
        let bytes = self.as_bytes();
        bytemuck::try_cast_slice(bytes)
            .map_err(|_| PayloadShapeError { bytes: bytes.len(), value_bytes: size_of::<T>() })
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        let mut filling = Filling::new(bytes.len(), Self::default());
        filling.take(&mut &bytes[..]);
        filling.finish()
    }
}

/// Its length only: tensors are no reading.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len)
    }
}

/// Memory that is set aside on a mere claim of a length; beyond it, memory grows as bytes arrive.
const RESERVED_ON_CLAIM_BYTES: usize = 256 << 10;

/// A payload of a known length that is arriving piece by piece.
#[derive(Debug)]
pub(super) struct Filling {
    words: Vec<u64>,
    /// The bytes of a word that is not whole yet.
    part: [u8; 8],
    taken: usize,
    len: usize,
}

impl Filling {
    /// For `len` bytes, in the memory of `spare`.
    pub(super) fn new(len: usize, spare: Payload) -> Self {
        let mut words = spare.words;
        words.clear();
        words.reserve(len.min(RESERVED_ON_CLAIM_BYTES).div_ceil(8));
        Self { words, part: [0; 8], taken: 0, len }
    }

    pub(super) fn missing(&self) -> usize {
        self.len - self.taken
    }

    /// Takes what belongs to the payload off the front of `input`.
    pub(super) fn take(&mut self, input: &mut &[u8]) {
        let (mut bytes, rest) = input.split_at(input.len().min(self.missing()));
        *input = rest;
        let at = self.taken % 8;
        self.taken += bytes.len();
        if at > 0 {
            let (now, later) = bytes.split_at(bytes.len().min(8 - at));
            self.part[at..at + now.len()].copy_from_slice(now);
            bytes = later;
            if at + now.len() < 8 {
                return;
            }
            self.words.push(u64::from_ne_bytes(self.part));
        }
        let (whole, part) = bytes.as_chunks::<8>();
        self.words.extend(whole.iter().map(|word| u64::from_ne_bytes(*word)));
        self.part[..part.len()].copy_from_slice(part);
    }

    /// The payload, once nothing is missing.
    pub(super) fn finish(mut self) -> Payload {
        debug_assert_eq!(self.missing(), 0, "a payload is finished when it is whole");
        let part = self.len % 8;
        if part > 0 {
            self.part[part..].fill(0);
            self.words.push(u64::from_ne_bytes(self.part));
        }
        Payload { words: self.words, len: self.len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_that_arrive_in_any_pieces_are_the_same_bytes(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            piece in 1usize..40,
        ) {
            let mut filling = Filling::new(bytes.len(), Payload::from(&[9; 33][..]));
            for mut part in bytes.chunks(piece) {
                filling.take(&mut part);
                prop_assert!(part.is_empty());
            }
            let payload = filling.finish();
            prop_assert_eq!(payload.as_bytes(), &bytes[..]);
            prop_assert_eq!(payload.len(), bytes.len());
        }
    }

    #[test]
    fn a_payload_is_read_as_numbers_in_place_if_it_holds_whole_ones() {
        let numbers = [1.5f32, -2.0, 3.25];
        let payload = Payload::from(bytemuck::cast_slice(&numbers));
        assert_eq!(payload.as_slice_of::<f32>(), Ok(&numbers[..]));
        assert_eq!(payload.as_slice_of::<u64>(), Err(PayloadShapeError { bytes: 12, value_bytes: 8 }));
        assert!(Payload::default().is_empty());
        assert_eq!(Payload::default().as_slice_of::<f32>(), Ok(&[][..]));
    }

    #[test]
    fn a_claimed_length_buys_no_memory() {
        let filling = Filling::new(usize::MAX / 2, Payload::default());
        assert!(filling.words.capacity() <= RESERVED_ON_CLAIM_BYTES);
    }
}
