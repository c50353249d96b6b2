//! How a store is opened, with defaults.

/// Settings of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Memory for pages read and not yet written, in bytes.
    pub cache_bytes: usize,

    /// The largest value or log entry, in bytes. A context of a million tokens has a manifest of about 4 MB.
    pub max_value_bytes: usize,

    /// Whether [`super::Store::open`] reads the whole file and checks its checksums first. A damaged page is then found at
    /// start and not in the middle of a session; without it a damaged value is still found when it is read.
    pub verify_on_open: bool,

    /// Requests that may wait for each thread of a [`super::StoreHandle`]; more wait in their callers or are refused as busy.
    pub queue: usize,

    /// Bytes of values that may wait for the writer, all requests together. At least one value always may.
    pub queue_bytes: usize,

    /// The most writes that share one sync.
    pub group: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 32 << 20,
            max_value_bytes: 64 << 20,
            verify_on_open: true,
            queue: 256,
            queue_bytes: 128 << 20,
            group: 64,
        }
    }
}
