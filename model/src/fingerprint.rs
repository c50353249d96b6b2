//! What a model computes, as one hash: configuration, tensors (names, shapes, stored formats, contents) and the
//! formats they run in. Equal fingerprints give equal keys and values for equal tokens; block addresses build on it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use stellate_kernels::WeightFormat;

use crate::config::ModelConfig;

/// Changes whenever the arithmetic of the decoder or what is hashed changes, so that old blocks are not reused.
const DOMAIN: &str = "stellate model 1";

/// A 256-bit blake3 hash of a model and the formats it runs in. Prints as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fingerprint([u8; 32]);

/// A text that is not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a fingerprint, which has 64 hexadecimal digits")]
pub struct FingerprintError(String);

impl Fingerprint {
    /// The fingerprint of arbitrary bytes: for models that are made rather than loaded, and for tests.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// A fingerprint from its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| FingerprintError(text.to_owned()))?;
        Ok(Self(*hash.as_bytes()))
    }
}

/// Builds a fingerprint while contents stream by. Every field is preceded by its length, so that no two models can
/// hash the same bytes.
pub(crate) struct Hasher(blake3::Hasher);

impl Hasher {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let mut hasher = Self(blake3::Hasher::new());
        hasher.text(DOMAIN);
        let config = serde_json::to_string(config).expect("a configuration is numbers, flags and names");
        hasher.text(&config);
        hasher
    }

    /// Announces a tensor; its contents follow through [`contents`](Self::contents).
    pub(crate) fn tensor(&mut self, name: &str, stored: &str, shape: &[usize], running: WeightFormat) {
        self.text(name);
        self.text(stored);
        self.number(shape.len() as u64);
        shape.iter().for_each(|&size| self.number(size as u64));
        self.text(&running.to_string());
    }

    pub(crate) fn contents(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    pub(crate) fn finish(self) -> Fingerprint {
        Fingerprint(*self.0.finalize().as_bytes())
    }
}
