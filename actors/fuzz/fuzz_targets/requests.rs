//! Any bytes as a request of an administrator, and as an event that answers one. What is read is written the same way.
#![no_main]

include!("../bodies/requests.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| requests(bytes));
