//! Any bytes as what a member sends: datagrams and rosters, one after the other, into one state machine.
#![no_main]

include!("../bodies/membership.rs");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| membership(bytes));
