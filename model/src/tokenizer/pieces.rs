//! What bytes each token id stands for: the decoders of byte-level BPE and of SentencePiece, worked out once per
//! vocabulary into a table. Turning those bytes into text is `crate::stream`'s.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::Tokenizer as Library;

use super::{MAX_VOCAB, TokenizerError};

/// The bytes of every token, and which tokens are special.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// `ends[id]`: where the bytes of `id` end; they begin where those of `id - 1` end.
    ends: Vec<usize>,
    special: Vec<bool>,
    strip: Strip,
}

/// Up to `count` bytes `byte` are dropped from the beginning of a text: SentencePiece's own leading space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Strip {
    pub(crate) byte: u8,
    pub(crate) count: usize,
}

/// How a vocabulary entry is turned into bytes.
#[derive(Debug, PartialEq)]
enum Scheme {
    /// Every byte is written as one printable character (GPT-2).
    ByteLevel,
    /// Words are joined by a mark that stands for a space; bytes without an entry are written `<0xE4>`.
    SentencePiece { replace: Vec<(String, String)>, byte_fallback: bool, strip: Strip },
}

impl Pieces {
    /// Works out the table from a loaded tokenizer and the `decoder` of its file.
    pub(crate) fn new(library: &Library, decoder: Option<&Value>) -> Result<Self, TokenizerError> {
        let scheme = Scheme::read(decoder)?;
        let alphabet = byte_alphabet();
        let added = library.get_added_tokens_decoder();
        let mut entries: Vec<(u32, Vec<u8>)> = Vec::new();
        for (token, id) in library.get_vocab(false) {
            if !added.contains_key(&id) {
                entries.push((id, scheme.bytes(&token, &alphabet)));
            }
        }
        let mut special_ids = Vec::new();
        for (&id, token) in &added {
            entries.push((id, scheme.added_bytes(&token.content)));
            if token.special {
                special_ids.push(id);
            }
        }
        entries.sort_unstable_by_key(|&(id, _)| id);
        let len = entries.last().map_or(0, |&(id, _)| id as usize + 1);
        if len > MAX_VOCAB {
            return Err(TokenizerError::IdTooLarge { id: len as u64 - 1 });
        }
        let mut pieces =
            Self { bytes: Vec::new(), ends: vec![0; len], special: vec![false; len], strip: scheme.strip() };
        let mut entries = entries.into_iter().peekable();
        for id in 0..len {
            while let Some((_, bytes)) = entries.next_if(|&(entry, _)| entry as usize == id) {
                // Two spellings of one id: either will do, but the order of a hash map must not choose.
                let start = if id == 0 { 0 } else { pieces.ends[id - 1] };
                if bytes.as_slice() > &pieces.bytes[start..] {
                    pieces.bytes.truncate(start);
                    pieces.bytes.extend_from_slice(&bytes);
                }
            }
            pieces.ends[id] = pieces.bytes.len();
        }
        for id in special_ids {
            pieces.special[id as usize] = true;
        }
        Ok(pieces)
    }

    /// One more than the highest id.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of `id`; none for an id without an entry.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(crate) fn strip(&self) -> Strip {
        self.strip
    }
}

impl Scheme {
    /// Reads the `decoder` of a `tokenizer.json`: `ByteLevel`, `Metaspace`, or a `Sequence` of `Replace`,
    /// `ByteFallback`, `Fuse` and `Strip` (Llama 2, Mistral).
    fn read(decoder: Option<&Value>) -> Result<Self, TokenizerError> {
        let mut steps = Vec::new();
        match decoder {
            Some(value) => flatten(value, &mut steps),
            None => return Err(TokenizerError::UnsupportedDecoder { kind: "none".to_owned() }),
        }
        let mut replace = Vec::new();
        let (mut byte_fallback, mut fused, mut strip) = (false, false, Strip::default());
        for step in &steps {
            let unsupported = || TokenizerError::UnsupportedDecoder { kind: step.to_string() };
            match step.get("type").and_then(Value::as_str).unwrap_or_default() {
                "ByteLevel" if steps.len() == 1 => return Ok(Self::ByteLevel),
                "Metaspace" => {
                    let mark = step.get("replacement").and_then(Value::as_str).ok_or_else(unsupported)?;
                    let never = step.get("prepend_scheme").and_then(Value::as_str) == Some("never");
                    replace.push((mark.to_owned(), " ".to_owned()));
                    strip = Strip { byte: b' ', count: usize::from(!never) };
                }
                "Replace" => {
                    let from = step.pointer("/pattern/String").and_then(Value::as_str);
                    let from = from.filter(|from| !from.is_empty()).ok_or_else(unsupported)?;
                    let to = step.get("content").and_then(Value::as_str).ok_or_else(unsupported)?;
                    replace.push((from.to_owned(), to.to_owned()));
                }
                "ByteFallback" => byte_fallback = true,
                "Fuse" => fused = true,
                "Strip" if fused && step.get("stop").and_then(Value::as_u64) == Some(0) => {
                    let content = step.get("content").and_then(Value::as_str).unwrap_or_default();
                    let count = step.get("start").and_then(Value::as_u64).ok_or_else(unsupported)?;
                    let &[byte] = content.as_bytes() else { return Err(unsupported()) };
                    strip = Strip { byte, count: usize::try_from(count).map_err(|_| unsupported())? };
                }
                _ => return Err(unsupported()),
            }
        }
        Ok(Self::SentencePiece { replace, byte_fallback, strip })
    }

    fn bytes(&self, token: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
        match self {
            // A token outside the alphabet stands for itself, as in the library.
            Self::ByteLevel => token
                .chars()
                .map(|char| alphabet.get(&char).copied())
                .collect::<Option<_>>()
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Self::SentencePiece { byte_fallback, .. } => match byte_token(token) {
                Some(byte) if *byte_fallback => vec![byte],
                _ => self.added_bytes(token),
            },
        }
    }

    /// Added tokens are matched in plain text, so they are written in plain text, not in the byte alphabet.
    fn added_bytes(&self, content: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => content.as_bytes().to_vec(),
            Self::SentencePiece { replace, .. } => {
                let text = replace.iter().fold(content.to_owned(), |text, (from, to)| text.replace(from, to));
                text.into_bytes()
            }
        }
    }

    fn strip(&self) -> Strip {
        match self {
            Self::ByteLevel => Strip::default(),
            Self::SentencePiece { strip, .. } => *strip,
        }
    }
}

/// The steps of a decoder in order, sequences inside sequences opened.
fn flatten<'a>(step: &'a Value, steps: &mut Vec<&'a Value>) {
    match step.get("decoders").and_then(Value::as_array) {
        Some(inner) => inner.iter().for_each(|step| flatten(step, steps)),
        None => steps.push(step),
    }
}

/// The byte that `<0xE4>` stands for.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// GPT-2's printable character for each byte (`bytes_to_unicode` in its `encoder.py`), inverted.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut alphabet = HashMap::new();
    let mut next = 256u32;
    for byte in 0..=255u8 {
        let char = match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).expect("code points 256 to 323 are characters")
            }
        };
        alphabet.insert(char, byte);
    }
    alphabet
}
