//! The checksum of a block's raw bytes, which both ends of a copy compare: XXH3 in 128 bits, at about the rate of memory. It
//! tells faults of memory, of a wire and of code; it is no proof against a host that lies, which could lie about any sum. Who may
//! send at all, and that nobody changes bytes on their way, is TLS's part.

use std::fmt;

use serde::{Deserialize, Serialize};
use twox_hash::xxhash3_128::Hasher;
use wincode::{SchemaRead, SchemaWrite};

/// XXH3-128 of a block's raw bytes, seed 0, most significant byte first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct Checksum(pub [u8; 16]);

impl Checksum {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Hasher::oneshot(bytes).to_be_bytes())
    }
}

/// As 32 hexadecimal digits.
impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A checksum of bytes that come piece by piece.
#[derive(Clone)]
pub struct Summing(Hasher);

impl Summing {
    /// Takes the bytes that come next.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Of what has come.
    pub fn sum(&self) -> Checksum {
        Checksum(self.0.finish_128().to_be_bytes())
    }
}

impl Default for Summing {
    fn default() -> Self {
        Self(Hasher::new())
    }
}

impl fmt::Debug for Summing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sum().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are of the reference implementation's `XXH3_128bits`.
    #[test]
    fn it_is_xxh3_however_the_bytes_come_and_tells_any_bit() {
        assert_eq!(format!("{:?}", Checksum::of(b"")), "99aa06d3014798d86001c324468d497f");
        let bytes: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
        let whole = Checksum::of(&bytes);
        for piece in [1, 7, 1024, 65_536] {
            let mut summing = Summing::default();
            bytes.chunks(piece).for_each(|piece| summing.update(piece));
            assert_eq!(summing.sum(), whole, "pieces of {piece}");
        }
        for at in (0..bytes.len()).step_by(997) {
            let mut other = bytes.clone();
            other[at] ^= 1 << (at % 8);
            assert_ne!(Checksum::of(&other), whole, "byte {at}");
        }
    }
}
