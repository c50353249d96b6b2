//! The tokenizer that a GGUF file carries, rewritten as the `tokenizer.json` that means the same, so that one loader
//! and one set of checks serve both. Reading the GGUF file itself is not done here.
//!
//! Sources: llama.cpp's `src/llama-vocab.cpp` for the pre-tokenizers and token types, Hugging Face transformers'
//! `convert_slow_tokenizer.py` for the merges of a SentencePiece vocabulary.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::TokenizerError;

/// Longest token text that is believed; SentencePiece vocabularies stop at some dozens of bytes.
const MAX_TOKEN_BYTES: usize = 4096;

/// SentencePiece's mark for a space.
const SPACE_MARK: &str = "▁";

/// Split pattern of Llama 3 (also of Smaug, which is a Llama 3).
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Split pattern of Qwen2, 2.5 and 3: as Llama 3, but digits one by one.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Split pattern of Mistral's Tekken (Nemo).
const TEKKEN_PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a GGUF file says about its tokenizer (`tokenizer.ggml.*`); the reader fills it in as it stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `pre`: how text is split before merging (`gpt2` only); none means GPT-2's way.
    pub pre: Option<String>,
    /// `tokens`: the text of each id.
    pub tokens: Vec<String>,
    /// `scores`: one per token (`llama` only).
    pub scores: Vec<f32>,
    /// `token_type`: one per token (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte) or empty.
    pub token_types: Vec<i32>,
    /// `merges`: `left right`, the best first (`gpt2` only).
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `add_bos_token`: whether a text begins with `bos`; none means the model's habit.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`: whether a text begins with a space (`llama` only); none means yes.
    pub add_space_prefix: Option<bool>,
}

/// Token types of GGUF that matter here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Control and unknown tokens: special.
    Special,
    /// Matched whole in plain text, but no special token.
    User,
    Other,
}

/// What `pre` means.
struct PreTokenizer {
    steps: Value,
    normalizer: Value,
    /// A word that is a token is never merged from parts.
    ignore_merges: bool,
    adds_bos: bool,
}

impl GgufTokenizer {
    /// The text of a token, for [`crate::chat`], which wants the spelling of `bos` and `eos`.
    pub fn token(&self, id: Option<u32>) -> Option<&str> {
        self.tokens.get(id? as usize).map(String::as_str)
    }

