//! Any bytes as a request of an administrator, and as an event that answers one. What is read is written the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stellate_actors::api::{event_again, request_again};

fuzz_target!(|bytes: &[u8]| {
    for again in [request_again(bytes), event_again(bytes)].into_iter().flatten() {
        assert_eq!(again, bytes);
    }
});
