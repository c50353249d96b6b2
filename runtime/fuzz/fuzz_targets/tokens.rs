//! Any text as a join token, a node id and a node name. What is read is written the same way.
#![no_main]

include!("../bodies/tokens.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tokens(bytes));
