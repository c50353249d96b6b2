//! Standard output: text and JSON documents. Everything that is no result goes to standard error instead.

use std::io::{self, Write as _, stdout};

use serde::Serialize;

/// Writes `text` and flushes, so that an answer shows as it is made.
pub(crate) fn text(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes `text` as a line, or as several.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes one JSON document.
pub(crate) fn json(document: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(&serde_json::to_string_pretty(document)?)?)
}
