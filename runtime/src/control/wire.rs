//! Arguments of messages between nodes in the encoding of [`crate::encoding`]: bounded, and without a panic whatever bytes
//! arrive. The actor finds out what is wrong when it takes the value, and answers with an error of its own.

use ractor::BytesConvertable;
use wincode::config::DefaultConfig;
use wincode::{SchemaReadOwned, SchemaWrite};

use crate::encoding::{DecodeError, decode, encode};

/// Longest argument: four bytes for each token of a million. What is longer is split, or goes over a stream of its own.
pub const MAX_WIRE_BYTES: usize = 4 << 20;

/// The first byte of an argument: a value follows, or why there is none.
const VALUE: u8 = 0;
const NO_VALUE: u8 = 1;
/// Longest reason that is sent in place of a value.
const MAX_REASON_CHARS: usize = 200;

/// A plain struct or enum that derives [`wincode::SchemaRead`] and [`wincode::SchemaWrite`].
pub trait WireValue:
    SchemaWrite<DefaultConfig, Src = Self> + SchemaReadOwned<DefaultConfig, Dst = Self> + Sized + Send + 'static
{
}

impl<T> WireValue for T where
    T: SchemaWrite<DefaultConfig, Src = T> + SchemaReadOwned<DefaultConfig, Dst = T> + Sized + Send + 'static
{
}

/// An argument is not there. The message has arrived otherwise, and a call can be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are none of the type.
    #[error(transparent)]
    Malformed(#[from] DecodeError),

    /// Longer than may be.
    #[error("an argument of {bytes} bytes came, at most {MAX_WIRE_BYTES} may; send less at once")]
    TooLong {
        /// Its length.
        bytes: usize,
    },

    /// The sender could not encode it.
    #[error("the sender could not encode an argument: {reason}; send less at once")]
    NotSent {
        /// Why.
        reason: String,
    },
}

/// An argument of a message, or an answer. Within a process it passes as it is; between nodes as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire<T>(Result<T, WireError>);

impl<T> Wire<T> {
    /// To be sent.
    pub fn new(value: T) -> Self {
        Self(Ok(value))
    }

    /// What was sent.
    ///
    /// # Errors
    /// What came is none, see [`WireError`].
    pub fn take(self) -> Result<T, WireError> {
        self.0
    }

    /// What was sent, in place.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn get(&self) -> Result<&T, &WireError> {
        self.0.as_ref()
    }
}

impl<T> From<T> for Wire<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: WireValue> BytesConvertable for Wire<T> {
    fn into_bytes(self) -> Vec<u8> {
        let reason = match self.0.map(|value| encode(&value)) {
            Ok(Ok(body)) if body.len() <= MAX_WIRE_BYTES => {
                let mut bytes = Vec::with_capacity(1 + body.len());
                bytes.push(VALUE);
                bytes.extend(body);
                return bytes;
            }
            Ok(Ok(body)) => format!("{} bytes, at most {MAX_WIRE_BYTES} may be", body.len()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(%reason, "an argument of a message does not encode; its receiver is told");
        let mut bytes = vec![NO_VALUE];
        bytes.extend(reason.chars().take(MAX_REASON_CHARS).collect::<String>().into_bytes());
        bytes
    }

    fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(match bytes.split_first() {
            _ if bytes.len() > 1 + MAX_WIRE_BYTES => Err(WireError::TooLong { bytes: bytes.len() }),
            Some((&VALUE, body)) => decode(body).map_err(WireError::Malformed),
            Some((&NO_VALUE, reason)) => {
                let reason = String::from_utf8_lossy(reason).chars().take(MAX_REASON_CHARS).collect();
                Err(WireError::NotSent { reason })
            }
            _ => {
                let problem = "neither a value nor the reason why there is none".to_owned();
                Err(WireError::Malformed(DecodeError { bytes: bytes.len(), problem }))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wincode::{SchemaRead, SchemaWrite};

    use super::*;

    #[derive(Clone, Debug, PartialEq, SchemaWrite, SchemaRead)]
    enum Order {
        Encode { block: [u8; 32], tokens: Vec<u32>, note: Option<String> },
        Free(Vec<u64>),
    }

    fn order() -> Order {
        Order::Encode { block: [7; 32], tokens: vec![1, 2, 3], note: Some("first".to_owned()) }
    }

    fn sent<T: WireValue>(value: T) -> Result<T, WireError> {
        Wire::<T>::from_bytes(Wire::new(value).into_bytes()).take()
    }

    #[test]
    fn a_value_comes_back_from_its_bytes() {
        assert_eq!(sent(order()), Ok(order()));
        assert_eq!(sent(Order::Free(vec![])), Ok(Order::Free(vec![])));
    }

    #[test]
    fn a_value_that_is_too_long_is_told_to_the_receiver_and_not_sent() {
        let error = sent(vec![0_u64; MAX_WIRE_BYTES / 8 + 1]).unwrap_err();
        assert!(matches!(error, WireError::NotSent { .. }), "{error}");
        let bytes = vec![VALUE; 2 + MAX_WIRE_BYTES];
        let error = Wire::<Order>::from_bytes(bytes).take().unwrap_err();
        assert_eq!(error, WireError::TooLong { bytes: 2 + MAX_WIRE_BYTES });
    }

    #[test]
    fn bytes_cut_short_or_changed_are_an_error_or_another_value_and_never_a_panic() {
        let bytes = Wire::new(order()).into_bytes();
        for length in 0..bytes.len() {
            assert!(Wire::<Order>::from_bytes(bytes[..length].to_vec()).take().is_err(), "{length} bytes");
        }
        for (at, flipped) in (0..bytes.len()).flat_map(|at| [(at, 1_u8), (at, 0xff)]) {
            let mut changed = bytes.clone();
            changed[at] ^= flipped;
            let _ = Wire::<Order>::from_bytes(changed).take();
        }
        let claims_much = [&[VALUE, 1, 0, 0, 0][..], &u64::MAX.to_le_bytes()].concat();
        assert!(Wire::<Order>::from_bytes(claims_much).take().is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Wire::<Order>::from_bytes(bytes.clone()).take();
            let _ = Wire::<Vec<String>>::from_bytes(bytes).take();
        }
    }
}
