//! Any bytes as the headers and lists of decode streams and of copies of blocks. What is read means something that can be
//! checked, and is written the same way.
#![no_main]

include!("../bodies/headers.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| headers(bytes));
