//! What a GGUF file says about text: its tokenizer and chat template, handed on as they stand. Keys: llama.cpp's
//! `gguf-py/gguf/constants.py`. What they mean is known to `crate::tokenizer` and `crate::chat`.

use super::GgufMetadata;
use crate::tokenizer::GgufTokenizer;

impl GgufMetadata {
    /// The tokenizer, if the file has one.
    pub fn tokenizer(&self) -> Option<GgufTokenizer> {
        let model = self.text("tokenizer.ggml.model")?.to_owned();
        let tokens = self.texts("tokenizer.ggml.tokens")?.to_vec();
        let texts = |key: &str| self.texts(key).unwrap_or_default().to_vec();
        let types = self.integers("tokenizer.ggml.token_type").unwrap_or_default();
        Some(GgufTokenizer {
            model,
            pre: self.text("tokenizer.ggml.pre").map(str::to_owned),
            tokens,
            scores: self.floats("tokenizer.ggml.scores").unwrap_or_default().to_vec(),
            // Types are small; one that is not stands for none that is known.
            token_types: types.iter().map(|&kind| i32::try_from(kind).unwrap_or(0)).collect(),
            merges: texts("tokenizer.ggml.merges"),
            bos: self.id("tokenizer.ggml.bos_token_id"),
            eos: self.id("tokenizer.ggml.eos_token_id"),
            unk: self.id("tokenizer.ggml.unknown_token_id"),
            add_bos: self.flag("tokenizer.ggml.add_bos_token"),
            add_space_prefix: self.flag("tokenizer.ggml.add_space_prefix"),
        })
    }

    /// The chat template, if the file has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }
}
