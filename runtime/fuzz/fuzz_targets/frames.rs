//! Any bytes as a stream of frames, in pieces whose size the first byte gives.
#![no_main]

include!("../bodies/frames.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| frames(bytes));
