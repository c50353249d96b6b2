//! Bytes for small structured values, in bincode's encoding through `wincode`: what the store keeps and what membership
//! sends. Tensors and bulk data never pass here. A length inside the bytes is never believed: what may be allocated is
//! bounded by `wincode`'s own limit (4 MiB), and trailing bytes are refused.

use wincode::config::DefaultConfig;
use wincode::{SchemaReadOwned, SchemaWrite};

/// Bytes are not the value they should be. Nothing has been taken from them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes do not decode: {problem}; they were damaged, or written by another version")]
pub struct DecodeError {
    /// How many bytes there were.
    pub bytes: usize,
    /// What the decoder said.
    pub problem: String,
}

/// A value cannot be written. Nothing has been written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value does not encode: {problem}; make it smaller")]
pub struct EncodeError {
    /// What the encoder said.
    pub problem: String,
}

/// The bytes of `value`.
///
/// # Errors
/// A collection inside is larger than the encoding's limit of 4 MiB.
pub fn encode<T>(value: &T) -> Result<Vec<u8>, EncodeError>
where
    T: SchemaWrite<DefaultConfig, Src = T>,
{
    wincode::serialize(value).map_err(|error| EncodeError { problem: error.to_string() })
}

/// The value whose bytes these are, all of them.
///
/// # Errors
/// The bytes are cut short, have bytes to spare, hold a tag or a text that is none, or name a length over the limit.
pub fn decode<T>(bytes: &[u8]) -> Result<T, DecodeError>
where
    T: SchemaReadOwned<DefaultConfig, Dst = T>,
{
    wincode::deserialize_exact(bytes)
        .map_err(|error| DecodeError { bytes: bytes.len(), problem: error.to_string() })
}

/// The value at the front of `bytes`; moves `bytes` past it.
///
/// # Errors
/// As [`decode`], but for bytes to spare.
pub(crate) fn decode_front<T>(bytes: &mut &[u8]) -> Result<T, DecodeError>
where
    T: SchemaReadOwned<DefaultConfig, Dst = T>,
{
    let length = bytes.len();
    wincode::deserialize_from(&mut *bytes)
        .map_err(|error| DecodeError { bytes: length, problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use wincode::SchemaRead;

    use super::*;

    #[derive(Clone, Debug, PartialEq, SchemaWrite, SchemaRead)]
    struct Sample {
        number: u32,
        name: String,
        list: Vec<u64>,
    }

    fn sample() -> Sample {
        Sample { number: 7, name: "seven".to_owned(), list: vec![1, 2, 3] }
    }

    #[test]
    fn a_value_comes_back_from_its_bytes_which_are_those_of_bincode() {
        let bytes = encode(&sample()).expect("encodes");
        assert_eq!(bytes[..4], 7_u32.to_le_bytes());
        assert_eq!(bytes[4..12], 5_u64.to_le_bytes());
        assert_eq!(&bytes[12..17], b"seven");
        assert_eq!(bytes.len(), 4 + 8 + 5 + 8 + 3 * 8);
        assert_eq!(decode::<Sample>(&bytes), Ok(sample()));
    }

    #[test]
    fn bytes_cut_short_or_with_some_to_spare_are_refused() {
        let bytes = encode(&sample()).expect("encodes");
        for length in 0..bytes.len() {
            assert!(decode::<Sample>(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode::<Sample>(&longer).is_err());
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated_for_it() {
        let mut bytes = 7_u32.to_le_bytes().to_vec();
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(decode::<Sample>(&bytes).is_err());
    }
}
