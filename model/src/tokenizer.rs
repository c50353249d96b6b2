//! The tokenizer of a checkpoint: text to ids and back, from `tokenizer.json` or from what a GGUF file carries.
//!
//! Splitting and merging are the `tokenizers` crate's; decoding is ours (see `pieces`), so that a stream of ids and a
//! whole list of ids give the same text by construction. Incremental decoding lives in [`crate::stream`].

mod gguf;
mod pieces;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Library};

pub use gguf::GgufTokenizer;
pub(crate) use pieces::Pieces;

use crate::stream::TokenStream;

/// Highest token id that is believed, plus one: sixteen times the largest vocabulary in use. Tables are sized by the
/// highest id, so a hostile file could otherwise claim any amount of memory.
pub const MAX_VOCAB: usize = 1 << 22;

/// Text to token ids and back. Cheap to share (`Arc`), never changed after it is loaded.
#[derive(Debug)]
pub struct Tokenizer {
    library: Library,
    /// The same without the space that some tokenizers put before a text; `None` where they put none.
    continuing: Option<Library>,
    pieces: Arc<Pieces>,
}

/// Why a tokenizer could not be loaded or used. Nothing is left half-built: a failed load returns no tokenizer, a
/// failed call changes none.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file could not be read.
    #[error("cannot read the tokenizer {path}: {source}; check that the checkpoint is complete")]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file was read and cannot be used.
    #[error("{path}: {source}")]
    File {
        /// The file asked for.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<TokenizerError>,
    },
    /// The text is no valid `tokenizer.json`.
    #[error(
        "not a valid tokenizer.json: {reason}; fetch the file again, or convert the tokenizer to the fast format"
    )]
    Parse {
        /// What the parser said.
        reason: String,
    },
    /// The file decodes ids in a way that no supported model family does.
    #[error("the tokenizer's decoder {kind} is not supported; byte-level and SentencePiece decoders are")]
    UnsupportedDecoder {
        /// The decoder as the file names it.
        kind: String,
    },
    /// The tokenizer drops merges at random, so equal texts would not give equal ids.
    #[error(
        "the tokenizer sets BPE dropout to {dropout}, which is for training; set it to null in tokenizer.json"
    )]
    Dropout {
        /// The probability in the file.
        dropout: f64,
    },
    /// An id beyond every real vocabulary.
    #[error("the tokenizer holds the token id {id}, above the limit of {MAX_VOCAB}; the file is damaged")]
    IdTooLarge {
        /// The id in the file.
        id: u64,
    },
    /// The GGUF file names a tokenizer model that is not supported.
    #[error(
        "the GGUF tokenizer model {model:?} is not supported; gpt2 (byte-level BPE) and llama (SentencePiece) are"
    )]
    UnknownModel {
        /// `tokenizer.ggml.model`.
        model: String,
    },
    /// The GGUF file names a pre-tokenizer that is not supported.
    #[error(
        "the GGUF pre-tokenizer {pre:?} is not supported; use the checkpoint with its tokenizer.json instead"
    )]
    UnknownPreTokenizer {
        /// `tokenizer.ggml.pre`.
        pre: String,
    },
    /// The GGUF file's token lists contradict each other.
    #[error("the GGUF tokenizer is damaged: {reason}; convert or fetch the file again")]
    InvalidGguf {
        /// What is wrong, with the index.
        reason: String,
    },
    /// The text could not be split into tokens.
    #[error("cannot tokenise the text: {reason}; the tokenizer file does not fit its own settings")]
    Encode {
        /// What the library said.
        reason: String,
    },
    /// An id that the tokenizer cannot know.
    #[error("token id {id} is outside the tokenizer's {vocab_size} ids; is the tokenizer the model's own?")]
    UnknownId {
        /// The id asked for.
        id: u32,
        /// One more than the highest known id.
        vocab_size: usize,
    },
}

/// The parts of `tokenizer.json` that are read here besides the library.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    decoder: Option<Value>,
    #[serde(default)]
    normalizer: Option<Value>,
    #[serde(default)]
    pre_tokenizer: Option<Value>,
    model: OutlineModel,
}

