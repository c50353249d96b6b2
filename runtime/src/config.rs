//! Settings: what they are ([`Settings`] and its sections), how they are read ([`Sources`]) and what can be wrong with
//! them ([`SettingsError`]). What each one means to a user is written once, in `cluster.toml`, which is also where the
//! defaults come from.
//!
//! ```
//! use stellate_runtime::config::{Settings, Sources};
//!
//! let sources = Sources::default().with_override("hosts.count", "3").with_override("kv.capacity_bytes", "64MiB");
//! let settings = Settings::read(&sources)?;
//! assert_eq!(settings.hosts.count, 3);
//! assert_eq!(settings.kv.capacity_bytes.get(), 64 << 20);
//! # Ok::<(), stellate_runtime::config::SettingsError>(())
//! ```

mod error;
mod keys;
mod read;
mod settings;
mod validate;
mod values;

#[cfg(test)]
mod tests;

pub use error::SettingsError;
pub use read::{
    ADDRESS_VARIABLE, CONFIG_FILE_VARIABLE, DEFAULT_FILE, ENVIRONMENT_PREFIX, IDENTITY_VARIABLE, Sources,
};
pub use settings::{
    AttentionSettings, ChatSettings, ClusterSettings, HostSettings, KvSettings, LogSettings, ModelSettings,
    NetworkSettings, NodeSettings, QuerySettings, SamplingSettings, Settings,
};
pub use values::{
    AnchorTokens, AttentionMode, Bytes, ContextRole, KvFormat, LogFormat, NodeRole, Repair, ValueError,
    WeightFormat,
};
