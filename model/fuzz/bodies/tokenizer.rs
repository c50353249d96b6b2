// Any bytes as tokenizer.json, and a text through what comes of them.

use stellate_model::tokenizer::Tokenizer;

pub(crate) fn tokenizer(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes(bytes) {
        let _ = tokenizer.encode("The code is 7421.", true);
    }
}
