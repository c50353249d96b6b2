//! Any bytes as a member's certificate.
#![no_main]

include!("../bodies/certificates.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| certificates(bytes));
