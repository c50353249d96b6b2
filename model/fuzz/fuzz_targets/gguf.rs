//! Any bytes as a GGUF file: header, metadata, configuration, tensor list, tokenizer.
#![no_main]

include!("../bodies/gguf.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gguf(bytes));
