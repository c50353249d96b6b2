//! What can go wrong when a backend or a weight is built. Calls on a built backend do not fail: wrong
//! shapes there are a programmer's error and panic.

use crate::WeightFormat;

/// An error of building a backend or a weight. Nothing is left behind by any of them unless a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A setting named a format or instruction set that does not exist.
    #[error("unknown {what} {name:?}: use one of {known}")]
    UnknownName {
        /// What was being named.
        what: &'static str,
        /// The name as given.
        name: String,
        /// The names that exist.
        known: &'static str,
    },
    /// `STELLATE_CPU_ISA` asks for an instruction set that this machine lacks.
    #[error("this machine has no {wanted}: unset STELLATE_CPU_ISA or set it to one of {available}")]
    UnsupportedIsa {
        /// The instruction set asked for.
        wanted: String,
        /// What this machine can run.
        available: String,
    },
    /// The options name a core that this process may not run on.
    #[error("core {cpu} is not available to this process: choose among {available:?}")]
    UnknownCpu {
        /// The core asked for.
        cpu: usize,
        /// The cores that exist and are allowed.
        available: Vec<usize>,
    },
    /// The operating system refused to pin a thread. The pool's threads are stopped again.
    #[error(
        "cannot pin a thread to one of the cores {cpus:?}: leave the list of cores empty to run unpinned"
    )]
    Pinning {
        /// The cores asked for.
        cpus: Vec<usize>,
    },
    /// The operating system refused to start the threads.
    #[error("cannot start {threads} threads: lower the number of threads or raise the process limit")]
    Threads {
        /// The number of threads asked for.
        threads: usize,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The rows of a weight cannot be cut into the format's blocks.
    #[error(
        "{cols} columns are not a multiple of {block_len}, the block length of {format}: keep this weight in bf16"
    )]
    Columns {
        /// The weight's format.
        format: WeightFormat,
        /// The weight's number of columns.
        cols: usize,
        /// The format's block length in values.
        block_len: usize,
    },
    /// The weight's size overflows or memory for it could not be had.
    #[error("no memory for a {format} weight of {rows} x {cols}: use a smaller model or a smaller format")]
    TooLarge {
        /// The weight's format.
        format: WeightFormat,
        /// The weight's number of rows.
        rows: usize,
        /// The weight's number of columns.
        cols: usize,
    },
    /// Raw bytes were pushed to a weight whose format has no blocks. The builder is unchanged.
    #[error("a {format} weight takes no raw blocks: push its rows as f32")]
    NotQuantised {
        /// The weight's format.
        format: WeightFormat,
    },
    /// Raw bytes are not a whole number of rows, or more rows than are missing. The builder is unchanged.
    #[error(
        "{bytes} bytes are not whole rows of {row_bytes} bytes, at most {missing_rows} of them: the file is damaged"
    )]
    RawLength {
        /// The number of bytes pushed.
        bytes: usize,
        /// The bytes of one row.
        row_bytes: usize,
        /// The rows still to come.
        missing_rows: usize,
    },
    /// The builder was finished early. The weight is dropped.
    #[error("{pushed} of {rows} rows were pushed: push the others before finishing")]
    MissingRows {
        /// The rows pushed.
        pushed: usize,
        /// The rows announced.
        rows: usize,
    },
}
