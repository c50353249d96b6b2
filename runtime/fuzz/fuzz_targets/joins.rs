//! Any bytes as the request of a node that would join, half of them in the name of a token that exists. Nobody gets in who does
//! not hold its secret.
#![no_main]

include!("../bodies/joins.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| joins(bytes));
