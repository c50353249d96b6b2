//! Any bytes as tokenizer.json, and a text through what comes of them.
#![no_main]

include!("../bodies/tokenizer.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tokenizer(bytes));