    /// The `tokenizer.json` of the same meaning.
    pub(super) fn to_tokenizer_json(&self) -> Result<Value, TokenizerError> {
        self.check()?;
        let parts = match self.model.as_str() {
            "gpt2" => self.byte_level()?,
            "llama" => self.sentence_piece()?,
            other => return Err(TokenizerError::UnknownModel { model: other.to_owned() }),
        };
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": self.post_processor(parts.adds_bos)?,
            "decoder": parts.decoder,
            "model": parts.model,
        }))
    }

    fn check(&self) -> Result<(), TokenizerError> {
        let count = self.tokens.len();
        for (name, len) in [("scores", self.scores.len()), ("token types", self.token_types.len())] {
            if len != 0 && len != count {
                return Err(invalid(format!("{count} tokens but {len} {name}")));
            }
        }
        for (name, id) in [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk)] {
            if id.is_some_and(|id| id as usize >= count) {
                return Err(invalid(format!(
                    "the {name} token {} is outside the {count} tokens",
                    id.unwrap_or(0)
                )));
            }
        }
        if let Some(id) = self.tokens.iter().position(|token| token.len() > MAX_TOKEN_BYTES) {
            return Err(invalid(format!("token {id} is longer than {MAX_TOKEN_BYTES} bytes")));
        }
        Ok(())
    }

    fn kind(&self, id: usize) -> Kind {
        match self.token_types.get(id) {
            None | Some(1) => Kind::Normal,
            Some(2 | 3) => Kind::Special,
            Some(4) => Kind::User,
            Some(_) => Kind::Other,
        }
    }

    /// Token text to id; an empty text gets a name of its own, as in llama.cpp, so that the ids stay whole.
    fn vocab(&self) -> Result<Map<String, Value>, TokenizerError> {
        let mut vocab = Map::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            let text = if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() };
            if let Some(first) = vocab.insert(text, id.into()) {
                return Err(invalid(format!("tokens {first} and {id} are both {token:?}")));
            }
        }
        Ok(vocab)
    }

    fn added_tokens(&self) -> Vec<Value> {
        let mut added = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let kind = self.kind(id);
            if !token.is_empty() && matches!(kind, Kind::Special | Kind::User) {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind == Kind::Special,
                }));
            }
        }
        added
    }

    fn post_processor(&self, adds_bos: bool) -> Result<Value, TokenizerError> {
        if !self.add_bos.unwrap_or(adds_bos && self.bos.is_some()) {
            return Ok(Value::Null);
        }
        let (Some(bos), Some(text)) = (self.bos, self.token(self.bos)) else {
            return Err(invalid("add_bos_token is set but there is no bos_token_id".to_owned()));
        };
        let special = json!({ "SpecialToken": { "id": text, "type_id": 0 } });
        let first = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let second = json!({ "Sequence": { "id": "B", "type_id": 1 } });
        let mut names = Map::new();
        names.insert(text.to_owned(), json!({ "id": text, "ids": [bos], "tokens": [text] }));
        Ok(json!({
            "type": "TemplateProcessing", "single": [special, first], "pair": [special, first, second],
            "special_tokens": names,
        }))
    }

    fn byte_level(&self) -> Result<Parts, TokenizerError> {
        let pre = PreTokenizer::named(self.pre.as_deref())?;
        let mut merges = Vec::with_capacity(self.merges.len());
        for (index, merge) in self.merges.iter().enumerate() {
            // A token may itself begin with a space in odd files, so the search starts behind the first character.
            let skip = merge.chars().next().map_or(0, char::len_utf8);
            let space = merge[skip..].find(' ').map(|at| at + skip);
            let Some(space) = space else {
                return Err(invalid(format!("merge {index} ({merge:?}) is not two tokens")));
            };
            merges.push(json!([&merge[..space], &merge[space + 1..]]));
        }
        Ok(Parts {
            normalizer: pre.normalizer,
            pre_tokenizer: pre.steps,
            decoder: json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }),
            model: self.bpe_model(merges, false, pre.ignore_merges)?,
            adds_bos: pre.adds_bos,
        })
    }

    fn sentence_piece(&self) -> Result<Parts, TokenizerError> {
        let space = self.add_space_prefix.unwrap_or(true);
        let mut normalizers = Vec::new();
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE_MARK }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if space {
            normalizers.push(json!({ "type": "Prepend", "prepend": SPACE_MARK }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        normalizers.push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE_MARK }));
        Ok(Parts {
            normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
            pre_tokenizer: Value::Null,
            decoder: json!({ "type": "Sequence", "decoders": decoders }),
            model: self.bpe_model(self.merges_from_scores()?, true, false)?,
            adds_bos: true,
        })
    }

    fn bpe_model(
        &self,
        merges: Vec<Value>,
        byte_fallback: bool,
        ignore: bool,
    ) -> Result<Value, TokenizerError> {
        // Byte-level vocabularies cover every byte and need no unknown token.
        let unk = if byte_fallback { self.token(self.unk) } else { None };
        Ok(json!({
            "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": byte_fallback, "byte_fallback": byte_fallback,
            "ignore_merges": ignore, "vocab": self.vocab()?, "merges": merges,
        }))
    }

    /// SentencePiece's BPE joins the neighbours whose joined piece scores best: every way to cut a piece into two
    /// pieces is a merge, ranked by the score of the whole (`generate_merges` in transformers).
    fn merges_from_scores(&self) -> Result<Vec<Value>, TokenizerError> {
        if self.scores.len() != self.tokens.len() {
            return Err(invalid("a llama tokenizer needs one score per token".to_owned()));
        }
        if let Some(id) = self.scores.iter().position(|score| score.is_nan()) {
            return Err(invalid(format!("the score of token {id} is not a number")));
        }
        let normal = |id: &usize| self.kind(*id) == Kind::Normal;
        let ids: HashMap<&str, usize> =
            (0..self.tokens.len()).filter(normal).map(|id| (self.tokens[id].as_str(), id)).collect();
        let mut merges = Vec::new();
        for whole in (0..self.tokens.len()).filter(normal) {
            let text = self.tokens[whole].as_str();
            let cuts = text.char_indices().map(|(at, _)| at).skip(1);
            let mut found: Vec<(usize, usize)> =
                cuts.filter_map(|at| Some((*ids.get(&text[..at])?, *ids.get(&text[at..])?))).collect();
            found.sort_unstable();
            merges.extend(found.into_iter().map(|(left, right)| (whole, left, right)));
        }
        let length = |id: usize| self.tokens[id].chars().count();
        let lengths: Vec<usize> = (0..self.tokens.len()).map(length).collect();
        merges.sort_by(|a, b| {
            let by_score = self.scores[b.0].total_cmp(&self.scores[a.0]);
            by_score.then(lengths[b.1].cmp(&lengths[a.1])).then(lengths[b.2].cmp(&lengths[a.2]))
        });
        Ok(merges.iter().map(|&(_, left, right)| json!([self.tokens[left], self.tokens[right]])).collect())
    }
}

/// The parts of a `tokenizer.json` in which the two kinds of tokenizer differ.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    adds_bos: bool,
}

impl PreTokenizer {
    fn named(pre: Option<&str>) -> Result<Self, TokenizerError> {
        let plain = |steps| Self { steps, normalizer: Value::Null, ignore_merges: false, adds_bos: false };
        let nfc = json!({ "type": "NFC" });
        Ok(match pre.unwrap_or("default") {
            "default" | "gpt-2" | "gpt2" => plain(byte_level(true)),
            "llama-bpe" | "llama3" | "llama-v3" => {
                Self { ignore_merges: true, adds_bos: true, ..plain(split_by(LLAMA3_PATTERN)) }
            }
            "smaug-bpe" | "smaug" => plain(split_by(LLAMA3_PATTERN)),
            "qwen2" | "deepseek-r1-qwen" => Self { normalizer: nfc, ..plain(split_by(QWEN2_PATTERN)) },
            "tekken" => Self { ignore_merges: true, adds_bos: true, ..plain(split_by(TEKKEN_PATTERN)) },
            // GPT-2's way with digits one by one; the demo model's way, too.
            "smollm" | "starcoder" | "refact" | "command-r" => plain(sequence(r"\p{N}", true)),
            other => return Err(TokenizerError::UnknownPreTokenizer { pre: other.to_owned() }),
        })
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn split_by(pattern: &str) -> Value {
    sequence(pattern, false)
}

fn sequence(pattern: &str, use_regex: bool) -> Value {
    let split =
        json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    json!({ "type": "Sequence", "pretokenizers": [split, byte_level(use_regex)] })
}

fn invalid(reason: String) -> TokenizerError {
    TokenizerError::InvalidGguf { reason }
}
