//! The types of single settings: words with a fixed list of choices, sizes in bytes, the anchor's length. They are
//! settings only; what a format means is known to `stellate-kernels` and `stellate-model`, which this crate never sees.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A text that is not a value of the setting's type. Nothing is changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found \"{found}\", expected {expected}")]
pub struct ValueError {
    /// What was written.
    pub found: String,
    /// What would have been understood.
    pub expected: String,
}

/// An enum whose variants are written as fixed words in files, variables and flags.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word for it in files, variables and flags.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(ValueError {
                        found: text.to_owned(),
                        expected: format!("one of {}", [$(concat!("\"", $word, "\"")),*].join(", ")),
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ValueError;

            fn try_from(text: String) -> Result<Self, ValueError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.as_str().to_owned()
            }
        }
    };
}

words! {
    /// The format weights run in.
    WeightFormat {
        /// The checkpoint's own format where it is one of the others.
        Auto = "auto",
        /// 32-bit floating point.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
        /// 8-bit integers in groups of 32.
        Q8_0 = "q8_0",
        /// 4-bit integers in groups of 32 under super-groups of 256.
        Q4K = "q4_k",
    }
}

words! {
    /// How a context is encoded.
    AttentionMode {
        /// Each block behind the anchor; blocks do not see each other.
        Star = "star",
        /// Each block sees all earlier ones.
        Exact = "exact",
    }
}

words! {
    /// The format of keys and values.
    KvFormat {
        /// 32-bit floating point.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
        /// 8-bit integers, and a scale for each key and each value of each head.
        Q8 = "q8",
    }
}

words! {
    /// What a node is there for.
    NodeRole {
        /// Holds blocks.
        Context = "context",
        /// Runs sessions.
        Query = "query",
        /// May place blocks.
        Supervisor = "supervisor",
    }
}

words! {
    /// How a block is made again elsewhere.
    Repair {
        /// Whichever of the others takes less time.
        Cheapest = "cheapest",
        /// Copied from a host that holds it.
        Copy = "copy",
        /// Encoded again from its tokens.
        Recompute = "recompute",
    }
}

words! {
    /// Where the context stands in the chat template.
    ContextRole {
        /// In the user's first message, before the first question.
        Auto = "auto",
        /// In the system message.
        System = "system",
        /// In the user's first message.
        User = "user",
    }
}

words! {
    /// The form of log lines.
    LogFormat {
        /// For people.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
    }
}

/// The anchor's length as it is written: a number of tokens, or "block".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnchorTokens {
    /// As long as a block.
    Block,
    /// This many tokens; 0 for no anchor.
    Tokens(usize),
}

impl AnchorTokens {
    const EXPECTED: &'static str = "a number of tokens from 0 to attention.block_tokens, or \"block\"";
}

impl fmt::Display for AnchorTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block => f.write_str("block"),
            Self::Tokens(tokens) => write!(f, "{tokens}"),
        }
    }
}

impl FromStr for AnchorTokens {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "block" {
            return Ok(Self::Block);
        }
        text.parse()
            .map(Self::Tokens)
            .map_err(|_| ValueError { found: text.to_owned(), expected: Self::EXPECTED.to_owned() })
    }
}

impl Serialize for AnchorTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Block => serializer.serialize_str("block"),
            Self::Tokens(tokens) => serializer.serialize_u64(*tokens as u64),
        }
    }
}

impl<'de> Deserialize<'de> for AnchorTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(TextOrCount(Self::EXPECTED))
            .and_then(|text| text.parse().map_err(de::Error::custom))
    }
}

/// A number of bytes. Written as a plain number or with a unit: `4GiB`, `512 MiB`, `1.5GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

impl Bytes {
    const EXPECTED: &'static str =
        "a number of bytes, plain or with a unit: 1048576, \"512MiB\", \"4GiB\", \"1.5GB\"";

    /// Units from the largest; those of 1024 first, so that [`Display`](fmt::Display) prefers them.
    const UNITS: [(&'static str, u64); 9] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("TB", 1_000_000_000_000),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("kB", 1_000),
        ("B", 1),
    ];

    /// `bytes` bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Bytes {
    /// Exact, and read back as the same number: the largest power of 1024 that divides it, else plain bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in &Self::UNITS[..4] {
            if self.0 >= *size && self.0.is_multiple_of(*size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl FromStr for Bytes {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError { found: text.to_owned(), expected: Self::EXPECTED.to_owned() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..digits], trimmed[digits..].trim_start());
        let size = match unit {
            "" => 1,
            unit => Self::UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(error)?.1,
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(size).map(Self).ok_or_else(error);
        }
        let bytes = number.parse::<f64>().map_err(|_| error())? * size as f64;
        // A part of a byte, or more bytes than an f64 counts exactly, is surely not what was meant.
        if bytes.fract() != 0.0 || bytes >= (1_u64 << 53) as f64 {
            return Err(error());
        }
        Ok(Self(bytes as u64))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(TextOrCount(Self::EXPECTED))
            .and_then(|text| text.parse().map_err(de::Error::custom))
    }
}

/// Takes a text or a whole number, as a text.
struct TextOrCount(&'static str);

impl Visitor<'_> for TextOrCount {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: de::Error>(self, count: i64) -> Result<String, E> {
        Ok(count.to_string())
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> Result<String, E> {
        Ok(count.to_string())
    }
}
