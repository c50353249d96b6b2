// Any bytes as a request of an administrator, and as an event that answers one. What is read is written the same way.

use stellate_actors::api::{event_again, request_again};

pub(crate) fn requests(bytes: &[u8]) {
    for again in [request_again(bytes), event_again(bytes)].into_iter().flatten() {
        assert_eq!(again, bytes);
    }
}
