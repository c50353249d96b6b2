//! What has happened in a run, as a hash that two runs of one seed share, and as lines where they are wanted.

use std::fmt;
use std::time::Duration;

use crate::chance::digest;

/// The trace of a run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    /// Lines, if they are wanted: they cost most of a run's time.
    lines: Option<Vec<String>>,
}

impl Trace {
    /// A trace that also keeps lines.
    pub(crate) fn with_lines() -> Self {
        Self { lines: Some(Vec::new()), ..Self::default() }
    }

    /// Notes an event at a node: words that tell it from others, and a line.
    pub(crate) fn note(&mut self, at: Duration, node: u16, words: &[u64], line: impl FnOnce() -> String) {
        self.events += 1;
        let head = [self.hash, at.as_nanos() as u64, u64::from(node)];
        self.hash = digest(head.into_iter().chain(words.iter().copied()));
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>9.3} s  node {node:<3} {}", at.as_secs_f64(), line()));
        }
    }

    /// The hash of all that was noted.
    pub(crate) fn hash(&self) -> TraceHash {
        TraceHash(self.hash)
    }

    /// How much was noted.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// The lines, if they were wanted.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}

/// The hash of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceHash(pub u64);

impl fmt::Display for TraceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
