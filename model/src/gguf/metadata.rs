//! The metadata of a GGUF file: typed values by key. Knows nothing of what the keys mean.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::{GgufError, MAX_NAME_BYTES};

/// Least bytes of a metadata entry: key length, type, value.
const LEAST_ENTRY_BYTES: u64 = 8 + 4 + 1;
/// Arrays of arrays deeper than this are refused: no key uses any, and recursion must end.
const MAX_DEPTH: usize = 4;

/// A metadata value. Integers of all widths are widened to i64, floats to f64; long arrays keep a narrower type.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// An integer of any width. An unsigned one beyond `i64::MAX` is refused.
    Integer(i64),
    /// A float of either width.
    Float(f64),
    /// True or false.
    Flag(bool),
    /// A string.
    Text(String),
    /// An array of integers of one width.
    Integers(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f32>),
    /// An array of flags.
    Flags(Vec<bool>),
    /// An array of strings.
    Texts(Vec<String>),
    /// An array of arrays.
    Nested(Vec<GgufValue>),
}

/// All metadata of a file, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufMetadata {
    entries: BTreeMap<String, GgufValue>,
}

impl GgufMetadata {
    pub(super) fn read(cursor: &mut Cursor<'_>, count: u64) -> Result<Self, GgufError> {
        cursor.expect_items(count, LEAST_ENTRY_BYTES, "the metadata")?;
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let key = cursor.name(MAX_NAME_BYTES)?;
            let kind = Kind::read(cursor)?;
            let value = kind.value(cursor, 0)?;
            if entries.insert(key.clone(), value).is_some() {
                return Err(GgufError::Malformed(format!("the metadata has `{key}` twice")));
            }
        }
        Ok(Self { entries })
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.entries.get(key)
    }

    /// All entries, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key, if it is an integer.
    pub fn integer(&self, key: &str) -> Option<i64> {
        match self.get(key)? {
            GgufValue::Integer(value) => Some(*value),
            _ => None,
        }
    }

    /// The value of a key, if it is an integer that can be a token id.
    pub fn id(&self, key: &str) -> Option<u32> {
        u32::try_from(self.integer(key)?).ok()
    }

    /// The value of a key, if it is a number of any kind.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            GgufValue::Integer(value) => Some(*value as f64),
            GgufValue::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// The value of a key, if it is a flag.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            GgufValue::Flag(value) => Some(*value),
            _ => None,
        }
    }

    /// The value of a key, if it is a string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            GgufValue::Text(value) => Some(value),
            _ => None,
        }
    }

    /// The value of a key, if it is an array of integers.
    pub fn integers(&self, key: &str) -> Option<&[i64]> {
        match self.get(key)? {
            GgufValue::Integers(values) => Some(values),
            _ => None,
        }
    }

    /// The value of a key, if it is an array of floats.
    pub fn floats(&self, key: &str) -> Option<&[f32]> {
        match self.get(key)? {
            GgufValue::Floats(values) => Some(values),
            _ => None,
        }
    }

    /// The value of a key, if it is an array of strings.
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.get(key)? {
            GgufValue::Texts(values) => Some(values),
            _ => None,
        }
    }
}

impl FromIterator<(String, GgufValue)> for GgufMetadata {
    fn from_iter<I: IntoIterator<Item = (String, GgufValue)>>(entries: I) -> Self {
        Self { entries: entries.into_iter().collect() }
    }
}

/// The type of a value, as numbered in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Flag,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, GgufError> {
        Ok(match cursor.u32("a value's type")? {
            0 => Kind::U8,
            1 => Kind::I8,
            2 => Kind::U16,
            3 => Kind::I16,
            4 => Kind::U32,
            5 => Kind::I32,
            6 => Kind::F32,
            7 => Kind::Flag,
            8 => Kind::Text,
            9 => Kind::Array,
            10 => Kind::U64,
            11 => Kind::I64,
            12 => Kind::F64,
            other => return Err(GgufError::Malformed(format!("{other} is no type of metadata"))),
        })
    }

    /// Least bytes of a value in the file.
    fn least_bytes(self) -> u64 {
        match self {
            Kind::U8 | Kind::I8 | Kind::Flag => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::Text => 8,
            Kind::Array => 12,
        }
    }

    fn integer(self, cursor: &mut Cursor<'_>) -> Result<i64, GgufError> {
        const WHAT: &str = "an integer";
        Ok(match self {
            Kind::U8 => i64::from(u8::from_le_bytes(cursor.array(WHAT)?)),
            Kind::I8 => i64::from(i8::from_le_bytes(cursor.array(WHAT)?)),
            Kind::U16 => i64::from(u16::from_le_bytes(cursor.array(WHAT)?)),
            Kind::I16 => i64::from(i16::from_le_bytes(cursor.array(WHAT)?)),
            Kind::U32 => i64::from(u32::from_le_bytes(cursor.array(WHAT)?)),
            Kind::I32 => i64::from(i32::from_le_bytes(cursor.array(WHAT)?)),
            Kind::I64 => i64::from_le_bytes(cursor.array(WHAT)?),
            _ => i64::try_from(u64::from_le_bytes(cursor.array(WHAT)?))
                .map_err(|_| GgufError::Malformed("an integer in the metadata is beyond 63 bits".into()))?,
        })
    }

    fn float(self, cursor: &mut Cursor<'_>) -> Result<f64, GgufError> {
        Ok(match self {
            Kind::F32 => f64::from(f32::from_le_bytes(cursor.array("a float")?)),
            _ => f64::from_le_bytes(cursor.array("a float")?),
        })
    }

    fn value(self, cursor: &mut Cursor<'_>, depth: usize) -> Result<GgufValue, GgufError> {
        Ok(match self {
            Kind::F32 | Kind::F64 => GgufValue::Float(self.float(cursor)?),
            Kind::Flag => GgufValue::Flag(flag(cursor)?),
            Kind::Text => GgufValue::Text(cursor.text("a string")?),
            Kind::Array => return array(cursor, depth + 1),
            _ => GgufValue::Integer(self.integer(cursor)?),
        })
    }
}

fn flag(cursor: &mut Cursor<'_>) -> Result<bool, GgufError> {
    match cursor.array::<1>("a flag")? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(GgufError::Malformed(format!("{other} is neither true nor false"))),
    }
}

fn array(cursor: &mut Cursor<'_>, depth: usize) -> Result<GgufValue, GgufError> {
    if depth > MAX_DEPTH {
        return Err(GgufError::Malformed(format!("arrays are nested more than {MAX_DEPTH} deep")));
    }
    let kind = Kind::read(cursor)?;
    let count = cursor.u64("the length of an array")?;
    cursor.expect_items(count, kind.least_bytes(), "an array")?;
    let items = 0..count;
    Ok(match kind {
        Kind::F32 | Kind::F64 => {
            let floats = items.map(|_| kind.float(cursor).map(|value| value as f32));
            GgufValue::Floats(floats.collect::<Result<_, _>>()?)
        }
        Kind::Flag => GgufValue::Flags(items.map(|_| flag(cursor)).collect::<Result<_, _>>()?),
        Kind::Text => GgufValue::Texts(items.map(|_| cursor.text("a string")).collect::<Result<_, _>>()?),
        Kind::Array => GgufValue::Nested(items.map(|_| array(cursor, depth + 1)).collect::<Result<_, _>>()?),
        _ => GgufValue::Integers(items.map(|_| kind.integer(cursor)).collect::<Result<_, _>>()?),
    })
}