#[derive(Deserialize)]
struct OutlineModel {
    #[serde(default)]
    dropout: Option<f64>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Read`] if the file cannot be read, else [`TokenizerError::File`] around what
    /// [`Tokenizer::from_bytes`] says.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let bytes = std::fs::read(path)
            .map_err(|source| TokenizerError::Read { path: path.to_path_buf(), source })?;
        Self::from_bytes(&bytes)
            .map_err(|source| TokenizerError::File { path: path.to_path_buf(), source: Box::new(source) })
    }

    /// Reads the bytes of a `tokenizer.json`. Truncation and padding settings in it are ignored: a context is never
    /// cut or filled behind the caller's back.
    ///
    /// # Errors
    /// [`TokenizerError::Parse`], [`TokenizerError::UnsupportedDecoder`], [`TokenizerError::Dropout`] or
    /// [`TokenizerError::IdTooLarge`]; any bytes give an answer or an error, never a panic.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let outline: Outline = serde_json::from_slice(bytes).map_err(parse_error)?;
        if let Some(dropout) = outline.model.dropout.filter(|&dropout| dropout > 0.0) {
            return Err(TokenizerError::Dropout { dropout });
        }
        let mut library = guarded(|| Library::from_bytes(bytes).map_err(|e| e.to_string()))
            .map_err(|reason| TokenizerError::Parse { reason })?;
        library.with_padding(None);
        guarded(|| library.with_truncation(None).map(|_| ()).map_err(|e| e.to_string()))
            .map_err(|reason| TokenizerError::Parse { reason })?;
        let pieces = Arc::new(Pieces::new(&library, outline.decoder.as_ref())?);
        let continuing = without_leading_space(&library, outline.normalizer, outline.pre_tokenizer)?;
        Ok(Self { library, continuing, pieces })
    }

    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownModel`], [`TokenizerError::UnknownPreTokenizer`], [`TokenizerError::InvalidGguf`], or
    /// as [`Tokenizer::from_bytes`].
    pub fn from_gguf(gguf: &GgufTokenizer) -> Result<Self, TokenizerError> {
        let json = gguf.to_tokenizer_json()?;
        Self::from_bytes(json.to_string().as_bytes()).map_err(|error| match error {
            // There is no tokenizer.json to fetch again.
            TokenizerError::Parse { reason } => TokenizerError::InvalidGguf { reason },
            other => other,
        })
    }

    /// The ids of `text`. With `add_special` also the tokens that the tokenizer puts around a text (a leading
    /// `<s>`, where its file says so); text from a chat template brings its own and needs `false`. Special tokens
    /// spelled out in `text` become their ids either way.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] if the tokenizer file contradicts itself.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        encode_with(&self.library, text, add_special)
    }

    /// The ids of `text` as the continuation of earlier text: without leading special tokens, and without the space
    /// that SentencePiece tokenizers put before the first word of a text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        encode_with(self.continuing.as_ref().unwrap_or(&self.library), text, false)
    }

    /// The text of `ids`; with `skip_special` without special tokens. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] if an id is not below [`Tokenizer::vocab_size`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let mut stream = TokenStream::new(self, skip_special);
        let mut text = String::new();
        for &id in ids {
            if id as usize >= self.vocab_size() {
                return Err(TokenizerError::UnknownId { id, vocab_size: self.vocab_size() });
            }
            text.push_str(&stream.push(id));
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// The id of the token spelled exactly `token` in the vocabulary, special or not.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// The vocabulary's spelling of `id` (byte-level tokens in their printable alphabet), or `None`.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.library.id_to_token(id)
    }

    /// One more than the highest id; ids between may be unused, and a model's embedding may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Whether `id` is a special token (begin, end, turn markers), which is no part of an answer's text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    pub(crate) fn pieces(&self) -> &Arc<Pieces> {
        &self.pieces
    }
}

fn parse_error(error: serde_json::Error) -> TokenizerError {
    TokenizerError::Parse { reason: error.to_string() }
}

fn encode_with(library: &Library, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
    guarded(|| library.encode_fast(text, add_special).map_err(|e| e.to_string()))
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(|reason| TokenizerError::Encode { reason })
}

/// Runs library code that may panic on a file that contradicts itself. The library is only read (or dropped) after a
/// panic, so no broken state is seen.
fn guarded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the tokenizers library panicked on this file".to_owned()))
}

/// A copy of `library` that puts no space before a text, or `None` if it puts none anyway.
fn without_leading_space(
    library: &Library,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
) -> Result<Option<Library>, TokenizerError> {
    let mut changed = false;
    let normalizer = normalizer.and_then(|step| drop_leading_space(step, &mut changed));
    let pre_tokenizer = pre_tokenizer.and_then(|step| drop_leading_space(step, &mut changed));
    if !changed {
        return Ok(None);
    }
    let normalizer: Option<NormalizerWrapper> =
        normalizer.map(serde_json::from_value).transpose().map_err(parse_error)?;
    let pre_tokenizer: Option<PreTokenizerWrapper> =
        pre_tokenizer.map(serde_json::from_value).transpose().map_err(parse_error)?;
    let mut continuing = library.clone();
    guarded(|| continuing.with_normalizer(normalizer).map(|_| ()).map_err(|e| e.to_string()))
        .map_err(|reason| TokenizerError::Parse { reason })?;
    continuing.with_pre_tokenizer(pre_tokenizer);
    Ok(Some(continuing))
}

/// One normalizer or pre-tokenizer step, and the steps inside it, without what adds a space.
fn drop_leading_space(mut step: Value, changed: &mut bool) -> Option<Value> {
    let kind = step.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind.as_str() {
        "Prepend" => {
            *changed = true;
            return None;
        }
        "Metaspace" => {
            let off = step.get("prepend_scheme").and_then(Value::as_str) == Some("never");
            *changed |= !off;
            step["prepend_scheme"] = "never".into();
            // The older spelling of the same setting, which would contradict the newer one.
            if let Some(fields) = step.as_object_mut() {
                fields.shift_remove("add_prefix_space");
            }
        }
        "ByteLevel" if step.get("add_prefix_space") != Some(&Value::Bool(false)) => {
            *changed = true;
            step["add_prefix_space"] = false.into();
        }
        "Sequence" => {
            for list in ["normalizers", "pretokenizers"] {
                if let Some(Value::Array(steps)) = step.get_mut(list) {
                    let kept = std::mem::take(steps).into_iter();
                    *steps = kept.filter_map(|inner| drop_leading_space(inner, changed)).collect();
                }
            }
        }
        _ => {}
    }
    Some(step)
}
