//! Reads little-endian numbers and strings from bytes that may lie about their lengths.

use super::GgufError;

/// A position in a file that is wholly in memory or mapped.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.at as u64
    }

    pub(super) fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], GgufError> {
        match self.bytes[self.at..].split_at_checked(length) {
            Some((taken, _)) => {
                self.at += length;
                Ok(taken)
            }
            None => Err(self.truncated(length as u64, what)),
        }
    }

    /// Fails unless the rest of the file can hold `count` items of at least `least_bytes` each. Call it before
    /// trusting a count.
    pub(super) fn expect_items(
        &self,
        count: u64,
        least_bytes: u64,
        what: &'static str,
    ) -> Result<(), GgufError> {
        let needed = count.saturating_mul(least_bytes);
        if needed > (self.bytes.len() - self.at) as u64 {
            return Err(self.truncated(needed, what));
        }
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let taken = self.take(N, what)?;
        Ok(taken.try_into().expect("as long as was asked for"))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string of any bytes that the file can hold. Invalid UTF-8 is replaced, as vocabularies sometimes have it.
    pub(super) fn text(&mut self, what: &'static str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        self.expect_items(length, 1, what)?;
        let bytes = self.take(length as usize, what)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The name of a key or tensor.
    pub(super) fn name(&mut self, longest_bytes: usize) -> Result<String, GgufError> {
        let length = self.u64("a name")?;
        if length == 0 || length > longest_bytes as u64 {
            return Err(GgufError::Malformed(format!("a name has {length} bytes")));
        }
        let bytes = self.take(length as usize, "a name")?;
        match std::str::from_utf8(bytes) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(GgufError::Malformed("a name is not UTF-8".into())),
        }
    }

    fn truncated(&self, needed: u64, what: &'static str) -> GgufError {
        GgufError::Truncated { what, at: self.at as u64, needed, length: self.bytes.len() as u64 }
    }
}
