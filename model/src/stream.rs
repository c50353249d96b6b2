//! Answers as they appear: token ids turned into text piece by piece, and the search for stop strings in that text.
//! Pure state machines; where pieces go is the caller's.

mod stop;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use stop::{StopError, StopOutcome, StopStrings};

use crate::tokenizer::{Pieces, Tokenizer};

/// Incremental detokeniser: ids in, text out, as early as it is certain.
///
/// The pieces that [`TokenStream::push`] and [`TokenStream::finish`] return, joined, are what [`Tokenizer::decode`]
/// gives for all ids at once. Half a UTF-8 character is held back (at most three bytes) until its rest arrives; U+FFFD
/// stands only for bytes that can never become a character, as in [`String::from_utf8_lossy`].
#[derive(Debug, Clone)]
pub struct TokenStream {
    pieces: Arc<Pieces>,
    skip_special: bool,
    /// The bytes of an unfinished character.
    pending: Vec<u8>,
    /// How many leading spaces may still be dropped: only before the first byte of the text.
    strip_left: usize,
}

impl TokenStream {
    /// A stream for ids that begin a text; SentencePiece's own leading space is dropped.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        let pieces = Arc::clone(tokenizer.pieces());
        let strip_left = pieces.strip().count;
        Self { pieces, skip_special, pending: Vec::new(), strip_left }
    }

    /// A stream for ids that continue a text, such as an answer behind its prompt: every space belongs to it.
    pub fn continuing(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self { strip_left: 0, ..Self::new(tokenizer, skip_special) }
    }

    /// The text that is certain once `id` is known; often empty. An id without a token adds nothing.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.pieces.is_special(id) {
            return String::new();
        }
        let mut bytes = self.pieces.bytes(id);
        while let Some((&first, rest)) = bytes.split_first() {
            if self.strip_left == 0 || first != self.pieces.strip().byte {
                self.strip_left = 0;
                break;
            }
            self.strip_left -= 1;
            bytes = rest;
        }
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut kept = Vec::new();
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            match chunk.invalid() {
                [] => {}
                bytes if chunks.peek().is_none() && is_unfinished(bytes) => kept = bytes.to_vec(),
                _ => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        self.pending = kept;
        text
    }

    /// Ends the text: an unfinished character becomes U+FFFD. The stream can be used for another text afterwards, as
    /// one that continues.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Whether `bytes`, which end a text and are no character, could become one.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}
