//! Any bytes as a safetensors file: the header and the ranges it claims.
#![no_main]

include!("../bodies/safetensors.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| safetensors(bytes));
