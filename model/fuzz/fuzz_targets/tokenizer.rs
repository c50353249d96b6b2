//! Any bytes as tokenizer.json, and a text through what comes of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stellate_model::tokenizer::Tokenizer;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_bytes(bytes) {
        let _ = tokenizer.encode("The code is 7421.", true);
    }
});
