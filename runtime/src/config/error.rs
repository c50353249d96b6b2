//! What can be wrong with settings. Each message names the key, where it came from and what to write instead.

use std::path::PathBuf;

/// Settings could not be read. Nothing has been applied: the caller has no settings at all.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file that was asked for could not be read.
    #[error("cannot read the settings file {}: {source}; name an existing file or leave it out to use the defaults", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// A settings file is not TOML.
    #[error("the settings file {} is not valid TOML: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        problem: String,
    },

    /// A key that no setting has.
    #[error(
        "unknown setting `{key}` in {origin};{} cluster.toml lists every setting",
        nearest.as_ref().map(|nearest| format!(" did you mean `{nearest}`?")).unwrap_or_default()
    )]
    UnknownKey {
        /// The key, its section and a dot first.
        key: String,
        /// The file, the environment variable or the command line.
        origin: String,
        /// The known key that it is surely a slip for, if there is one.
        nearest: Option<String>,
    },

    /// A value that the setting's type does not have, that is out of its range, or that contradicts another setting.
    #[error("bad value for `{key}` in {origin}: {problem}")]
    BadValue {
        /// The setting.
        key: String,
        /// The file, the environment variable or the command line.
        origin: String,
        /// What was found and what is expected.
        problem: String,
    },

    /// The same for settings that were changed after they had been read, found by `Settings::validate`.
    #[error("bad value for `{key}`: {problem}")]
    Invalid {
        /// The setting to change.
        key: &'static str,
        /// What was found, what is expected, and the other setting's key if there is one.
        problem: String,
    },
}
