//! Any bytes as what supervisors, agents and query nodes say to each other. Refusals can be told.
#![no_main]

include!("../bodies/control.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| control(bytes));
