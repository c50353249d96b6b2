//! What can go wrong with a cluster of this machine.

use std::io;
use std::time::Duration;

use stellate_actors::api::RemoteError;
use stellate_runtime::identity::IdentityFileError;

/// A cluster of this machine did not do what it should. Its processes still run; they end with the
/// [`LocalCluster`](super::LocalCluster).
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A file, a folder or a process could not be made or reached.
    #[error("cannot {what}")]
    Io {
        /// What was to be done.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A command of `stellate` that founds the cluster failed.
    #[error("`stellate {command}` failed: {said}")]
    Command {
        /// Its arguments.
        command: String,
        /// What it said.
        said: String,
    },
    /// A node did not come up, or did not end well.
    #[error("{name} {how}; the end of its log:\n{log}")]
    Process {
        /// The node.
        name: String,
        /// What it did.
        how: String,
        /// The last lines that it logged.
        log: String,
    },
    /// A node refused, or was not reached.
    #[error("cannot {what}")]
    Remote {
        /// What was to be done.
        what: String,
        /// What it said.
        source: RemoteError,
    },
    /// The administrator's identity cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    /// What was waited for did not come.
    #[error("waited {waited:?} in vain for {what}; at the end: {seen}\n{logs}")]
    Patience {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// What there was instead.
        seen: String,
        /// The last lines that each node logged.
        logs: String,
    },
}

impl LocalError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }

    pub(super) fn remote(what: impl Into<String>) -> impl FnOnce(RemoteError) -> Self {
        let what = what.into();
        |source| Self::Remote { what, source }
    }
}
