//! Any text as config.json and generation_config.json.
#![no_main]

include!("../bodies/config.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| config(bytes));
